//! Caches between machines, in BuildKit's format: `application/vnd.buildkit.cacheconfig.v0`.
//!
//! ```text
//! manifest or index ─▶ layers (with diff ids)           an image:  config ─▶ `moby.buildkit.cache.v0` (records)
//!                  └─▶ config: layers, records                            └▶ layers, in the manifest's order
//! ```
//!
//! A record is a cache key: the digest that an op stated with its output, the records of its inputs, and the layers that
//! its result consists of. [`config`] is the document, [`document`] what stands around it, [`imported`] answers the
//! solver's questions out of it, and [`draft`] writes it. Values and bytes only: fetching, unpacking and pushing is
//! the engine's.

pub mod config;
pub mod document;
pub mod draft;
pub mod imported;
pub mod options;

pub use config::{CacheConfig, Error, MEDIA_TYPE};
pub use document::{Document, Form, InlineCache};
pub use draft::{Draft, Made};
pub use imported::Imported;
pub use options::{ExportOptions, ImportOptions, Mode, Place};
