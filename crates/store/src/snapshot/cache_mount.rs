//! Mutable snapshots that live on from build to build: for `RUN --mount=type=cache`, whose sharing has rules, and for
//! mirrors of clients' directories.
//!
//! One key (the mount's id, and the snapshot that it starts from) may have several instances:
//!
//! | wanted  | an instance is free | all are in use |
//! |---------|---------------------|----------------|
//! | shared  | join the one that is shared already, else take the free one | make another |
//! | private | take it             | make another   |
//! | locked  | take it             | wait           |
//!
//! Who waits is woken when any instance of the key is given back. An exec that names one key twice must ask once
//! and use the answer twice: asking again while locked would wait for itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use base::Cancel;
use sys::mount::FsView;

use super::table::Record;
use super::{Hold, RecordKind, SnapshotId, Snapshots, active, layers, retired_mount, tree};
use crate::{Error, Inner, Result, Store, locked, maintenance, now};

/// Who else may use a cache mount at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Everybody who wants it shared.
    #[default]
    Shared,
    /// Nobody: others get an instance of their own.
    Private,
    /// Nobody: others wait.
    Locked,
}

/// Which cache mount is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMountRequest {
    /// The mount's id (its target path, unless the user gave one).
    pub id: String,
    /// What a new instance starts from.
    pub from: Option<SnapshotId>,
    /// Who else may use it.
    pub sharing: Sharing,
    /// What a new instance is recorded as.
    pub kind: RecordKind,
    /// For people.
    pub description: String,
}

impl CacheMountRequest {
    /// What is recorded: the id, or what no id looks like, as that of a mount that starts from something.
    fn key(&self) -> String {
        match self.from {
            None => key(&self.id),
            Some(from) => format!("\nfrom {from} {}", self.id),
        }
    }
}

/// The key of a mount that starts from nothing.
pub(super) fn key(id: &str) -> String {
    match id.starts_with('\n') {
        true => format!("\nid {id}"),
        false => id.to_owned(),
    }
}

/// The id in a key of a mount that starts from something.
pub(super) fn id_on_snapshot(key: &str) -> Option<&str> {
    key.strip_prefix("\nfrom ")?.split_once(' ').map(|(_, id)| id)
}

pub(super) type Wake = Box<dyn FnOnce() + Send>;

/// The instances in use, and those who wait for one.
#[derive(Default)]
pub(super) struct Instances {
    in_use: HashMap<SnapshotId, Use>,
    pub(super) waiting: HashMap<String, Vec<Wake>>,
}

#[derive(Clone, Copy)]
enum Use {
    Shared(usize),
    Alone,
}

/// A cache mount in use; dropping it gives it back.
#[derive(Debug)]
pub struct CacheMount {
    store: Store,
    /// None once it is given back.
    hold: Option<Hold>,
    key: String,
    /// What it took up when it was taken, if that was known.
    size: Option<u64>,
    /// What who had it alone says of it.
    told: OnceLock<Told>,
}

#[derive(Clone, Copy, Debug)]
enum Told {
    /// Nothing in it was changed.
    Untouched,
    /// It takes up that much now.
    Takes(u64),
}

impl CacheMount {
    /// The snapshot behind it.
    pub fn id(&self) -> SnapshotId {
        self.hold.as_ref().expect("held until it is dropped").id()
    }

    /// Says that nothing in it was changed since it was taken, so that nobody need look how large it is now. Only who has it
    /// alone can know that.
    pub fn is_as_it_was(&self) {
        _ = self.told.set(Told::Untouched);
    }

    /// Says how many bytes the file system allocated for what is in it now, so that nobody need count them. Only who has it
    /// alone can know that.
    pub fn holds(&self, inside: u64) {
        // What cannot be looked at is counted later.
        if let Ok(top) = rustix::fs::lstat(tree::dir(&self.store.inner, self.id())) {
            _ = self.told.set(Told::Takes(inside + tree::blocks(&top)));
        }
    }

    /// How to see and write it: a plain directory, unless it starts from a snapshot of several layers. Then it is an
    /// overlay, which the users of a shared mount must mount once and bind to all of them: it has one writer.
    pub fn view(&self) -> Result<FsView> {
        let inner = &self.store.inner;
        let parent = inner.snapshots.with(self.id(), |record| record.parent).ok_or(Error::Missing(self.id()))?;
        let lower = match parent {
            Some(parent) => {
                // Nothing lasting is in it, so that it is no loss where it was lost.
                let work = tree::work_dir(inner, self.id());
                std::fs::create_dir_all(&work).map_err(|e| Error::io("create directory", &work, e))?;
                tree::layer_dirs(inner, parent)?
            }
            None => Vec::new(),
        };
        tree::write_view(inner, self.id(), lower, true)
    }
}

/// Notes that the content of a cache mount is not what was last synced, and how large it is where that is known.
fn note_change(inner: &Inner, id: SnapshotId, size: Option<u64>) {
    let seq = inner.snapshots.next_seq();
    inner.snapshots.with_mut(id, |record| record.size = size);
    let size = size.map(|size| size as i64);
    let noted = inner.db.write("write to", |db| {
        db.prepare_cached("UPDATE snapshot SET size = ?3, seq = ?2 WHERE id = ?1")?.execute((id.0, seq, size)).map(drop)
    });
    if let Err(error) = noted {
        tracing::debug!(%error, snapshot = %id, "cache mount's use was not noted");
    }
    maintenance::note_change(inner);
}

/// Notes that a cache mount is as large as it was.
fn note_size(inner: &Inner, id: SnapshotId, size: u64) {
    inner.snapshots.with_mut(id, |record| record.size = Some(size));
    let noted = inner.db.write("write to", |db| {
        db.prepare_cached("UPDATE snapshot SET size = ?2 WHERE id = ?1")?.execute((id.0, size as i64)).map(drop)
    });
    if let Err(error) = noted {
        tracing::debug!(%error, snapshot = %id, "cache mount's size was not noted");
    }
}

impl Drop for CacheMount {
    fn drop(&mut self) {
        let (inner, id) = (&self.store.inner, self.id());
        match (self.told.get(), self.size) {
            (Some(Told::Untouched), Some(size)) => note_size(inner, id, size),
            (Some(Told::Takes(size)), _) => note_change(inner, id, Some(*size)),
            _ => note_change(inner, id, None),
        }
        let woken = {
            let mut instances = locked(&inner.snapshots.instances);
            match instances.in_use.get_mut(&id) {
                Some(Use::Shared(count)) if *count > 1 => *count -= 1,
                _ => {
                    instances.in_use.remove(&id);
                }
            }
            if instances.in_use.contains_key(&id) { None } else { instances.waiting.remove(&self.key) }
        };
        self.hold = None;
        retired_mount::remove_if_retired(inner, id);
        woken.into_iter().flatten().for_each(|wake| wake());
    }
}

impl Snapshots {
    /// Takes a cache mount, or none if it is locked by somebody else: then `wake` is called once as soon as it makes
    /// sense to ask again. For async callers; blocking ones use [`cache_mount_wait`](Snapshots::cache_mount_wait).
    pub fn cache_mount(
        &self,
        request: &CacheMountRequest,
        wake: impl FnOnce() + Send + 'static,
    ) -> Result<Option<CacheMount>> {
        let mut wake: Option<Wake> = Some(Box::new(wake));
        self.0.with_room(0, || self.take(request, &mut wake))
    }

    fn take(&self, request: &CacheMountRequest, wake: &mut Option<Wake>) -> Result<Option<CacheMount>> {
        let inner = &self.0.inner;
        let key = request.key();
        let mut instances = locked(&inner.snapshots.instances);
        let known = inner.snapshots.instances_of(&key, request.kind);
        let free = known.iter().find(|id| !instances.in_use.contains_key(id));
        let shared = known.iter().find(|id| matches!(instances.in_use.get(id), Some(Use::Shared(_))));
        let taken = match (request.sharing, free, shared) {
            (Sharing::Shared, _, Some(shared)) => Some(*shared),
            (_, Some(free), _) => Some(*free),
            (Sharing::Locked, None, _) if !known.is_empty() => {
                instances.waiting.entry(key).or_default().extend(wake.take());
                return Ok(None);
            }
            (_, None, _) => None,
        };
        let hold = match taken.and_then(|id| self.hold(&id)) {
            Some(hold) => hold,
            None => self.new_instance(request, &key)?,
        };
        let size = inner.snapshots.with(hold.id(), |record| record.size).flatten();
        // From now on it changes: should the machine crash, it may be left half written.
        note_change(inner, hold.id(), None);
        let entry = instances.in_use.entry(hold.id());
        match request.sharing {
            Sharing::Shared => entry
                .and_modify(|used| {
                    if let Use::Shared(n) = used {
                        *n += 1
                    }
                })
                .or_insert(Use::Shared(1)),
            Sharing::Private | Sharing::Locked => entry.or_insert(Use::Alone),
        };
        Ok(Some(CacheMount { store: self.0.clone(), hold: Some(hold), key, size, told: OnceLock::new() }))
    }

    /// Takes a cache mount, waiting while it is locked.
    pub fn cache_mount_wait(&self, request: &CacheMountRequest, cancel: &Cancel) -> Result<CacheMount> {
        loop {
            cancel.check()?;
            let bell = Arc::new((Mutex::new(false), std::sync::Condvar::new()));
            let ring = Arc::clone(&bell);
            let wake = move || {
                *locked(&ring.0) = true;
                ring.1.notify_all();
            };
            if let Some(mount) = self.cache_mount(request, wake)? {
                return Ok(mount);
            }
            let mut rung = locked(&bell.0);
            while !*rung && !cancel.is_cancelled() {
                let waited = bell.1.wait_timeout(rung, Duration::from_millis(100));
                rung = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(rung, _)| rung);
            }
        }
    }

    fn new_instance(&self, request: &CacheMountRequest, key: &str) -> Result<Hold> {
        let inner = &self.0.inner;
        let id = inner.snapshots.next_id();
        self.make_instance(id, request, key).inspect_err(|_| {
            maintenance::discard(inner, &tree::dir(inner, id));
            maintenance::discard(inner, &tree::work_dir(inner, id));
        })
    }

    fn make_instance(&self, id: SnapshotId, request: &CacheMountRequest, key: &str) -> Result<Hold> {
        let inner = &self.0.inner;
        let parent = match &request.from {
            Some(id) => Some(self.hold_quietly(id).ok_or(Error::Missing(*id))?),
            None => None,
        };
        let below = match &parent {
            Some(parent) => tree::layer_dirs(inner, parent.id())?,
            None => Vec::new(),
        };
        let path = tree::make(inner, id, parent.as_ref().map(Hold::id))?;
        // A plain directory can be shared by any number of mounts, an overlay cannot. What people start cache mounts
        // from is nearly always one small layer, so it is copied.
        let stacked = match &below[..] {
            [] => false,
            [only] => {
                active::copy_tree(only, &path)?;
                false
            }
            _ => {
                let work = tree::work_dir(inner, id);
                std::fs::create_dir(&work).map_err(|e| Error::io("create directory", &work, e))?;
                true
            }
        };
        let record = Record {
            parent: parent.as_ref().filter(|_| stacked).map(Hold::id),
            kind: request.kind,
            description: Arc::from(request.description.as_str()),
            created: now(),
            last_used: Some(now()),
            usage: 1,
            size: None,
            chain: None,
            lazy: None,
            filled: true,
            opaque: false,
            empty: false,
            implied: Vec::new(),
            cache_key: Some(Arc::from(key)),
            children: 0,
            holds: 1,
        };
        layers::insert_row(inner, id, &record)?;
        inner.snapshots.insert(id, record);
        Ok(Hold { store: self.0.clone(), id })
    }
}

impl super::State {
    /// The instances of a cache mount, most recently used first.
    fn instances_of(&self, key: &str, kind: RecordKind) -> Vec<SnapshotId> {
        let table = self.table();
        let is_known = |record: &Record| record.kind == kind && record.cache_key.as_deref() == Some(key);
        let known = table.records.iter().filter(|(_, record)| is_known(record));
        let mut known: Vec<_> = known.map(|(id, record)| (record.last_used, *id)).collect();
        known.sort_by_key(|(used, id)| (std::cmp::Reverse(*used), *id));
        known.into_iter().map(|(_, id)| id).collect()
    }
}
