//! Tasks of the workspace: `cargo xtask <task>`.
//!
//! Compiled before everything else, on every fresh machine: few dependencies, no cleverness.

#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

mod arrows;
mod binary;
mod check;
mod e2e;
mod elf;
mod image;
mod packages;
mod process;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "\
cargo xtask <task>

  image        build the static binary, and with it the project's container image: target/hullworks.oci.tar
  ci           check, then e2e: all tests
  check        format, lints, arrows between crates, unit tests, generated files
  e2e [ARGS]   the binary from outside; ARGS go to the test program (a name filter, --nocapture)
  long [ARGS]  what takes minutes: a Node and a Rust application, large layers in little memory, ten million entries
  build        build the static binary and print where it is
  bless        renew goldens, snapshots and generated pages, to be read in the diff
  arrows       only compare the arrows between crates with ARCHITECTURE.md

  HULLWORKS_BIN=PATH  e2e, long and image use this binary and build none
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let root = root()?;
    std::env::set_current_dir(&root).with_context(|| format!("enter {}", root.display()))?;
    let (task, rest) = args.split_first().map_or(("--help", args), |(task, rest)| (task.as_str(), rest));
    if !["e2e", "long"].contains(&task) && !rest.is_empty() {
        bail!("`{task}` takes no arguments");
    }
    match task {
        "image" => image::build(&binary::find_or_build()?),
        "ci" => {
            binary::build_beside(|| check::lints().and_then(|()| check::compile_tests()))?;
            check::unit_tests()?;
            e2e::run(&[])
        }
        "check" => check::all(),
        "e2e" => e2e::run(rest),
        "long" => e2e::long(rest),
        "build" => binary::build().map(|path| println!("{}", path.display())),
        "bless" => check::bless(),
        "arrows" => arrows::check(),
        "--help" | "-h" | "help" => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no task `{other}`\n\n{USAGE}"),
    }
}

/// The workspace, wherever we are called.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask lies in the workspace")?.to_owned())
}
