//! System calls that rustix does not carry or calls unsafe. The crate's `unsafe` blocks live here.
#![expect(unsafe_code, reason = "raw system calls; every block says why it holds")]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

use crate::mount::Depth;
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

/// `madvise(MADV_DONTNEED)` for a piece of the program's own code.
pub(crate) fn unmap_code(code: std::ops::Range<usize>) -> Result<(), Errno> {
    let start = std::ptr::with_exposed_provenance_mut(code.start);
    // SAFETY: code is mapped from the program's file and never written: who runs into it reads the same bytes again.
    check(unsafe { libc::madvise(start, code.len(), libc::MADV_DONTNEED) }.into()).map(drop)
}

/// `unshare(2)`, of anything but open files.
pub(crate) fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    debug_assert!(!flags.contains(UnshareFlags::FILES), "descriptors of other threads would dangle");
    // SAFETY: only CLONE_FILES can break what Rust relies on (descriptors shared between threads).
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// `mount_setattr`; an empty path is the descriptor itself.
pub(crate) fn mount_setattr(dir: BorrowedFd<'_>, path: &Path, set: u64, depth: Depth) -> Result<(), Errno> {
    let path = c_path(path)?;
    let flags = libc::AT_EMPTY_PATH | if depth == Depth::Below { libc::AT_RECURSIVE } else { 0 };
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `path` and `attr` outlive the call, and the size is that of the struct.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Sets the loopback interface of our network namespace up.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which is live.
    check_int(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })
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

/// Has a program get a signal when the thread that starts it ends.
pub(crate) fn end_with_parent(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    let tie = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // It may have ended before that.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec it makes two system calls; it neither allocates nor takes locks.
    unsafe { command.pre_exec(tie) };
}

/// Default actions for all signals, and an empty mask.
pub(crate) fn reset_signals() -> Result<(), Errno> {
    // The kernel's `struct sigaction`: no handler, no flags, no mask. Asked of the kernel itself, because C
    // libraries keep a few signals to themselves, which can be ignored by inheritance all the same.
    let default = [0usize; 4];
    for signal in 1..=64 {
        // SAFETY: the default action is no handler; those that cannot be set (KILL, STOP) are refused.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<usize>(), 8);
        }
    }
    unblock_signals()
}

/// A write beyond the limit for files fails then, in place of ending the process.
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
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

/// Owns a descriptor that is known by its number. The caller says that it is open, and that nobody else owns it.
pub(crate) fn owned_fd(fd: i32) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: as the caller says.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }
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

/// Blocks all signals and returns a descriptor that reads them instead.
pub(crate) fn all_signals_fd() -> Result<OwnedFd, Errno> {
    // SAFETY: all zeroes is a valid signal set, filled at once.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is live and ours.
    check_int(unsafe { libc::sigfillset(&raw mut set) })?;
    // SAFETY: `set` is live, and no old set is asked for.
    check_int(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) })?;
    // SAFETY: `set` is live; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
    check_int(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next signal of a signal descriptor, and whether the kernel (a terminal) sent it.
pub(crate) fn read_signal(fd: &OwnedFd) -> Result<(i32, bool), Errno> {
    let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut bytes))?;
    if read != bytes.len() {
        return Err(Errno::IO);
    }
    let word = |at: usize| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    const SI_KERNEL: i32 = 0x80;
    Ok((
        word(std::mem::offset_of!(libc::signalfd_siginfo, ssi_signo)),
        word(std::mem::offset_of!(libc::signalfd_siginfo, ssi_code)) == SI_KERNEL,
    ))
}

pub(crate) fn kill(pid: Pid, signal: i32) {
    // SAFETY: no memory is involved; a wrong number is refused.
    unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
}

pub(crate) fn raise(signal: i32) {
    // SAFETY: handlers are the default ones by now.
    unsafe { libc::kill(libc::getpid(), signal) };
}

/// Loads a device program and attaches it to a cgroup, in addition to those of groups above.
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, code: &[(u8, u8, i16, i32)]) -> Result<(), Errno> {
    const PROG_LOAD: libc::c_int = 5;
    const PROG_ATTACH: libc::c_int = 8;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    /// `struct bpf_insn`.
    #[repr(C)]
    struct Insn {
        code: u8,
        registers: u8,
        offset: i16,
        immediate: i32,
    }
    /// The beginning of `union bpf_attr` for BPF_PROG_LOAD.
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        version: u32,
        flags: u32,
    }
    /// The beginning of `union bpf_attr` for BPF_PROG_ATTACH.
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let code: Vec<Insn> =
        code.iter().map(|&(code, registers, offset, immediate)| Insn { code, registers, offset, immediate }).collect();
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: `load` and what it points to outlive the call; the size is that of the struct.
    let fd = check(unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let program = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attach = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>()) }).map(drop)
}

pub(crate) fn setrlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit { rlim_cur: soft as _, rlim_max: hard as _ };
    // SAFETY: `limit` is live; an unknown resource is refused.
    check_int(unsafe { libc::setrlimit(resource as _, &raw const limit) })
}

/// mimalloc's options, which its binding knows by number.
pub(crate) mod mimalloc {
    /// `mi_option_purge_delay`: milliseconds until unused memory is given back. The same number in versions 2 and 3.
    pub(crate) const PURGE_DELAY: i32 = 15;
    /// `mi_option_generic_collect`, of version 3: how many slow allocations of a thread lie between two looks at what it holds.
    pub(crate) const COLLECT_EVERY: i32 = 34;
    /// `mi_option_page_full_retain`, of version 3: how many empty pages of each size a thread keeps.
    pub(crate) const RETAIN_PAGES: i32 = 36;

    pub(crate) fn set(option: i32, value: i64) {
        // SAFETY: an atomic store; a number that is no option is ignored.
        unsafe { libmimalloc_sys::mi_option_set(option, value as _) }
    }

    pub(crate) fn collect() {
        // SAFETY: frees what nobody uses; without any allocation before it does nothing.
        unsafe { libmimalloc_sys::mi_collect(true) }
    }

    #[cfg(test)]
    pub(crate) fn get(option: i32) -> i64 {
        // SAFETY: an atomic load; a number that is no option gives 0.
        unsafe { libmimalloc_sys::mi_option_get(option) as _ }
    }
}
