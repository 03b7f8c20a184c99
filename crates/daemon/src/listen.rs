//! Where the daemon listens: unix sockets, TCP with or without TLS, and sockets that a supervisor opened.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base::{Fault, Kind};
use futures_util::Stream;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tonic::transport::server::Connected;

use crate::tls::Tls;

/// How long who connects may say nothing; BuildKit's.
const SILENCE: Duration = Duration::from_secs(120);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// How long the socket of a daemon that is being killed may be in the way.
const DYING: Duration = Duration::from_secs(3);
/// The first socket that a supervisor passes on.
const FIRST_FD: i32 = 3;

/// Who may use a unix socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The owner; none: whoever runs the daemon.
    pub uid: Option<u32>,
    /// The group, which may use it too.
    pub gid: Option<u32>,
}

/// A socket that waits for connections.
pub struct Listener {
    address: String,
    /// Ours to remove in the end, before the socket is closed: whoever waits for it makes another there.
    _file: Option<SocketFile>,
    socket: Socket,
    tls: Option<Arc<Tls>>,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone, or another daemon's by now; nobody can tell at this point.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Opens the sockets that addresses such as `unix:///run/buildkit/buildkitd.sock`, `tcp://0.0.0.0:1234` or `fd://` name;
    /// the last may stand for several. TCP is encrypted where there is `tls`.
    pub async fn open(address: &str, owner: Owner, tls: Option<&Arc<Tls>>) -> Result<Vec<Listener>, Fault> {
        let failed = |error| Fault::because(Kind::Environment, format!("cannot listen on `{address}`"), error);
        let unknown = || {
            let fault = Fault::user(format!("cannot listen on `{address}`: no address of a known kind"));
            match address.starts_with('/') {
                true => fault.hint(format!("did you mean `unix://{address}`?")),
                false => fault.hint("write unix:///path, tcp://host:port or fd://"),
            }
        };
        let (scheme, rest) = address.split_once("://").ok_or_else(unknown)?;
        let listener = |socket, tls: Option<&Arc<_>>, file| Listener {
            address: address.to_owned(),
            socket,
            tls: tls.cloned(),
            _file: file,
        };
        match scheme {
            "unix" => {
                let path = PathBuf::from(rest);
                let socket = patiently(address, async || open_unix(&path, owner)).await.map_err(failed)?;
                Ok(vec![listener(Socket::Unix(socket), None, Some(SocketFile(path)))])
            }
            "tcp" => {
                let socket = patiently(address, async || open_tcp(rest).await).await.map_err(failed)?;
                Ok(vec![listener(Socket::Tcp(socket), tls, None)])
            }
            "fd" => {
                let sockets = inherited(rest).map_err(failed)?;
                Ok(sockets
                    .into_iter()
                    .map(|socket| {
                        let tls = tls.filter(|_| matches!(socket, Socket::Tcp(_)));
                        listener(socket, tls, None)
                    })
                    .collect())
            }
            _ => Err(unknown()),
        }
    }

    /// What it was opened by.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whoever connects, as long as somebody asks.
    pub(crate) fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = self.accept() => accepted,
                    () = sender.closed() => return,
                };
                let stream = match accepted {
                    Ok(stream) => stream,
                    Err(error) => {
                        // Out of descriptors, or the other side is gone already: neither lasts.
                        tracing::warn!(%error, address = self.address, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                let (sender, tls) = (sender.clone(), self.tls.clone());
                // A client that is slow to shake hands keeps nobody else waiting.
                tokio::spawn(async move {
                    // Nor is it anybody's before it says something: when the daemon ends it is not waited for.
                    let speaks = tokio::time::timeout(SILENCE, stream.speaks()).await;
                    if !matches!(speaks, Ok(Ok(()))) {
                        return;
                    }
                    let connection = match (stream, tls) {
                        (Accepted::Unix(stream), _) => Connection::Unix(stream),
                        (Accepted::Tcp(stream), None) => Connection::Tcp(stream),
                        (Accepted::Tcp(stream), Some(tls)) => {
                            let peer = stream.peer_addr().map(|peer| peer.to_string()).unwrap_or_default();
                            let handshake = tokio_rustls::TlsAcceptor::from(tls.config()).accept(stream);
                            match tokio::time::timeout(HANDSHAKE, handshake).await {
                                Ok(Ok(stream)) => Connection::Tls(Box::new(stream)),
                                Ok(Err(error)) => return tracing::warn!(%error, peer, "TLS handshake failed"),
                                Err(_) => return tracing::warn!(peer, "TLS handshake took too long"),
                            }
                        }
                    };
                    let _ = sender.send(Ok(connection)).await;
                });
            }
        });
        tokio_stream::wrappers::ReceiverStream::new(receiver)
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Unix(socket) => socket.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
            Socket::Tcp(socket) => {
                let (stream, _) = socket.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream))
            }
        }
    }
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Accepted {
    /// Ready when the other side has said something. Who hangs up without a word, as probes do, is gone.
    async fn speaks(&self) -> io::Result<()> {
        let peek = |socket: BorrowedFd<'_>| -> io::Result<()> {
            let mut byte = [0; 1];
            match recv(socket, &mut byte[..], RecvFlags::PEEK)? {
                (_, 0) => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(()),
            }
        };
        match self {
            Accepted::Unix(stream) => stream.async_io(Interest::READABLE, || peek(stream.as_fd())).await,
            Accepted::Tcp(stream) => stream.async_io(Interest::READABLE, || peek(stream.as_fd())).await,
        }
    }
}

/// Opens a socket, also where a daemon that was killed a moment ago still has it: the kernel takes its time to end one.
async fn patiently<T>(address: &str, open: impl AsyncFn() -> io::Result<T>) -> io::Result<T> {
    let until = tokio::time::Instant::now() + DYING;
    let mut is_told = false;
    loop {
        match open().await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tokio::time::Instant::now() < until => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::info!(address, "somebody listens there: waiting a moment for their end");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            opened => return opened,
        }
    }
}

/// A port without a host is open on all addresses, of both families where the machine has both.
async fn open_tcp(place: &str) -> io::Result<TcpListener> {
    match place.strip_prefix(':') {
        None => TcpListener::bind(place).await,
        Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                TcpListener::bind(format!("0.0.0.0:{port}")).await
            }
            opened => opened,
        },
    }
}

/// Makes the socket's directory and the socket. A socket that nobody listens on is one that a killed daemon left.
fn open_unix(path: &Path, owner: Owner) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        std::fs::create_dir_all(dir)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))?;
        std::os::unix::fs::chown(dir, owner.uid, owner.gid)?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon listens there")),
            Err(_) => std::fs::remove_file(path)?,
        }
    }
    // Nobody may connect before the owner is right.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let socket = UnixListener::bind(path);
    rustix::process::umask(before);
    let socket = socket?;
    if owner != Owner::default() {
        std::os::unix::fs::chown(path, owner.uid, owner.gid)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(socket)
}

/// The sockets that systemd or another supervisor opened (`sd_listen_fds`); `which` is a number of one of them, or empty.
fn inherited(which: &str) -> io::Result<Vec<Socket>> {
    let given = |name: &str| std::env::var(name).ok();
    let for_us = given("LISTEN_PID").is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    let count: i32 = given("LISTEN_FDS").filter(|_| for_us).and_then(|count| count.parse().ok()).unwrap_or(0);
    let all = FIRST_FD..FIRST_FD + count;
    let wanted: Vec<i32> = match which.trim_matches('*') {
        "" => all.collect(),
        number => {
            let number = number
                .parse::<i32>()
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "no number of a socket"))?;
            all.filter(|fd| *fd == number).collect()
        }
    };
    if wanted.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no socket was passed on (LISTEN_FDS)"));
    }
    wanted.into_iter().map(adopt).collect()
}

fn adopt(fd: i32) -> io::Result<Socket> {
    let fd = sys::process::adopt(fd)?;
    match rustix::net::sockopt::socket_domain(&fd)? {
        rustix::net::AddressFamily::UNIX => {
            let socket = std::os::unix::net::UnixListener::from(fd);
            socket.set_nonblocking(true)?;
            UnixListener::from_std(socket).map(Socket::Unix)
        }
        _ => {
            let socket = std::net::TcpListener::from(fd);
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket).map(Socket::Tcp)
        }
    }
}

/// One client's connection.
pub(crate) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Connection::Unix($stream) => $call,
            Connection::Tcp($stream) => $call,
            Connection::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Connection::Unix(_) | Connection::Tcp(_) => true,
            Connection::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_without_a_host_is_open_on_all_addresses() {
        let port = testkit::free_port();
        let _opened = Listener::open(&format!("tcp://:{port}"), Owner::default(), None).await.expect("it is free");
        std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    }

    #[tokio::test]
    async fn the_socket_of_a_daemon_that_is_dying_is_waited_for() {
        let dir = tempfile::tempdir().expect("scratch space");
        let path = dir.path().join("b.sock");
        let address = format!("unix://{}", path.display());
        let old = std::os::unix::net::UnixListener::bind(&path).expect("it is free");
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(old);
        });
        let opened = Listener::open(&address, Owner::default(), None).await.expect("the old one is gone");
        assert_eq!(opened.len(), 1);
        std::os::unix::net::UnixStream::connect(&path).expect("it is the new one's");
        // One that stays is told of.
        let refused = Listener::open(&address, Owner::default(), None).await.err().expect("it is taken");
        assert!(refused.to_string().ends_with("another daemon listens there"), "{refused}");
    }
}
