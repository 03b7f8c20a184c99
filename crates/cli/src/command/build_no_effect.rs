//! Flags that `docker build` had before BuildKit. buildx takes them and warns; so do we.

use clap::Args;

/// What has no effect.
#[derive(Clone, Debug, Default, Args)]
pub struct NoEffect {
    /// Nothing of a step stays in any case
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, hide_possible_values = true, value_name = "BOOL", help_heading = "Without effect, for docker's sake")]
    rm: Option<bool>,
    /// Nothing of a step stays in any case
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, hide_possible_values = true, value_name = "BOOL", help_heading = "Without effect, for docker's sake")]
    force_rm: Option<bool>,
    /// Warned of: the context is read in place
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, hide_possible_values = true, value_name = "BOOL", help_heading = "Without effect, for docker's sake")]
    compress: Option<bool>,
    /// Warned of: for one layer, COPY from one stage into another
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, hide_possible_values = true, value_name = "BOOL", help_heading = "Without effect, for docker's sake")]
    squash: Option<bool>,
    /// Warned of, but for `default`: steps run in the sandbox
    #[arg(long, value_name = "KIND", help_heading = "Without effect, for docker's sake")]
    isolation: Option<String>,
    /// Warned of: rights are asked for by --allow
    #[arg(long, value_name = "OPTION", help_heading = "Without effect, for docker's sake")]
    security_opt: Vec<String>,
}

impl NoEffect {
    /// What to say about those that were given.
    pub fn warnings(&self) -> Vec<String> {
        let isolation = self.isolation.as_ref().is_some_and(|kind| kind != "default");
        [
            ("--squash", self.squash == Some(true), "for one layer, COPY from one stage into another"),
            ("--compress", self.compress == Some(true), "the context is read in place"),
            ("--isolation", isolation, "steps run in the sandbox"),
            ("--security-opt", !self.security_opt.is_empty(), "rights are asked for by --allow"),
        ]
        .into_iter()
        .filter(|(_, is_given, _)| *is_given)
        .map(|(flag, _, why)| format!("{flag} has no effect: {why}"))
        .collect()
    }
}

/// A flag's value as Go reads it, since scripts write `--push=$PUSH`.
pub fn boolean(text: &str) -> Result<bool, String> {
    config::parse_bool(text).ok_or_else(|| "expected true or false".to_owned())
}
