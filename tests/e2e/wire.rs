//! A socket before a daemon's that counts what goes over it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// See above. It takes connections as long as the tests run.
pub struct Wire {
    pub path: PathBuf,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
}

impl Wire {
    /// Listens beside a daemon's socket.
    pub fn before(socket: &Path) -> Wire {
        let path = socket.with_extension("counted");
        let listener = UnixListener::bind(&path).unwrap();
        let wire = Wire { path, sent: Arc::default(), received: Arc::default() };
        let (socket, sent, received) = (socket.to_owned(), wire.sent.clone(), wire.received.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let daemon = UnixStream::connect(&socket).unwrap();
                passes_on(client.try_clone().unwrap(), daemon.try_clone().unwrap(), sent.clone());
                passes_on(daemon, client, received.clone());
            }
        });
        wire
    }

    /// Bytes since the last look: from clients to the daemon, and from there.
    pub fn take(&self) -> (u64, u64) {
        (self.sent.swap(0, Ordering::SeqCst), self.received.swap(0, Ordering::SeqCst))
    }
}

/// Until one side has nothing more to say, or the other does not listen.
fn passes_on(mut from: UnixStream, mut to: UnixStream, count: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            count.fetch_add(length as u64, Ordering::SeqCst);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        // They may be gone.
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    });
}
