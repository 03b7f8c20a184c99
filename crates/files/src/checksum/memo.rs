//! Digests of files by inode, so that files that have not changed since an earlier build need not be read again.
//!
//! The kernel changes a file's ctime whenever its content or metadata change, and no program can set it back; so the
//! same device, inode, size, mtime and ctime mean the same file, but for one gap: clocks tick. A file that is changed
//! twice within a tick has the same times after both changes, so a digest taken between them would be kept for the
//! wrong content ("racy clean" in git's index, `Documentation/technical/racy-git.txt`). Therefore a digest is kept
//! only if, when its file was opened, the last change of the file lay further back than a tick can be long:
//! [`settled_by`]. A fresh file is then simply read once more by the next build.
//!
//! What stays open is what is open for git: a program that writes through a shared mapping changes times only at its
//! first write to a page, and a system clock that jumps back can repeat a time.

use base::Digest;

use crate::stat::{Stat, Time};

/// What identifies the state of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoKey {
    /// The file system.
    pub dev: u64,
    /// The file.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
}

/// What is known of a file in that state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Of header, xattrs and content.
    pub digest: Digest,
    /// It has none: nobody need ask the kernel again.
    pub no_xattrs: bool,
}

/// Keeps digests between builds. Losing one costs a read, a wrong one costs a wrong build.
///
/// Asked and told from many threads. The digests are those of local sources, which take every owner as root; they
/// cover mode and xattrs, whose changes move the ctime too.
pub trait Memo: Sync {
    /// What was put under this very key.
    fn get(&self, key: &MemoKey) -> Option<Remembered>;
    /// Keeps a digest. An older one of the same inode is of no more use.
    fn put(&self, key: &MemoKey, file: Remembered);
}

impl MemoKey {
    /// The key of a file.
    pub fn of(stat: &Stat) -> MemoKey {
        MemoKey { dev: stat.dev, ino: stat.ino, size: stat.size, mtime: stat.mtime, ctime: stat.ctime }
    }
}

/// Clocks of file systems that count nanoseconds tick with the kernel, a hundred times a second at least.
const TICK_MILLIS: u32 = 20;
/// Others count seconds, FAT even pairs of them.
const COARSE_TICK_MILLIS: u32 = 2_000;

/// Whether a file with these times cannot change any more without its times telling, judged at `now`.
///
/// A file system whose times all end in zeros counts seconds. Times that lie ahead (a server's clock) never settle.
pub fn settled_by(stat: &Stat, now: Time) -> bool {
    let coarse = stat.ctime.nanos == 0;
    let tick = if coarse { COARSE_TICK_MILLIS } else { TICK_MILLIS };
    let last_change = stat.ctime.max(stat.mtime);
    last_change.plus_millis(tick) < now
}
