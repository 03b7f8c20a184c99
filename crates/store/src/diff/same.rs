//! Whether two files are the same to a layer: containerd's rule (continuity `fs/path.go`), and all attributes that layers
//! carry, where containerd knows capabilities only.

use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{FileType, Mode, OFlags};

use super::node::Node;

/// Compares type, mode, owner, numbers and attributes; of files also size and time. A time without nanoseconds on both
/// sides may have been cut by a tar, so then the data decides. Directory times do not count.
pub(super) fn same(a: &Node, b: &Node) -> io::Result<bool> {
    let (sa, sb) = (&a.stat, &b.stat);
    if (sa.st_dev, sa.st_ino) == (sb.st_dev, sb.st_ino) {
        return Ok(true);
    }
    if (sa.st_mode, sa.st_uid, sa.st_gid, sa.st_rdev) != (sb.st_mode, sb.st_uid, sb.st_gid, sb.st_rdev) {
        return Ok(false);
    }
    if !a.is_dir() && (sa.st_size != sb.st_size || sa.st_mtime != sb.st_mtime || sa.st_mtime_nsec != sb.st_mtime_nsec) {
        return Ok(false);
    }
    if a.xattrs()? != b.xattrs()? {
        return Ok(false);
    }
    if a.is_dir() || sa.st_mtime_nsec != 0 {
        return Ok(true);
    }
    match a.file_type() {
        FileType::Symlink => Ok(a.target()? == b.target()?),
        FileType::RegularFile if sa.st_size > 0 => same_data(a, b),
        _ => Ok(true),
    }
}

fn same_data(a: &Node, b: &Node) -> io::Result<bool> {
    let open = |node: &Node| {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&*node.dir, &*node.name, flags, Mode::empty()).map(File::from)
    };
    let (mut a, mut b) = (open(a)?, open(b)?);
    let (mut in_a, mut in_b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let n = a.read(&mut in_a)?;
        if n == 0 {
            return Ok(b.read(&mut in_b[..1])? == 0);
        }
        match b.read_exact(&mut in_b[..n]) {
            Ok(()) if in_a[..n] == in_b[..n] => {}
            Ok(()) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}
