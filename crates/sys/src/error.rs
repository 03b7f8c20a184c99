//! The one error of this crate: what was asked of the kernel, on what, and its answer.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a call on a path.
    #[error("cannot {doing} `{path}`")]
    Path {
        /// A verb phrase: `mount overlay at`.
        doing: &'static str,
        /// The path it was done to.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused a call that has no path.
    #[error("cannot {doing}")]
    Call {
        /// A verb phrase: `create a user namespace`.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// More layers than overlayfs takes (`OVL_MAX_STACK`).
    #[error("an overlay takes at most {max} layers, this one has {count}")]
    TooManyLayers {
        /// How many there are.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// An overlay was described that cannot exist.
    #[error("overlay at `{path}` has no lower directory")]
    NoLayers {
        /// Where it was to be mounted.
        path: PathBuf,
    },
    /// A helper program failed.
    #[error("`{program}` failed: {said}")]
    Helper {
        /// The program.
        program: String,
        /// Its exit status, and what it wrote.
        said: String,
    },
}

impl Error {
    /// A refused call on `path`.
    pub fn path(doing: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Error {
        Error::Path { doing, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// A refused call that has no path.
    pub fn call(doing: &'static str, source: impl Into<io::Error>) -> Error {
        Error::Call { doing, source: source.into() }
    }

    /// The kernel's error number, where it was the kernel that refused.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Error::Path { source, .. } | Error::Call { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
