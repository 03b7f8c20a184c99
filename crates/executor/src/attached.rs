//! What a process may be connected with beside its output, and containers that several processes share.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use crate::{Security, Ulimit};

/// What a process is connected with.
#[derive(Default)]
pub struct Attached {
    /// Bytes for its standard input, until the sender is dropped. Without it there is nothing to read.
    pub stdin: Option<mpsc::Receiver<Vec<u8>>>,
    /// Whether it has a terminal; all output is one stream then.
    pub terminal: bool,
    /// What happens to it from outside.
    pub control: Option<mpsc::UnboundedReceiver<Control>>,
    /// Is told when its program is about to run, and how others come to it.
    pub started: Option<oneshot::Sender<Inside>>,
}

/// What happens to a process from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// A signal, by its number.
    Signal(u8),
    /// Its terminal has another size.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in each.
        columns: u16,
    },
}

/// The way into a container: the namespaces of its first process, which ends all others when it ends.
#[derive(Clone, Debug, Default)]
pub struct Inside {
    pub(crate) namespaces: Arc<Vec<OwnedFd>>,
    /// The `cgroup.procs` files of its own group.
    pub(crate) groups: Vec<PathBuf>,
    /// How far its first process is locked in.
    pub(crate) security: Security,
}

/// One more process of a container. Its files, network and host name are those that are there.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// The program and its arguments; never empty.
    pub args: Vec<String>,
    /// As [`Step::env`](crate::Step::env).
    pub env: Vec<String>,
    /// The working directory; empty is `/`.
    pub cwd: String,
    /// As [`Step::user`](crate::Step::user).
    pub user: String,
    /// How far it is locked in.
    pub security: Security,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
}

/// Our end of a process's terminal.
pub(crate) struct Terminal {
    /// A terminal, in truth; this type reads from any descriptor.
    reader: pipe::Receiver,
    master: OwnedFd,
}

impl Terminal {
    /// `master` is the end that the process does not have.
    pub(crate) fn new(master: OwnedFd) -> std::io::Result<Terminal> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let reader = pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?;
        Ok(Terminal { reader, master })
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // A process that has just ended has no use for it.
        let _ = tcsetwinsize(&self.master, size);
    }

    /// Reads what was written to it; nothing when nobody has it open any more.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            self.reader.readable().await?;
            match self.reader.try_read(buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(0),
                read => return read,
            }
        }
    }

    /// The same without waiting; nothing where there is nothing.
    pub(crate) fn read_now(&self, buffer: &mut [u8]) -> usize {
        rustix::io::read(&self.master, buffer).unwrap_or(0)
    }
}

/// Feeds a process until it or its input ends, or this is dropped.
pub(crate) struct Feeding(tokio::task::JoinHandle<()>);

impl Feeding {
    pub(crate) fn pipe(mut stdin: mpsc::Receiver<Vec<u8>>, mut pipe: pipe::Sender) -> Feeding {
        Feeding(tokio::spawn(async move {
            while let Some(bytes) = stdin.recv().await {
                if pipe.write_all(&bytes).await.is_err() {
                    // It does not read any more; whoever sends need not know.
                    stdin.close();
                    return;
                }
            }
        }))
    }

    pub(crate) fn terminal(stdin: mpsc::Receiver<Vec<u8>>, terminal: &Terminal) -> std::io::Result<Feeding> {
        Ok(Feeding::pipe(stdin, pipe::Sender::from_owned_fd_unchecked(terminal.master.try_clone()?)?))
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        self.0.abort();
    }
}
