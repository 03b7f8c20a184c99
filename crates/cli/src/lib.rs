//! The command line: one file per command.
//!
//! The only room that prints, and, with the other programs, the only one that reads the environment. A command
//! line goes one way: [`program`] (which program is this?) -> [`command`] (what was typed) -> [`spec`] (what is
//! meant) -> [`daemonless`] (engine and client in one process) -> [`display`] and [`fault`] (what people see).

pub mod command;
pub mod connect;
mod credentials;
pub mod daemonless;
pub mod display;
pub mod environment;
pub mod fault;
pub mod log;
pub mod metadata;
pub mod program;
pub mod spec;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use base::{Fault, Kind};
use command::Action;
use daemonless::run::Failure;
use environment::Environment;
use program::Program;
use sys::userns::Isolation;

/// What `--version` prints after the name: package, version and revision, as upstream's programs do.
pub const VERSION: &str =
    concat!("github.com/hullworks/hullworks v", env!("CARGO_PKG_VERSION"), " ", env!("HULLWORKS_REVISION"));

/// What a command that is not there ends with.
const UNKNOWN_COMMAND: u8 = 3;

/// Runs the program and answers its exit code, upstream's: 0 on success, 1 on any failure, but for [`UNKNOWN_COMMAND`].
pub fn main() -> ExitCode {
    if executor::init::is_requested() {
        executor::init::main();
    }
    sys::process::fail_large_writes();
    match run(std::env::args_os().collect()) {
        Ok(code) => code,
        Err(failure) => {
            complain(&failure);
            ExitCode::FAILURE
        }
    }
}

fn complain(Failure { fault, steps }: &Failure) {
    // With standard error closed the exit code has to do.
    let _ = fault::print(&mut std::io::stderr().lock(), fault, steps);
}

fn run(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let mut environment = Environment::of_process();
    let (program, args) = Program::choose(args);
    let action = match program {
        Program::Hullworks => command::hullworks::parse(args, &environment)?,
        Program::BuildctlDaemonless => command::buildctl::parse(args, &environment)?,
        Program::Buildkitd => command::buildkitd::parse(args, &environment)?,
        Program::Buildctl => command::buildctl_client::parse(args)?,
        Program::Executor => return Err(comes_later(program).into()),
    };
    match action {
        Action::Print(text) => print(&text)?,
        Action::Unknown(fault) => {
            complain(&fault.into());
            return Ok(ExitCode::from(UNKNOWN_COMMAND));
        }
        Action::Simple(work) => work()?,
        Action::Client(work) => {
            let runtime = runtime()?;
            let result = runtime.block_on(work(environment));
            runtime.shutdown_background();
            result?;
        }
        Action::Engine(work) => {
            environment.isolation = Some(isolate()?);
            let runtime = runtime()?;
            let result = runtime.block_on(work(environment));
            // The engine is closed; a thread that is stuck in a system call must not keep us.
            runtime.shutdown_background();
            result?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Threads for what waits for the disk end soon after: each keeps memory for itself as long as it lives.
fn runtime() -> Result<tokio::runtime::Runtime, Fault> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().thread_keep_alive(Duration::from_millis(500)).build();
    runtime.map_err(|error| Fault::because(Kind::Environment, "cannot start threads", error))
}

fn comes_later(program: Program) -> Fault {
    Fault::user(format!("`{}` comes with a later release", program.name())).hint("use `hullworks build` for now")
}

/// Enters the best isolation that the machine grants. The one call, before any thread exists.
fn isolate() -> Result<Isolation, Fault> {
    sys::userns::enter().map_err(|error| Fault::because(Kind::Environment, "cannot set up isolation", error))
}

/// Writes to standard output. A reader that has gone away is no failure.
pub(crate) fn print(text: &str) -> Result<(), Fault> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(command::stdout_failed(error)),
        _ => Ok(()),
    }
}

/// Writes one line to standard output.
pub(crate) fn print_line(text: &str) -> Result<(), Fault> {
    print(&format!("{text}\n"))
}
