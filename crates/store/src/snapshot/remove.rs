//! Removing snapshots: first their records and all that hangs on them, then their data.

use base::Digest;
use rusqlite::Connection;

use super::{Record, SnapshotId, tree};
use crate::{Inner, Result, keys, maintenance};

/// Removes those of the snapshots that nobody holds and nothing stands on. Answers which went.
pub(crate) fn remove_free(inner: &Inner, ids: &[SnapshotId]) -> Result<Vec<SnapshotId>> {
    let doomed = inner.snapshots.doom(ids);
    let gone = doomed.iter().map(|(id, _)| *id).collect();
    remove_all(inner, doomed).map(|()| gone)
}

/// Removes snapshots that were taken out of the table. Their blobs go with them unless something else wants these. Where
/// that cannot be written down, as on a full disk, they are still there.
pub(super) fn remove_all(inner: &Inner, doomed: Vec<(SnapshotId, Record)>) -> Result<()> {
    if doomed.is_empty() {
        return Ok(());
    }
    let ids: Vec<SnapshotId> = doomed.iter().map(|(id, _)| *id).collect();
    let orphans = inner.db.write("write to", |db| {
        let mut orphans = delete_rows(db, &ids)?;
        orphans.retain(|digest| !inner.content.is_held(digest));
        for digest in &orphans {
            db.prepare_cached("DELETE FROM blob WHERE digest = ?1")?.execute([digest.as_bytes()])?;
        }
        Ok(orphans)
    });
    let orphans = match orphans {
        Ok(orphans) => orphans,
        Err(error) => {
            inner.snapshots.restore(doomed);
            return Err(error);
        }
    };
    for id in ids {
        for path in
            [tree::dir(inner, id), tree::work_dir(inner, id), tree::links_file(inner, id), tree::fill_dir(inner, id)]
        {
            maintenance::discard(inner, &path);
        }
    }
    for digest in &orphans {
        inner.content.remove_unheld(&inner.dir, digest)?;
    }
    Ok(())
}

/// Deletes the rows of snapshots, their results, keys and values. Returns the blobs that nothing refers to any more.
pub(super) fn delete_rows(db: &Connection, ids: &[SnapshotId]) -> rusqlite::Result<Vec<Digest>> {
    let mut blobs: Vec<[u8; 32]> = Vec::new();
    for id in ids {
        let mut query = db.prepare_cached(
            "SELECT digest FROM layer WHERE snapshot = ?1 UNION SELECT digest FROM blob_ref WHERE snapshot = ?1",
        )?;
        for digest in query.query_map([id.0], |row| row.get(0))? {
            blobs.push(digest?);
        }
        let lazy: Option<String> = db
            .prepare_cached("SELECT lazy FROM snapshot WHERE id = ?1")?
            .query_row([id.0], |row| row.get(0))
            .or_else(|e| if e == rusqlite::Error::QueryReturnedNoRows { Ok(None) } else { Err(e) })?;
        let lazy = lazy.and_then(|lazy| serde_json::from_str::<super::LazyLayer>(&lazy).ok());
        blobs.extend(lazy.map(|lazy| *lazy.digest.as_bytes()));
        db.prepare_cached("DELETE FROM snapshot WHERE id = ?1")?.execute([id.0])?;
        db.prepare_cached("DELETE FROM layer WHERE snapshot = ?1")?.execute([id.0])?;
        db.prepare_cached("DELETE FROM blob_ref WHERE snapshot = ?1")?.execute([id.0])?;
        db.prepare_cached("DELETE FROM kv WHERE snapshot = ?1")?.execute([id.0])?;
        keys::release_snapshot(db, id.0)?;
    }
    blobs.sort_unstable();
    blobs.dedup();
    let mut orphans = Vec::new();
    for digest in blobs {
        let mut query = db.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM layer WHERE digest = ?1) OR EXISTS (SELECT 1 FROM blob_ref WHERE digest = ?1)",
        )?;
        let wanted: bool = query.query_row([digest], |row| row.get(0))?;
        if !wanted && !lazy_wants(db, &digest)? {
            orphans.push(Digest::from_bytes(digest));
        }
    }
    Ok(orphans)
}

/// Whether a lazy layer is made from this blob. Their descriptors are JSON, and few snapshots have one.
fn lazy_wants(db: &Connection, digest: &[u8; 32]) -> rusqlite::Result<bool> {
    let pattern = Digest::from_bytes(*digest).to_string();
    let mut query = db.prepare_cached("SELECT EXISTS (SELECT 1 FROM snapshot WHERE instr(lazy, ?1) > 0)")?;
    query.query_row([pattern], |row| row.get(0))
}
