//! A little space kept back, so that a full disk can still be tidied up.
//!
//! Forgetting something is a write to the database, and opening the store makes a few files. `<dir>/reserve` is made of
//! allocated blocks: whoever opens the store to free space gives it up where the disk is full, and the next build
//! allocates it again. Who only looks borrows it where the store cannot be opened without, and gives it back.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

const NAME: &str = "reserve";
/// What is kept back: the log of a database of many thousand records.
pub(crate) const BYTES: u64 = 4 << 20;

/// What an opening of the store does with the reserve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reserve {
    /// Sees that it is there. Where the store cannot be opened without, it is lent: who builds then makes room for what
    /// does not fit, and knows by then what of the store is in use.
    #[default]
    Keep,
    /// Uses it where the store cannot be opened without, and allocates it again in the end: what is stored is only looked
    /// at.
    Borrow,
    /// Gives it up where the disk is full: something is going to be removed.
    Spend,
}

/// Allocates the reserve if it is not there. Where there is little room, which the build needs more, or where the file
/// system cannot do that, there is none.
pub(crate) fn keep(dir: &Path) {
    let path = dir.join(NAME);
    if std::fs::metadata(&path).is_ok_and(|file| file.blocks() * 512 >= BYTES) {
        return;
    }
    let free = rustix::fs::statvfs(dir).map_or(0, |volume| volume.f_bavail.saturating_mul(volume.f_frsize));
    if free / 4 < BYTES {
        return;
    }
    if !allocate(&path, BYTES) {
        let _ = std::fs::remove_file(&path);
    }
}

/// Gives the reserve up if nothing else is left.
pub(crate) fn spend_if_full(dir: &Path) {
    let probe = dir.join("probe-room");
    let has_room = allocate(&probe, BYTES);
    let _ = std::fs::remove_file(&probe);
    if !has_room && std::fs::remove_file(dir.join(NAME)).is_ok() {
        tracing::info!(dir = %dir.display(), "the disk is full: the reserve was given up");
    }
}

/// The reserve is in use.
#[derive(Debug)]
pub(crate) struct Loan(PathBuf);

/// Frees what is reserved until the answer is dropped. None where nothing is.
pub(crate) fn borrow(dir: &Path) -> Option<Loan> {
    let path = dir.join(NAME);
    std::fs::remove_file(&path).ok().map(|()| Loan(path))
}

impl Drop for Loan {
    fn drop(&mut self) {
        // What was written meanwhile may leave less room than there was.
        if ![BYTES, BYTES / 4 * 3, BYTES / 2].into_iter().any(|bytes| allocate(&self.0, bytes)) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

/// Makes a file of that many blocks. A file system that cannot say counts as one that has them.
fn allocate(path: &Path, bytes: u64) -> bool {
    let allocated =
        File::create(path).and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)?));
    match allocated {
        Ok(()) => true,
        Err(error) => error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_once_and_not_given_up_without_need() {
        let dir = tempfile::tempdir().expect("scratch");
        let blocks = || std::fs::metadata(dir.path().join(NAME)).map(|file| (file.ino(), file.blocks() * 512)).ok();
        keep(dir.path());
        let Some((inode, bytes)) = blocks() else { panic!("no reserve") };
        // Some file systems allocate nothing ahead.
        assert!(bytes == 0 || bytes >= BYTES, "{bytes}");
        keep(dir.path());
        spend_if_full(dir.path());
        assert_eq!(blocks().map(|(inode, _)| inode), Some(inode));
        let loan = borrow(dir.path());
        assert!(loan.is_some() && blocks().is_none() && borrow(dir.path()).is_none());
        drop(loan);
        assert_eq!(blocks().map(|(_, bytes)| bytes), Some(bytes), "it is given back");
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1, "no probe is left");
    }
}
