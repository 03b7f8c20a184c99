//! The solver: which edges of a build graph are cached, which run, and in which order.
//!
//! Knows no container, file, network, clock, thread or tokio.

mod act;
mod action;
mod answer;
mod arena;
pub mod cache_export;
mod cache_key;
pub mod cache_manager;
mod cache_store;
mod edge;
mod graph;
mod index;
mod merge;
mod news;
mod op;
mod process;
mod report;
mod search;
mod solver;

pub use action::{Action, ActionId, Event, JobId, Last, NodeId, Notice, RequestId, Status};
pub use cache_key::{
    CONTENT_OUTPUT, CacheKey, Dep, KeyDigest, KeyId, Link, ResultId, SourceId, random_id, root_key, walk_inputs_first,
};
pub use cache_manager::{Answer, Found, InputKeys, Lookup, Question, Record, Save};
pub use cache_store::{Backlink, CacheResult, CacheStore, Change, Inputs, LinkRow, Meeting, MemoryStore, StoreError};
pub use graph::Error;
pub use op::{CacheMap, CacheMapInput, Cause, Input, Output, Phase, SolveError, Solved, Stopped, Vertex};
pub use solver::Solver;

#[cfg(test)]
pub(crate) mod tests;
