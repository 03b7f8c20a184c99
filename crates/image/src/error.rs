//! What can be wrong with images, layers and archives.

use std::io;

use base::Digest;

use crate::ReferenceError;

/// An error of the image model. I/O errors of readers and writers that callers passed in come back as [`Error::Io`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text is no image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A document is not the JSON that it should be.
    #[error("malformed {what}")]
    Json {
        /// `image manifest`, `image config`, ..
        what: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A document is JSON but breaks a rule of its kind.
    #[error("invalid {what}: {reason}")]
    Document {
        /// `image manifest`, `image config`, ..
        what: &'static str,
        /// Which rule.
        reason: String,
    },
    /// Something is larger than we take.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// An index has no manifest that runs on the wanted platform.
    #[error("no image for platform {wanted}, {}", if available.is_empty() { "and for no other".to_owned() } else { format!("only for {available}") })]
    NoPlatform {
        /// The platform asked for.
        wanted: String,
        /// The platforms that there are.
        available: String,
    },
    /// A tar stream is damaged or hostile.
    #[error("invalid tar at offset {offset}{}: {reason}", entry_suffix(entry))]
    Tar {
        /// Where the header of the entry begins.
        offset: u64,
        /// The entry's name, as far as it is known.
        entry: String,
        /// What is wrong.
        reason: String,
        /// It is well-formed, and asks for what cannot be had here.
        is_sound: bool,
    },
    /// An entry cannot be written as tar.
    #[error("cannot write `{entry}` as tar: {reason}")]
    TarWrite {
        /// The entry's name.
        entry: String,
        /// Why.
        reason: String,
    },
    /// A layer's tar has another size than it had before.
    #[error("a layer has {actual} bytes, and had {expected} before")]
    OtherTar {
        /// Its size before.
        expected: u64,
        /// Its size now.
        actual: u64,
    },
    /// A compressed stream is damaged or ends early.
    #[error("invalid {kind} stream: {reason}")]
    Compressed {
        /// `gzip` or `zstd`.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A compression that we do not make or read.
    #[error("unsupported compression `{0}`: expected uncompressed, gzip or zstd")]
    Compression(String),
    /// A compression level out of range.
    #[error("compression level {level} is out of range for {kind}: expected {min} to {max}")]
    CompressionLevel {
        /// `gzip` or `zstd`.
        kind: &'static str,
        /// The level asked for.
        level: i32,
        /// The least level.
        min: i32,
        /// The greatest level.
        max: i32,
    },
    /// Bytes are not those that their descriptor promises.
    #[error("content of {expected} has digest {actual}")]
    WrongDigest {
        /// What was promised.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// There are more or fewer bytes than their descriptor promises.
    #[error("content of {digest} has {} bytes, expected {expected}", at_least(*actual, *expected))]
    WrongSize {
        /// Which content.
        digest: Digest,
        /// What was promised.
        expected: u64,
        /// What came; when it is more than expected, reading stopped there.
        actual: u64,
    },
    /// A blob that a manifest names is not in the archive or layout.
    #[error("`{0}` is not in the image layout")]
    Missing(String),
    /// The reader or writer given by the caller failed.
    #[error(transparent)]
    Io(io::Error),
}

fn entry_suffix(entry: &str) -> String {
    if entry.is_empty() { String::new() } else { format!(", entry `{entry}`") }
}

fn at_least(actual: u64, expected: u64) -> String {
    if actual > expected { format!("more than {expected}") } else { actual.to_string() }
}

impl Error {
    pub(crate) fn document(what: &'static str, reason: impl Into<String>) -> Error {
        Error::Document { what, reason: reason.into() }
    }
}

/// An [`Error`] that travelled through a `Read` or `Write` comes out as itself.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        match error.downcast::<Error>() {
            Ok(own) => own,
            Err(other) => Error::Io(other),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        match error {
            Error::Io(io) => io,
            Error::Tar { .. } | Error::Compressed { .. } | Error::WrongDigest { .. } | Error::WrongSize { .. } => {
                io::Error::new(io::ErrorKind::InvalidData, error)
            }
            other => io::Error::other(other),
        }
    }
}
