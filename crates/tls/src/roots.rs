//! Whom we trust.

use std::path::Path;
use std::sync::OnceLock;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};

use crate::Error;

/// Certificates that are trusted.
#[derive(Clone, Debug)]
pub struct Roots {
    /// As authorities.
    pub(crate) anchors: RootCertStore,
    /// As the other side itself: the same certificates, whole.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// Nobody.
    pub fn empty() -> Roots {
        Roots { anchors: RootCertStore::empty(), certificates: Vec::new() }
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
                Ok(certificate) => {
                    let added = self.anchors.add(certificate.clone()).map_err(|error| error.to_string());
                    added.map(|()| self.certificates.push(certificate))
                }
            };
            if let Err(error) = added {
                tracing::warn!(error, path = %path.display(), "a certificate of a bundle cannot be used");
                refused = error;
            }
        }
        if self.certificates.len() == before { Err(Error::new(path, refused)) } else { Ok(()) }
    }

    pub(crate) fn extend(&mut self, more: &Roots) {
        self.anchors.extend(more.anchors.roots.iter().cloned());
        self.certificates.extend(more.certificates.iter().cloned());
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
        let mut anchors = RootCertStore::empty();
        anchors.add_parsable_certificates(native.certs.iter().cloned());
        if anchors.is_empty() {
            anchors.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Roots { anchors, certificates: native.certs }
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
            let mut roots = Roots::empty();
            roots.add_file(file.path()).map(|()| roots.certificates.len()).map_err(|error| error.cause)
        };
        let pem = |base64: &str| format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
        let (one, other) = (Authority::new("one").certificate(), Authority::new("other").certificate());
        assert_eq!(add(&format!("# ours\n{one}{}{}{other}", pem("bm9uZQ=="), pem("!"))), Ok(2));
        assert_eq!(add(&pem("bm9uZQ==")).expect_err("none is left"), "invalid peer certificate: BadEncoding");
        assert_eq!(add("").expect_err("there is none"), "it holds no certificate");
    }
}
