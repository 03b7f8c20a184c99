//! BuildKit's gRPC services: calls in, questions to the engine, answers out.

pub(crate) mod containers;
pub(crate) mod content;
pub(crate) mod control;
pub mod error;
pub(crate) mod gateway;
pub(crate) mod health;
mod history;
mod images;
mod names;
pub(crate) mod reflection;
mod resolve;
mod solve_error;
pub mod status;
pub(crate) mod trace;

use tonic::Status;

/// How long the names may be that clients give to builds, sessions and containers: BuildKit's have 25 characters.
pub(crate) const MAX_NAME: usize = 256;

/// Refuses a name that is none: it is kept as long as what has it, and that of a build on the disk.
fn check_name(what: &str, name: &str) -> Result<(), Status> {
    match name.len() {
        ..=MAX_NAME => Ok(()),
        len => Err(Status::invalid_argument(format!("the {what} has {len} bytes, and may have {MAX_NAME}"))),
    }
}
