//! Everything that needs no built binary, and the renewal of what is generated.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{cargo, output, run, run_tests};
use crate::{arrows, packages};

/// The cheap ones first.
pub fn all() -> Result<()> {
    lints()?;
    unit_tests()
}

/// What needs compilers only.
pub fn lints() -> Result<()> {
    packages::ensure(packages::TESTS)?;
    ensure_component("fmt", "rustfmt")?;
    ensure_component("clippy", "clippy")?;
    arrows::check()?;
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    // Always the workspace: a package alone has other features of what it uses, and all of that is compiled once more.
    run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    run(&mut cargo(&["clippy", "--workspace", "--test", "e2e", "--locked", "--", "-D", "warnings"]))
}

/// Compiles all tests, so that they run without anything beside them.
pub fn compile_tests() -> Result<()> {
    run(&mut cargo(&["test", "--workspace", "--tests", "--locked", "--no-run"]))?;
    run(&mut cargo(&["test", "--workspace", "--test", "e2e", "--locked", "--no-run"]))
}

/// They meet the same tools that the end-to-end tests do.
pub fn unit_tests() -> Result<()> {
    packages::ensure(packages::TESTS)?;
    let newer = packages::unpack_newer(packages::NEWER)?;
    // No example in the docs is a test, and rustdoc would look for one in each crate.
    run_tests(cargo(&["test", "--workspace", "--tests", "--locked"]).env("HULLWORKS_TOOLS", newer))
}

/// Goldens are written by the tests that read them: `BLESS` for our own, `INSTA_UPDATE` for snapshots.
pub fn bless() -> Result<()> {
    run(cargo(&["test", "--workspace", "--no-fail-fast"]).env("BLESS", "1").env("INSTA_UPDATE", "always"))
}

/// Not every installation of Rust has them.
fn ensure_component(command: &str, component: &str) -> Result<()> {
    if output("cargo", &[command, "--version"]).is_some() {
        return Ok(());
    }
    run(Command::new("rustup").args(["component", "add", component]))
        .with_context(|| format!("Rust's `{component}` is missing"))
}
