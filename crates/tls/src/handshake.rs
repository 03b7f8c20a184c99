//! Whether the other side has the key of the certificate that it shows.
//!
//! Nothing but the key counts here. Rustls' own checks read all of the certificate again, and refuse what webpki refuses.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::CertificateDer;
use rustls::{DigitallySignedStruct, Error, PeerMisbehaved, SignatureScheme};

use crate::leaf::{Leaf, has_signed};

/// Checks signatures of handshakes.
#[derive(Clone, Copy, Debug)]
pub struct Handshake(pub WebPkiSupportedAlgorithms);

impl Handshake {
    /// One of TLS 1.2.
    pub fn tls12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let of_scheme = self.0.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let Some((_, algorithms)) = of_scheme else {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        };
        has_signed(&Leaf::read(certificate)?.key, algorithms, message, signed.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    /// One of TLS 1.3.
    pub fn tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(message, &Leaf::read(certificate)?.key, signed, &self.0)
    }

    /// What can be checked.
    pub fn schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
