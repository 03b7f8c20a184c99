//! Room on a full volume: what nobody uses goes, and what found none is tried again.
//!
//! The alternative is a failed build, so no rule of cleaning is asked. What is held stays; of the rest goes what was used
//! longest ago and least often, a little at first and then more: what fits is to cost as little of the cache as it can. One
//! at a time makes room. Whoever met the full volume meanwhile tries again with what that gave before it asks for more.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::{Result, Store, UsageRecord, locked, maintenance, reserve};

/// Which part of the volume goes when one action meets it full for the first, the second, the third time.
const SHARES: [u64; 3] = [16, 4, 1];
/// How often one action is tried again. What others make room for may be gone when it comes to write.
const MOST_TRIES: usize = 8;
/// What a step should find, as a part of the volume,
const LEAST_SHARE: u64 = 16;
/// and at most: it takes a disk a moment to write as much, and we look more often than that.
const LEAST_BYTES: u64 = 512 << 20;
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
    tries: usize,
}

impl Store {
    /// Begins an action that may meet a full volume. Asked before the action begins: what goes from then on is room that it
    /// may find.
    pub fn room(&self) -> Room {
        Room { store: self.clone(), seen: self.inner.room.made.load(Ordering::Acquire), rounds: 0, tries: 0 }
    }

    /// Does something that writes so many bytes to the store at least, again as long as the volume is full and room can be
    /// made. Blocks.
    pub fn with_room<T>(&self, least: u64, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let mut room = self.room();
        loop {
            match work() {
                Err(error) if error.is_no_space() && room.make(Need::Anew(least)).is_some() => {}
                done => return done,
            }
        }
    }

    /// Writes all bytes at a place of a file of the store, making room for them and as many as follow. Blocks.
    pub fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64, to_follow: u64) -> io::Result<()> {
        let mut room = self.room();
        let need = Need::More(bytes.len() as u64 + to_follow);
        loop {
            match file.write_all_at(bytes, offset) {
                Err(error) if crate::is_full(&error) && room.make(need).is_some() => {}
                done => return done,
            }
        }
    }

    /// Sees to it that what writes without our seeing it, a step, finds some room. Answers what went for it. Blocks.
    pub fn keep_room(&self) -> Option<Made> {
        let inner = &self.inner;
        let least = (volume(&inner.dir)? / LEAST_SHARE).min(LEAST_BYTES);
        let lacks = || free(&inner.dir).filter(|free| *free < least);
        lacks()?;
        let _turn = inner.room.turn();
        let free = lacks()?;
        if locked(&inner.room.in_vain).is_some_and(|when| when.elapsed() < IN_VAIN) {
            return None;
        }
        // Twice as much, or it would have to be done again at once.
        self.evict(2 * least - free, 0, "there is little room on the volume of the state directory")
    }

    /// What can be written to the volume of the store still; none where that cannot be known.
    pub fn free_space(&self) -> Option<u64> {
        free(&self.inner.dir)
    }

    /// Removes what nobody uses until so many bytes have gone; nothing, where even all of that would not make room for
    /// what is needed. Whoever calls it has the turn.
    fn evict(&self, wanted: u64, needed: u64, why: &str) -> Option<Made> {
        let inner = &self.inner;
        // To forget something is a write.
        let loan = free(&inner.dir).is_none_or(|free| free < reserve::BYTES).then(|| reserve::borrow(&inner.dir));
        let removed = self.remove_unused(wanted, needed.saturating_sub(free(&inner.dir).unwrap_or(0)));
        drop(loan);
        let removed = removed.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "room could not be made");
            Vec::new()
        });
        let bytes = removed.iter().map(|record: &UsageRecord| record.size).sum();
        let made = Made { records: removed.len(), bytes };
        *locked(&inner.room.in_vain) = (bytes == 0).then(Instant::now);
        if bytes == 0 {
            tracing::warn!("{why}, and what no build uses is not enough");
            return None;
        }
        inner.room.was_made(&removed);
        tracing::info!(records = made.records, bytes, "{why}: removed what no build uses");
        Some(made)
    }
}

impl Room {
    /// The volume was found full: makes room, unless somebody has since the action began or asked last. None: it makes no
    /// sense to try again. Blocks.
    pub fn make(&mut self, need: Need) -> Option<Made> {
        let inner = &self.store.inner;
        self.tries += 1;
        if self.tries > MOST_TRIES {
            return None;
        }
        let _turn = inner.room.turn();
        let made = inner.room.made.load(Ordering::Acquire);
        if std::mem::replace(&mut self.seen, made) != made {
            return Some(Made::default());
        }
        // What failed actions wrote is removed in the background.
        maintenance::drain(inner);
        let (Need::More(bytes) | Need::Anew(bytes)) = need;
        if matches!(need, Need::More(_)) && free(&inner.dir).is_some_and(|free| free > bytes) {
            return Some(Made::default());
        }
        let share = SHARES.get(self.rounds).unwrap_or(&1);
        let share = volume(&inner.dir).map_or(u64::MAX, |bytes| bytes / share);
        self.rounds += 1;
        let made = self.store.evict(share.max(bytes), bytes, "the volume of the state directory is full");
        self.seen = inner.room.made.load(Ordering::Acquire);
        made
    }
}

/// The size of the volume.
fn volume(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// What can be written to it. Without a free inode that is nothing.
fn free(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    let has_inodes = stat.f_files == 0 || stat.f_favail > 0;
    Some(if has_inodes { stat.f_bavail.saturating_mul(stat.f_frsize) } else { 0 })
}

#[cfg(test)]
mod tests;
