//! A little space kept back, so that a full disk can still be tidied up.
//!
//! Forgetting something is a write to the database, and opening the store makes a few files. `<dir>/reserve` is made of
//! allocated blocks: whoever opens the store to free space gives it up where the disk is full, and the next build
//! allocates it again.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

const NAME: &str = "reserve";
/// What is kept back: the log of a database of many thousand records.
const BYTES: u64 = 4 << 20;

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
    if !allocate(&path) {
        let _ = std::fs::remove_file(&path);
    }
}

/// Gives the reserve up if nothing else is left.
pub(crate) fn spend_if_full(dir: &Path) {
    let probe = dir.join("probe-room");
    let has_room = allocate(&probe);
    let _ = std::fs::remove_file(&probe);
    if !has_room && std::fs::remove_file(dir.join(NAME)).is_ok() {
        tracing::info!(dir = %dir.display(), "the disk is full: the reserve was given up");
    }
}

/// Makes a file of that many blocks. A file system that cannot say counts as one that has them.
fn allocate(path: &Path) -> bool {
    let allocated =
        File::create(path).and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BYTES)?));
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
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1, "no probe is left");
    }
}
