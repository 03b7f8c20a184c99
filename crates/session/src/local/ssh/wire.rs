//! Values as SSH writes them (RFC 4251, section 5).

/// Reads values one after another; none where the bytes end too soon.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn number(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.bytes(usize::try_from(length).ok()?)
    }

    pub(super) fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.string()?).ok()
    }

    /// A positive number of any size, without leading zeros.
    pub(super) fn large(&mut self) -> Option<&'a [u8]> {
        Some(trimmed(self.string()?))
    }
}

/// A number without its leading zeros.
pub(super) fn trimmed(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

pub(super) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A positive number: where its first bit is set, a zero says that it is not negative.
pub(super) fn put_large(out: &mut Vec<u8>, number: &[u8]) {
    let number = trimmed(number);
    let signed = number.first().is_some_and(|first| first & 0x80 != 0);
    out.extend_from_slice(&((number.len() + usize::from(signed)) as u32).to_be_bytes());
    out.extend(signed.then_some(0));
    out.extend_from_slice(number);
}
