//! Layers: tar streams of changed files, compressed, known by two digests.
//!
//! ```text
//! Entry ─▶ tar::Writer ─▶ Compressor ─▶ blob         diff id = sha256 of the tar, digest = sha256 of the blob
//! blob ─▶ Decompressor ─▶ tar::Reader ─▶ Entry + content
//! ```
//!
//! The tar has the bytes that containerd's differ writes for the same changes, so diff ids equal upstream's. The blob
//! has the same bytes whatever the number of threads.

pub mod compression;
mod entry;
pub mod tar;
mod whiteout;

pub use compression::{BadAttribute, Compression, CompressionOptions};
pub use entry::{Entry, EntryKind};
pub use tar::Time;
pub use whiteout::{OPAQUE, WHITEOUT_PREFIX, Whiteout, whiteout_path};
