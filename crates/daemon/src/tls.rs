//! The daemon's certificate and the authority of its clients', read again when their files change: certificates are short
//! lived where a manager renews them, and no build should end for that.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base::{Fault, Kind};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// The files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The daemon's certificate, and those that lead to its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority that clients' certificates must come from. Without it, anybody may connect.
    pub ca: Option<PathBuf>,
}

/// What connections are encrypted with.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    loaded: Mutex<(Vec<Version>, Arc<ServerConfig>)>,
}

/// What tells one version of a file from another.
type Version = Option<(u64, u64, i64, i64, u64)>;

impl Tls {
    /// Reads the files.
    pub fn load(files: Files) -> Result<Tls, Fault> {
        // Looked at before they are read: what changes in between is read again.
        let versions = files.versions();
        let config = files.read()?;
        Ok(Tls { files, loaded: Mutex::new((versions, config)) })
    }

    /// What to use for the next connection. Where new files cannot be used, the old ones stay.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let versions = self.files.versions();
        if versions != loaded.0 {
            match self.files.read() {
                Ok(config) => {
                    tracing::info!(cert = %self.files.cert.display(), "certificates were read again");
                    *loaded = (versions, config);
                }
                // The other file may be on its way: asked again at the next connection.
                Err(error) => tracing::warn!(%error, "the new certificates cannot be used yet"),
            }
        }
        loaded.1.clone()
    }
}

impl Files {
    fn versions(&self) -> Vec<Version> {
        let files = [Some(&self.cert), Some(&self.key), self.ca.as_ref()].into_iter().flatten();
        let version = |path: &PathBuf| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
        };
        files.map(version).collect()
    }

    fn read(&self) -> Result<Arc<ServerConfig>, Fault> {
        let failed = |path: &Path, error: String| Fault::user(format!("cannot use `{}`: {error}", path.display()));
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| failed(&self.key, error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Fault::because(Kind::Internal, "cannot set up TLS", error))?;
        let builder = match &self.ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(ca)? {
                    roots.add(certificate).map_err(|error| failed(ca, error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| failed(ca, error.to_string()))?)
            }
        };
        let config = builder.with_single_cert(chain, key);
        let mut config = config.map_err(|error| {
            let (cert, key) = (self.cert.display(), self.key.display());
            Fault::user(format!("cannot use `{cert}` with the key `{key}`: {error}"))
        })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let failed = |error| Fault::user(format!("cannot use `{}`: {error}", path.display()));
    let found = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| failed(error.to_string()))?;
    if found.is_empty() { Err(failed("it holds no certificate".to_owned())) } else { Ok(found) }
}
