//! Certificates that live as long as a test.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// Makes a CA, a server certificate and a client certificate, writes the PEM files that clients need, and returns the
/// server's side.
/// Self-signed, the server shows the CA's own certificate.
pub(super) fn make(dir: &Path, client_certificates: bool, self_signed: bool) -> Arc<ServerConfig> {
    let ca_key = KeyPair::generate().expect("ring makes keys");
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut ca = CertificateParams::new(names.clone()).expect("names are valid");
    // Each its own name: clients with several certificates choose by it.
    let unique = dir.file_name().unwrap_or_default().to_string_lossy();
    ca.distinguished_name.push(DnType::CommonName, format!("hullworks test CA {unique}"));
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("a CA signs itself");
    let own_key = ca_key.serialize_der();
    let issuer = Issuer::new(ca, ca_key);

    let server_key = KeyPair::generate().expect("ring makes keys");
    let server = CertificateParams::new(names).expect("names are valid");
    let server_certificate = server.signed_by(&server_key, &issuer).expect("the CA signs");

    let client_key = KeyPair::generate().expect("ring makes keys");
    let mut client = CertificateParams::new(Vec::new()).expect("no names to refuse");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let client_certificate = client.signed_by(&client_key, &issuer).expect("the CA signs");

    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).expect("scratch space is writable");
    write("ca.crt", ca_certificate.pem());
    write("client.cert", client_certificate.pem());
    write("client.key", client_key.serialize_pem());

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring does the default versions");
    let builder = if client_certificates {
        let mut roots = RootCertStore::empty();
        roots.add(ca_certificate.der().clone()).expect("our CA is well formed");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        builder.with_client_cert_verifier(verifier.expect("there is a root"))
    } else {
        builder.with_no_client_auth()
    };
    let (certificate, key) = match self_signed {
        true => (ca_certificate, own_key),
        false => (server_certificate, server_key.serialize_der()),
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let config = builder.with_single_cert(vec![certificate.der().clone()], key);
    Arc::new(config.expect("the key fits the certificate"))
}
