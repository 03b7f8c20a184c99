//! File trees: what BuildKit's FileOp, local source filters and content checksums mean, on plain directories.
//!
//! Synchronous and without opinions on where trees come from: a mounted snapshot or the user's own directory, read
//! in place. Wire types stay outside, and every path is looked up inside a [`sys::path::Root`].
//!
//! A local source is [`walk`]ed with its [`pattern`]s into a [`checksum::Tree`]; its [`checksum::content_key`] decides
//! whether a step runs; [`copy`] and [`ops`] then change a [`Target`].

pub mod checksum;
pub mod copy;
mod error;
pub mod lexical;
mod mode;
pub mod ops;
mod owner;
mod parallel;
pub mod pattern;
pub mod receive;
mod stat;
mod target;
#[cfg(test)]
mod testtree;
pub mod untar;
pub mod walk;
mod xattr;

pub use error::{Error, chain};
pub use mode::{ModeChange, Symbolic};
pub use owner::{Owner, OwnerRef, ResolvedOwner, resolve_owner};
pub use stat::{Kind, Stat, Time};
pub use target::{Recorder, Refused, Target};
