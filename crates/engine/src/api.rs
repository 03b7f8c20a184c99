//! What the programs ask of the engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::progress::Sink;
use base::{ByteSize, Fault};
use session::SharedSession;
use tokio_util::sync::CancellationToken;

/// The engine: one per state directory. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    #[expect(dead_code, reason = "filled in by the next change")]
    inner: Arc<()>,
}

/// How to open an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// BuildKit's root directory; our state goes into a subfolder of it.
    pub root: PathBuf,
    /// The parsed `buildkitd.toml`.
    pub config: config::Config,
    /// Which snapshotter to use.
    pub snapshotter: SnapshotterChoice,
    /// How long to wait for another process that holds the state directory.
    pub lock_wait: Duration,
    /// Environment for outgoing connections: proxy variables, from the program's environment.
    pub proxy: BTreeMap<String, String>,
}

/// Which snapshotter to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotterChoice {
    /// The best one that works here.
    #[default]
    Auto,
    /// overlayfs or an error.
    Overlay,
    /// Reflinks or copies.
    Copy,
}

/// One build.
pub struct SolveRequest {
    /// What makes the LLB.
    pub frontend: Frontend,
    /// What happens with the result; several run one after another. None: the build is only run.
    pub exports: Vec<ExportRequest>,
    /// `--import-cache`.
    pub cache_imports: Vec<CacheOptions>,
    /// `--export-cache`.
    pub cache_exports: Vec<CacheOptions>,
    /// `--allow`.
    pub entitlements: Vec<Entitlement>,
    /// The client.
    pub session: SharedSession,
    /// Where progress goes.
    pub progress: Arc<dyn Sink>,
    /// Ends the build early.
    pub cancel: CancellationToken,
}

/// What makes the LLB.
#[derive(Clone, Debug)]
pub enum Frontend {
    /// A frontend by name (`dockerfile.v0`, `gateway.v0`) with its `--opt` values.
    Named {
        /// Its name.
        name: String,
        /// `--opt key=value`.
        options: BTreeMap<String, String>,
    },
    /// A marshalled `pb.Definition`.
    Llb(Vec<u8>),
}

/// One `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRequest {
    /// `image`, `oci`, `docker`, `tar`, `local`.
    pub kind: String,
    /// Its attributes, such as `name`, `push`, `compression`. Where it goes is the session's business:
    /// `session.output(i)` is asked for the i-th export.
    pub attrs: BTreeMap<String, String>,
}

/// One `--import-cache` or `--export-cache`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// `registry`, `local`, `inline`, ..
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// A right that a build asks for and the daemon must allow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entitlement {
    /// `network.host`
    NetworkHost,
    /// `security.insecure`
    SecurityInsecure,
    /// `device` or `device=NAME`
    Device(Option<String>),
}

/// What a build answers.
#[derive(Clone, Debug, Default)]
pub struct SolveResponse {
    /// BuildKit's exporter response: `containerimage.digest`, `image.name`, ..
    pub exporter_response: BTreeMap<String, String>,
}

/// One line of `du`.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageRecord {
    /// Its id.
    pub id: String,
    /// `regular`, `internal`, `frontend`, `source.local`, `source.git.checkout`, `exec.cachemount`.
    pub record_type: String,
    /// What made it.
    pub description: String,
    /// Disk space.
    pub size: ByteSize,
    /// It can still change (cache mounts).
    pub mutable: bool,
    /// A running build needs it.
    pub in_use: bool,
    /// An image or another record shares its layers.
    pub shared: bool,
    /// Ids of the records that it builds on.
    pub parents: Vec<String>,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// When a build last used it.
    pub last_used_at: Option<jiff::Timestamp>,
    /// How often builds used it.
    pub usage_count: u64,
}

/// What `prune` removes.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Also internal and frontend records.
    pub all: bool,
    /// Keep what was used within this time.
    pub keep_duration: Option<Duration>,
    /// Keep up to this much.
    pub keep_storage: Option<ByteSize>,
    /// `--filter key=value` (`type==regular`, `id=..`, `until=24h`, `unused-for=..`), all must match.
    pub filters: Vec<String>,
}

impl Engine {
    /// Opens the state directory. Fails when another process keeps it locked, or nothing can be
    /// written there.
    pub async fn open(options: EngineOptions) -> Result<Engine, Fault> {
        let _ = options;
        Ok(Engine { inner: Arc::new(()) })
    }

    /// Runs one build to its end.
    pub async fn solve(&self, request: SolveRequest) -> Result<SolveResponse, Fault> {
        let _ = request;
        Err(Fault::new(base::Kind::Internal, "the engine has no ops yet"))
    }

    /// Everything that is stored.
    pub async fn disk_usage(&self) -> Result<Vec<UsageRecord>, Fault> {
        Ok(Vec::new())
    }

    /// Removes what `options` says and answers what went.
    pub async fn prune(&self, options: PruneOptions) -> Result<Vec<UsageRecord>, Fault> {
        let _ = options;
        Ok(Vec::new())
    }

    /// Ends background work and writes everything to disk.
    pub async fn close(self) {}
}
