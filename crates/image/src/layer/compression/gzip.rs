//! One gzip member out of blocks that are deflated on their own (RFC 1951, RFC 1952).
//!
//! libdeflate ends every block as a whole stream. [`open_end`] takes that end back and makes it a byte boundary (an
//! empty stored block), so that the pieces join into one stream, as pigz's do. A block that deflate would not shrink
//! is stored as it is.

use flate2::Crc;
use libdeflater::{CompressionLvl, Compressor};

use super::deflate_end::open_end;
use crate::Error;

/// Bytes that are deflated at a time. A promise: another size gives other blobs. Blocks know nothing of each other; at
/// this size that costs half a percent.
pub(super) const BLOCK: usize = 1 << 20;
/// What Go writes: no name, no time, an unknown system.
pub(super) const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// The level where none is asked for: libdeflate's 5 is a percent smaller than Go's default and takes half of zlib's
/// time for that size.
pub(super) const DEFAULT_LEVEL: i32 = 5;

/// The unit in which a block is looked at.
const SEGMENT: usize = 64 << 10;
/// An empty last block.
const END: [u8; 2] = [0x03, 0x00];

/// Deflates blocks; one per thread.
pub(super) struct Deflater {
    deflate: Compressor,
    store: Compressor,
}

impl Deflater {
    /// `level`: 0 stores, 9 is the smallest.
    pub fn new(level: i32) -> Result<Deflater, Error> {
        let compressor = |level| CompressionLvl::new(level).map(Compressor::new);
        match (compressor(level), compressor(0)) {
            (Ok(deflate), Ok(store)) => Ok(Deflater { deflate, store }),
            _ => Err(Error::CompressionLevel { kind: "gzip", level, min: 0, max: 9 }),
        }
    }

    /// Replaces `out` by one block, byte-aligned.
    pub fn encode(&mut self, block: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let failed = |reason: String| Error::Compressed { kind: "gzip", reason };
        let encoder = if looks_random(block) { &mut self.store } else { &mut self.deflate };
        // Room for the worst case: there is no second call.
        out.resize(encoder.deflate_compress_bound(block.len()), 0);
        let size = encoder.deflate_compress(block, out).map_err(|error| failed(error.to_string()))?;
        out.truncate(size);
        open_end(out).ok_or_else(|| failed("the encoder left no whole stream".to_owned()))
    }
}

/// The end of the member.
pub(super) fn trailer(crc: &Crc) -> Vec<u8> {
    [&END[..], &crc.sum().to_le_bytes(), &crc.amount().to_le_bytes()].concat()
}

/// Whether bytes are so evenly spread, without repeats, that deflate would not shrink them: compressed, encrypted,
/// random. Cheap where they are not: the first segment that is not decides.
fn looks_random(block: &[u8]) -> bool {
    let mut segments = block.chunks(SEGMENT).filter(|segment| segment.len() >= SEGMENT / 4);
    block.len() >= SEGMENT / 4 && segments.all(|segment| is_evenly_spread(segment) && !has_repeats(segment))
}

/// Chi-squared test over 16 samples of 512 bytes. Evenly spread bytes give 255 +- 23; machine code gives thousands.
fn is_evenly_spread(segment: &[u8]) -> bool {
    const SAMPLE: usize = 512;
    let stride = segment.len() / 16;
    let mut counts = [0u32; 256];
    let mut n = 0u64;
    for piece in segment.chunks(stride) {
        for byte in &piece[..piece.len().min(SAMPLE)] {
            counts[usize::from(*byte)] += 1;
            n += 1;
        }
    }
    let squares: u64 = counts.iter().map(|c| u64::from(*c) * u64::from(*c)).sum();
    // sum((count - n/256)^2) / (n/256) = 256 * squares / n - n
    (256 * squares / n).saturating_sub(n) < 420
}

/// Looks for words of 8 bytes that occur twice, by a table of every 16th word, chosen by content.
fn has_repeats(segment: &[u8]) -> bool {
    const BITS: u32 = 13;
    let mut table = vec![0u64; 1 << BITS];
    let mut hits = 0;
    for window in segment.windows(8) {
        let word = u64::from_le_bytes(window.try_into().expect("windows of 8"));
        let hash = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if hash & 0xf00 == 0 {
            let slot = &mut table[(hash >> (64 - BITS)) as usize];
            hits += u32::from(*slot == word);
            *slot = word;
        }
    }
    hits >= 4
}
