//! Keys and values of other rooms (content-hash trees, build state), optionally living as long as a snapshot.

use rusqlite::OptionalExtension;

use crate::{Error, Result, SnapshotId, Store};

/// One namespace of keys and values.
#[derive(Clone, Debug)]
pub struct Kv {
    store: Store,
    namespace: String,
}

impl Kv {
    pub(crate) fn new(store: Store, namespace: &str) -> Kv {
        Kv { store, namespace: namespace.to_owned() }
    }

    /// The value of `key`.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        self.store.inner.db.read("read", |db| {
            let mut query = db.prepare_cached("SELECT value FROM kv WHERE namespace = ?1 AND key = ?2")?;
            query.query_row((&self.namespace, key.as_ref()), |row| row.get(0)).optional()
        })
    }

    /// Sets `key`.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.set(key.as_ref(), value.as_ref(), None)
    }

    /// Sets `key` until the snapshot is removed.
    pub fn put_with(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, snapshot: &SnapshotId) -> Result<()> {
        if self.store.snapshots().info(snapshot).is_none() {
            return Err(Error::Missing(*snapshot));
        }
        self.set(key.as_ref(), value.as_ref(), Some(snapshot.0))
    }

    /// Removes `key`.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.store.inner.db.write("write to", |db| {
            let mut statement = db.prepare_cached("DELETE FROM kv WHERE namespace = ?1 AND key = ?2")?;
            statement.execute((&self.namespace, key.as_ref())).map(drop)
        })
    }

    /// Removes what is larger than anybody wants it, without reading it; how many those were.
    pub fn delete_larger(&self, key: usize, value: usize) -> Result<usize> {
        let limit = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.store.inner.db.write("write to", |db| {
            let mut statement =
                db.prepare("DELETE FROM kv WHERE namespace = ?1 AND (length(key) > ?2 OR length(value) > ?3)")?;
            statement.execute((&self.namespace, limit(key), limit(value)))
        })
    }

    /// All keys and values whose key begins with `prefix`, in the order of keys.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let prefix = prefix.as_ref();
        self.store.inner.db.read("read", |db| {
            let mut query =
                db.prepare_cached("SELECT key, value FROM kv WHERE namespace = ?1 AND key >= ?2 ORDER BY key")?;
            let mut rows = query.query((&self.namespace, prefix))?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let key: Vec<u8> = row.get(0)?;
                if !key.starts_with(prefix) {
                    break;
                }
                found.push((key, row.get(1)?));
            }
            Ok(found)
        })
    }

    fn set(&self, key: &[u8], value: &[u8], snapshot: Option<i64>) -> Result<()> {
        self.store.inner.db.write("write to", |db| {
            let mut statement = db.prepare_cached(
                "INSERT OR REPLACE INTO kv (namespace, key, value, snapshot) VALUES (?1, ?2, ?3, ?4)",
            )?;
            statement.execute((&self.namespace, key, value, snapshot)).map(drop)
        })
    }
}
