//! The content store, the snapshots and everything that a build remembers, in one directory.
//!
//! ```text
//! <dir>/
//!   lock                       flock(2)ed by the one process that has the store open; names it
//!   reserve                    blocks that are kept back for the day when the disk is full
//!   metadata.db, -wal, -shm    SQLite: every record that exists
//!   content/blobs/sha256/<hex> blobs, complete and verified
//!   content/ingest/<hex>       downloads that may be resumed
//!   content/ingest/t<n>        downloads under way that nobody can name yet
//!   snapshots/<n>/             one per identity: driver, attribute namespace and id map (file `identity` says which)
//!     <id>                     the tree (copy) or the layer's own directory (overlay) of snapshot <id>
//!     w<id>                    overlay's work directory, while a snapshot is written to
//!     l<id>                    owners of links which the kernel refused (`sys::shadow::Table`)
//!     t<id>                    a lazy layer being unpacked
//!     trash/<n>                being removed
//! ```
//!
//! Promises:
//! - **What a record says exists, exists.** Data is complete before its record is written, and records go before
//!   their data. SQLite's commit reaches the page cache, so SIGKILL at any instant loses nothing that was committed;
//!   what it leaves half done has no record and is swept at the next open.
//! - **A machine crash loses recent work only.** Data is synced now and then; the database notes up to where. After an
//!   unclean stop on another boot, later entries are verified (blobs) or dropped (snapshots).
//! - **A record that is bad or gone is a miss**, never an error to a build.
//! - **A snapshot is immutable once committed**, and is read only under the identity that wrote it.
//! - Nothing that is held ([`Hold`], [`Active`], [`CacheMount`], [`BlobHold`], leases of blobs), nor an ancestor of it, is ever removed.
//!
//! All calls block on disk for moments (unpacking and copying for longer); async callers use blocking threads.

mod content;
mod diff;
mod difference;
mod dump;
mod error;
mod keys;
mod kv;
mod layer_io;
mod lock;
mod maintenance;
mod metadata;
mod open;
mod reserve;
mod room;
mod snapshot;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub use content::{Blob, BlobHold, BlobInfo, Claim, ClaimGuard, Content, Writer};
pub use diff::{Change, ChangeKind, FileKind, Metadata};
pub use dump::dump;
pub use error::{Error, Holder, is_full, wants_room};
pub use keys::CacheKeys;
pub use kv::Kv;
pub use layer_io::{TarSource, layer_entry};
pub use open::{Driver, DriverChoice, OpenOptions, boot_id};
pub use reserve::Reserve;
pub use room::{Made, Need, Room, has_little_room};
pub use snapshot::{
    Active, CacheMount, CacheMountRequest, CommitOptions, FillTarget, Filled, Hold, LayerRecord, LazyLayer,
    PrepareOptions, RecordKind, Sharing, SnapshotId, SnapshotInfo, Snapshots,
};
pub use usage::{PruneOptions, Subject, UsageFilter, UsageRecord};

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An open store; clones share it. The last one to go stops the maintenance thread and syncs.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    _maintenance: Arc<maintenance::Guard>,
}

/// What handles and the maintenance thread share.
pub(crate) struct Inner {
    dir: PathBuf,
    options: OpenOptions,
    driver: DriverChoice,
    db: metadata::Db,
    content: content::State,
    snapshots: snapshot::State,
    work: maintenance::Queue,
    room: room::State,
    /// Given back before the lock.
    loan: Mutex<Option<reserve::Loan>>,
    _lock: Arc<lock::Lock>,
}

impl Store {
    /// Blobs by digest.
    pub fn content(&self) -> Content {
        Content(self.clone())
    }

    /// File system trees.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots(self.clone())
    }

    /// The solver's cache keys.
    pub fn cache_keys(&self) -> CacheKeys {
        CacheKeys(self.clone())
    }

    /// A small area of keys and values of the caller's own.
    pub fn kv(&self, namespace: &str) -> Kv {
        Kv::new(self.clone(), namespace)
    }

    /// How snapshots are kept, and why so: for the log.
    pub fn driver(&self) -> &DriverChoice {
        &self.inner.driver
    }

    /// What was wrong with the database, where an empty one took its place when the store was opened.
    pub fn damage(&self) -> Option<&str> {
        self.inner.db.damage()
    }

    /// Whether what the kernel refuses is recorded beside files (`sys::shadow`).
    pub fn has_records(&self) -> bool {
        self.inner.options.shadow
    }

    /// The directory of the store.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Gives back what was borrowed of the reserve. The last clone does that too, but a program may end before threads that
    /// still have one.
    pub fn give_back(&self) {
        drop(locked(&self.inner.loan).take());
    }

    /// Writes usage counts, brings everything to the disk and notes that it is there.
    pub fn sync(&self) -> Result<()> {
        maintenance::sync(&self.inner)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.inner.dir)
            .field("driver", &self.inner.driver.driver)
            .finish_non_exhaustive()
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    nanos(std::time::SystemTime::now())
}

/// A time as [`now`] gives it.
pub(crate) fn nanos(time: std::time::SystemTime) -> i64 {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The time that [`now`] gave.
pub(crate) fn time(nanos: i64) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + std::time::Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// Locks a mutex whose data is consistent between any two statements.
pub(crate) fn locked<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
