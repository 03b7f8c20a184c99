//! A request becomes a result: jobs, frontends, ops.
//!
//! The one place where all rooms meet, and a library: the daemon is this plus gRPC, `hullworks build`
//! and `buildctl-daemonless.sh` are this plus a session in the same process.

pub mod api;
mod bridge;
mod cache;
mod cache_mount;
mod container;
mod content;
mod core;
mod devices;
mod driver;
mod exporting;
mod fill;
mod flight;
mod frontend;
mod hidden;
mod images;
mod job;
mod journal;
mod layout;
mod local;
mod look;
mod memo;
mod open;
mod ops;
mod places;
mod policy;
mod request;
mod result;
mod room;
mod shadow;
mod show;
mod ssh;
mod step_log;
mod tree;
pub mod usage;
mod verify;
mod wreck;

pub use self::core::store_fault;
pub use ::dockerfile::{Unsupported, is_number_list};
pub use api::{Engine, EngineOptions, SnapshotterChoice};
pub use bridge::{Bridge, ImageConfig};
pub use container::{Container, Control, NewContainer, NewProcess, ProcessIo, StepIo};
pub use devices::Device;
pub use executor::Exit;
pub use hidden::Hidden;
pub use open::{in_use, is_in_use_by_daemon};
pub use ops::source::{GitDescription, HttpDescription};
pub use request::{
    Begin, CacheOptions, Entitlement, ExportRequest, Exports, Frontend, Inputs, SolveRequest, SolveResponse,
    check_attestations, is_question,
};
pub use result::{FrontendResult, Ref, Refs};
pub use step_log::LogLimits;
pub use store::Reserve;
pub use usage::{PruneOptions, UsageRecord};
pub use wreck::{Subject, Wreck, wreck};
