//! What tests share: scratch space, stated needs, registries that behave and one that misbehaves, small images.
//!
//! Never shipped. Servers run on threads of their own, so that blocking tests, async tests and other programs can all
//! talk to them; they stop when their value is dropped.

pub mod certificates;
mod debian;
mod git;
pub mod image;
pub mod need;
pub mod registry;
mod scratch;
pub mod tar;
#[cfg(test)]
mod tests;
mod tls_front;

pub use debian::{DockerRegistry, LOGIN};
pub use git::{GitServer, Repository};
pub use registry::{Auth, Fault, Registry};
pub use scratch::{free_port, scratch};
pub use tls_front::TlsFront;
