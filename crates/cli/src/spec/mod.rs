//! Values of flags: what was typed becomes what is meant.
//!
//! Each form is parsed in one place, for both command lines (docker's and BuildKit's). Errors are [`Fault`]s of
//! kind user whose text names the flag, the value and what is wrong with it.

pub mod allow;
pub mod cache;
pub mod call;
pub mod context;
pub mod csv;
pub mod docker;
pub mod goflags;
pub mod output;
pub mod pairs;
pub mod policy;
pub mod proxies;
pub mod secret;
pub mod ssh;
pub mod template;

#[cfg(test)]
mod tests;

use base::Fault;

/// A flag has a value that it cannot have.
pub(crate) fn invalid(flag: &str, value: &str, why: impl std::fmt::Display) -> Fault {
    Fault::user(format!("invalid value `{value}` for {flag}: {why}"))
}
