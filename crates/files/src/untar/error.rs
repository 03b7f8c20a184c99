//! Why a stream was not unpacked, and how names are shown in messages.

use std::io;

use base::Cancelled;
use rustix::io::Errno;

use super::Entry;

/// Why a stream was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream could not be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The entry asks for something outside the root, or for nonsense.
    #[error("archive entry `{path}` is refused: {why}")]
    Refused {
        /// The entry's name.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The archive is larger than allowed.
    #[error("the archive unpacks to more than {limit}: refused as a decompression bomb")]
    TooLarge {
        /// The bound, and of what.
        limit: String,
    },
    /// The file system refused.
    #[error("cannot {doing} `{path}` from the archive")]
    Write {
        /// A verb phrase.
        doing: &'static str,
        /// The entry's name.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Error {
    /// Whether the file system or a quota is full.
    pub fn is_no_space(&self) -> bool {
        let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        matches!(self, Error::Write { source, .. } if full(source))
    }
}

pub(super) fn refused(path: &[u8], why: &'static str) -> Error {
    Error::Refused { path: shown(path), why }
}

/// A name in a message; the beginning of one that is too long for people.
fn shown(path: &[u8]) -> String {
    const MOST: usize = 256;
    match path.get(..MOST) {
        Some(head) if path.len() > MOST => format!("{}…", String::from_utf8_lossy(head)),
        _ => String::from_utf8_lossy(path).into_owned(),
    }
}

pub(super) fn bytes_text(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes >= GIB && bytes.is_multiple_of(GIB) { format!("{} GiB", bytes / GIB) } else { format!("{bytes} bytes") }
}

pub(super) fn write_error(doing: &'static str, path: &[u8], errno: Errno) -> Error {
    io_error(doing, path, errno.into())
}

pub(super) fn io_error(doing: &'static str, path: &[u8], source: io::Error) -> Error {
    Error::Write { doing, path: shown(path), source }
}

pub(super) fn owner_error(path: &[u8], entry: &Entry, errno: Errno) -> Error {
    let source = match errno {
        Errno::INVAL => io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "owner {}:{} is not mapped in this user namespace: more subordinate ids are needed",
                entry.uid, entry.gid
            ),
        ),
        errno => errno.into(),
    };
    io_error("set the owner of", path, source)
}
