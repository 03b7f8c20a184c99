//! Owner, mode, times and attributes of what was made; what the kernel refuses is recorded.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use sys::shadow::{self, Shadow};
use sys::xattr;

use super::error::{io_error, owner_error, refused, write_error};
use super::walk::{Place, Unpacker};
use super::{Entry, Error, Times};

pub(crate) const CAPABILITY: &[u8] = b"security.capability";

impl Unpacker<'_> {
    /// Whether a new file in the current directory belongs to the entry's owner from the start.
    pub(super) fn is_born_with(&self, entry: &Entry) -> bool {
        let inherits = self.steps.last().map_or(self.root_setgid, |step| step.setgid);
        !inherits && (entry.uid, entry.gid) == self.ids
    }

    /// Sets the owner of an open file or directory; says whether it had to.
    pub(super) fn own_fd(&mut self, path: &[u8], fd: &OwnedFd, entry: &Entry, existing: bool) -> Result<bool, Error> {
        if !existing && self.is_born_with(entry) {
            return Ok(false);
        }
        match rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))) {
            Ok(()) if self.options.shadow && existing => {
                let forgotten = Shadow::forget_owner(&xattr::proc_path(fd, b"."));
                forgotten.map_err(|e| io_error("forget the earlier owner of", path, e))?;
            }
            Ok(()) => {}
            Err(Errno::PERM | Errno::INVAL) if self.options.shadow => {
                rustix::fs::fchown(fd, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(|e| owner_error(path, entry, e))?;
                let recorded = Shadow::owner(entry.uid, entry.gid).write_fd(fd);
                recorded.map_err(|e| io_error("record the owner of", path, e))?;
            }
            Err(e) => return Err(owner_error(path, entry, e)),
        }
        Ok(true)
    }

    /// Sets the owner of a name that is not opened. `data` says that it is a regular file, which can carry a record.
    pub(super) fn own_name(
        &mut self,
        path: &[u8],
        place: &Place,
        entry: &Entry,
        target: &[u8],
        data: bool,
    ) -> Result<(), Error> {
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        match rustix::fs::chownat(&*place.dir, &*place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::PERM | Errno::INVAL) if self.options.shadow && data => {
                let file = xattr::proc_path(&*place.dir, place.name.to_bytes());
                self.leave_to_us(path, place, entry)?;
                // A hard link to a recorded device keeps its record.
                match Shadow::read(&file).map_err(|e| io_error("read the record of", path, e))? {
                    Some(Shadow { device: Some(_), .. }) => Ok(()),
                    _ => Shadow::owner(entry.uid, entry.gid)
                        .write(&file)
                        .map_err(|e| io_error("record the owner of", path, e)),
                }
            }
            Err(Errno::PERM | Errno::INVAL) if self.options.shadow => {
                self.leave_to_us(path, place, entry)?;
                self.report.links.insert(path.to_vec(), entry.uid, entry.gid, target.to_vec());
                Ok(())
            }
            Err(e) => Err(owner_error(path, entry, e)),
        }
    }

    /// Whom a name belongs to, of which this is the `stat`: what is recorded counts, where anything can be.
    pub(super) fn owner_of(&self, path: &[u8], place: &Place, stat: &Stat) -> Result<(u32, u32), Error> {
        let is = (stat.st_uid, stat.st_gid);
        if !self.options.shadow || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(is);
        }
        let recorded = Shadow::read(&xattr::proc_path(&*place.dir, place.name.to_bytes()));
        let recorded = recorded.map_err(|e| io_error("read the record of", path, e))?;
        Ok(recorded.map_or(is, |shadow| shadow.owner_of(is)))
    }

    /// What a directory with the set-group-id bit holds is born to its group; what is recorded must be root's.
    fn leave_to_us(&self, path: &[u8], place: &Place, entry: &Entry) -> Result<(), Error> {
        let (uid, gid) = (Some(Uid::ROOT), Some(Gid::ROOT));
        let left = rustix::fs::chownat(&*place.dir, &*place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        left.map_err(|e| owner_error(path, entry, e))
    }

    pub(super) fn mode_name(&self, path: &[u8], place: &Place, mode: u32) -> Result<(), Error> {
        rustix::fs::chmodat(&*place.dir, &*place.name, Mode::from_raw_mode(mode), AtFlags::empty())
            .map_err(|e| write_error("set the mode of", path, e))
    }

    pub(super) fn times(&self, mtime: (i64, u32), atime: Option<(i64, u32)>) -> Timestamps {
        let can_be = |sec| self.options.times == Times::Exact || (0..=i64::MAX / 1_000_000_000).contains(&sec);
        let bound = |(sec, nsec): (i64, u32)| if can_be(sec) { (sec, nsec) } else { (0, 0) };
        let spec = |(tv_sec, nsec): (i64, u32)| Timespec { tv_sec, tv_nsec: nsec.into() };
        let latest = atime.map_or(mtime, |atime| atime.max(mtime));
        Timestamps { last_access: spec(bound(latest)), last_modification: spec(bound(mtime)) }
    }

    pub(super) fn time_name(&self, path: &[u8], place: &Place, entry: &Entry) -> Result<(), Error> {
        let times = self.times(entry.mtime, entry.atime);
        rustix::fs::utimensat(&*place.dir, &*place.name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| write_error("set the time of", path, e))
    }

    pub(super) fn attributes_fd(&self, path: &[u8], fd: &OwnedFd, entry: &Entry) -> Result<(), Error> {
        for (name, value) in &entry.xattrs {
            self.attribute(path, name, value, &|key, value| xattr::set_fd(fd, key, value))?;
        }
        Ok(())
    }

    /// A layer describes a directory whole: what it had in the layer below and is not listed here is gone.
    pub(super) fn clear_attributes(&self, path: &[u8], fd: &OwnedFd, entry: &Entry) -> Result<(), Error> {
        let failed = |e| io_error("clear an attribute of", path, e);
        for name in xattr::list_fd(fd).map_err(failed)? {
            let listed = entry.xattrs.iter().any(|(listed, _)| *listed == name);
            if name.starts_with(b"user.") && !listed {
                xattr::c_name(&name).and_then(|key| xattr::remove_fd(fd, &key)).map_err(failed)?;
            }
        }
        Ok(())
    }

    pub(super) fn attributes_name(&self, path: &[u8], place: &Place, entry: &Entry) -> Result<(), Error> {
        if entry.xattrs.is_empty() {
            return Ok(());
        }
        let file = xattr::proc_path(&*place.dir, place.name.to_bytes());
        for (name, value) in &entry.xattrs {
            self.attribute(path, name, value, &|key, value| xattr::set(&file, key, value))?;
        }
        Ok(())
    }

    fn attribute(
        &self,
        path: &[u8],
        name: &[u8],
        value: &[u8],
        set: &dyn Fn(&CStr, &[u8]) -> io::Result<()>,
    ) -> Result<(), Error> {
        if is_private(name) {
            return Ok(()); // An archive must not speak in overlayfs's name, nor in ours.
        }
        let key = xattr::c_name(name).map_err(|_| refused(path, "the name of an attribute holds a NUL byte"))?;
        let error = match set(&key, value) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOTSUP) => Ok(()),
            Some(Errno::PERM | Errno::INVAL) if self.options.shadow && name == CAPABILITY => {
                set(shadow::CAPABILITY, value).map_err(|e| io_error("record the capabilities of", path, e))
            }
            // `user.*` exists on files and directories only; other namespaces may be closed to us.
            Some(Errno::PERM) if name != CAPABILITY => Ok(()),
            _ => Err(io_error("set an attribute of", path, error)),
        }
    }
}

/// Attributes that belong to the builder's machinery.
pub(crate) fn is_private(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") || name.starts_with(shadow::PREFIX)
}
