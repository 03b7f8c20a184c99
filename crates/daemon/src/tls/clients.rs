//! Whose certificate opens the door: as webpki decides, and certificates of version 1 of X.509, which it does not read.
//!
//! `openssl x509 -req` makes version 1 wherever no extensions are named, so many a team's client certificates are of it. Such
//! a certificate says who made it, until when it is valid, and whose key it is for; what clients or servers may do with it,
//! it can't say. Here one of the authorities must have made it itself. Those between are for webpki, in version 3: what
//! limits them stands in extensions.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature};
use rustls::crypto::{verify_tls13_signature, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, RootCertStore, SignatureScheme,
};
use webpki::RawPublicKeyEntity;
use x509_cert::der::asn1::AnyRef;
use x509_cert::der::{Decode as _, Encode, Tag};
use x509_cert::{Certificate, Version};

/// Checks the certificates of clients.
#[derive(Debug)]
pub(super) struct Clients {
    webpki: Arc<dyn ClientCertVerifier>,
    authorities: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Clients {
    /// Lets in whom one of these authorities has signed.
    pub(super) fn of(
        authorities: RootCertStore,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Clients, VerifierBuilderError> {
        let authorities = Arc::new(authorities);
        let webpki = WebPkiClientVerifier::builder_with_provider(authorities.clone(), provider.clone()).build()?;
        Ok(Clients { webpki, authorities, algorithms: provider.signature_verification_algorithms })
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match Version1::read(end_entity) {
            Some(certificate) => {
                certificate.check(&self.authorities, &self.algorithms, now)?;
                Ok(ClientCertVerified::assertion())
            }
            None => self.webpki.verify_client_cert(end_entity, intermediates, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let Some(version1) = Version1::read(certificate) else {
            return verify_tls12_signature(message, certificate, signed, &self.algorithms);
        };
        let of_scheme = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let Some((_, algorithms)) = of_scheme else {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        };
        has_signed(&version1.key()?, algorithms, message, signed.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match Version1::read(certificate) {
            Some(version1) => verify_tls13_signature_with_raw_key(message, &version1.key()?, signed, &self.algorithms),
            None => verify_tls13_signature(message, certificate, signed, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A certificate of version 1 (RFC 5280, 4.1).
struct Version1(Certificate);

impl Version1 {
    /// What is of another version, or cannot be read, is webpki's.
    fn read(certificate: &CertificateDer<'_>) -> Option<Version1> {
        let read = Certificate::from_der(certificate).ok()?;
        (read.tbs_certificate.version == Version::V1).then_some(Version1(read))
    }

    /// Whether one of the authorities made it, and it is valid now.
    fn check(
        &self,
        authorities: &RootCertStore,
        algorithms: &WebPkiSupportedAlgorithms,
        now: UnixTime,
    ) -> Result<(), Error> {
        let Certificate { tbs_certificate: content, signature_algorithm, signature } = &self.0;
        let has_more = content.extensions.is_some() || content.issuer_unique_id.is_some();
        if has_more || content.subject_unique_id.is_some() || content.signature != *signature_algorithm {
            return Err(CertificateError::BadEncoding.into());
        }
        let (issuer, signed) = (value(&content.issuer)?, content.to_der().map_err(bad)?);
        let signature = signature.as_bytes().ok_or(CertificateError::BadEncoding)?;
        let algorithm = value(signature_algorithm)?;
        let algorithms = algorithms.all.iter().copied().filter(|known| *known.signature_alg_id() == *algorithm);
        let algorithms = algorithms.collect::<Vec<_>>();
        // Several may be of one name: an authority with a new key.
        let mut refused = CertificateError::UnknownIssuer.into();
        for authority in authorities.roots.iter().filter(|authority| *authority.subject == *issuer) {
            let key = sequence(&authority.subject_public_key_info)?;
            match has_signed(&key, &algorithms, &signed, signature) {
                Ok(()) => return self.is_valid_at(now),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn is_valid_at(&self, now: UnixTime) -> Result<(), Error> {
        let validity = &self.0.tbs_certificate.validity;
        let [begin, end] = [validity.not_before, validity.not_after].map(|time| time.to_unix_duration().as_secs());
        match now.as_secs() {
            now if now < begin => Err(CertificateError::NotValidYet.into()),
            now if now > end => Err(CertificateError::Expired.into()),
            _ => Ok(()),
        }
    }

    fn key(&self) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
        Ok(self.0.tbs_certificate.subject_public_key_info.to_der().map_err(bad)?.into())
    }
}

/// Whether a signature is by this key, by one of the algorithms.
fn has_signed(
    key: &SubjectPublicKeyInfoDer<'_>,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    message: &[u8],
    signature: &[u8],
) -> Result<(), Error> {
    let key = RawPublicKeyEntity::try_from(key).map_err(|_| CertificateError::BadEncoding)?;
    let is_right =
        |algorithm: &&dyn SignatureVerificationAlgorithm| key.verify_signature(*algorithm, message, signature).is_ok();
    if algorithms.iter().any(is_right) { Ok(()) } else { Err(CertificateError::BadSignature.into()) }
}

/// What stands in a sequence: webpki's names and algorithms are without its header.
fn value(sequence: &impl Encode) -> Result<Vec<u8>, Error> {
    let encoded = sequence.to_der().map_err(bad)?;
    Ok(AnyRef::from_der(&encoded).map_err(bad)?.value().to_vec())
}

/// A sequence of this content.
fn sequence(content: &[u8]) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    let sequence = AnyRef::new(Tag::Sequence, content).and_then(|any| any.to_der());
    Ok(sequence.map_err(bad)?.into())
}

fn bad(_: x509_cert::der::Error) -> Error {
    CertificateError::BadEncoding.into()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use testkit::certificates::{Authority, Signed};

    use super::*;

    fn clients(authorities: &[&Authority]) -> Clients {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority.der().into()).expect("it is well formed");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Clients::of(roots, &provider).expect("there are roots")
    }

    /// Why a certificate is refused.
    fn refusal(clients: &Clients, client: &Signed) -> Option<CertificateError> {
        let now = UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970"));
        refusal_at(clients, &client.der(), now)
    }

    fn refusal_at(clients: &Clients, client: &[u8], now: UnixTime) -> Option<CertificateError> {
        match clients.verify_client_cert(&CertificateDer::from(client), &[], now) {
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
        let early = UnixTime::since_unix_epoch(Duration::ZERO);
        let client = ours.client().in_version_1(&ours).der();
        assert_eq!(refusal_at(&clients, &client, early), Some(CertificateError::NotValidYet));
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

    /// Not one byte of a certificate can be another.
    #[test]
    fn changed_certificates_of_version_1_are_refused() {
        let authority = Authority::new("ours");
        let clients = clients(&[&authority]);
        let client = authority.client().in_version_1(&authority);
        let good = client.der();
        let now = UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970"));
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
