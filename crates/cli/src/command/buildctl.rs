//! The command line of `buildctl`, as `buildctl-daemonless.sh` passes it on: every flag that upstream has is
//! known; what a daemonless build cannot do is refused by name.

use std::ffi::OsString;

use base::Fault;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use super::buildctl_dump::{DumpLlb, DumpMetadata};
use super::buildctl_workers::{Info, Workers};
use super::buildkitd_flags::BuildkitdFlags;
use super::{Action, STRICT, buildctl_build, du, explain_buildctl, no_effect, prune, version_flag};
use crate::daemonless::Settings;
use crate::environment::Environment;
use crate::fault::print_warning;
use crate::spec::{goflags, invalid};

/// buildctl and buildkitd in one process: takes buildctl's command line and ends with its last step.
#[derive(Debug, Parser)]
#[command(
    name = "buildctl-daemonless.sh",
    version = crate::VERSION,
    max_term_width = 100,
    disable_help_subcommand = true,
    disable_version_flag = true,
    arg_required_else_help = true,
    after_help = ENVIRONMENT
)]
pub struct Buildctl {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

const ENVIRONMENT: &str = "\
Environment:
  BUILDKITD_FLAGS    flags that buildkitd would be started with, split at spaces
  BUILDCTL           words after the first are flags; buildctl itself is built in
  BUILDKITD          the same for buildkitd
  BUILDCTL_CONNECT_RETRIES_MAX
                     how often to try for a state directory that is in use
                     [default: until it is free]
  BUILDKIT_PROGRESS  what --progress=auto means
  BUILDKIT_STEP_LOG_MAX_SIZE, BUILDKIT_STEP_LOG_MAX_SPEED
                     bytes that a step shows of each output, in all (2 MiB) and
                     per second (200 KiB); -1 is no limit
  DOCKER_CONFIG      directory of docker's config.json [default: ~/.docker]

Exit codes: 0 on success, 3 for a command that is not there, 1 on any other failure.";

/// Flags of every command; they may stand before it or behind it.
#[derive(Clone, Debug, Default, Args)]
pub struct Globals {
    /// Log what the engine does on standard error
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, global = true, value_name = "BOOL")]
    pub debug: bool,
    /// Refused: a daemon's address makes no sense without a daemon
    #[arg(long)]
    pub addr: Option<String>,
    /// Form of the log: text or json
    #[arg(long, default_value = "text", value_name = "FORMAT", global = true)]
    pub log_format: String,
    /// Refused with --addr
    #[arg(long, hide = true)]
    pub tlsservername: Option<String>,
    /// Refused with --addr
    #[arg(long, hide = true)]
    pub tlscacert: Option<String>,
    /// Refused with --addr
    #[arg(long, hide = true)]
    pub tlscert: Option<String>,
    /// Refused with --addr
    #[arg(long, hide = true)]
    pub tlskey: Option<String>,
    /// Refused with --addr
    #[arg(long, hide = true)]
    pub tlsdir: Option<String>,
    /// No effect: there is no connection
    #[arg(long, default_value = "5", value_name = "SECONDS", hide_default_value = true)]
    pub timeout: i64,
    /// No effect: there is no connection
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    pub wait: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(Box<buildctl_build::BuildctlBuild>),
    Du(du::Du),
    Prune(prune::Prune),
    /// What there is to see without a daemon
    #[command(subcommand)]
    Debug(Debug),
    /// Not supported: records of builds are a daemon's
    #[command(hide = true)]
    PruneHistories(Anything),
    /// Not supported: there is no daemon to connect to
    #[command(hide = true)]
    DialStdio(Anything),
}

#[derive(Debug, Subcommand)]
enum Debug {
    Workers(Workers),
    Info(Info),
    DumpLlb(DumpLlb),
    DumpMetadata(DumpMetadata),
    /// Not supported: records of builds are a daemon's
    #[command(hide = true)]
    Histories(Anything),
    /// Not supported: records of builds are a daemon's
    #[command(hide = true)]
    Logs(Anything),
    /// Not supported: records of builds are a daemon's
    #[command(hide = true)]
    Get(Anything),
    /// Not supported: records of builds are a daemon's
    #[command(hide = true)]
    Monitor(Anything),
    /// Not supported: records of builds are a daemon's
    #[command(hide = true)]
    Ctl(Anything),
}

/// Arguments of a command that is refused whatever they are.
#[derive(Debug, Args)]
struct Anything {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _args: Vec<OsString>,
}

impl Globals {
    fn check(&self) -> Result<(), Fault> {
        let daemon = [
            ("--addr", &self.addr),
            ("--tlsservername", &self.tlsservername),
            ("--tlscacert", &self.tlscacert),
            ("--tlscert", &self.tlscert),
            ("--tlskey", &self.tlskey),
            ("--tlsdir", &self.tlsdir),
        ];
        if let Some((flag, _)) = daemon.iter().find(|(_, value)| value.as_deref().is_some_and(|v| !v.is_empty())) {
            return Err(Fault::user(format!(
                "{flag} is about a daemon, and buildctl-daemonless.sh builds without one"
            ))
            .hint("`buildctl` is the client of a daemon"));
        }
        match self.log_format.as_str() {
            "" | "text" | "json" => Ok(()),
            other => Err(invalid("--log-format", other, "known are text and json")),
        }
    }
}

/// Parses the arguments after the program's name.
pub fn parse(args: Vec<OsString>, environment: &Environment) -> Result<Action, Fault> {
    let mut words = vec![OsString::from("buildctl-daemonless.sh")];
    let (flags, warning) = flags_of_program(environment, "BUILDCTL", "buildctl");
    words.extend(flags.into_iter().map(OsString::from));
    words.extend(args);
    let mut words = goflags::normalize(&declaration(), words);
    let extra = goflags::take_extra(&declaration(), &STRICT, &mut words);
    let matches = declaration().try_get_matches_from(words);
    let Buildctl { globals, command } = match matches.and_then(|matches| Buildctl::from_arg_matches(&matches)) {
        Err(error) => return explain_buildctl(&error),
        Ok(line) => line,
    };
    globals.check()?;
    let warnings = warning.into_iter().chain(no_effect(&extra)).collect();
    let settings = || settings(&globals, environment, warnings);
    match command {
        Command::DialStdio(_) => Err(Fault::user("`buildctl dial-stdio` connects to a daemon, and there is none here")),
        Command::PruneHistories(_) => Err(no_records("prune-histories")),
        Command::Debug(debug) => match debug {
            Debug::Workers(workers) => workers.action_with(settings()?),
            Debug::Info(info) => {
                no_effect(&extra).iter().for_each(|text| print_warning(&mut std::io::stderr(), text));
                info.action()
            }
            Debug::DumpLlb(dump) => Ok(Action::Simple(Box::new(move || dump.print()))),
            Debug::DumpMetadata(dump) => Ok(Action::client(|environment| async move { Ok(dump.print(&environment)?) })),
            Debug::Histories(_) => Err(no_records("debug histories")),
            Debug::Logs(_) => Err(no_records("debug logs")),
            Debug::Get(_) => Err(no_records("debug get")),
            Debug::Monitor(_) => Err(no_records("debug monitor")),
            Debug::Ctl(_) => Err(no_records("debug ctl")),
        },
        Command::Build(build) => build.action(settings, environment),
        Command::Du(du) => du.action_with(settings()?),
        Command::Prune(prune) => prune.action_with(settings()?),
    }
}

/// Builds without a daemon are not remembered.
fn no_records(command: &str) -> Fault {
    let text = format!("`buildctl {command}` is about records of builds, and builds without a daemon leave none");
    Fault::user(text).hint("`buildctl` asks a daemon for its own")
}

/// The settings that buildkitd's flags amount to.
fn settings(globals: &Globals, environment: &Environment, warnings: Vec<String>) -> Result<Settings, Fault> {
    let (mut flags, other) = flags_of_program(environment, "BUILDKITD", "buildkitd");
    let given = environment.get("BUILDKITD_FLAGS").unwrap_or_default();
    flags.extend(given.split_whitespace().map(str::to_owned));
    let mut settings = BuildkitdFlags::parse_words(flags)?.settings(environment)?;
    settings.warnings.extend(warnings.into_iter().chain(other));
    settings.lock_wait = lock_wait(environment)?;
    if globals.debug {
        settings.log = settings.log.max(Some(tracing::Level::DEBUG));
    }
    settings.log_json |= globals.log_format == "json";
    Ok(settings)
}

/// The words after the program in a variable such as `BUILDKITD="buildkitd --debug"`. The program itself is built
/// in; naming another one earns a warning.
fn flags_of_program(environment: &Environment, variable: &str, known: &str) -> (Vec<String>, Option<String>) {
    let mut words = environment.get(variable).unwrap_or(known).split_whitespace().map(str::to_owned);
    let program = words.next().unwrap_or_else(|| known.to_owned());
    let name = program.rsplit('/').next().unwrap_or(&program);
    let other = name != known && name != "hullworks";
    let warning = other.then(|| format!("{variable}: `{program}` is not started, {known} is built in"));
    (words.filter(|word| word != known).collect(), warning)
}

/// As long as the script would wait for its daemon: try number n is followed by a pause of (100 + 20 n) ms. It gives up
/// after ten tries, since a daemon that does not come up will not come up; a build that is in our way has an end.
fn lock_wait(environment: &Environment) -> Result<Option<std::time::Duration>, Fault> {
    const VARIABLE: &str = "BUILDCTL_CONNECT_RETRIES_MAX";
    let Some(text) = environment.get(VARIABLE) else { return Ok(None) };
    let tries: u64 = text.parse().map_err(|_| invalid(VARIABLE, text, "expected a number"))?;
    let tries = tries.min(10_000);
    Ok(Some(std::time::Duration::from_millis((0..=tries).map(|n| 100 + 20 * n).sum())))
}

/// The declaration, for help texts and their tests.
pub fn declaration() -> clap::Command {
    Buildctl::command().arg(version_flag())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_the_scripts() {
        let wait = |value: &str| lock_wait(&Environment::with(&[("BUILDCTL_CONNECT_RETRIES_MAX", value)]));
        let millis = |value| wait(value).expect("a number").map(|wait| wait.as_millis());
        assert_eq!((millis("10"), millis("0"), millis("")), (Some(2200), Some(100), None));
        assert!(wait("many").is_err());
    }

    #[test]
    fn programs_are_built_in_but_their_flags_count() {
        let flags = |value: &str| {
            let environment = Environment::with(&[("BUILDKITD", value)]);
            let (flags, warning) = flags_of_program(&environment, "BUILDKITD", "buildkitd");
            (flags.join(" "), warning.unwrap_or_default())
        };
        let quiet = |flags: &str| (flags.to_owned(), String::new());
        assert_eq!(flags("buildkitd"), quiet(""));
        assert_eq!(flags("/usr/bin/buildkitd --debug --root=/x"), quiet("--debug --root=/x"));
        assert_eq!(flags("hullworks buildkitd --debug"), quiet("--debug"));
        assert_eq!(flags("other --debug").1, "BUILDKITD: `other` is not started, buildkitd is built in");
    }
}
