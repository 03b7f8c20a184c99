//! Namespaces of our own process.

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;

use crate::Error;

/// Moves the process into a mount namespace of its own, where nothing comes in from or goes out to the host.
///
/// Namespaces belong to threads: call this before any other thread exists.
pub fn private_mounts() -> Result<(), Error> {
    crate::raw::unshare(UnshareFlags::NEWNS).map_err(|errno| Error::call("create a mount namespace", errno))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| Error::path("make mounts private below", "/", errno))
}

/// Gives the calling thread a working directory, root and umask that no other thread shares.
pub fn own_working_directory() -> Result<(), Errno> {
    crate::raw::unshare(UnshareFlags::FS)
}

/// Gives the caller a view of control groups that begins at its own.
pub fn own_cgroup_view() -> Result<(), Error> {
    crate::raw::unshare(UnshareFlags::NEWCGROUP).map_err(|errno| Error::call("create a cgroup namespace", errno))
}

/// Sets the loopback interface up, the only one of a new network namespace.
pub fn loopback_up() -> Result<(), Error> {
    crate::raw::loopback_up().map_err(|errno| Error::call("set the loopback interface up", errno))
}
