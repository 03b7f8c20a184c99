//! Starting other programs.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// `cargo` with arguments; the one that started us.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Set for this program by cargo; it would pin others to our manifest.
    command.env_remove("CARGO_MANIFEST_DIR").args(args);
    command
}

/// Says what is run, runs it, fails when it does.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("$ {line}");
    let status = command.status().with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}`: {status}");
    }
    Ok(())
}

/// Runs tests, and lists what they skipped: a test that this machine cannot run is not one that passed.
pub fn run_tests(command: &mut Command) -> Result<()> {
    let list = std::env::current_dir()?.join("target/skipped-tests");
    std::fs::remove_file(&list).or_else(|error| match error.kind() {
        ErrorKind::NotFound => Ok(()),
        _ => Err(error).with_context(|| format!("remove {}", list.display())),
    })?;
    let result = run(command.env("HULLWORKS_SKIPS", &list));
    let skipped: BTreeSet<String> =
        std::fs::read_to_string(&list).unwrap_or_default().lines().map(str::to_owned).collect();
    if !skipped.is_empty() {
        println!("Not run here, in whole or in part ({}):", skipped.len());
        skipped.iter().for_each(|line| println!("  {line}"));
    }
    result
}

/// What a program prints, or none when it fails or is not there.
pub fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| OsStr::to_string_lossy(word).into_owned()).collect::<Vec<_>>().join(" ")
}
