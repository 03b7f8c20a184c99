//! zstd frames out of blocks that are compressed on their own (RFC 8878).
//!
//! Frames follow each other; every decoder reads them as one stream. Each states its size; no frame has a checksum,
//! for the blob's digest covers it.

use zstd::bulk;
use zstd::zstd_safe::CParameter;

use crate::Error;

/// Bytes in one frame. A promise: another size gives other blobs.
pub(super) const BLOCK: usize = 1 << 20;
/// The level where none is asked for.
pub(super) const DEFAULT_LEVEL: i32 = 3;

/// Compresses blocks; one per thread.
pub(super) struct Encoder(bulk::Compressor<'static>);

impl Encoder {
    pub fn new(level: i32) -> Result<Encoder, Error> {
        let mut compressor = bulk::Compressor::new(level)?;
        compressor.set_parameter(CParameter::ChecksumFlag(false))?;
        compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
        Ok(Encoder(compressor))
    }

    /// Replaces `out` by one frame.
    pub fn encode(&mut self, block: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        out.clear();
        out.reserve(zstd::zstd_safe::compress_bound(block.len()));
        self.0.compress_to_buffer(block, out)?;
        Ok(())
    }
}
