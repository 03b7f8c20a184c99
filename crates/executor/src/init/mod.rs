//! The process that starts steps: our own binary again, with one thread and a small memory.
//!
//! It is started once and lives as long as its executor. For each step it makes a copy of itself in new
//! namespaces, which becomes the step's first process. A copy of this process costs a tenth of a millisecond;
//! a copy of ours, with its threads and caches, could deadlock, and starting our binary for each step would pay for
//! loading it each time.
//!
//! It dies with us: the end of the control socket is its end, and the kernel kills the steps of a dead init.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sys::process::{Side, clone, exit_now, reap};
use sys::seccomp::Filter;

use crate::message::{Place, Report, Start, Wish};

mod devices;
mod entry;
mod exec;
mod mounts;
mod sandbox;
mod stubs;
mod system;
mod user;

pub(crate) use stubs::remove_stubs;

/// Our name when we are this process.
pub(crate) const NAME: &str = "hullworks-init";

/// Whether this process was started to be the init: then call [`main`] before anything else.
pub fn is_requested() -> bool {
    std::env::args_os().next().is_some_and(|name| name == OsStr::new(NAME))
}

/// Serves until the executor is gone.
pub fn main() -> ! {
    let _ = serve();
    // Steps that still run are our children, and are killed as we end.
    exit_now(0)
}

fn serve() -> Result<(), sys::Error> {
    let error = |errno: Errno| sys::Error::call("serve", errno);
    sys::process::reset_signals()?;
    // Nobody looks into this memory, not even a step that shares our user and sees our /proc.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(error)?;
    // Ctrl-C at the terminal is for the program that runs us, which then cancels its steps.
    let _ = rustix::process::setsid();
    let control = rustix::stdio::stdin().try_clone_to_owned().map_err(|e| sys::Error::call("serve", e))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(error)?;
    rustix::stdio::dup2_stdin(&null).map_err(error)?;
    let children = sys::process::child_signal_fd()?;
    // Older kernels have none; then a step outlives us that we started in the moment of our death.
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).ok();
    let mut init = Init { filter: Filter::default_profile(sys::caps::SANDBOX), own, steps: BTreeMap::new() };
    loop {
        let listened: Vec<(i32, &OwnedFd)> =
            init.steps.iter().filter(|(_, step)| !step.killed).map(|(pid, step)| (*pid, &step.socket)).collect();
        let mut polled = vec![PollFd::new(&control, PollFlags::IN), PollFd::new(&children, PollFlags::IN)];
        polled.extend(listened.iter().map(|(_, socket)| PollFd::new(*socket, PollFlags::IN)));
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(error(errno)),
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let wished: Vec<i32> = listened.iter().zip(&ready[2..]).filter_map(|((pid, _), r)| r.then_some(*pid)).collect();
        for pid in wished {
            init.grant(pid);
        }
        if ready[1] {
            let mut info = [0; 1024];
            while rustix::io::read(&children, &mut info).is_ok_and(|n| n > 0) {}
            init.report_ended()?;
        }
        if ready[0] && !init.start_next(&control)? {
            return Ok(());
        }
    }
}

struct Init {
    filter: Filter,
    /// This process, as steps see it.
    own: Option<OwnedFd>,
    /// Running steps by their first process.
    steps: BTreeMap<i32, Running>,
}

struct Running {
    socket: OwnedFd,
    /// Killed already; what else its socket says does not matter.
    killed: bool,
}

impl Init {
    /// Starts the step that the executor asks for; false when there is no executor any more.
    fn start_next(&mut self, control: &OwnedFd) -> Result<bool, sys::Error> {
        let mut bytes = [0; 16];
        let (read, fds) = match receive(control.as_fd(), &mut bytes) {
            Ok(received) => received,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(true),
            Err(errno) => return Err(sys::Error::call("receive a step", errno)),
        };
        if read == 0 {
            return Ok(false);
        }
        let mut fds = fds.into_iter();
        let (Some(start), Some(message), Some(stdout), Some(stderr), Some(socket)) =
            (Start::decode(&bytes[..read]), fds.next(), fds.next(), fds.next(), fds.next())
        else {
            return Ok(true);
        };
        let stdin = if start.stdin { fds.next() } else { None };
        let rest: Vec<OwnedFd> = fds.collect();
        let born = match start.place {
            Place::New(namespaces) => clone(namespaces, rest.first().map(AsFd::as_fd)),
            Place::Container => clone_into(&rest),
        };
        match born {
            Ok((Side::Child, in_cgroup)) => {
                // Nothing of other steps comes along.
                self.steps.clear();
                let parent = self.own.take();
                let inherited = sandbox::Inherited { message, stdin, stdout, stderr, socket, parent, in_cgroup };
                let namespaces = if start.place == Place::Container { rest } else { Vec::new() };
                sandbox::run(inherited, &namespaces, &self.filter)
            }
            Ok((Side::Parent(pid), _)) => {
                self.steps.insert(pid.as_raw_nonzero().get(), Running { socket, killed: false });
            }
            Err(error) => report(socket.as_fd(), &Report::NotStarted(chain(&error)), &[]),
        }
        Ok(true)
    }

    fn report_ended(&mut self) -> Result<(), sys::Error> {
        while let Some(ended) = reap()? {
            let Some(step) = self.steps.remove(&ended.pid) else { continue };
            let ended = Report::Ended {
                code: ended.code,
                signal: ended.signal,
                user_micros: ended.user.as_micros() as u64,
                system_micros: ended.system.as_micros() as u64,
                max_rss: ended.max_rss,
            };
            report(step.socket.as_fd(), &ended, &[]);
        }
        Ok(())
    }

    /// Does what the executor wants of a process.
    fn grant(&mut self, pid: i32) {
        let Some(step) = self.steps.get(&pid) else { return };
        let mut bytes = [0; 8];
        let wish = match receive(step.socket.as_fd(), &mut bytes) {
            Err(Errno::INTR | Errno::AGAIN) => return,
            Ok((read, _)) => Wish::decode(&bytes[..read]),
            Err(_) => Wish::Kill,
        };
        match wish {
            Wish::Kill => self.kill(pid),
            Wish::Signal(number) => {
                // It is our child and not reaped yet, so the number is its own.
                if let (Some(pid), Some(signal)) = (Pid::from_raw(pid), Signal::from_named_raw(number.into())) {
                    let _ = kill_process(pid, signal);
                }
            }
        }
    }

    /// Kills a step, and with its first process all others of its process namespace.
    fn kill(&mut self, pid: i32) {
        if let (Some(step), Some(pid)) = (self.steps.get_mut(&pid), Pid::from_raw(pid)) {
            step.killed = true;
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Makes a copy of this process in the process namespace of a container, the first one of `namespaces`.
///
/// Not every init may come back from there, so a copy goes: its own copy is born there, and is our child all the same.
fn clone_into(namespaces: &[OwnedFd]) -> Result<(Side, bool), sys::Error> {
    let failed = |errno: Errno| sys::Error::call("enter the container", errno);
    let container = namespaces.first().ok_or_else(|| failed(Errno::NOENT))?;
    let (from, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
    let (Side::Parent(_), _) = clone(0, None)? else {
        drop(from);
        let entered = move_into_link_name_space(container.as_fd(), Some(LinkNameSpaceType::ProcessID));
        match entered.map_err(failed).and_then(|()| clone(libc::CLONE_PARENT, None)) {
            Ok((Side::Child, _)) => return Ok((Side::Child, false)),
            Ok((Side::Parent(pid), _)) => {
                let _ = rustix::io::write(&to, &pid.as_raw_nonzero().get().to_ne_bytes());
                exit_now(0)
            }
            Err(_) => exit_now(1),
        }
    };
    drop(to);
    let mut pid = [0; 4];
    let read = loop {
        match rustix::io::read(&from, &mut pid) {
            Err(Errno::INTR) => {}
            read => break read.map_err(failed)?,
        }
    };
    // Nobody is born in a namespace whose first process is gone.
    let pid = Some(i32::from_ne_bytes(pid)).filter(|_| read == 4).and_then(Pid::from_raw);
    pid.map(|pid| (Side::Parent(pid), false)).ok_or_else(|| failed(Errno::SRCH))
}

/// Receives one message and its descriptors, which are closed by the next exec.
fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((received.bytes, fds))
}

/// Tells the executor. Where it does not listen any more, nobody wants to know.
fn report(socket: BorrowedFd<'_>, report: &Report, fds: &[BorrowedFd<'_>]) {
    let Ok(bytes) = serde_json::to_vec(report) else { return };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let _ = sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
