//! The layer blobs made from a snapshot: one per variant (compression, level, ..), each made at most once.

use std::collections::BTreeMap;

use base::Digest;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};

use super::table::Record;
use super::{LazyLayer, SnapshotId, Snapshots};
use crate::{Error, Inner, Result, locked};

/// The variant of the blob of a layer that was pulled and then put onto another parent.
pub(crate) const PULLED: &str = "pulled";

/// One layer blob of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// The digest of the tar stream in it.
    pub diff_id: Digest,
    /// Its media type.
    pub media_type: String,
    /// Annotations for its descriptor.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl From<&LazyLayer> for LayerRecord {
    fn from(lazy: &LazyLayer) -> LayerRecord {
        LayerRecord {
            digest: lazy.digest,
            size: lazy.size,
            diff_id: lazy.diff_id,
            media_type: lazy.media_type.clone(),
            annotations: lazy.annotations.clone(),
        }
    }
}

impl Snapshots {
    /// The blob that the snapshot's layer came as, from elsewhere; maybe still to be fetched. None where we made the layer.
    pub fn origin(&self, id: &SnapshotId) -> Result<Option<LayerRecord>> {
        match self.lazy(id) {
            Some(lazy) => Ok(Some(LayerRecord::from(&*lazy))),
            None => Ok(self.layer(id, PULLED)?.filter(|record| self.0.content().has(&record.digest))),
        }
    }

    /// All layer blobs that were made from the snapshot, by variant. Their bytes may be gone from the store.
    pub fn layers(&self, id: &SnapshotId) -> Result<BTreeMap<String, LayerRecord>> {
        self.0.inner.db.read("read", |db| {
            let mut query = db.prepare_cached(
                "SELECT digest, size, diff_id, media_type, annotations, variant FROM layer WHERE snapshot = ?1",
            )?;
            let rows = query.query_map([id.0], |row| Ok((row.get(5)?, layer_of(row)?)))?;
            rows.collect()
        })
    }

    /// One layer blob of the snapshot.
    pub fn layer(&self, id: &SnapshotId, variant: &str) -> Result<Option<LayerRecord>> {
        self.0.inner.db.read("read", |db| {
            let mut query = db.prepare_cached(
                "SELECT digest, size, diff_id, media_type, annotations FROM layer WHERE snapshot = ?1 AND variant = ?2",
            )?;
            query.query_row((id.0, variant), layer_of).optional()
        })
    }

    /// Records a layer blob unless one is recorded; answers with the one that counts.
    ///
    /// Once all snapshots below have a chain id, so has this one, and it is found by it.
    pub fn set_layer(&self, id: &SnapshotId, variant: &str, layer: LayerRecord) -> Result<LayerRecord> {
        let inner = &self.0.inner;
        let (parent, chain) =
            inner.snapshots.with(*id, |record| (record.parent, record.chain)).ok_or(Error::Missing(*id))?;
        let below = match parent {
            Some(parent) => inner.snapshots.with(parent, |record| record.chain).flatten().map(Some),
            None => Some(None),
        };
        let new_chain = match (chain, below) {
            (None, Some(below)) => Some(chain_id(below.as_ref(), &layer.diff_id)),
            _ => None,
        };
        let annotations = serde_json::to_string(&layer.annotations).unwrap_or_default();
        let note = |db: &Connection| {
            let mut insert = db.prepare_cached(
                "INSERT OR IGNORE INTO layer (snapshot, variant, digest, size, diff_id, media_type, annotations)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            let (digest, diff_id) = (layer.digest.as_bytes(), layer.diff_id.as_bytes());
            insert.execute((id.0, variant, digest, layer.size as i64, diff_id, &layer.media_type, &annotations))?;
            if let Some(chain) = &new_chain {
                db.prepare_cached("UPDATE snapshot SET chain = ?2 WHERE id = ?1")?.execute((id.0, chain.as_bytes()))?;
            }
            let mut query = db.prepare_cached(
                "SELECT digest, size, diff_id, media_type, annotations FROM layer WHERE snapshot = ?1 AND variant = ?2",
            )?;
            query.query_row((id.0, variant), layer_of)
        };
        let counts = self.0.with_room(0, || inner.db.write("write to", |db| note(db)))?;
        if let Some(chain) = new_chain {
            inner.snapshots.set_chain(*id, chain);
        }
        Ok(counts)
    }

    /// The layer blob of this variant; `make` makes it if there is none, and others who want it wait meanwhile.
    pub fn make_layer<E: From<Error>>(
        &self,
        id: &SnapshotId,
        variant: &str,
        make: impl FnOnce() -> Result<LayerRecord, E>,
    ) -> Result<LayerRecord, E> {
        let _turn = turn(&self.0.inner, *id, &format!("layer {variant}"));
        if let Some(layer) = self.layer(id, variant)?
            && self.0.content().has(&layer.digest)
        {
            return Ok(layer);
        }
        let layer = make()?;
        let counts = self.set_layer(id, variant, layer.clone())?;
        if counts == layer || self.0.content().has(&counts.digest) {
            return Ok(counts);
        }
        // The blob on record is gone and the new one differs (another compressor version): the new one counts.
        self.drop_layer(id, variant)?;
        Ok(self.set_layer(id, variant, layer)?)
    }

    /// Forgets a layer record whose blob is gone.
    pub fn drop_layer(&self, id: &SnapshotId, variant: &str) -> Result<()> {
        self.0.inner.db.write("write to", |db| {
            let mut statement = db.prepare_cached("DELETE FROM layer WHERE snapshot = ?1 AND variant = ?2")?;
            statement.execute((id.0, variant)).map(drop)
        })
    }
}

/// The chain id of a layer on its parents (OCI image-spec `config.md`).
fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => *diff_id,
        Some(below) => Digest::of(format!("{below} {diff_id}")),
    }
}

fn layer_of(row: &Row<'_>) -> rusqlite::Result<LayerRecord> {
    let annotations: String = row.get(4)?;
    Ok(LayerRecord {
        digest: Digest::from_bytes(row.get(0)?),
        size: row.get::<_, i64>(1)?.unsigned_abs(),
        diff_id: Digest::from_bytes(row.get(2)?),
        media_type: row.get(3)?,
        annotations: serde_json::from_str(&annotations).unwrap_or_default(),
    })
}

/// The right to be the only one who does something to a snapshot, given back on drop.
pub(super) struct Turn<'a> {
    inner: &'a Inner,
    what: (SnapshotId, String),
}

/// Waits for the turn to do `what` to the snapshot.
pub(super) fn turn<'a>(inner: &'a Inner, id: SnapshotId, what: &str) -> Turn<'a> {
    let what = (id, what.to_owned());
    let state = &inner.snapshots;
    let mut busy = locked(&state.busy);
    while !busy.insert(what.clone()) {
        busy = state.idle.wait(busy).unwrap_or_else(std::sync::PoisonError::into_inner);
    }
    Turn { inner, what }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        locked(&self.inner.snapshots.busy).remove(&self.what);
        self.inner.snapshots.idle.notify_all();
    }
}

/// Writes the row of a new snapshot.
pub(super) fn insert_row(inner: &Inner, id: SnapshotId, record: &Record) -> Result<()> {
    let lazy = record.lazy.as_ref().map(|lazy| serde_json::to_string(&**lazy).unwrap_or_default());
    let seq = inner.snapshots.next_seq();
    inner.db.write("write to", |db| {
        let mut insert = db.prepare_cached(
            "INSERT INTO snapshot (id, identity, parent, kind, description, created, last_used, usage, size, chain, lazy, filled,
                                   opaque, empty, implied, cache_key, seq)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, NULL, ?15, ?16)",
        )?;
        insert
            .execute(rusqlite::params![
                id.0,
                inner.driver.identity,
                record.parent.map(|parent| parent.0),
                record.kind.number(),
                &*record.description,
                record.created,
                record.last_used,
                record.usage,
                record.size.map(|size| size as i64),
                record.chain.as_ref().map(Digest::as_bytes),
                lazy,
                record.filled,
                record.opaque,
                record.empty,
                record.cache_key.as_deref(),
                seq,
            ])
            .map(drop)
    })
}

/// Paths for the database: each ends in NUL.
pub(super) fn encode_paths(paths: &[Vec<u8>]) -> Option<Vec<u8>> {
    (!paths.is_empty()).then(|| paths.iter().flat_map(|path| path.iter().copied().chain([0])).collect())
}

/// Reads [`encode_paths`]'s bytes.
pub(super) fn decode_paths(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.split(|b| *b == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect()
}
