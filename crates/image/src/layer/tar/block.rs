//! A header block: fields, numbers, checksum.

use std::ops::Range;

use super::BLOCK;

/// Where a field lies.
pub(super) type Field = Range<usize>;

pub(super) const NAME: Field = 0..100;
pub(super) const MODE: Field = 100..108;
pub(super) const UID: Field = 108..116;
pub(super) const GID: Field = 116..124;
pub(super) const SIZE: Field = 124..136;
pub(super) const MTIME: Field = 136..148;
const CHECKSUM: Field = 148..156;
pub(super) const TYPE: usize = 156;
pub(super) const LINK: Field = 157..257;
pub(super) const MAGIC: Field = 257..265;
pub(super) const UNAME: Field = 265..297;
pub(super) const GNAME: Field = 297..329;
pub(super) const MAJOR: Field = 329..337;
pub(super) const MINOR: Field = 337..345;
pub(super) const PREFIX: Field = 345..500;
pub(super) const STAR_PREFIX: Field = 345..476;
pub(super) const STAR_ATIME: Field = 476..488;
pub(super) const STAR_CTIME: Field = 488..500;
pub(super) const STAR_TRAILER: Field = 508..512;
pub(super) const GNU_ATIME: Field = 345..357;
pub(super) const GNU_CTIME: Field = 357..369;
pub(super) const GNU_SPARSE: Field = 386..482;
pub(super) const GNU_EXTENDED: usize = 482;
pub(super) const GNU_REAL_SIZE: Field = 483..495;

pub(super) const MAGIC_USTAR: &[u8; 8] = b"ustar\x0000";
pub(super) const MAGIC_GNU: &[u8; 8] = b"ustar  \x00";

/// 512 bytes.
#[derive(Clone)]
pub(super) struct Block(pub [u8; BLOCK]);

impl Block {
    pub fn zero() -> Block {
        Block([0; BLOCK])
    }

    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|b| *b == 0)
    }

    pub fn bytes(&self, field: Field) -> &[u8] {
        &self.0[field]
    }

    /// A text field: up to its NUL or its end.
    pub fn text(&self, field: Field) -> &[u8] {
        until_nul(&self.0[field])
    }

    /// Copies text into a field, cut to its length. A cut may not leave a slash at the end: some readers would take the
    /// file for a directory.
    pub fn set_text(&mut self, field: Field, text: &[u8]) {
        let room = &mut self.0[field];
        let n = text.len().min(room.len());
        room[..n].copy_from_slice(&text[..n]);
        if text.len() > room.len() && room.last() == Some(&b'/') {
            let end = room.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
            room[end] = 0;
        }
    }

    /// Octal with leading zeros and a NUL; zero where it does not fit.
    pub fn set_octal(&mut self, field: Field, value: i64) {
        let width = field.len() - 1;
        let value = if fits_octal(field.len(), value) { value } else { 0 };
        self.set_text(field, format!("{value:0width$o}").as_bytes());
    }

    /// Octal where it fits, else GNU's binary form.
    pub fn set_number(&mut self, field: Field, value: i64) {
        if fits_octal(field.len(), value) {
            return self.set_octal(field, value);
        }
        let mut rest = value;
        let room = &mut self.0[field];
        for byte in room.iter_mut().rev() {
            *byte = rest as u8;
            rest >>= 8;
        }
        room[0] |= 0x80;
    }

    /// A number, octal or binary; none if it is neither or does not fit.
    pub fn number(&self, field: Field) -> Option<i64> {
        parse_number(&self.0[field])
    }

    /// Sets magic and checksum; the last step.
    pub fn seal(&mut self, magic: &[u8; 8]) {
        self.0[MAGIC].copy_from_slice(magic);
        let (sum, _) = self.sums();
        let text = format!("{sum:06o}\0 ");
        self.0[CHECKSUM].copy_from_slice(text.as_bytes());
    }

    /// Whether the checksum is right, by unsigned or (old tars) signed bytes.
    pub fn checksum_holds(&self) -> bool {
        let Some(stated) = parse_octal(&self.0[CHECKSUM]) else { return false };
        let (unsigned, signed) = self.sums();
        stated == unsigned || stated == signed
    }

    fn sums(&self) -> (i64, i64) {
        // The checksum itself counts as spaces.
        let unsigned: u64 = self.0.iter().map(|b| u64::from(*b)).sum();
        let own: u64 = self.0[CHECKSUM].iter().map(|b| u64::from(*b)).sum();
        let unsigned = (unsigned - own) as i64 + 8 * 32;
        let outside = self.0[..CHECKSUM.start].iter().chain(&self.0[CHECKSUM.end..]);
        let high = outside.filter(|b| **b >= 0x80).count() as i64;
        (unsigned, unsigned - 256 * high)
    }
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// Whether a field of `len` bytes holds `value` in octal with its NUL.
pub(super) fn fits_octal(len: usize, value: i64) -> bool {
    value >= 0 && (len >= 22 || value < 1 << (3 * (len - 1)))
}

/// Whether a field of `len` bytes holds `value` in GNU's binary form.
pub(super) fn fits_binary(len: usize, value: i64) -> bool {
    len >= 9 || (-(1i64 << (8 * (len - 1))) <= value && value < 1 << (8 * (len - 1)))
}

pub(super) fn parse_number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return parse_octal(field);
    }
    // Two's complement behind the marker bit; negative numbers are read inverted.
    let invert = if first & 0x40 != 0 { 0xff } else { 0 };
    let mut value: u64 = 0;
    for (i, byte) in field.iter().enumerate() {
        let byte = (byte ^ invert) & if i == 0 { 0x7f } else { 0xff };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if invert == 0 { value } else { !value })
}

fn parse_octal(field: &[u8]) -> Option<i64> {
    let padding = |b: &u8| *b == b' ' || *b == 0;
    let Some(start) = field.iter().position(|b| !padding(b)) else { return Some(0) };
    let end = field.iter().rposition(|b| !padding(b)).map_or(start, |last| last + 1);
    let digits = until_nul(&field[start..end]);
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}
