//! Removing blobs. Whether one may go and that it goes are one step.
//!
//! Two things keep a blob: rows that refer to it, which one at a time can write, and holds, which are behind a lock. Both
//! are shut out from the decision until the file has gone from its place. So whoever refers to a blob, or holds it, *before*
//! looking whether it is there can count on the answer; nobody may take a reference for a blob that was seen before.

use base::Digest;
use rusqlite::Connection;

use super::blob_path;
use crate::{Inner, Result, locked, maintenance, snapshot};

/// Removes the blob unless it is held or a snapshot refers to it. Says whether it was there and is gone.
pub(crate) fn remove_unwanted(inner: &Inner, digest: &Digest) -> Result<bool> {
    remove(inner, digest, |db| snapshot::refer_to(db, inner.driver.identity, digest))
}

/// Removes the blob unless it is held. Says whether it was there and is gone.
pub(super) fn remove_unheld(inner: &Inner, digest: &Digest) -> Result<bool> {
    remove(inner, digest, |_| Ok(false))
}

fn remove(inner: &Inner, digest: &Digest, is_wanted: impl Fn(&Connection) -> rusqlite::Result<bool>) -> Result<bool> {
    let removed = inner.db.write_then(
        "write to",
        |db| {
            if is_wanted(db)? {
                return Ok(None);
            }
            let holds = locked(&inner.content.holds);
            if holds.contains_key(digest) || inner.content.claims.is_claimed(digest) {
                return Ok(None);
            }
            db.prepare_cached("DELETE FROM blob WHERE digest = ?1")?.execute([digest.as_bytes()])?;
            // Locked until the file has gone from there.
            Ok(Some(holds))
        },
        |holds| holds.map_or(Ok(false), |_holds| maintenance::discard_file(inner, &blob_path(&inner.dir, digest))),
    );
    removed?
}
