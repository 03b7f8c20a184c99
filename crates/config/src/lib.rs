//! `buildkitd.toml`: every key declared once, with its documentation.

/// The parsed configuration.
#[derive(Clone, Debug, Default)]
pub struct Config {}
