//! What can go wrong with files.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::pattern::PatternError;

/// Why a walk, a checksum, a copy or another file operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a path failed.
    #[error("cannot {call} `{}`", path.display())]
    Io {
        /// What was tried: `open`, `create`, ..
        call: &'static str,
        /// The path inside its root.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A path that a checksum or an action needs is not there, or a filter hides it.
    #[error("\"{}\": not found", .0.display())]
    NotFound(PathBuf),
    /// A path that a copy needs is not there. The words are the kernel's, as BuildKit's are: people look for them.
    #[error("{}: no such file or directory", .0.display())]
    Missing(PathBuf),
    /// A path goes through more links than anybody needs; most likely a loop.
    #[error("too many links in `{}`", .0.display())]
    TooManyLinks(PathBuf),
    /// Directories are nested deeper than we follow.
    #[error("directories are nested too deeply at `{}`", .0.display())]
    TooDeep(PathBuf),
    /// No source matches a wildcard.
    #[error("{} not found", .0.display())]
    NoMatch(PathBuf),
    /// A pattern list cannot be used.
    #[error("invalid {list} patterns")]
    Pattern {
        /// `include`, `exclude` or `source`.
        list: &'static str,
        /// Which pattern, and why.
        source: PatternError,
    },
    /// A directory would land where something else is.
    #[error("cannot copy to non-directory: {}", .0.display())]
    NotADirectory(PathBuf),
    /// A file would land where a directory is.
    #[error("cannot replace to directory {} with file", .0.display())]
    IsADirectory(PathBuf),
    /// A file changed between its checksum and its copy, or while it was read.
    #[error("`{}` changed while it was read", .0.display())]
    Changed(PathBuf),
    /// A file that has bytes came without any: upstream's clients send what they cannot read, or what is gone by then, so.
    #[error("`{}` came without its bytes: whoever sends it cannot read it, or it is gone", .0.display())]
    Unsent(PathBuf),
    /// A path that names no entry (`rm /`).
    #[error("invalid empty path")]
    EmptyPath,
    /// A symbolic mode that chmod(1) would not take either.
    #[error("invalid mode `{0}`")]
    Mode(String),
    /// `/etc/passwd` or `/etc/group` cannot be read for a name.
    #[error("cannot look up {what} `{name}`")]
    Owner {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// Stored checksums that this version does not read.
    #[error("stored checksums are damaged or of another version")]
    Stored,
    /// An archive could not be unpacked.
    #[error("cannot unpack `{}`", path.display())]
    Unpack {
        /// The archive.
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A name, a path or the target of a link that no file system takes.
    #[error("a file's {what} is longer than {limit} bytes: `{start}..`")]
    TooLong {
        /// Which.
        what: &'static str,
        /// How long it may be.
        limit: usize,
        /// How it begins.
        start: String,
    },
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] base::Cancelled),
}

impl Error {
    /// Whether the user named something that is not there.
    pub fn is_not_found(&self) -> bool {
        match self {
            Error::NotFound(_) | Error::Missing(_) | Error::NoMatch(_) => true,
            Error::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Whether trying again may help, since only the moment was bad.
    pub fn is_changed(&self) -> bool {
        matches!(self, Error::Changed(_) | Error::Unsent(_))
    }

    /// Of what is too long only the beginning is told: all of it may be megabytes.
    pub(crate) fn too_long(what: &'static str, limit: usize, text: &[u8]) -> Error {
        let start = String::from_utf8_lossy(&text[..text.len().min(40)]).into_owned();
        Error::TooLong { what, limit, start }
    }

    /// A file is larger than whoever reads it can use.
    pub fn too_large(path: &[u8]) -> Error {
        Error::io("read", crate::target::shown(path), io::Error::from(io::ErrorKind::FileTooLarge))
    }

    pub(crate) fn io(call: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Error {
        Error::Io { call, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// For errors of look-ups: names loops and missing paths as such.
    pub(crate) fn lookup(path: impl AsRef<Path>, source: io::Error) -> Error {
        let path = path.as_ref();
        match Errno::from_io_error(&source) {
            Some(Errno::LOOP) => Error::TooManyLinks(path.to_owned()),
            Some(Errno::NOENT) => Error::NotFound(path.to_owned()),
            _ => Error::io("open", path, source),
        }
    }
}

/// An error and all its causes in one line, for tests and logs.
pub fn chain(error: &dyn std::error::Error) -> impl Display {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
