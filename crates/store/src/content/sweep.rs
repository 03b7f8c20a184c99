//! Making files and rows agree when the store is opened.

use std::collections::HashMap;
use std::fs::{DirEntry, File};
use std::os::unix::fs::MetadataExt;
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

/// A file that was written to so much later than its row is not as we left it; clocks are not exact.
const WRITTEN_LATER: i64 = 2_000_000_000;

/// What a row says of a blob.
struct Row {
    size: i64,
    created: i64,
    seq: i64,
}

/// Removes what a killed predecessor left, and rows without files; files without rows get one, because the rename
/// that named them came after all checks. What somebody has written to since, and with `synced` (after a machine
/// crash) what may not have reached the disk, is digested again, and removed if it is not what its name says.
pub(crate) fn sweep(dir: &Path, db: &Db, synced: Option<i64>) -> Result<()> {
    sweep_ingest(dir)?;
    let mut rows: HashMap<Digest, Row> = db.read("read", |db| {
        let mut query = db.prepare("SELECT digest, size, created, seq FROM blob")?;
        let rows = query.query_map([], |row| {
            let digest = Digest::from_bytes(row.get(0)?);
            Ok((digest, Row { size: row.get(1)?, created: row.get(2)?, seq: row.get(3)? }))
        })?;
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
        let size = entry.metadata().map_or(0, |file| file.len());
        let unsynced = synced.is_some_and(|synced| row.as_ref().is_none_or(|row| row.seq > synced));
        let touched = row.as_ref().is_some_and(|row| is_touched(&entry, row));
        if (unsynced || touched) && !is_intact(&entry.path(), &digest) {
            tracing::info!(%digest, "dropped a blob that is not what its name says");
            remove_file(&entry.path())?;
            rows.extend(row.map(|row| (digest, row)));
        } else if touched || row.is_none() {
            found.push((digest, size));
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
                "INSERT INTO blob (digest, size, created, last_used, labels, seq) VALUES (?1, ?2, ?3, ?3, '{}', 0)
                 ON CONFLICT (digest) DO UPDATE SET size = ?2, created = ?3",
            )?;
            insert.execute((digest.as_bytes(), *size as i64, at))?;
        }
        Ok(())
    })
}

fn is_touched(entry: &DirEntry, row: &Row) -> bool {
    let Ok(file) = entry.metadata() else { return true };
    let written = i128::from(file.mtime()) * 1_000_000_000 + i128::from(file.mtime_nsec());
    i64::try_from(file.len()) != Ok(row.size) || written > i128::from(row.created) + i128::from(WRITTEN_LATER)
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
