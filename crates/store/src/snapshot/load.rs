//! Reading the records when the store is opened, and making them agree with the trees.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use base::Digest;

use super::table::{Record, State, Table};
use super::{RecordKind, SnapshotId, layers};
use crate::metadata::Db;
use crate::{Error, Result};

/// Ids are given out from memory; this many are put aside at each open, so that none is given out twice.
const RESERVED: i64 = 1 << 20;

/// Reads the records of `identity`, whose trees are in `dir`. With `synced` (after a machine crash) records whose data
/// may not have reached the disk are dropped. Returns the state and what is to be thrown away of `dir`.
pub(crate) fn load(
    db: &Db,
    identity: i64,
    dir: &Path,
    synced: Option<i64>,
) -> Result<(State, Vec<std::path::PathBuf>)> {
    let rows = read_rows(db, identity)?;
    let mut found = HashSet::new();
    let mut stray = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io("read directory", dir, e))? {
        let entry = entry.map_err(|e| Error::io("read directory", dir, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        match name.parse::<i64>() {
            Ok(id) => {
                found.insert(SnapshotId(id));
            }
            Err(_) if name == "trash" || name == "identity" => {}
            Err(_) => stray.push((name.into_owned(), entry.path())),
        }
    }
    // No tree may be met by a new one of the same name, whatever a damaged database has forgotten.
    let id_of = |name: &str| name.get(1..).and_then(|id| id.parse().ok()).map(SnapshotId);
    let on_disk = found.iter().copied().chain(stray.iter().filter_map(|(name, _)| id_of(name))).max();
    let on_disk = on_disk.map_or(0, |id| id.0);
    let (table, dropped) = judge(rows, &found, synced);
    forget(db, &dropped)?;
    let keep = |id: &SnapshotId| table.records.contains_key(id);
    let mut waste: Vec<_> = found.iter().filter(|id| !keep(id)).map(|id| dir.join(id.to_string())).collect();
    for (name, path) in stray {
        let wanted = match (name.as_bytes().first(), id_of(&name)) {
            // A cache mount on a parent keeps its work directory.
            (Some(b'w'), Some(id)) => table.records.get(&id).is_some_and(|record| record.cache_key.is_some()),
            (Some(b'l'), Some(id)) => keep(&id),
            _ => false,
        };
        if !wanted {
            waste.push(path);
        }
    }
    let (next_id, seq) = db.write("write to", |db| {
        let last: i64 = db.query_row("SELECT coalesce(max(id), 0) FROM snapshot", [], |row| row.get(0))?;
        let reserved: i64 =
            db.query_row("SELECT coalesce((SELECT value FROM state WHERE name = 'next_id'), 1)", [], |row| row.get(0))?;
        let next = reserved.max(last + 1).max(on_disk + 1);
        db.execute("INSERT OR REPLACE INTO state (name, value) VALUES ('next_id', ?1)", [next + RESERVED])?;
        let seq = db.query_row(
            "SELECT max((SELECT coalesce(max(seq), 0) FROM snapshot), (SELECT coalesce(max(seq), 0) FROM blob),
                        coalesce((SELECT value FROM state WHERE name = 'synced'), 0))",
            [],
            |row| row.get(0),
        )?;
        Ok((next, seq))
    })?;
    db.keep(|heirloom| heirloom.next_id = next_id + RESERVED);
    Ok((State::new(table, next_id, seq), waste))
}

/// Keeps the records that can be used: the tree is there and safe on disk, and so is all they stand on.
fn judge(
    rows: Vec<(SnapshotId, Record, i64)>,
    found: &HashSet<SnapshotId>,
    synced: Option<i64>,
) -> (Table, Vec<SnapshotId>) {
    let mut table = Table::default();
    let mut dropped = Vec::new();
    for (id, mut record, seq) in rows {
        let safe = synced.is_none_or(|synced| seq <= synced);
        let has_parent = record.parent.is_none_or(|parent| table.records.contains_key(&parent));
        if record.filled && (!safe || !found.contains(&id)) && record.lazy.is_some() {
            // It can be unpacked again, and what stands on it stays valid.
            (record.filled, record.opaque) = (false, false);
            record.implied.clear();
        }
        if has_parent && (!record.filled || safe && found.contains(&id)) {
            table.insert(id, record);
        } else {
            dropped.push(id);
        }
    }
    (table, dropped)
}

fn forget(db: &Db, dropped: &[SnapshotId]) -> Result<()> {
    if dropped.is_empty() {
        return Ok(());
    }
    tracing::info!(count = dropped.len(), "dropped snapshots whose data is missing or may not have reached the disk");
    db.write("write to", |db| super::remove::delete_rows(db, dropped).map(drop))
}

fn read_rows(db: &Db, identity: i64) -> Result<Vec<(SnapshotId, Record, i64)>> {
    db.read("read", |db| {
        let mut query = db.prepare(
            "SELECT id, parent, kind, description, created, last_used, usage, size, chain, lazy, filled, opaque, empty, implied,
                    cache_key, seq
             FROM snapshot WHERE identity = ?1 ORDER BY id",
        )?;
        let mut rows = query.query([identity])?;
        let mut records = Vec::new();
        // Descriptions and keys repeat; one copy of each is enough.
        let mut texts: HashMap<String, Arc<str>> = HashMap::new();
        let mut text = |text: String| Arc::clone(texts.entry(text).or_insert_with_key(|text| Arc::from(text.as_str())));
        while let Some(row) = rows.next()? {
            let lazy: Option<String> = row.get(9)?;
            let implied: Option<Vec<u8>> = row.get(13)?;
            let record = Record {
                parent: row.get::<_, Option<i64>>(1)?.map(SnapshotId),
                kind: RecordKind::from_number(row.get(2)?),
                description: text(row.get(3)?),
                created: row.get(4)?,
                last_used: row.get(5)?,
                usage: row.get(6)?,
                size: row.get::<_, Option<i64>>(7)?.map(i64::unsigned_abs),
                chain: row.get::<_, Option<[u8; 32]>>(8)?.map(Digest::from_bytes),
                lazy: lazy.and_then(|lazy| serde_json::from_str(&lazy).ok()).map(Arc::new),
                filled: row.get(10)?,
                opaque: row.get(11)?,
                empty: row.get(12)?,
                implied: implied.map(|implied| layers::decode_paths(&implied)).unwrap_or_default(),
                cache_key: row.get::<_, Option<String>>(14)?.map(&mut text),
                children: 0,
                holds: 0,
            };
            records.push((SnapshotId(row.get(0)?), record, row.get(15)?));
        }
        Ok(records)
    })
}
