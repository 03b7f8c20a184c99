//! Cancellation for blocking code: a flag that long loops look at.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A shared flag: set once, seen by every clone.
///
/// Async code keeps a token of its runtime and sets this one beside it; blocking loops (copy, hash,
/// compress, unpack) call [`check`](Cancel::check) once per file or per few hundred KiB.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

/// The work was cancelled before it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Asks the work to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the work was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Fails once the work was asked to stop.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    /// `inner`, but reading fails once the work was asked to stop.
    pub fn reader<R: Read>(&self, inner: R) -> CancelReader<R> {
        CancelReader { cancel: self.clone(), inner }
    }
}

/// See [`Cancel::reader`].
#[derive(Clone, Debug)]
pub struct CancelReader<R> {
    cancel: Cancel,
    inner: R,
}

impl<R> CancelReader<R> {
    /// What it reads from.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for CancelReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.cancel.check()?;
        self.inner.read(buf)
    }
}

impl From<Cancelled> for io::Error {
    fn from(cancelled: Cancelled) -> Self {
        io::Error::other(cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_fail_once_cancelled() {
        let cancel = Cancel::new();
        let mut reader = cancel.reader(&b"text"[..]);
        let mut buf = [0; 2];
        assert_eq!(reader.read(&mut buf).ok(), Some(2));
        cancel.cancel();
        assert_eq!(reader.read(&mut buf).map_err(|error| error.to_string()), Err("cancelled".to_owned()));
    }
}
