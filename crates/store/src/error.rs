//! What callers tell apart: a full disk, a store in use, data that is not there (any more), the rest.

use std::io;
use std::path::{Path, PathBuf};

use base::{Cancelled, Digest, Fault};

use crate::SnapshotId;

/// Who has a store open, as far as that can be known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, in its own pid namespace.
    pub pid: Option<u32>,
    /// What it runs, if it can be seen from here.
    pub program: Option<String>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.pid, &self.program) {
            (Some(pid), Some(program)) => write!(f, "process {pid} (`{program}`)"),
            (Some(pid), None) => write!(f, "process {pid}"),
            (None, _) => f.write_str("another process"),
        }
    }
}

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the store open.
    #[error("state directory `{dir}` is in use by {holder}")]
    InUse {
        /// The store.
        dir: PathBuf,
        /// The process that holds it.
        holder: Holder,
    },
    /// The store was written by a later version.
    #[error("state directory `{dir}` has format {found}, this program reads up to {supported}")]
    Format {
        /// The store.
        dir: PathBuf,
        /// Its format.
        found: i64,
        /// Ours.
        supported: i64,
    },
    /// The disk or a quota is full.
    #[error("no space left on the device of `{path}` while trying to {doing}")]
    NoSpace {
        /// A verb phrase.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file system refused.
    #[error("cannot {doing} `{path}`")]
    Io {
        /// A verb phrase.
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The metadata database refused.
    #[error("cannot {doing} the metadata database")]
    Database {
        /// A verb phrase.
        doing: &'static str,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// The asked-for driver does not work here.
    #[error("the {driver} snapshot driver does not work in `{dir}`: {reason}")]
    Driver {
        /// Its name.
        driver: &'static str,
        /// The store.
        dir: PathBuf,
        /// What was tried and what came of it.
        reason: String,
    },
    /// The snapshot is gone: a miss.
    #[error("snapshot {0} does not exist any more")]
    Missing(SnapshotId),
    /// The snapshot, or one below it, is a layer that was not unpacked yet.
    #[error("snapshot {0} is not unpacked")]
    NotFilled(SnapshotId),
    /// Too many layers with content for one overlay.
    #[error("a snapshot on {0} layers cannot be mounted: overlayfs takes at most {max}", max = sys::mount::MAX_LAYERS)]
    TooDeep(usize),
    /// The bytes are not those that were asked for.
    #[error("blob has digest {actual}, not {expected}")]
    DigestMismatch {
        /// Asked for.
        expected: Digest,
        /// Received.
        actual: Digest,
    },
    /// There are more or fewer bytes than announced.
    #[error("blob has {actual} bytes, not {expected}")]
    SizeMismatch {
        /// Announced.
        expected: u64,
        /// Received.
        actual: u64,
    },
    /// The layer is not the one that its image lists.
    #[error("layer unpacks to diff id {actual}, but its image says {expected}")]
    DiffId {
        /// Of the image's configuration.
        expected: Digest,
        /// Of the tar.
        actual: Digest,
    },
    /// A layer's tar or its compression is damaged, or cannot be written.
    #[error(transparent)]
    Layer(#[from] image::Error),
    /// A tar stream cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] files::untar::Error),
    /// A filter of `du` or `prune` cannot be read.
    #[error("filter `{filter}`: {why}")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong.
        why: String,
    },
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The disk or a quota is full, and there was no room to be made for this.
    #[error(transparent)]
    NoRoom(Box<Error>),
}

impl Error {
    /// Names what was done to which path when the kernel refused.
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Error {
        let (path, source) = (path.as_ref().to_owned(), source.into());
        match is_full_io(&source) {
            true => Error::NoSpace { doing, path, source },
            false => Error::Io { doing, path, source },
        }
    }

    /// Names what was done when the database refused.
    pub(crate) fn database(doing: &'static str, source: rusqlite::Error) -> Error {
        Error::Database { doing, source }
    }

    /// Whether a layer has another size than it had before.
    pub(crate) fn is_other_tar(&self) -> bool {
        matches!(self, Error::Layer(image::Error::OtherTar { .. }))
    }

    /// Whether a full disk or quota is the cause.
    pub fn is_no_space(&self) -> bool {
        is_full(self)
    }

    /// Whether another process has the store.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Error::InUse { .. })
    }

    /// Whether a process of this program has the store.
    pub fn is_in_use_by(&self, program: &str) -> bool {
        matches!(self, Error::InUse { holder, .. } if holder.program.as_deref() == Some(program))
    }

    /// Whether it is not ours to open.
    pub fn is_denied(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether the data is not there: a cache miss, not a failure.
    pub fn is_miss(&self) -> bool {
        matches!(self, Error::Missing(_) | Error::NotFilled(_))
    }
}

fn is_full_io(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a full disk or quota is the cause, or the cause's cause.
pub fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    any_cause(error, |error| match error.downcast_ref() {
        Some(Error::NoSpace { .. } | Error::NoRoom(_)) => true,
        Some(Error::Unpack(e)) => e.is_no_space(),
        Some(Error::Database { source, .. }) => source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
        _ => error.downcast_ref().is_some_and(is_full_io),
    })
}

/// Whether a full disk or quota is the cause, and nobody has tried to make room yet: what did so in vain is not to be begun
/// again by those who asked for it.
pub fn wants_room(error: &(dyn std::error::Error + 'static)) -> bool {
    is_full(error) && !any_cause(error, |error| matches!(error.downcast_ref(), Some(Error::NoRoom(_))))
}

fn any_cause(
    error: &(dyn std::error::Error + 'static),
    is: impl Fn(&(dyn std::error::Error + 'static)) -> bool,
) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if is(error) {
            return true;
        }
        let io = match (error.downcast_ref(), error.downcast_ref()) {
            // What these are made of is not their source.
            (Some(Error::Layer(image::Error::Io(io))), _) | (_, Some(image::Error::Io(io))) => {
                next = Some(io);
                continue;
            }
            (Some(Error::NoRoom(inner)), _) => {
                next = Some(&**inner);
                continue;
            }
            _ => error.downcast_ref::<io::Error>(),
        };
        next = match (error.downcast_ref::<Fault>(), io.and_then(io::Error::get_ref)) {
            // It shows its causes itself.
            (Some(fault), _) => fault.get_source(),
            // An error inside an `io::Error` is what that is; its own source would be one further.
            (_, Some(inner)) => Some(inner),
            _ => error.source(),
        };
    }
    false
}
