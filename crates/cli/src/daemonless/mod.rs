//! Engine and client in one process: no socket, no copy of the context through a protocol.
//!
//! A command line becomes a [`BuildPlan`] (what the client asks) and [`Settings`] (what the daemon would have been
//! started with); [`run`] opens the engine and builds.

mod answer;
mod cache_metrics;
mod caches;
mod layout;
mod plan;
pub mod run;
pub mod settings;
pub mod signals;
mod stdin;

pub use answer::Call;
pub use layout::ImageLayout;
pub use plan::{BuildPlan, Scratch};
pub use settings::Settings;
pub use stdin::{Stdin, dockerfile as dockerfile_on_stdin, read as read_stdin};
