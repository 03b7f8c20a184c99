//! Whose certificate opens the door: as webpki decides, and certificates of version 1 of X.509, which it does not read.
//!
//! `openssl x509 -req` makes version 1 wherever no extensions are named, so many a team's client certificates are of it. Such
//! a certificate says who made it, until when it is valid, and whose key it is for; what clients or servers may do with it,
//! it can't say. Here one of the authorities must have made it itself. Those between are for webpki, in version 3: what
//! limits them stands in extensions.

use std::sync::Arc;
use std::time::Duration;

use der::asn1::{AnyRef, BitStringRef, GeneralizedTime, UtcTime};
use der::{Decode as _, Encode as _, Reader as _, SliceReader, Tag, Tagged as _};
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
        has_signed(&version1.key, algorithms, message, signed.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match Version1::read(certificate) {
            Some(version1) => verify_tls13_signature_with_raw_key(message, &version1.key, signed, &self.algorithms),
            None => verify_tls13_signature(message, certificate, signed, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A certificate of version 1 (RFC 5280, 4.1), as it stands there.
struct Version1<'a> {
    /// What the signature is for, whole.
    signed: &'a [u8],
    /// By what it was made. Like that of names, its sequence's header is left out: so webpki has them.
    algorithm: &'a [u8],
    signature: &'a [u8],
    issuer: &'a [u8],
    /// Since the epoch.
    validity: [Duration; 2],
    key: SubjectPublicKeyInfoDer<'a>,
}

impl<'a> Version1<'a> {
    /// What is of another version, or cannot be read, is webpki's.
    fn read(certificate: &'a CertificateDer<'_>) -> Option<Version1<'a>> {
        AnyRef::from_der(certificate).and_then(|all| all.sequence(Version1::decode)).ok()
    }

    fn decode(certificate: &mut SliceReader<'a>) -> der::Result<Version1<'a>> {
        let signed = certificate.tlv_bytes()?;
        let algorithm = sequence(certificate)?;
        let signature = BitStringRef::decode(certificate)?;
        let signature = signature.as_bytes().ok_or(Tag::BitString.value_error())?;
        AnyRef::from_der(signed)?.sequence(|content| {
            // Other versions begin with their number.
            AnyRef::decode(content)?.tag().assert_eq(Tag::Integer)?;
            if sequence(content)? != algorithm {
                return Err(Tag::Sequence.value_error());
            }
            let issuer = sequence(content)?;
            let validity = AnyRef::decode(content)?.sequence(|validity| Ok([time(validity)?, time(validity)?]))?;
            let _subject = sequence(content)?;
            let key = content.tlv_bytes()?.into();
            // What else may follow is of later versions: the reader refuses it.
            Ok(Version1 { signed, algorithm, signature, issuer, validity, key })
        })
    }

    /// Whether one of the authorities made it, and it is valid now.
    fn check(
        &self,
        authorities: &RootCertStore,
        algorithms: &WebPkiSupportedAlgorithms,
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = algorithms.all.iter().copied().filter(|known| *known.signature_alg_id() == *self.algorithm);
        let algorithms = algorithms.collect::<Vec<_>>();
        // Several may be of one name: an authority with a new key.
        let mut refused = CertificateError::UnknownIssuer.into();
        for authority in authorities.roots.iter().filter(|authority| *authority.subject == *self.issuer) {
            let key = AnyRef::new(Tag::Sequence, &authority.subject_public_key_info).and_then(|key| key.to_der());
            let key = key.map_err(|_| CertificateError::BadEncoding)?.into();
            match has_signed(&key, &algorithms, self.signed, self.signature) {
                Ok(()) => return self.is_valid_at(now),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn is_valid_at(&self, now: UnixTime) -> Result<(), Error> {
        let [begin, end] = self.validity.map(|time| time.as_secs());
        match now.as_secs() {
            now if now < begin => Err(CertificateError::NotValidYet.into()),
            now if now > end => Err(CertificateError::Expired.into()),
            _ => Ok(()),
        }
    }
}

/// What stands in the next sequence.
fn sequence<'a>(reader: &mut SliceReader<'a>) -> der::Result<&'a [u8]> {
    let next = AnyRef::decode(reader)?;
    next.tag().assert_eq(Tag::Sequence)?;
    Ok(next.value())
}

fn time(reader: &mut SliceReader<'_>) -> der::Result<Duration> {
    match reader.peek_tag()? {
        Tag::UtcTime => Ok(UtcTime::decode(reader)?.to_unix_duration()),
        _ => Ok(GeneralizedTime::decode(reader)?.to_unix_duration()),
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

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

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
