//! What a transfer tells while it runs.

use base::Digest;
use base::progress::Stream;
use base::report::Tasks;
use http_client::Retrying;

/// Told how transfers move. Called often and from any task; must not block.
pub trait Progress: Send + Sync {
    /// So many of a blob's bytes have moved in either direction. Falls back when an upload begins again.
    fn moved(&self, blob: &Digest, current: u64, total: u64) {
        let _ = (blob, current, total);
    }

    /// A request for `subject` failed and is made again.
    fn retrying(&self, subject: &str, retrying: &Retrying) {
        let _ = (subject, retrying);
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}

/// Says in the output of a step what is tried again, and why.
#[derive(Clone)]
pub struct Aloud(pub Tasks);

impl Progress for Aloud {
    fn retrying(&self, subject: &str, retrying: &Retrying) {
        let said = match retrying.cause.contains(subject) {
            true => format!("{retrying}\n"),
            false => format!("{subject}: {retrying}\n"),
        };
        self.0.log(Stream::Stderr, said.as_bytes());
    }
}
