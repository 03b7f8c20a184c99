//! The records in memory: who stands on whom, who is held, what was used.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use base::Digest;
use image::layer::compression::Tar;

use super::cache_mount::Instances;
use super::lazy::LazyLayer;
use super::{RecordKind, SnapshotId};
use crate::{Error, Result, locked, now};

/// One snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) parent: Option<SnapshotId>,
    pub(crate) kind: RecordKind,
    pub(crate) description: Arc<str>,
    pub(crate) created: i64,
    pub(crate) last_used: Option<i64>,
    pub(crate) usage: u32,
    pub(crate) size: Option<u64>,
    pub(crate) chain: Option<Digest>,
    pub(crate) lazy: Option<Arc<LazyLayer>>,
    pub(crate) filled: bool,
    /// Hides all below it.
    pub(crate) opaque: bool,
    /// Overlay: its directory adds nothing to what is below.
    pub(crate) empty: bool,
    /// Directories that should look like those below once these are there.
    pub(crate) implied: Vec<Vec<u8>>,
    /// Set for the mutable snapshots of cache mounts.
    pub(crate) cache_key: Option<Arc<str>>,
    /// Snapshots that stand on this one.
    pub(crate) children: usize,
    /// Guards that keep it.
    pub(crate) holds: usize,
}

/// All records of the store's identity.
#[derive(Default)]
pub(crate) struct State {
    table: Mutex<Table>,
    next_id: AtomicI64,
    seq: AtomicI64,
    /// Lazy layers being unpacked, and layers being made: one at a time each.
    pub(super) busy: Mutex<HashSet<(SnapshotId, String)>>,
    pub(super) idle: Condvar,
    pub(super) instances: Mutex<Instances>,
}

#[derive(Default)]
pub(crate) struct Table {
    pub(crate) records: BTreeMap<SnapshotId, Record>,
    by_chain: HashMap<Digest, Vec<SnapshotId>>,
    /// Records whose use was counted since the database was told.
    used: HashSet<SnapshotId>,
    /// What the tars of snapshots are, where one was written since the store was opened.
    pub(crate) tars: HashMap<SnapshotId, Tar>,
}

impl Table {
    pub(super) fn insert(&mut self, id: SnapshotId, record: Record) {
        if let Some(parent) = record.parent.and_then(|parent| self.records.get_mut(&parent)) {
            parent.children += 1;
        }
        if let Some(chain) = record.chain {
            self.by_chain.entry(chain).or_default().push(id);
        }
        self.records.insert(id, record);
    }

    /// Remembers what the tar of a snapshot is, as long as there is one.
    pub(crate) fn note_tar(&mut self, id: SnapshotId, tar: Tar) {
        if self.records.contains_key(&id) {
            self.tars.insert(id, tar);
        }
    }

    pub(super) fn remove(&mut self, id: SnapshotId) -> Option<Record> {
        let record = self.records.remove(&id)?;
        self.tars.remove(&id);
        if let Some(parent) = record.parent.and_then(|parent| self.records.get_mut(&parent)) {
            parent.children -= 1;
        }
        if let Some(ids) = record.chain.as_ref().and_then(|chain| self.by_chain.get_mut(chain)) {
            ids.retain(|known| *known != id);
        }
        self.used.remove(&id);
        Some(record)
    }
}

impl State {
    pub(super) fn new(table: Table, next_id: i64, seq: i64) -> State {
        State {
            table: Mutex::new(table),
            next_id: AtomicI64::new(next_id),
            seq: AtomicI64::new(seq),
            ..State::default()
        }
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        locked(&self.table)
    }

    pub(super) fn next_id(&self) -> SnapshotId {
        SnapshotId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// The place of one more change of data in the order of all.
    pub(crate) fn next_seq(&self) -> i64 {
        self.seq.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The place of the last change of data.
    pub(crate) fn seq(&self) -> i64 {
        self.seq.load(Ordering::Acquire)
    }

    pub(crate) fn with<T>(&self, id: SnapshotId, read: impl FnOnce(&Record) -> T) -> Option<T> {
        self.table().records.get(&id).map(read)
    }

    pub(super) fn with_mut<T>(&self, id: SnapshotId, change: impl FnOnce(&mut Record) -> T) -> Option<T> {
        self.table().records.get_mut(&id).map(change)
    }

    pub(super) fn try_hold(&self, id: SnapshotId, count: bool) -> bool {
        let mut table = self.table();
        let Some(record) = table.records.get_mut(&id) else { return false };
        record.holds += 1;
        if count {
            record.usage = record.usage.saturating_add(1);
            record.last_used = Some(now());
            table.used.insert(id);
        }
        true
    }

    pub(super) fn add_hold(&self, id: SnapshotId) {
        self.with_mut(id, |record| record.holds += 1);
    }

    pub(super) fn release_hold(&self, id: SnapshotId) {
        self.with_mut(id, |record| record.holds = record.holds.saturating_sub(1));
    }

    pub(super) fn by_chain(&self, chain: &Digest) -> Option<SnapshotId> {
        let table = self.table();
        let ids = table.by_chain.get(chain)?;
        // A filled one saves the download.
        let filled = ids.iter().find(|id| table.records.get(id).is_some_and(|record| record.filled));
        filled.or_else(|| ids.first()).copied()
    }

    pub(super) fn set_chain(&self, id: SnapshotId, chain: Digest) {
        let mut table = self.table();
        let Some(record) = table.records.get_mut(&id) else { return };
        if record.chain.is_none() {
            record.chain = Some(chain);
            table.by_chain.entry(chain).or_default().push(id);
        }
    }

    /// The snapshot and all below it, topmost first.
    pub(crate) fn chain(&self, id: SnapshotId) -> Result<Vec<SnapshotId>> {
        let table = self.table();
        let mut chain = Vec::new();
        let mut at = Some(id);
        while let Some(id) = at {
            at = table.records.get(&id).ok_or(Error::Missing(id))?.parent;
            chain.push(id);
        }
        Ok(chain)
    }

    pub(super) fn insert(&self, id: SnapshotId, record: Record) {
        self.table().insert(id, record);
    }

    /// Takes the snapshot and all that stands on it out of the table, leaves first; none if any of them is held.
    pub(super) fn doom_subtree(&self, id: SnapshotId) -> Option<Vec<(SnapshotId, Record)>> {
        let mut table = self.table();
        table.records.get(&id)?;
        let mut subtree = HashSet::from([id]);
        // Children have greater ids than their parents.
        for (child, record) in table.records.range(id..) {
            if record.parent.is_some_and(|parent| subtree.contains(&parent)) {
                subtree.insert(*child);
            }
        }
        let mut doomed: Vec<SnapshotId> = subtree.into_iter().collect();
        doomed.sort_by_key(|id| std::cmp::Reverse(*id));
        let held = |id: &SnapshotId| table.records.get(id).is_some_and(|record| record.holds > 0);
        if doomed.iter().any(held) {
            return None;
        }
        Some(doomed.into_iter().filter_map(|id| Some((id, table.remove(id)?))).collect())
    }

    /// Takes those of `ids` out of the table that nobody holds and nothing stands on (any more), in this order.
    pub(super) fn doom(&self, ids: &[SnapshotId]) -> Vec<(SnapshotId, Record)> {
        let mut table = self.table();
        let free = |record: &Record| record.holds == 0 && record.children == 0;
        let mut doomed = Vec::new();
        for id in ids {
            if table.records.get(id).is_some_and(free)
                && let Some(record) = table.remove(*id)
            {
                doomed.push((*id, record));
            }
        }
        doomed
    }

    /// Puts back what was taken out, leaves first, and is there still.
    pub(super) fn restore(&self, doomed: Vec<(SnapshotId, Record)>) {
        let mut table = self.table();
        // What stands on a snapshot is counted when it comes.
        for (id, record) in doomed.into_iter().rev() {
            table.insert(id, Record { children: 0, ..record });
        }
    }

    pub(crate) fn set_sizes(&self, sizes: &[(SnapshotId, u64)]) {
        let mut table = self.table();
        for (id, size) in sizes {
            if let Some(record) = table.records.get_mut(id) {
                record.size = Some(*size);
            }
        }
    }

    /// Uses counted since the last call: id, last use, count.
    pub(crate) fn take_used(&self) -> Vec<(SnapshotId, Option<i64>, u32)> {
        let mut table = self.table();
        let used = std::mem::take(&mut table.used);
        let row = |id: SnapshotId| table.records.get(&id).map(|record| (id, record.last_used, record.usage));
        used.into_iter().filter_map(row).collect()
    }
}
