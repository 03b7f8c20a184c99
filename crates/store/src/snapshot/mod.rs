//! Snapshots: immutable trees with a parent, lazy layers, and the mutable trees of cache mounts.
//!
//! The records of all snapshots are in memory ([`table`]), the database follows; trees are directories whose
//! names are the ids ([`tree`]). A record is removed only when nobody holds it and nothing stands on it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use base::Digest;
use serde::{Deserialize, Serialize};
use sys::mount::FsView;
use sys::shadow;

use crate::{Error, Result, Store, time};

mod active;
mod cache_mount;
mod layers;
mod lazy;
mod load;
mod remove;
mod retired_mount;
mod table;
pub(crate) mod tree;

#[cfg(test)]
pub(crate) mod tests;

pub use active::Active;
pub use cache_mount::{CacheMount, CacheMountRequest, Sharing};
pub use layers::LayerRecord;
pub(crate) use layers::PULLED;
pub(crate) use lazy::settle_all;
pub use lazy::{FillTarget, Filled, LazyLayer};
pub(crate) use load::load;
pub(crate) use remove::{refer_to, remove_free};
pub(crate) use table::{Record, State};

/// The name of a snapshot, never used again once it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub(crate) i64);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for SnapshotId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(SnapshotId)
    }
}

/// What a snapshot is for: BuildKit's record types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// The result of a step, or a layer.
    #[default]
    Regular,
    /// The builder's own; removed by `prune --all` only.
    Internal,
    /// A frontend image; removed by `prune --all` only.
    Frontend,
    /// Files of a client's directory.
    LocalSource,
    /// A git checkout.
    GitCheckout,
    /// A `RUN --mount=type=cache`.
    CacheMount,
}

impl RecordKind {
    const ALL: [RecordKind; 6] = [
        RecordKind::Regular,
        RecordKind::Internal,
        RecordKind::Frontend,
        RecordKind::LocalSource,
        RecordKind::GitCheckout,
        RecordKind::CacheMount,
    ];

    /// BuildKit's name.
    pub fn as_str(self) -> &'static str {
        match self {
            RecordKind::Regular => "regular",
            RecordKind::Internal => "internal",
            RecordKind::Frontend => "frontend",
            RecordKind::LocalSource => "source.local",
            RecordKind::GitCheckout => "source.git.checkout",
            RecordKind::CacheMount => "exec.cachemount",
        }
    }

    /// A stable number for the database.
    fn number(self) -> i64 {
        RecordKind::ALL.iter().position(|kind| *kind == self).unwrap_or(0) as i64
    }

    fn from_number(number: i64) -> RecordKind {
        usize::try_from(number).ok().and_then(|n| RecordKind::ALL.get(n)).copied().unwrap_or_default()
    }
}

/// What a new snapshot is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrepareOptions {
    /// Its record type.
    pub kind: RecordKind,
    /// A line for people, such as the step's name.
    pub description: String,
    /// Of a layer that was made elsewhere: when. Now, if not given.
    pub created_at: Option<SystemTime>,
}

/// What is known of a snapshot when it is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// Replaces the description given when it was prepared.
    pub description: Option<String>,
    /// When the work that made it was done; now, if not given.
    pub created_at: Option<SystemTime>,
    /// Bytes allocated for what is in it, where whoever wrote it has counted them; else they are counted when somebody
    /// wants to know.
    pub allocated: Option<u64>,
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub id: SnapshotId,
    /// What it stands on.
    pub parent: Option<SnapshotId>,
    /// What it is for.
    pub kind: RecordKind,
    /// For people.
    pub description: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was last held.
    pub last_used_at: Option<SystemTime>,
    /// How often it was held.
    pub usage_count: u32,
    /// Allocated bytes of its own (without its parents), where they were counted already.
    pub size: Option<u64>,
    /// The chain id, once its layers' digests are known.
    pub chain_id: Option<Digest>,
    /// Its tree is there: not a lazy layer still to be unpacked.
    pub filled: bool,
    /// A cache mount: its content changes.
    pub mutable: bool,
}

/// The snapshots of a store, under the store's identity.
#[derive(Clone, Debug)]
pub struct Snapshots(pub(crate) Store);

/// Keeps a snapshot, and so all it stands on, from being removed.
#[derive(Debug)]
pub struct Hold {
    store: Store,
    id: SnapshotId,
}

impl Hold {
    /// Which snapshot.
    pub fn id(&self) -> SnapshotId {
        self.id
    }
}

impl Clone for Hold {
    fn clone(&self) -> Hold {
        self.store.inner.snapshots.add_hold(self.id);
        Hold { store: self.store.clone(), id: self.id }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.store.inner.snapshots.release_hold(self.id);
    }
}

impl Snapshots {
    /// Begins a new tree on `parent` (which must be filled, with all below it), or an empty one.
    pub fn prepare(&self, parent: Option<&SnapshotId>, options: PrepareOptions) -> Result<Active> {
        self.0.with_room(0, || active::prepare(&self.0, parent.copied(), options.clone()))
    }

    /// Makes the tree immutable and gives it a record. No copy, no sync.
    ///
    /// The new snapshot comes held, so that it cannot be removed before it is used.
    pub fn commit(&self, active: Active, options: CommitOptions) -> Result<Hold> {
        active::commit(active, options)
    }

    /// Holds the snapshot and counts a use of it; none if it is gone.
    pub fn hold(&self, id: &SnapshotId) -> Option<Hold> {
        self.0.inner.snapshots.try_hold(*id, true).then(|| Hold { store: self.0.clone(), id: *id })
    }

    /// Holds the snapshot without counting a use: for exporters and maintenance.
    pub fn hold_quietly(&self, id: &SnapshotId) -> Option<Hold> {
        self.0.inner.snapshots.try_hold(*id, false).then(|| Hold { store: self.0.clone(), id: *id })
    }

    /// Holds the snapshot whose layers have this chain id (OCI image-spec `config.md`), filled or lazy.
    pub fn by_chain_id(&self, chain_id: &Digest) -> Option<Hold> {
        let id = self.0.inner.snapshots.by_chain(chain_id)?;
        self.hold(&id)
    }

    /// What is known of the snapshot; none if it is gone.
    pub fn info(&self, id: &SnapshotId) -> Option<SnapshotInfo> {
        self.0.inner.snapshots.with(*id, |record| SnapshotInfo {
            id: *id,
            parent: record.parent,
            kind: record.kind,
            description: record.description.to_string(),
            created_at: time(record.created),
            last_used_at: record.last_used.map(time),
            usage_count: record.usage,
            size: record.size,
            chain_id: record.chain,
            filled: record.filled,
            mutable: record.cache_key.is_some(),
        })
    }

    /// The snapshot and all below it, topmost first.
    pub fn chain(&self, id: &SnapshotId) -> Result<Vec<SnapshotId>> {
        self.0.inner.snapshots.chain(*id)
    }

    /// How to read the snapshot. It must be filled; the caller holds it while the view is in use.
    pub fn view(&self, id: &SnapshotId) -> Result<FsView> {
        let layers = self.layer_dirs(id)?;
        Ok(tree::read_view(&self.0.inner, layers))
    }

    /// The directories that make up the snapshot's tree, topmost first: one for the copy driver, one per layer
    /// with content for overlay. For readers that do without a mount.
    pub fn layer_dirs(&self, id: &SnapshotId) -> Result<Vec<PathBuf>> {
        tree::layer_dirs(&self.0.inner, *id)
    }

    /// Owners of symlinks and fifos that the kernel refused, for the whole tree of the snapshot.
    pub fn link_owners(&self, id: &SnapshotId) -> Result<shadow::Table> {
        tree::link_owners(&self.0.inner, *id)
    }

    /// Changes what people read about the snapshot.
    pub fn describe(&self, id: &SnapshotId, description: &str) -> Result<()> {
        let inner = &self.0.inner;
        let known = inner.snapshots.with_mut(*id, |record| record.description = Arc::from(description));
        known.ok_or(Error::Missing(*id))?;
        inner.db.write("write to", |db| {
            let mut statement = db.prepare_cached("UPDATE snapshot SET description = ?2 WHERE id = ?1")?;
            statement.execute((id.0, description)).map(drop)
        })
    }

    /// Changes the record type (an image that turns out to be a frontend).
    pub fn set_kind(&self, id: &SnapshotId, kind: RecordKind) -> Result<()> {
        let inner = &self.0.inner;
        inner.snapshots.with_mut(*id, |record| record.kind = kind).ok_or(Error::Missing(*id))?;
        inner.db.write("write to", |db| {
            db.prepare_cached("UPDATE snapshot SET kind = ?2 WHERE id = ?1")?.execute((id.0, kind.number())).map(drop)
        })
    }

    /// Removes the snapshot and all that stands on it, unless any of them is held; says whether it did. For data
    /// that turned out to be bad, or a lazy layer that cannot be had any more.
    pub fn remove(&self, id: &SnapshotId) -> Result<bool> {
        let Some(doomed) = self.0.inner.snapshots.doom_subtree(*id) else { return Ok(false) };
        remove::remove_all(&self.0.inner, doomed)?;
        Ok(true)
    }
}
