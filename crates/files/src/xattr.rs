//! Extended attributes of open files, and of entries that cannot be opened (links, devices).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::checksum::Xattrs;

/// The kernel's own limits.
const MAX_VALUE: usize = 64 * 1024;

/// All attributes of an open file or directory (not one opened with `O_PATH`).
pub(crate) fn of_fd(fd: impl AsFd) -> io::Result<Xattrs> {
    let fd = fd.as_fd();
    read_all(|list| rustix::fs::flistxattr(fd, list), |name, value| rustix::fs::fgetxattr(fd, name, value))
}

/// All attributes of an entry of a directory, never following it.
pub(crate) fn of_entry(dir: impl AsFd, name: &OsStr) -> io::Result<Xattrs> {
    let path = entry_path(&dir, name);
    read_all(|list| rustix::fs::llistxattr(&path, list), |name, value| rustix::fs::lgetxattr(&path, name, value))
}

/// Sets an attribute of an open file.
pub(crate) fn set_on_fd(fd: impl AsFd, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    rustix::fs::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty())
}

/// Sets an attribute of an entry, never following it.
pub(crate) fn set_on_entry(dir: impl AsFd, entry: &OsStr, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    rustix::fs::lsetxattr(entry_path(&dir, entry), OsStr::from_bytes(name), value, XattrFlags::empty())
}

/// There are no calls for xattrs relative to a directory (before Linux 6.13), but procfs names open directories, and
/// the last component is not followed by the calls with `l`.
fn entry_path(dir: impl AsFd, name: &OsStr) -> PathBuf {
    let mut path = OsString::from(format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()));
    path.push(name);
    path.into()
}

fn read_all(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&OsStr, &mut [u8]) -> Result<usize, Errno>,
) -> io::Result<Xattrs> {
    let mut small = [0; 256];
    let mut large = Vec::new();
    let names = match list(&mut small) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Xattrs::new()),
        Ok(len) => &small[..len],
        Err(Errno::RANGE) => {
            large.resize(MAX_VALUE, 0);
            let len = list(&mut large)?;
            &large[..len]
        }
        Err(errno) => return Err(errno.into()),
    };
    let mut xattrs = Xattrs::new();
    let mut value = vec![0; 1024];
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = OsString::from_vec(name.to_vec());
        let mut len = get(&name, &mut value);
        if len == Err(Errno::RANGE) {
            value.resize(MAX_VALUE, 0);
            len = get(&name, &mut value);
        }
        // Attributes that may be listed but not read do not count, upstream neither.
        if let Ok(len) = len {
            xattrs.insert(name.into_vec(), value[..len].to_vec());
        }
    }
    Ok(xattrs)
}

/// Whether what is made in a directory gets an access control list.
pub(crate) fn has_default_list(dir: impl AsFd) -> bool {
    // It may be open by its path only.
    let reached = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
    rustix::fs::getxattr(reached, c"system.posix_acl_default", &mut [0_u8; 0][..]).is_ok()
}
