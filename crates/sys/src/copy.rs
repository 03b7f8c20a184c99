//! Copying file data and whole trees with everything that a layer can express.
//!
//! Data is shared (`FICLONE`) where the file system can, else copied in the kernel, hole by hole. A tree keeps
//! owners, modes, times, attributes, symlinks, devices, fifos and the hard links among its files. Sockets are
//! left out: they mean nothing without the process that listens.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use base::Cancel;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::xattr;

/// How data got to the other file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Both files share their blocks until one is written.
    Shared,
    /// The bytes were copied.
    Bytes,
}

/// What [`tree`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeCopied {
    /// Files, directories, links and devices made.
    pub entries: u64,
    /// Regular files whose blocks are shared with the source.
    pub shared: u64,
}

/// Copies `len` bytes of data from the start of one open file to the start of another, empty one.
pub fn data(from: impl AsFd, to: impl AsFd, len: u64) -> io::Result<Copied> {
    if len == 0 {
        return Ok(Copied::Bytes);
    }
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(Copied::Shared);
    }
    bytes(from, to, len)?;
    Ok(Copied::Bytes)
}

/// Copies data without sharing blocks; holes stay holes.
fn bytes(from: impl AsFd, to: impl AsFd, len: u64) -> io::Result<()> {
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(&from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break, // Only a hole is left.
            Err(Errno::INVAL) => at,   // The file system knows no holes.
            Err(e) => return Err(e.into()),
        };
        let end = match rustix::fs::seek(&from, SeekFrom::Hole(start)) {
            Ok(end) => end.min(len),
            Err(Errno::INVAL) => len,
            Err(e) => return Err(e.into()),
        };
        range(&from, &to, start, end)?;
        at = end.max(start + 1);
    }
    rustix::fs::ftruncate(&to, len)?;
    Ok(())
}

fn range(from: impl AsFd, to: impl AsFd, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let want = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(&from, Some(&mut read_at), &to, Some(&mut write_at), want) {
            Ok(0) => return Ok(()), // The source became shorter: the caller compares what it must.
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::BADF) => {
                return by_hand(&from, &to, read_at, end);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn by_hand(from: impl AsFd, to: impl AsFd, mut at: u64, end: u64) -> io::Result<()> {
    let mut buf = vec![0; 256 << 10];
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
        let n = rustix::io::pread(&from, &mut buf[..want], at)?;
        if n == 0 {
            return Ok(());
        }
        let mut written = 0;
        while written < n {
            written += rustix::io::pwrite(&to, &buf[written..n], at + written as u64)?;
        }
        at += n as u64;
    }
    Ok(())
}

/// Copies the tree `from` into the existing directory `to`, the metadata of the top directory included.
///
/// Attributes whose name `keep` refuses are left out. What the kernel forbids to set for want of
/// privilege is an error that names the path.
pub fn tree(from: &Path, to: &Path, keep: &dyn Fn(&[u8]) -> bool, cancel: &Cancel) -> io::Result<TreeCopied> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = rustix::fs::open(from, flags, Mode::empty()).map_err(|e| at(e, from))?;
    let target = rustix::fs::open(to, flags, Mode::empty()).map_err(|e| at(e, to))?;
    let mut copier =
        Copier { keep, cancel, links: HashMap::new(), top: &target, copied: TreeCopied::default(), path: Vec::new() };
    copier.directory(&source, &target).map_err(|e| {
        let inside = String::from_utf8_lossy(&copier.path).into_owned();
        io::Error::new(e.kind(), format!("copying `{}`: {e}", from.join(inside.trim_start_matches('/')).display()))
    })?;
    Ok(copier.copied)
}

fn at(e: Errno, path: &Path) -> io::Error {
    let e = io::Error::from(e);
    io::Error::new(e.kind(), format!("`{}`: {e}", path.display()))
}

struct Copier<'a> {
    keep: &'a dyn Fn(&[u8]) -> bool,
    cancel: &'a Cancel,
    /// Device and inode of a source file with several names -> the first copy, beneath `top`.
    links: HashMap<(u64, u64), CString>,
    top: &'a OwnedFd,
    copied: TreeCopied,
    path: Vec<u8>,
}

impl Copier<'_> {
    fn directory(&mut self, source: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
        let depth = self.path.len();
        for entry in Dir::read_from(source)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.cancel.check()?;
            self.path.push(b'/');
            self.path.extend_from_slice(name.to_bytes());
            self.entry(source, target, name)?;
            self.path.truncate(depth);
        }
        // Children changed the directory's times, so its metadata comes last.
        let stat = rustix::fs::fstat(source)?;
        self.open_metadata(source, target, &stat)
    }

    fn entry(&mut self, source: &OwnedFd, target: &OwnedFd, name: &CStr) -> io::Result<()> {
        let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                rustix::fs::linkat(self.top, first.as_c_str(), target, name, AtFlags::empty())?;
                self.copied.entries += 1;
                return Ok(());
            }
            let first = CString::new(&self.path[1..]).expect("directory entries hold no NUL");
            self.links.insert(key, first);
        }
        match kind {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let from = rustix::fs::openat(source, name, flags, Mode::empty())?;
                rustix::fs::mkdirat(target, name, Mode::RWXU)?;
                let to = rustix::fs::openat(target, name, flags, Mode::empty())?;
                self.directory(&from, &to)?;
            }
            FileType::RegularFile => {
                let from = rustix::fs::openat(
                    source,
                    name,
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let to = rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR)?;
                if data(&from, &to, stat.st_size as u64)? == Copied::Shared {
                    self.copied.shared += 1;
                }
                self.open_metadata(&from, &to, &stat)?;
            }
            FileType::Symlink => {
                let goal = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(goal, target, name)?;
                self.named_metadata(source, target, name, &stat, false)?;
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                rustix::fs::mknodat(target, name, kind, Mode::from_raw_mode(stat.st_mode), stat.st_rdev)?;
                // A 0/0 character device is a whiteout: made by nobody in particular, it has no metadata.
                if !(kind == FileType::CharacterDevice && stat.st_rdev == 0) {
                    self.named_metadata(source, target, name, &stat, true)?;
                }
            }
            _ => return Ok(()),
        }
        self.copied.entries += 1;
        Ok(())
    }

    fn open_metadata(&self, source: &OwnedFd, target: &OwnedFd, stat: &Stat) -> io::Result<()> {
        rustix::fs::fchown(target, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        for name in xattr::list_fd(source)? {
            if (self.keep)(&name) {
                let key = xattr::c_name(&name)?;
                if let Some(value) = xattr::get_fd(source, &key)? {
                    xattr::set_fd(target, &key, &value)?;
                }
            }
        }
        // The mode follows the owner, because a change of owner clears the set-id bits.
        rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode))?;
        rustix::fs::futimens(target, &times(stat))?;
        Ok(())
    }

    fn named_metadata(
        &self,
        source: &OwnedFd,
        target: &OwnedFd,
        name: &CStr,
        stat: &Stat,
        mode: bool,
    ) -> io::Result<()> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(
            target,
            name,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
            nofollow,
        )?;
        let (from, to) = (xattr::proc_path(source, name.to_bytes()), xattr::proc_path(target, name.to_bytes()));
        for (key, value) in xattr::all(&from, self.keep)? {
            xattr::set(&to, &xattr::c_name(&key)?, &value)?;
        }
        if mode {
            rustix::fs::chmodat(target, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
        }
        rustix::fs::utimensat(target, name, &times(stat), nofollow)?;
        Ok(())
    }
}

/// The access and modification time of `stat`, to set on another file.
pub fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Copies the data of one path to a new file with the given mode.
pub fn file(from: &Path, to: &Path, mode: u32) -> io::Result<Copied> {
    let source = File::open(from)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let target = rustix::fs::open(to, flags, Mode::from_raw_mode(mode))?;
    data(&source, &target, source.metadata()?.len())
}
