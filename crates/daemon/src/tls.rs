//! The daemon's certificate and the authority of its clients', read again when their files change: certificates are short
//! lived where a manager renews them, and no build should end for that.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use base::{Fault, Kind};
use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;
use tls::{Clients, KeyPair, Roots};

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
        let unusable = |error: tls::Error| Fault::user(error.to_string());
        let provider = tls::provider();
        let pair = KeyPair { certificate: self.cert.clone(), key: self.key.clone() };
        let certified = pair.load(&provider).map_err(unusable)?;
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Fault::because(Kind::Internal, "cannot set up TLS", error))?;
        let builder = match &self.ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = Roots::default();
                roots.add_file(ca).map_err(unusable)?;
                builder.with_client_cert_verifier(Arc::new(Clients::new(roots, provider)))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}
