//! What the solver is given and gives back: vertices, cache maps, outputs, results, failures.

use std::sync::Arc;

use base::Digest;

use crate::cache_key::{CacheKey, KeyDigest, SourceId};
use crate::cache_store::CacheResult;

/// A step of a build and what it reads.
#[derive(Clone, Debug)]
pub struct Vertex<V> {
    /// The digest of its definition, inputs included. Equal digests share work while it is in flight.
    pub digest: Digest,
    /// What it reads.
    pub inputs: Vec<Input>,
    /// What the engine needs to carry it out; opaque here.
    pub op: V,
    /// Run it even if it is cached (`--no-cache`). Its result is stored nevertheless.
    pub ignore_cache: bool,
    /// Caches to look into after the local one, most preferred first.
    pub sources: Vec<SourceId>,
    /// Whether its result belongs into exported caches, if the client said so.
    pub export_cache: Option<bool>,
    /// Results are not shared between vertices of different generations, but through caches: what an earlier one has
    /// turned out to be of no use.
    pub generation: u64,
    /// It is a source: to find out what it stands for is work of its own, which people are told of. Another op without
    /// inputs states its key from what it says.
    pub is_source: bool,
}

/// One output of a vertex: an edge, seen from its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Input {
    /// The vertex.
    pub vertex: Digest,
    /// Which of its outputs.
    pub output: u32,
}

/// How the result of an op is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMap {
    /// The op's own digest, to be combined with what is known of its inputs.
    pub digest: KeyDigest,
    /// One for each input.
    pub inputs: Vec<CacheMapInput>,
}

/// How one input takes part in the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheMapInput {
    /// Which part of the input is read.
    pub selector: Option<Digest>,
    /// Whether the op can digest what it reads of the input's content once the input is there.
    pub by_content: bool,
}

/// One output of an op that ran or was loaded.
#[derive(Clone, Debug)]
pub struct Output<R> {
    /// The result. The solver clones it for everybody who asks and drops its own clone when the last
    /// job that holds the vertex has ended: give it an `Arc` whose drop releases.
    pub result: R,
    /// Under which name it is stored; none if it cannot be cached.
    pub stored: Option<CacheResult>,
}

/// What a request is answered with.
#[derive(Clone, Debug)]
pub struct Solved<R> {
    /// The result.
    pub result: R,
    /// The keys that it is known by. [`Solver::export`](crate::Solver::export) starts from them.
    pub keys: Vec<Arc<CacheKey>>,
}

/// Why a request could not be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("vertex {vertex} failed")]
pub struct SolveError<E> {
    /// The vertex that failed; often one below the one asked for.
    pub vertex: Digest,
    /// What it was doing.
    pub phase: Phase,
    /// What happened.
    #[source]
    pub cause: Cause<E>,
}

/// What a vertex was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Stating its cache key.
    CacheMap,
    /// Digesting the content of an input.
    Content {
        /// Which input.
        input: u32,
    },
    /// Running.
    Exec,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause<E> {
    /// The op says why.
    #[error(transparent)]
    Op(E),
    /// The op has fewer outputs than its reader thinks.
    #[error("output {asked} was asked for, but the op has {outputs}")]
    NoSuchOutput {
        /// The output.
        asked: u32,
        /// How many there are.
        outputs: usize,
    },
    /// The cache map does not fit the vertex.
    #[error("the cache map describes {described} inputs, but the vertex has {inputs}")]
    CacheMapInputs {
        /// How many the cache map has.
        described: usize,
        /// How many the vertex has.
        inputs: usize,
    },
}

/// Why an action has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped<E> {
    /// It was cancelled, as [`Action::Cancel`](crate::Action::Cancel) asked.
    Cancelled,
    /// It failed.
    Failed(E),
}
