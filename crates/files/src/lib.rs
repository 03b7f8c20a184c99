//! File trees: what BuildKit's FileOp, local source filters and content checksums mean, on plain directories.
//!
//! Synchronous and without opinions on where trees come from: a mounted snapshot or the user's own directory, read
//! in place. Wire types stay outside, and every path is looked up inside a [`sys::path::Root`].

pub mod checksum;
mod error;
pub mod lexical;
mod parallel;
pub mod pattern;
mod stat;
pub mod untar;
#[cfg(test)]
mod testtree;
pub mod walk;
mod xattr;

pub use error::{Error, chain};
pub use stat::{Kind, Stat, Time};
