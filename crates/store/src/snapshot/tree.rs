//! Where trees are, and how they are seen.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid};
use sys::mount::{FsView, MAX_LAYERS, Overlay};
use sys::shadow;

use super::SnapshotId;
use crate::{Driver, Error, Inner, Result};

/// The directory of the identity's snapshots.
pub(crate) fn base(inner: &Inner) -> &Path {
    &inner.driver.snapshots
}

/// The tree, or the layer's own directory.
pub(crate) fn dir(inner: &Inner, id: SnapshotId) -> PathBuf {
    base(inner).join(id.to_string())
}

/// Overlay's work directory.
pub(crate) fn work_dir(inner: &Inner, id: SnapshotId) -> PathBuf {
    base(inner).join(format!("w{id}"))
}

/// Where a lazy layer is unpacked.
pub(crate) fn fill_dir(inner: &Inner, id: SnapshotId) -> PathBuf {
    base(inner).join(format!("t{id}"))
}

/// The table of link owners.
pub(crate) fn links_file(inner: &Inner, id: SnapshotId) -> PathBuf {
    base(inner).join(format!("l{id}"))
}

/// What a path in [`base`] is called while it waits for its removal.
pub(crate) fn trash_dir(inner: &Inner) -> PathBuf {
    base(inner).join("trash")
}

/// Makes an empty directory that looks like the top of `parent`, or root's. Its mode is 0755 whatever a step made of it: no
/// layer says anything else, and so no image has it. With the overlay driver the parent may still have to be unpacked.
pub(super) fn make(inner: &Inner, id: SnapshotId, parent: Option<SnapshotId>) -> Result<PathBuf> {
    let path = dir(inner, id);
    std::fs::DirBuilder::new().mode(0o755).create(&path).map_err(|e| Error::io("create directory", &path, e))?;
    let top = match parent {
        Some(parent) => topmost(inner, parent)?,
        None => None,
    };
    if let Some(top) = top {
        copy_looks(&top, &path).map_err(|e| Error::io("set the owner of", &path, e))?;
    }
    set_mode(&path, 0o755)?;
    Ok(path)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(|e| Error::io("set the mode of", path, e))
}

/// The topmost directory of the tree. None where a layer is to be unpacked into it first: what is unpacked looks as a new
/// directory does.
fn topmost(inner: &Inner, id: SnapshotId) -> Result<Option<PathBuf>> {
    if inner.driver.driver == Driver::Copy {
        return Ok(layer_dirs(inner, id)?.into_iter().next());
    }
    let table = inner.snapshots.table();
    let mut at = Some(id);
    while let Some(id) = at {
        let record = table.records.get(&id).ok_or(Error::Missing(id))?;
        if !record.filled || !record.empty {
            return Ok(record.filled.then(|| dir(inner, id)));
        }
        at = record.parent;
    }
    Ok(Some(dir(inner, id)))
}

/// Gives `to` owner, mode and times of `from`, and the attributes that layers have.
pub(super) fn copy_looks(from: &Path, to: &Path) -> std::io::Result<()> {
    let stat = rustix::fs::lstat(from)?;
    let mine = std::fs::symlink_metadata(to)?;
    if (mine.uid(), mine.gid()) != (stat.st_uid, stat.st_gid) {
        rustix::fs::chownat(
            CWD,
            to,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    for (name, value) in sys::xattr::all(from, crate::diff::is_inheritable)? {
        sys::xattr::set(to, &sys::xattr::c_name(&name)?, &value)?;
    }
    if mine.mode() & 0o7777 != stat.st_mode & 0o7777 {
        rustix::fs::chmod(to, Mode::from_raw_mode(stat.st_mode))?;
    }
    rustix::fs::utimensat(CWD, to, &sys::copy::times(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// The directories that make up the tree, topmost first.
pub(crate) fn layer_dirs(inner: &Inner, id: SnapshotId) -> Result<Vec<PathBuf>> {
    let table = inner.snapshots.table();
    let mut dirs = Vec::new();
    let mut at = Some(id);
    while let Some(id) = at {
        let record = table.records.get(&id).ok_or(Error::Missing(id))?;
        if !record.filled {
            return Err(Error::NotFilled(id));
        }
        if !record.empty {
            dirs.push(dir(inner, id));
        }
        if inner.driver.driver == Driver::Copy || record.opaque {
            break;
        }
        at = record.parent;
    }
    if dirs.is_empty() {
        dirs.push(dir(inner, id));
    }
    Ok(dirs)
}

/// A view to read.
pub(super) fn read_view(inner: &Inner, mut layers: Vec<PathBuf>) -> FsView {
    if layers.len() == 1 {
        return FsView::Dir { path: layers.swap_remove(0), read_only: true };
    }
    FsView::Overlay(Overlay { lower: layers, upper: None, userxattr: inner.driver.userxattr, volatile: false })
}

/// A view to write the directory of `id`, on the layers below it.
pub(super) fn write_view(inner: &Inner, id: SnapshotId, lower: Vec<PathBuf>, lasting: bool) -> Result<FsView> {
    let path = dir(inner, id);
    if lower.is_empty() || inner.driver.driver == Driver::Copy {
        return Ok(FsView::Dir { path, read_only: false });
    }
    if lower.len() > MAX_LAYERS {
        return Err(Error::TooDeep(lower.len()));
    }
    let work = work_dir(inner, id);
    forget_volatile(&work);
    let volatile = inner.driver.volatile && !lasting;
    Ok(FsView::Overlay(Overlay { lower, upper: Some((path, work)), userxattr: inner.driver.userxattr, volatile }))
}

/// A volatile overlay refuses to be mounted again until this mark of an earlier mount is gone.
fn forget_volatile(work: &Path) {
    let mark = work.join("work/incompat");
    if std::fs::remove_dir(mark.join("volatile")).is_ok() {
        let _ = std::fs::remove_dir(mark);
    }
}

/// Removes overlay's work directory, which is empty but for its own marks once nothing is mounted.
pub(super) fn remove_work(work: &Path) -> std::io::Result<()> {
    forget_volatile(work);
    let _ = std::fs::remove_dir(work.join("work"));
    match std::fs::remove_dir(work) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => remove_tree(work),
        other => other,
    }
}

/// Removes a tree, also one whose directories forbid it to their owner.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    match remove_any(path) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            remove_any(path)
        }
        other => other,
    }
}

fn remove_any(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn open_up(path: &Path) -> std::io::Result<()> {
    let mut waiting = vec![path.to_owned()];
    while let Some(dir) = waiting.pop() {
        rustix::fs::chmod(&dir, Mode::RWXU)?;
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(())
}

/// The owners of links of the whole tree of `id`.
pub(super) fn link_owners(inner: &Inner, id: SnapshotId) -> Result<shadow::Table> {
    let mut all = shadow::Table::default();
    let mut chain = inner.snapshots.chain(id)?;
    if inner.driver.driver == Driver::Copy {
        chain.truncate(1);
    }
    for id in chain.into_iter().rev() {
        all.extend(&read_links(inner, id)?);
    }
    Ok(all)
}

/// The owners of links recorded for one snapshot. A damaged table is no table: owners are then as on disk.
pub(crate) fn read_links(inner: &Inner, id: SnapshotId) -> Result<shadow::Table> {
    let path = links_file(inner, id);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(shadow::Table::decode(&bytes).unwrap_or_default()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(shadow::Table::default()),
        Err(e) => Err(Error::io("read", &path, e)),
    }
}

/// Records the owners of links of one snapshot.
pub(super) fn write_links(inner: &Inner, id: SnapshotId, table: &shadow::Table) -> Result<()> {
    if table.is_empty() {
        return Ok(());
    }
    let path = links_file(inner, id);
    let write = || std::fs::File::create(&path)?.write_all(&table.encode());
    write().map_err(|e| Error::io("write", &path, e))
}

/// Allocated bytes of a tree; a file with several names counts once.
pub(crate) fn allocated(path: &Path) -> std::io::Result<u64> {
    let open = |at: BorrowedFd<'_>, name: &CStr| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(at, name, flags, Mode::empty())
    };
    let top = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut seen = std::collections::HashSet::new();
    let mut total = 0;
    // Directories by the way to them: as few are open at a time as the tree is deep.
    let mut stack = vec![(Dir::read_from(&top)?, top)];
    total += blocks(&rustix::fs::fstat(&stack[0].1)?);
    while let Some((entries, dir)) = stack.last_mut() {
        let Some(entry) = entries.read() else {
            stack.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_nlink == 1 || seen.insert((stat.st_dev, stat.st_ino)) {
            total += blocks(&stat);
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let child = open(dir.as_fd(), name)?;
            stack.push((Dir::read_from(&child)?, child));
        }
    }
    Ok(total)
}

pub(super) fn blocks(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}
