//! `.wh.` names: what they hide, said in the way of the directory's file system.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use sys::xattr;

use super::error::{io_error, refused, write_error};
use super::walk::{Place, Unpacker, join, split};
use super::{Entry, Error, Whiteouts};

const OPAQUE: &[u8] = b".wh..wh..opq";
const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";

impl Unpacker<'_> {
    /// Handles `.wh.` names; says whether it was one.
    pub(super) fn whiteout(&mut self, path: &[u8], place: &Place, entry: &Entry) -> Result<bool, Error> {
        let name = place.name.to_bytes();
        if !name.starts_with(WHITEOUT) {
            return Ok(false);
        }
        let (parent, _) = split(path);
        if name == OPAQUE {
            self.opaque(parent, place)?;
            return Ok(true);
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(true); // AUFS's own files: reserved, and of no meaning here.
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(&entry.path, "a whiteout must name a file of its directory"));
        }
        let hidden_path = join(parent, hidden);
        let hidden = CString::new(hidden).map_err(|_| refused(path, "its name holds a NUL byte"))?;
        match self.options.whiteouts {
            Whiteouts::Literal => return Ok(false),
            Whiteouts::Delete => {
                if !self.unpacked.contains(&hidden_path) {
                    remove(&place.dir, &hidden).map_err(|e| write_error("remove", &hidden_path, e))?;
                    self.forget_aliases();
                }
            }
            Whiteouts::Overlay { .. } => self.overlay_whiteout(&hidden_path, &place.dir, &hidden)?,
        }
        Ok(true)
    }

    fn overlay_whiteout(&mut self, path: &[u8], dir: &OwnedFd, name: &CStr) -> Result<(), Error> {
        match rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                self.whiteouts.insert(path.to_vec());
                Ok(())
            }
            // A whiteout speaks of lower layers only: what this layer has itself stays, but hides what is below.
            Err(Errno::EXIST) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(dir, name, flags, Mode::empty()) {
                    Ok(fd) => self.mark_opaque(&fd, path),
                    Err(_) => Ok(()),
                }
            }
            Err(e) => Err(write_error("create whiteout", path, e)),
        }
    }

    fn opaque(&mut self, parent: &[u8], place: &Place) -> Result<(), Error> {
        match self.options.whiteouts {
            Whiteouts::Literal => Ok(()),
            Whiteouts::Overlay { .. } if parent.is_empty() => {
                self.report.opaque_root = true;
                Ok(())
            }
            Whiteouts::Overlay { .. } => self.mark_opaque(&place.dir, parent),
            Whiteouts::Delete => {
                let removed = clear(&place.dir, parent, &self.unpacked);
                self.forget_aliases();
                removed.map_err(|e| write_error("empty directory", parent, e))
            }
        }
    }

    pub(super) fn mark_opaque(&self, dir: impl AsFd, path: &[u8]) -> Result<(), Error> {
        let Whiteouts::Overlay { userxattr } = self.options.whiteouts else { return Ok(()) };
        let key = if userxattr { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
        xattr::set_fd(dir, key, b"y").map_err(|e| io_error("mark as opaque", path, e))
    }
}

/// Removes a name and all beneath it; one that is not there is removed already.
pub(super) fn remove(dir: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(dir, name, flags, Mode::empty())?
        }
        other => other?,
    };
    for child in names(&inner)? {
        match remove(&inner, &child) {
            Err(Errno::ACCESS) => {
                rustix::fs::fchmod(&inner, Mode::RWXU)?;
                remove(&inner, &child)?;
            }
            other => other?,
        }
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Removes from `dir`, which is `path`, everything that is not in `keep`.
fn clear(dir: &OwnedFd, path: &[u8], keep: &HashSet<Vec<u8>>) -> Result<(), Errno> {
    for child in names(dir)? {
        let child_path = join(path, child.to_bytes());
        if !keep.contains(&child_path) {
            remove(dir, &child)?;
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(inner) = rustix::fs::openat(dir, &*child, flags, Mode::empty()) {
            clear(&inner, &child_path, keep)?;
        }
    }
    Ok(())
}

fn names(dir: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            found.push(entry.file_name().to_owned());
        }
    }
    Ok(found)
}
