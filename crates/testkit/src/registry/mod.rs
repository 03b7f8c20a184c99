//! A registry in memory that behaves like distribution's, until a [`Fault`] tells it otherwise.
//!
//! It speaks HTTP or HTTPS (with a CA of its own), knows basic and token authentication, checks what a registry checks
//! (digests, missing blobs, scopes), and remembers every request for assertions.

mod api;
mod auth;
mod body;
mod fault;
mod log;
mod server;
mod tls;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::Digest;
use bytes::Bytes;
use hyper::Method;
use tempfile::TempDir;

pub use auth::{Auth, TokenAuth};
pub use fault::{Action, Fault};
pub use log::Recorded;

use api::State;

/// A running registry; stopped when dropped.
#[derive(Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    address: SocketAddr,
    scheme: &'static str,
    certificates: Option<TempDir>,
    _server: server::Running,
}

/// How to start one.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    tls: bool,
    client_certificates: bool,
    self_signed: bool,
    pub(crate) auth: Auth,
    pub(crate) locations: Locations,
    pub(crate) largest_upload: Option<u64>,
    pub(crate) digest_headers: Headers,
}

/// How `Location` of an upload is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locations {
    /// `http://host:port/v2/…?_state=…`
    #[default]
    Absolute,
    /// `/v2/…?_state=…`
    Path,
    /// `./<uuid>?_state=…`
    Relative,
}

/// Whether answers carry `Docker-Content-Digest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Headers {
    /// They do.
    #[default]
    Sent,
    /// They do not (some old registries).
    Missing,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub options: Builder,
    pub base: String,
    pub state: Mutex<State>,
    pub tokens: Mutex<auth::Tokens>,
    pub faults: Mutex<Vec<Fault>>,
    pub log: Mutex<Vec<Recorded>>,
}

impl Builder {
    /// HTTPS, with a certificate for `localhost` and `127.0.0.1` by [`Registry::ca`].
    #[must_use]
    pub fn tls(mut self) -> Builder {
        self.tls = true;
        self
    }

    /// HTTPS that wants a client certificate, such as [`Registry::client_pair`].
    #[must_use]
    pub fn client_certificates(mut self) -> Builder {
        (self.tls, self.client_certificates) = (true, true);
        self
    }

    /// HTTPS, with a certificate that is its own CA: the usual `openssl req -x509`.
    #[must_use]
    pub fn self_signed(mut self) -> Builder {
        (self.tls, self.self_signed) = (true, true);
        self
    }

    /// Who may do what.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Builder {
        self.auth = auth;
        self
    }

    /// How `Location` of an upload is written.
    #[must_use]
    pub fn locations(mut self, locations: Locations) -> Builder {
        self.locations = locations;
        self
    }

    /// Answers 413 to larger request bodies.
    #[must_use]
    pub fn largest_upload(mut self, bytes: u64) -> Builder {
        self.largest_upload = Some(bytes);
        self
    }

    /// Whether answers carry `Docker-Content-Digest`.
    #[must_use]
    pub fn digest_headers(mut self, headers: Headers) -> Builder {
        self.digest_headers = headers;
        self
    }

    /// Starts it on a free loopback port.
    pub fn start(self) -> Registry {
        server::start(self)
    }
}

impl Registry {
    /// A plain HTTP registry that lets everybody do everything.
    pub fn start() -> Registry {
        Builder::default().start()
    }

    /// Other kinds.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// `127.0.0.1:port`, the domain of image names.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The PEM file of the CA that signed the server's certificate.
    pub fn ca(&self) -> std::path::PathBuf {
        self.certificate_dir().join("ca.crt")
    }

    /// PEM files of a client certificate that it accepts, and its key.
    pub fn client_pair(&self) -> (std::path::PathBuf, std::path::PathBuf) {
        let dir = self.certificate_dir();
        (dir.join("client.cert"), dir.join("client.key"))
    }

    /// The directory of `ca.crt`, `client.cert` and `client.key`, as a `tlsconfigdir` has them.
    pub fn certificate_dir(&self) -> &Path {
        self.certificates.as_ref().expect("only registries with TLS have certificates").path()
    }

    /// Adds a fault. Of several that fit a request, the first one that is not used up acts.
    pub fn fault(&self, fault: Fault) {
        lock(&self.shared.faults).push(fault);
    }

    /// Ends all faults.
    pub fn behave(&self) {
        lock(&self.shared.faults).clear();
    }

    /// Makes every token that was handed out worthless.
    pub fn revoke_tokens(&self) {
        lock(&self.shared.tokens).revoke();
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.shared.log).clone()
    }

    /// How many requests had this method and this text in their path.
    pub fn count(&self, method: &Method, path: &str) -> usize {
        lock(&self.shared.log).iter().filter(|r| r.method == *method && r.path.contains(path)).count()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        lock(&self.shared.log).clear();
    }

    /// Puts a blob into a repository.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        lock(&self.shared.state).put_blob(repository, bytes.into())
    }

    /// Puts a manifest or index into a repository; unchecked.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: impl Into<Bytes>) -> Digest {
        lock(&self.shared.state).put_manifest(repository, tag, media_type, bytes.into())
    }

    /// A blob of a repository.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        lock(&self.shared.state).blob(repository, digest)
    }

    /// Media type and bytes of what a tag or digest of a repository points to.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Bytes)> {
        lock(&self.shared.state).manifest(repository, reference)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server's side of TLS; what clients need is written to a directory: `ca.crt`, `client.cert`, `client.key`.
pub(crate) fn certificates(dir: &std::path::Path, of_clients: bool) -> std::sync::Arc<rustls::ServerConfig> {
    tls::make(dir, of_clients, false)
}
