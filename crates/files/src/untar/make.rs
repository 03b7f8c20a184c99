//! What one entry becomes on disk, by its kind.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use sys::path::Links;
use sys::shadow::Shadow;

use super::error::{bytes_text, io_error, owner_error, refused, write_error};
use super::walk::{ANY, Finish, Place, Step, Unpacker, is_setgid, split};
use super::whiteout::remove;
use super::{Devices, Entry, EntryKind, Error, Source, Whiteouts};

/// So many zeros are not written: a file that had a hole, which an archive cannot say, has one again.
const HOLE: usize = 64 << 10;
static ZEROS: [u8; HOLE] = [0; HOLE];

impl Unpacker<'_> {
    pub(super) fn directory(&mut self, path: Vec<u8>, place: &Place, entry: &Entry) -> Result<(), Error> {
        let (mut hides, mut existed) = (false, false);
        match rustix::fs::mkdirat(&*place.dir, &*place.name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(&*place.dir, &*place.name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| write_error("look at", &path, e))?;
                existed = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if !existed {
                    hides = self.whiteouts.remove(&path);
                    rustix::fs::unlinkat(&*place.dir, &*place.name, AtFlags::empty())
                        .map_err(|e| write_error("replace", &path, e))?;
                    self.forget_aliases();
                    rustix::fs::mkdirat(&*place.dir, &*place.name, Mode::RWXU)
                        .map_err(|e| write_error("create directory", &path, e))?;
                }
            }
            Err(e) => return Err(write_error("create directory", &path, e)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*place.dir, &*place.name, flags, Mode::empty())
            .map_err(|e| write_error("open", &path, e))?;
        if hides {
            self.mark_opaque(&fd, &path)?;
        }
        if existed && self.options.whiteouts == Whiteouts::Delete {
            self.clear_attributes(&path, &fd, entry)?;
        }
        self.own_fd(&path, &fd, entry, existed)?;
        self.attributes_fd(&path, &fd, entry)?;
        self.implied.remove(&path);
        self.set_finish(&path, Finish { mode: Some(entry.mode), mtime: Some(entry.mtime), atime: entry.atime });
        // The next entry most likely lies in it.
        if self.steps.len() == place.depth {
            let setgid = is_setgid(&fd);
            self.steps.push(Step { name: place.name.to_bytes().to_vec(), path, fd: Rc::new(fd), setgid });
        }
        Ok(())
    }

    /// The directory that all is unpacked into.
    pub(super) fn top(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != EntryKind::Directory {
            return Err(refused(b"/", "it would replace the target directory"));
        }
        let fd = self.open_inside(b"", OFlags::RDONLY, Links::Refuse).map_err(|e| write_error("open", b"/", e))?;
        self.own_fd(b"/", &fd, entry, true)?;
        self.attributes_fd(b"/", &fd, entry)?;
        self.set_finish(b"", Finish { mode: Some(entry.mode), mtime: Some(entry.mtime), atime: entry.atime });
        Ok(())
    }

    pub(super) fn regular(
        &mut self,
        path: &[u8],
        place: &Place,
        entry: &Entry,
        size: u64,
        source: &mut impl Source,
    ) -> Result<(), Error> {
        self.report.bytes = self.report.bytes.saturating_add(size);
        if self.report.bytes > self.options.limits.bytes {
            return Err(Error::TooLarge { limit: bytes_text(self.options.limits.bytes) });
        }
        let fd = self.create(path, place, entry.mode & 0o777)?;
        if let Err(error) = self.fill(path, &fd, size, source) {
            // Where nobody discards the tree, half a file must not pass for a whole one.
            let _ = rustix::fs::unlinkat(&*place.dir, &*place.name, AtFlags::empty());
            return Err(error);
        }
        let changed_owner = self.own_fd(path, &fd, entry, false)?;
        self.attributes_fd(path, &fd, entry)?;
        if self.masked == ANY || entry.mode & (self.masked | 0o7000) != 0 || changed_owner && entry.mode & 0o6000 != 0 {
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(entry.mode))
                .map_err(|e| write_error("set the mode of", path, e))?;
        }
        rustix::fs::futimens(&fd, &self.times(entry.mtime, entry.atime))
            .map_err(|e| write_error("set the time of", path, e))
    }

    fn create(&mut self, path: &[u8], place: &Place, mode: u32) -> Result<OwnedFd, Error> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&*place.dir, &*place.name, flags, Mode::from_raw_mode(mode));
        match open() {
            Err(Errno::EXIST) => {}
            other => return other.map_err(|e| write_error("create", path, e)),
        }
        remove(&place.dir, &place.name).map_err(|e| write_error("replace", path, e))?;
        self.drop_beneath(path);
        self.forget_aliases();
        open().map_err(|e| write_error("create", path, e))
    }

    fn fill(&mut self, path: &[u8], fd: &OwnedFd, size: u64, source: &mut impl Source) -> Result<(), Error> {
        if size == 0 {
            return Ok(());
        }
        if self.buf.is_empty() {
            self.buf = vec![0; 256 << 10];
        }
        let (mut left, mut in_hole) = (size, false);
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buf.len());
            let n = source.read(&mut self.buf[..want]).map_err(Error::Read)?;
            if n == 0 {
                return Err(Error::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            for piece in self.buf[..n].chunks(HOLE) {
                in_hole = *piece == ZEROS;
                if in_hole {
                    let skipped = rustix::fs::seek(fd, rustix::fs::SeekFrom::Current(HOLE as i64));
                    skipped.map_err(|e| write_error("write", path, e))?;
                    continue;
                }
                let mut rest = piece;
                while !rest.is_empty() {
                    let written = rustix::io::write(fd, rest).map_err(|e| write_error("write", path, e))?;
                    rest = &rest[written..];
                }
            }
            left -= n as u64;
            if left > 0 {
                self.options.cancel.check()?;
            }
        }
        if in_hole {
            rustix::fs::ftruncate(fd, size).map_err(|e| write_error("write", path, e))?;
        }
        Ok(())
    }

    pub(super) fn symlink(&mut self, path: &[u8], place: &Place, entry: &Entry, target: &[u8]) -> Result<(), Error> {
        let goal = CString::new(target).map_err(|_| refused(path, "its link target holds a NUL byte"))?;
        if target.is_empty() {
            return Err(refused(path, "its link target is empty"));
        }
        self.replace(path, place, "create symlink", || rustix::fs::symlinkat(&*goal, &*place.dir, &*place.name))?;
        if !self.is_born_with(entry) {
            self.own_name(path, place, entry, target, false)?;
        }
        self.attributes_name(path, place, entry)?;
        self.time_name(path, place, entry)
    }

    pub(super) fn hardlink(&mut self, path: &[u8], place: &Place, entry: &Entry, target: &[u8]) -> Result<(), Error> {
        let target = self.clean(target)?;
        if target.is_empty() {
            return Err(refused(path, "it is a hard link to a directory"));
        }
        if target == path {
            return Err(refused(path, "it is a hard link to itself"));
        }
        let (parent, name) = split(&target);
        let name = CString::new(name).map_err(|_| refused(path, "its link target holds a NUL byte"))?;
        let from =
            if parent.is_empty() { Ok(None) } else { self.open_inside(parent, OFlags::PATH, Links::Follow).map(Some) };
        let from = from.map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
                refused(path, "it is a hard link to a file that the archive does not have")
            }
            e => write_error("link", path, e),
        })?;
        let from = from.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
        let from = rustix::io::fcntl_dupfd_cloexec(from, 3).map_err(|e| write_error("link", path, e))?;
        // The target is looked at first: replacing our own name must not take it away.
        match rustix::fs::statat(&from, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(refused(path, "it is a hard link to a directory"));
            }
            Ok(_) => {}
            Err(Errno::NOENT) => {
                return Err(refused(path, "it is a hard link to a file that the archive does not have"));
            }
            Err(e) => return Err(write_error("link", path, e)),
        }
        self.replace(path, place, "link", || {
            rustix::fs::linkat(&from, &*name, &*place.dir, &*place.name, AtFlags::empty())
        })
        .map_err(|e| match e {
            Error::Write { source, .. } if source.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                refused(path, "it is a hard link to a file that the archive does not have")
            }
            e => e,
        })?;
        let stat = rustix::fs::statat(&*place.dir, &*place.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| write_error("look at", path, e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let link_target = match kind {
            FileType::Symlink => rustix::fs::readlinkat(&*place.dir, &*place.name, Vec::new())
                .map_err(|e| write_error("read link", path, e))?
                .into_bytes(),
            _ => Vec::new(),
        };
        // The header of the link is the last word on the file's metadata, as in other tools. Mostly it says the same again,
        // and then nothing may be touched: a change of owner, even to the same, takes away capabilities.
        let owned = self.owner_of(path, place, &stat)? == (entry.uid, entry.gid);
        if !owned {
            self.own_name(path, place, entry, &link_target, kind == FileType::RegularFile)?;
        }
        self.attributes_name(path, place, entry)?;
        if kind != FileType::Symlink && (!owned || self.masked == ANY || stat.st_mode & 0o7777 != entry.mode) {
            self.mode_name(path, place, entry.mode)?;
        }
        if (stat.st_mtime, stat.st_mtime_nsec as u32) == entry.mtime {
            return Ok(());
        }
        self.time_name(path, place, entry)
    }

    pub(super) fn node(
        &mut self,
        path: &[u8],
        place: &Place,
        entry: &Entry,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), Error> {
        if kind != FileType::Fifo && self.options.devices == Devices::Skip {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(entry.mode);
        let dev = rustix::fs::makedev(major, minor);
        let made = self
            .replace(path, place, "create device", || rustix::fs::mknodat(&*place.dir, &*place.name, kind, mode, dev));
        match made {
            Ok(()) => {}
            Err(Error::Write { source, .. })
                if self.options.shadow && source.raw_os_error() == Some(Errno::PERM.raw_os_error()) =>
            {
                let fd = self.create(path, place, 0o600)?;
                rustix::fs::fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(|e| owner_error(path, entry, e))?;
                let device = Some((kind.as_raw_mode() | entry.mode, major, minor));
                let shadow = Shadow { uid: entry.uid, gid: entry.gid, device };
                shadow.write_fd(&fd).map_err(|e| io_error("record the device", path, e))?;
                return rustix::fs::futimens(&fd, &self.times(entry.mtime, entry.atime))
                    .map_err(|e| write_error("set the time of", path, e));
            }
            Err(e) => return Err(e),
        }
        self.own_name(path, place, entry, b"", false)?;
        self.attributes_name(path, place, entry)?;
        self.mode_name(path, place, entry.mode)?;
        self.time_name(path, place, entry)
    }

    /// Makes a new thing under a name, removing what stands there.
    fn replace(
        &mut self,
        path: &[u8],
        place: &Place,
        doing: &'static str,
        make: impl Fn() -> Result<(), Errno>,
    ) -> Result<(), Error> {
        match make() {
            Err(Errno::EXIST) => {}
            other => return other.map_err(|e| write_error(doing, path, e)),
        }
        remove(&place.dir, &place.name).map_err(|e| write_error("replace", path, e))?;
        self.drop_beneath(path);
        self.forget_aliases();
        make().map_err(|e| write_error(doing, path, e))
    }
}
