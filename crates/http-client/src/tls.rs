//! TLS identities: whom we trust and who we are. Equal identities share one connection pool.
//!
//! Roots are the system's bundle (webpki's where an image has none) plus the extra CA files. A server that shows one of
//! these very certificates is trusted as well, as by Go's clients: in-house registries often have just one certificate,
//! made by `openssl req -x509`, which says of itself that it is a CA.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::{Error, read_certificates};

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
    /// Settings for a connection of another kind than this room's.
    pub fn client_config(&self) -> Result<ClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Setup(error.to_string()))?;
        let builder = match self.verify {
            Verify::Full => {
                let verifier = Trusting::new(self.extra_roots()?, system_roots, provider.clone());
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
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

    fn extra_roots(&self) -> Result<Roots, Error> {
        let mut roots = Roots { anchors: RootCertStore::empty(), certificates: Vec::new() };
        for path in &self.extra_roots {
            for certificate in read_certificates(path)? {
                let added = roots.anchors.add(certificate.clone());
                added.map_err(|error| Error::Certificate { path: path.clone(), cause: error.to_string() })?;
                roots.certificates.push(certificate);
            }
        }
        Ok(roots)
    }
}

/// Whom we trust.
#[derive(Clone, Debug)]
struct Roots {
    /// As issuers.
    anchors: RootCertStore,
    /// As servers: the same certificates, whole.
    certificates: Vec<CertificateDer<'static>>,
}

/// Read once per process: the bundle is some hundred kilobytes of PEM.
fn system_roots() -> &'static Roots {
    static ROOTS: OnceLock<Roots> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::debug!(%error, "system certificates");
        }
        let mut anchors = RootCertStore::empty();
        anchors.add_parsable_certificates(native.certs.iter().cloned());
        if anchors.is_empty() {
            anchors.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Roots { anchors, certificates: native.certs }
    })
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

/// The usual verifier: webpki's rules, and one of Go's.
///
/// The system's certificates are read when the first server shows one: a build that talks plain HTTP, or to nobody,
/// needs none of them.
#[derive(Debug)]
struct Trusting {
    extra: Roots,
    system: fn() -> &'static Roots,
    provider: Arc<CryptoProvider>,
    checker: OnceLock<Result<Checker, rustls::Error>>,
}

#[derive(Debug)]
struct Checker {
    webpki: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Trusting {
    fn new(extra: Roots, system: fn() -> &'static Roots, provider: Arc<CryptoProvider>) -> Trusting {
        Trusting { extra, system, provider, checker: OnceLock::new() }
    }

    fn checker(&self) -> Result<&Checker, rustls::Error> {
        let make = || {
            let Roots { mut anchors, mut certificates } = (self.system)().clone();
            anchors.extend(self.extra.anchors.roots.iter().cloned());
            certificates.extend(self.extra.certificates.iter().cloned());
            let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(anchors), self.provider.clone()).build();
            let webpki = webpki.map_err(|error| rustls::Error::General(error.to_string()))?;
            Ok(Checker { webpki, certificates })
        };
        self.checker.get_or_init(make).as_ref().map_err(Clone::clone)
    }
}

impl Checker {
    /// Whether all that webpki has against a certificate is that it is a CA's, and it is one that we were told to
    /// trust. That it is valid today has been checked by then; the test below would notice if that changed.
    fn is_trusted_itself(&self, certificate: &CertificateDer<'_>, error: &rustls::Error) -> bool {
        let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error else { return false };
        matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
            && self.certificates.iter().any(|trusted| trusted == certificate)
    }
}

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let checker = self.checker()?;
        match checker.webpki.verify_server_cert(end_entity, intermediates, server, ocsp_response, now) {
            Err(error) if checker.is_trusted_itself(end_entity, &error) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, date_time_ymd};

    use super::*;

    /// A certificate that is its own CA, as `openssl req -x509` makes them, valid in 2030.
    fn own_ca() -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["registry.test".to_owned()]).expect("a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (date_time_ymd(2030, 1, 1), date_time_ymd(2031, 1, 1));
        let key = rcgen::KeyPair::generate().expect("ring makes keys");
        params.self_signed(&key).expect("it signs itself").der().clone()
    }

    fn at(year: i32) -> UnixTime {
        let time = date_time_ymd(year, 6, 1).unix_timestamp();
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(time).expect("after 1970")))
    }

    #[test]
    fn a_server_may_show_a_certificate_that_is_trusted_itself() {
        let (trusted, other) = (own_ca(), own_ca());
        let mut roots = Roots { anchors: RootCertStore::empty(), certificates: vec![trusted.clone()] };
        roots.anchors.add(trusted.clone()).expect("well formed");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        static NOBODY: OnceLock<Roots> = OnceLock::new();
        let nobody = || NOBODY.get_or_init(|| Roots { anchors: RootCertStore::empty(), certificates: Vec::new() });
        let verifier = Trusting::new(roots, nobody, provider);
        let check = |certificate: &CertificateDer<'_>, name: &'static str, year| {
            let name = ServerName::try_from(name).expect("a name");
            verifier.verify_server_cert(certificate, &[], &name, &[], at(year)).map(drop)
        };
        use CertificateError::{ExpiredContext, NotValidForNameContext, NotValidYetContext};
        check(&trusted, "registry.test", 2030).expect("it is trusted");
        let refused = |result| match result {
            Err(rustls::Error::InvalidCertificate(why)) => why,
            other => panic!("{other:?}"),
        };
        let why = refused(check(&trusted, "other.test", 2030));
        assert!(matches!(why, NotValidForNameContext { .. }), "{why:?}");
        let why = refused(check(&trusted, "registry.test", 2032));
        assert!(matches!(why, ExpiredContext { .. }), "{why:?}");
        let why = refused(check(&trusted, "registry.test", 2029));
        assert!(matches!(why, NotValidYetContext { .. }), "{why:?}");
        // Of the same name, by another key.
        refused(check(&other, "registry.test", 2030));
    }
}
