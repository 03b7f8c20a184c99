//! What goes out ([`Action`]) and what comes in ([`Event`]).
//!
//! Every action with an [`ActionId`] is answered by exactly one event with the same id, also after
//! it was cancelled: then either with [`Stopped::Cancelled`] or, if it was quicker, with its answer.
//! Answers may come in any order.

use std::fmt;
use std::sync::Arc;

use base::Digest;

use crate::cache_key::CacheKey;
use crate::cache_manager::{Answer, Lookup, Record, Save};
use crate::graph::VertexId;
use crate::op::{CacheMap, Output, SolveError, Solved, Stopped, Vertex};

/// Ties an event to the action that it answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionId(pub(crate) u64);

/// A build.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub(crate) u64);

/// A question of a job: "give me this edge".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

/// Something for the engine to do.
#[derive(Debug)]
pub enum Action<V, R, E> {
    /// Ask an op how its result is remembered; answered by [`Event::CacheMap`]. Index 0 comes first;
    /// an op without inputs may have several maps and is asked for the next while none matched.
    CacheMap {
        /// Goes into the answer.
        id: ActionId,
        /// The step.
        vertex: Arc<Vertex<V>>,
        /// Which of its maps.
        index: u32,
    },
    /// Digest what an op reads of an input's content; answered by [`Event::Content`].
    Content {
        /// Goes into the answer.
        id: ActionId,
        /// The step.
        vertex: Arc<Vertex<V>>,
        /// Which input.
        input: u32,
        /// The input's result.
        result: R,
    },
    /// Run an op; answered by [`Event::Exec`]. The only kind that `max_parallelism` limits.
    Exec {
        /// Goes into the answer.
        id: ActionId,
        /// The step.
        vertex: Arc<Vertex<V>>,
        /// The results of its inputs.
        inputs: Vec<R>,
    },
    /// Load a stored result; answered by [`Event::Load`]. A failure is a miss, never an error: if the
    /// record is no good, the engine had better release it in its store.
    Load {
        /// Goes into the answer.
        id: ActionId,
        /// The step whose result it is.
        vertex: Arc<Vertex<V>>,
        /// Which output.
        output: u32,
        /// What to load.
        record: Record,
        /// The key that it was found by. What a remote cache has for the keys below may come along.
        key: Arc<CacheKey>,
    },
    /// Call [`cache_manager::lookup`](crate::cache_manager::lookup) on a blocking thread; answered by
    /// [`Event::Lookup`]. All lookups of one tick come in one action.
    Lookup {
        /// Goes into the answer.
        id: ActionId,
        /// The questions.
        lookups: Vec<Lookup>,
    },
    /// Call [`cache_manager::save`](crate::cache_manager::save) on a blocking thread; answered by
    /// [`Event::Saved`]. Readers of the results do not wait for it.
    Save {
        /// Goes into the answer.
        id: ActionId,
        /// What to save.
        saves: Vec<Save>,
    },
    /// Stop an action that nobody wants any more. Its answer is still expected.
    Cancel(ActionId),
    /// The answer to a request; the last word on it.
    Answer {
        /// The request.
        request: RequestId,
        /// The result, or why there is none.
        result: Result<Solved<R>, SolveError<E>>,
    },
    /// Tell people about a vertex.
    Notify(Notice<E>),
}

/// Progress of a vertex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice<E> {
    /// The jobs that should hear of it. Nested jobs are replaced by those that they work for.
    pub jobs: Vec<JobId>,
    /// Jobs that have a vertex of another digest, which turned out to be the same work, and that digest.
    pub merged: Vec<(JobId, Digest)>,
    /// The vertex.
    pub vertex: Digest,
    /// Its place in the graph.
    pub node: NodeId,
    /// What happened to it.
    pub status: Status<E>,
}

/// The place of a vertex in the graph. Two vertices of one digest have two, if only one of them must run anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(pub(crate) VertexId);

/// What happened to a vertex. Later ones replace earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status<E> {
    /// Work on it began: resolving (vertices without inputs) or running.
    Started,
    /// Its stored result is being loaded.
    Loading,
    /// A source knows what it stands for. Nothing more need follow.
    Resolved,
    /// Its result was found in a cache, or was not needed because something above it was found.
    Cached,
    /// It ran.
    Completed,
    /// It failed.
    Failed(E),
    /// Nobody wants it any more.
    Cancelled,
}

/// The answer to an action.
#[derive(Debug)]
pub enum Event<R, E> {
    /// Answers [`Action::CacheMap`]: the map, and whether it is the last one. Ops with inputs have only one.
    CacheMap(ActionId, Result<(CacheMap, Last), Stopped<E>>),
    /// Answers [`Action::Content`]: the digest; none if this content has none, and will never match.
    Content(ActionId, Result<Option<Digest>, Stopped<E>>),
    /// Answers [`Action::Exec`]: all outputs.
    Exec(ActionId, Result<Vec<Output<R>>, Stopped<E>>),
    /// Answers [`Action::Load`]; none if the record could not be loaded (or was cancelled).
    Load(ActionId, Option<Output<R>>),
    /// Answers [`Action::Lookup`], one for each question, in their order.
    Lookup(ActionId, Vec<Answer>),
    /// Answers [`Action::Save`], in success or not.
    Saved(ActionId),
}

/// Whether more cache maps follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// This was the last one.
    Yes,
    /// Ask again with the next index if this one does not help.
    No,
}

impl<R, E> Event<R, E> {
    /// The action that this answers.
    pub fn id(&self) -> ActionId {
        match self {
            Event::CacheMap(id, _)
            | Event::Content(id, _)
            | Event::Exec(id, _)
            | Event::Load(id, _)
            | Event::Lookup(id, _)
            | Event::Saved(id) => *id,
        }
    }
}

macro_rules! number {
    ($($id:ident $name:literal),*) => {$(
        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($name, "{}"), self.0)
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    )*};
}
number!(ActionId "action", JobId "job", RequestId "request");
