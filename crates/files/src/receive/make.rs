//! What a transfer does to the directory: files are made, linked and removed, and at the end directories settled.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use sys::path::{Links, Root, lstat_at};

use super::mirror::{Fixed, Here, Mirrored};
use super::{Receiver, Sent, is_below, name_of, parent_of};
use crate::checksum::memo::MemoKey;
use crate::error::Error;
use crate::lexical;
use crate::stat::{Kind, Stat};
use crate::target::{Target, shown, timestamps};
use crate::walk::list;

impl Receiver<'_> {
    /// Removes what is there from earlier, with all below it.
    pub(super) fn remove(&mut self, old: &Mirrored) -> Result<(), Error> {
        self.changes()?;
        let path = &old.sent.path;
        self.note_unlinked(&old.here.stat);
        while let Some(below) = self.before.next_if(|below| is_below(&below.sent.path, path)) {
            self.note_unlinked(&below.here.stat);
        }
        let (root, name) = (self.root, name_of(path).to_owned());
        let dir = self.dir(parent_of(path))?;
        Target::new(root).remove_all(&*dir, &name, path)?;
        // Whatever lay below a removed directory must not be found by its descriptor.
        self.dir = None;
        Ok(())
    }

    /// Removes what has the name of a file that comes; a directory stays for a directory.
    pub(super) fn make_way(&mut self, sent: &Sent) -> Result<(), Error> {
        let (root, name) = (self.root, name_of(&sent.path).to_owned());
        let dir = self.dir(parent_of(&sent.path))?;
        match lstat_at(&*dir, &name).map(Stat::from) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Ok(stat) if stat.kind == Kind::Dir && sent.kind == Kind::Dir => Ok(()),
            Ok(_) => Target::new(root).remove_all(&*dir, &name, &sent.path),
            Err(source) => Err(Error::io("stat", shown(&sent.path), source)),
        }
    }

    fn note_unlinked(&mut self, stat: &Stat) {
        if stat.kind == Kind::File && stat.nlink > 1 {
            self.unlinked.insert(stat.ino);
        }
    }

    /// Looks again at files that lost names: that moved their ctime.
    pub(super) fn look_again(&mut self) -> Result<(), Error> {
        let unlinked = std::mem::take(&mut self.unlinked);
        if unlinked.is_empty() {
            return Ok(());
        }
        for index in 0..self.now.len() {
            let file = self.now.fixed(index);
            if file.kind != Kind::File || !unlinked.contains(&file.here.stat.ino) {
                continue;
            }
            let path = self.now.path(index);
            let stat = self.root.stat(lexical::to_path(path), Links::Refuse);
            let here = Here::from(stat.map_err(|source| Error::io("stat", shown(path), source))?);
            if let Some(known) = self.memo.get(&MemoKey::of(&file.here.stat)) {
                self.memo.put(&MemoKey::of(&here.stat), known);
            }
            self.now.set_here(index, here);
        }
        Ok(())
    }

    /// Makes what has no bytes, or changes the directory that is there.
    pub(super) fn make(&mut self, sent: &Sent) -> Result<Here, Error> {
        let failed = |call, errno: Errno| Error::io(call, shown(&sent.path), errno);
        let (name, keeps_others) = (name_of(&sent.path).to_owned(), self.keeps_others);
        let dir = self.dir(parent_of(&sent.path))?;
        let mode = Mode::from_raw_mode(sent.mode);
        match sent.kind {
            Kind::Dir => match rustix::fs::mkdirat(&*dir, &name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed("create directory", errno)),
            },
            Kind::Symlink => rustix::fs::symlinkat(OsStr::from_bytes(&sent.link), &*dir, &name)
                .map_err(|errno| failed("create link", errno))?,
            kind => rustix::fs::mknodat(&*dir, &name, kind.to_raw(), mode, sent.rdev)
                .map_err(|errno| failed("create", errno))?,
        }
        for (xattr, value) in &sent.xattrs {
            let path = format!("/proc/self/fd/{}/", std::os::fd::AsRawFd::as_raw_fd(&*dir));
            let path = [path.as_bytes(), name.as_bytes()].concat();
            set_xattr(keeps_others, xattr, |xattr| {
                rustix::fs::lsetxattr(OsStr::from_bytes(&path), xattr, value, XattrFlags::empty())
            })
            .map_err(|errno| failed("set attribute of", errno))?;
        }
        if !matches!(sent.kind, Kind::Symlink | Kind::Dir) {
            rustix::fs::chmodat(&*dir, &name, mode, AtFlags::empty())
                .map_err(|errno| failed("change mode of", errno))?;
        }
        let times = timestamps((sent.mtime, sent.mtime));
        rustix::fs::utimensat(&*dir, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("set times of", errno))?;
        let stat = lstat_at(&*dir, &name).map_err(|source| Error::io("stat", shown(&sent.path), source))?;
        Ok(stat.into())
    }

    /// Gives a file another name.
    pub(super) fn link(&mut self, index: usize) -> Result<(), Error> {
        let Sent { path, link, .. } = self.now.get(index).sent;
        let failed = |call, errno: Errno| Error::io(call, shown(&path), errno);
        // Walk order is the order of the list.
        let target =
            self.now.find(&link).filter(|target| *target < index && self.now.fixed(*target).kind == Kind::File);
        let target = target.ok_or_else(|| failed("link", Errno::NOENT))?;
        let (from, name) = (name_of(&link).to_owned(), name_of(&path).to_owned());
        let from_dir = self.root.open_dir(lexical::to_path(parent_of(&link)), Links::Refuse);
        let from_dir = from_dir.map_err(|source| Error::io("open", shown(parent_of(&link)), source))?;
        let dir = self.dir(parent_of(&path))?;
        rustix::fs::linkat(&from_dir, &from, &*dir, &name, AtFlags::empty()).map_err(|errno| failed("link", errno))?;
        // Linking moved the ctime of all names: what was known by the old one is known by the new one.
        let here = Here::from(lstat_at(&*dir, &name).map_err(|source| Error::io("stat", shown(&path), source))?);
        let first = self.now.fixed(target);
        let known = self.memo.get(&MemoKey::of(&first.here.stat));
        if let Some(known) = known {
            self.memo.put(&MemoKey::of(&here.stat), known);
        }
        self.now.set_here(target, here);
        for other in target..index {
            let file = self.now.fixed(other);
            if file.kind == Kind::File && file.here.stat.ino == here.stat.ino {
                self.now.set_here(other, here);
            }
        }
        self.now.set(index, &Fixed { size: first.size, here, ..self.now.fixed(index) });
        Ok(())
    }

    /// Modes and times of directories, deepest first, now that nothing is put into them any more.
    pub(super) fn settle_dirs(&mut self) -> Result<(), Error> {
        self.dir = None;
        for index in (0..self.now.len()).rev() {
            let Fixed { kind, mode, mtime, here, .. } = self.now.fixed(index);
            if kind != Kind::Dir {
                continue;
            }
            let is_settled = here.stat.mode == mode && here.stat.mtime == mtime;
            if is_settled && !self.touched.contains(self.now.path(index)) {
                continue;
            }
            self.changes()?;
            let path = self.now.path(index);
            let failed = |call, source: std::io::Error| Error::io(call, shown(path), source);
            let dir = self.root.parent(lexical::to_path(path), Links::Refuse);
            let (dir, name) = dir.map_err(|source| failed("open", source))?;
            rustix::fs::chmodat(&dir, &name, Mode::from_raw_mode(mode), AtFlags::empty())
                .map_err(|errno| failed("change mode of", errno.into()))?;
            let times = timestamps((mtime, mtime));
            rustix::fs::utimensat(&dir, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| failed("set times of", errno.into()))?;
            let stat = lstat_at(&dir, &name).map_err(|source| failed("stat", source))?;
            self.now.set_here(index, stat.into());
        }
        Ok(())
    }

    /// An open directory; the last one is kept, since files come directory by directory.
    pub(super) fn dir(&mut self, path: &[u8]) -> Result<&mut OwnedFd, Error> {
        if self.dir.as_ref().is_none_or(|(known, _)| known != path) {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let dir = self.root.open_at(lexical::to_path(path), flags, Mode::empty(), Links::Refuse);
            self.dir = Some((path.to_vec(), dir.map_err(|source| Error::io("open", shown(path), source))?));
        }
        match &mut self.dir {
            Some((_, dir)) => Ok(dir),
            None => Err(Error::io("open", shown(path), Errno::NOENT)),
        }
    }
}

/// Removes everything in a directory.
pub(super) fn empty(root: &Root) -> Result<(), Error> {
    let dir = root.open_dir("", Links::Refuse).map_err(|source| Error::io("open", root.path(), source))?;
    for (name, _) in list(&dir, b"")? {
        Target::new(root).remove_all(&dir, &name, name.as_bytes())?;
    }
    Ok(())
}

/// Attributes that this file system or user cannot set are remembered all the same: they are part of what was sent. A
/// directory of the user gets those that it takes, as from BuildKit's clients.
pub(super) fn set_xattr(
    keeps_others: bool,
    name: &[u8],
    set: impl Fn(&OsStr) -> Result<(), Errno>,
) -> Result<(), Errno> {
    match set(OsStr::from_bytes(name)) {
        Err(_) if keeps_others => Ok(()),
        Err(Errno::PERM | Errno::NOTSUP | Errno::ACCESS) => Ok(()),
        result => result,
    }
}
