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
