//! A daemon at the other end of a connection: how it is reached, and one build by it.

mod address;
mod build;
mod carrier;
mod program;
mod question;
pub mod tokens;

pub(crate) use address::LARGEST;
pub use address::{Remote, connect, stream};
pub use build::solve;
pub(crate) use build::{Broken, fault};
