//! A step's first process, from its birth as a copy of init until it becomes the step's program.
//!
//! The order matters: groups before namespaces that show them, mounts while we may mount, the filter while we may
//! install one, the user last.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::{Gid, Uid};
use sys::caps::Caps;
use sys::mount::{Depth, FsView, Restrict, restrict};
use sys::path::Root;
use sys::seccomp::Filter;

use super::mounts::{Builder, setup};
use super::stubs::{Keep, make_directories};
use super::user::{User, is_group_mapped, look_up};
use super::{entry, exec, report, system};
use crate::message::{CgroupView, Failure, Report, Sandbox};

/// What init hands to its copy.
pub(super) struct Inherited {
    pub(super) message: OwnedFd,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) socket: OwnedFd,
    /// Init.
    pub(super) parent: Option<OwnedFd>,
    /// It was born in its control group.
    pub(super) in_cgroup: bool,
}

/// Becomes the step, or reports why not and ends. `namespaces` are those of the container that it enters, if it does.
pub(super) fn run(inherited: Inherited, namespaces: &[OwnedFd], filter: &Filter) -> ! {
    let prepared = match namespaces {
        [] => prepare(&inherited, filter),
        [_, rest @ ..] => entry::prepare(&inherited, rest, filter).map(|(args, env)| (args, env, Vec::new())),
    };
    let failure = match prepared {
        Ok((args, env, namespaces)) => {
            let namespaces: Vec<BorrowedFd<'_>> = namespaces.iter().map(AsFd::as_fd).collect();
            report(inherited.socket.as_fd(), &Report::Started, &namespaces);
            exec::become_program(&args, &env)
        }
        Err(failure) => failure,
    };
    report(inherited.socket.as_fd(), &Report::Failed(failure.shortened()), &[]);
    sys::process::exit_now(1)
}

/// Arguments, environment, and the namespaces that others may enter.
type Ready = (Vec<String>, Vec<String>, Vec<OwnedFd>);

fn prepare(inherited: &Inherited, filter: &Filter) -> Result<Ready, Failure> {
    let os = |what: &'static str| move |errno: Errno| setup(what, std::io::Error::from(errno));
    die_with(inherited.parent.as_ref())?;
    sys::process::unblock_signals().map_err(|error| setup("cannot begin", error))?;
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::empty());

    rather_us_than_the_executor();

    let mut bytes = Vec::new();
    let unread = |error: std::io::Error| setup("cannot read the message", error);
    let message = inherited.message.try_clone().map_err(unread)?;
    std::fs::File::from(message).read_to_end(&mut bytes).map_err(unread)?;
    let (mut sandbox, files) = Sandbox::decode(&bytes).map_err(Failure::Setup)?;

    join_groups(&sandbox, inherited.in_cgroup)?;
    let namespaces = if sandbox.lasting { own_namespaces(&sandbox)? } else { Vec::new() };
    if sandbox.own_network {
        sys::ns::loopback_up().map_err(|error| setup("cannot set the network up", error))?;
    }
    rustix::system::sethostname(sandbox.hostname.as_bytes()).map_err(os("cannot set the host name"))?;
    sys::process::own_keyring();

    let user = build_root(&mut sandbox, &files, inherited)?;
    take_streams(inherited, sandbox.terminal, user.uid)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    set_limits(&sandbox.rlimits)?;
    sys::process::close_on_exec_from(3).map_err(|error| setup("cannot close descriptors", error))?;
    if !sandbox.insecure {
        filter.install().map_err(|error| setup("cannot lock the step in", error))?;
    }
    // As root first; a directory that only the user may enter, on a file system that knows no root, after that.
    let directory = working_directory(&sandbox);
    let entered = enter(directory);
    become_user(&Limits { insecure: sandbox.insecure, single_id: sandbox.single_id }, &user)?;
    inner_end(directory, entered)?;
    // A change of user clears it.
    die_with(inherited.parent.as_ref())?;
    let env = exec::environment(std::mem::take(&mut sandbox.env), &user.home);
    Ok((std::mem::take(&mut sandbox.args), env, namespaces))
}

/// The namespaces that others enter to be where we are, in the order in which they do. They are what they are to be from
/// birth; only what is mounted changes.
fn own_namespaces(sandbox: &Sandbox) -> Result<Vec<OwnedFd>, Failure> {
    let names = [
        Some("pid"),
        Some("ipc"),
        Some("uts"),
        // Nobody but its owner may enter another one, not even who is there already.
        sandbox.own_network.then_some("net"),
        (sandbox.cgroup == CgroupView::Unified).then_some("cgroup"),
        Some("mnt"),
    ];
    let open = |name: &str| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(Path::new("/proc/self/ns").join(name), flags, Mode::empty());
        opened.map_err(|errno| setup(format_args!("cannot open the namespace `{name}`"), std::io::Error::from(errno)))
    };
    names.into_iter().flatten().map(open).collect()
}

/// Standard input, output and errors: a terminal, or pipes. Whoever the process becomes can open them by name; some kinds of
/// files refuse, and then it cannot.
pub(super) fn take_streams(inherited: &Inherited, terminal: bool, uid: u32) -> Result<(), Failure> {
    let failed = |errno: Errno| setup("cannot redirect output", std::io::Error::from(errno));
    let owner = (uid != 0).then(|| Uid::from_raw(uid));
    let give = |fd: &OwnedFd| {
        if owner.is_some() {
            let _ = rustix::fs::fchown(fd, owner, None);
        }
    };
    if terminal {
        let (master, slave) = system::open_terminal()?;
        give(&slave);
        for attach in [rustix::stdio::dup2_stdin, rustix::stdio::dup2_stdout, rustix::stdio::dup2_stderr] {
            attach(slave.as_fd()).map_err(failed)?;
        }
        report(inherited.socket.as_fd(), &Report::Terminal, &[master.as_fd()]);
        return Ok(());
    }
    match &inherited.stdin {
        Some(stdin) => {
            give(stdin);
            rustix::stdio::dup2_stdin(stdin).map_err(failed)?;
        }
        None => system::null_stdin()?,
    }
    give(&inherited.stdout);
    give(&inherited.stderr);
    rustix::stdio::dup2_stdout(&inherited.stdout).map_err(failed)?;
    rustix::stdio::dup2_stderr(&inherited.stderr).map_err(failed)
}

/// The last look at the working directory, as the user: tried again where root could not enter it.
pub(super) fn inner_end(directory: &str, entered: std::io::Result<()>) -> Result<(), Failure> {
    if let Err(error) = entered.or_else(|_| enter(directory)) {
        return Err(Failure::Invalid(format!("cannot use the working directory `{directory}`: {error}")));
    }
    // A path such as /proc/self/fd/7 can lead out by way of a descriptor that we still have (CVE-2024-21626).
    if !rustix::process::getcwd(Vec::new()).is_ok_and(|cwd| cwd.as_bytes().starts_with(b"/")) {
        return Err(Failure::Invalid(format!("the working directory `{directory}` is outside of the root")));
    }
    Ok(())
}

/// Has the kernel kill us when init dies, or ends at once where that has died: then no signal comes any more.
pub(super) fn die_with(init: Option<&OwnedFd>) -> Result<(), Failure> {
    let failed = |errno: Errno| setup("cannot watch our parent", std::io::Error::from(errno));
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    let Some(init) = init else { return Ok(()) };
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut [PollFd::new(init, PollFlags::IN)], Some(&now)) {
        Ok(1..) => sys::process::exit_now(1),
        _ => Ok(()),
    }
}

/// Its part below a mount may be missing still.
pub(super) fn enter(directory: &str) -> std::io::Result<()> {
    match rustix::process::chdir(directory) {
        Err(Errno::NOENT) => {
            std::fs::create_dir_all(directory)?;
            Ok(rustix::process::chdir(directory)?)
        }
        result => Ok(result?),
    }
}

/// How much sooner than the executor a step is killed where memory runs out, in thousandths of it.
const OOM_SCORE: i32 = 250;

/// Where memory runs out, one build fails rather than the daemon with all of them. As good as we can.
pub(super) fn rather_us_than_the_executor() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let Some(now) = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok()) else { return };
    // While nobody may look into us, the file belongs to the machine's root. Nobody sees us yet who may.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable);
    let _ = std::fs::write(FILE, (now + OOM_SCORE).min(1000).to_string());
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

fn working_directory(sandbox: &Sandbox) -> &str {
    if sandbox.cwd.is_empty() { "/" } else { &sandbox.cwd }
}

fn join_groups(sandbox: &Sandbox, joined: bool) -> Result<(), Failure> {
    let unified = sandbox.join_unified.iter().filter(|_| !joined);
    for file in sandbox.join.iter().chain(unified) {
        std::fs::write(file, "0")
            .map_err(|error| setup(format_args!("cannot join the control group of `{}`", file.display()), error))?;
    }
    if sandbox.cgroup == CgroupView::Unified {
        sys::ns::own_cgroup_view().map_err(|error| setup("cannot begin", error))?;
    }
    Ok(())
}

/// Mounts the root and all that belongs into it, and enters it.
fn build_root(sandbox: &mut Sandbox, files: &[&[u8]], inherited: &Inherited) -> Result<User, Failure> {
    let failed = |error: sys::Error| setup("cannot mount the root", error);
    let os = |errno: Errno| setup("cannot mount the root", std::io::Error::from(errno));
    let io = |error: std::io::Error| setup("cannot open the root", error);
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(os)?;
    let place = sandbox.state.join("rootfs");
    FsView::from(sandbox.rootfs.clone()).mount_at(&place).map_err(failed)?;
    if sandbox.no_devices {
        restrict(&place, Restrict::NO_DEVICES, Depth::Top).map_err(failed)?;
    }
    let root = Root::open(&place).map_err(io)?;
    let mut user = look_up(&root, &sandbox.user).map_err(Failure::Invalid)?;
    check_user(&user, sandbox.single_id)?;
    join_more(&mut user, sandbox)?;
    let cwd = working_directory(sandbox);
    let directories = make_directories(&root, cwd, user.uid, user.gid)
        .map_err(|error| setup(format_args!("cannot make the working directory `{cwd}`"), error))?;
    let bare = root.dir().try_clone_to_owned().map_err(io)?;
    let mut builder = Builder {
        root,
        state: sandbox.state.clone(),
        no_devices: sandbox.no_devices,
        single_id: sandbox.single_id,
        keep: if sandbox.remove_stubs_recursive { Keep::Nothing } else { Keep::Parents },
        directories,
        made: Vec::new(),
        files,
    };
    let built = fill_root(&mut builder, sandbox, &user);
    if !builder.made.is_empty() {
        let stubs = std::mem::take(&mut builder.made);
        report(inherited.socket.as_fd(), &Report::Stubs(stubs), &[bare.as_fd()]);
    }
    built?;
    drop((builder, bare));
    if sandbox.readonly_rootfs {
        // What is mounted inside decides for itself.
        restrict(&place, Restrict::READ_ONLY, Depth::Top).map_err(failed)?;
    }
    system::change_root(&sandbox.state)?;
    Ok(user)
}

fn fill_root(builder: &mut Builder<'_>, sandbox: &mut Sandbox, user: &User) -> Result<(), Failure> {
    let mounts = std::mem::take(&mut sandbox.mounts);
    builder.write_files(&mounts)?;
    builder.mount_system(sandbox)?;
    sandbox.devices.iter().try_for_each(|device| builder.add_device(device, user, sandbox.bind_devices))?;
    mounts.into_iter().try_for_each(|mount| builder.mount(mount))?;
    if sandbox.insecure { Ok(()) } else { builder.mask() }
}

/// Has the user be in the groups that devices ask for.
fn join_more(user: &mut User, sandbox: &Sandbox) -> Result<(), Failure> {
    for group in &sandbox.groups {
        if !is_group_mapped(*group) {
            return Err(Failure::Invalid(format!(
                "a device asks for the group {group}, which does not exist here: it is not mapped"
            )));
        }
        if !user.groups.contains(group) {
            user.groups.push(*group);
        }
    }
    Ok(())
}

/// Where only id 0 is mapped, there is only root.
pub(super) fn check_user(user: &User, single_id: bool) -> Result<(), Failure> {
    if single_id && (user.uid, user.gid) != (0, 0) {
        return Err(Failure::Invalid(format!(
            "user {}:{} does not exist here: only id 0 is mapped; more wants a range both in /etc/subuid and in /etc/subgid",
            user.uid, user.gid
        )));
    }
    Ok(())
}

pub(super) fn set_limits(rlimits: &[(u32, u64, u64)]) -> Result<(), Failure> {
    for &(resource, soft, hard) in rlimits {
        sys::process::set_limit(resource, soft, hard)
            .map_err(|error| setup(format_args!("cannot set limit {resource} to {soft}:{hard}"), error))?;
    }
    Ok(())
}

/// How far a process is locked in.
pub(super) struct Limits {
    pub(super) insecure: bool,
    pub(super) single_id: bool,
}

pub(super) fn become_user(limits: &Limits, user: &User) -> Result<(), Failure> {
    let failed = |error: sys::Error| setup("cannot become the step's user", error);
    let os = |errno: Errno| setup("cannot become the step's user", std::io::Error::from(errno));
    let caps = if limits.insecure { Caps::all() } else { sys::caps::SANDBOX };
    sys::caps::limit_bounding_set(caps).map_err(failed)?;
    sys::caps::keep_across_setuid(true).map_err(failed)?;
    let groups: Vec<Gid> = user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        Ok(()) => {}
        // Where a single group is mapped, the list may not be changed (user_namespaces(7)).
        Err(Errno::PERM | Errno::INVAL) if limits.single_id => {}
        Err(errno) => return Err(os(errno)),
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(os)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(os)?;
    sys::caps::keep_across_setuid(false).map_err(failed)?;
    sys::caps::set(caps, limits.insecure).map_err(failed)
}

impl Failure {
    /// A text that fits into a message.
    fn shortened(mut self) -> Failure {
        const MOST: usize = 16 << 10;
        let (Failure::Invalid(text) | Failure::Setup(text) | Failure::Program(text)) = &mut self;
        if text.len() > MOST {
            let end = (0..=MOST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        self
    }
}
