//! System calls that rustix does not carry or calls unsafe. The crate's `unsafe` blocks live here.
#![expect(unsafe_code, reason = "raw system calls; every block says why it holds")]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

use crate::process::{Ended, Side};

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn c_path(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)
}

/// `unshare(2)`, of anything but open files.
pub(crate) fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    debug_assert!(!flags.contains(UnshareFlags::FILES), "descriptors of other threads would dangle");
    // SAFETY: only CLONE_FILES can break what Rust relies on (descriptors shared between threads).
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// `mount_setattr(AT_RECURSIVE, MOUNT_ATTR_RDONLY)`.
pub(crate) fn mount_setattr_read_only(target: &Path) -> Result<(), Errno> {
    let path = c_path(target)?;
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `path` and `attr` outlive the call, and the size is that of the struct.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// `clone(2)` without a stack of its own: like fork, plus namespaces.
pub(crate) fn clone(namespaces: i32) -> Result<Side, Errno> {
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    #[cfg(target_arch = "s390x")]
    compile_error!("the arguments of clone are in another order here");
    // SAFETY: no memory is shared (no CLONE_VM), so the child goes on with a copy of this stack; the caller
    // promises a single thread.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    Ok(side(pid))
}

/// `clone3(2)` into a cgroup.
pub(crate) fn clone3(namespaces: i32, cgroup: BorrowedFd<'_>) -> Result<Side, Errno> {
    let args = CloneArgs {
        flags: namespaces as u64 | CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: as `clone`; `args` outlives the call and the size is that of the struct.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    Ok(side(pid))
}

fn side(pid: libc::c_long) -> Side {
    match Pid::from_raw(pid as i32) {
        Some(pid) => Side::Parent(pid),
        None => Side::Child,
    }
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `wait4(-1, WNOHANG)`.
pub(crate) fn wait4_any_nohang() -> Result<Option<Ended>, Errno> {
    let mut status = 0;
    // SAFETY: all zeroes is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live, exclusive memory of the right type.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
    if pid < 0 {
        return Err(last_errno());
    }
    if pid == 0 {
        return Ok(None);
    }
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Ok(Some(Ended {
        pid,
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        user: time(usage.ru_utime),
        system: time(usage.ru_stime),
        max_rss: usage.ru_maxrss as u64 * 1024,
    }))
}

/// Default actions for all signals, and an empty mask.
pub(crate) fn reset_signals() -> Result<(), Errno> {
    for signal in 1..=64 {
        // SAFETY: default is no handler of ours; those that cannot be set (KILL, STOP, libc's own) say so.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    unblock_signals()
}

pub(crate) fn unblock_signals() -> Result<(), Errno> {
    // SAFETY: all zeroes is a valid (empty) signal set.
    let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `empty` is live, and no old set is asked for.
    check_int(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut()) })
}

pub(crate) fn sigchld_fd() -> Result<OwnedFd, Errno> {
    // SAFETY: all zeroes is a valid (empty) signal set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is live and ours.
    check_int(unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) })?;
    // SAFETY: `set` is live, and no old set is asked for.
    check_int(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) })?;
    // SAFETY: `set` is live; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    check_int(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check_int(result: libc::c_int) -> Result<(), Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

pub(crate) fn close_range_cloexec(first: u32) -> Result<(), Errno> {
    // SAFETY: descriptors are only marked, none is closed under its owner.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

pub(crate) fn set_cloexec(fd: i32) -> Result<(), Errno> {
    // SAFETY: the descriptor is only marked; a number that is not open is refused.
    check_int(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })
}

pub(crate) fn join_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0) }).map(drop)
}

pub(crate) fn execve(program: &CStr, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: strings and arrays outlive the call, and both arrays end with null.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    last_errno()
}

pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing follows that could see broken state.
    unsafe { libc::_exit(code) }
}

/// `seccomp(SECCOMP_SET_MODE_FILTER)`.
pub(crate) fn seccomp_set_filter(code: &[(u16, u8, u8, u32)], flags: u32) -> Result<(), Errno> {
    let code: Vec<libc::sock_filter> =
        code.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let len = u16::try_from(code.len()).map_err(|_| Errno::TOOBIG)?;
    let program = libc::sock_fprog { len, filter: code.as_ptr().cast_mut() };
    // SAFETY: `program` and the instructions it points to outlive the call, which only reads them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
        .map(drop)
}
