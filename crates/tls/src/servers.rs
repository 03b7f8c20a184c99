//! Which servers are who they say.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use crate::certificate::{Certificate, Usage, refusal, signers};
use crate::{Handshake, Roots};

/// Checks the certificates of servers.
///
/// The machine's certificates, where they count too, are read when the first server shows one: a build that talks plain HTTP,
/// or to nobody, needs none of them.
#[derive(Debug)]
pub struct Servers {
    own: Roots,
    more: Option<fn() -> &'static Roots>,
    provider: Arc<CryptoProvider>,
    roots: OnceLock<Roots>,
}

impl Servers {
    /// Trusts whom these authorities have signed, and those that are found when they are needed.
    pub fn new(own: Roots, more: Option<fn() -> &'static Roots>, provider: Arc<CryptoProvider>) -> Servers {
        Servers { own, more, provider, roots: OnceLock::new() }
    }

    fn roots(&self) -> &Roots {
        self.roots.get_or_init(|| {
            let mut roots = self.own.clone();
            if let Some(more) = self.more {
                roots.extend(more());
            }
            roots
        })
    }

    fn handshake(&self) -> Handshake {
        Handshake(self.provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (roots, between) = (self.roots(), signers(intermediates));
        let authorities = roots.authorities(Usage::Server, now);
        let webpki = WebPkiServerVerifier::builder_with_provider(authorities, self.provider.clone()).build();
        let refused =
            match webpki.map(|webpki| webpki.verify_server_cert(end_entity, &between, server, ocsp_response, now)) {
                Ok(Ok(verified)) => return Ok(verified),
                Ok(Err(refused)) => Some(refused),
                Err(_) => None,
            };
        let certificate = Certificate::read(end_entity)?;
        match certificate.check(roots, &self.handshake().0, Usage::Server, now) {
            // Version 1 has no names: webpki does not read it, nor does anybody else.
            Ok(()) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server)?;
                Ok(ServerCertVerified::assertion())
            }
            Err(error) => Err(refusal(refused, error)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.handshake().tls12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.handshake().tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.handshake().schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, date_time_ymd};

    use rustls::CertificateError;
    use testkit::certificates::{Authority, Signed};

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
        let mut roots = Roots::default();
        roots.add(trusted.clone()).expect("well formed");
        let provider = crate::provider();
        let verifier = Servers::new(roots, None, provider);
        let check = |certificate: &CertificateDer<'_>, name: &'static str, year| {
            let name = ServerName::try_from(name).expect("a name");
            verifier.verify_server_cert(certificate, &[], &name, &[], at(year)).map(drop)
        };
        use CertificateError::{Expired, NotValidForNameContext, NotValidYet};
        check(&trusted, "registry.test", 2030).expect("it is trusted");
        let refused = |result| match result {
            Err(Error::InvalidCertificate(why)) => why,
            other => panic!("{other:?}"),
        };
        let why = refused(check(&trusted, "other.test", 2030));
        assert!(matches!(why, NotValidForNameContext { .. }), "{why:?}");
        let why = refused(check(&trusted, "registry.test", 2032));
        assert_eq!(why, Expired);
        let why = refused(check(&trusted, "registry.test", 2029));
        assert_eq!(why, NotValidYet);
        // Of the same name, by another key.
        refused(check(&other, "registry.test", 2030));
        // Version 1 has no names.
        let authority = Authority::new("ours");
        let mut roots = Roots::default();
        roots.add(authority.der().into()).expect("well formed");
        let verifier = Servers::new(roots, None, crate::provider());
        let now = UnixTime::now();
        let name = ServerName::try_from("localhost").expect("a name");
        let check = |server: Signed| verifier.verify_server_cert(&server.der().into(), &[], &name, &[], now).map(drop);
        check(authority.server()).expect("it is good");
        refused(check(authority.server().in_version_1(&authority)));
        // An authority between that may not sign certificates.
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let through = |usages: &[KeyUsagePurpose]| {
            let mut params = params.clone();
            params.key_usages = usages.to_vec();
            let between = authority.authority(params);
            let chain = [CertificateDer::from(between.der())];
            verifier.verify_server_cert(&between.server().der().into(), &chain, &name, &[], now).map(drop)
        };
        through(&[KeyUsagePurpose::KeyCertSign]).expect("it may");
        assert_eq!(refused(through(&[KeyUsagePurpose::DigitalSignature])), CertificateError::UnknownIssuer);
    }
}
