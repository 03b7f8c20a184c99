//! BuildKit's gRPC services: calls in, questions to the engine, answers out.

pub(crate) mod containers;
pub(crate) mod control;
pub mod error;
pub(crate) mod gateway;
pub(crate) mod health;
pub mod status;
