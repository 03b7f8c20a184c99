//! Which isolation we get, and getting it: done once, at the start of a program, before any thread.
//!
//! Root with the right to mount takes a private mount namespace. Anybody else takes a user namespace with one:
//! `unshare(2)` first; where only that call is filtered (CRI-O's profile), `clone(2)`, after which the caller
//! stays behind as a stand-in that passes signals on and ends as its child does.
//!
//! A namespace of an ordinary user maps the ranges of /etc/subuid and /etc/subgid where `newuidmap` and
//! `newgidmap` are installed and allowed to, else a single id. Maps are written by a process outside the
//! namespace, because the set-uid helpers look at who the caller's parent namespace is.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use crate::Error;
use crate::caps::Caps;
use crate::process::{Side, exit_now};

mod ids;
#[cfg(test)]
mod tests;

pub use ids::in_initial_namespace;
use ids::{identity_map, subordinate};

/// What we got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// How steps are kept apart.
    pub level: Level,
    /// Which ids exist.
    pub ids: Ids,
    /// For the log: what was tried, what was refused, which setting would grant more.
    pub why: String,
    /// We are not in the machine's first user namespace: overlayfs needs `userxattr` there, and device nodes
    /// cannot be made.
    pub nested: bool,
}

/// How steps are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Root that may mount.
    Privileged,
    /// Root of a user namespace of our own.
    Rootless,
    /// Neither mounts nor namespaces.
    Unprivileged,
}

/// Which ids exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Those of our caller.
    Inherited,
    /// 0 and a range.
    Range {
        /// How many there are, 0 included.
        count: u32,
    },
    /// 0 only: files of anybody else cannot be made, nor steps run as anybody else.
    Single,
}

/// Enters the best isolation that the machine grants.
///
/// Call it before any other thread exists. It may not return, where a child goes on in our place.
pub fn enter() -> Result<Isolation, Error> {
    let nested = !in_initial_namespace();
    let caps = crate::caps::effective()?;
    let root = rustix::process::geteuid().is_root();
    let mut why = Vec::new();
    if root && caps.contains(Caps::SYS_ADMIN) {
        match crate::ns::private_mounts() {
            Ok(()) => {
                why.push("root that may mount".to_owned());
                let why = why.join("; ");
                return Ok(Isolation { level: Level::Privileged, ids: Ids::Inherited, why, nested });
            }
            Err(error) => why.push(describe(&error)),
        }
    } else if root {
        why.push("root without CAP_SYS_ADMIN".to_owned());
    }
    match enter_user_namespace(caps, &mut why) {
        Ok(ids) => Ok(Isolation { level: Level::Rootless, ids, why: why.join("; "), nested: true }),
        Err(error) => {
            why.push(describe(&error));
            why.push(hint(&error).to_owned());
            Ok(Isolation { level: Level::Unprivileged, ids: Ids::Inherited, why: why.join("; "), nested })
        }
    }
}

fn describe(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What to change where no user namespace was to be had.
fn hint(error: &Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => "raise the sysctl user.max_user_namespaces",
        Some(libc::EPERM | libc::EACCES) => {
            "the seccomp or AppArmor profile, or the sysctls kernel.unprivileged_userns_clone and \
             kernel.apparmor_restrict_unprivileged_userns, refuse user namespaces"
        }
        _ => "user namespaces may be missing from this kernel",
    }
}

const NAMESPACES: UnshareFlags = UnshareFlags::NEWUSER.union(UnshareFlags::NEWNS);

fn enter_user_namespace(caps: Caps, why: &mut Vec<String>) -> Result<Ids, Error> {
    let writer = MapWriter::start(caps)?;
    match crate::raw::unshare(NAMESPACES) {
        Ok(()) => {}
        Err(Errno::PERM | Errno::NOSYS) => {
            go_on_as_child()?;
            why.push("unshare is refused, but clone is not".to_owned());
        }
        Err(errno) => return Err(Error::call("create a user namespace", errno)),
    }
    let (ids, note) = writer.write_for(rustix::process::getpid())?;
    why.push(note);
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", flags).map_err(|errno| Error::path("make mounts private below", "/", errno))?;
    Ok(ids)
}

/// Goes on in a child that `clone(2)` made in the namespaces; the caller never returns from here.
fn go_on_as_child() -> Result<(), Error> {
    let stand_in = rustix::process::getpid();
    match crate::process::clone(NAMESPACES.bits() as i32, None) {
        Ok((Side::Parent(child), _)) => stand_in_for(child),
        Ok((Side::Child, _)) => {
            // Dies with its stand-in; which may be dead already.
            let error = |errno| Error::call("watch our parent", errno);
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(error)?;
            if rustix::process::getppid() != Some(stand_in) && rustix::process::getppid().is_some() {
                exit_now(1);
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Passes signals on to `child` and ends as it ends.
fn stand_in_for(child: Pid) -> ! {
    let Ok(signals) = crate::raw::all_signals_fd() else { exit_now(1) };
    loop {
        let Ok((number, from_terminal)) = crate::raw::read_signal(&signals) else { exit_now(1) };
        if number == libc::SIGCHLD {
            while let Ok(Some(ended)) = crate::process::reap() {
                if ended.pid == child.as_raw_nonzero().get() {
                    let _ = crate::process::reset_signals();
                    if let Some(signal) = ended.signal {
                        crate::raw::raise(signal);
                    }
                    exit_now(ended.code.unwrap_or(128 + ended.signal.unwrap_or(0)));
                }
            }
        } else if !from_terminal {
            // What the terminal sends goes to the whole process group, the child included.
            crate::raw::kill(child, number);
        }
    }
}

/// A process that stays outside and writes the id maps of the one that went in.
struct MapWriter {
    writer: Pid,
    request: OwnedFd,
    answer: OwnedFd,
}

impl MapWriter {
    fn start(caps: Caps) -> Result<MapWriter, Error> {
        let error = |errno| Error::call("create a pipe", errno);
        let (request_read, request) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(error)?;
        let (answer, answer_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(error)?;
        // The credentials that count are the ones from before.
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        match crate::process::clone(0, None)? {
            (Side::Parent(writer), _) => Ok(MapWriter { writer, request, answer }),
            (Side::Child, _) => {
                drop((request, answer));
                let mut pid = [0; 4];
                if File::from(request_read).read_exact(&mut pid).is_ok() {
                    let reply = match write_maps(i32::from_ne_bytes(pid), uid, gid, caps) {
                        Ok((Ids::Range { count }, note)) => format!("{count} {note}"),
                        Ok((_, note)) => format!("1 {note}"),
                        Err(error) => format!("0 {}", describe(&error)),
                    };
                    let _ = File::from(answer_write).write_all(reply.as_bytes());
                }
                exit_now(0);
            }
        }
    }

    fn write_for(self, pid: Pid) -> Result<(Ids, String), Error> {
        let error = |error| Error::call("talk to the writer of the id maps", error);
        File::from(self.request).write_all(&pid.as_raw_nonzero().get().to_ne_bytes()).map_err(error)?;
        let mut reply = String::new();
        File::from(self.answer).read_to_string(&mut reply).map_err(error)?;
        // Our child, or that of our stand-in.
        let _ = rustix::process::waitpid(Some(self.writer), WaitOptions::empty());
        let (count, note) = reply.split_once(' ').unwrap_or(("0", "it said nothing"));
        match count.parse().unwrap_or(0) {
            0 => Err(Error::Helper { program: "the writer of the id maps".to_owned(), said: note.to_owned() }),
            1 => Ok((Ids::Single, note.to_owned())),
            count => Ok((Ids::Range { count }, note.to_owned())),
        }
    }
}

/// Writes the maps of `pid`, the widest that are allowed, and says which.
fn write_maps(pid: i32, uid: u32, gid: u32, caps: Caps) -> Result<(Ids, String), Error> {
    let mut notes = Vec::new();
    if caps.contains(Caps::SETUID | Caps::SETGID) {
        // A root of few capabilities: all ids that it has, as they are.
        match write_own_ids(pid) {
            Ok(count) => {
                return Ok((Ids::Range { count }, format!("user namespace with the {count} ids that we have")));
            }
            Err(error) => notes.push(describe(&error)),
        }
    }
    match write_ranges(pid, uid, gid) {
        Ok(count) => return Ok((Ids::Range { count }, format!("user namespace with {count} ids of /etc/subuid"))),
        Err(note) => notes.push(note),
    }
    let write = |name: &str, text: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::write(&path, text).map_err(|error| Error::path("write", path, error))
    };
    write("uid_map", &format!("0 {uid} 1"))?;
    // A helper may have written the one and failed at the other.
    if std::fs::read_to_string(format!("/proc/{pid}/gid_map")).is_ok_and(|map| map.trim().is_empty()) {
        // The kernel wants this before an ordinary user may map a group (CVE-2014-8989).
        write("setgroups", "deny")?;
        write("gid_map", &format!("0 {gid} 1"))?;
    }
    Ok((Ids::Single, format!("user namespace with a single id ({})", notes.join("; "))))
}

fn write_own_ids(pid: i32) -> Result<u32, Error> {
    let mut count = u32::MAX;
    for name in ["gid_map", "uid_map"] {
        let map = identity_map(Path::new("/proc/self").join(name).as_path())?;
        count = count.min(map.iter().map(|range| range.start.saturating_add(range.count)).max().unwrap_or(0));
        let text: String = map.iter().map(|range| format!("{0} {0} {1}\n", range.start, range.count)).collect();
        let path = format!("/proc/{pid}/{name}");
        std::fs::write(&path, text).map_err(|error| Error::path("write", path, error))?;
    }
    Ok(count)
}

/// By the set-uid helpers. The error says why not, for the log; nothing has been written then.
fn write_ranges(pid: i32, uid: u32, gid: u32) -> Result<u32, String> {
    let name = user_name(uid);
    let mut count = u32::MAX;
    let mut commands = Vec::new();
    let mut missing = Vec::new();
    for (program, file, own) in [("newgidmap", "/etc/subgid", gid), ("newuidmap", "/etc/subuid", uid)] {
        let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read `{file}`: {error}"))?;
        let ranges = subordinate(&text, uid, name.as_deref());
        if ranges.is_empty() {
            missing.push(format!("`{file}` has no range for us"));
            continue;
        }
        let mut command = Command::new(program);
        command.args([pid.to_string(), "0".to_owned(), own.to_string(), "1".to_owned()]);
        let mut next = 1;
        for range in ranges {
            command.args([next, range.start, range.count].map(|number| number.to_string()));
            next += range.count;
        }
        count = count.min(next);
        commands.push((program, command));
    }
    if !missing.is_empty() {
        return Err(missing.join(" and "));
    }
    for (program, mut command) in commands {
        let output = command.output().map_err(|error| format!("cannot run `{program}`: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("`{program}` failed: {}", said.trim()));
        }
    }
    Ok(count)
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = passwd.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}
