//! Shell patterns with `*` and `?`.
//!
//! They become regular expressions of a linear-time engine, so that no pattern can hang a build.

use regex::Regex;

/// Cuts what matches off the front or the back, the shortest or the longest match.
pub(super) fn trim(value: &str, pattern: &str, front: bool, longest: bool) -> Result<String, String> {
    if front {
        let found = regex(pattern, longest, true)?.find(value).map_or(0, |found| found.end());
        return Ok(value[found..].to_owned());
    }
    // An engine looks for the leftmost match; turned round, the rightmost one is.
    let turned: String = value.chars().rev().collect();
    let found = regex(&turn(pattern), longest, true)?.find(&turned).map_or(0, |found| found.end());
    Ok(turned[found..].chars().rev().collect())
}

/// Replaces the first or all matches.
pub(super) fn replace(value: &str, pattern: &str, text: &str, all: bool) -> Result<String, String> {
    let regex = regex(pattern, true, false)?;
    Ok(if all {
        regex.replace_all(value, text).into_owned()
    } else {
        regex.replacen(value, 1, regex::NoExpand(text)).into_owned()
    })
}

fn regex(pattern: &str, longest: bool, anchored: bool) -> Result<Regex, String> {
    let mut out = String::from(if anchored { "^" } else { "" });
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if longest => out.push_str(".*"),
            '*' => out.push_str(".*?"),
            '?' => out.push('.'),
            // `}` and `/` are escaped for the sake of `${}`, not of the pattern.
            '\\' if matches!(chars.peek(), Some('}' | '/')) => {}
            '\\' => match chars.next() {
                Some(c @ ('*' | '?' | '\\')) => out.extend(['\\', c]),
                Some(c) => return Err(format!("`\\{c}` is no escape in a pattern")),
                None => return Err("a pattern ends in `\\`".to_owned()),
            },
            c => out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&out).map_err(|_| "the pattern is too large".to_owned())
}

/// The pattern back to front, escapes kept in front of what they escape.
fn turn(pattern: &str) -> String {
    let mut parts = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        parts.push((c, if c == '\\' { chars.next() } else { None }));
    }
    parts.into_iter().rev().flat_map(|(c, escaped)| std::iter::once(c).chain(escaped)).collect()
}
