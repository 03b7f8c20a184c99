//! Flags that `docker build` had before BuildKit. buildx takes them and warns; so do we.

use clap::Args;

/// What has no effect. Not shown in the help.
#[derive(Clone, Debug, Default, Args)]
pub struct NoEffect {
    // Nothing of a step stays in any case: these two ask for what is so.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    rm: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    force_rm: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    compress: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    squash: Option<bool>,
    #[arg(long, hide = true)]
    isolation: Option<String>,
    #[arg(long, hide = true)]
    security_opt: Vec<String>,
    #[arg(long, short, hide = true)]
    memory: Option<String>,
    #[arg(long, hide = true)]
    memory_swap: Option<String>,
    #[arg(long, short, hide = true)]
    cpu_shares: Option<String>,
    #[arg(long, hide = true)]
    cpu_period: Option<String>,
    #[arg(long, hide = true)]
    cpu_quota: Option<String>,
    #[arg(long, hide = true)]
    cpuset_cpus: Option<String>,
    #[arg(long, hide = true)]
    cpuset_mems: Option<String>,
}

const LIMITS: &str = "steps have the limits of the pod or cgroup that the build runs in";

impl NoEffect {
    /// What to say about those that were given.
    pub fn warnings(&self) -> Vec<String> {
        let isolation = self.isolation.as_ref().is_some_and(|kind| kind != "default");
        [
            ("--squash", self.squash == Some(true), "for one layer, COPY from one stage into another"),
            ("--compress", self.compress == Some(true), "the context is read in place"),
            ("--isolation", isolation, "steps run in the sandbox"),
            ("--security-opt", !self.security_opt.is_empty(), "rights are asked for by --allow"),
            ("--memory", self.memory.is_some(), LIMITS),
            ("--memory-swap", self.memory_swap.is_some(), LIMITS),
            ("--cpu-shares", self.cpu_shares.is_some(), LIMITS),
            ("--cpu-period", self.cpu_period.is_some(), LIMITS),
            ("--cpu-quota", self.cpu_quota.is_some(), LIMITS),
            ("--cpuset-cpus", self.cpuset_cpus.is_some(), LIMITS),
            ("--cpuset-mems", self.cpuset_mems.is_some(), LIMITS),
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
