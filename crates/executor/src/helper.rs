//! Our end of init: starting it, handing it steps, starting it again should it have died.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};

use crate::Error;
use crate::init;
use crate::message::Start;

pub(crate) struct Helper {
    running: Mutex<Option<Init>>,
    /// Our program, where nobody can write to it.
    program: Option<OwnedFd>,
    /// `cgroup.procs` files that every init joins.
    join: Vec<PathBuf>,
}

struct Init {
    control: Option<OwnedFd>,
    process: Child,
}

impl Helper {
    /// Starts init, so that the first step need not wait for it.
    pub(crate) fn start(join: Vec<PathBuf>) -> Result<Helper, Error> {
        let helper = Helper { running: Mutex::new(None), program: sys::mount::read_only_program().ok(), join };
        let init = helper.spawn().map_err(Error::Helper)?;
        *helper.lock() = Some(init);
        Ok(helper)
    }

    /// Hands a step over.
    pub(crate) fn send(&self, start: Start, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let mut running = self.lock();
        for last in [false, true] {
            let init = match &mut *running {
                Some(init) => init,
                none => none.insert(self.spawn().map_err(Error::Helper)?),
            };
            match init.send(start, fds) {
                Ok(()) => return Ok(()),
                // It died: of memory pressure, say. Its steps died with it, others need not.
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) if !last => *running = None,
                Err(errno) => return Err(Error::Helper(errno.into())),
            }
        }
        Err(Error::Helper(Errno::PIPE.into()))
    }

    /// Ends init, and waits for its end.
    pub(crate) fn stop(&self) {
        drop(self.lock().take());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Init>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn spawn(&self) -> std::io::Result<Init> {
        let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let launch = |program: &Path, theirs: &OwnedFd| {
            Command::new(program)
                .arg0(init::NAME)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::from(theirs.try_clone()?))
                .stdout(Stdio::null())
                .spawn()
        };
        let own = Path::new("/proc/self/exe");
        let process = match &self.program {
            Some(program) => launch(&sys::mount::fd_path(program.as_fd()), &theirs).or_else(|_| launch(own, &theirs)),
            None => launch(own, &theirs),
        }?;
        let init = Init { control: Some(control), process };
        for file in &self.join {
            std::fs::write(file, init.process.id().to_string())?;
        }
        Ok(init)
    }
}

impl Init {
    fn send(&self, start: Start, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let control = self.control.as_ref().ok_or(Errno::PIPE)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
        sendmsg(control, &[IoSlice::new(&start.encode())], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        // It ends when nobody holds the other end, and its steps with it.
        drop(self.control.take());
        let _ = self.process.wait();
    }
}
