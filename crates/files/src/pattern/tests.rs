//! Patterns against answers that upstream's code gave (`cases.txt`), and what is ours alone.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::HashMap;

use super::glob::{BadGlob, glob_match_lazy};
use super::*;

/// `cases.txt`: texts are percent-encoded; answers are one sign per path, `+` match, `-` none, `!` error, and `E` for a
/// list that is refused. `match` has an answer for each path alone and one for a walk from the top; in `glob`, `?` is
/// an error that only the strict reading sees (where the lazy one says "no"; `X` where it says "yes").
struct Cases {
    paths: Vec<Vec<u8>>,
    lines: Vec<String>,
}

fn decode(text: &str) -> Vec<u8> {
    if text == "%%" {
        return Vec::new();
    }
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap().as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    bytes
}

fn cases() -> Cases {
    // A longer list of the same format can be tried from outside.
    let text = match std::env::var_os("PATTERN_CASES") {
        Some(path) => std::fs::read_to_string(path).unwrap(),
        None => include_str!("cases.txt").to_owned(),
    };
    let (paths, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("path "));
    Cases {
        paths: paths.iter().map(|line| decode(&line[5..])).collect(),
        lines: lines.into_iter().map(str::to_owned).collect(),
    }
}

fn sign(answer: Result<bool, PatternError>) -> char {
    match answer {
        Ok(true) => '+',
        Ok(false) => '-',
        Err(_) => '!',
    }
}

fn answers(paths: &[Vec<u8>], patterns: &[String]) -> (String, String) {
    let Ok(matcher) = Matcher::new(patterns) else { return ("E".to_owned(), "E".to_owned()) };
    let alone = paths.iter().map(|path| sign(matcher.matches(path))).collect();
    let mut infos: HashMap<&[u8], MatchInfo> = HashMap::new();
    let mut walked = String::new();
    for path in paths {
        let parent = path.iter().rposition(|byte| *byte == b'/').and_then(|slash| infos.get(&path[..slash]));
        let parent = parent.cloned().unwrap_or_default();
        let answer = matcher.matches_dir(path, &parent);
        assert_eq!(matcher.matches_below(path, &parent), answer.as_ref().map(|(hit, _)| *hit).map_err(Clone::clone));
        walked.push(sign(answer.clone().map(|(hit, _)| hit)));
        if let Ok((_, info)) = answer {
            infos.insert(path, info);
        }
    }
    (alone, walked)
}

fn glob_sign(glob: &[u8], path: &[u8]) -> char {
    match (glob_match(glob, path), glob_match_lazy(glob, path)) {
        (Err(BadGlob), Err(BadGlob)) => '!',
        (Err(BadGlob), Ok(true)) => 'X',
        (Err(BadGlob), Ok(false)) => '?',
        (strict, lazy) => {
            assert_eq!(strict, lazy);
            sign(Ok(strict.unwrap()))
        }
    }
}

#[test]
fn upstream_answers_hold() {
    let Cases { paths, lines } = cases();
    let mut wrong = Vec::new();
    for line in &lines {
        let mut words = line.split(' ');
        match words.next().unwrap() {
            "match" => {
                let expected = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
                let patterns: Vec<String> = words.map(|word| String::from_utf8(decode(word)).unwrap()).collect();
                let actual = answers(&paths, &patterns);
                if actual != expected {
                    wrong.push(format!("{patterns:?}\n  expected {expected:?}\n  actual   {actual:?}"));
                }
            }
            "glob" => {
                let (expected, glob) = (words.next().unwrap(), decode(words.next().unwrap()));
                let actual: String = paths.iter().map(|path| glob_sign(&glob, path)).collect();
                if actual != expected {
                    wrong.push(format!("glob {line}\n  actual {actual}"));
                }
            }
            word => panic!("unknown case {word}"),
        }
    }
    let shown = wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {} differ:\n{shown}", wrong.len(), lines.len());
}

#[test]
fn explanations_name_the_pattern_that_decided() {
    let patterns = ["*.log", "# kept as text", "", "build", "!build/keep", "/src/"];
    let matcher = Matcher::new(patterns).unwrap();
    let decided = |index, pattern, taken_back| Explanation::Matched { index, pattern, taken_back };
    for (path, expected) in [
        ("x.log", decided(0, "*.log", false)),
        ("build/x/y", decided(2, "build", false)),
        ("build/keep/y", decided(3, "build/keep", true)),
        ("/build/", decided(2, "build", false)),
        ("main.c", Explanation::Unmatched),
    ] {
        assert_eq!(matcher.explain(path).unwrap(), expected, "{path}");
    }
}

#[test]
fn malformed_patterns_are_named() {
    assert_eq!(Matcher::new(["!"]).unwrap_err().to_string(), "illegal exclusion pattern: `!`");
    assert_eq!(Matcher::new(["ok", "[a"]).unwrap_err().to_string(), "syntax error in pattern `[a`");
    assert_eq!(Matcher::new(["a*["]).unwrap().matches("x").unwrap_err().to_string(), "syntax error in pattern `a*[`");
}

#[test]
fn ignore_files_are_read_like_upstream() {
    let file =
        "\u{feff}# comment\n*.log\r\n  spaced  \n\n #not a comment\n/abs/path/\n!/kept\n! \n!\n./a/../b\n/\n../up\n";
    let expected = ["*.log", "spaced", "#not a comment", "abs/path", "!kept", "!", "!", "b", "/", "../up"];
    assert_eq!(parse_ignore_file(file.as_bytes()).unwrap(), expected);
    assert_eq!(parse_ignore_file(b"").unwrap(), Vec::<String>::new());
    let long = [b"ok\n".as_slice(), &vec![b'x'; 70_000]].concat();
    assert_eq!(parse_ignore_file(&long).unwrap_err().to_string(), "line 2 of the ignore file is longer than 64 KiB");
}

#[test]
fn wildcard_paths_are_cut_at_the_first_wildcard() {
    for (path, before, after) in [
        ("", "/", ""),
        ("/", "/", ""),
        ("/a/b*/c", "/a", "b*/c"),
        ("/*", "/", "*"),
        ("/a/b", "/a/b", ""),
        ("a/?", "a", "?"),
        (r"/a\*/[b]", r"/a\*", "[b]"),
        ("/a/../b*", "/", "b*"),
    ] {
        let (first, rest) = split_wildcards(path.as_bytes());
        assert_eq!((first.as_slice(), rest.as_slice()), (before.as_bytes(), after.as_bytes()), "{path}");
    }
}
