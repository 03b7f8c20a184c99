//! The one event stream of a build, in BuildKit's terms (`moby.buildkit.v1.StatusResponse`).
//!
//! Every display, log, history record and metric is a reader of these events. Emitting never blocks
//! for long and never fails. Whoever emits without end asks for [`Sink::room`] first, so that a slow reader costs
//! time and not memory.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;

use jiff::Timestamp;

use crate::{Digest, SourceFile, SourceSpan};

/// The error of a vertex that nobody wants any more: BuildKit's clients know by these words that it did not fail.
pub const CANCELLED: &str = "context canceled";

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A vertex was announced, or its state changed. Later events of one digest replace earlier ones.
    Vertex(Vertex),
    /// A sub-task of a vertex (a blob, a transfer, an export phase) moved.
    Status(Status),
    /// Output of a step.
    Log(Log),
    /// Something the user should know that does not fail the build.
    Warning(Warning),
}

/// The state of a vertex.
#[derive(Clone, Debug, PartialEq)]
pub struct Vertex {
    /// The vertex digest, or the digest of a made-up name for phases such as exporting.
    pub digest: Digest,
    /// Digests of the vertices whose output it reads.
    pub inputs: Vec<Digest>,
    /// What people see: `[build 2/5] RUN make`.
    pub name: String,
    /// When work on it began; none while it waits.
    pub started: Option<Timestamp>,
    /// When it ended, in success or not.
    pub completed: Option<Timestamp>,
    /// Its result came from the cache.
    pub cached: bool,
    /// Why it failed; one line, already free of secrets.
    pub error: Option<String>,
    /// A platform or stage label that displays may group by.
    pub group: Option<ProgressGroup>,
}

/// A set of vertices that displays show as one (`llb.ProgressGroup`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgressGroup {
    /// Equal ids belong together.
    pub id: String,
    /// What people see.
    pub name: String,
    /// Members that are not started need no line.
    pub weak: bool,
}

/// A sub-task of a vertex.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The vertex that it belongs to.
    pub vertex: Digest,
    /// Unique within the vertex: `sha256:…`, `exporting layers`.
    pub id: String,
    /// BuildKit's word for what is being done, where it has one: clients that count bytes look for it.
    pub name: String,
    /// Bytes or items done.
    pub current: u64,
    /// Bytes or items in all; 0 when unknown.
    pub total: u64,
    /// When this event was made.
    pub timestamp: Timestamp,
    /// When the sub-task began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub completed: Option<Timestamp>,
}

/// Output of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// The vertex that wrote it.
    pub vertex: Digest,
    /// Standard output or standard error.
    pub stream: Stream,
    /// When it was read.
    pub timestamp: Timestamp,
    /// Raw bytes; lines may be split.
    pub bytes: Vec<u8>,
}

/// Which output of a step; the numbers are those of BuildKit's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 1.
    Stdout = 1,
    /// File descriptor 2.
    Stderr = 2,
}

/// Something the user should know.
#[derive(Clone, Debug, PartialEq)]
pub struct Warning {
    /// The vertex that it is about.
    pub vertex: Digest,
    /// 1 is the most important.
    pub level: i64,
    /// One line.
    pub short: String,
    /// More lines.
    pub detail: Vec<String>,
    /// A page about it.
    pub url: Option<String>,
    /// The file it is about.
    pub file: Option<Arc<SourceFile>>,
    /// The lines it is about.
    pub spans: Vec<SourceSpan>,
}

/// Where events go.
pub trait Sink: Send + Sync {
    /// Takes one event. Called from many threads; must not block on a reader.
    fn emit(&self, event: Event);

    /// Ready when readers have caught up so far that more output of steps may come.
    fn room(&self) -> Room {
        Box::pin(ready(()))
    }
}

/// Ready when there is room for more output.
pub type Room = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A sink that forgets everything.
#[derive(Debug, Default, Clone, Copy)]
pub struct Discard;

impl Sink for Discard {
    fn emit(&self, _: Event) {}
}

impl<F: Fn(Event) + Send + Sync> Sink for F {
    fn emit(&self, event: Event) {
        self(event);
    }
}
