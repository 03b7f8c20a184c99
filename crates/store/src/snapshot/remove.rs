//! Removing snapshots: first their records and all that hangs on them, then their data.

use base::Digest;
use rusqlite::Connection;

use super::{Record, SnapshotId, tree};
use crate::content::remove_unwanted;
use crate::{Inner, Result, keys, maintenance};

/// Removes those of the snapshots that nobody holds and nothing stands on. Which went is in `gone`, also where what hung on
/// them could not all be removed.
pub(crate) fn remove_free(inner: &Inner, ids: &[SnapshotId], gone: &mut Vec<SnapshotId>) -> Result<()> {
    let doomed = inner.snapshots.doom(ids);
    let doomed_ids: Vec<SnapshotId> = doomed.iter().map(|(id, _)| *id).collect();
    let blobs = remove_records(inner, doomed)?;
    gone.extend(doomed_ids);
    remove_blobs(inner, &blobs)
}

/// Removes snapshots that were taken out of the table. Their blobs go with them unless something else wants these. Where
/// that cannot be written down, as on a full disk, they are still there.
pub(super) fn remove_all(inner: &Inner, doomed: Vec<(SnapshotId, Record)>) -> Result<()> {
    let blobs = remove_records(inner, doomed)?;
    remove_blobs(inner, &blobs)
}

/// Without their blobs, which it answers.
fn remove_records(inner: &Inner, doomed: Vec<(SnapshotId, Record)>) -> Result<Vec<Digest>> {
    if doomed.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<SnapshotId> = doomed.iter().map(|(id, _)| *id).collect();
    let blobs = inner.db.write("write to", |db| delete_rows(db, &ids));
    let blobs = match blobs {
        Ok(blobs) => blobs,
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
    Ok(blobs)
}

/// Removes blobs that removed snapshots referred to: all that can be. What is left belongs to no snapshot, and goes another
/// time. Answers the first error.
fn remove_blobs(inner: &Inner, blobs: &[Digest]) -> Result<()> {
    // Another build may have made the same ones, or have found them, since then.
    let mut done = Ok(());
    for digest in blobs {
        let removed = remove_unwanted(inner, digest).map(drop);
        done = done.and(removed);
    }
    done
}

/// Deletes the rows of snapshots, their results, keys and values. Returns the blobs that they referred to.
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
    Ok(blobs.into_iter().map(Digest::from_bytes).collect())
}

/// Whether a snapshot refers to a blob: as a layer of it, as something it needs, or as the lazy layer that it is made from.
/// Descriptors of lazy layers are JSON that begins with the digest, and few snapshots have one. Those of another identity are
/// not ours to bring back.
pub(crate) fn refer_to(db: &Connection, identity: i64, digest: &Digest) -> rusqlite::Result<bool> {
    let mut query = db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM layer WHERE digest = ?1) OR EXISTS (SELECT 1 FROM blob_ref WHERE digest = ?1)
             OR EXISTS (SELECT 1 FROM snapshot WHERE identity = ?2 AND instr(lazy, ?3) = 1)",
    )?;
    let lazy = format!("{{\"digest\":\"{digest}\"");
    query.query_row((digest.as_bytes(), identity, lazy), |row| row.get(0))
}
