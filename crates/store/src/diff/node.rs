//! One file as layers see it: what the kernel says, corrected by what it refused (`sys::shadow`).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Stat};
use sys::path::Root;
use sys::shadow::{self, Shadow};
use sys::xattr;

use super::{FileKind, Metadata};

const CAPABILITY: &[u8] = b"security.capability";

/// A file in one of the directories that make up a tree.
#[derive(Clone)]
pub(super) struct Node {
    /// The directory that has it.
    pub(super) dir: Rc<OwnedFd>,
    pub(super) name: CString,
    /// The root of that layer.
    pub(super) layer: Arc<Root>,
    /// What it is, corrected.
    pub(super) stat: Stat,
    shadowed: bool,
}

/// A character device 0/0.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

impl Node {
    /// Looks at `name`, whose path in the tree is `path`; none if it is not there. A whiteout is a node too.
    pub(super) fn look(
        dir: &Rc<OwnedFd>,
        layer: &Arc<Root>,
        name: &CStr,
        path: &[u8],
        shadow: Option<&shadow::Table>,
    ) -> io::Result<Option<Node>> {
        let stat = match rustix::fs::statat(&**dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let mut node = Node {
            dir: Rc::clone(dir),
            name: name.to_owned(),
            layer: Arc::clone(layer),
            stat,
            shadowed: shadow.is_some(),
        };
        if let Some(links) = shadow.filter(|_| !is_whiteout(&stat)) {
            node.correct(path, links)?;
        }
        Ok(Some(node))
    }

    fn correct(&mut self, path: &[u8], links: &shadow::Table) -> io::Result<()> {
        if !matches!(self.file_type(), FileType::RegularFile | FileType::Directory) {
            let target = if self.file_type() == FileType::Symlink { self.target()? } else { Vec::new() };
            if let Some(shadow) = links.get(path, &target) {
                self.own(shadow);
            }
            return Ok(());
        }
        if let Some(shadow) = Shadow::read(&self.proc_path())? {
            self.own(shadow);
            if let Some((mode, major, minor)) = shadow.device {
                self.stat.st_mode = mode;
                self.stat.st_rdev = rustix::fs::makedev(major, minor);
                self.stat.st_size = 0;
            }
        }
        Ok(())
    }

    fn own(&mut self, shadow: Shadow) {
        (self.stat.st_uid, self.stat.st_gid) = shadow.owner_of((self.stat.st_uid, self.stat.st_gid));
    }

    pub(super) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub(super) fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    pub(super) fn is_whiteout(&self) -> bool {
        is_whiteout(&self.stat)
    }

    /// Whether the file has several names.
    pub(super) fn is_linked(&self) -> bool {
        !self.is_dir() && self.stat.st_nlink > 1
    }

    pub(super) fn proc_path(&self) -> std::path::PathBuf {
        xattr::proc_path(&*self.dir, self.name.to_bytes())
    }

    pub(super) fn target(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&*self.dir, &*self.name, Vec::new())?.into_bytes())
    }

    /// What a layer says about it; none for a socket.
    pub(super) fn metadata(&self) -> io::Result<Option<Metadata>> {
        let numbers = || (rustix::fs::major(self.stat.st_rdev), rustix::fs::minor(self.stat.st_rdev));
        let kind = match self.file_type() {
            FileType::RegularFile => FileKind::Regular,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink(self.target()?),
            FileType::CharacterDevice => FileKind::CharDevice(numbers().0, numbers().1),
            FileType::BlockDevice => FileKind::BlockDevice(numbers().0, numbers().1),
            FileType::Fifo => FileKind::Fifo,
            _ => return Ok(None),
        };
        let size = if kind == FileKind::Regular { self.stat.st_size.unsigned_abs() } else { 0 };
        Ok(Some(Metadata {
            mode: self.stat.st_mode & 0o7777,
            uid: self.stat.st_uid,
            gid: self.stat.st_gid,
            mtime: (self.stat.st_mtime, self.stat.st_mtime_nsec as u32),
            size,
            xattrs: self.xattrs()?,
            kind,
        }))
    }

    /// Its attributes that layers carry.
    pub(super) fn xattrs(&self) -> io::Result<Vec<xattr::Xattr>> {
        let path = self.proc_path();
        let mut found = xattr::all(&path, is_portable)?;
        if self.shadowed
            && let Some(capability) = xattr::get(&path, shadow::CAPABILITY)?
        {
            found.retain(|(name, _)| name != CAPABILITY);
            found.insert(0, (CAPABILITY.to_vec(), capability));
        }
        Ok(found)
    }
}

/// Attributes that mean the same elsewhere.
fn is_portable(name: &[u8]) -> bool {
    let private = name.starts_with(b"user.overlay.") || name.starts_with(shadow::PREFIX);
    name == CAPABILITY || name.starts_with(b"user.") && !private
}
