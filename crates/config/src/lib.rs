//! `buildkitd.toml`: every key declared once, with its documentation.
//!
//! The keys, their spellings and their meaning are those of upstream's `buildkitd.toml` (keys match in any
//! case, as upstream's reader matches them). A key that nobody knows is a [`Warning`], never an error: a file
//! written for another version must not stop a build. A value of the wrong type, or text that is no TOML, is
//! an [`Error`] that names file, line and key.
//!
//! The crate reads files that it is told of; which files those are is said by [`Lookup`], from an environment
//! that the program hands over.

mod document;
mod gc_policy;
mod load;
mod reference;
mod root;
mod section;
mod value;
mod worker;

pub use gc_policy::{DiskUse, PrunePolicy};
pub use load::{Error, Loaded, Lookup, Warning, load, parse};
pub use reference::reference;
pub use root::{
    Cache, Cdi, Certificate, Config, Dns, DockerfileFrontend, Frontends, GatewayFrontend, GhaCache, GhaPolicy, GhaSign,
    GhaVerify, Grpc, History, KeyPair, Log, Otel, Registry, System, TlsFiles,
};
pub use value::{DiskSpace, Seconds, ValueError, parse_bool, parse_bytes, parse_duration};
pub use worker::{Containerd, ContainerdRuntime, Gc, GcPolicy, Network, Oci, Workers};

#[cfg(test)]
mod tests;
