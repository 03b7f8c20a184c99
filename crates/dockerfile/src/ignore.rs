//! `.dockerignore`: lines to patterns. Matching is left to those who read the files.

use std::sync::Arc;

use base::{Fault, SourceFile, SourceSpan};
use llb::path;

use crate::error::{Error, Result};
use crate::glob;

/// The patterns of the ignore file `name`.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut patterns = Vec::new();
    for (number, line) in (1..).zip(text.split(|b| *b == b'\n')) {
        let Some(pattern) = pattern(&String::from_utf8_lossy(line)) else { continue };
        let flaw = match pattern.strip_prefix('!') {
            Some("") => Some("`!` needs something to let through"),
            rest => glob::flaw(rest.unwrap_or(&pattern)),
        };
        if let Some(flaw) = flaw {
            let file = SourceFile { name: name.to_owned(), data: bytes.to_vec(), ..SourceFile::default() };
            let fault = Fault::user(format!("bad pattern `{pattern}`: {flaw}"));
            return Err(Error::Ask {
                doing: format!("cannot use `{name}`"),
                spans: Vec::new(),
                hint: None,
                fault: Box::new(fault.at(&Arc::new(file), &[SourceSpan::lines(number, number)])),
            });
        }
        patterns.push(pattern);
    }
    Ok(patterns)
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
    use super::parse;

    #[test]
    fn lines_become_clean_relative_patterns() {
        let text = b"\xef\xbb\xbf# comment\n\n  /a//b/ \r\n! /c/../d\n #e\n/\n*.o";
        assert_eq!(parse(".dockerignore", text).expect("fine"), ["a/b", "!d", "#e", "/", "*.o"]);
    }

    #[test]
    fn bad_patterns_are_refused_with_their_line() {
        for (text, line, why) in [
            ("a\n\n[b\n", 3, "bad pattern `[b`: `[` is never closed"),
            ("!", 1, "bad pattern `!`: `!` needs something to let through"),
            ("a\n!x\\", 2, "bad pattern `!x\\`: nothing follows the last `\\`"),
        ] {
            let fault = parse("d/D.dockerignore", text.as_bytes()).expect_err(text).into_fault(None);
            let [(file, spans)] = fault.places() else { panic!("{fault:?}") };
            assert_eq!((&*file.name, spans[0].start.0), ("d/D.dockerignore", line));
            assert_eq!(fault.cause(), format!("cannot use `d/D.dockerignore`: {why}"));
        }
    }
}
