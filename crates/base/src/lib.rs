//! Shared ground: the values every room speaks of. No I/O, no async.
//!
//! Digests, platforms, sizes, cancellation, redaction, the one progress stream and [`Fault`], the error
//! that a user sees. A type belongs here only when rooms of different levels need it.

mod cancel;
mod digest;
mod fault;
pub mod gotext;
pub mod hint;
mod platform;
pub mod progress;
mod redact;
pub mod report;
mod size;
pub mod suggest;

pub use cancel::{Cancel, CancelReader, Cancelled};
pub use digest::{Digest, DigestParseError, Hasher, HashingReader};
pub use fault::{Fault, Kind, SourceFile, SourceSpan};
pub use platform::{Platform, PlatformParseError};
pub use redact::{Secret, redact_url};
pub use size::{ByteSize, ByteSizeParseError};
