//! What a snapshot changes, in the order and with the omissions of BuildKit's layers, so that diff ids agree.
//!
//! Nothing is mounted: [`merged`] reads stacked directories as overlayfs shows them. [`overlay`] walks a layer's own
//! directory and asks the layers below only where it must; [`trees`] compares two whole trees, as containerd does.
//! [`sequence`] turns changes into tar entries: parents first, hard links after what they link to.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use sys::path::{Links, Root};
use sys::shadow;

use crate::snapshot::tree;
use crate::{Driver, Error, Inner, Result, SnapshotId, Snapshots};

mod merged;
mod node;
mod overlay;
mod same;
mod sequence;
mod trees;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use merged::Merged;
pub(crate) use sequence::Kept;

/// One entry of a layer.
#[derive(Clone, Debug)]
pub struct Change {
    /// The path without leading slash.
    pub path: Vec<u8>,
    /// What happened.
    pub kind: ChangeKind,
    /// Nothing happened to this directory itself: it is here because something in it changed.
    pub implied: bool,
    /// What is there now; none if it was deleted.
    pub metadata: Option<Metadata>,
    /// The same file as this earlier entry: to be written as a hard link to it, without data.
    pub hardlink: Option<Vec<u8>>,
    /// The root of the directory that has it.
    layer: Option<Arc<Root>>,
}

/// What happened to a path.
///
/// Opaque directories do not appear: what they hide is deleted one by one, as upstream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was not there.
    Add,
    /// It was there.
    Modify,
    /// It is not there any more: a whiteout.
    Delete,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Its type.
    pub kind: FileKind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of data of a regular file, else 0.
    pub size: u64,
    /// File capabilities and `user.*`, sorted; never overlayfs's or our own.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The types of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A character device, major and minor.
    CharDevice(u32, u32),
    /// A block device, major and minor.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

impl Change {
    /// Opens the data of a regular file.
    pub fn open(&self) -> io::Result<File> {
        let layer =
            self.layer.as_ref().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the path was deleted"))?;
        let path = std::ffi::OsStr::from_bytes(&self.path);
        Ok(File::from(layer.open_at(path, OFlags::RDONLY, Mode::empty(), Links::Refuse)?))
    }
}

impl Snapshots {
    /// Visits what the snapshot changes on its parent, in the order of a layer's tar entries.
    ///
    /// The caller holds the snapshot. A visitor's error ends the walk.
    pub fn changes<E: From<Error>>(
        &self,
        id: &SnapshotId,
        mut visit: impl FnMut(&Change) -> Result<(), E>,
    ) -> Result<(), E> {
        let inner = &self.0.inner;
        let (parent, opaque, empty) = inner
            .snapshots
            .with(*id, |record| (record.parent, record.opaque, record.empty))
            .ok_or(Error::Missing(*id))?;
        if empty {
            return Ok(());
        }
        let top = tree::dir(inner, *id);
        if !inner.snapshots.with(*id, |record| record.filled).unwrap_or(false) {
            return Err(Error::NotFilled(*id).into());
        }
        let kept = if parent.is_some() { self.kept(id)? } else { Kept::Nothing };
        let below = match parent.filter(|_| !matches!(kept, Kept::Alone)) {
            Some(parent) => self.merged(&parent)?,
            None => Merged::nothing(),
        };
        let stacked = inner.driver.driver == Driver::Overlay;
        let links = if stacked { tree::read_links(inner, *id)? } else { self.link_owners(id)? };
        let view =
            Merged::open(std::slice::from_ref(&top), shadowed(inner, links)).map_err(|e| Error::io("open", &top, e))?;
        run(&view, kept, &mut visit, |sequence| match stacked && !opaque {
            true => overlay::walk(&view, &below, sequence),
            false => trees::walk(&below, &view, sequence),
        })
        .map_err(|e| e.into_error(&top))
    }

    /// Whether what the snapshot changes on its parent can only be told once that is unpacked.
    pub fn needs_below(&self, id: &SnapshotId) -> Result<bool> {
        let record = |record: &crate::snapshot::Record| record.filled && (record.parent.is_none() || record.empty);
        if self.0.inner.snapshots.with(*id, record).ok_or(Error::Missing(*id))? {
            return Ok(false);
        }
        Ok(self.deletions(id)?.is_none() && !matches!(self.kept(id)?, Kept::Alone))
    }

    /// Visits what leads from one snapshot to another (none: from, or to, nothing), in the order of tar entries.
    pub fn changes_between<E: From<Error>>(
        &self,
        lower: Option<&SnapshotId>,
        upper: Option<&SnapshotId>,
        mut visit: impl FnMut(&Change) -> Result<(), E>,
    ) -> Result<(), E> {
        let open = |id: Option<&SnapshotId>| id.map_or_else(|| Ok(Merged::nothing()), |id| self.merged(id));
        let (lower, view) = (open(lower)?, open(upper)?);
        let dir = self.0.dir().to_owned();
        run(&view, Kept::Nothing, &mut visit, |sequence| trees::walk(&lower, &view, sequence))
            .map_err(|e| e.into_error(&dir))
    }

    fn merged(&self, id: &SnapshotId) -> Result<Merged> {
        let inner = &self.0.inner;
        let dirs = self.layer_dirs(id)?;
        let links = if inner.options.shadow { self.link_owners(id)? } else { shadow::Table::default() };
        Merged::open(&dirs, shadowed(inner, links)).map_err(|e| Error::io("open a layer of", tree::dir(inner, *id), e))
    }
}

/// The table of link owners, where records are made at all.
fn shadowed(inner: &Inner, links: shadow::Table) -> Option<Arc<shadow::Table>> {
    inner.options.shadow.then(|| Arc::new(links))
}

/// Why a walk ended early.
enum Stop<E> {
    /// The kernel refused something at this path.
    Walk(Vec<u8>, io::Error),
    /// The visitor has enough.
    Visitor(E),
}

impl<E: From<Error>> Stop<E> {
    fn into_error(self, top: &std::path::Path) -> E {
        match self {
            Stop::Visitor(e) => e,
            Stop::Walk(path, source) => Error::io("read", top.join(std::ffi::OsStr::from_bytes(&path)), source).into(),
        }
    }
}

fn run<E>(
    view: &Merged,
    kept: Kept,
    visit: &mut dyn FnMut(&Change) -> Result<(), E>,
    walk: impl FnOnce(&mut sequence::Sequence<'_, E>) -> Result<(), Stop<E>>,
) -> Result<(), Stop<E>> {
    walk(&mut sequence::Sequence::new(view, kept, visit))
}

/// Attributes that a new directory takes over from the one it stands for.
pub(crate) fn is_inheritable(name: &[u8]) -> bool {
    let overlay = name.starts_with(b"user.overlay.");
    name.starts_with(b"user.") && !overlay || name == b"security.capability" || name.starts_with(b"system.posix_acl_")
}

/// Whether the path is a whiteout of overlayfs.
pub(crate) fn is_whiteout(path: &std::path::Path) -> bool {
    rustix::fs::lstat(path).is_ok_and(|stat| node::is_whiteout(&stat))
}
