//! Debian packages that tasks need, installed when they are missing.

use std::collections::BTreeSet;
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
    "git",
    "libcap2-bin",
    "mmdebstrap",
    "openssh-client",
    "podman",
    "python3-pip",
    "runc",
    "skopeo",
    "uidmap",
    "umoci",
    "xz-utils",
    "zstd",
];

/// A package of a suite that is newer than the machine's, unpacked for the tests and never installed.
#[derive(Clone, Copy)]
pub struct Newer {
    package: &'static str,
    suite: &'static str,
    /// What the names of its programs end with here.
    suffix: &'static str,
}

/// Tests do without them where they cannot be had.
pub const NEWER: &[Newer] = &[
    // dockerd has BuildKit built in, and starts containerd; about 50 MB to download.
    Newer { package: "containerd", suite: "forky", suffix: "" },
    Newer { package: "crane", suite: "forky", suffix: "" },
    Newer { package: "docker-buildx", suite: "forky", suffix: "" },
    Newer { package: "docker.io", suite: "forky", suffix: "" },
    // Two years older, and what machines of that suite have.
    Newer { package: "docker-buildx", suite: "trixie", suffix: "-trixie" },
];

impl Newer {
    fn name(self) -> String {
        format!("{}{}", self.package, self.suffix)
    }
}

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

/// Unpacks packages of newer suites below the target directory and answers the directory of their programs. The machine's
/// own packages and sources stay as they are: apt gets directories of its own. What cannot be had is said and left out:
/// the tests that want it are skipped.
pub fn unpack_newer(wanted: &[Newer]) -> Result<PathBuf> {
    let dir = target_dir().join("debian");
    let programs = dir.join("bin");
    fs::create_dir_all(&programs).with_context(|| format!("make {}", programs.display()))?;
    let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
    let missing: Vec<Newer> = wanted.iter().copied().filter(|newer| !dir.join(newer.name()).is_dir()).collect();
    let suites: BTreeSet<&str> = missing.iter().map(|newer| newer.suite).collect();
    for suite in suites {
        let of_suite: Vec<Newer> = missing.iter().copied().filter(|newer| newer.suite == suite).collect();
        if let Err(error) = fetch_newer(&dir, suite, &of_suite) {
            let packages: Vec<_> = of_suite.iter().map(|newer| newer.package).collect();
            println!("xtask: goes on without `{}` of Debian {suite}: {error:#}", packages.join("`, `"));
        }
    }
    let programs = dir.join("bin");
    for newer in wanted {
        link_programs(&dir.join(newer.name()), newer.suffix, &programs)?;
    }
    Ok(programs)
}

/// Each package on its own: the suite may have one and not the other.
fn fetch_newer(dir: &Path, suite: &str, packages: &[Newer]) -> Result<()> {
    let apt = PrivateApt::new(dir.join("apt"), suite)?;
    run(&mut apt.get("update"))?;
    let mut failed = Ok(());
    for newer in packages {
        let unpacked = apt.unpack(newer.package, &dir.join(newer.name()));
        failed = failed.and(unpacked.with_context(|| format!("`{}`", newer.package)));
    }
    remove(&apt.dir)?;
    failed
}

/// Links what a package has to start, docker's plugins included.
fn link_programs(package: &Path, suffix: &str, into: &Path) -> Result<()> {
    for place in ["usr/bin", "usr/sbin", "usr/libexec/docker/cli-plugins"] {
        let Ok(entries) = fs::read_dir(package.join(place)) else { continue };
        for entry in entries {
            let program = entry.with_context(|| format!("list {}", package.display()))?.path();
            let mut name = program.file_name().context("a program has a name")?.to_owned();
            name.push(suffix);
            let link = into.join(name);
            // One that leads elsewhere, or nowhere, is of a target directory that was moved.
            if fs::read_link(&link).is_ok_and(|target| target == program) {
                continue;
            }
            remove(&link)?;
            std::os::unix::fs::symlink(&program, &link).with_context(|| format!("link {}", link.display()))?;
        }
    }
    Ok(())
}

/// Removes what an earlier run left, if anything.
fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    removed.with_context(|| format!("remove {}", path.display()))
}

/// apt with lists, sources and a cache of its own, on the machine's mirror and network settings.
struct PrivateApt {
    dir: PathBuf,
}

impl PrivateApt {
    /// From nothing: an earlier run may have ended in the middle of anything.
    fn new(dir: PathBuf, suite: &str) -> Result<PrivateApt> {
        let mirror = mirror()?;
        remove(&dir)?;
        for folder in ["lists/partial", "archives/partial", "sources.list.d"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let source = format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
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

    /// Downloads a package and unpacks it.
    fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        run(self.get("download").arg(package))?;
        // Whole or not there: a folder of that name means that nothing is left to do.
        let unpacked = self.dir.join(package);
        run(Command::new("dpkg-deb").arg("--extract").arg(self.downloaded(package)?).arg(&unpacked))?;
        fs::rename(&unpacked, to).with_context(|| format!("name {}", to.display()))
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

/// Debian's mirror that this machine uses; the common one where it is of another system that has Debian's keys.
fn mirror() -> Result<String> {
    if !Path::new(KEYRING).is_file() {
        bail!("there are no keys of Debian, {KEYRING}");
    }
    let targets = output("apt-get", &["indextargets", "--format", "$(ORIGIN) $(SITE)", "Created-By: Packages"]);
    let targets = targets.context("there is no apt-get")?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_programs_wherever_they_led_before() {
        let dir = std::env::temp_dir().join(format!("hullworks-xtask-{}", std::process::id()));
        let (package, bin) = (dir.join("package"), dir.join("bin"));
        for folder in [&bin, &package.join("usr/bin"), &package.join("usr/libexec/docker/cli-plugins")] {
            fs::create_dir_all(folder).expect("made");
        }
        let programs = ["usr/bin/new", "usr/bin/dangling", "usr/bin/moved", "usr/libexec/docker/cli-plugins/plugin"];
        for program in programs {
            fs::write(package.join(program), "").expect("written");
        }
        std::os::unix::fs::symlink("/nowhere/dangling", bin.join("dangling")).expect("linked");
        std::os::unix::fs::symlink("/dev/null", bin.join("moved")).expect("linked");
        // The second time nothing is left to do.
        for _ in 0..2 {
            link_programs(&package, "", &bin).expect("linked");
            for program in programs.map(|program| package.join(program)) {
                let link = bin.join(program.file_name().expect("it has one"));
                assert_eq!(fs::read_link(&link).expect("a link"), program);
            }
        }
        remove(&dir).expect("removed");
        remove(&dir).expect("not there is fine");
    }
}
