//! Room on a full volume: what nobody uses goes, and what found none is tried again.
//!
//! The alternative is a failed build, so no rule of cleaning is asked. What is held stays; of the rest goes what was used
//! longest ago and least often, a little at first and then more: what fits is to cost as little of the cache as it can. One
//! at a time makes room. Whoever met the full volume meanwhile tries again with what that gave before it asks for more.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::{Error, Inner, Result, Store, UsageRecord, locked, maintenance, reserve, wants_room};

/// Which part of the volume goes when one action meets it full for the first and the second time; then all.
const SHARES: [u64; 2] = [16, 4];
/// What goes the first time at most.
const FIRST_BYTES: u64 = 1 << 30;
/// How often one action makes room. What it made room for may be gone when it comes to write.
const MOST_ROUNDS: usize = 8;
/// How often it tries with what others made, before it makes room itself.
const MOST_SHARED: usize = 32;
/// The part of the volume whose freedom is worth a try.
const CLEAR_SHARE: u64 = 8;
/// What a step should find, as a part of the volume,
const LEAST_SHARE: u64 = 32;
/// and at most.
const LEAST_BYTES: u64 = 64 << 20;
/// The part of the inodes that is to be free where none was.
const INODE_SHARE: u64 = 64;
/// Where nothing could go, nothing is looked for so long.
const IN_VAIN: Duration = Duration::from_secs(10);

/// Who makes room, and what came of it.
#[derive(Default)]
pub(crate) struct State {
    /// Two who remove records for their space would count the same bytes, and remove twice as much.
    turn: Mutex<()>,
    /// How often room was made.
    made: AtomicU64,
    in_vain: Mutex<Option<Instant>>,
}

impl State {
    /// Whoever removes records for their space does it in turn.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        locked(&self.turn)
    }

    /// Tells those who met a full volume that this went.
    pub(crate) fn was_made(&self, removed: &[UsageRecord]) {
        if !removed.is_empty() {
            self.made.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// What went for the sake of an action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Records; none where it was somebody else who made room.
    pub records: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What an action that found no room has still to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It goes on where it was, and so many bytes are left.
    More(u64),
    /// It begins anew, and will write so many at least.
    Anew(u64),
}

/// The tries of one action that writes to the store.
#[derive(Clone, Debug)]
pub struct Room {
    store: Store,
    /// How often room was made when the action began, or asked last.
    seen: u64,
    /// How often it was made for this action.
    rounds: usize,
    /// How often others had made it.
    shared: usize,
    /// The action was told of room that nobody made.
    was_told: bool,
}

impl Store {
    /// Begins an action that may meet a full volume. Asked before the action begins: what goes from then on is room that it
    /// may find.
    pub fn room(&self) -> Room {
        let seen = self.inner.room.made.load(Ordering::Acquire);
        Room { store: self.clone(), seen, rounds: 0, shared: 0, was_told: false }
    }

    /// Does something that writes so many bytes to the store at least, again as long as the volume is full and room can be
    /// made. What fails in the end says that this was tried, and is not begun again by those who called. Blocks.
    pub fn with_room<T>(&self, least: u64, work: impl FnMut() -> Result<T>) -> Result<T> {
        self.room().tries(Need::Anew(least), work)
    }

    /// Forgets something of other rooms, which is a write: on what is reserved, where there is nothing else. Blocks.
    pub fn forget<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _turn = self.inner.room.turn();
        on_reserve(&self.inner, work)
    }

    /// Writes all bytes at a place of a file of the store, making room for them and as many as follow. Blocks.
    pub fn write_all_at(&self, file: (&File, &Path), bytes: &[u8], offset: u64, to_follow: u64) -> Result<()> {
        let (file, path) = file;
        let write = || file.write_all_at(bytes, offset).map_err(|e| Error::io("write", path, e));
        self.room().tries(Need::More(bytes.len() as u64 + to_follow), write)
    }

    /// Sees to it that what writes without our seeing it, a step, finds some room when it begins: little, since nobody knows
    /// whether it wants any. Nothing goes where that cannot be reached. Answers what went for it. Blocks.
    ///
    /// Only once, and not as long as the step runs: one that writes without end would have everybody's results go before it
    /// fails all the same.
    pub fn keep_room(&self) -> Option<Made> {
        let inner = &self.inner;
        if !has_little_room(&inner.dir) {
            return None;
        }
        let _turn = inner.room.turn();
        maintenance::drain(inner);
        if !has_little_room(&inner.dir) || locked(&inner.room.in_vain).is_some_and(|when| when.elapsed() < IN_VAIN) {
            return None;
        }
        let (least, free) = (little_room(&inner.dir)?, self.own_free()?);
        // Twice as much, or it would have to be done again at once.
        let [wanted, needed] = [2 * least, least].map(|bytes| bytes.saturating_sub(free));
        let made = self.evict(wanted, needed, "there is little room on the volume of the state directory");
        *locked(&inner.room.in_vain) = made.is_none().then(Instant::now);
        made
    }

    /// What can be written to the volume of the store still; none where that cannot be known. Without a free inode that is
    /// nothing.
    pub fn free_space(&self) -> Option<u64> {
        let dir = &self.inner.dir;
        if lacks_inodes(dir, u64::MAX) { Some(0) } else { free(dir) }
    }

    /// The same in bytes, without what is reserved and lent to us.
    fn own_free(&self) -> Option<u64> {
        let lent = if locked(&self.inner.loan).is_some() { reserve::BYTES } else { 0 };
        free(&self.inner.dir).map(|free| free.saturating_sub(lent))
    }

    /// Removes what nobody uses until so many bytes have gone; nothing, where all of that has fewer than what is needed.
    /// Where no inode was free, until some are. Whoever calls it has the turn.
    fn evict(&self, wanted: u64, needed: u64, why: &str) -> Option<Made> {
        let inner = &self.inner;
        let lacked_inodes = lacks_inodes(&inner.dir, u64::MAX);
        let has_inodes = || {
            maintenance::drain(inner);
            !lacks_inodes(&inner.dir, INODE_SHARE)
        };
        let is_enough = |went: u64| went >= wanted && (!lacked_inodes || has_inodes());
        let mut removed = Vec::new();
        let done = on_reserve(inner, || self.remove_unused(needed, is_enough, &mut removed));
        if let Err(error) = done {
            tracing::warn!(error = &error as &dyn std::error::Error, "not all room could be made");
        }
        if removed.is_empty() {
            tracing::warn!("{why}, and what no build uses is not enough");
            return None;
        }
        let bytes = removed.iter().map(|record| record.size).sum();
        let made = Made { records: removed.len(), bytes };
        inner.room.was_made(&removed);
        tracing::info!(records = made.records, bytes, "{why}: removed what no build uses");
        Some(made)
    }
}

impl Room {
    fn tries<T>(mut self, need: Need, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            match work() {
                Err(error) if wants_room(&error) => {
                    if self.make(need).is_none() {
                        return Err(Error::NoRoom(Box::new(error)));
                    }
                }
                done => return done,
            }
        }
    }

    /// The volume was found full: makes room, unless somebody has since the action began or asked last. None: it makes no
    /// sense to try again. Blocks.
    pub fn make(&mut self, need: Need) -> Option<Made> {
        let inner = &self.store.inner;
        let _turn = inner.room.turn();
        let made = inner.room.made.load(Ordering::Acquire);
        if std::mem::replace(&mut self.seen, made) != made && self.shared < MOST_SHARED {
            self.shared += 1;
            return Some(Made::default());
        }
        // What failed actions wrote is removed in the background.
        maintenance::drain(inner);
        let (volume, free) = (volume(&inner.dir).unwrap_or(u64::MAX), self.store.own_free().unwrap_or(0));
        let lacks_inodes = lacks_inodes(&inner.dir, u64::MAX);
        let (bytes, clear) = match need {
            Need::More(bytes) => (bytes, bytes),
            Need::Anew(bytes) => (bytes, bytes.max(volume / CLEAR_SHARE)),
        };
        // Only once: quotas, and some file systems, are full where the volume is not.
        if free > clear && !lacks_inodes && !std::mem::replace(&mut self.was_told, true) {
            return Some(Made::default());
        }
        if self.rounds == MOST_ROUNDS {
            return None;
        }
        let share = match (self.rounds, SHARES.get(self.rounds)) {
            // What lacks is no bytes.
            _ if lacks_inodes => 0,
            (0, Some(share)) => (volume / share).min(FIRST_BYTES),
            (_, Some(share)) => volume / share,
            (_, None) => u64::MAX,
        };
        self.rounds += 1;
        let needed = bytes.saturating_sub(free);
        let made = self.store.evict(share.max(needed), needed, "the volume of the state directory is full");
        self.seen = inner.room.made.load(Ordering::Acquire);
        made
    }

    /// Makes room for a step that runs again since it found the volume full, where it had so many bytes when the action
    /// began: as much once more, or what there is of that, and no more than a part of the volume. One that writes without end
    /// must not cost everybody's results. None: it makes no sense to run it again. Blocks.
    pub fn make_again(&mut self, had: u64) -> Option<Made> {
        let inner = &self.store.inner;
        let _turn = inner.room.turn();
        maintenance::drain(inner);
        let lacks_inodes = lacks_inodes(&inner.dir, u64::MAX);
        // Where inodes lack, as many go as it takes to have some.
        let (wanted, least) = match lacks_inodes {
            true => (0, 0),
            false => {
                let least = little_room(&inner.dir)?;
                (had.min(volume(&inner.dir)? / CLEAR_SHARE).max(least), least)
            }
        };
        let was_made = inner.room.made.load(Ordering::Acquire) != self.seen;
        if was_made && !lacks_inodes && self.store.own_free()? >= had.max(wanted) {
            return Some(Made::default());
        }
        self.store.evict(wanted, least, "a step found the volume of the state directory full")
    }
}

/// Forgets something, which is a write: on what is reserved, where there is nothing else. Sees to it that this is there again.
pub(crate) fn on_reserve<T>(inner: &Inner, work: impl FnOnce() -> T) -> T {
    let is_full = free(&inner.dir).is_none_or(|free| free < reserve::BYTES);
    let loan = is_full.then(|| reserve::borrow(&inner.dir)).flatten();
    let done = work();
    if is_full {
        maintenance::drain(inner);
    }
    drop(loan);
    // What the store was opened on is owed, too.
    drop(locked(&inner.loan).take());
    reserve::keep(&inner.dir);
    done
}

/// Whether there is next to nothing left on the volume of a directory.
pub fn has_little_room(dir: &Path) -> bool {
    let is_little = |free: u64| little_room(dir).is_some_and(|least| free < least);
    lacks_inodes(dir, u64::MAX) || free(dir).is_some_and(is_little)
}

/// How much next to nothing is.
fn little_room(dir: &Path) -> Option<u64> {
    volume(dir).map(|bytes| (bytes / LEAST_SHARE).min(LEAST_BYTES))
}

/// The size of the volume.
fn volume(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// What can be written to it.
fn free(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether fewer inodes than such a part of all are free; `u64::MAX`: none. Some file systems do not count them.
fn lacks_inodes(dir: &Path, part: u64) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|stat| stat.f_files > 0 && stat.f_favail < (stat.f_files / part).max(1))
}

#[cfg(test)]
mod tests;
