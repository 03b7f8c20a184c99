//! Debian packages that tasks need, installed when they are missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::binary::target_dir;
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

/// Packages of a suite that is newer than the machine's, unpacked for the tests and never installed.
pub const NEWER: &[&str] = &["crane", "docker-buildx"];

/// Where [`NEWER`] comes from.
const NEWER_SUITE: &str = "forky";

/// Debian's keys, whatever the machine trusts besides.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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

/// Unpacks packages of a newer suite below the target directory and answers the directory of their programs. The machine's
/// own packages and sources stay as they are: apt gets directories of its own.
pub fn unpack_newer(wanted: &[&str]) -> Result<PathBuf> {
    let dir = target_dir().join("debian");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
    let missing: Vec<&str> = wanted.iter().copied().filter(|package| !dir.join(package).is_dir()).collect();
    if !missing.is_empty() {
        let apt = PrivateApt::new(dir.join("apt"))?;
        run(&mut apt.get("update"))?;
        run(apt.get("download").args(&missing))?;
        for package in missing {
            let archive = apt.downloaded(package)?;
            // Whole or not there: a folder of that name means that nothing is left to do.
            let unpacked = dir.join(format!("{package}.new"));
            run(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(&unpacked))?;
            fs::rename(&unpacked, dir.join(package)).with_context(|| format!("name {}", unpacked.display()))?;
        }
        fs::remove_dir_all(&apt.dir).with_context(|| format!("remove {}", apt.dir.display()))?;
    }
    let programs = dir.join("bin");
    fs::create_dir_all(&programs).with_context(|| format!("make {}", programs.display()))?;
    for package in wanted {
        link_programs(&dir.join(package), &programs)?;
    }
    Ok(programs)
}

/// Links what a package has to start, docker's plugins included.
fn link_programs(package: &Path, into: &Path) -> Result<()> {
    for place in ["usr/bin", "usr/sbin", "usr/libexec/docker/cli-plugins"] {
        let Ok(entries) = fs::read_dir(package.join(place)) else { continue };
        for entry in entries {
            let program = entry.with_context(|| format!("list {}", package.display()))?.path();
            let link = into.join(program.file_name().context("a program has a name")?);
            if !link.exists() {
                std::os::unix::fs::symlink(&program, &link).with_context(|| format!("link {}", link.display()))?;
            }
        }
    }
    Ok(())
}

/// apt with lists, sources and a cache of its own, on the machine's mirror and network settings.
struct PrivateApt {
    dir: PathBuf,
}

impl PrivateApt {
    fn new(dir: PathBuf) -> Result<PrivateApt> {
        for folder in ["lists/partial", "archives/partial", "sources.list.d"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let source = format!("deb [signed-by={KEYRING}] {} {NEWER_SUITE} main\n", mirror()?);
        fs::write(dir.join("sources.list"), source).with_context(|| format!("write to {}", dir.display()))?;
        Ok(PrivateApt { dir })
    }

    fn get(&self, command: &str) -> Command {
        let dir = self.dir.display();
        let mut apt = Command::new("apt-get");
        for option in [
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            format!("Dir::Etc::SourceParts={dir}/sources.list.d"),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}"),
            // Only the list of packages, and no change of users: our directories may be closed to others.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "APT::Sandbox::User=".to_owned(),
        ] {
            apt.arg("-o").arg(option);
        }
        // Downloads go to the current directory.
        apt.arg(command).current_dir(&self.dir);
        apt
    }

    /// The archive of a package.
    fn downloaded(&self, package: &str) -> Result<PathBuf> {
        let entries = fs::read_dir(&self.dir).with_context(|| format!("list {}", self.dir.display()))?;
        let is_it = |name: &str| name.starts_with(&format!("{package}_")) && name.ends_with(".deb");
        entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_it))
            .with_context(|| format!("apt-get did not download {package}"))
    }
}

/// Debian's mirror that this machine uses.
fn mirror() -> Result<String> {
    let targets = output("apt-get", &["indextargets", "--format", "$(ORIGIN) $(SITE)", "Created-By: Packages"]);
    let targets = targets.unwrap_or_default();
    let sites = targets.lines().filter_map(|line| line.strip_prefix("Debian "));
    let mut sites = sites.filter(|site| !site.contains("security"));
    Ok(sites.next().unwrap_or("http://deb.debian.org/debian").to_owned())
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
