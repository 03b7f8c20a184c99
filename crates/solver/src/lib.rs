//! The solver: which edges of a build graph are cached, which run, and in which order.
//!
//! Knows no container, file, network, clock, thread or tokio.

mod cache_key;
mod cache_store;

pub use cache_key::{
    CONTENT_OUTPUT, CacheKey, Dep, KeyDigest, KeyId, Link, ResultId, SourceId, random_id, root_key, walk_inputs_first,
};
pub use cache_store::{Backlink, CacheResult, CacheStore, Change, LinkRow, MemoryStore, StoreError};
