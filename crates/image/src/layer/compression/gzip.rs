//! One gzip member out of blocks that are deflated on their own (RFC 1951, RFC 1952).
//!
//! Each block is deflated with the 32 KiB before it as dictionary and ends at a byte boundary (an empty stored block),
//! so the pieces join into one stream, as pigz does it. Runs that deflate would not shrink are stored as they are.

use flate2::{Compress, Crc, FlushCompress, Status};

use crate::Error;

/// Bytes that are deflated at a time. A promise: another size gives other blobs.
pub(super) const BLOCK: usize = 512 << 10;
/// What Go writes: no name, no time, an unknown system.
pub(super) const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// The level where none is asked for: zlib-rs's 5 gives the size of Go's default (within 0.1 % on machine code) for a
/// sixth less time than its 6.
pub(super) const DEFAULT_LEVEL: i32 = 5;

const WINDOW: usize = 32 << 10;
/// The unit of the choice between deflate and stored.
const SEGMENT: usize = 64 << 10;
/// An empty last block.
const END: [u8; 2] = [0x03, 0x00];

/// Deflates blocks; one per thread.
pub(super) struct Deflater {
    level: u32,
}

impl Deflater {
    pub fn new(level: u32) -> Deflater {
        Deflater { level }
    }

    /// Appends one block, byte-aligned; `before` is what precedes it.
    pub fn encode(&self, before: &[u8], block: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        out.reserve(block.len() + (block.len() >> 3) + 4096);
        let mut start = 0;
        while start < block.len() {
            let stored = self.is_stored(&block[start..]);
            let mut end = start;
            while end < block.len() && self.is_stored(&block[end..]) == stored {
                end = block.len().min(end + SEGMENT);
            }
            let run = &block[start..end];
            if stored {
                store(run, out);
            } else if start == 0 {
                self.deflate(before, run, out)?;
            } else {
                self.deflate(&block[..start], run, out)?;
            }
            start = end;
        }
        Ok(())
    }

    fn is_stored(&self, rest: &[u8]) -> bool {
        self.level == 0 || looks_random(&rest[..rest.len().min(SEGMENT)])
    }

    fn deflate(&self, before: &[u8], run: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let failed = |reason: String| Error::Compressed { kind: "gzip", reason };
        // A fresh state each time: one that was reset still finds matches by what it held before (zlib-rs 0.6), and the
        // bytes would depend on which thread took which block.
        let mut compress = Compress::new(flate2::Compression::new(self.level), false);
        let window = &before[before.len().saturating_sub(WINDOW)..];
        if !window.is_empty() {
            compress.set_dictionary(window).map_err(|error| failed(error.to_string()))?;
        }
        // Room for the worst case, so that one call does it: a second flush would add another empty block.
        out.reserve(run.len() + (run.len() >> 3) + 1024);
        let status = compress.compress_vec(run, out, FlushCompress::Sync).map_err(|e| failed(e.to_string()))?;
        match status {
            Status::Ok if compress.total_in() == run.len() as u64 && out.len() < out.capacity() => Ok(()),
            _ => Err(failed("the encoder did not take a whole block".to_owned())),
        }
    }
}

fn store(run: &[u8], out: &mut Vec<u8>) {
    for piece in run.chunks(usize::from(u16::MAX)) {
        let length = piece.len() as u16;
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(piece);
    }
}

/// The end of the member.
pub(super) fn trailer(crc: &Crc) -> Vec<u8> {
    [&END[..], &crc.sum().to_le_bytes(), &crc.amount().to_le_bytes()].concat()
}

/// Whether bytes are so evenly spread, without repeats, that deflate would not shrink them: compressed, encrypted,
/// random. Cheap where they are not: a sample decides.
fn looks_random(segment: &[u8]) -> bool {
    segment.len() >= SEGMENT / 4 && is_evenly_spread(segment) && !has_repeats(segment)
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
