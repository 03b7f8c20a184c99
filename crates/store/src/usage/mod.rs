//! How the disk is used, and giving it back: `du`, `prune`, garbage collection.
//!
//! Sizes are allocated blocks. A snapshot's size is its own directory plus the blobs that it is the first to refer to.
//! The rules and the order of removal are BuildKit's: only what nobody holds and nothing stands on goes; with a bound on
//! the size, one after another, those first that were used longest ago and least often.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use base::Digest;

use crate::snapshot::{Record, tree};
use crate::{Error, RecordKind, Result, SnapshotId, Store, locked, maintenance, now, room, snapshot, time};

mod filter;
mod order;

#[cfg(test)]
mod beside;
#[cfg(test)]
mod tests;

pub use filter::{Subject, UsageFilter};

/// Blobs that belong to no snapshot go when nobody read them for so long.
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 3600);

/// One line of `du`: BuildKit's `UsageRecord`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    /// The snapshot's id, or the digest of a blob that belongs to none.
    pub id: String,
    /// Its content changes: a cache mount.
    pub mutable: bool,
    /// A build uses it, or something that is used stands on it.
    pub in_use: bool,
    /// Allocated bytes.
    pub size: u64,
    /// What it stands on.
    pub parents: Vec<String>,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was last used.
    pub last_used_at: Option<SystemTime>,
    /// How often it was used.
    pub usage_count: u32,
    /// For people.
    pub description: String,
    /// What it is for.
    pub record_type: RecordKind,
    /// Something outside of the build cache shares it; never so here.
    pub shared: bool,
}

/// What to remove.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Also internal and frontend records.
    pub all: bool,
    /// Keep what was used within this time; zero keeps nothing for that reason.
    pub keep_duration: Duration,
    /// Never shrink the cache below this; 0 is no bound.
    pub reserved_space: u64,
    /// Shrink the cache to this; 0 is no bound.
    pub max_used_space: u64,
    /// Shrink the cache until so much of the disk is free; 0 is no bound.
    pub min_free_space: u64,
    /// Only records that one of these matches; all if there are none.
    pub filters: Vec<String>,
}

/// What a record is removed for.
#[derive(Clone, Copy)]
enum Why<'a> {
    /// What names it, and what the cache is to be shrunk to.
    Rule { options: &'a PruneOptions, keep: Option<u64> },
    /// The volume is full.
    Room,
}

/// A line of the log.
fn was_removed(record: &UsageRecord, why: Why<'_>) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let (why, keep, unused_for) = match why {
        Why::Rule { keep: Some(keep), .. } => ("the cache has more than it is to keep", Some(keep), None),
        Why::Rule { options, .. } if !options.keep_duration.is_zero() => {
            ("it was not used for as long as such records are kept", None, Some(options.keep_duration.as_secs()))
        }
        Why::Rule { .. } => ("all that nothing uses goes", None, None),
        Why::Room => ("the volume of the state directory is full", None, None),
    };
    let idle = record.last_used_at.and_then(|used| used.elapsed().ok()).map(|idle| idle.as_secs());
    let (id, kind, bytes, uses) = (&record.id, record.record_type.as_str(), record.size, record.usage_count);
    tracing::debug!(record = id, kind, bytes, uses, idle, why, keep, unused_for, "a record was removed");
}

impl Store {
    /// All records, oldest first.
    pub fn disk_usage(&self) -> Result<Vec<UsageRecord>> {
        let inner = &self.inner;
        self.measure()?;
        let blobs = self.blob_sizes()?;
        let mut usage = Vec::new();
        {
            let table = inner.snapshots.table();
            let mut used: HashMap<SnapshotId, bool> = HashMap::new();
            // Children have greater ids, so each is judged before its parent.
            for (id, record) in table.records.iter().rev() {
                let in_use = record.holds > 0 || used.get(id).copied().unwrap_or(false);
                if in_use && let Some(parent) = record.parent {
                    used.insert(parent, true);
                }
                let own = record.size.unwrap_or(0);
                let size = own + blobs.of_snapshots.get(id).copied().unwrap_or(0);
                usage.push(usage_record(*id, record, in_use, size));
            }
        }
        usage.reverse();
        for (digest, size, created, last_used) in blobs.orphans {
            // Whoever has the lease says how long it stays: it is no cache.
            if inner.content.is_leased(&digest) {
                continue;
            }
            usage.push(UsageRecord {
                id: digest.to_string(),
                mutable: false,
                in_use: inner.content.is_held(&digest),
                size,
                parents: Vec::new(),
                created_at: time(created),
                last_used_at: Some(time(locked(&inner.content.used).get(&digest).copied().unwrap_or(last_used))),
                usage_count: 0,
                description: "blob without a snapshot (a manifest or configuration)".to_owned(),
                record_type: RecordKind::Internal,
                shared: false,
            });
        }
        Ok(usage)
    }

    /// Removes what `options` names and nothing uses; answers with what was removed. Its space is free on return.
    pub fn prune(&self, options: &PruneOptions) -> Result<Vec<UsageRecord>> {
        let mut removed = Vec::new();
        self.prune_into(options, &mut removed).map(|()| removed)
    }

    /// The same; what was removed is in `removed`, also where the next could not be.
    pub fn prune_into(&self, options: &PruneOptions, removed: &mut Vec<UsageRecord>) -> Result<()> {
        let filters = options.filters.iter().map(|filter| filter.parse()).collect::<Result<Vec<UsageFilter>>>()?;
        let _turn = self.inner.room.turn();
        let usage = self.disk_usage()?;
        let keep = self.bytes_to_keep(total(&usage), options)?;
        let before = removed.len();
        let done = room::on_reserve(&self.inner, || {
            let enough = keep.map(|keep| move |left: u64| left < keep);
            let enough = enough.as_ref().map(|enough| enough as &dyn Fn(u64) -> bool);
            let why = Why::Rule { options, keep };
            let done = self.remove_until(enough, usage, options, &filters, why, removed);
            let after = self.after_prune(options);
            done.and(after)
        });
        self.inner.room.was_made(&removed[before..]);
        done
    }

    /// Removes what nobody uses, whatever rules say, until it is enough, which is asked with the bytes that went; nothing,
    /// where all of it has fewer than `needed`. Whoever calls it has the turn. Its space is free on return, and what went is
    /// in `removed`, also where the next could not be removed.
    pub(crate) fn remove_unused(
        &self,
        needed: u64,
        is_enough: impl Fn(u64) -> bool,
        removed: &mut Vec<UsageRecord>,
    ) -> Result<()> {
        let usage = self.disk_usage()?;
        let unused: u64 = usage.iter().filter(|record| !record.in_use).map(|record| record.size).sum();
        if unused < needed {
            return Ok(());
        }
        let all = total(&usage);
        let options = PruneOptions { all: true, ..PruneOptions::default() };
        let done = self.remove_until(Some(&|left| is_enough(all - left)), usage, &options, &[], Why::Room, removed);
        maintenance::drain(&self.inner);
        done
    }

    /// Removes what may go until what is left is little enough; all of it without a bound.
    fn remove_until(
        &self,
        is_enough: Option<&dyn Fn(u64) -> bool>,
        mut usage: Vec<UsageRecord>,
        options: &PruneOptions,
        filters: &[UsageFilter],
        why: Why<'_>,
        removed: &mut Vec<UsageRecord>,
    ) -> Result<()> {
        let mut left = total(&usage);
        loop {
            let cut_off = SystemTime::now().checked_sub(options.keep_duration);
            let mut candidates: Vec<&UsageRecord> = {
                let may_go = |record: &&UsageRecord| self.may_go(record, options, cut_off, filters);
                usage.iter().filter(may_go).collect()
            };
            if candidates.is_empty() || is_enough.is_some_and(|is_enough| is_enough(left)) {
                return Ok(());
            }
            order::sort(&mut candidates);
            if is_enough.is_some() {
                // What the next removal is depends on this one: its parent may be next.
                candidates.truncate(1);
            }
            let going: Vec<UsageRecord> = candidates.into_iter().cloned().collect();
            let before = removed.len();
            let done = self.remove_records(&going, removed);
            removed[before..].iter().for_each(|record| was_removed(record, why));
            done?;
            usage.retain(|record| !going.iter().any(|going| going.id == record.id));
            left = left.saturating_sub(total(&removed[before..]));
        }
    }

    /// Applies policies one after another, as the daemon does now and then.
    pub fn gc(&self, policies: &[PruneOptions]) -> Result<Vec<UsageRecord>> {
        let mut removed = Vec::new();
        for policy in policies {
            removed.extend(self.prune(policy)?);
        }
        let since = now().saturating_sub(i64::try_from(ORPHAN_AGE.as_nanos()).unwrap_or(i64::MAX));
        maintenance::remove_orphan_blobs(&self.inner, since)?;
        Ok(removed)
    }

    fn may_go(
        &self,
        record: &UsageRecord,
        options: &PruneOptions,
        cut_off: Option<SystemTime>,
        filters: &[UsageFilter],
    ) -> bool {
        if !options.all && matches!(record.record_type, RecordKind::Internal | RecordKind::Frontend) {
            return false;
        }
        let used_since = || record.last_used_at.zip(cut_off).is_some_and(|(used, cut_off)| used > cut_off);
        if options.keep_duration > Duration::ZERO && used_since() {
            return false;
        }
        if !filters.is_empty() && !filters.iter().any(|filter| filter.matches(record)) {
            return false;
        }
        match record.id.parse::<SnapshotId>() {
            Ok(id) => {
                self.inner.snapshots.with(id, |record| record.holds == 0 && record.children == 0).unwrap_or(false)
            }
            Err(_) => !record.in_use,
        }
    }

    fn remove_records(&self, going: &[UsageRecord], gone: &mut Vec<UsageRecord>) -> Result<()> {
        let ids: Vec<SnapshotId> = going.iter().filter_map(|record| record.id.parse().ok()).collect();
        let mut doomed = Vec::new();
        let mut done = snapshot::remove_free(&self.inner, &ids, &mut doomed);
        let (snapshots, blobs): (Vec<_>, Vec<_>) =
            going.iter().partition(|record| record.id.parse::<SnapshotId>().is_ok());
        let is_gone = |record: &&&UsageRecord| record.id.parse().is_ok_and(|id| doomed.contains(&id));
        gone.extend(snapshots.iter().filter(is_gone).map(|record| (*record).clone()));
        for record in blobs {
            let Ok(digest) = record.id.parse::<Digest>() else { continue };
            match self.content().delete(&digest) {
                Ok(true) => gone.push(record.clone()),
                Ok(false) => {}
                Err(error) => done = done.and(Err(error)),
            }
        }
        done
    }

    /// With `all` and no bound, also what another identity left: nothing here can ever read it.
    fn after_prune(&self, options: &PruneOptions) -> Result<()> {
        let bounded = options.max_used_space != 0 || options.reserved_space != 0 || options.min_free_space != 0;
        let is_whole = options.all && !bounded && options.filters.is_empty() && options.keep_duration.is_zero();
        let done = if is_whole { self.remove_foreign() } else { Ok(()) };
        maintenance::drain(&self.inner);
        done
    }

    fn remove_foreign(&self) -> Result<()> {
        let inner = &self.inner;
        inner.db.write("write to", |db| {
            let mine = inner.driver.identity;
            for table in ["layer", "blob_ref", "kv", "result"] {
                let sql =
                    format!("DELETE FROM {table} WHERE snapshot IN (SELECT id FROM snapshot WHERE identity <> ?1)");
                db.execute(&sql, [mine])?;
            }
            db.execute("DELETE FROM snapshot WHERE identity <> ?1", [mine])?;
            db.execute("DELETE FROM identity WHERE id <> ?1", [mine]).map(drop)
        })?;
        let all = inner.dir.join("snapshots");
        for entry in std::fs::read_dir(&all).map_err(|e| Error::io("read directory", &all, e))?.flatten() {
            if entry.path() != inner.driver.snapshots {
                maintenance::discard(inner, &entry.path());
            }
        }
        Ok(())
    }

    /// Counts the blocks of snapshots whose size is not known.
    fn measure(&self) -> Result<()> {
        let inner = &self.inner;
        let unknown: Vec<SnapshotId> = {
            let table = inner.snapshots.table();
            let unknown = table.records.iter().filter(|(_, record)| record.size.is_none());
            unknown.map(|(id, _)| *id).collect()
        };
        let mut measured = Vec::new();
        for id in unknown {
            // Held, so that it is not removed under our feet.
            let Some(_hold) = self.snapshots().hold_quietly(&id) else { continue };
            match tree::allocated(&tree::dir(inner, id)) {
                Ok(size) => measured.push((id, size)),
                // A cache mount changes while we count: it is counted next time.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("measure", tree::dir(inner, id), e)),
            }
        }
        if measured.is_empty() {
            return Ok(());
        }
        inner.snapshots.set_sizes(&measured);
        let noted = inner.db.write("write to", |db| {
            for (id, size) in &measured {
                db.prepare_cached("UPDATE snapshot SET size = ?2 WHERE id = ?1")?.execute((id.0, *size as i64))?;
            }
            Ok(())
        });
        match noted {
            // It is counted again next time.
            Err(e) if e.is_no_space() => Ok(()),
            noted => noted,
        }
    }

    fn blob_sizes(&self) -> Result<BlobSizes> {
        let lazy: HashMap<Digest, SnapshotId> = {
            let table = self.inner.snapshots.table();
            let layers =
                table.records.iter().rev().filter_map(|(id, record)| Some((record.lazy.as_ref()?.digest, *id)));
            layers.collect()
        };
        let rows = self.inner.db.read("read", |db| {
            let mut query = db.prepare(
                "SELECT digest, size, created, last_used,
                        (SELECT min(snapshot) FROM (SELECT snapshot FROM layer WHERE digest = b.digest
                                                    UNION ALL SELECT snapshot FROM blob_ref WHERE digest = b.digest))
                 FROM blob b ORDER BY created",
            )?;
            let rows = query.query_map([], |row| {
                let size: i64 = row.get(1)?;
                let owner: Option<i64> = row.get(4)?;
                Ok((
                    Digest::from_bytes(row.get(0)?),
                    size.unsigned_abs(),
                    row.get(2)?,
                    row.get(3)?,
                    owner.map(SnapshotId),
                ))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut sizes = BlobSizes::default();
        for (digest, size, created, last_used, owner) in rows {
            let owner = owner.into_iter().chain(lazy.get(&digest).copied()).min();
            match owner {
                Some(owner) => *sizes.of_snapshots.entry(owner).or_default() += size,
                None => sizes.orphans.push((digest, size, created, last_used)),
            }
        }
        Ok(sizes)
    }

    /// To how many bytes the cache is to shrink; none if there is no bound.
    fn bytes_to_keep(&self, total: u64, options: &PruneOptions) -> Result<Option<u64>> {
        let PruneOptions { reserved_space, max_used_space, min_free_space, .. } = *options;
        if reserved_space == 0 && max_used_space == 0 && min_free_space == 0 {
            return Ok(None);
        }
        let mut keep = (max_used_space != 0).then_some(max_used_space);
        if min_free_space != 0 {
            let disk = rustix::fs::statvfs(&self.inner.dir)
                .map_err(|e| Error::io("ask for free space of", &self.inner.dir, e))?;
            // Upstream's rules count what the file system sets aside for root as free.
            let excess = min_free_space.saturating_sub(disk.f_bfree * disk.f_frsize);
            let allowed = total.saturating_sub(excess);
            keep = match keep {
                keep if excess > 0 => Some(keep.map_or(allowed, |keep| keep.min(allowed))),
                // Enough is free, and that was the only bound: nothing goes.
                None => Some(u64::MAX),
                keep => keep,
            };
        }
        // Below the reserve nothing goes, so at most as much as is above it.
        Ok(Some(keep.unwrap_or(0).max(reserved_space)))
    }
}

fn total(usage: &[UsageRecord]) -> u64 {
    usage.iter().map(|record| record.size).sum()
}

#[derive(Default)]
struct BlobSizes {
    of_snapshots: HashMap<SnapshotId, u64>,
    orphans: Vec<(Digest, u64, i64, i64)>,
}

fn usage_record(id: SnapshotId, record: &Record, in_use: bool, size: u64) -> UsageRecord {
    UsageRecord {
        id: id.to_string(),
        mutable: record.cache_key.is_some(),
        in_use,
        size,
        parents: record.parent.iter().map(SnapshotId::to_string).collect(),
        created_at: time(record.created),
        last_used_at: record.last_used.map(time),
        usage_count: record.usage,
        description: record.description.to_string(),
        record_type: record.kind,
        shared: false,
    }
}
