//! TLS identities: whom a pool trusts and who we are. Equal identities share one connection pool.
//!
//! Roots are the system's bundle (webpki's where an image has none) plus the extra CA files.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};
use tls::{Handshake, KeyPair, Roots, Servers, system_roots};

use crate::Error;

/// Whom a pool trusts and as whom it shows up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsIdentity {
    /// PEM files of further CAs.
    pub extra_roots: Vec<PathBuf>,
    /// Client certificates, offered to servers that ask for one.
    pub keypairs: Vec<KeyPair>,
    /// Whether the server must prove who it is.
    pub verify: Verify,
}

/// Whether the server must prove who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verify {
    /// Certificates are checked.
    #[default]
    Full,
    /// Any certificate will do (`insecure = true`).
    Skip,
}

impl TlsIdentity {
    /// Settings for a connection of another kind than this room's.
    pub fn client_config(&self) -> Result<ClientConfig, Error> {
        let provider = tls::provider();
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Setup(error.to_string()))?;
        let builder = match self.verify {
            Verify::Full => {
                let mut roots = Roots::default();
                for path in &self.extra_roots {
                    roots.add_file(path)?;
                }
                let verifier = Servers::new(roots, Some(system_roots), provider.clone());
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
            Verify::Skip => builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnyone(Handshake(
                provider.signature_verification_algorithms,
            )))),
        };
        if self.keypairs.is_empty() {
            return Ok(builder.with_no_client_auth());
        }
        let keys = self.keypairs.iter().map(|pair| pair.load(&provider)).collect::<Result<Vec<_>, tls::Error>>()?;
        Ok(builder.with_client_cert_resolver(Arc::new(KeyRing(keys))))
    }
}

/// Several client certificates, of which the server's wishes choose.
#[derive(Debug)]
struct KeyRing(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for KeyRing {
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let signs = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        // A certificate holds its issuer's name in the very DER form in which servers list the issuers they accept.
        let issued = |key: &&Arc<CertifiedKey>| {
            let has = |der: &CertificateDer<'_>, name: &[u8]| der.windows(name.len().max(1)).any(|part| part == name);
            key.cert.iter().any(|der| issuers.iter().any(|name| has(der, name)))
        };
        let fitting = self.0.iter().filter(signs).find(issued);
        fitting.or_else(|| self.0.iter().find(signs)).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The verifier of `insecure = true`: signatures must hold, names and issuers may be anything.
#[derive(Debug)]
struct TrustAnyone(Handshake);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.tls12(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.tls13(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.schemes()
    }
}
