//! Certificates and keys, out of PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::certificate::Certificate;

/// A certificate or key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use `{}`: {cause}", path.display())]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub cause: String,
}

impl Error {
    pub(crate) fn new(path: &Path, cause: impl std::fmt::Display) -> Error {
        Error { path: path.to_owned(), cause: cause.to_string() }
    }
}

/// What ring makes signatures by.
const KINDS: &str = "it is no key of RSA with 2048 to 4096 bits, of ECDSA on P-256 or P-384, or of Ed25519";

/// A client's or server's certificate and its key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyPair {
    /// The certificate, and those that lead to its authority.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// The certificates of a PEM file, in its order. One without any cannot be used.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(|error| Error::new(path, error))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::new(path, error))?;
    if certificates.is_empty() {
        return Err(Error::new(path, "it holds no certificate"));
    }
    Ok(certificates)
}

impl KeyPair {
    /// Reads both files, and sees that they belong together. What the certificate says of itself is for the other side
    /// to judge.
    pub fn load(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
        let chain = read_certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| Error::new(&self.key, error))?;
        let key = provider.key_provider.load_private_key(key).map_err(|_| Error::new(&self.key, KINDS))?;
        let shown = Certificate::read(&chain[0]).map_err(|error| Error::new(&self.certificate, error))?;
        // A provider may keep the key to itself: the handshake will tell.
        if key.public_key().is_some_and(|public| public != shown.key) {
            let cause = format!("the key `{}` is another certificate's", self.key.display());
            return Err(Error::new(&self.certificate, cause));
        }
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }
}
