//! Debian packages that tasks need, installed when they are missing.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{output, run};

/// To build the binary.
pub const BUILD: &[&str] = &["gcc", "musl-tools"];

/// To run the tests: base images, a registry, tools that judge what we write, and id maps of ordinary users.
pub const TESTS: &[&str] = &[
    "attr",
    "busybox-static",
    "bzip2",
    "ca-certificates",
    "docker-registry",
    "e2fsprogs",
    "libcap2-bin",
    "mmdebstrap",
    "podman",
    "python3-pip",
    "runc",
    "skopeo",
    "uidmap",
    "umoci",
    "xz-utils",
    "zstd",
];

/// Installs what is missing.
pub fn ensure(wanted: &[&str]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if output("apt-get", &["--version"]).is_none() {
        bail!("these Debian packages are missing, and there is no apt-get: {}", missing.join(" "));
    }
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&missing);
    // Package lists may be old or, in containers, not there at all.
    if run(&mut apt(&install)).is_err() {
        run(&mut apt(&["update"]))?;
        run(&mut apt(&install))?;
    }
    Ok(())
}

fn is_installed(package: &str) -> bool {
    output("dpkg-query", &["--show", "--showformat=${db:Status-Status}", package]).is_some_and(|s| s == "installed")
}

/// `apt-get` as root, without questions, waiting for others that install something.
fn apt(args: &[&str]) -> Command {
    let mut command = if is_root() { Command::new("env") } else { Command::new("sudo") };
    if !is_root() {
        command.arg("env");
    }
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]).args(args);
    command
}

/// Whether we are root.
pub fn is_root() -> bool {
    output("id", &["-u"]).is_some_and(|uid| uid == "0")
}
