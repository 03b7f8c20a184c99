//! Making files and rows agree when the store is opened.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base::Digest;

use super::writer::digest_rest;
use super::{blob_dir, blob_path, ingest_dir, remove_file};
use crate::metadata::Db;
use crate::{Error, Result, now};

/// Partial downloads older than this are not worth their space.
const KEEP_INGEST: Duration = Duration::from_secs(24 * 3600);
/// Nor are more of them than this, newest first.
const KEEP_INGEST_BYTES: u64 = 2 << 30;

/// Removes what a killed predecessor left, and rows without files; files without rows get one, because the rename
/// that named them came after all checks. With `synced` (after a machine crash) what may not have reached the
/// disk is digested again, and removed if it is not what its name says.
pub(crate) fn sweep(dir: &Path, db: &Db, synced: Option<i64>) -> Result<()> {
    sweep_ingest(dir)?;
    let mut rows: HashMap<Digest, i64> = db.read("read", |db| {
        let mut query = db.prepare("SELECT digest, seq FROM blob")?;
        let rows = query.query_map([], |row| Ok((Digest::from_bytes(row.get(0)?), row.get(1)?)))?;
        rows.collect()
    })?;
    let mut found = Vec::new();
    let blobs = blob_dir(dir);
    for entry in std::fs::read_dir(&blobs).map_err(|e| Error::io("read directory", &blobs, e))? {
        let entry = entry.map_err(|e| Error::io("read directory", &blobs, e))?;
        let digest = entry.file_name().to_str().and_then(|name| Digest::from_hex(name).ok());
        let Some(digest) = digest else {
            let _ = std::fs::remove_file(entry.path());
            continue;
        };
        let row = rows.remove(&digest);
        let doubtful = synced.is_some_and(|synced| row.is_none_or(|seq| seq > synced));
        if doubtful && !is_intact(&entry.path(), &digest) {
            remove_file(&entry.path())?;
            if row.is_some() {
                rows.insert(digest, 0);
            }
        } else if row.is_none() {
            found.push((digest, entry.metadata().map_or(0, |m| m.len())));
        }
    }
    if rows.is_empty() && found.is_empty() {
        return Ok(());
    }
    let at = now();
    db.write("write to", |db| {
        for digest in rows.keys() {
            db.prepare_cached("DELETE FROM blob WHERE digest = ?1")?.execute([digest.as_bytes()])?;
        }
        for (digest, size) in &found {
            let mut insert = db.prepare_cached(
                "INSERT OR REPLACE INTO blob (digest, size, created, last_used, labels, seq) VALUES (?1, ?2, ?3, ?3, '{}', 0)",
            )?;
            insert.execute((digest.as_bytes(), *size as i64, at))?;
        }
        Ok(())
    })
}

fn is_intact(path: &Path, digest: &Digest) -> bool {
    let mut hasher = Digest::hasher();
    let read = File::open(path).and_then(|mut file| digest_rest(&mut file, &mut hasher));
    read.is_ok() && hasher.finish() == *digest
}

fn sweep_ingest(dir: &Path) -> Result<()> {
    let ingest = ingest_dir(dir);
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(&ingest).map_err(|e| Error::io("read directory", &ingest, e))?.flatten() {
        let digest = entry.file_name().to_str().and_then(|name| Digest::from_hex(name).ok());
        match (digest, entry.metadata()) {
            (Some(digest), Ok(metadata)) if !blob_path(dir, &digest).exists() => {
                parts.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), entry.path()));
            }
            _ => {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    parts.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
    let mut total = 0;
    for (modified, len, path) in parts {
        total += len;
        if total > KEEP_INGEST_BYTES || modified.elapsed().is_ok_and(|age| age > KEEP_INGEST) {
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(())
}
