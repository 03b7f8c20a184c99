//! Making processes from a process that has one thread, and waiting for them.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Pid;

use crate::Error;

/// Which side of [`clone`] this is.
#[derive(Debug)]
pub enum Side {
    /// The caller; the new process has this id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Makes a copy of this process in new namespaces (`CLONE_NEW*` bits), and as a child of our own parent with `CLONE_PARENT`.
///
/// Only for processes with a single thread: locks that other threads hold would stay held in the copy.
/// Where the kernel can, the copy starts inside the cgroup (version 2) of `cgroup`, which costs nothing;
/// the answer's flag says whether it does.
pub fn clone(namespaces: i32, cgroup: Option<BorrowedFd<'_>>) -> Result<(Side, bool), Error> {
    let error = |errno| Error::call("create a process in new namespaces", errno);
    if let Some(cgroup) = cgroup {
        match crate::raw::clone3(namespaces, cgroup) {
            Ok(side) => return Ok((side, true)),
            // No clone3 in the kernel or the seccomp profile, or no clone into cgroups, or a threaded cgroup.
            Err(Errno::NOSYS | Errno::INVAL | Errno::TOOBIG | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(error(errno)),
        }
    }
    let side = crate::raw::clone(namespaces).map_err(error)?;
    Ok((side, false))
}

/// Has a program be told to end when the thread that starts it does, however that comes about.
pub fn end_with_parent(command: &mut std::process::Command) {
    crate::raw::end_with_parent(command, rustix::process::Signal::TERM);
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which one.
    pub pid: i32,
    /// Its exit code, where it exited.
    pub code: Option<i32>,
    /// The signal that killed it, where one did.
    pub signal: Option<i32>,
    /// Processor time in user mode, its waited-for children included.
    pub user: Duration,
    /// Processor time in the kernel, likewise.
    pub system: Duration,
    /// The largest resident set of one of them, in bytes.
    pub max_rss: u64,
}

/// A child that has ended, if there is one. Does not wait.
pub fn reap() -> Result<Option<Ended>, Error> {
    match crate::raw::wait4_any_nohang() {
        Ok(ended) => Ok(ended),
        Err(Errno::CHILD) => Ok(None),
        Err(errno) => Err(Error::call("wait for a process", errno)),
    }
}

/// Gives every signal its default action, and lets all through.
pub fn reset_signals() -> Result<(), Error> {
    crate::raw::reset_signals().map_err(|errno| Error::call("reset signals", errno))
}

/// From now on a write beyond the limit for the size of files (`RLIMIT_FSIZE`) is an error like that of a full disk: by default it
/// ends the process without a word.
pub fn fail_large_writes() {
    crate::raw::ignore_file_size_signal();
}

/// Blocks SIGCHLD and returns a descriptor that reads it instead.
pub fn child_signal_fd() -> Result<std::os::fd::OwnedFd, Error> {
    crate::raw::sigchld_fd().map_err(|errno| Error::call("watch child processes", errno))
}

/// Lets all signals through.
pub fn unblock_signals() -> Result<(), Error> {
    crate::raw::unblock_signals().map_err(|errno| Error::call("unblock signals", errno))
}

/// Marks every descriptor from `first` on to be closed by the next program.
pub fn close_on_exec_from(first: u32) -> Result<(), Error> {
    match crate::raw::close_range_cloexec(first) {
        Ok(()) => return Ok(()),
        // Before Linux 5.11 or behind an old seccomp profile: one by one.
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => {}
        Err(errno) => return Err(Error::call("mark descriptors", errno)),
    }
    let error = |error| Error::path("list", "/proc/self/fd", error);
    for entry in std::fs::read_dir("/proc/self/fd").map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        if let Some(fd) = name.to_str().and_then(|name| name.parse::<i32>().ok()).filter(|&fd| fd >= first as i32) {
            // It may be the listing's own, closed by now.
            let _ = crate::raw::set_cloexec(fd);
        }
    }
    Ok(())
}

/// Joins a session keyring of its own, where the system lets us: the one of our caller is none of a step's business.
pub fn own_keyring() {
    let _ = crate::raw::join_session_keyring();
}

/// Sets one of `RLIMIT_*` for this process and what it starts.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<(), Error> {
    crate::raw::setrlimit(resource, soft, hard).map_err(|errno| Error::call("set a resource limit", errno))
}

/// Replaces this process by a program; returns only where that failed.
pub fn exec(program: &CStr, args: &[std::ffi::CString], env: &[std::ffi::CString]) -> Errno {
    crate::raw::execve(program, args, env)
}

/// Ends this process at once: no destructor runs, no buffer is flushed.
pub fn exit_now(code: i32) -> ! {
    crate::raw::exit_now(code)
}

/// Takes over a descriptor that whoever started us left open and told us by number, such as a supervisor's socket. It is
/// not passed on to programs that we start. Fails where nothing is open under that number.
///
/// To be called once per number, and never for what this program opened itself.
pub fn adopt(number: i32) -> std::io::Result<std::os::fd::OwnedFd> {
    crate::raw::set_cloexec(number)?;
    Ok(crate::raw::owned_fd(number))
}
