//! The tables. `user_version` counts their changes; every step from an older one is kept here for ever.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::{Error, Result};

/// The format that this program writes.
pub(crate) const VERSION: i64 = 2;

/// Step `n` leads from format `n` to `n + 1`.
const STEPS: [&str; VERSION as usize] = [
    "
    CREATE TABLE state (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE identity (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);

    -- Times are nanoseconds since 1970. `seq` is the place of the last change of data in the order of all such changes.
    CREATE TABLE snapshot (
        id INTEGER PRIMARY KEY,
        identity INTEGER NOT NULL,
        parent INTEGER,
        kind INTEGER NOT NULL,
        description TEXT NOT NULL,
        created INTEGER NOT NULL,
        last_used INTEGER,
        usage INTEGER NOT NULL,
        size INTEGER,
        chain BLOB,
        lazy TEXT,            -- JSON of the layer that it is made from
        filled INTEGER NOT NULL,
        opaque INTEGER NOT NULL,
        empty INTEGER NOT NULL,
        implied BLOB,         -- NUL-terminated paths of directories that wait for their looks
        cache_key TEXT,       -- set: a mutable snapshot for cache mounts
        seq INTEGER NOT NULL
    );
    CREATE TABLE layer (
        snapshot INTEGER NOT NULL,
        variant TEXT NOT NULL,
        digest BLOB NOT NULL,
        size INTEGER NOT NULL,
        diff_id BLOB NOT NULL,
        media_type TEXT NOT NULL,
        annotations TEXT NOT NULL,
        PRIMARY KEY (snapshot, variant)
    ) WITHOUT ROWID;
    CREATE INDEX layer_digest ON layer (digest);

    CREATE TABLE blob (
        digest BLOB PRIMARY KEY,
        size INTEGER NOT NULL,
        created INTEGER NOT NULL,
        last_used INTEGER NOT NULL,
        labels TEXT NOT NULL,
        seq INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE blob_ref (
        snapshot INTEGER NOT NULL,
        digest BLOB NOT NULL,
        PRIMARY KEY (snapshot, digest)
    ) WITHOUT ROWID;
    CREATE INDEX blob_ref_digest ON blob_ref (digest);

    CREATE TABLE result (
        key BLOB NOT NULL,
        result TEXT NOT NULL,
        snapshot INTEGER,
        created INTEGER NOT NULL,
        PRIMARY KEY (key, result)
    ) WITHOUT ROWID;
    CREATE INDEX result_name ON result (result);
    CREATE INDEX result_snapshot ON result (snapshot) WHERE snapshot IS NOT NULL;
    CREATE TABLE link (
        source BLOB NOT NULL,
        input INTEGER NOT NULL,
        output INTEGER NOT NULL,
        digest BLOB NOT NULL,
        selector BLOB NOT NULL, -- empty: none
        target BLOB NOT NULL,
        PRIMARY KEY (source, digest, input, output, selector, target)
    ) WITHOUT ROWID;
    CREATE INDEX link_target ON link (target);

    CREATE TABLE kv (
        namespace TEXT NOT NULL,
        key BLOB NOT NULL,
        value BLOB NOT NULL,
        snapshot INTEGER,
        PRIMARY KEY (namespace, key)
    ) WITHOUT ROWID;
    CREATE INDEX kv_snapshot ON kv (snapshot) WHERE snapshot IS NOT NULL;
",
    "
    -- Values are large: with a row id a look-up compares keys alone, without one it reads every row that it passes.
    DROP TABLE kv;
    CREATE TABLE kv (
        namespace TEXT NOT NULL,
        key BLOB NOT NULL,
        value BLOB NOT NULL,
        snapshot INTEGER,
        PRIMARY KEY (namespace, key)
    );
    CREATE INDEX kv_snapshot ON kv (snapshot) WHERE snapshot IS NOT NULL;
",
];

/// Brings the database to [`VERSION`]; a later one is refused.
pub(crate) fn migrate(path: &Path, connection: &mut Connection) -> Result<()> {
    let found: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(|e| Error::database("read the format of", e))?;
    if found > VERSION {
        let dir = path.parent().unwrap_or(path).to_owned();
        return Err(Error::Format { dir, found, supported: VERSION });
    }
    if found == VERSION {
        return Ok(());
    }
    let mut run = || {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for step in &STEPS[found.max(0) as usize..] {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()
    };
    run().map_err(|e| Error::database("prepare", e))
}
