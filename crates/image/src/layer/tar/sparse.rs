//! Sparse files as GNU tar stores them: a map of data segments, holes between them.
//!
//! Four forms exist: the old GNU header (`S`), and PAX records of versions 0.0, 0.1 and 1.0, the last with its map in
//! front of the content.

use super::block::{self, Block, parse_number};
use super::pax::{self, Records};

/// Segments of data: offset and length, in order, not overlapping.
pub(super) type Map = Vec<(u64, u64)>;

/// Which map a set of records announces.
pub(super) enum Announced {
    /// Not sparse.
    No,
    /// The map is in the records (0.0 and 0.1).
    Records(Map),
    /// The map stands in front of the content (1.0).
    InContent,
}

fn record<'a>(records: &'a Records, key: &str) -> &'a [u8] {
    records.get(key.as_bytes()).map_or(&b""[..], Vec::as_slice)
}

/// Reads what the records say of sparseness; an error is the rule that they break.
pub(super) fn announced(records: &Records) -> Result<Announced, &'static str> {
    let map = record(records, "GNU.sparse.map");
    match (record(records, "GNU.sparse.major"), record(records, "GNU.sparse.minor")) {
        (b"1", b"0") => return Ok(Announced::InContent),
        (b"0", b"0" | b"1") => {}
        (b"", b"") if !map.is_empty() => {}
        // A version that nobody reads; its content is taken as it is, as Go does.
        _ => return Ok(Announced::No),
    }
    let count = parse(record(records, "GNU.sparse.numblocks")).ok_or("malformed sparse block count")?;
    let numbers: Vec<&[u8]> = if map.is_empty() { Vec::new() } else { map.split(|b| *b == b',').collect() };
    if count.checked_mul(2) != Some(numbers.len() as u64) {
        return Err("sparse map does not have as many blocks as it says");
    }
    let pairs = numbers.chunks_exact(2).map(|pair| Some((parse(pair[0])?, parse(pair[1])?)));
    pairs.collect::<Option<Map>>().map(Announced::Records).ok_or("malformed sparse map")
}

/// The name and the size with holes that the records give a sparse file.
pub(super) fn real_name_and_size(records: &Records) -> Result<(Option<&[u8]>, Option<u64>), &'static str> {
    let name = Some(record(records, "GNU.sparse.name")).filter(|name| !name.is_empty());
    let size = [record(records, "GNU.sparse.size"), record(records, "GNU.sparse.realsize")];
    match size.into_iter().find(|size| !size.is_empty()) {
        Some(size) => Ok((name, Some(parse(size).ok_or("malformed sparse size")?))),
        None => Ok((name, None)),
    }
}

/// The map of version 1.0: numbers, one per line, padded to a block. Feeds on whole blocks.
#[derive(Default)]
pub(super) struct LineMap {
    numbers: Vec<u64>,
    partial: Vec<u8>,
}

impl LineMap {
    /// Takes one block; the map once it is whole.
    pub fn feed(&mut self, block: &Block) -> Result<Option<Map>, &'static str> {
        for byte in block.0 {
            match byte {
                b'\n' => {
                    self.numbers.push(parse(&self.partial).ok_or("malformed sparse map")?);
                    self.partial.clear();
                    if self.is_whole() {
                        return Ok(Some(self.numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()));
                    }
                }
                _ if self.partial.len() >= 20 => return Err("malformed sparse map"),
                byte => self.partial.push(byte),
            }
        }
        Ok(None)
    }

    fn is_whole(&self) -> bool {
        self.numbers[0].checked_mul(2).and_then(|n| n.checked_add(1)) == Some(self.numbers.len() as u64)
    }
}

/// Segments of an old GNU header, or of one of its extension blocks, and whether another block follows.
pub(super) fn old_gnu(block: &Block, extension: bool, map: &mut Map) -> Result<bool, &'static str> {
    let (entries, extended) = match extension {
        false => (block.bytes(block::GNU_SPARSE), block.0[block::GNU_EXTENDED]),
        true => (&block.0[..504], block.0[504]),
    };
    for entry in entries.chunks_exact(24) {
        if entry[0] == 0 {
            break;
        }
        let number = |field: &[u8]| parse_number(field).and_then(|n| u64::try_from(n).ok());
        match (number(&entry[..12]), number(&entry[12..])) {
            (Some(offset), Some(length)) => map.push((offset, length)),
            _ => return Err("malformed sparse map"),
        }
    }
    Ok(extended != 0)
}

/// Checks order and bounds, and drops empty segments. The data must fill `stored` bytes of the archive.
pub(super) fn check(map: &mut Map, size: u64, stored: u64) -> Result<(), &'static str> {
    let (mut end, mut data) = (0u64, 0u64);
    for (offset, length) in map.iter() {
        let next = offset.checked_add(*length).ok_or("sparse map overflows")?;
        if *offset < end {
            return Err("sparse map is out of order");
        }
        end = next;
        data += length;
    }
    if end > size {
        return Err("sparse map reaches beyond the end of the file");
    }
    if data != stored {
        return Err("sparse map does not agree with the stored size");
    }
    map.retain(|(_, length)| *length > 0);
    Ok(())
}

fn parse(text: &[u8]) -> Option<u64> {
    pax::parse_decimal(text).and_then(|n| u64::try_from(n).ok())
}
