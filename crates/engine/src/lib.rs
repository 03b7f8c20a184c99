//! A request becomes a result: jobs, frontends, ops.
//!
//! The one place where all rooms meet, and a library: the daemon is this plus gRPC, `hullworks build`
//! and `buildctl-daemonless.sh` are this plus a session in the same process.

pub mod api;
mod bridge;
mod cache;
mod cache_mount;
mod content;
mod core;
mod driver;
mod fill;
mod flight;
mod frontend;
mod images;
mod job;
mod layout;
mod local;
mod memo;
mod open;
mod ops;
mod places;
mod result;
mod shadow;
mod step_log;
mod tree;
pub mod usage;
mod verify;

pub use api::{
    Begin, CacheOptions, Engine, EngineOptions, Entitlement, ExportRequest, Frontend, PruneOptions, SnapshotterChoice,
    SolveRequest, SolveResponse, UsageRecord,
};
pub use bridge::{Bridge, ImageConfig};
pub use open::in_use;
pub use ops::CAPS as LLB_CAPS;
pub use result::{FrontendResult, Ref, Refs};
pub use step_log::LogLimits;
pub use store::Reserve;
