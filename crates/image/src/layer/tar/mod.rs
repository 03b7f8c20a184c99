//! The tar format: a writer with the bytes of Go's `archive/tar`, a reader for hostile input.
//!
//! ```text
//! ┌ header 512 ┐┌ content, padded to 512 ┐ .. ┌ 1024 zeros ┐
//!   a PAX header ("x") and its records stand before the header whose fields they replace
//! ```
//!
//! Layout of a header block (POSIX.1-1988 ustar; GNU differs behind offset 345):
//!
//! ```text
//! 0 name 100 | 100 mode 8 | 108 uid 8 | 116 gid 8 | 124 size 12 | 136 mtime 12 | 148 checksum 8 | 156 type 1
//! 157 link 100 | 257 magic+version 8 | 265 uname 32 | 297 gname 32 | 329 major 8 | 337 minor 8 | 345 prefix 155
//! ```

mod block;
mod format;
mod header;
mod pax;
mod reader;
mod rewrite;
mod sparse;
#[cfg(test)]
mod tests;
mod writer;

pub use header::{Format, Header, Time, TypeFlag};
pub use reader::{Limits, Reader, is_archive};
pub use rewrite::clamp_times;
pub use writer::Writer;

/// Size of a block; everything is padded to it.
pub const BLOCK: usize = 512;
