//! Whom we trust.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::{DistinguishedName, RootCertStore};

use crate::Error;
use crate::certificate::{Certificate, Usage};

/// Certificates that are trusted: as the other side itself, and those that may sign others, as authorities.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// Authorities of which no more is known.
    bare: Vec<TrustAnchor<'static>>,
}

impl Roots {
    /// One more. What is no certificate cannot be added.
    pub fn add(&mut self, certificate: CertificateDer<'static>) -> Result<(), rustls::Error> {
        Certificate::read(&certificate)?;
        self.certificates.push(certificate);
        Ok(())
    }

    /// Those of a PEM file, beside those that are there. What cannot be read in it is left out, with a warning: bundles are
    /// long, and others of it are meant. A file of which nothing is left cannot be used.
    pub fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        let before = self.certificates.len();
        let mut refused = "it holds no certificate".to_owned();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| Error::new(path, error))? {
            let added = match certificate {
                Err(error @ pem::Error::Io(_)) => return Err(Error::new(path, error)),
                Err(error) => Err(error.to_string()),
                Ok(certificate) => self.add(certificate).map_err(|_| "it is no certificate".to_owned()),
            };
            if let Err(error) = added {
                tracing::warn!(error, path = %path.display(), "a certificate of a bundle cannot be used");
                refused = error;
            }
        }
        if self.certificates.len() == before { Err(Error::new(path, refused)) } else { Ok(()) }
    }

    pub(crate) fn extend(&mut self, more: &Roots) {
        self.certificates.extend_from_slice(&more.certificates);
        self.bare.extend_from_slice(&more.bare);
    }

    /// Those that may sign for this usage now. To webpki all that it is given may.
    pub(crate) fn authorities(&self, usage: Usage, now: UnixTime) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        let is_one = |certificate: &&CertificateDer<'_>| {
            Certificate::read(certificate).is_ok_and(|certificate| certificate.is_authority(usage, now))
        };
        store.add_parsable_certificates(self.certificates.iter().filter(is_one).cloned());
        store.extend(self.bare.iter().cloned());
        Arc::new(store)
    }

    /// Whose names clients are told, so that they choose among their certificates.
    pub(crate) fn names(&self) -> Vec<DistinguishedName> {
        let read = self.certificates.iter().filter_map(|certificate| Certificate::read(certificate).ok());
        read.map(|certificate| DistinguishedName::in_sequence(certificate.subject)).collect()
    }
}

/// The machine's bundle, or webpki's where an image has none. Read once per process: it is some hundred kilobytes of PEM.
pub fn system_roots() -> &'static Roots {
    static ROOTS: OnceLock<Roots> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::debug!(%error, "system certificates");
        }
        let mut roots = Roots::default();
        for certificate in native.certs {
            if let Err(error) = roots.add(certificate) {
                tracing::debug!(%error, "system certificates");
            }
        }
        if roots.certificates.is_empty() {
            roots.bare = webpki_roots::TLS_SERVER_ROOTS.to_vec();
        }
        roots
    })
}

#[cfg(test)]
mod tests {
    use testkit::certificates::Authority;

    use super::*;

    #[test]
    fn a_bundle_counts_without_what_cannot_be_read_in_it() {
        let file = tempfile::NamedTempFile::new().expect("scratch space");
        let add = |text: &str| {
            std::fs::write(file.path(), text).expect("it is ours");
            let mut roots = Roots::default();
            roots.add_file(file.path()).map(|()| roots.certificates.len()).map_err(|error| error.cause)
        };
        let pem = |base64: &str| format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
        let (one, other) = (Authority::new("one").certificate(), Authority::new("other").certificate());
        assert_eq!(add(&format!("# ours\n{one}{}{}{other}", pem("bm9uZQ=="), pem("!"))), Ok(2));
        assert_eq!(add(&pem("bm9uZQ==")).expect_err("none is left"), "it is no certificate");
        assert_eq!(add("").expect_err("there is none"), "it holds no certificate");
    }
}
