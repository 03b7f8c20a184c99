//! One file per command, and the two command lines that they stand in.
//!
//! Each command has a struct of what can be typed, with the help text, and `run`, which says what is meant.

pub mod build;
mod build_limits;
mod build_no_effect;
pub mod buildctl;
pub mod buildctl_build;
pub mod buildctl_client;
mod buildctl_dump;
mod buildctl_history;
mod buildctl_workers;
pub mod buildkitd;
pub mod buildkitd_flags;
pub mod du;
pub mod engine_args;
pub mod hullworks;
pub mod install;
pub mod prune;
pub mod table;

#[cfg(test)]
mod tests;

use std::future::Future;

use base::{Fault, Kind};

use crate::daemonless::run::Failure;
use crate::environment::Environment;

/// What a parsed command line asks for.
pub enum Action {
    /// Text for standard output: help, version.
    Print(String),
    /// The complaint that there is no such command; upstream has an exit code for that.
    Unknown(Fault),
    /// Work that needs no engine.
    Simple(Box<dyn FnOnce() -> Result<(), Fault>>),
    /// Work that waits for others, and needs no engine.
    Client(Box<dyn FnOnce(Environment) -> EngineWork>),
    /// Work with the engine, which wants the isolation of [`crate::isolate`] before any thread.
    Engine(Box<dyn FnOnce(Environment) -> EngineWork>),
}

/// The future of an engine command.
pub type EngineWork = std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>>>>;

impl Action {
    /// Wraps an async function of the environment that needs no engine.
    pub fn client<F, W>(work: F) -> Action
    where
        F: FnOnce(Environment) -> W + 'static,
        W: Future<Output = Result<(), Failure>> + 'static,
    {
        Action::Client(Box::new(|environment| Box::pin(work(environment))))
    }

    /// Wraps an async function of the environment.
    pub fn engine<F, W>(work: F) -> Action
    where
        F: FnOnce(Environment) -> W + 'static,
        W: Future<Output = Result<(), Failure>> + 'static,
    {
        Action::Engine(Box::new(|environment| Box::pin(work(environment))))
    }
}

/// What clap says about a command line, as an action or a fault.
pub(crate) fn explain(error: &clap::Error) -> Result<Action, Fault> {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion, InvalidSubcommand,
    };
    let text = error.render().to_string();
    match error.kind() {
        DisplayHelp | DisplayVersion => Ok(Action::Print(text)),
        DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(Fault::user("a command is missing").hint("--help lists the commands"))
        }
        _ => {
            // clap frames its text as `error: ..`, a usage and tips; the frame here is ours.
            let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            let message = lines.next().unwrap_or_default();
            let message = message.strip_prefix("error: ").unwrap_or(message).trim_end_matches(['.', ':']);
            let rest: Vec<&str> = lines.collect();
            let listed: Vec<&str> =
                rest.iter().copied().filter(|line| line.starts_with('-') || line.starts_with('<')).collect();
            let message =
                if listed.is_empty() { message.to_owned() } else { format!("{message}: {}", listed.join(", ")) };
            const TIPS: [&str; 3] = [
                "tip: a similar argument exists: ",
                "tip: a similar subcommand exists: ",
                "tip: some similar subcommands exist: ",
            ];
            let similar = rest.iter().find_map(|line| TIPS.iter().find_map(|tip| line.strip_prefix(tip)));
            // The most similar one is the last; one letter is like many words.
            let similar = similar.and_then(|names| names.rsplit(", ").find(|name| name.len() > 3));
            let fault = Fault::user(message.replace('\'', "`"));
            // docker's `prune -f` means that nothing is asked, and nothing ever is here.
            let is_force = text.contains("a value is required for '--filter <FILTER>'");
            Err(match (similar, error.kind()) {
                _ if is_force => {
                    fault.hint("-f is --filter; nothing is asked before, which is what docker's `-f` is for")
                }
                (Some(flag), _) => fault.hint(format!("did you mean {}?", flag.replace('\'', "`"))),
                (None, InvalidSubcommand) => fault.hint("--help lists the commands"),
                (None, _) => fault.hint("--help lists the flags"),
            })
        }
    }
}

/// The same for `buildctl`.
pub(crate) fn explain_buildctl(error: &clap::Error) -> Result<Action, Fault> {
    match explain(error) {
        Err(fault) if error.kind() == clap::error::ErrorKind::InvalidSubcommand => Ok(Action::Unknown(fault)),
        other => other,
    }
}

/// Commands of `buildctl` that take no words by mistake: one may have been meant to say what to remove or to look at.
pub(crate) const STRICT: [&str; 3] = ["prune", "prune-histories", "dump-metadata"];

/// What `buildctl` says to words that a command has no use for.
pub(crate) fn no_effect(extra: &[String]) -> Option<String> {
    let words: Vec<_> = extra.iter().map(|word| format!("`{word}`")).collect();
    match &words[..] {
        [] => None,
        [word] => Some(format!("the argument {word} has no effect")),
        words => Some(format!("the arguments {} have no effect", words.join(", "))),
    }
}

/// `--version`, by upstream's letter and by ours.
pub(crate) fn version_flag() -> clap::Arg {
    let flag = clap::Arg::new("version").long("version").short('v').short_alias('V');
    flag.action(clap::ArgAction::Version).help("Print the version")
}

/// A flag that upstream has and that is not there yet.
pub(crate) fn not_yet(what: &str) -> Fault {
    Fault::user(format!("{what} is not supported yet"))
}

/// A write to standard output failed.
pub(crate) fn stdout_failed(error: std::io::Error) -> Fault {
    Fault::because(Kind::Environment, "cannot write to standard output", error)
}
