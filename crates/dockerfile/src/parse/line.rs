//! How the rest of a line splits, by instruction.

use base::SourceSpan;

use super::Heredoc;
use crate::error::{Error, Result};

/// One instruction: its name, flags and words, nothing understood yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The instruction as it was typed.
    pub name: String,
    /// The whole logical line.
    pub original: String,
    /// `--flag` and `--flag=value`, quotes removed.
    pub flags: Vec<String>,
    /// What follows the flags.
    pub args: Args,
    /// Here-documents, in the order of their names on the line.
    pub heredocs: Vec<Heredoc>,
    /// From its first line to its last, here-documents included.
    pub span: SourceSpan,
    /// The comment lines right above.
    pub comments: Vec<String>,
}

/// What follows the flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Args {
    /// Words, or the whole rest as one word where the instruction is free text.
    Words(Vec<String>),
    /// A JSON array.
    Json(Vec<String>),
    /// Names and values.
    Pairs(Vec<Pair>),
    /// The instruction of an `ONBUILD`.
    Trigger(Box<Line>),
}

/// A name and its value, quotes not removed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The name.
    pub key: String,
    /// The value.
    pub value: String,
    /// Written as `NAME value`, the old form.
    pub legacy: bool,
}

impl Line {
    pub(super) fn parse(text: &str, escape: char, span: SourceSpan) -> Result<Line> {
        Line::parse_nested(text, escape, span, false)
    }

    fn parse_nested(text: &str, escape: char, span: SourceSpan, nested: bool) -> Result<Line> {
        // What stands at the end belongs to a trigger, whose text goes into an image's configuration.
        let whole = text.trim_start();
        let text = whole.trim_end();
        let (name, rest) = match text.find(is_gap) {
            Some(end) => (&text[..end], text[end..].trim_start_matches(is_gap)),
            None => (text, ""),
        };
        let (flags, rest) = flags(rest, escape);
        let rest = rest.trim();
        let keyword = name.to_ascii_lowercase();
        let args = match keyword.as_str() {
            "onbuild" if nested => return Err(Error::new("ONBUILD cannot trigger another ONBUILD")),
            "onbuild" if !rest.is_empty() => {
                let rest = if flags.is_empty() { &whole[name.len()..] } else { rest };
                Args::Trigger(Box::new(Line::parse_nested(rest, escape, span, true)?))
            }
            "env" | "label" => Args::Pairs(pairs(rest, &keyword, escape)?),
            "arg" => Args::Words(words(rest, escape)),
            "run" | "cmd" | "entrypoint" | "shell" => match json(rest)? {
                Some(json) => Args::Json(json),
                None => one(rest),
            },
            "add" | "copy" | "volume" => match json(rest)? {
                Some(json) => Args::Json(json),
                None => split(rest),
            },
            "healthcheck" => healthcheck(rest)?,
            "from" | "expose" => split(rest),
            _ => one(rest),
        };
        Ok(Line {
            name: name.to_owned(),
            original: if nested { whole } else { text }.to_owned(),
            flags,
            args,
            heredocs: Vec::new(),
            span,
            comments: Vec::new(),
        })
    }

    pub(super) fn may_have_heredocs(&self) -> bool {
        let line = match &self.args {
            Args::Trigger(line) => line,
            _ => self,
        };
        let keyword = line.name.to_ascii_lowercase();
        matches!(keyword.as_str(), "add" | "copy" | "run") && !matches!(line.args, Args::Json(_))
    }
}

fn is_gap(c: char) -> bool {
    matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

fn one(rest: &str) -> Args {
    Args::Words(if rest.is_empty() { Vec::new() } else { vec![rest.to_owned()] })
}

fn split(rest: &str) -> Args {
    Args::Words(rest.split(is_gap).filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

/// Takes the words that begin with `--` from the front. A lone `--` ends them.
fn flags(rest: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = rest.trim_start();
    while rest.starts_with("--") {
        let (word, after) = flag_word(rest, escape);
        rest = after.trim_start();
        if word == "--" {
            break;
        }
        flags.push(word);
    }
    (flags, rest)
}

/// One word up to a space outside of quotes, with quotes and escapes resolved.
fn flag_word(rest: &str, escape: char) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, &rest[at..]),
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ if c == escape => word.extend(chars.next().map(|(_, c)| c)),
            _ => word.push(c),
        }
    }
    (word, "")
}

/// Words with their quotes and escapes still in them.
fn words(rest: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = rest.chars().peekable();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        // Nothing can be escaped between single quotes, and an escape at the very end is dropped.
        if c == escape && quote != Some('\'') {
            if let Some(escaped) = chars.next() {
                word.push(c);
                word.push(escaped);
            }
            continue;
        }
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            _ => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn pairs(rest: &str, keyword: &str, escape: char) -> Result<Vec<Pair>> {
    let words = words(rest, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        // `ENV NAME the rest of the line`
        let (key, value) = rest
            .split_once(is_gap)
            .ok_or_else(|| Error::new(format!("{} {first} has no value", keyword.to_ascii_uppercase())))?;
        let value = value.trim_start_matches(is_gap).to_owned();
        return Ok(vec![Pair { key: key.to_owned(), value, legacy: true }]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some((key, value)) => Ok(Pair { key: key.to_owned(), value: value.to_owned(), legacy: false }),
        None => {
            let error = Error::new(format!("`{word}` has no `=`: expected name=value"));
            Err(error.hint("put quotes around a value that has spaces"))
        }
    };
    words.iter().map(pair).collect()
}

/// A JSON array of strings. Other text that is no JSON array is left to the shell form.
fn json(rest: &str) -> Result<Option<Vec<String>>> {
    if !rest.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(rest) else { return Ok(None) };
    let texts = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Ok(text),
        other => Err(Error::new(format!("`{other}` is not a string: a JSON array here holds strings only"))),
    });
    texts.collect::<Result<_>>().map(Some)
}

/// `NONE`, or `CMD` and its command line.
fn healthcheck(rest: &str) -> Result<Args> {
    let (kind, rest) = match rest.find(char::is_whitespace) {
        Some(end) => (&rest[..end], rest[end..].trim_start()),
        None => (rest, ""),
    };
    if kind.is_empty() {
        return Ok(Args::Words(Vec::new()));
    }
    let mut all = vec![kind.to_owned()];
    Ok(match json(rest)? {
        Some(json) => {
            all.extend(json);
            Args::Json(all)
        }
        None => {
            all.extend((!rest.is_empty()).then(|| rest.to_owned()));
            Args::Words(all)
        }
    })
}
