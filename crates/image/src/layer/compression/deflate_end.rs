//! Where a deflate stream ends, and how to leave it open (RFC 1951).
//!
//! Encoders of whole buffers mark their last block as the end of the stream. To find its first bit all blocks before
//! it are read, as an inflater reads them, but nothing is put out: all that counts of a symbol is its number of bits.

/// The longest code of the alphabets that blocks are written in.
const MAX_BITS: usize = 15;
/// Codes up to this length are looked up; longer ones, which are rare, are read bit by bit.
const TABLE_BITS: u32 = 11;
/// End of block, the literals below it, the lengths above it.
const END_OF_BLOCK: u16 = 256;
/// The order in which a block states the lengths of its codes of code lengths.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Turns a whole stream into one that others can follow: its last block is no longer the last, and an empty stored
/// block takes it to a byte boundary. `None`: it is no whole stream.
pub(super) fn open_end(stream: &mut Vec<u8>) -> Option<()> {
    let ends = ends(stream)?;
    stream[ends.last_block / 8] &= !(1 << (ends.last_block % 8));
    // Behind the end the encoder left zeros. Three of them are the header of a stored block, the rest fills its byte.
    stream.truncate(ends.end.div_ceil(8));
    if ends.end % 8 == 0 || ends.end % 8 > 5 {
        stream.push(0);
    }
    stream.extend_from_slice(&[0, 0, 0xff, 0xff]);
    Some(())
}

/// Positions in bits.
struct Ends {
    /// The header of the last block.
    last_block: usize,
    /// Behind the last block.
    end: usize,
}

fn ends(stream: &[u8]) -> Option<Ends> {
    let mut bits = Bits::new(stream);
    let (mut symbols, mut distances) = (Codes::new(symbol_extra), Codes::new(distance_extra));
    loop {
        let start = bits.position();
        let is_last = bits.take(1) == 1;
        match bits.take(2) {
            0 => bits.skip_stored()?,
            1 => {
                symbols.read(&fixed_lengths())?;
                symbols.join_literals();
                distances.read(&[5; 30])?;
                skip_symbols(&mut bits, &symbols, &distances)?;
            }
            2 => {
                read_codes(&mut bits, &mut symbols, &mut distances)?;
                skip_symbols(&mut bits, &symbols, &distances)?;
            }
            _ => return None,
        }
        if is_last {
            return bits.is_inside().then(|| Ends { last_block: start, end: bits.position() });
        }
    }
}

/// How many bits follow a symbol's code: those of a length.
fn symbol_extra(symbol: u16) -> u8 {
    match symbol {
        265..285 => ((symbol - 261) / 4) as u8,
        _ => 0,
    }
}

fn distance_extra(symbol: u16) -> u8 {
    (symbol / 2).saturating_sub(1) as u8
}

fn fixed_lengths() -> [u8; 288] {
    std::array::from_fn(|symbol| match symbol {
        0..=143 => 8,
        144..=255 => 9,
        256..=279 => 7,
        _ => 8,
    })
}

/// The codes that a block states for itself.
fn read_codes(bits: &mut Bits<'_>, symbols: &mut Codes, distances: &mut Codes) -> Option<()> {
    let (symbol_count, distance_count) = (bits.take(5) as usize + 257, bits.take(5) as usize + 1);
    let length_count = bits.take(4) as usize + 4;
    let mut lengths = [0; 19];
    for place in &ORDER[..length_count] {
        lengths[*place] = bits.take(3) as u8;
    }
    let mut codes = Codes::new(|_| 0);
    codes.read(&lengths)?;
    let mut lengths = [0u8; 288 + 32];
    let mut known = 0;
    while known < symbol_count + distance_count {
        bits.load();
        let (value, times) = match codes.read_slowly(bits)? {
            length @ 0..16 => (length as u8, 1),
            16 => (*lengths[..known].last()?, 3 + bits.take(2) as usize),
            17 => (0, 3 + bits.take(3) as usize),
            _ => (0, 11 + bits.take(7) as usize),
        };
        lengths.get_mut(known..known + times)?.fill(value);
        known += times;
    }
    symbols.read(&lengths[..symbol_count])?;
    symbols.join_literals();
    distances.read(&lengths[symbol_count..symbol_count + distance_count])
}

/// To the end of a block.
fn skip_symbols(bits: &mut Bits<'_>, symbols: &Codes, distances: &Codes) -> Option<()> {
    while bits.is_inside() {
        // Enough for a length with its distance, or for two looks at literals before one.
        bits.load();
        let mut step = symbols.step(bits)?;
        if step.kind == Kind::Literal {
            bits.drop_held(step.bits.into());
            step = symbols.step(bits)?;
        }
        bits.drop_held(step.bits.into());
        match step.kind {
            Kind::Literal => {}
            Kind::End => return Some(()),
            Kind::Length => {
                if bits.count < 28 {
                    bits.load();
                }
                let distance = distances.step(bits)?;
                bits.drop_held(distance.bits.into());
            }
            Kind::None => return None,
        }
    }
    None
}

/// What comes next, and how many bits it takes with those that follow its code.
#[derive(Clone, Copy)]
struct Step {
    kind: Kind,
    bits: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One literal, or several.
    Literal,
    Length,
    End,
    /// No code, or one that is too long for the table.
    None,
}

const NO_STEP: Step = Step { kind: Kind::None, bits: 0 };

/// A prefix code.
struct Codes {
    /// By the next bits.
    table: Vec<Step>,
    /// How many bits follow a symbol.
    extra: fn(u16) -> u8,
    /// How many codes have a length.
    counts: [u16; MAX_BITS + 1],
    /// In the order of their codes.
    symbols: Vec<u16>,
}

impl Codes {
    fn new(extra: fn(u16) -> u8) -> Codes {
        Codes { table: vec![NO_STEP; 1 << TABLE_BITS], extra, counts: [0; MAX_BITS + 1], symbols: Vec::new() }
    }

    /// Codes by their lengths; 0 is a symbol that does not occur. `None`: there are more than fit.
    fn read(&mut self, lengths: &[u8]) -> Option<()> {
        self.counts = [0; MAX_BITS + 1];
        for length in lengths.iter().filter(|length| **length > 0) {
            *self.counts.get_mut(usize::from(*length))? += 1;
        }
        let mut next = [0u32; MAX_BITS + 2];
        for length in 1..=MAX_BITS {
            let behind = next[length] + u32::from(self.counts[length]);
            if behind > 1 << length {
                return None;
            }
            next[length + 1] = behind << 1;
        }
        self.symbols.clear();
        self.symbols.extend(0..lengths.len() as u16);
        self.symbols.retain(|symbol| lengths[usize::from(*symbol)] > 0);
        self.symbols.sort_by_key(|symbol| lengths[usize::from(*symbol)]);
        self.table.fill(NO_STEP);
        for symbol in &self.symbols {
            let length = lengths[usize::from(*symbol)];
            if u32::from(length) > TABLE_BITS {
                break;
            }
            let code = &mut next[usize::from(length)];
            let first = (*code << (32 - u32::from(length))).reverse_bits() as usize;
            *code += 1;
            let step = self.step_of(*symbol, length);
            self.table[first..].iter_mut().step_by(1 << length).for_each(|entry| *entry = step);
        }
        Some(())
    }

    fn step_of(&self, symbol: u16, length: u8) -> Step {
        let kind = match symbol {
            0..END_OF_BLOCK => Kind::Literal,
            END_OF_BLOCK => Kind::End,
            257..286 => Kind::Length,
            _ => return NO_STEP,
        };
        Step { kind, bits: length + (self.extra)(symbol) }
    }

    /// A literal that another follows within the bits of the table: both at once. From the highest entry down, for
    /// what an entry leaves over is a lower one, still unjoined.
    fn join_literals(&mut self) {
        for index in (1..self.table.len()).rev() {
            let one = self.table[index];
            let next = self.table[index >> one.bits];
            let both = one.bits + next.bits;
            if one.kind == Kind::Literal && next.kind == Kind::Literal && u32::from(both) <= TABLE_BITS && one.bits > 0
            {
                self.table[index].bits = both;
            }
        }
    }

    /// What comes next. At least 15 bits are held, and those that follow the code.
    fn step(&self, bits: &mut Bits<'_>) -> Option<Step> {
        let step = self.table[bits.held as usize & ((1 << TABLE_BITS) - 1)];
        if step.kind != Kind::None {
            return Some(step);
        }
        let mut ahead = Bits { ..*bits };
        let symbol = self.read_slowly(&mut ahead)?;
        Some(self.step_of(symbol, (bits.count - ahead.count) as u8))
    }

    /// The next symbol, bit by bit. At least 15 are held.
    fn read_slowly(&self, bits: &mut Bits<'_>) -> Option<u16> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in &self.counts[1..] {
            code |= (bits.held & 1) as usize;
            bits.drop_held(1);
            let count = usize::from(*count);
            if code < first + count {
                return self.symbols.get(index + code - first).copied();
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

/// Reads bits, the lowest of a byte first. Behind the end there are zeros; [`Bits::is_inside`] tells.
struct Bits<'a> {
    bytes: &'a [u8],
    /// The next byte to load.
    next: usize,
    /// Loaded and not taken.
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Bits<'a> {
        Bits { bytes, next: 0, held: 0, count: 0 }
    }

    /// Holds at least 48 bits.
    fn load(&mut self) {
        if let Some(Ok(word)) = self.bytes.get(self.next..self.next + 8).map(<[u8; 8]>::try_from) {
            self.held |= u64::from_le_bytes(word) << self.count;
            let whole = (63 - self.count) / 8;
            self.next += whole as usize;
            self.count += whole * 8;
        } else {
            while self.count <= 48 {
                self.held |= u64::from(self.bytes.get(self.next).copied().unwrap_or(0)) << self.count;
                self.next += 1;
                self.count += 8;
            }
        }
    }

    /// Up to 16 bits.
    fn take(&mut self, count: u32) -> u32 {
        self.load();
        let value = self.held as u32 & ((1 << count) - 1);
        self.drop_held(count);
        value
    }

    fn drop_held(&mut self, count: u32) {
        self.held >>= count;
        self.count -= count;
    }

    fn skip_stored(&mut self) -> Option<()> {
        let at = self.position().div_ceil(8);
        let size: [u8; 4] = self.bytes.get(at..at + 4)?.try_into().ok()?;
        let [low, high, not_low, not_high] = size;
        if (low ^ not_low, high ^ not_high) != (0xff, 0xff) {
            return None;
        }
        let next = at + 4 + usize::from(u16::from_le_bytes([low, high]));
        *self = Bits { next, ..Bits::new(self.bytes) };
        self.is_inside().then_some(())
    }

    /// In bits from the start.
    fn position(&self) -> usize {
        self.next * 8 - self.count as usize
    }

    fn is_inside(&self) -> bool {
        self.position() <= self.bytes.len() * 8
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::Compression;
    use flate2::read::{DeflateDecoder, DeflateEncoder};
    use proptest::prelude::*;

    use super::*;

    fn deflate(content: &[u8], level: u32) -> Vec<u8> {
        let mut stream = Vec::new();
        DeflateEncoder::new(content, Compression::new(level)).read_to_end(&mut stream).expect("from memory");
        stream
    }

    fn inflate(stream: &[u8]) -> Vec<u8> {
        let mut content = Vec::new();
        DeflateDecoder::new(stream).read_to_end(&mut content).expect("a stream");
        content
    }

    /// Another encoder than the one that we use: stored, fixed and dynamic blocks, several of each.
    fn check(pieces: &[Vec<u8>], level: u32) {
        let mut joined = Vec::new();
        for piece in pieces {
            let mut stream = deflate(piece, level);
            open_end(&mut stream).expect("a whole stream");
            joined.extend(stream);
        }
        joined.extend([3, 0]);
        assert_eq!(inflate(&joined), pieces.concat());
    }

    #[test]
    fn streams_join() {
        let text: Vec<u8> = (0..300_000u32).flat_map(|n| (n % 977).to_string().into_bytes()).collect();
        let wild: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for level in [0, 1, 4, 6, 9] {
            check(&[vec![], b"a".to_vec(), text.clone(), vec![0; 100_000], wild.clone(), vec![]], level);
        }
    }

    #[test]
    fn what_is_no_whole_stream_is_refused() {
        let whole = deflate(&b"some words, some more words, and some".repeat(100), 6);
        for cut in 0..whole.len() {
            assert!(open_end(&mut whole[..cut].to_vec()).is_none(), "{cut} of {}", whole.len());
        }
        for bad in [&[7][..], &[1, 5, 0, 0, 0], &[1, 5, 0, 0xfa, 0xff, 1], &[5, 0xff, 0xff, 0xff], &[0; 100]] {
            assert!(open_end(&mut bad.to_vec()).is_none(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_streams_join(pieces in prop::collection::vec(prop::collection::vec(0u8..20, 0..3000), 1..4), level in 0u32..10) {
            check(&pieces, level);
        }

        #[test]
        fn any_bytes_are_borne(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = open_end(&mut bytes.clone());
        }
    }
}
