//! Extended attributes as plain bytes: get, set, list, remove, by descriptor or beneath a directory descriptor.
//!
//! Linux has no `*xattrat` before 6.13, so names beneath a directory go through `/proc/self/fd`, and the last
//! component is never followed. "The file system has no such attributes" is an empty answer, not an error.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Name and value of one attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// The path by which calls that know no directory descriptors reach `name` beneath `dir`.
pub fn proc_path(dir: impl AsFd, name: &[u8]) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()));
    if !name.is_empty() {
        path.push(OsStr::from_bytes(name));
    }
    path
}

/// The value of attribute `key` of the open file, none when it is not set or not supported.
pub fn get_fd(fd: impl AsFd, key: &CStr) -> io::Result<Option<Vec<u8>>> {
    read_value(|buf| rustix::fs::fgetxattr(&fd, key, buf))
}

/// The value of attribute `key` of `path` itself (a symlink is not followed).
pub fn get(path: &Path, key: &CStr) -> io::Result<Option<Vec<u8>>> {
    read_value(|buf| rustix::fs::lgetxattr(path, key, buf))
}

/// Sets attribute `key` of the open file.
pub fn set_fd(fd: impl AsFd, key: &CStr, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(&fd, key, value, XattrFlags::empty())?)
}

/// Sets attribute `key` of `path` itself.
pub fn set(path: &Path, key: &CStr, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(path, key, value, XattrFlags::empty())?)
}

/// Removes attribute `key` of `path` itself; one that is not there is removed already.
pub fn remove(path: &Path, key: &CStr) -> io::Result<()> {
    match rustix::fs::lremovexattr(path, key) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes attribute `key` of the open file; one that is not there is removed already.
pub fn remove_fd(fd: impl AsFd, key: &CStr) -> io::Result<()> {
    match rustix::fs::fremovexattr(&fd, key) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The names of all attributes of `path` itself that the caller may see, sorted.
pub fn list(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    read_names(|buf| rustix::fs::llistxattr(path, buf))
}

/// The names of all attributes of the open file that the caller may see, sorted.
pub fn list_fd(fd: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    read_names(|buf| rustix::fs::flistxattr(&fd, buf))
}

/// Names and values of the attributes of `path` itself whose name `wanted` accepts, sorted by name.
pub fn all(path: &Path, wanted: impl Fn(&[u8]) -> bool) -> io::Result<Vec<Xattr>> {
    let mut found = Vec::new();
    for name in list(path)? {
        if !wanted(&name) {
            continue;
        }
        let key = c_name(&name)?;
        if let Some(value) = get(path, &key)? {
            found.push((name, value));
        }
    }
    Ok(found)
}

/// The attribute name as C text.
pub fn c_name(name: &[u8]) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(name)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "attribute name holds a NUL byte"))
}

fn read_value(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Option<Vec<u8>>> {
    // One call suffices for nearly every attribute there is; a larger one is asked for its size.
    let mut buf = vec![0; 256];
    loop {
        match call(&mut buf) {
            Ok(n) => {
                buf.truncate(n);
                return Ok(Some(buf));
            }
            Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
            Err(Errno::RANGE) => grow(&mut buf, &mut call)?,
            Err(e) => return Err(e.into()),
        }
    }
}

fn read_names(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<Vec<u8>>> {
    let mut buf = vec![0; 1024];
    loop {
        match call(&mut buf) {
            Ok(n) => {
                let mut names: Vec<_> =
                    buf[..n].split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
                names.sort();
                return Ok(names);
            }
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(Errno::RANGE) => grow(&mut buf, &mut call)?,
            Err(e) => return Err(e.into()),
        }
    }
}

fn grow(buf: &mut Vec<u8>, call: &mut impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<()> {
    let needed = call(&mut [])?;
    buf.resize(needed.max(buf.len() * 2), 0);
    Ok(())
}
