//! Layers that are known and not (yet) here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use base::Digest;
use files::untar::{self, Whiteouts};
use serde::{Deserialize, Serialize};
use sys::path::{Links, Root};

use super::table::Record;
use super::{Hold, PrepareOptions, SnapshotId, Snapshots, active, layers, tree};
use crate::diff::{Merged, is_whiteout};
use crate::{Driver, Error, Inner, Result, maintenance, nanos, now};

/// The name of a filling's turn, see [`layers::turn`].
const FILL: &str = "fill";

/// A layer of an image that somebody may want to read one day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LazyLayer {
    /// The compressed blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// The digest of the tar stream in it.
    pub diff_id: Digest,
    /// The chain id of this layer on its parents.
    pub chain_id: Digest,
    /// Where it can be had: repositories, in the order of preference.
    pub sources: Vec<String>,
    /// Addresses that its image names for it (layers that are not to be passed on).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Annotations of the descriptor.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Only a cache vouches for it, no image: whoever cannot have it makes the step again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_cache: bool,
}

/// Where and how to unpack a lazy layer.
#[derive(Debug)]
pub struct FillTarget {
    /// An existing directory.
    pub dir: PathBuf,
    /// How whiteouts and refused owners are written for this store's driver.
    pub options: untar::Options,
}

impl FillTarget {
    /// Unpacks a tar stream into the target.
    pub fn unpack(&self, source: &mut impl untar::Source) -> Result<Filled> {
        let root = untar::open_root(&self.dir).map_err(|e| Error::io("open", &self.dir, e))?;
        untar::unpack(&root, source, &self.options).map_err(Error::from)
    }
}

/// What was unpacked.
pub type Filled = untar::Report;

impl Snapshots {
    /// Records a layer without its data. If a snapshot with this chain id is known, it is that one.
    pub fn register_lazy(
        &self,
        parent: Option<&SnapshotId>,
        layer: LazyLayer,
        options: PrepareOptions,
    ) -> Result<Hold> {
        let inner = &self.0.inner;
        if let Some(known) = self.by_chain_id(&layer.chain_id) {
            self.add_sources(&known, &layer)?;
            return Ok(known);
        }
        let parent = match parent {
            Some(id) => Some(self.hold(id).ok_or(Error::Missing(*id))?),
            None => None,
        };
        let id = inner.snapshots.next_id();
        let record = Record {
            parent: parent.as_ref().map(Hold::id),
            kind: options.kind,
            description: Arc::from(options.description),
            created: options.created_at.map_or_else(now, nanos),
            last_used: Some(now()),
            usage: 0,
            size: Some(0),
            chain: Some(layer.chain_id),
            lazy: Some(Arc::new(layer)),
            filled: false,
            opaque: false,
            empty: false,
            implied: Vec::new(),
            cache_key: None,
            children: 0,
            holds: 1,
        };
        layers::insert_row(inner, id, &record)?;
        inner.snapshots.insert(id, record);
        Ok(Hold { store: self.0.clone(), id })
    }

    /// Notes where else a layer can be had, if its chain id is known.
    pub fn also_from(&self, layer: &LazyLayer) -> Result<()> {
        match self.by_chain_id(&layer.chain_id) {
            Some(known) => self.add_sources(&known, layer),
            None => Ok(()),
        }
    }

    /// The layer that the snapshot is made from, if it was pulled.
    pub fn lazy(&self, id: &SnapshotId) -> Option<Arc<LazyLayer>> {
        self.0.inner.snapshots.with(*id, |record| record.lazy.clone()).flatten()
    }

    /// The snapshots of the chain that are not filled, bottom first: the order in which to [`fill`](Snapshots::fill)
    /// them. With the overlay driver they may be filled side by side.
    pub fn unfilled(&self, id: &SnapshotId) -> Result<Vec<SnapshotId>> {
        let mut chain = self.chain(id)?;
        let inner = &self.0.inner;
        // One whose turn is not over yet may still wait for the looks of its directories.
        let turns = crate::locked(&inner.snapshots.busy).clone();
        let unfilled = |id: &SnapshotId| inner.snapshots.with(*id, |record| !record.filled).unwrap_or(false);
        chain.retain(|id| unfilled(id) || turns.contains(&(*id, FILL.to_owned())));
        chain.reverse();
        Ok(chain)
    }

    /// Unpacks a lazy layer, once: who comes second waits, and finds it done or tries in turn.
    ///
    /// `work` fills the directory it is given; only when it succeeds does the snapshot get its tree, all at once.
    /// The copy driver needs the parent filled before.
    pub fn fill<E: From<Error>>(
        &self,
        id: &SnapshotId,
        work: impl FnOnce(&FillTarget) -> Result<Filled, E>,
    ) -> Result<(), E> {
        let hold = self.hold_quietly(id).ok_or(Error::Missing(*id))?;
        let inner = &self.0.inner;
        let _turn = layers::turn(inner, *id, FILL);
        if inner.snapshots.with(*id, |record| record.filled).unwrap_or(false) {
            return Ok(());
        }
        let target = self.begin_fill(hold.id)?;
        match work(&target) {
            Ok(filled) => Ok(finish_fill(inner, hold.id, filled)?),
            Err(e) => {
                maintenance::discard(inner, &target.dir);
                Err(e)
            }
        }
    }

    fn begin_fill(&self, id: SnapshotId) -> Result<FillTarget> {
        let inner = &self.0.inner;
        let dir = tree::fill_dir(inner, id);
        tree::remove_tree(&dir).map_err(|e| Error::io("remove", &dir, e))?;
        std::fs::create_dir(&dir).map_err(|e| Error::io("create directory", &dir, e))?;
        rustix::fs::chmod(&dir, 0o755.into()).map_err(|e| Error::io("set the mode of", &dir, e))?;
        let parent = inner.snapshots.with(id, |record| record.parent).flatten();
        if let (Driver::Copy, Some(parent)) = (inner.driver.driver, parent) {
            let below = tree::layer_dirs(inner, parent)?;
            active::copy_tree(&below[0], &dir)?;
        }
        let mut options = self.layer_options();
        if parent.is_none() {
            // Nothing is below: a mark that hides it would be seen.
            options.whiteouts = Whiteouts::Delete;
        }
        Ok(FillTarget { dir, options })
    }

    /// How the driver writes what a layer's tar says.
    pub(crate) fn layer_options(&self) -> untar::Options {
        let inner = &self.0.inner;
        let whiteouts = match inner.driver.driver {
            Driver::Copy => Whiteouts::Delete,
            _ => Whiteouts::Overlay { userxattr: inner.driver.userxattr },
        };
        let mut options = untar::Options::layer(whiteouts);
        options.shadow = inner.options.shadow;
        options
    }

    fn add_sources(&self, known: &Hold, layer: &LazyLayer) -> Result<()> {
        let inner = &self.0.inner;
        let Some(have) = self.lazy(&known.id) else { return Ok(()) };
        let mut more = (*have).clone();
        // Where an image has it comes before where a cache says that it is.
        let (first, then) = match have.from_cache && !layer.from_cache {
            true => (&layer.sources, &have.sources),
            false => (&have.sources, &layer.sources),
        };
        more.from_cache &= layer.from_cache;
        if have.from_cache && !layer.from_cache && have.digest == layer.digest {
            // And what an image says of it is true.
            (more.size, more.media_type) = (layer.size, layer.media_type.clone());
            more.annotations.clone_from(&layer.annotations);
        }
        if more.urls.is_empty() && more.media_type == layer.media_type {
            more.urls.clone_from(&layer.urls);
        }
        more.sources.clone_from(first);
        more.sources.extend(then.iter().filter(|source| !first.contains(source)).cloned());
        // A filled snapshot keeps the blob that it was unpacked from; an unfilled one may as well be had as this one.
        if !inner.snapshots.with(known.id, |record| record.filled).unwrap_or(true) && have.digest != layer.digest {
            let (sources, from_cache) = (std::mem::take(&mut more.sources), more.from_cache);
            more = LazyLayer { sources, from_cache, ..layer.clone() };
        }
        if more == *have {
            return Ok(());
        }
        let text = serde_json::to_string(&more).unwrap_or_default();
        inner.snapshots.with_mut(known.id, |record| record.lazy = Some(Arc::new(more)));
        inner.db.write("write to", |db| {
            db.prepare_cached("UPDATE snapshot SET lazy = ?2 WHERE id = ?1")?.execute((known.id.0, &text)).map(drop)
        })
    }
}

fn finish_fill(inner: &Inner, id: SnapshotId, filled: Filled) -> Result<()> {
    let (from, to) = (tree::fill_dir(inner, id), tree::dir(inner, id));
    let mut links = filled.links;
    let overlay = inner.driver.driver == Driver::Overlay;
    if !overlay && let Some(parent) = inner.snapshots.with(id, |record| record.parent).flatten() {
        let mut below = tree::read_links(inner, parent)?;
        below.extend(&links);
        links = below;
    }
    tree::write_links(inner, id, &links)?;
    tree::remove_tree(&to).map_err(|e| Error::io("remove", &to, e))?;
    std::fs::rename(&from, &to).map_err(|e| Error::io("rename snapshot to", &to, e))?;
    let implied = if overlay { filled.implied } else { Vec::new() };
    let seq = inner.snapshots.next_seq();
    inner.db.write("write to", |db| {
        let mut statement = db.prepare_cached(
            "UPDATE snapshot SET filled = 1, opaque = ?2, implied = ?3, size = NULL, seq = ?4 WHERE id = ?1",
        )?;
        statement.execute((id.0, overlay && filled.opaque_root, layers::encode_paths(&implied), seq)).map(drop)
    })?;
    inner.snapshots.with_mut(id, |record| {
        record.filled = true;
        record.size = None;
        record.opaque = overlay && filled.opaque_root;
        record.implied = implied;
    });
    if overlay {
        settle_implied(inner, id)?;
    }
    maintenance::note_change(inner);
    Ok(())
}

/// Settles what a killed predecessor left waiting. What cannot be settled is unpacked again.
pub(crate) fn settle_all(inner: &Inner) -> Result<()> {
    for id in waiting(inner, SnapshotId(0)) {
        let Err(error) = settle(inner, id) else { continue };
        tracing::warn!(snapshot = %id, error = &error as &dyn std::error::Error, "a layer will be unpacked again");
        inner.snapshots.with_mut(id, |record| {
            (record.filled, record.opaque) = (false, false);
            record.implied.clear();
        });
        inner.db.write("write to", |db| {
            let mut update =
                db.prepare_cached("UPDATE snapshot SET filled = 0, opaque = 0, implied = NULL WHERE id = ?1")?;
            update.execute([id.0]).map(drop)
        })?;
    }
    Ok(())
}

/// Directories that a layer implies without describing them look like those of the layers below. Layers are
/// unpacked side by side, so each time one is complete, those that waited for it are looked at.
fn settle_implied(inner: &Inner, id: SnapshotId) -> Result<()> {
    waiting(inner, id).into_iter().try_for_each(|id| settle(inner, id))
}

/// The snapshot, and those made after it, whose implied directories wait for their looks.
fn waiting(inner: &Inner, id: SnapshotId) -> Vec<SnapshotId> {
    let table = inner.snapshots.table();
    let waiting = table.records.range(id..).filter(|(_, record)| record.filled && !record.implied.is_empty());
    waiting.map(|(id, _)| *id).collect()
}

/// Unless something below is still to be unpacked.
fn settle(inner: &Inner, id: SnapshotId) -> Result<()> {
    let (parent, implied) = match inner.snapshots.with(id, |record| (record.parent, record.implied.clone())) {
        Some((Some(parent), implied)) => (parent, implied),
        Some((None, implied)) => return settled(inner, id, implied.len()),
        None => return Ok(()),
    };
    let below = match tree::layer_dirs(inner, parent) {
        Ok(below) => below,
        Err(Error::NotFilled(_)) => return Ok(()),
        Err(e) => return Err(e),
    };
    let top = tree::dir(inner, id);
    let root = Root::open(&top).map_err(|e| Error::io("open", &top, e))?;
    for path in &implied {
        let path = OsStr::from_bytes(path);
        let failed = |e| Error::io("set the owner and mode of", top.join(path), e);
        let from = Merged::find(&below, path.as_bytes());
        let from = from.map_err(|e| Error::io("look for a directory below", &top, e))?;
        if let Some(from) = from.filter(|from| !is_whiteout(from) && !from.is_symlink() && from.is_dir()) {
            // A layer's links mean nothing here: as paths of ours they would lead out of it.
            let to = root.open_dir(path, Links::Refuse).map_err(failed)?;
            tree::copy_looks(&from, &sys::xattr::proc_path(&to, b".")).map_err(failed)?;
        }
    }
    settled(inner, id, implied.len())
}

fn settled(inner: &Inner, id: SnapshotId, count: usize) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    inner.snapshots.with_mut(id, |record| record.implied.clear());
    inner.db.write("write to", |db| {
        db.prepare_cached("UPDATE snapshot SET implied = NULL WHERE id = ?1")?.execute([id.0]).map(drop)
    })
}
