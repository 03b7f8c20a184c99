//! Blobs by digest: complete and verified under their name, or not there at all.
//!
//! Bytes are digested while they are written to a name nobody asks for, and renamed when they are right. Who
//! comes second for a digest under way is told so ([`Content::claim`]) and shares the one download. The
//! file is the truth; its row in the database adds labels and use, and is made anew if a kill came between.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use base::{Cancel, Digest};
use rusqlite::OptionalExtension;

use crate::{Error, Result, Store, locked, now, time};

mod claim;
mod lease;
mod remove;
mod sweep;
#[cfg(test)]
mod tests;
mod writer;

pub use claim::{Claim, ClaimGuard};
pub(crate) use remove::remove_unwanted;
pub(crate) use sweep::sweep;
pub use writer::Writer;

/// Labels of a blob.
pub(crate) type Labels = std::collections::BTreeMap<String, String>;

/// What the store knows about blobs while it is open.
#[derive(Default)]
pub(crate) struct State {
    claims: claim::Claims,
    holds: Mutex<HashMap<Digest, usize>>,
    leases: Mutex<lease::Leases>,
    /// Blobs read since usage was last written.
    pub(crate) used: Mutex<HashMap<Digest, i64>>,
    next_temp: AtomicU64,
}

/// The blobs of a store.
#[derive(Clone, Debug)]
pub struct Content(pub(crate) Store);

/// An open blob.
#[derive(Debug)]
pub struct Blob {
    /// Positioned at the start.
    pub file: File,
    /// Bytes in it.
    pub size: u64,
}

/// What is known about a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its digest.
    pub digest: Digest,
    /// Bytes in it.
    pub size: u64,
    /// When it was complete.
    pub created_at: SystemTime,
    /// When it was last opened.
    pub last_used_at: SystemTime,
    /// Notes, such as the repositories that have it.
    pub labels: Labels,
}

impl Content {
    /// Opens the blob, if it is there.
    pub fn get(&self, digest: &Digest) -> Result<Option<Blob>> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open blob", &path, e)),
        };
        let size = file.metadata().map_err(|e| Error::io("look at blob", &path, e))?.len();
        locked(&self.0.inner.content.used).insert(*digest, now());
        Ok(Some(Blob { file, size }))
    }

    /// Whether the blob is there.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// All bytes of a small blob, if it is there and is what its name says.
    pub fn read(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let Some(mut blob) = self.get(digest)? else { return Ok(None) };
        let mut bytes = Vec::with_capacity(blob.size as usize);
        std::io::Read::read_to_end(&mut blob.file, &mut bytes)
            .map_err(|e| Error::io("read blob", self.path(digest), e))?;
        if Digest::of(&bytes) != *digest {
            tracing::warn!(%digest, "dropped a blob that is not what its name says");
            self.discard(digest)?;
            return Ok(None);
        }
        Ok(Some(bytes))
    }

    /// What is known about the blob, if it is there.
    pub fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        let Ok(file) = std::fs::metadata(self.path(digest)) else { return Ok(None) };
        let row = self.0.inner.db.read("read", |db| {
            let mut query = db.prepare_cached("SELECT created, last_used, labels FROM blob WHERE digest = ?1")?;
            query
                .query_row([digest.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)))
                .optional()
        })?;
        let made = i64::try_from(i128::from(file.mtime()) * 1_000_000_000).unwrap_or(0);
        let (created, last_used, labels) = row.unwrap_or((made, made, String::new()));
        Ok(Some(BlobInfo {
            digest: *digest,
            size: file.len(),
            created_at: time(created),
            last_used_at: time(locked(&self.0.inner.content.used).get(digest).copied().unwrap_or(last_used)),
            labels: parse_labels(&labels),
        }))
    }

    /// The path of the blob, there or not. For handing to the kernel (`FICLONE`, `sendfile`), not for writing.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        blob_path(&self.0.inner.dir, digest)
    }

    /// Stores bytes at hand.
    pub fn put(&self, bytes: impl AsRef<[u8]>) -> Result<Digest> {
        let bytes = bytes.as_ref();
        let digest = Digest::of(bytes);
        if !self.has(&digest) {
            let mut writer = self.writer(Some(digest), Some(bytes.len() as u64))?;
            writer.append(bytes)?;
            writer.finish()?;
        }
        Ok(digest)
    }

    /// Starts a new blob. With `expected` (and `size`) only those bytes are accepted.
    pub fn writer(&self, expected: Option<Digest>, size: Option<u64>) -> Result<Writer> {
        Writer::fresh(self.clone(), expected, size)
    }

    /// Starts a blob whose bytes are digested by whoever makes them.
    pub(crate) fn trusted_writer(&self) -> Result<Writer> {
        Writer::trusted(self.clone())
    }

    /// Goes on where an earlier download of this digest ended; [`Writer::offset`] says where that is.
    ///
    /// If somebody is writing the same digest just now, this one starts at 0 beside it.
    pub fn resume(&self, digest: &Digest, size: Option<u64>) -> Result<Writer> {
        Writer::resumed(self.clone(), *digest, size)
    }

    /// Asks who brings this blob: it is there, or the caller does, or somebody else does already.
    ///
    /// In the last case `wake` is called once when that one is done or gave up; then ask again. Made for async
    /// callers (wake a task); blocking ones use [`claim_wait`](Content::claim_wait).
    pub fn claim(&self, digest: &Digest, wake: impl FnOnce() + Send + 'static) -> Claim {
        claim::claim(self, digest, Box::new(wake))
    }

    /// As [`claim`](Content::claim), but waits for the other one. Never answers [`Claim::Busy`].
    pub fn claim_wait(&self, digest: &Digest, cancel: &Cancel) -> Result<Claim> {
        claim::claim_wait(self, digest, cancel)
    }

    /// Removes the blob unless it is held or a snapshot refers to it. Says whether it was there and is gone.
    pub fn delete(&self, digest: &Digest) -> Result<bool> {
        remove::remove_unwanted(&self.0.inner, digest)
    }

    /// Removes a blob that is not what its name says, whatever refers to it, unless it is held. Says whether it was there
    /// and is gone.
    pub fn discard(&self, digest: &Digest) -> Result<bool> {
        remove::remove_unheld(&self.0.inner, digest)
    }

    /// Sets a label of the blob (`containerd.io/distribution.source.<registry>` = repositories).
    pub fn set_label(&self, digest: &Digest, name: &str, value: &str) -> Result<()> {
        self.0.inner.db.write("write to", |db| {
            let mut query = db.prepare_cached("SELECT labels FROM blob WHERE digest = ?1")?;
            let Some(text) = query.query_row([digest.as_bytes()], |row| row.get::<_, String>(0)).optional()? else {
                return Ok(());
            };
            let mut labels = parse_labels(&text);
            labels.insert(name.to_owned(), value.to_owned());
            let text = serde_json::to_string(&labels).unwrap_or_default();
            db.prepare_cached("UPDATE blob SET labels = ?2 WHERE digest = ?1")?
                .execute((digest.as_bytes(), text))
                .map(drop)
        })
    }

    /// The labels of the blob.
    pub fn labels(&self, digest: &Digest) -> Result<Labels> {
        Ok(self.info(digest)?.map(|info| info.labels).unwrap_or_default())
    }

    /// Ties the blob to a snapshot: it goes when the last snapshot that it is tied to goes. One that is gone ties nothing.
    pub fn attach(&self, digest: &Digest, snapshot: &crate::SnapshotId) -> Result<()> {
        let attach = || {
            self.0.inner.db.write("write to", |db| {
                let mut statement = db.prepare_cached(
                    "INSERT OR IGNORE INTO blob_ref (snapshot, digest)
                     SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM snapshot WHERE id = ?1)",
                )?;
                statement.execute((snapshot.0, digest.as_bytes())).map(drop)
            })
        };
        self.0.with_room(0, attach)
    }

    /// Keeps the blob, there or still to come, from being removed while the guard lives.
    pub fn hold(&self, digest: &Digest) -> BlobHold {
        *locked(&self.0.inner.content.holds).entry(*digest).or_default() += 1;
        BlobHold { store: self.0.clone(), digest: *digest }
    }

    /// Notes a complete blob in the database.
    fn record(&self, digest: &Digest, size: u64) -> Result<()> {
        let (at, seq) = (now(), self.0.inner.snapshots.next_seq());
        let record = || {
            self.0.inner.db.write("write to", |db| {
                let mut statement = db.prepare_cached(
                    "INSERT INTO blob (digest, size, created, last_used, labels, seq) VALUES (?1, ?2, ?3, ?3, '{}', ?4)
                     ON CONFLICT (digest) DO UPDATE SET size = ?2, last_used = ?3, seq = ?4",
                )?;
                statement.execute((digest.as_bytes(), size as i64, at, seq)).map(drop)
            })
        };
        self.0.with_room(0, record)
    }

    fn temp_path(&self) -> PathBuf {
        let number = self.0.inner.content.next_temp.fetch_add(1, Ordering::Relaxed);
        ingest_dir(&self.0.inner.dir).join(format!("t{number}"))
    }
}

/// Keeps one blob from being removed.
#[derive(Debug)]
pub struct BlobHold {
    store: Store,
    digest: Digest,
}

impl BlobHold {
    /// Which blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl Clone for BlobHold {
    fn clone(&self) -> BlobHold {
        self.store.content().hold(&self.digest)
    }
}

impl Drop for BlobHold {
    fn drop(&mut self) {
        let mut holds = locked(&self.store.inner.content.holds);
        if let Some(count) = holds.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                holds.remove(&self.digest);
            }
        }
    }
}

impl State {
    pub(crate) fn is_held(&self, digest: &Digest) -> bool {
        locked(&self.holds).contains_key(digest) || self.claims.is_claimed(digest)
    }
}

pub(crate) fn blob_dir(dir: &Path) -> PathBuf {
    dir.join("content/blobs/sha256")
}

pub(crate) fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    blob_dir(dir).join(digest.hex())
}

pub(crate) fn ingest_dir(dir: &Path) -> PathBuf {
    dir.join("content/ingest")
}

/// Removes a file; says whether it was there.
pub(crate) fn remove_file(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("remove", path, e)),
    }
}

fn parse_labels(text: &str) -> Labels {
    serde_json::from_str(text).unwrap_or_default()
}
