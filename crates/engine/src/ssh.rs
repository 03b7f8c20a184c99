//! Sockets in steps behind which is an SSH agent of a client. Keys stay with the client: only questions and signatures pass.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::{Fault, Kind};
use llb::pb::SshOpt;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use session::Agent;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

/// What directories of sockets are called, so that those of a killed predecessor are found.
pub(crate) const PREFIX: &str = "ssh-";
/// The socket in such a directory.
pub(crate) const SOCKET: &str = "agent";
/// Connections of one step at once; more wait.
const MOST_CONNECTIONS: usize = 64;

/// A socket that an agent answers, until this is dropped.
pub(crate) struct AgentSocket {
    dir: PathBuf,
    serving: tokio::task::JoinHandle<()>,
}

impl AgentSocket {
    /// Makes the socket in a directory of its own below `scratch`.
    pub(crate) fn open(scratch: &Path, agent: Arc<dyn Agent>, opt: &SshOpt) -> Result<AgentSocket, Fault> {
        let dir = scratch.join(format!("{PREFIX}{}", session::random_id()));
        let listener = listen(&dir, opt);
        let listener = listener.map_err(|error| {
            remove(&dir);
            Fault::because(Kind::Environment, "cannot make the socket of an SSH agent", error)
        })?;
        let serving = tokio::spawn(serve(listener, agent));
        Ok(AgentSocket { dir, serving })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        // With its connections.
        self.serving.abort();
        remove(&self.dir);
    }
}

/// Removes a directory with a socket. What cannot be removed is swept at the next start.
pub(crate) fn remove(dir: &Path) {
    let _ = std::fs::remove_file(dir.join(SOCKET));
    let _ = std::fs::remove_dir(dir);
}

fn listen(dir: &Path, opt: &SshOpt) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::DirBuilderExt as _;
    // Nobody else gets at it before it belongs to the step's user.
    std::fs::DirBuilder::new().mode(0o700).create(dir)?;
    let opened = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // The path of a socket has at most 107 bytes, and the state directory may lie deep.
    let listener = std::os::unix::net::UnixListener::bind(sys::mount::fd_path(opened.as_fd()).join(SOCKET))?;
    listener.set_nonblocking(true)?;
    rustix::fs::chmodat(&opened, SOCKET, Mode::from_raw_mode(opt.mode & 0o777), AtFlags::empty())?;
    if (opt.uid, opt.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(opt.uid), Gid::from_raw(opt.gid));
        match rustix::fs::chownat(&opened, SOCKET, Some(uid), Some(gid), AtFlags::empty()) {
            // The id is not mapped here: no step can be that user either.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    UnixListener::from_std(listener)
}

async fn serve(listener: UnixListener, agent: Arc<dyn Agent>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((connection, _)) => {
                let agent = agent.clone();
                connections.spawn(async move {
                    if let Err(fault) = agent.answer(connection).await {
                        // The step sees that the connection ends; its program says what that means to it.
                        tracing::warn!(%fault, "an SSH agent does not answer");
                    }
                    drop(place);
                });
            }
            // Too many open files, say: they will be closed.
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection to an SSH agent");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    struct Echo;

    #[async_trait::async_trait]
    impl Agent for Echo {
        async fn answer(&self, mut step: UnixStream) -> Result<(), Fault> {
            let mut byte = [0];
            while let Ok(1) = step.read(&mut byte).await {
                step.write_all(&byte).await.map_err(|e| Fault::because(Kind::Environment, "gone", e))?;
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_socket_lasts_as_long_as_its_step() {
        let scratch = tempfile::tempdir().expect("scratch");
        let deep = scratch.path().join("d".repeat(120));
        std::fs::create_dir(&deep).expect("scratch");
        let opt = SshOpt { mode: 0o600, ..SshOpt::default() };
        let socket = AgentSocket::open(&deep, Arc::new(Echo), &opt).expect("a socket");
        let mode = std::fs::metadata(socket.path()).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let dir = std::fs::File::open(socket.path().parent().expect("a directory")).expect("a directory");
        let path = sys::mount::fd_path(dir.as_fd()).join(SOCKET);
        let (mut one, mut other) =
            (UnixStream::connect(&path).await.expect("one"), UnixStream::connect(&path).await.expect("two"));
        for stream in [&mut other, &mut one] {
            stream.write_all(b"x").await.expect("written");
            assert_eq!(stream.read_u8().await.expect("answered"), b'x');
        }
        drop(socket);
        assert_eq!(one.read(&mut [0]).await.unwrap_or(0), 0, "the connection ended");
        assert_eq!(std::fs::read_dir(&deep).expect("scratch").count(), 0);
    }
}
