//! One step from request to exit: the message, the pipes, the reports, the end. Shared by the levels.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::ByteSize;
use base::progress::Stream;
use rustix::fs::{MemfdFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use sys::cgroup::{Freezer, Group};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::net::unix::pipe::{self, Receiver};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::attached::{Feeding, Terminal};
use crate::helper::Helper;
use crate::message::{CgroupView, Entry, Failure, Mount, Place, Report, Sandbox, Source, Start, Stub, Wish};
use crate::{
    Attached, Control, DEFAULT_HOSTNAME, Error, Exit, Inside, MountSource, Network, OutOfMemory, Process, Security,
    Step, StepIo, Usage, hosts, init, limits,
};

/// The size of /dev/shm where nobody says.
const SHM_SIZE: u64 = 64 << 20;
/// The exit code of a program that cannot be run, as BuildKit's runtime has it.
const NOT_STARTED: i32 = 1;
/// As much of a pipe as it holds.
const PIPE: usize = 64 << 10;

/// What a level decides about a step.
pub(crate) struct Surroundings {
    pub(crate) state: PathBuf,
    pub(crate) group: Option<Group>,
    /// `cgroup.procs` files to join beside those of `group`.
    pub(crate) join: Vec<PathBuf>,
    pub(crate) cgroup: CgroupView,
    pub(crate) no_devices: bool,
    pub(crate) bind_devices: bool,
    pub(crate) single_id: bool,
}

/// What is run.
pub(crate) enum What {
    /// A step, or the first process of a container.
    Step(Box<Step>),
    /// One more process of a container.
    Entry(Inside, Process),
}

/// Runs a process; returns when nothing of it is left.
pub(crate) async fn run(
    helper: Arc<Helper>,
    what: What,
    io: StepIo,
    attached: Attached,
    surroundings: Surroundings,
    cancel: CancellationToken,
) -> Result<Exit, Error> {
    // The clean-up goes on where the caller loses interest: in a task of its own, that is told so.
    let interest = cancel.child_token();
    let task = tokio::spawn(run_to_the_end(helper, what, io, attached, surroundings, interest.clone()));
    let _guard = interest.drop_guard();
    task.await.unwrap_or_else(|error| Err(Error::Setup(error.to_string())))
}

async fn run_to_the_end(
    helper: Arc<Helper>,
    what: What,
    io: StepIo,
    mut attached: Attached,
    surroundings: Surroundings,
    cancel: CancellationToken,
) -> Result<Exit, Error> {
    if cancel.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let mut surroundings = surroundings;
    let group = surroundings.group.take();
    let freeing = group.as_ref().and_then(Group::freezer).map(|freezer| tokio::spawn(free_the_killed(freezer)));
    let mut inside = Inside { groups: group.as_ref().map(Group::procs).unwrap_or_default(), ..Inside::default() };
    if let What::Step(step) = &what {
        inside.security = step.security;
    }
    let started = start(&helper, what, &mut attached, &surroundings, group.as_ref());
    let outcome = match started {
        Ok(talk) => talk.listen(io, attached, inside, cancel).await,
        Err(error) => Err(error),
    };
    freeing.iter().for_each(tokio::task::JoinHandle::abort);
    let out_of_memory = match group {
        Some(group) => {
            let limit = group.memory_limit().map(ByteSize);
            let kills = group.oom_kills();
            // Removing a group may have to wait for the kernel.
            let _ = tokio::task::spawn_blocking(move || drop(group)).await;
            (kills > 0).then_some(OutOfMemory { limit })
        }
        None => None,
    };
    outcome.map(|exit| Exit { out_of_memory: exit.out_of_memory.or(out_of_memory), ..exit })
}

/// Sees to it that a step ends that has frozen processes of its own, whether it is killed or its first process has ended,
/// with which the kernel kills the others.
async fn free_the_killed(freezer: Freezer) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let freezer = freezer.clone();
        let _ = tokio::task::spawn_blocking(move || freezer.free_the_killed()).await;
    }
}

/// Our ends of a step that init has been asked to start.
struct Talk {
    /// A sequenced one, in truth; this type receives from any.
    socket: UnixDatagram,
    stdout: Receiver,
    stderr: Receiver,
    _feeding: Option<Feeding>,
}

fn start(
    helper: &Helper,
    what: What,
    attached: &mut Attached,
    surroundings: &Surroundings,
    group: Option<&Group>,
) -> Result<Talk, Error> {
    let os = |errno: Errno| Error::Helper(errno.into());
    let (place, message, inside) = match what {
        What::Step(step) => {
            let namespaces = libc::CLONE_NEWNS
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUTS
                | if step.network == Network::None { libc::CLONE_NEWNET } else { 0 };
            (Place::New(namespaces), message(*step, attached, surroundings, group)?, Inside::default())
        }
        What::Entry(inside, process) => (Place::Container, entry(process, attached, surroundings)?, inside),
    };
    let memory = rustix::fs::memfd_create("step", MemfdFlags::CLOEXEC).map_err(os)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(&message).map_err(Error::Helper)?;
    rustix::fs::seek(&file, SeekFrom::Start(0)).map_err(os)?;
    let (stdout, their_stdout) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(os)?;
    let (stderr, their_stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(os)?;
    let flags = SocketFlags::CLOEXEC;
    let (socket, their_socket) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(os)?;
    rustix::io::ioctl_fionbio(&socket, true).map_err(os)?;
    let cgroup = group.and_then(Group::unified).and_then(|dir| {
        rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
    });
    // A terminal is its own input.
    let stdin = match &attached.stdin {
        Some(_) if !attached.terminal => Some(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(os)?),
        _ => None,
    };
    let mut fds: Vec<BorrowedFd<'_>> =
        vec![file.as_fd(), their_stdout.as_fd(), their_stderr.as_fd(), their_socket.as_fd()];
    fds.extend(stdin.as_ref().map(|(theirs, _)| theirs.as_fd()));
    fds.extend(cgroup.as_ref().map(AsFd::as_fd));
    fds.extend(inside.namespaces.iter().map(AsFd::as_fd));
    helper.send(Start { place, stdin: stdin.is_some() }, &fds)?;
    let feeding = match (stdin, attached.stdin.take_if(|_| !attached.terminal)) {
        (Some((_, pipe)), Some(bytes)) => {
            Some(Feeding::pipe(bytes, pipe::Sender::from_owned_fd(pipe).map_err(Error::Helper)?))
        }
        _ => None,
    };
    Ok(Talk {
        _feeding: feeding,
        socket: UnixDatagram::from_std(socket.into()).map_err(Error::Helper)?,
        stdout: Receiver::from_owned_fd(stdout).map_err(Error::Helper)?,
        stderr: Receiver::from_owned_fd(stderr).map_err(Error::Helper)?,
    })
}

/// Describes the step to its own process.
fn message(
    step: Step,
    attached: &Attached,
    surroundings: &Surroundings,
    group: Option<&Group>,
) -> Result<Vec<u8>, Error> {
    if step.args.is_empty() {
        return Err(Error::Invalid("a step needs a program to run".to_owned()));
    }
    let hostname = step.hostname.filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT_HOSTNAME.to_owned());
    let resolv_conf = hosts::resolv_conf(step.network, &step.resolver);
    let mut files = vec![resolv_conf.into_bytes(), hosts::hosts(&hostname, &step.extra_hosts).into_bytes()];
    let system_file = |target: &str, index| Mount {
        target: target.to_owned(),
        source: Source::File { index, uid: 0, gid: 0, mode: 0o644 },
    };
    let mut mounts = vec![system_file("/etc/resolv.conf", 0), system_file("/etc/hosts", 1)];
    for mount in step.mounts {
        let source = match mount.source {
            MountSource::View { view, subpath, read_only } => Source::View { view: view.into(), subpath, read_only },
            MountSource::Bind { path, restrict } => Source::Bind { path, restrict: restrict.bits() },
            MountSource::Tmpfs { size } => Source::Tmpfs { size: size.map(|size| size.0) },
            MountSource::Secret { data, uid, gid, mode } => {
                files.push(data.expose().to_vec());
                Source::File { index: files.len() - 1, uid, gid, mode }
            }
        };
        mounts.push(Mount { target: mount.target, source });
    }
    let procs = group.map(Group::procs).unwrap_or_default();
    let unified = group.and_then(Group::unified).map(|dir| dir.join("cgroup.procs"));
    let (born, joined): (Vec<PathBuf>, Vec<PathBuf>) =
        procs.into_iter().partition(|file| Some(file) == unified.as_ref());
    let sandbox = Sandbox {
        state: surroundings.state.clone(),
        rootfs: step.rootfs.into(),
        readonly_rootfs: step.readonly_rootfs,
        mounts,
        devices: step.devices,
        args: step.args,
        env: step.env,
        cwd: step.cwd,
        user: step.user,
        groups: step.groups,
        hostname,
        own_network: step.network == Network::None,
        insecure: step.security == Security::Insecure,
        rlimits: step.ulimits.iter().map(limits::number).collect::<Result<_, _>>()?,
        shm_size: step.shm_size.map_or(SHM_SIZE, |size| size.0),
        join: surroundings.join.iter().cloned().chain(joined).collect(),
        join_unified: born.into_iter().next(),
        cgroup: surroundings.cgroup.clone(),
        no_devices: surroundings.no_devices,
        bind_devices: surroundings.bind_devices,
        single_id: surroundings.single_id,
        remove_stubs_recursive: step.remove_mount_stubs_recursive,
        terminal: attached.terminal,
        lasting: attached.started.is_some(),
        file_sizes: files.iter().map(Vec::len).collect(),
    };
    sandbox.encode(&files).map_err(|error| Error::Setup(error.to_string()))
}

/// Describes one more process of a container to itself.
fn entry(process: Process, attached: &Attached, surroundings: &Surroundings) -> Result<Vec<u8>, Error> {
    if process.args.is_empty() {
        return Err(Error::Invalid("a process needs a program to run".to_owned()));
    }
    let entry = Entry {
        args: process.args,
        env: process.env,
        cwd: process.cwd,
        user: process.user,
        insecure: process.security == Security::Insecure,
        rlimits: process.ulimits.iter().map(limits::number).collect::<Result<_, _>>()?,
        join: surroundings.join.clone(),
        terminal: attached.terminal,
        single_id: surroundings.single_id,
    };
    serde_json::to_vec(&entry).map_err(|error| Error::Setup(error.to_string()))
}

impl Talk {
    /// Passes output on until the step is gone, then cleans up after it.
    async fn listen(
        mut self,
        io: StepIo,
        attached: Attached,
        inside: Inside,
        cancel: CancellationToken,
    ) -> Result<Exit, Error> {
        let Attached { mut stdin, mut control, mut started, .. } = attached;
        let mut terminal: Option<Terminal> = None;
        let mut size = None;
        let mut feeding: Option<Option<Feeding>> = None;
        let mut terminal_buffer = vec![0; PIPE];
        let (mut out_buffer, mut err_buffer) = (vec![0; PIPE], vec![0; PIPE]);
        let (mut out_open, mut err_open, mut cancelled) = (true, true, false);
        let mut stubs: Option<(OwnedFd, Vec<Stub>)> = None;
        let mut failure: Option<Failure> = None;
        let ended = loop {
            tokio::select! {
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    // Where this fails, init is gone, and the step with it.
                    let _ = rustix::net::send(&self.socket, &Wish::Kill.encode(), SendFlags::NOSIGNAL);
                }
                wanted = next(&mut control) => match wanted {
                    Control::Signal(number) => {
                        let _ = rustix::net::send(&self.socket, &Wish::Signal(number).encode(), SendFlags::NOSIGNAL);
                    }
                    Control::Resize { rows, columns } => {
                        size = Some((rows, columns));
                        terminal.iter().for_each(|terminal| terminal.resize(rows, columns));
                    }
                },
                read = read_terminal(&io, &terminal, &mut terminal_buffer) => match read {
                    Ok(0) | Err(_) => terminal = None,
                    Ok(n) => (io.output)(Stream::Stdout, &terminal_buffer[..n]),
                },
                read = read(&io, &mut self.stdout, &mut out_buffer), if out_open => {
                    match read {
                        Ok(0) | Err(_) => out_open = false,
                        Ok(n) => (io.output)(Stream::Stdout, &out_buffer[..n]),
                    }
                }
                read = read(&io, &mut self.stderr, &mut err_buffer), if err_open => {
                    match read {
                        Ok(0) | Err(_) => err_open = false,
                        Ok(n) => (io.output)(Stream::Stderr, &err_buffer[..n]),
                    }
                }
                report = receive(&self.socket) => match report {
                    Ok((Some(Report::Stubs(made)), fds)) => stubs = fds.into_iter().next().map(|fd| (fd, made)),
                    Ok((Some(Report::Terminal), fds)) => {
                        let opened = fds.into_iter().next().map(|master| open_terminal(master, size, stdin.take()));
                        match opened.transpose() {
                            Ok(opened) => (terminal, feeding) = opened.unzip(),
                            Err(error) => {
                                failure = Some(Failure::Setup(format!("cannot use its terminal: {error}")));
                                let _ = rustix::net::send(&self.socket, &Wish::Kill.encode(), SendFlags::NOSIGNAL);
                            }
                        }
                    }
                    Ok((Some(Report::Started), fds)) => {
                        if let Some(started) = started.take() {
                            let _ = started.send(Inside { namespaces: Arc::new(fds), ..inside.clone() });
                        }
                    }
                    Ok((Some(Report::Failed(why)), _)) => failure = Some(why),
                    Ok((Some(Report::NotStarted(why)), _)) => break Err(Error::Setup(why)),
                    Ok((Some(Report::Ended { code, signal, user_micros, system_micros, max_rss }), _)) => {
                        break Ok(Exit {
                            code: code.unwrap_or_else(|| 128 + signal.unwrap_or(0)),
                            signal,
                            started: true,
                            out_of_memory: None,
                            usage: Usage {
                                user: Duration::from_micros(user_micros),
                                system: Duration::from_micros(system_micros),
                                max_rss: ByteSize(max_rss),
                            },
                        });
                    }
                    Ok((None, _)) => break Err(Error::Helper(std::io::Error::other("it died while a step ran"))),
                    Err(error) => break Err(Error::Helper(error)),
                },
            }
        };
        // All writers are dead: what they wrote is in the pipes. A pipe that somebody else was given may stay open.
        for (pipe, stream, open) in
            [(self.stdout.as_fd(), Stream::Stdout, out_open), (self.stderr.as_fd(), Stream::Stderr, err_open)]
        {
            // The runtime may not have heard yet that there is something to read, so it is not asked.
            while open
                && let Ok(n) = rustix::io::read(pipe, &mut out_buffer)
                && n > 0
            {
                (io.output)(stream, &out_buffer[..n]);
            }
        }
        drop(feeding);
        while let Some(terminal) = &terminal
            && let n @ 1.. = terminal.read_now(&mut terminal_buffer)
        {
            (io.output)(Stream::Stdout, &terminal_buffer[..n]);
        }
        if let Some((root, made)) = stubs {
            let _ = tokio::task::spawn_blocking(move || init::remove_stubs(root, &made)).await;
        }
        let exit = ended?;
        match failure {
            _ if cancelled => Err(Error::Cancelled),
            None => Ok(exit),
            Some(Failure::Invalid(text)) => Err(Error::Invalid(text)),
            Some(Failure::Setup(text)) => Err(Error::Setup(text)),
            Some(Failure::Program(text)) => {
                (io.output)(Stream::Stderr, format!("{text}\n").as_bytes());
                Ok(Exit { code: NOT_STARTED, signal: None, started: false, ..exit })
            }
        }
    }
}

/// Reads what a step wrote, once there is room for it. Nothing is lost where the future is dropped.
async fn read(io: &StepIo, pipe: &mut Receiver, buffer: &mut [u8]) -> std::io::Result<usize> {
    (io.room)().await;
    tokio::io::AsyncReadExt::read(pipe, buffer).await
}

/// A terminal of this size, and who feeds it.
fn open_terminal(
    master: OwnedFd,
    size: Option<(u16, u16)>,
    stdin: Option<mpsc::Receiver<Vec<u8>>>,
) -> std::io::Result<(Terminal, Option<Feeding>)> {
    let terminal = Terminal::new(master)?;
    if let Some((rows, columns)) = size {
        terminal.resize(rows, columns);
    }
    let feeding = stdin.map(|stdin| Feeding::terminal(stdin, &terminal)).transpose()?;
    Ok((terminal, feeding))
}

/// The same of a terminal; never, where there is none.
async fn read_terminal(io: &StepIo, terminal: &Option<Terminal>, buffer: &mut [u8]) -> std::io::Result<usize> {
    let Some(terminal) = terminal else { return std::future::pending().await };
    (io.room)().await;
    terminal.read(buffer).await
}

/// What is wanted next; never, where nobody wants anything any more.
async fn next(control: &mut Option<mpsc::UnboundedReceiver<Control>>) -> Control {
    let wanted = match control {
        Some(control) => control.recv().await,
        None => None,
    };
    match wanted {
        Some(wanted) => wanted,
        None => std::future::pending().await,
    }
}

/// The next report and its descriptors; no report when init is gone.
async fn receive(socket: &UnixDatagram) -> std::io::Result<(Option<Report>, Vec<OwnedFd>)> {
    socket.async_io(Interest::READABLE, || receive_now(socket.as_fd())).await
}

fn receive_now(socket: BorrowedFd<'_>) -> std::io::Result<(Option<Report>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 256 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            // It closed its end without reading our wish to kill; what it said before that comes next.
            Err(Errno::CONNRESET) => {}
            result => break result?,
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok((None, Vec::new()));
    }
    let report = serde_json::from_slice(&bytes[..received.bytes]).map_err(std::io::Error::other)?;
    Ok((Some(report), fds))
}
