//! The shipped binary: release profile, static against musl.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::process::{cargo, output, run};
use crate::{elf, packages};

/// The binary that `HULLWORKS_BIN` names, else a new one.
pub fn find_or_build() -> Result<PathBuf> {
    match std::env::var_os("HULLWORKS_BIN") {
        Some(path) => {
            let path = PathBuf::from(path);
            path.canonicalize().with_context(|| format!("HULLWORKS_BIN: {}", path.display()))
        }
        None => build(),
    }
}

/// Builds the binary, with the Rust target and the C compiler for musl fetched where they are missing.
pub fn build() -> Result<PathBuf> {
    let target = prepare()?;
    run(&mut cargo_build(&target))?;
    let built = target_dir().join(&target).join("release/hullworks");
    let bytes = std::fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    elf::require_static(&bytes).with_context(|| format!("{} is not static", built.display()))?;
    built.canonicalize().with_context(|| format!("find {}", built.display()))
}

/// Runs `checks` while the binary is built, which for minutes takes one core only. Whoever wants it then finds it built, or is
/// told why it cannot be.
pub fn build_beside(checks: impl FnOnce() -> Result<()>) -> Result<()> {
    if std::env::var_os("HULLWORKS_BIN").is_some() {
        return checks();
    }
    let mut build = cargo_build(&prepare()?);
    let build = build.arg("--quiet").stderr(Stdio::null()).spawn();
    let mut build = build.context("start `cargo build`")?;
    let checked = checks();
    if checked.is_err() {
        // Compilers that run finish what they do. What the checks found is what counts.
        _ = build.kill();
    }
    let waited = build.wait().context("wait for `cargo build`");
    checked.and(waited.map(drop))
}

/// What building needs beside cargo; answers the target.
fn prepare() -> Result<String> {
    packages::ensure(packages::BUILD)?;
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    ensure_target(&target)?;
    Ok(target)
}

fn cargo_build(target: &str) -> Command {
    let mut cargo = cargo(&["build", "--release", "--locked", "--package", "hullworks", "--bin", "hullworks"]);
    cargo.args(["--target", target]);
    cargo
}

/// Where cargo builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

fn ensure_target(target: &str) -> Result<()> {
    let libraries = output("rustc", &["--print", "target-libdir", "--target", target]);
    if libraries.is_some_and(|dir| Path::new(&dir).is_dir()) {
        return Ok(());
    }
    run(Command::new("rustup").args(["target", "add", target]))
        .with_context(|| format!("Rust's target {target} is missing"))
}
