//! Which clients may come in.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::certificate::{Certificate, Usage, refusal, signers};
use crate::{Handshake, Roots};

/// Checks the certificates of clients.
#[derive(Debug)]
pub struct Clients {
    roots: Roots,
    names: Vec<DistinguishedName>,
    provider: Arc<CryptoProvider>,
}

impl Clients {
    /// Lets in whom one of these authorities has signed, and whose certificate is among them.
    pub fn new(roots: Roots, provider: Arc<CryptoProvider>) -> Clients {
        Clients { names: roots.names(), roots, provider }
    }

    fn handshake(&self) -> Handshake {
        Handshake(self.provider.signature_verification_algorithms)
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.names
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let authorities = self.roots.authorities(Usage::Client, now);
        // There may be none, but clients themselves.
        let webpki = WebPkiClientVerifier::builder_with_provider(authorities, self.provider.clone()).build();
        let refused = match webpki.map(|webpki| webpki.verify_client_cert(end_entity, &signers(intermediates), now)) {
            Ok(Ok(verified)) => return Ok(verified),
            Ok(Err(refused)) => Some(refused),
            Err(_) => None,
        };
        let certificate = Certificate::read(end_entity)?;
        match certificate.check(&self.roots, &self.handshake().0, Usage::Client, now) {
            Ok(()) => Ok(ClientCertVerified::assertion()),
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
    use std::time::{SystemTime, UNIX_EPOCH};

    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
        KeyUsagePurpose, NameConstraints, SanType,
    };
    use rustls::CertificateError;
    use testkit::certificates::{Authority, Signed, client};

    use super::*;

    fn clients(authorities: &[&Authority]) -> Clients {
        clients_of(authorities.iter().map(|authority| authority.der()))
    }

    fn clients_of(certificates: impl Iterator<Item = Vec<u8>>) -> Clients {
        let mut roots = Roots::default();
        for certificate in certificates {
            roots.add(certificate.into()).expect("it is well formed");
        }
        Clients::new(roots, crate::provider())
    }

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970"))
    }

    /// Why a certificate is refused.
    fn refusal(clients: &Clients, client: &Signed) -> Option<CertificateError> {
        let now = now();
        refusal_at(clients, &client.der(), now)
    }

    fn refusal_at(clients: &Clients, client: &[u8], now: UnixTime) -> Option<CertificateError> {
        told(clients.verify_client_cert(&CertificateDer::from(client), &[], now))
    }

    fn told(verified: Result<ClientCertVerified, Error>) -> Option<CertificateError> {
        match verified {
            Ok(_) => None,
            Err(Error::InvalidCertificate(why)) => Some(why),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn certificates_of_version_1_open_the_door_their_authority_guards() {
        let (ours, other) = (Authority::new("ours"), Authority::new("another"));
        let clients = clients(&[&other, &ours]);
        assert_eq!(refusal(&clients, &ours.client()), None);
        assert_eq!(refusal(&clients, &ours.client().in_version_1(&ours)), None);
        assert_eq!(refusal(&clients, &ours.expired_client().in_version_1(&ours)), Some(CertificateError::Expired));
        let mut early = client();
        (early.not_before, early.not_after) = (rcgen::date_time_ymd(2080, 1, 1), rcgen::date_time_ymd(2090, 1, 1));
        let early = ours.sign(early).in_version_1(&ours);
        assert_eq!(refusal(&clients, &early), Some(CertificateError::NotValidYet));
        // Of an authority that isn't asked, of one that has only the name, and signed by itself.
        let stranger = Authority::new("a stranger");
        assert_eq!(
            refusal(&clients, &stranger.client().in_version_1(&stranger)),
            Some(CertificateError::UnknownIssuer)
        );
        let namesake = Authority::new("ours");
        assert_eq!(refusal(&clients, &namesake.client().in_version_1(&namesake)), Some(CertificateError::BadSignature));
        // Of two of one name, the one that has signed counts.
        let both = self::clients(&[&namesake, &ours]);
        assert_eq!(refusal(&both, &ours.client().in_version_1(&ours)), None);
    }

    /// As Go's servers see it.
    #[test]
    fn what_else_a_certificate_of_a_client_may_say() {
        let authority = Authority::new("ours");
        let clients = clients(&[&authority]);
        let of = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = client();
            change(&mut params);
            refusal(&clients, &authority.sign(params))
        };
        let usages = |usages: &[ExtendedKeyUsagePurpose]| {
            let usages = usages.to_vec();
            of(&move |params| params.extended_key_usages = usages.clone())
        };
        assert_eq!(of(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), None);
        assert_eq!(usages(&[ExtendedKeyUsagePurpose::Any]), None);
        assert_eq!(usages(&[]), None);
        assert!(usages(&[ExtendedKeyUsagePurpose::ServerAuth]).is_some());
        let of_server = of(&|params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        assert!(of_server.is_some());
        let unknown = of(&|params| {
            let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
            extension.set_criticality(true);
            params.custom_extensions = vec![extension];
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        });
        assert!(unknown.is_some());
        // Its own: in the list it is good, elsewhere not.
        let alone = Authority::new("its own");
        assert_eq!(refusal_at(&self::clients(&[&alone]), &alone.der(), now()), None);
        assert!(refusal_at(&clients, &alone.der(), now()).is_some());
        let listed = Authority::new("of somebody else").client();
        assert_eq!(refusal(&clients_of([listed.der()].into_iter()), &listed), None);
    }

    /// To be in the list is not to sign for others, nor for all names, nor for ever.
    #[test]
    fn who_is_trusted_may_not_all_sign() {
        let signer = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "listed");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            change(&mut params);
            Authority::new("whoever made it").authority(params)
        };
        let lets_in = |listed: &Authority| {
            let clients = clients(&[listed]);
            let signed = [listed.client(), listed.client().in_version_1(listed)];
            signed.map(|client| refusal(&clients, &client).is_none())
        };
        assert_eq!(lets_in(&signer(&|_| {})), [true, true]);
        assert_eq!(lets_in(&signer(&|params| params.is_ca = IsCa::ExplicitNoCa)), [false, false]);
        assert_eq!(lets_in(&signer(&|params| params.is_ca = IsCa::NoCa)), [false, false]);
        let digital = vec![KeyUsagePurpose::DigitalSignature];
        assert_eq!(lets_in(&signer(&|params| params.key_usages.clone_from(&digital))), [false, false]);
        let servers = vec![ExtendedKeyUsagePurpose::ServerAuth];
        assert_eq!(lets_in(&signer(&|params| params.extended_key_usages.clone_from(&servers))), [false, false]);
        let expired = |params: &mut CertificateParams| {
            (params.not_before, params.not_after) =
                (rcgen::date_time_ymd(2019, 1, 1), rcgen::date_time_ymd(2020, 1, 1));
        };
        assert_eq!(lets_in(&signer(&expired)), [false, false]);
        let bound = signer(&|params| {
            let permitted_subtrees = vec![GeneralSubtree::DnsName("example.com".to_owned())];
            params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        });
        assert!(!lets_in(&bound)[1]);
        let mut elsewhere = client();
        elsewhere.subject_alt_names = vec![SanType::DnsName("other.test".try_into().expect("a name"))];
        elsewhere.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        assert!(refusal(&clients(&[&bound]), &bound.sign(elsewhere)).is_some());
    }

    #[test]
    fn what_is_said_twice_or_by_later_versions_is_not_read() {
        let authority = Authority::new("ours");
        let clients = clients(&[&authority]);
        let mut params = client();
        let usage = [0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1].to_vec();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 37], usage)];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let twice = authority.sign(params);
        assert!(refusal(&clients, &twice).is_some());
        assert!(Certificate::read(&twice.der().into()).is_err());
    }

    #[test]
    fn authorities_between_must_be_allowed_to_sign() {
        let root = Authority::new("the root");
        let clients = clients(&[&root]);
        let through = |usages: &[KeyUsagePurpose]| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "between");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = usages.to_vec();
            let between = root.authority(params);
            let between_der = CertificateDer::from(between.der());
            let client = |client: Signed| {
                told(clients.verify_client_cert(
                    &CertificateDer::from(client.der()),
                    std::slice::from_ref(&between_der),
                    now(),
                ))
            };
            (client(between.client()), client(between.client().in_version_1(&between)))
        };
        use KeyUsagePurpose::{DigitalSignature, KeyCertSign};
        let unknown = Some(CertificateError::UnknownIssuer);
        assert_eq!(through(&[]), (None, unknown.clone()));
        assert_eq!(through(&[KeyCertSign, DigitalSignature]), (None, unknown.clone()));
        assert_eq!(through(&[DigitalSignature]), (unknown.clone(), unknown));
    }

    /// Not one byte of a certificate can be another.
    #[test]
    fn changed_certificates_of_version_1_are_refused() {
        let authority = Authority::new("ours");
        let clients = clients(&[&authority]);
        let client = authority.client().in_version_1(&authority);
        let good = client.der();
        let now = now();
        assert_eq!(refusal_at(&clients, &good, now), None);
        for at in 0..good.len() {
            for flip in [1, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                assert!(refusal_at(&clients, &bad, now).is_some(), "byte {at} by {flip}");
            }
            assert!(refusal_at(&clients, &good[..at], now).is_some(), "cut at {at}");
        }
        assert!(refusal_at(&clients, &[&good[..], b"more"].concat(), now).is_some());
    }
}
