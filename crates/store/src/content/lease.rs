//! Leases: blobs that somebody above keeps by a name, across restarts, until the name is given up.
//!
//! They are rows of [`Kv`](crate::Kv)'s table (namespace `lease`, the name, the digests one after another) and holds in
//! memory while the store is open. A lease on a blob that is gone does no harm.

use std::collections::{BTreeMap, HashMap};

use base::Digest;

use super::{BlobInfo, Content, State, parse_labels};
use crate::metadata::Db;
use crate::{Result, locked, time};

const NAMESPACE: &str = "lease";

/// Who keeps what.
#[derive(Default)]
pub(super) struct Leases {
    by_name: BTreeMap<String, Vec<Digest>>,
    count: HashMap<Digest, usize>,
}

impl State {
    /// What the database says of leases; they hold from now on.
    pub(crate) fn open(db: &Db) -> Result<State> {
        let rows = db.read("read", |db| {
            let mut query = db.prepare("SELECT key, value FROM kv WHERE namespace = ?1")?;
            let rows =
                query.query_map([NAMESPACE], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let state = State::default();
        for (name, digests) in rows {
            let digests = digests.chunks_exact(32).filter_map(|bytes| Some(Digest::from_bytes(bytes.try_into().ok()?)));
            state.take_lease(&String::from_utf8_lossy(&name), digests.collect());
        }
        Ok(state)
    }

    /// Whether a lease keeps the blob.
    pub(crate) fn is_leased(&self, digest: &Digest) -> bool {
        locked(&self.leases).count.contains_key(digest)
    }

    /// The new digests hold before the old ones of that name go.
    fn take_lease(&self, name: &str, digests: Vec<Digest>) {
        {
            let mut holds = locked(&self.holds);
            let mut leases = locked(&self.leases);
            for digest in &digests {
                *holds.entry(*digest).or_default() += 1;
                *leases.count.entry(*digest).or_default() += 1;
            }
        }
        let old = locked(&self.leases).by_name.insert(name.to_owned(), digests);
        self.let_go(&old.unwrap_or_default());
    }

    fn let_go(&self, digests: &[Digest]) {
        let mut holds = locked(&self.holds);
        let mut leases = locked(&self.leases);
        for digest in digests {
            for counts in [&mut *holds, &mut leases.count] {
                if let Some(count) = counts.get_mut(digest) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(digest);
                    }
                }
            }
        }
    }
}

impl Content {
    /// Keeps blobs under a name until that is [released](Content::release), also when the store is opened again. They are
    /// no part of the cache then: neither counted nor pruned. A lease of the same name is replaced.
    pub fn lease(&self, name: &str, digests: &[Digest]) -> Result<()> {
        self.0.inner.content.take_lease(name, digests.to_vec());
        let bytes: Vec<u8> = digests.iter().flat_map(|digest| *digest.as_bytes()).collect();
        self.0.with_room(0, || self.0.kv(NAMESPACE).put(name, &bytes))
    }

    /// Gives up a lease; answers what it kept and no other lease keeps. That stays until it is deleted or pruned.
    pub fn release(&self, name: &str) -> Result<Vec<Digest>> {
        self.0.kv(NAMESPACE).delete(name)?;
        let content = &self.0.inner.content;
        let mut digests = locked(&content.leases).by_name.remove(name).unwrap_or_default();
        content.let_go(&digests);
        digests.sort_unstable();
        digests.dedup();
        digests.retain(|digest| !content.is_leased(digest));
        Ok(digests)
    }

    /// The names of all leases that begin so.
    pub fn leases(&self, prefix: &str) -> Vec<String> {
        let leases = locked(&self.0.inner.content.leases);
        leases.by_name.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }

    /// All blobs, by digest.
    pub fn list(&self) -> Result<Vec<BlobInfo>> {
        let mut blobs = self.0.inner.db.read("read", |db| {
            let mut query = db.prepare("SELECT digest, size, created, last_used, labels FROM blob ORDER BY digest")?;
            let rows = query.query_map([], |row| {
                Ok(BlobInfo {
                    digest: Digest::from_bytes(row.get(0)?),
                    size: row.get::<_, i64>(1)?.unsigned_abs(),
                    created_at: time(row.get(2)?),
                    last_used_at: time(row.get(3)?),
                    labels: parse_labels(&row.get::<_, String>(4)?),
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        blobs.retain(|blob| self.has(&blob.digest));
        Ok(blobs)
    }
}
