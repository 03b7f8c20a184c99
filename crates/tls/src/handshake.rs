//! Whether the other side has the key of the certificate that it shows.
//!
//! Nothing but the key counts here. Rustls' own checks read all of the certificate again, and refuse what webpki refuses.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::CertificateDer;
use rustls::{DigitallySignedStruct, Error, PeerMisbehaved, SignatureScheme};

use crate::certificate::{Certificate, has_signed};

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
        has_signed(&Certificate::read(certificate)?.key, algorithms, message, signed.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    /// One of TLS 1.3.
    pub fn tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(message, &Certificate::read(certificate)?.key, signed, &self.0)
    }

    /// What can be checked.
    pub fn schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion, version};
    use testkit::certificates::{Authority, Signed};

    use crate::{Clients, Roots, Servers};

    /// A certificate with a key that need not be its own.
    fn shown(certificate: &Signed, key: &Signed) -> Arc<CertifiedKey> {
        let key = PrivateKeyDer::try_from(key.key_der()).expect("it is one");
        let key = default_provider().key_provider.load_private_key(key).expect("ring made it");
        Arc::new(CertifiedKey::new(vec![certificate.der().into()], key))
    }

    /// Who ends a handshake, if anybody does.
    fn ends(
        authority: &Authority,
        server: Arc<CertifiedKey>,
        client: Arc<CertifiedKey>,
        version: &'static SupportedProtocolVersion,
    ) -> Option<&'static str> {
        let mut roots = Roots::default();
        roots.add(authority.der().into()).expect("it is well formed");
        let builder = ServerConfig::builder_with_provider(crate::provider()).with_protocol_versions(&[version]);
        let clients = Clients::new(roots.clone(), crate::provider());
        let builder = builder.expect("ring does it").with_client_cert_verifier(Arc::new(clients));
        let at_server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(server)));
        let builder = ClientConfig::builder_with_provider(crate::provider()).with_protocol_versions(&[version]);
        let servers = Servers::new(roots, None, crate::provider());
        let builder = builder.expect("ring does it").dangerous().with_custom_certificate_verifier(Arc::new(servers));
        let at_client = builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(client)));
        let name = ServerName::try_from("localhost").expect("a name");
        let mut server = ServerConnection::new(Arc::new(at_server)).expect("it is set up");
        let mut client = ClientConnection::new(Arc::new(at_client), name).expect("it is set up");
        while server.is_handshaking() || client.is_handshaking() {
            let (mut there, mut back) = (Vec::new(), Vec::new());
            while client.wants_write() {
                client.write_tls(&mut there).expect("it is memory");
            }
            server.read_tls(&mut &there[..]).expect("it is memory");
            if server.process_new_packets().is_err() {
                return Some("the server");
            }
            while server.wants_write() {
                server.write_tls(&mut back).expect("it is memory");
            }
            client.read_tls(&mut &back[..]).expect("it is memory");
            if client.process_new_packets().is_err() {
                return Some("the client");
            }
        }
        None
    }

    #[test]
    fn a_certificate_is_nobodys_without_its_key() {
        let authority = Authority::new("ours");
        let (server, client, thief) = (authority.server(), authority.client(), authority.client());
        let old = authority.client().in_version_1(&authority);
        for version in [&version::TLS12, &version::TLS13] {
            let good = shown(&server, &server);
            assert_eq!(ends(&authority, good.clone(), shown(&client, &client), version), None);
            assert_eq!(ends(&authority, good.clone(), shown(&old, &old), version), None);
            assert_eq!(ends(&authority, good.clone(), shown(&client, &thief), version), Some("the server"));
            assert_eq!(ends(&authority, good.clone(), shown(&old, &thief), version), Some("the server"));
            let client = shown(&client, &client);
            assert_eq!(ends(&authority, shown(&server, &thief), client, version), Some("the client"));
        }
    }
}
