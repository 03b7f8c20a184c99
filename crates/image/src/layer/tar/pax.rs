//! PAX records: `<length> <key>=<value>\n`, the length counting itself.

use std::collections::BTreeMap;

use super::header::Time;

pub(super) const PATH: &[u8] = b"path";
pub(super) const LINKPATH: &[u8] = b"linkpath";
pub(super) const SIZE: &[u8] = b"size";
pub(super) const UID: &[u8] = b"uid";
pub(super) const GID: &[u8] = b"gid";
pub(super) const UNAME: &[u8] = b"uname";
pub(super) const GNAME: &[u8] = b"gname";
pub(super) const MTIME: &[u8] = b"mtime";
pub(super) const ATIME: &[u8] = b"atime";
pub(super) const CTIME: &[u8] = b"ctime";
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";
pub(super) const SPARSE: &[u8] = b"GNU.sparse.";

/// Records sorted by key, the order that Go writes.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Keys that headers have fields for.
pub(super) fn is_basic(key: &[u8]) -> bool {
    [PATH, LINKPATH, SIZE, UID, GID, UNAME, GNAME, MTIME, ATIME, CTIME].contains(&key)
}

/// Whether a record can be written and read: no `=` in keys, NUL only in values that are no names.
pub(super) fn is_valid(key: &[u8], value: &[u8]) -> bool {
    let names = [PATH, LINKPATH, UNAME, GNAME];
    !key.is_empty() && !key.contains(&b'=') && !if names.contains(&key) { value.contains(&0) } else { key.contains(&0) }
}

/// Appends one record.
pub(super) fn push(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + decimal_width(rest);
    if rest + decimal_width(length) != length {
        length = rest + decimal_width(length);
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn decimal_width(n: usize) -> usize {
    n.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Takes one record off the front: key, value, the rest. None where it is malformed.
pub(super) fn take(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(parse_decimal(&bytes[..space])?).ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    is_valid(key, value).then_some((key, value, &bytes[length..]))
}

/// A decimal number with an optional sign.
pub(super) fn parse_decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `seconds[.fraction]`; digits beyond nanoseconds are dropped.
pub(super) fn parse_time(text: &[u8]) -> Option<Time> {
    let dot = text.iter().position(|b| *b == b'.');
    let (whole, fraction) = dot.map_or((text, &b""[..]), |dot| (&text[..dot], &text[dot + 1..]));
    let secs = parse_decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0, |n, i| n * 10 + u32::from(fraction.get(i).map_or(0, |d| d - b'0')));
    match nanos {
        0 => Some(Time::from_secs(secs)),
        // The fraction counts away from zero, times round down.
        _ if whole.starts_with(b"-") => Some(Time { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos }),
        _ => Some(Time { secs, nanos }),
    }
}

/// The shortest text of a time.
pub(super) fn format_time(time: Time) -> Vec<u8> {
    let text = match (time.secs, time.nanos) {
        (secs, 0) => return secs.to_string().into_bytes(),
        (secs, nanos) if secs < 0 => format!("-{}.{:09}", -(secs + 1), 1_000_000_000 - nanos),
        (secs, nanos) => format!("{secs}.{nanos:09}"),
    };
    text.trim_end_matches('0').as_bytes().to_vec()
}
