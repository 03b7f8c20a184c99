//! The project's own container image, built by the project's own binary from the project's own Dockerfile.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::binary::target_dir;
use crate::process::run;

/// Builds `target/hullworks.oci.tar`. Needs no registry: every stage begins from scratch.
pub fn build(binary: &Path) -> Result<()> {
    let target = target_dir();
    let context = target.join("image-context");
    let archive = target.join("hullworks.oci.tar");
    fs::create_dir_all(&context).with_context(|| format!("make {}", context.display()))?;
    fs::copy(binary, context.join("hullworks")).context("put the binary into the context")?;
    // A state directory of its own: people's caches are none of our business, nor are rights on /var/lib.
    run(Command::new(binary)
        .args(["build", "--progress=plain", "--file=Dockerfile", "--tag=hullworks:latest"])
        .arg(format!("--root={}", target.join("image-state").display()))
        .arg(format!("--output=type=oci,dest={}", archive.display()))
        .arg(&context))?;
    println!("{}", archive.display());
    Ok(())
}
