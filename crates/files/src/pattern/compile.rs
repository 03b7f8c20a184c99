//! One pattern, compiled.
//!
//! Upstream turns a pattern into a regular expression, but takes three short cuts for plain ones. Which way a pattern
//! goes is visible from outside, so the same three exist here ([`Kind`]), and the expression is the one that upstream
//! would build. Corners that follow from it, and that are kept:
//!
//! - `{n}`, `{n,m}`, `|` and `^` mean in a pattern with wildcards what they mean in an expression; so does `\d` and
//!   its like. Without wildcards they are plain text.
//! - `**foo` matches every path that ends in `foo`, `foo**` every one that begins with it.
//! - `*` and `?` inside brackets are spelt out there, which makes odd classes, not errors.
//! - a byte that is not UTF-8 matches like U+FFFD.
//!
//! `\p{..}` is refused as malformed: the tables would cost more than anybody gains.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::Chars;

use regex::Regex;

use super::PatternError;
use super::glob::{decode_rune, glob_match_lazy};
use crate::lexical;

/// A pattern of the list.
#[derive(Debug)]
pub(super) struct Pattern {
    /// Without the `!`.
    text: Vec<u8>,
    /// The same for people and for expressions.
    shown: String,
    pub(super) exclusion: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// No wildcards: the path itself.
    Exact,
    /// Ends in `**` and has no other wildcard: everything that begins with the text before.
    Prefix(usize),
    /// Begins with `**` and has no other wildcard: everything that ends in the text behind.
    Suffix(Vec<u8>),
    /// Everything else.
    Expression { regex: Regex, screen: Screen },
    /// Malformed in a way that shows only in use.
    Broken,
}

/// What a path must have to match at all: looked at before the expression, which costs fifty times more.
#[derive(Debug, Default)]
struct Screen {
    prefix: String,
    suffix: String,
    /// Without `**` and classes a pattern matches paths of its own depth only.
    slashes: Option<usize>,
}

impl Pattern {
    /// `text` is trimmed and not empty.
    pub(super) fn new(text: &[u8]) -> Result<Pattern, PatternError> {
        let cleaned = lexical::clean(text);
        let (exclusion, text) = match cleaned.strip_prefix(b"!") {
            Some(b"") => return Err(PatternError::LoneBang),
            Some(rest) => (true, rest.to_vec()),
            None => (false, cleaned),
        };
        let shown = as_runes(&text).into_owned();
        if glob_match_lazy(&text, b".").is_err() {
            return Err(PatternError::Syntax(shown));
        }
        let kind = compile(&text, &shown);
        Ok(Pattern { text, shown, exclusion, kind })
    }

    pub(super) fn text(&self) -> &str {
        &self.shown
    }

    /// Whether the path matches, its parents aside.
    pub(super) fn matches(&self, path: &[u8]) -> Result<bool, PatternError> {
        Ok(match &self.kind {
            Kind::Exact => path == self.text,
            Kind::Prefix(len) => path.starts_with(&self.text[..*len]),
            Kind::Suffix(suffix) => {
                path.ends_with(suffix) || suffix.strip_prefix(b"/").is_some_and(|rest| path == rest)
            }
            Kind::Expression { regex, screen } => screen.lets_through(path) && regex.is_match(&as_runes(path)),
            Kind::Broken => return Err(PatternError::Syntax(self.shown.clone())),
        })
    }

    /// The byte that every path that matches ends in, if there is one. Broken patterns must be met to complain.
    pub(super) fn last_byte(&self) -> Option<u8> {
        match &self.kind {
            Kind::Exact => self.text.last().copied(),
            Kind::Suffix(suffix) => suffix.last().copied(),
            Kind::Expression { screen, .. } => screen.suffix.bytes().last(),
            Kind::Prefix(_) | Kind::Broken => None,
        }
    }

    /// Whether the path or a directory above it matches.
    pub(super) fn matches_with_parents(&self, path: &[u8]) -> Result<bool, PatternError> {
        if self.matches(path)? {
            return Ok(true);
        }
        for (at, byte) in path.iter().enumerate() {
            if *byte == b'/' && self.matches(&path[..at])? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// No wildcards but for a trailing `/*` or `/**`: what it can match lies on one known way.
    pub(super) fn is_plain(&self) -> bool {
        !self.without_trailing_glob().iter().any(|byte| br"*[]?^\{|".contains(byte))
    }

    /// Whether `dir` lies on the way to what a plain pattern matches.
    pub(super) fn leads_through(&self, dir: &[u8]) -> bool {
        let target = self.without_trailing_glob();
        dir.is_empty() || target == dir || (target.starts_with(dir) && target[dir.len()..].starts_with(b"/"))
    }

    fn without_trailing_glob(&self) -> &[u8] {
        let text = self.text.strip_suffix(b"/**").unwrap_or(&self.text);
        text.strip_suffix(b"/*").unwrap_or(text)
    }
}

impl Screen {
    fn of(pattern: &str) -> Screen {
        if pattern.contains(['\\', '[', ']', '{', '|', '^', '\u{feff}', '\u{fffd}']) {
            return Screen::default();
        }
        let wild = ['*', '?'];
        let first = pattern.find(wild).unwrap_or(pattern.len());
        let last = pattern.rfind(wild).map_or(0, |at| at + 1);
        let suffix = &pattern[last..];
        // The slash behind `**` is part of it.
        let suffix = if pattern[..last].ends_with("**") { suffix.trim_start_matches('/') } else { suffix };
        let depth = pattern.bytes().filter(|byte| *byte == b'/').count();
        let slashes = (!pattern.contains("**")).then_some(depth);
        Screen { prefix: pattern[..first].to_owned(), suffix: suffix.to_owned(), slashes }
    }

    fn lets_through(&self, path: &[u8]) -> bool {
        path.ends_with(self.suffix.as_bytes())
            && path.starts_with(self.prefix.as_bytes())
            && self.slashes.is_none_or(|depth| memchr::memchr_iter(b'/', path).count() == depth)
    }
}

/// Which way a pattern goes, and its expression where it goes that way.
fn compile(bytes: &[u8], pattern: &str) -> Kind {
    #[derive(PartialEq)]
    enum Way {
        Exact,
        Prefix,
        Suffix,
        Expression,
    }
    let mut way = Way::Exact;
    let mut expression = String::from("^");
    let mut rest = pattern.strip_prefix('\u{feff}').unwrap_or(pattern).chars().peekable();
    let mut first = true;
    while let Some(rune) = rest.next() {
        match rune {
            '*' if rest.next_if_eq(&'*').is_some() => {
                rest.next_if_eq(&'/');
                if rest.peek().is_some() {
                    expression.push_str("(.*/)?");
                    way = Way::Expression;
                } else if way == Way::Exact {
                    way = Way::Prefix;
                } else {
                    expression.push_str(".*");
                    way = Way::Expression;
                }
                if first {
                    way = Way::Suffix;
                }
            }
            '*' => {
                expression.push_str("[^/]*");
                way = Way::Expression;
            }
            '?' => {
                expression.push_str("[^/]");
                way = Way::Expression;
            }
            '.' | '+' | '(' | ')' | '$' => expression.extend(['\\', rune]),
            '\\' => {
                expression.push('\\');
                if let Some(escaped) = rest.next() {
                    expression.push(escaped);
                    way = Way::Expression;
                }
            }
            '[' | ']' => {
                expression.push(rune);
                way = Way::Expression;
            }
            plain => expression.push(plain),
        }
        first = false;
    }
    match way {
        Way::Exact => Kind::Exact,
        Way::Prefix => Kind::Prefix(bytes.len() - 2),
        Way::Suffix => Kind::Suffix(bytes[2..].to_vec()),
        Way::Expression => {
            expression.push('$');
            match translate(&expression).and_then(|text| Regex::new(&text).ok()) {
                Some(regex) => Kind::Expression { regex, screen: Screen::of(pattern) },
                None => Kind::Broken,
            }
        }
    }
}

/// Spells an expression of Go's dialect in the dialect of the `regex` crate; none if Go would refuse it.
fn translate(go: &str) -> Option<String> {
    let mut out = String::with_capacity(go.len() * 2);
    let mut rest = go.chars().peekable();
    // Where the last thing that can be repeated begins; none at the start and after `|`.
    let mut atom: Option<usize> = None;
    let mut groups = Vec::new();
    let mut repeated = false;
    while let Some(rune) = rest.next() {
        let start = out.len();
        let mut repeats = false;
        match rune {
            '*' | '?' | '{' => {
                let range = if rune == '{' { repeat_range(&mut rest)? } else { Some(rune.to_string()) };
                match range {
                    Some(range) => {
                        let from = atom.filter(|_| !repeated)?;
                        out.insert_str(from, "(?:");
                        out.push(')');
                        out.push_str(&range);
                        repeats = true;
                    }
                    None => push_literal(&mut out, '{'),
                }
            }
            '(' => {
                groups.push(start);
                out.push_str("(?:");
            }
            ')' => {
                out.push(')');
                atom = Some(groups.pop()?);
                repeated = false;
                continue;
            }
            '|' => {
                out.push('|');
                atom = None;
                repeated = false;
                continue;
            }
            '^' => out.push_str(r"\A"),
            '$' => out.push_str(r"\z"),
            '.' => out.push('.'),
            '[' => class(&mut rest, &mut out)?,
            '\\' => escape(&mut rest, &mut out)?,
            literal => push_literal(&mut out, literal),
        }
        if !repeats {
            atom = Some(start);
        }
        repeated = repeats;
    }
    Some(out)
}

/// Reads `n}`, `n,}` or `n,m}` behind a brace. `Some(None)`: the brace is plain text; `None`: refused.
fn repeat_range(rest: &mut Peekable<Chars<'_>>) -> Option<Option<String>> {
    let mut ahead = rest.clone();
    let Some(min) = repeat_count(&mut ahead) else { return Some(None) };
    let mut max = Some(min);
    if ahead.next_if_eq(&',').is_some() {
        max = None;
        if ahead.peek() != Some(&'}') {
            let Some(count) = repeat_count(&mut ahead) else { return Some(None) };
            max = Some(count);
        }
    }
    if ahead.next() != Some('}') {
        return Some(None);
    }
    if min > 1000 || max.is_some_and(|max| max > 1000 || max < min) {
        return None;
    }
    *rest = ahead;
    Some(Some(match max {
        Some(max) => format!("{{{min},{max}}}"),
        None => format!("{{{min},}}"),
    }))
}

/// A decimal number without leading zeros; huge ones are cut at 1001, which is refused.
fn repeat_count(rest: &mut Peekable<Chars<'_>>) -> Option<u32> {
    let first = rest.next_if(char::is_ascii_digit)?;
    let mut value = first.to_digit(10)?;
    if first == '0' && rest.peek().is_some_and(char::is_ascii_digit) {
        return None;
    }
    while let Some(digit) = rest.next_if(char::is_ascii_digit) {
        value = (value * 10 + digit.to_digit(10)?).min(1001);
    }
    Some(value)
}

fn push_literal(out: &mut String, rune: char) {
    out.push_str(&format!(r"\x{{{:x}}}", rune as u32));
}

/// What follows a backslash outside of brackets.
fn escape(rest: &mut Peekable<Chars<'_>>, out: &mut String) -> Option<()> {
    match rest.peek()? {
        'A' => out.push_str(r"\A"),
        'z' => out.push_str(r"\z"),
        'b' => out.push_str(r"(?-u:\b)"),
        'B' => out.push_str(r"(?-u:\B)"),
        'Q' => {
            rest.next();
            return quoted(rest, out);
        }
        letter => {
            if let Some(set) = perl_class(*letter) {
                out.push_str(&format!("[{set}]"));
            } else {
                push_literal(out, escaped_rune(rest)?);
                return Some(());
            }
        }
    }
    rest.next();
    Some(())
}

/// Plain text up to `\E`.
fn quoted(rest: &mut Peekable<Chars<'_>>, out: &mut String) -> Option<()> {
    while let Some(rune) = rest.next() {
        if rune == '\\' && rest.next_if_eq(&'E').is_some() {
            return Some(());
        }
        push_literal(out, rune);
    }
    Some(())
}

fn perl_class(letter: char) -> Option<&'static str> {
    Some(match letter {
        'd' => "0-9",
        'D' => "^0-9",
        's' => r"\t\n\x0c\r ",
        'S' => r"^\t\n\x0c\r ",
        'w' => "0-9A-Za-z_",
        'W' => "^0-9A-Za-z_",
        _ => return None,
    })
}

/// A character that stands escaped; the backslash is read.
fn escaped_rune(rest: &mut Peekable<Chars<'_>>) -> Option<char> {
    let rune = rest.next()?;
    match rune {
        'a' => Some('\x07'),
        'f' => Some('\x0c'),
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        'v' => Some('\x0b'),
        'x' => {
            let digits: String = if rest.next_if_eq(&'{').is_some() {
                let digits: String = std::iter::from_fn(|| rest.next_if(char::is_ascii_hexdigit)).collect();
                rest.next_if_eq(&'}')?;
                digits
            } else {
                [rest.next_if(char::is_ascii_hexdigit)?, rest.next_if(char::is_ascii_hexdigit)?].iter().collect()
            };
            char::from_u32(u32::from_str_radix(&digits, 16).ok()?)
        }
        '0'..='7' => {
            let mut value = rune.to_digit(8)?;
            let is_octal = |next: &char| next.is_digit(8);
            if rune != '0' && !rest.peek().is_some_and(is_octal) {
                return None;
            }
            for _ in 0..2 {
                let Some(digit) = rest.next_if(is_octal) else { break };
                value = value * 8 + digit.to_digit(8)?;
            }
            char::from_u32(value)
        }
        rune if rune.is_ascii() && !rune.is_ascii_alphanumeric() => Some(rune),
        _ => None,
    }
}

/// A bracket expression whose `[` is read.
fn class(rest: &mut Peekable<Chars<'_>>, out: &mut String) -> Option<()> {
    out.push('[');
    if rest.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    let mut first = true;
    while rest.peek() != Some(&']') || first {
        first = false;
        if let Some(named) = named_class(rest)? {
            out.push_str(&named);
            continue;
        }
        let mut ahead = rest.clone();
        if ahead.next() == Some('\\')
            && let Some(set) = ahead.next().and_then(perl_class)
        {
            *rest = ahead;
            out.push_str(&format!("[{set}]"));
            continue;
        }
        let low = class_rune(rest)?;
        let mut high = low;
        let mut ahead = rest.clone();
        if ahead.next() == Some('-') && ahead.peek().is_some_and(|next| *next != ']') {
            *rest = ahead;
            high = class_rune(rest)?;
        }
        if high < low {
            return None;
        }
        push_literal(out, low);
        out.push('-');
        push_literal(out, high);
    }
    rest.next();
    out.push(']');
    Some(())
}

fn class_rune(rest: &mut Peekable<Chars<'_>>) -> Option<char> {
    if rest.next_if_eq(&'\\').is_some() { escaped_rune(rest) } else { rest.next() }
}

/// `[:alpha:]` and its like, if one stands here; `None` for unknown names.
fn named_class(rest: &mut Peekable<Chars<'_>>) -> Option<Option<String>> {
    let ahead: String = rest.clone().collect();
    let Some(end) = ahead.strip_prefix("[:").and_then(|inner| inner.find(":]")) else { return Some(None) };
    let name = &ahead[2..2 + end];
    let known = [
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
        "word", "xdigit",
    ];
    if !known.contains(&name.strip_prefix('^').unwrap_or(name)) {
        return None;
    }
    let named = ahead[..end + 4].to_owned();
    for _ in named.chars() {
        rest.next();
    }
    Some(Some(named))
}

/// Path bytes as Go's regular expressions see them: every byte that is not UTF-8 is one U+FFFD.
fn as_runes(path: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(path) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(path.len() + 8);
    let mut rest = path;
    while !rest.is_empty() {
        let (rune, width) = decode_rune(rest);
        text.push(rune);
        rest = &rest[width..];
    }
    Cow::Owned(text)
}
