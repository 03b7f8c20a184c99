//! `.dockerignore`: lines to patterns. Matching is left to those who read the files.

use llb::path;

/// The patterns of an ignore file.
pub fn parse(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    bytes.split(|b| *b == b'\n').filter_map(|line| pattern(&String::from_utf8_lossy(line))).collect()
}

fn pattern(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let line = line.trim();
    if line.is_empty() {
        return None;
    }
    let (mark, rest) = match line.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None => ("", line),
    };
    if rest.is_empty() {
        return Some(mark.to_owned());
    }
    let clean = path::clean(rest);
    let relative = if clean.len() > 1 { clean.strip_prefix('/').unwrap_or(&clean) } else { &clean };
    Some(format!("{mark}{relative}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_become_clean_relative_patterns() {
        let text = b"\xef\xbb\xbf# comment\n\n  /a//b/ \r\n! /c/../d\n #e\n/\n!\n*.o";
        assert_eq!(super::parse(text), ["a/b", "!d", "#e", "/", "!", "*.o"]);
    }
}
