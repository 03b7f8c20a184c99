//! `hullworks install DIR`: lays this program out below a directory, as the file tree of a container image.
//!
//! ```text
//! DIR/usr/bin/hullworks                   this program
//! DIR/usr/bin/buildctl                ->  hullworks
//! DIR/usr/bin/buildctl-daemonless.sh  ->  hullworks
//! DIR/usr/bin/buildkitd               ->  hullworks
//! DIR/bin                             ->  usr/bin
//! DIR/etc/{passwd,group,nsswitch.conf}
//! DIR/tmp, DIR/run, DIR/var/lib/buildkit, DIR/home/user/...
//! ```
//!
//! Needs nothing but itself: the project's own Dockerfile runs it in a stage that holds only the binary.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use base::{Fault, Kind};
use clap::Args;

use super::Action;

/// Lay this program out below a directory, as the file tree of a container image.
#[derive(Clone, Debug, Args)]
pub struct Install {
    /// Where to put it; made when it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// The names that the program has beside its own.
const NAMES: [&str; 3] = ["buildctl", "buildctl-daemonless.sh", "buildkitd"];

/// Directory -> mode.
const DIRECTORIES: [(&str, u32); 9] = [
    ("etc", 0o755),
    ("usr/bin", 0o755),
    ("tmp", 0o1777),
    ("run", 0o755),
    ("var/lib/buildkit", 0o711),
    ("home/user/.local/share/buildkit", 0o700),
    ("home/user/.config/buildkit", 0o700),
    ("root", 0o700),
    ("proc", 0o555),
];

/// What belongs to the image's ordinary user.
const USERS: [&str; 6] = [
    "home/user",
    "home/user/.local",
    "home/user/.local/share",
    "home/user/.local/share/buildkit",
    "home/user/.config",
    "home/user/.config/buildkit",
];

/// Files of the system that programs in the image look for.
const FILES: [(&str, &str); 5] = [
    ("etc/passwd", "root:x:0:0:root:/root:/sbin/nologin\nuser:x:1000:1000:user:/home/user:/sbin/nologin\n"),
    ("etc/group", "root:x:0:\nuser:x:1000:\n"),
    ("etc/subuid", "user:100000:65536\n"),
    ("etc/subgid", "user:100000:65536\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
];

impl Install {
    /// The work.
    pub fn action(self) -> Action {
        Action::Simple(Box::new(move || install(&self.dir, Path::new("/proc/self/exe"))))
    }
}

fn install(dir: &Path, program: &Path) -> Result<(), Fault> {
    let root = rustix::process::geteuid().is_root();
    expect_no_system(dir)?;
    for (name, mode) in DIRECTORIES {
        step("make", &dir.join(name), |path| make_dirs(dir, path, mode))?;
    }
    let binary = dir.join("usr/bin/hullworks");
    step("write", &binary, |path| {
        // Over a running program only a new file can be put.
        let temporary = path.with_extension("new");
        fs::copy(program, &temporary)?;
        fs::set_permissions(&temporary, Permissions::from_mode(0o755))?;
        fs::rename(&temporary, path)
    })?;
    for name in NAMES {
        step("link", &dir.join("usr/bin").join(name), |path| link("hullworks", path))?;
    }
    step("link", &dir.join("bin"), |path| link("usr/bin", path))?;
    for (name, content) in FILES {
        step("write", &dir.join(name), |path| fs::write(path, content))?;
    }
    for name in USERS.iter().filter(|_| root) {
        step("give away", &dir.join(name), |path| std::os::unix::fs::lchown(path, Some(1000), Some(1000)))?;
    }
    Ok(())
}

/// Users, groups and name services of a system are not written over: only a tree that we laid out is laid out again.
fn expect_no_system(dir: &Path) -> Result<(), Fault> {
    let bin = dir.join("bin");
    if bin.exists() && !bin.is_symlink() {
        return Err(not_empty(&bin));
    }
    for (name, content) in FILES {
        let path = dir.join(name);
        let is_ours = match fs::read(&path) {
            Ok(there) => there == content.as_bytes(),
            Err(error) => error.kind() == io::ErrorKind::NotFound || error.kind() == io::ErrorKind::NotADirectory,
        };
        if !is_ours {
            return Err(not_empty(&path));
        }
    }
    Ok(())
}

fn not_empty(path: &Path) -> Fault {
    let text = format!("`{}` is that of another system: `install` lays out the file tree of an image", path.display());
    Fault::user(text).hint(
        "name an empty directory; a system gets the program alone: copy it to /usr/local/bin, and link buildkitd, buildctl and \
         buildctl-daemonless.sh to it there",
    )
}

fn step(doing: &str, path: &Path, work: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Fault> {
    work(path).map_err(|error| Fault::because(Kind::Environment, format!("cannot {doing} `{}`", path.display()), error))
}

/// Makes `path` and what is missing between it and `base`; only the last gets `mode`, whatever the umask is.
fn make_dirs(base: &Path, path: &Path, mode: u32) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|p| *p != base && !p.exists()).collect();
    fs::create_dir_all(path)?;
    for dir in missing.into_iter().rev() {
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn link(target: &str, path: &Path) -> io::Result<()> {
    match fs::read_link(path) {
        Ok(old) if old == Path::new(target) => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    symlink(target, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lays_out_a_tree_and_can_do_so_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = dir.path().join("program");
        fs::write(&program, "#!").expect("write");
        let out = dir.path().join("a/out");
        for _ in 0..2 {
            install(&out, &program).expect("laid out");
        }
        let mode = |name: &str| fs::metadata(out.join(name)).expect("there").permissions().mode() & 0o7777;
        assert_eq!(mode("usr/bin/hullworks"), 0o755);
        assert_eq!(mode("tmp"), 0o1777);
        assert_eq!(mode("usr"), 0o755);
        assert_eq!(mode("home/user/.local/share/buildkit"), 0o700);
        assert_eq!(fs::read_link(out.join("bin")).expect("a link"), Path::new("usr/bin"));
        for name in ["buildctl", "buildctl-daemonless.sh", "buildkitd"] {
            assert_eq!(fs::read(out.join("bin").join(name)).expect("the program"), b"#!");
        }
        // A system is left as it is.
        let system = dir.path().join("system");
        fs::create_dir_all(system.join("etc")).expect("made");
        fs::write(system.join("etc/group"), "root:x:0:ann\n").expect("written");
        let error = install(&system, &program).expect_err("a system");
        assert!(error.to_string().ends_with("is that of another system: `install` lays out the file tree of an image"));
        assert_eq!(fs::read_dir(&system).expect("there").count(), 1, "nothing was made");
        let error = install(Path::new("/proc/self/no"), &program).expect_err("not there");
        assert!(error.to_string().starts_with("cannot make `/proc/self/no/etc`: "), "{error}");
    }
}
