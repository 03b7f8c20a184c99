//! Needs that a test states at its head: `needs!(root, overlay, "skopeo")`. What is missing skips the test aloud.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns from the test, with a reason on stderr, unless all needs are met.
///
/// A need is `root`, `user` (not root), `userns`, `overlay` or the name of a program in quotes.
#[macro_export]
macro_rules! needs {
    ($($need:tt),+ $(,)?) => {
        $(
            if let Err(reason) = $crate::need_one!($need) {
                $crate::need::report_skip(&reason);
                return;
            }
        )+
    };
}

/// One need of [`needs!`].
#[doc(hidden)]
#[macro_export]
macro_rules! need_one {
    (root) => {
        $crate::need::root()
    };
    (user) => {
        $crate::need::user()
    };
    (userns) => {
        $crate::need::userns()
    };
    (overlay) => {
        $crate::need::overlay()
    };
    ($program:literal) => {
        $crate::need::program($program).map(drop)
    };
}

/// Says that a test, or a part of it, does not run; also in the file that `HULLWORKS_SKIPS` names, for a list at the end.
#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
pub fn report_skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("skipped {}: {reason}\n", thread.name().unwrap_or("test"));
    eprint!("{line}");
    if let Some(list) = std::env::var_os("HULLWORKS_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&list);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.unwrap_or_else(|error| panic!("cannot write to {}: {error}", list.display()));
    }
}

/// Needs uid 0.
pub fn root() -> Result<(), String> {
    if effective_uid() == 0 { Ok(()) } else { Err("needs root".to_owned()) }
}

/// Needs any other uid.
pub fn user() -> Result<(), String> {
    if effective_uid() == 0 { Err("needs an ordinary user, not root".to_owned()) } else { Ok(()) }
}

/// Needs user namespaces.
pub fn userns() -> Result<(), String> {
    probe("unshare", &["--user", "--map-root-user", "true"]).map_err(|why| format!("needs user namespaces: {why}"))
}

/// Needs overlayfs in a mount namespace, as root or inside a user namespace.
pub fn overlay() -> Result<(), String> {
    const MOUNT: &str = "mount -t tmpfs none /mnt && cd /mnt && mkdir l u w m && \
        mount -t overlay none -o lowerdir=l,upperdir=u,workdir=w m";
    let flags: &[&str] = if effective_uid() == 0 { &["--mount"] } else { &["--user", "--map-root-user", "--mount"] };
    let args: Vec<&str> = flags.iter().copied().chain(["sh", "-c", MOUNT]).collect();
    probe("unshare", &args).map_err(|why| format!("needs overlayfs: {why}"))
}

/// Needs a program; tells where it is. Looks in `PATH`, where Debian keeps administrators' programs, and among those that
/// `cargo xtask` fetched for tests.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let fetched = std::env::var_os("HULLWORKS_TOOLS").map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra)
        .chain(fetched)
        .map(|dir| dir.join(name))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| format!("needs the program `{name}`"))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// From the owner of our own `/proc` entry: no unsafe call needed.
fn effective_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map_or(u32::MAX, |metadata| metadata.uid())
}

fn probe(name: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program(name)?)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("`{name}` does not start: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
