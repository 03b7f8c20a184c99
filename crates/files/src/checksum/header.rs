//! What a file's checksum begins with: its metadata, in the form that Docker once called tarsum v1.
//!
//! ```text
//! name mode<dec> uid<dec> gid<dec> size<dec> typeflag<c> linkname<text> uname gname devmajor<dec> devminor<dec>
//! then <xattr name><value>.. by name
//! ```
//!
//! without the spaces. Names of file, user and group are always empty, and times do not count. Xattrs of the
//! `security.` and `system.` families do not count either, but for `security.capability`.

use std::collections::BTreeMap;

use base::{Digest, Hasher};

use super::Flavor;
use crate::stat::{Kind, Stat, Time};

/// Extended attributes by name.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// The metadata that a checksum covers.
#[derive(Clone, Copy, Debug)]
pub struct FileHeader<'a> {
    /// Type, mode, owner, size, device.
    pub stat: &'a Stat,
    /// The target of a symbolic link, else empty.
    pub link: &'a [u8],
    /// All extended attributes; those that do not count are left out here.
    pub xattrs: &'a Xattrs,
}

impl FileHeader<'_> {
    /// A digest that has taken in the header; the content of a regular file goes after it.
    pub fn hasher(&self, flavor: Flavor) -> Hasher {
        let mut hasher = Digest::hasher();
        hasher.update(self.to_bytes(flavor));
        hasher
    }

    fn to_bytes(self, flavor: Flavor) -> Vec<u8> {
        let stat = self.stat;
        let mode = if stat.kind == Kind::Symlink { stat.mode | 0o777 } else { stat.mode };
        let size = if is_stub(stat.kind) { stat.size } else { 0 };
        let (major, minor) = match (flavor, stat.kind) {
            (Flavor::Context, Kind::Char | Kind::Block) => device_numbers(stat.rdev),
            // Upstream tests for devices with bits that no device has, so snapshots never show numbers.
            _ => (0, 0),
        };
        let (uid, gid, flag) = (stat.uid, stat.gid, type_flag(stat.kind));
        let mut bytes = format!("namemode{mode}uid{uid}gid{gid}size{size}typeflag{flag}linkname").into_bytes();
        if stat.kind == Kind::Symlink {
            bytes.extend_from_slice(self.link);
        }
        bytes.extend_from_slice(format!("unamegnamedevmajor{major}devminor{minor}").as_bytes());
        for (name, value) in self.xattrs {
            if counts(name) {
                bytes.extend_from_slice(name);
                bytes.extend_from_slice(value);
            }
        }
        bytes
    }
}

/// The header of the root of an empty snapshot: a directory of root with mode 0755.
pub(super) fn of_empty_root() -> Digest {
    let time = Time::default();
    let (uid, gid, size, nlink, dev, ino, rdev) = (0, 0, 0, 2, 0, 0, 0);
    let (atime, mtime, ctime) = (time, time, time);
    let stat = Stat { kind: Kind::Dir, mode: 0o755, uid, gid, size, atime, mtime, ctime, dev, ino, nlink, rdev };
    FileHeader { stat: &stat, link: &[], xattrs: &Xattrs::new() }.hasher(Flavor::Snapshot).finish()
}

/// Sockets count as empty regular files.
fn is_stub(kind: Kind) -> bool {
    matches!(kind, Kind::File | Kind::Socket)
}

fn type_flag(kind: Kind) -> char {
    match kind {
        Kind::File | Kind::Socket => '0',
        Kind::Symlink => '2',
        Kind::Char => '3',
        Kind::Block => '4',
        Kind::Dir => '5',
        Kind::Fifo => '6',
    }
}

/// As fsutil takes a device number apart: only the bits that old kernels had.
fn device_numbers(rdev: u64) -> (u64, u64) {
    ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

fn counts(xattr: &[u8]) -> bool {
    xattr == b"security.capability" || !(xattr.starts_with(b"security.") || xattr.starts_with(b"system."))
}
