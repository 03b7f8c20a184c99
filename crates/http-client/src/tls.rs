//! TLS identities: whom we trust and who we are. Equal identities share one connection pool.
//!
//! Roots are the system's bundle (webpki's where an image has none) plus the extra CA files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

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

/// A client certificate and its key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyPair {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
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
    pub(crate) fn client_config(&self) -> Result<ClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Setup(error.to_string()))?;
        let builder = match self.verify {
            Verify::Full => builder.with_root_certificates(self.roots()?),
            Verify::Skip => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnyone(provider.clone())))
            }
        };
        if self.keypairs.is_empty() {
            return Ok(builder.with_no_client_auth());
        }
        let keys = self.keypairs.iter().map(|pair| pair.load(&provider)).collect::<Result<Vec<_>, _>>()?;
        Ok(builder.with_client_cert_resolver(Arc::new(KeyRing(keys))))
    }

    fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = system_roots().clone();
        for path in &self.extra_roots {
            for certificate in read_certificates(path)? {
                roots.add(certificate).map_err(|error| unusable(path, error))?;
            }
        }
        Ok(roots)
    }
}

impl KeyPair {
    fn load(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
        let chain = read_certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| unusable(&self.key, error))?;
        let certified =
            CertifiedKey::from_der(chain, key, provider).map_err(|error| unusable(&self.certificate, error))?;
        Ok(Arc::new(certified))
    }
}

/// Read once per process: the bundle is some hundred kilobytes of PEM.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::debug!(%error, "system certificates");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        roots
    })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(|error| unusable(path, error))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(path, error))?;
    if certificates.is_empty() {
        return Err(unusable(path, "it holds no certificate"));
    }
    Ok(certificates)
}

fn unusable(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::Certificate { path: path.to_owned(), cause: cause.to_string() }
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
struct TrustAnyone(Arc<CryptoProvider>);

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
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
