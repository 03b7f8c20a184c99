//! zstd frames out of blocks that are compressed on their own (RFC 8878).
//!
//! Frames follow each other; every decoder reads them as one stream. Each states its size; no frame has a checksum,
//! for the blob's digest covers it.

use zstd::bulk;
use zstd::zstd_safe::{CParameter, Strategy};

use crate::Error;

/// Bytes in one frame. A promise: another size gives other blobs.
pub(super) const BLOCK: usize = 1 << 20;
/// What is set where no level is asked for: level 3 with tables that stay in a core's own cache. On machine code it is
/// a tenth faster than level 3 and 0.6 % larger, which is the size of upstream's default.
const DEFAULT: [CParameter; 6] = [
    CParameter::WindowLog(20),
    CParameter::ChainLog(15),
    CParameter::HashLog(16),
    CParameter::SearchLog(1),
    CParameter::MinMatch(5),
    CParameter::Strategy(Strategy::ZSTD_dfast),
];

/// Compresses blocks; one per thread.
pub(super) struct Encoder(bulk::Compressor<'static>);

impl Encoder {
    pub fn new(level: Option<i32>) -> Result<Encoder, Error> {
        let mut compressor = bulk::Compressor::new(level.unwrap_or(3))?;
        if level.is_none() {
            DEFAULT.into_iter().try_for_each(|parameter| compressor.set_parameter(parameter))?;
        }
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
