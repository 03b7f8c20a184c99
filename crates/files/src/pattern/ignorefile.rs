//! `.dockerignore` and `<name>.dockerignore`: one pattern per line.

use crate::lexical;

/// A line that is longer than anybody's pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the ignore file is longer than 64 KiB")]
pub struct IgnoreFileError {
    /// Counted from 1.
    pub line: usize,
}

/// Where upstream's reader gives up.
const MAX_LINE: usize = 64 * 1024;

/// The patterns of an ignore file, for [`Matcher::new`](super::Matcher::new).
///
/// A byte order mark, blank lines and lines that begin with `#` are dropped. A leading slash means nothing, `!` goes
/// before it, and paths are cleaned. Bytes that are not UTF-8 become U+FFFD and then match no such byte.
pub fn parse_ignore_file(bytes: &[u8]) -> Result<Vec<String>, IgnoreFileError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut patterns = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.len() >= MAX_LINE {
            return Err(IgnoreFileError { line: index + 1 });
        }
        if line.starts_with(b"#") {
            continue;
        }
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let (bang, path) = match line.strip_prefix('!') {
            Some(rest) => ("!", rest.trim()),
            None => ("", line),
        };
        patterns.push(format!("{bang}{}", clean_pattern(path)));
    }
    Ok(patterns)
}

fn clean_pattern(path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    let cleaned = lexical::clean(path.as_bytes());
    let cleaned = if cleaned.len() > 1 { cleaned.strip_prefix(b"/").unwrap_or(&cleaned) } else { &cleaned };
    String::from_utf8_lossy(cleaned).into_owned()
}
