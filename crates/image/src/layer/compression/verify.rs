//! [`VerifyingReader`]: bytes that must have a digest and a size.

use std::io::{self, Read};

use base::{Digest, Hasher};

use crate::Error;

/// Passes a blob through and fails where it is not what its descriptor promises.
///
/// Too many bytes fail at once, too few and wrong ones at the end: the last read gives an error instead of 0. Whoever
/// stops reading early has not verified.
pub struct VerifyingReader<R> {
    inner: R,
    hasher: Hasher,
    expected: (Digest, u64),
    count: u64,
}

impl<R: Read> VerifyingReader<R> {
    /// Expects `size` bytes of `digest`.
    pub fn new(inner: R, digest: Digest, size: u64) -> VerifyingReader<R> {
        VerifyingReader { inner, hasher: Digest::hasher(), expected: (digest, size), count: 0 }
    }

    /// Reads what is left, and checks.
    pub fn finish(mut self) -> Result<(), Error> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        let (expected, size) = self.expected;
        if self.count != size {
            return Err(Error::WrongSize { digest: expected, expected: size, actual: self.count });
        }
        match self.hasher.clone().finish() {
            actual if actual == expected => Ok(()),
            actual => Err(Error::WrongDigest { expected, actual }),
        }
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.count += n as u64;
        if n == 0 || self.count > self.expected.1 {
            self.check()?;
        }
        Ok(n)
    }
}
