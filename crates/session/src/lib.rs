//! A client's side of a build: its files, secrets, SSH agents and credentials.
//!
//! [`Session`] is what the engine may ask of a client. [`local`] answers in process (daemonless builds
//! read the user's directories in place), [`remote`] asks a client at the other end of a connection.

pub mod local;
pub mod others;
pub mod remote;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base::{Digest, Fault, Secret};

/// What a build may ask of the client that started it.
///
/// Every method is called while the build runs, from any task, as often as an op needs an answer.
#[async_trait]
pub trait Session: Send + Sync {
    /// Unique per client connection.
    fn id(&self) -> &str;

    /// The directory that the client shares under `name` (`context`, `dockerfile`, a named context).
    /// None when the client shares nothing under that name.
    async fn local(&self, name: &str) -> Result<Option<LocalDir>, Fault>;

    /// The secret `id`. None when the client has none; the caller decides whether that is an error.
    async fn secret(&self, id: &str) -> Result<Option<Secret>, Fault>;

    /// The SSH agent that the client lends under `id`. None when it lends none; the caller decides whether that is an
    /// error.
    async fn agent(&self, id: &str) -> Result<Option<Arc<dyn Agent>>, Fault> {
        let _ = id;
        Ok(None)
    }

    /// The user name and password, or token, for a registry host. None is anonymous.
    async fn credentials(&self, host: &str) -> Result<Option<Credentials>, Fault>;

    /// Whose tokens a registry host gets, where the client fetches them itself and keeps its passwords: a name that nobody
    /// else can take. None where it does not.
    async fn token_authority(&self, host: &str) -> Result<Option<Digest>, Fault> {
        let _ = host;
        Ok(None)
    }

    /// A token, fetched by a client that does so.
    async fn fetch_token(&self, request: TokenRequest) -> Result<Token, Fault> {
        Err(Fault::new(base::Kind::Internal, format!("the client fetches no tokens for `{}`", request.host)))
    }

    /// The content store that the client offers under `name`, such as an OCI layout of its own. None when it offers none.
    async fn content(&self, name: &str) -> Result<Option<Arc<dyn Blobs>>, Fault>;

    /// The directory with caches that the client offers under `dir`. None when it offers none of that name.
    async fn cache(&self, dir: &str) -> Result<Option<Arc<dyn CacheDir>>, Fault>;

    /// The file that the client gives in a web server's place; none where it gives none.
    async fn upload(&self, host: &str, path: &str) -> Result<Option<Upload>, Fault> {
        let _ = (host, path);
        Ok(None)
    }

    /// The session of that id, where this one is not the only one: a client may name another that it has, too.
    async fn other(&self, id: &str) -> Option<SharedSession> {
        let _ = id;
        None
    }

    /// The store that takes images which are to lie in the client's directory, blob by blob. None where it has none.
    async fn export_store(&self) -> Result<Option<Arc<dyn CacheDir>>, Fault> {
        Ok(None)
    }

    /// What the client wants the result for, beside the outputs that it asked for before: it is told the frontend's words
    /// about the result, and by which names the build's gateway knows its trees.
    async fn late_exports(
        &self,
        about: BTreeMap<String, Vec<u8>>,
        refs: Vec<String>,
    ) -> Result<Vec<LateExport>, Fault> {
        let _ = (about, refs);
        Ok(Vec::new())
    }

    /// Tells a client that was asked for [`late_exports`](Self::late_exports) what all outputs came to. Its error fails the
    /// build.
    async fn exported(&self, response: &BTreeMap<String, String>) -> Result<(), Fault> {
        let _ = response;
        Ok(())
    }

    /// Where the result number `index` of the request goes, when an exporter writes to the client.
    async fn output(&self, index: usize) -> Result<Output, Fault>;
}

/// An SSH agent of a client, or whatever it lends in the place of one.
#[async_trait]
pub trait Agent: Send + Sync {
    /// Talks with a step over its connection, until either end hangs up.
    async fn answer(&self, step: tokio::net::UnixStream) -> Result<(), Fault>;
}

/// The name of the agent that is meant where none is named.
pub const DEFAULT_AGENT: &str = "default";

/// Blobs of a client by their digest.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// What it is called in messages: a directory.
    fn place(&self) -> String;

    /// A blob, as it is there: whoever reads it checks its digest. None where it is not there.
    async fn open(&self, digest: &Digest) -> Result<Option<Blob>, Fault>;
}

/// A directory of a client where caches or images are kept. What the client calls them, it notes itself when the build has
/// ended.
#[async_trait]
pub trait CacheDir: Blobs + std::fmt::Debug {
    /// Keeps a blob, unless it is there. Of a cache and of an image, the manifest comes last.
    async fn put(&self, digest: &Digest, size: u64, from: Box<dyn Read + Send>) -> Result<(), Fault>;
}

/// One blob.
pub struct Blob {
    /// How many bytes it has.
    pub size: u64,
    /// Blocks; for a thread.
    pub reader: Box<dyn Read + Send>,
}

/// A directory of the client.
#[derive(Clone, Debug)]
pub enum LocalDir {
    /// Readable in place, never written.
    InPlace(PathBuf),
    /// Sent when it is asked for.
    Remote(Arc<dyn RemoteDir>),
}

/// A directory at the other end of a connection.
#[async_trait]
pub trait RemoteDir: Send + Sync + std::fmt::Debug {
    /// The same for directories that are worth comparing with each other: what one transfer brought need not be sent
    /// by the next.
    fn shared_key(&self) -> &str;

    /// Begins to send what a filter lets through.
    async fn transfer(&self, filter: &files::walk::Filter) -> Result<remote::Transfer, Fault>;
}

/// A stream to the client. Written by threads that may block; what was written counts only once it is finished.
pub trait RemoteStream: std::io::Write + Send {
    /// Whether the client said that it has no need of what is written: what it does not take is no failure then.
    fn is_unwanted(&self) -> bool;

    /// All is written; returns when the client has it.
    fn finish(self: Box<Self>) -> std::io::Result<()>;
}

/// Takes what exporters write, at the other end of a connection.
#[async_trait]
pub trait RemoteOutput: Send + Sync + std::fmt::Debug {
    /// Begins one stream; `about` are the exporter's words about it.
    async fn stream(&self, about: &BTreeMap<String, String>) -> Result<Box<dyn RemoteStream>, Fault>;

    /// Begins to send a tree of files.
    async fn tree(&self) -> Result<remote::Offer, Fault>;
}

/// An output that a client names when the result is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LateExport {
    /// `image`, `oci`, ..
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// What logs in to a registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Credentials {
    /// User name and password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth2 refresh token (`identitytoken` of `config.json`).
    Refresh(Secret),
    /// A bearer token to send as it is (`registrytoken`).
    Bearer(Secret),
}

/// The token of a registry that is wanted of a client.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// How token servers are to know who asks.
    pub client_id: String,
    /// The registry.
    pub host: String,
    /// The token server's URL.
    pub realm: String,
    /// How the token server knows the registry; may be empty.
    pub service: String,
    /// What the token must allow.
    pub scopes: Vec<String>,
}

/// A token, and how long it is good for.
#[derive(Debug)]
pub struct Token {
    /// What to send.
    pub value: Secret,
    /// From when it was asked for.
    pub lifetime: std::time::Duration,
}

/// Where an exporter writes.
#[derive(Clone, Debug)]
pub enum Output {
    /// One stream, such as an archive: a file that appears when it is whole.
    File(PathBuf),
    /// Standard output of the program.
    Stdout,
    /// A directory that receives a tree.
    Directory(PathBuf),
    /// A directory that receives a tree, and has nothing else afterwards.
    Mirror(PathBuf),
    /// Blob by blob, each unless it is there.
    Store(Arc<dyn CacheDir>),
    /// Whatever the client makes of it.
    Remote(Arc<dyn RemoteOutput>),
    /// Nothing goes to the client.
    None,
}

/// A file as it comes, in pieces.
pub type Upload = tokio::sync::mpsc::Receiver<Result<bytes::Bytes, Fault>>;

/// A session that any number of tasks hold.
pub type SharedSession = Arc<dyn Session>;

/// A name that nothing else has: 25 characters, as BuildKit's ids.
pub fn random_id() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz012345";
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let mut seed = Digest::hasher();
    seed.update(std::process::id().to_ne_bytes());
    seed.update(COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_ne_bytes());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    seed.update(now.as_nanos().to_ne_bytes());
    let mut random = [0; 25];
    // Time, process and count are unique enough where the kernel has no entropy yet.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
    seed.update(random);
    seed.finish().as_bytes().iter().take(25).map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()
}
