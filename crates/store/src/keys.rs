//! The solver's cache keys over SQLite tables.
//!
//! A result is named by the snapshot it is: `<snapshot id>`, or `<snapshot id>:<anything>` where the engine keeps more
//! than the id. Such a result is known only while the snapshot is, and is released with it. Other names are kept as
//! they are.
//!
//! Digests are stored as 33 bytes (`1`, then the sha256), other ids as their text.

use base::Digest;
use rusqlite::Connection;
use solver::{Backlink, CacheResult, CacheStore, Change, KeyDigest, KeyId, Link, LinkRow, ResultId, StoreError};

use crate::{SnapshotId, Store};

#[cfg(test)]
mod tests;

/// The persistent store of cache keys.
#[derive(Clone, Debug)]
pub struct CacheKeys(pub(crate) Store);

impl CacheKeys {
    fn read<T>(&self, work: impl FnMut(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        self.0.inner.db.read("read cache keys from", work).map_err(StoreError::new)
    }

    fn is_known(&self, snapshot: Option<i64>) -> bool {
        snapshot.is_none_or(|id| self.0.inner.snapshots.with(SnapshotId(id), |_| ()).is_some())
    }
}

impl CacheStore for CacheKeys {
    fn exist(&self, keys: &[KeyId]) -> Result<Vec<bool>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(EXISTS)?;
            keys.iter().map(|key| query.query_row([encode(key.as_str())], |row| row.get(0))).collect()
        })
    }

    fn results(&self, keys: &[KeyId]) -> Result<Vec<Vec<CacheResult>>, StoreError> {
        let rows = self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT result, snapshot, created FROM result WHERE key = ?1 ORDER BY created DESC, result",
            )?;
            let mut answers = Vec::with_capacity(keys.len());
            for key in keys {
                let rows = query.query_map([encode(key.as_str())], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?, row.get(2)?))
                })?;
                answers.push(rows.collect::<rusqlite::Result<Vec<_>>>()?);
            }
            Ok(answers)
        })?;
        let known = |rows: Vec<(String, Option<i64>, i64)>| {
            let known = rows.into_iter().filter(|(_, snapshot, _)| self.is_known(*snapshot));
            known.map(|(id, _, created_at)| CacheResult { id: ResultId::from(id), created_at }).collect()
        };
        Ok(rows.into_iter().map(known).collect())
    }

    fn targets(&self, from: &[(KeyId, Link)]) -> Result<Vec<Vec<KeyId>>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT target FROM link WHERE source = ?1 AND digest = ?2 AND input = ?3 AND output = ?4 AND selector = ?5",
            )?;
            let mut answers = Vec::with_capacity(from.len());
            for (key, link) in from {
                let rows = query.query_map((encode(key.as_str()), op(link), link.input, link.output, selector(link)), |row| key_of(row, 0))?;
                answers.push(rows.collect::<rusqlite::Result<_>>()?);
            }
            Ok(answers)
        })
    }

    fn has_links(&self, rows: &[LinkRow]) -> Result<Vec<bool>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM link WHERE source = ?1 AND digest = ?2 AND input = ?3 AND output = ?4
                                AND selector = ?5 AND target = ?6)",
            )?;
            let has = |row: &LinkRow| {
                let link = &row.link;
                let (from, to) = (encode(row.from.as_str()), encode(row.to.as_str()));
                query.query_row((from, op(link), link.input, link.output, selector(link), to), |row| row.get(0))
            };
            rows.iter().map(has).collect()
        })
    }

    fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
        let write = |db: &rusqlite::Transaction<'_>| {
            for change in changes {
                match change {
                    Change::Result { key, result } => {
                        let mut insert = db.prepare_cached(
                            "INSERT OR REPLACE INTO result (key, result, snapshot, created) VALUES (?1, ?2, ?3, ?4)",
                        )?;
                        let name = result.id.as_str();
                        insert.execute((encode(key.as_str()), name, snapshot_of(name), result.created_at))?;
                    }
                    Change::Link(row) => {
                        let mut insert = db.prepare_cached(
                            "INSERT OR IGNORE INTO link (source, input, output, digest, selector, target)
                             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                        )?;
                        let link = &row.link;
                        let (from, to) = (encode(row.from.as_str()), encode(row.to.as_str()));
                        insert.execute((from, link.input, link.output, op(link), selector(link), to))?;
                    }
                    Change::Release(result) => {
                        let mut delete = db.prepare_cached("DELETE FROM result WHERE result = ?1 RETURNING key")?;
                        let touched =
                            delete.query_map([result.as_str()], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
                        forget_empty(db, touched)?;
                    }
                }
            }
            Ok(())
        };
        self.0.with_room(0, || self.0.inner.db.write("write cache keys to", write)).map_err(StoreError::new)
    }

    fn backlinks(&self, keys: &[KeyId]) -> Result<Vec<Vec<Backlink>>, StoreError> {
        self.read(|db| {
            let mut query =
                db.prepare_cached("SELECT source, input, output, digest, selector FROM link WHERE target = ?1")?;
            let mut answers = Vec::with_capacity(keys.len());
            for key in keys {
                let rows = query.query_map([encode(key.as_str())], backlink)?;
                answers.push(rows.collect::<rusqlite::Result<_>>()?);
            }
            Ok(answers)
        })
    }

    fn keys_of_result(&self, result: &ResultId) -> Result<Vec<KeyId>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT key FROM result WHERE result = ?1 ORDER BY key")?;
            query.query_map([result.as_str()], |row| key_of(row, 0))?.collect()
        })
    }

    fn keys(&self) -> Result<Vec<KeyId>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare("SELECT key FROM result UNION SELECT source FROM link")?;
            query.query_map([], |row| key_of(row, 0))?.collect()
        })
    }
}

const EXISTS: &str =
    "SELECT EXISTS (SELECT 1 FROM result WHERE key = ?1) OR EXISTS (SELECT 1 FROM link WHERE source = ?1)";

/// Forgets all results that are this snapshot, and the keys that lead nowhere then.
pub(crate) fn release_snapshot(db: &Connection, snapshot: i64) -> rusqlite::Result<()> {
    let mut delete = db.prepare_cached("DELETE FROM result WHERE snapshot = ?1 RETURNING key")?;
    let touched = delete.query_map([snapshot], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    forget_empty(db, touched)
}

fn forget_empty(db: &Connection, mut touched: Vec<Vec<u8>>) -> rusqlite::Result<()> {
    let mut exists = db.prepare_cached(EXISTS)?;
    let mut unlink = db.prepare_cached("DELETE FROM link WHERE target = ?1 RETURNING source")?;
    while let Some(key) = touched.pop() {
        if exists.query_row([&key], |row| row.get(0))? {
            continue;
        }
        for source in unlink.query_map([&key], |row| row.get(0))? {
            touched.push(source?);
        }
    }
    Ok(())
}

/// The snapshot that a result is.
fn snapshot_of(result: &str) -> Option<i64> {
    let id = result.split_once(':').map_or(result, |(id, _)| id);
    if !id.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    id.parse().ok()
}

fn encode(id: &str) -> Vec<u8> {
    match id.strip_prefix("sha256:").and_then(|hex| Digest::from_hex(hex).ok()) {
        Some(digest) => encode_digest(&digest),
        None => id.as_bytes().to_vec(),
    }
}

fn encode_digest(digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(33);
    bytes.push(1);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> String {
    match bytes.split_first() {
        Some((1, digest)) if digest.len() == 32 => {
            let mut sha = [0; 32];
            sha.copy_from_slice(digest);
            Digest::from_bytes(sha).to_string()
        }
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn key_of(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<KeyId> {
    Ok(KeyId::from(decode(row.get_ref(column)?.as_blob()?)))
}

/// The op's digest of a link.
fn op(link: &Link) -> Vec<u8> {
    match link.digest {
        KeyDigest::Stable(digest) => encode_digest(&digest),
        random => random.to_string().into_bytes(),
    }
}

fn selector(link: &Link) -> Vec<u8> {
    link.selector.map(|digest| digest.as_bytes().to_vec()).unwrap_or_default()
}

fn backlink(row: &rusqlite::Row<'_>) -> rusqlite::Result<Backlink> {
    let damaged = |column| rusqlite::Error::InvalidColumnType(column, "digest".to_owned(), rusqlite::types::Type::Blob);
    let digest: KeyDigest = decode(row.get_ref(3)?.as_blob()?).parse().map_err(|_| damaged(3))?;
    let selector: Vec<u8> = row.get(4)?;
    let selector = match <[u8; 32]>::try_from(selector) {
        Ok(bytes) => Some(Digest::from_bytes(bytes)),
        Err(none) if none.is_empty() => None,
        Err(_) => return Err(damaged(4)),
    };
    let link = Link { input: row.get(1)?, output: row.get(2)?, digest, selector };
    Ok(Backlink { from: key_of(row, 0)?, input: link.input, record: link.record_id(), selector })
}
