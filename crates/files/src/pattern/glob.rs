//! Plain globs without `**`, as Go's `path.Match` reads them: the wildcards of `COPY` sources.

use crate::lexical;

/// A glob whose brackets or escapes do not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadGlob;

/// Whether `name` as a whole matches; a malformed rest of the glob counts even where the name differs before it.
///
/// This is `path.Match`; see [`glob_match_lazy`] for its sibling.
pub fn glob_match(glob: &[u8], name: &[u8]) -> Result<bool, BadGlob> {
    search(glob, name, true)
}

/// `filepath.Match`, which does not look at the rest of a glob once the name differs.
pub(super) fn glob_match_lazy(glob: &[u8], name: &[u8]) -> Result<bool, BadGlob> {
    search(glob, name, false)
}

fn search(mut glob: &[u8], mut name: &[u8], check_rest: bool) -> Result<bool, BadGlob> {
    'next: while !glob.is_empty() {
        let (star, chunk, rest) = next_chunk(glob);
        glob = rest;
        if star && chunk.is_empty() {
            return Ok(!name.contains(&b'/'));
        }
        let last = glob.is_empty();
        if let Some(left) = match_chunk(chunk, name)?
            && (left.is_empty() || !last)
        {
            name = left;
            continue;
        }
        if star {
            for skip in 0..name.len() {
                if name[skip] == b'/' {
                    break;
                }
                if let Some(left) = match_chunk(chunk, &name[skip + 1..])? {
                    if last && !left.is_empty() {
                        continue;
                    }
                    name = left;
                    continue 'next;
                }
            }
        }
        // The rest must be well formed all the same.
        while check_rest && !glob.is_empty() {
            let (_, chunk, rest) = next_chunk(glob);
            glob = rest;
            match_chunk(chunk, b"")?;
        }
        return Ok(false);
    }
    Ok(name.is_empty())
}

/// Whether a path text holds an unescaped `*`, `?` or `[`.
pub fn has_wildcards(path: &[u8]) -> bool {
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    false
}

/// Cuts a path before its first name with wildcards: `/a/b*/c` is `/a` and `b*/c`. Both are clean.
pub fn split_wildcards(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let path = if path.is_empty() { Vec::new() } else { lexical::clean(path) };
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let plain = names.iter().position(|name| has_wildcards(name)).unwrap_or(names.len());
    let (before, after) = names.split_at(plain);
    let mut first = before.join(&b'/');
    if names.first().is_some_and(|name| name.is_empty()) && (first.is_empty() || first[0] != b'/') {
        first.insert(0, b'/');
    }
    (first, after.join(&b'/'))
}

/// A run of stars (or none), what follows up to the next star, and the rest.
fn next_chunk(glob: &[u8]) -> (bool, &[u8], &[u8]) {
    let stars = glob.iter().take_while(|byte| **byte == b'*').count();
    let glob = &glob[stars..];
    let mut in_class = false;
    let mut at = 0;
    while at < glob.len() {
        match glob[at] {
            b'\\' if at + 1 < glob.len() => at += 1,
            b'[' => in_class = true,
            b']' => in_class = false,
            b'*' if !in_class => break,
            _ => {}
        }
        at += 1;
    }
    (stars > 0, &glob[..at], &glob[at..])
}

/// Matches a chunk without stars at the start of `name`: what is left of it, or none.
fn match_chunk<'n>(mut chunk: &[u8], mut name: &'n [u8]) -> Result<Option<&'n [u8]>, BadGlob> {
    let mut failed = false;
    while let Some(first) = chunk.first() {
        failed |= name.is_empty();
        match first {
            b'[' => {
                let mut rune = '\0';
                if !failed {
                    let (decoded, width) = decode_rune(name);
                    rune = decoded;
                    name = &name[width..];
                }
                let (matched, rest) = match_class(&chunk[1..], rune)?;
                chunk = rest;
                failed |= !matched;
                continue;
            }
            b'?' if !failed => {
                failed = name[0] == b'/';
                name = &name[decode_rune(name).1..];
            }
            b'?' => {}
            literal => {
                let mut literal = *literal;
                if literal == b'\\' {
                    chunk = &chunk[1..];
                    literal = *chunk.first().ok_or(BadGlob)?;
                }
                if !failed {
                    failed = literal != name[0];
                    name = &name[1..];
                }
            }
        }
        chunk = &chunk[1..];
    }
    Ok((!failed).then_some(name))
}

/// Matches a class whose `[` is read: the verdict and what follows its `]`.
fn match_class(mut chunk: &[u8], rune: char) -> Result<(bool, &[u8]), BadGlob> {
    let negated = chunk.first() == Some(&b'^');
    if negated {
        chunk = &chunk[1..];
    }
    let mut matched = false;
    let mut first = true;
    loop {
        if chunk.first() == Some(&b']') && !first {
            return Ok((matched != negated, &chunk[1..]));
        }
        first = false;
        let (low, rest) = class_member(chunk)?;
        chunk = rest;
        let mut high = low;
        if chunk[0] == b'-' {
            (high, chunk) = class_member(&chunk[1..])?;
        }
        matched |= low <= rune && rune <= high;
    }
}

/// One, maybe escaped, character of a class; something must follow it.
fn class_member(chunk: &[u8]) -> Result<(char, &[u8]), BadGlob> {
    let chunk = match chunk {
        [] | [b'-' | b']', ..] => return Err(BadGlob),
        [b'\\', rest @ ..] => rest,
        chunk => chunk,
    };
    if chunk.is_empty() {
        return Err(BadGlob);
    }
    let (rune, width) = decode_rune(chunk);
    let invalid = rune == char::REPLACEMENT_CHARACTER && width == 1;
    let rest = &chunk[width..];
    if invalid || rest.is_empty() { Err(BadGlob) } else { Ok((rune, rest)) }
}

/// The first character and its width; a byte that is not UTF-8 counts as U+FFFD of width 1.
pub(super) fn decode_rune(bytes: &[u8]) -> (char, usize) {
    let invalid = (char::REPLACEMENT_CHARACTER, 1);
    let width = match bytes.first() {
        None => return (char::REPLACEMENT_CHARACTER, 0),
        Some(0..=0x7f) => return (bytes[0] as char, 1),
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        Some(_) => return invalid,
    };
    let text = bytes.get(..width).and_then(|bytes| std::str::from_utf8(bytes).ok());
    text.and_then(|text| text.chars().next()).map_or(invalid, |rune| (rune, width))
}
