//! The registry's certificates.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::certificates::Authority;

/// Makes a CA, a server certificate and a client certificate, writes the PEM files that clients need, and returns the
/// server's side.
/// Self-signed, the server shows the CA's own certificate.
pub(super) fn make(dir: &Path, client_certificates: bool, self_signed: bool) -> Arc<ServerConfig> {
    let authority = Authority::new(&dir.file_name().unwrap_or_default().to_string_lossy());
    let (server, client) = (authority.server(), authority.client());
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).expect("scratch space is writable");
    write("ca.crt", authority.certificate());
    write("client.cert", client.certificate());
    write("client.key", client.key());

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring does the default versions");
    let builder = if client_certificates {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.der().clone()).expect("our CA is well formed");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        builder.with_client_cert_verifier(verifier.expect("there is a root"))
    } else {
        builder.with_no_client_auth()
    };
    let (certificate, key) = match self_signed {
        true => (authority.certificate.der().clone(), authority.own_key),
        false => (server.certificate, server.key.serialize_der()),
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let config = builder.with_single_cert(vec![certificate], key);
    Arc::new(config.expect("the key fits the certificate"))
}
