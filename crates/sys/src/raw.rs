//! System calls that rustix does not carry or calls unsafe. The crate's `unsafe` blocks live here.
#![expect(unsafe_code, reason = "raw system calls; every block says why it holds")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn c_path(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)
}

/// `unshare(2)`, of anything but open files.
pub(crate) fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    debug_assert!(!flags.contains(UnshareFlags::FILES), "descriptors of other threads would dangle");
    // SAFETY: only CLONE_FILES can break what Rust relies on (descriptors shared between threads).
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// `mount_setattr(AT_RECURSIVE, MOUNT_ATTR_RDONLY)`.
pub(crate) fn mount_setattr_read_only(target: &Path) -> Result<(), Errno> {
    let path = c_path(target)?;
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `path` and `attr` outlive the call, and the size is that of the struct.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}
