//! Directories and ports that nobody else uses.

use std::net::TcpListener;

use tempfile::TempDir;

/// An empty directory that is removed when dropped; `name` helps people who find it.
pub fn scratch(name: &str) -> TempDir {
    let prefix = format!("hullworks-{name}-");
    tempfile::Builder::new().prefix(&prefix).tempdir().expect("the temporary directory is writable")
}

/// A loopback port that was free a moment ago. Servers of our own bind port 0 instead.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port can be bound");
    listener.local_addr().expect("a bound socket has an address").port()
}
