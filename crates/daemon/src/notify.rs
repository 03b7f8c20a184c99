//! What a supervisor is told (systemd's `Type=notify`): that the daemon takes builds, and that it is about to end.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Builds are taken from now on.
pub const READY: &str = "READY=1";

/// No new builds are taken; those that run may end.
pub const STOPPING: &str = "STOPPING=1";

/// Who started the daemon, if they want to hear of it: the address in `NOTIFY_SOCKET`.
#[derive(Clone, Debug, Default)]
pub struct Supervisor(pub Option<OsString>);

impl Supervisor {
    /// Says it. A supervisor that does not listen is no reason to fail.
    pub fn tell(&self, what: &str) {
        let Some(address) = self.0.as_deref().filter(|address| !address.is_empty()) else { return };
        if let Err(error) = send(address, what) {
            tracing::warn!(%error, what, "the supervisor at NOTIFY_SOCKET does not hear");
        }
    }
}

/// An address is a path, or the name of an abstract socket behind `@`.
fn send(address: &OsStr, what: &str) -> io::Result<()> {
    let address = match address.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(address)?,
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor the name of a unix socket")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(what.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn a_supervisor_listens_at_a_path_or_a_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        Supervisor(Some(path.clone().into())).tell(READY);
        assert_eq!(heard(&socket), "READY=1");
        let name = format!("hullworks-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("a socket");
        Supervisor(Some(format!("@{name}").into())).tell(STOPPING);
        assert_eq!(heard(&socket), "STOPPING=1");
        // Nobody is there, or it is no address: nothing happens.
        for address in ["/nowhere/at/all", "tcp://x", ""] {
            Supervisor(Some(address.into())).tell(READY);
        }
        assert!(send("tcp://x".as_ref(), READY).is_err());
    }
}
