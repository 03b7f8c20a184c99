//! The command line `hullworks`.

use std::ffi::OsString;

use base::Fault;
use clap::{CommandFactory as _, Parser, Subcommand};

use super::{Action, build, du, explain, install, prune};
use crate::environment::Environment;

/// Builds container images from Dockerfiles, without a daemon.
#[derive(Debug, Parser)]
#[command(
    name = "hullworks",
    version = crate::VERSION,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "The same program called `buildctl-daemonless.sh`, or with that as its first word, takes BuildKit's \
                  command line: hullworks buildctl-daemonless.sh build --frontend dockerfile.v0 ...\n\nExit codes: 0 on \
                  success, 1 on any failure."
)]
pub struct Hullworks {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(Box<build::Build>),
    Du(du::DuCommand),
    Prune(prune::PruneCommand),
    Install(install::Install),
}

/// Parses the arguments after the program's name.
pub fn parse(args: Vec<OsString>, environment: &Environment) -> Result<Action, Fault> {
    let line = std::iter::once(OsString::from("hullworks")).chain(args);
    match Hullworks::try_parse_from(line) {
        Err(error) => explain(&error),
        Ok(Hullworks { command }) => match command {
            Command::Build(build) => build.action(environment),
            Command::Du(du) => du.action(environment),
            Command::Prune(prune) => prune.action(environment),
            Command::Install(install) => Ok(install.action()),
        },
    }
}

/// The declaration, for help texts and their tests.
pub fn declaration() -> clap::Command {
    Hullworks::command()
}
