//! The flags of `hullworks` that set up its engine.

use std::path::PathBuf;

use base::Fault;
use clap::Args;

use crate::daemonless::Settings;
use crate::daemonless::settings::log_level;
use crate::environment::Environment;

/// How the built-in engine is set up; the same for every command that uses it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// State directory [default: /var/lib/buildkit, for an ordinary user $XDG_DATA_HOME/buildkit or
    /// ~/.local/share/buildkit]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Configuration file [default: /etc/buildkit/buildkitd.toml, for an ordinary user also
    /// ~/.config/buildkit/buildkitd.toml on top of it]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How snapshots are kept: auto, overlayfs or native (reflinks or copies)
    #[arg(long, value_name = "NAME")]
    pub snapshotter: Option<String>,
    /// Log what the engine does on standard error; twice for more
    #[arg(long, short = 'D', action = clap::ArgAction::Count)]
    pub debug: u8,
}

impl EngineArgs {
    /// The settings that these flags and the configuration amount to.
    pub fn settings(&self, environment: &Environment) -> Result<Settings, Fault> {
        let mut settings = Settings::load(self.config.clone(), self.root.clone(), environment, |_| Ok(()))?;
        if let Some(name) = &self.snapshotter {
            settings.choose_snapshotter("--snapshotter", name)?;
        }
        if environment.get("BUILDKITD_FLAGS").is_some_and(|flags| !flags.trim().is_empty()) {
            let text =
                "BUILDKITD_FLAGS is for buildctl-daemonless.sh and not used here: hullworks has flags of its own";
            settings.warnings.push(text.to_owned());
        }
        if let Some(host) = environment.get("BUILDKIT_HOST") {
            settings.warnings.push(format!(
                "BUILDKIT_HOST is not used here: hullworks works without a daemon; `hullworks buildctl` asks the one at {host}"
            ));
        }
        settings.log_json = settings.config.log.format == "json";
        let configured = &settings.config.log.level;
        settings.log = match self.debug {
            0 if configured.is_empty() => None,
            0 => Some(log_level("log.level", configured)?),
            1 => Some(tracing::Level::DEBUG),
            _ => Some(tracing::Level::TRACE),
        };
        Ok(settings)
    }
}
