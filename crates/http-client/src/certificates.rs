//! Certificates and keys, out of PEM files.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::CertifiedKey;

use crate::{Error, KeyPair};

/// The certificates of a PEM file, in its order. One without any cannot be used.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(|error| unusable(path, error))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(path, error))?;
    if certificates.is_empty() {
        return Err(unusable(path, "it holds no certificate"));
    }
    Ok(certificates)
}

impl KeyPair {
    /// Reads both files, and sees that they belong together. What the certificate says of itself is for the other side
    /// to judge; it may be of version 1 of X.509, which `openssl x509 -req` makes where no extensions are named.
    pub fn load(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
        let chain = read_certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| unusable(&self.key, error))?;
        let key = provider.key_provider.load_private_key(key).map_err(|error| unusable(&self.key, error))?;
        let is_its_own = match key.public_key() {
            Some(public) => is_key_of(&public, &chain[0]).map_err(|error| unusable(&self.certificate, error))?,
            // A provider may keep it to itself: the handshake will tell.
            None => true,
        };
        if !is_its_own {
            return Err(unusable(
                &self.certificate,
                format!("the key `{}` is another certificate's", self.key.display()),
            ));
        }
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }
}

/// Whether a certificate is for this key. Rustls has that check too, but for certificates of version 3 only; of an anchor,
/// which may be of any, webpki gives the key without the header of its sequence.
fn is_key_of(public: &SubjectPublicKeyInfoDer<'_>, certificate: &CertificateDer<'_>) -> Result<bool, webpki::Error> {
    let anchor = webpki::anchor_from_trusted_cert(certificate)?;
    let header = public.strip_suffix(&*anchor.subject_public_key_info);
    Ok(header.is_some_and(|header| header.len() <= LONGEST_HEADER && header.first() == Some(&SEQUENCE)))
}

/// How DER tells that a sequence begins: a byte, and the length in at most three more where it is below 64 KiB.
const SEQUENCE: u8 = 0x30;
const LONGEST_HEADER: usize = 4;

fn unusable(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::Certificate { path: path.to_owned(), cause: cause.to_string() }
}
