//! A certificate (RFC 5280, 4.1), read for what webpki does not decide.
//!
//! Go's clients and servers accept of the other side what webpki does not: certificates of version 1 of X.509, which
//! `openssl x509 -req` makes wherever no extensions are named; such as are an authority's, which `openssl req -x509` makes;
//! such as are in the list of authorities themselves; and such as may be used for anything. Here one of the authorities must
//! have made it itself: those between are for webpki.
//!
//! And of authorities Go asks more: that they may sign, what for, and until when, also where they are trusted.

use std::time::Duration;

use der::asn1::{AnyRef, BitStringRef, GeneralizedTime, OctetStringRef, UtcTime};
use der::{Decode as _, Reader as _, SliceReader, Tag, TagNumber, Tagged as _};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, Error};
use webpki::RawPublicKeyEntity;

use crate::Roots;

/// What a certificate is shown for: its extended key usage (RFC 5280, 4.2.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Client,
    Server,
}

/// An object identifier, as it is encoded.
type Identifier<'a> = &'a [u8];

/// 2.5.29.37.0, 1.3.6.1.5.5.7.3.1 and .2.
const ANY_USAGE: Identifier<'_> = &[0x55, 0x1d, 0x25, 0];
const SERVER_USAGE: Identifier<'_> = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_USAGE: Identifier<'_> = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

// Extensions, 2.5.29.15 and so on: what the key may do, other names, whether it is an authority's, for which names, by which
// policies, what it is for.
const KEY_USAGE: Identifier<'_> = &[0x55, 0x1d, 15];
const NAMES: Identifier<'_> = &[0x55, 0x1d, 17];
const CONSTRAINTS: Identifier<'_> = &[0x55, 0x1d, 19];
const NAME_CONSTRAINTS: Identifier<'_> = &[0x55, 0x1d, 30];
const POLICIES: Identifier<'_> = &[0x55, 0x1d, 32];
const USAGES: Identifier<'_> = &[0x55, 0x1d, 37];

/// The bit of a key that signs certificates.
const SIGNS_CERTIFICATES: u8 = 0x04;

/// A certificate as it stands there. Names and algorithms are the contents of their sequences, without the header: so webpki
/// has them.
pub(crate) struct Certificate<'a> {
    whole: &'a [u8],
    /// What the signature is for.
    signed: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    issuer: &'a [u8],
    pub(crate) subject: &'a [u8],
    /// Since the epoch.
    validity: [Duration; 2],
    pub(crate) key: SubjectPublicKeyInfoDer<'a>,
    /// Of version 1, which has none: not even room for them.
    extensions: Option<Extensions<'a>>,
}

#[derive(Default)]
struct Extensions<'a> {
    /// Whether one that must be heeded is of an unknown kind.
    has_unknown: bool,
    is_authority: bool,
    /// Whether it may sign for some names only.
    is_bound_to_names: bool,
    usages: Option<Vec<Identifier<'a>>>,
    key_usage: Option<&'a [u8]>,
}

impl<'a> Certificate<'a> {
    pub(crate) fn read(certificate: &'a CertificateDer<'_>) -> Result<Certificate<'a>, Error> {
        let read = AnyRef::from_der(certificate)
            .and_then(|all| all.sequence(|certificate_parts| Certificate::decode(certificate, certificate_parts)));
        read.map_err(|_| CertificateError::BadEncoding.into())
    }

    fn decode(whole: &'a [u8], certificate: &mut SliceReader<'a>) -> der::Result<Certificate<'a>> {
        let signed = certificate.tlv_bytes()?;
        let algorithm = sequence(certificate)?;
        let signature = BitStringRef::decode(certificate)?;
        let signature = signature.as_bytes().ok_or(Tag::BitString.value_error())?;
        AnyRef::from_der(signed)?.sequence(|content| {
            // Version 1 is meant where nothing is said, and has no other way to be said. Later ones are told by one less.
            let mut version = 1;
            if content.peek_tag()? == context(0) {
                version += AnyRef::from_der(AnyRef::decode(content)?.value())?.decode_as::<u8>()?.min(3);
            }
            if version > 3 {
                return Err(Tag::Integer.value_error());
            }
            AnyRef::decode(content)?.tag().assert_eq(Tag::Integer)?;
            if sequence(content)? != algorithm {
                return Err(Tag::Sequence.value_error());
            }
            let issuer = sequence(content)?;
            let validity = AnyRef::decode(content)?.sequence(|validity| Ok([time(validity)?, time(validity)?]))?;
            let subject = sequence(content)?;
            let key = content.tlv_bytes()?.into();
            // Two more names from version 2 on, the extensions in version 3: each once, in this order.
            let mut extensions = (version > 1).then(Extensions::default);
            let mut last = 0;
            while !content.is_finished() {
                let part = AnyRef::decode(content)?;
                let Tag::ContextSpecific { number, .. } = part.tag() else { return Err(part.tag().value_error()) };
                if number.value() <= last || number.value() > version {
                    return Err(part.tag().value_error());
                }
                last = number.value();
                match &mut extensions {
                    Some(extensions) if last == 3 => {
                        *extensions = AnyRef::from_der(part.value())?.sequence(Extensions::decode)?;
                    }
                    Some(_) => {}
                    None => return Err(part.tag().value_error()),
                }
            }
            Ok(Certificate { whole, signed, algorithm, signature, issuer, subject, validity, key, extensions })
        })
    }

    /// Whether it may stand between an authority and another certificate: what says of itself that it does not sign
    /// certificates has not. Whether it is an authority's is for webpki.
    pub(crate) fn may_sign(&self) -> bool {
        let usage = self.extensions.as_ref().and_then(|extensions| extensions.key_usage);
        usage.is_none_or(|bits| bits.first().is_some_and(|bits| bits & SIGNS_CERTIFICATES != 0))
    }

    /// Whether others may be signed by it, where it is trusted, for this usage and now. Of version 1 all may.
    pub(crate) fn is_authority(&self, usage: Usage, now: UnixTime) -> bool {
        let is_one = |extensions: &Extensions<'_>| extensions.is_authority && extensions.is_for(usage);
        self.extensions.as_ref().is_none_or(is_one) && self.may_sign() && self.is_valid_at(now).is_ok()
    }

    /// Whether it is trusted by itself, or one of the authorities made it, it is for this, and it is valid now. Names are
    /// for the caller.
    pub(crate) fn check(
        &self,
        roots: &Roots,
        algorithms: &WebPkiSupportedAlgorithms,
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), Error> {
        if !roots.certificates.iter().any(|trusted| **trusted == *self.whole) {
            self.is_made_by_one_of(roots, algorithms, usage, now)?;
        }
        if let Some(extensions) = &self.extensions {
            extensions.allow(usage)?;
        }
        self.is_valid_at(now)
    }

    fn is_made_by_one_of(
        &self,
        roots: &Roots,
        algorithms: &WebPkiSupportedAlgorithms,
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = algorithms.all.iter().copied().filter(|known| *known.signature_alg_id() == *self.algorithm);
        let algorithms = algorithms.collect::<Vec<_>>();
        // Several may be of one name: an authority with a new key.
        let mut refused = CertificateError::UnknownIssuer.into();
        for certificate in &roots.certificates {
            let Ok(authority) = Certificate::read(certificate) else { continue };
            // For which names one may sign is read by webpki only.
            let is_bound = authority.extensions.as_ref().is_some_and(|extensions| extensions.is_bound_to_names);
            if authority.subject != self.issuer || is_bound || !authority.is_authority(usage, now) {
                continue;
            }
            match has_signed(&authority.key, &algorithms, self.signed, self.signature) {
                Ok(()) => return Ok(()),
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

impl<'a> Extensions<'a> {
    fn decode(all: &mut SliceReader<'a>) -> der::Result<Extensions<'a>> {
        let (mut extensions, mut seen) = (Extensions::default(), Vec::new());
        while !all.is_finished() {
            AnyRef::decode(all)?.sequence(|extension| {
                let kind = identifier(extension)?;
                // Which one counts would be a matter of taste.
                if seen.contains(&kind) {
                    return Err(Tag::ObjectIdentifier.value_error());
                }
                seen.push(kind);
                let is_critical = extension.peek_tag()? == Tag::Boolean && bool::decode(extension)?;
                let value = OctetStringRef::decode(extension)?.as_bytes();
                match kind {
                    USAGES => extensions.usages = Some(AnyRef::from_der(value)?.sequence(identifiers)?),
                    KEY_USAGE => extensions.key_usage = Some(BitStringRef::from_der(value)?.raw_bytes()),
                    CONSTRAINTS => extensions.is_authority = AnyRef::from_der(value)?.sequence(is_authority)?,
                    NAME_CONSTRAINTS => extensions.is_bound_to_names = true,
                    NAMES | POLICIES => {}
                    _ => extensions.has_unknown |= is_critical,
                }
                Ok(())
            })?;
        }
        Ok(extensions)
    }

    fn is_for(&self, usage: Usage) -> bool {
        let wanted = match usage {
            Usage::Client => CLIENT_USAGE,
            Usage::Server => SERVER_USAGE,
        };
        self.usages.as_ref().is_none_or(|usages| usages.contains(&wanted) || usages.contains(&ANY_USAGE))
    }

    fn allow(&self, usage: Usage) -> Result<(), Error> {
        match () {
            () if self.has_unknown => Err(CertificateError::UnhandledCriticalExtension.into()),
            () if !self.is_for(usage) => Err(CertificateError::InvalidPurpose.into()),
            () => Ok(()),
        }
    }
}

/// What is told of a certificate that neither takes: what webpki says, unless that is only that it does not read such ones.
pub(crate) fn refusal(webpki: Option<Error>, own: Error) -> Error {
    use webpki::Error::{CaUsedAsEndEntity, UnsupportedCertVersion};
    let says_why = |error: &Error| {
        let Error::InvalidCertificate(CertificateError::Other(other)) = error else { return true };
        !matches!(other.0.downcast_ref(), Some(CaUsedAsEndEntity | UnsupportedCertVersion))
    };
    webpki.filter(says_why).unwrap_or(own)
}

/// Those that may have signed what stands in front of them.
pub(crate) fn signers(intermediates: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
    let may_sign = |between: &&CertificateDer<'_>| Certificate::read(between).is_ok_and(|between| between.may_sign());
    intermediates.iter().filter(may_sign).map(|between| between.clone().into_owned()).collect()
}

/// Whether a signature is by this key, by one of the algorithms.
pub(crate) fn has_signed(
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

/// What stands in the next sequence.
fn sequence<'a>(reader: &mut SliceReader<'a>) -> der::Result<&'a [u8]> {
    let next = AnyRef::decode(reader)?;
    next.tag().assert_eq(Tag::Sequence)?;
    Ok(next.value())
}

fn identifier<'a>(reader: &mut SliceReader<'a>) -> der::Result<Identifier<'a>> {
    let next = AnyRef::decode(reader)?;
    next.tag().assert_eq(Tag::ObjectIdentifier)?;
    Ok(next.value())
}

fn identifiers<'a>(reader: &mut SliceReader<'a>) -> der::Result<Vec<Identifier<'a>>> {
    let mut found = Vec::new();
    while !reader.is_finished() {
        found.push(identifier(reader)?);
    }
    Ok(found)
}

/// What the constraints say; the length of a path may follow.
fn is_authority(constraints: &mut SliceReader<'_>) -> der::Result<bool> {
    let says_so = !constraints.is_finished() && constraints.peek_tag()? == Tag::Boolean && bool::decode(constraints)?;
    while !constraints.is_finished() {
        AnyRef::decode(constraints)?.tag().assert_eq(Tag::Integer)?;
    }
    Ok(says_so)
}

/// How parts that may be missing are marked.
fn context(number: u8) -> Tag {
    Tag::ContextSpecific { constructed: true, number: TagNumber::new(number) }
}

fn time(reader: &mut SliceReader<'_>) -> der::Result<Duration> {
    match reader.peek_tag()? {
        Tag::UtcTime => Ok(UtcTime::decode(reader)?.to_unix_duration()),
        _ => Ok(GeneralizedTime::decode(reader)?.to_unix_duration()),
    }
}
