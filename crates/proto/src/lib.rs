//! BuildKit's wire messages. Re-exports the crate that carries them and adds what it lacks.
//!
//! Wire types stay at the doors: `llb`, `session::remote`, `daemon::service` and `cli` use this crate;
//! the rooms between them have types of their own.

pub mod content;
mod definition;
pub mod exporter;
pub mod fsutil;
pub mod json;
pub mod otlp;
pub mod reflection;
mod resources;
pub mod solve;
pub mod version;

pub use bollard_buildkit_proto::fsutil as generated_fsutil;
pub use bollard_buildkit_proto::google::{protobuf, rpc};
pub use bollard_buildkit_proto::{health, moby, pb};
pub use definition::without_empty_entries;
pub use prost::Message;
pub use resources::{LinuxResources, read_definition};
