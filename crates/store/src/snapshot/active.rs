//! A tree being written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::Cancel;
use sys::mount::FsView;
use sys::shadow;

use super::table::Record;
use super::{CommitOptions, Hold, PrepareOptions, SnapshotId, layers, tree};
use crate::{Driver, Error, Result, Store, maintenance, now};

/// A tree that is written to. Dropped without a commit, it is removed.
#[derive(Debug)]
pub struct Active {
    store: Store,
    id: SnapshotId,
    parent: Option<Hold>,
    options: PrepareOptions,
    links: shadow::Table,
    /// Overlay: mode, owner and group of the top directory as it was made.
    top: (u32, u32, u32),
    finished: bool,
}

impl Active {
    /// The id that the snapshot will have.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// What it stands on.
    pub fn parent(&self) -> Option<SnapshotId> {
        self.parent.as_ref().map(Hold::id)
    }

    /// How to see and write the tree. Views may be mounted one after another, not at once.
    pub fn view(&self) -> Result<FsView> {
        let inner = &self.store.inner;
        let lower = match &self.parent {
            Some(parent) => tree::layer_dirs(inner, parent.id)?,
            None => Vec::new(),
        };
        tree::write_view(inner, self.id, lower, false)
    }

    /// The directory that holds what was written so far: overlay's upper directory, or the whole tree.
    pub fn dir(&self) -> PathBuf {
        tree::dir(&self.store.inner, self.id)
    }

    /// Records owners of links and fifos that the kernel refused; paths without leading slash.
    pub fn record_links(&mut self, table: &shadow::Table) {
        self.links.extend(table);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if !self.finished {
            let inner = &self.store.inner;
            maintenance::discard(inner, &tree::dir(inner, self.id));
            maintenance::discard(inner, &tree::work_dir(inner, self.id));
        }
    }
}

pub(super) fn prepare(store: &Store, parent: Option<SnapshotId>, options: PrepareOptions) -> Result<Active> {
    let inner = &store.inner;
    let parent = match parent {
        Some(id) => Some(store.snapshots().hold(&id).ok_or(Error::Missing(id))?),
        None => None,
    };
    let below = parent.as_ref().map(Hold::id);
    let id = inner.snapshots.next_id();
    let mut active = Active {
        store: store.clone(),
        id,
        parent,
        options,
        links: shadow::Table::default(),
        top: (0, 0, 0),
        finished: false,
    };
    let path = tree::make(inner, id, below)?;
    match below {
        None => {}
        Some(below) if inner.driver.driver == Driver::Copy => {
            copy_tree(&tree::dir(inner, below), &path)?;
            active.links = tree::read_links(inner, below)?;
        }
        Some(_) => {
            let work = tree::work_dir(inner, id);
            std::fs::create_dir(&work).map_err(|e| Error::io("create directory", &work, e))?;
            active.top = top(&path)?;
        }
    }
    Ok(active)
}

/// Copies a whole tree, as the copy driver does for every step.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let copied = sys::copy::tree(from, to, &|_| true, &Cancel::new());
    copied.map(drop).map_err(|e| Error::io("copy a snapshot to", to, e))
}

fn top(path: &Path) -> Result<(u32, u32, u32)> {
    let stat = rustix::fs::lstat(path).map_err(|e| Error::io("look at", path, e))?;
    Ok((stat.st_mode, stat.st_uid, stat.st_gid))
}

pub(super) fn commit(mut active: Active, options: CommitOptions) -> Result<Hold> {
    let store = active.store.clone();
    let inner = &store.inner;
    let (id, path) = (active.id, active.dir());
    let stacked = inner.driver.driver == Driver::Overlay && active.parent.is_some();
    let mut empty = false;
    if stacked {
        let work = tree::work_dir(inner, id);
        tree::remove_work(&work).map_err(|e| Error::io("remove", &work, e))?;
        let mut entries = std::fs::read_dir(&path).map_err(|e| Error::io("read directory", &path, e))?;
        empty = entries.next().is_none() && top(&path)? == active.top;
    }
    store.with_room(0, || tree::write_links(inner, id, &active.links))?;
    let size = options.allocated.map(|inside| Ok(inside + tree::blocks(&rustix::fs::lstat(&path)?)));
    let size = size.transpose().map_err(|e: rustix::io::Errno| Error::io("look at", &path, e))?;
    let created = options.created_at.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let description = options.description.unwrap_or_else(|| std::mem::take(&mut active.options.description));
    let record = Record {
        parent: active.parent(),
        kind: active.options.kind,
        description: Arc::from(description),
        created: created.map_or_else(now, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)),
        // Who made it has used it: else what is new would be the first that cleaning takes.
        last_used: Some(now()),
        usage: 0,
        size,
        chain: None,
        lazy: None,
        filled: true,
        opaque: false,
        empty,
        implied: Vec::new(),
        cache_key: None,
        children: 0,
        holds: 1,
    };
    // What made it, a step, is not done again for want of room for a record.
    store.with_room(0, || layers::insert_row(inner, id, &record))?;
    inner.snapshots.insert(id, record);
    active.finished = true;
    maintenance::note_change(inner);
    Ok(Hold { store, id })
}
