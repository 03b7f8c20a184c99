//! Word expansion: quotes, escapes and `$variables`, by BuildKit's rules for Dockerfiles.
//!
//! Known forms: `$name`, `${name}`, `${name:-word}`, `${name-word}`, `${name:+word}`, `${name+word}`,
//! `${name:?text}`, `${name?text}`, `${name#pattern}`, `##`, `%`, `%%`, `${name/pattern/text}`, `//`. Words inside may
//! hold variables again, to a bounded depth. Patterns have `*` and `?`, no brackets, as upstream.

mod pattern;

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::str::Chars;

use crate::error::{Error, Result};

/// How deep `${a:-${b:-..}}` may nest.
const MAX_DEPTH: usize = 64;
/// Most bytes that one word may expand to.
const MAX_BYTES: usize = 16 << 20;

/// Where variables come from.
pub trait Variables {
    /// A variable's value.
    fn get(&self, name: &str) -> Option<&str>;
}

impl Variables for llb::build::Env {
    fn get(&self, name: &str) -> Option<&str> {
        llb::build::Env::get(self, name)
    }
}

/// No variables.
pub struct NoVariables;

impl Variables for NoVariables {
    fn get(&self, _: &str) -> Option<&str> {
        None
    }
}

/// What became of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The text as one word.
    pub text: String,
    /// The text split at spaces that were not quoted.
    pub words: Vec<String>,
    /// Variables that were found.
    pub matched: BTreeSet<String>,
    /// Variables that were not.
    pub unmatched: BTreeSet<String>,
}

/// How to expand.
#[derive(Clone, Copy, Debug)]
pub struct Lexer {
    escape: char,
    raw_quotes: bool,
    raw_escapes: bool,
    keep_quotes: bool,
    keep_unset: bool,
}

impl Lexer {
    /// Resolves quotes, escapes and variables.
    pub fn new(escape: char) -> Lexer {
        Lexer { escape, raw_quotes: false, raw_escapes: false, keep_quotes: false, keep_unset: false }
    }

    /// Quotes work but stay in the text.
    #[must_use]
    pub fn raw_quotes(self) -> Lexer {
        Lexer { raw_quotes: true, ..self }
    }

    /// Escapes work but stay in the text.
    #[must_use]
    pub fn raw_escapes(self) -> Lexer {
        Lexer { raw_escapes: true, ..self }
    }

    /// Quotes are ordinary characters.
    #[must_use]
    pub fn ignore_quotes(self) -> Lexer {
        Lexer { keep_quotes: true, ..self }
    }

    /// Variables that are not set stay as they are written.
    #[must_use]
    pub fn keep_unset(self) -> Lexer {
        Lexer { keep_unset: true, ..self }
    }

    /// Expands a text.
    pub fn expand(&self, text: &str, variables: &dyn Variables) -> Result<Expanded> {
        let mut run = Run {
            lexer: *self,
            chars: text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable(),
            variables,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
            depth: 0,
        };
        let (text, words) = run.until(None, self.raw_escapes).map_err(|what| cannot(text, &what))?;
        Ok(Expanded { text, words, matched: run.matched, unmatched: run.unmatched })
    }

    /// Splits a text without variables into words.
    pub fn words(&self, text: &str) -> Result<Vec<String>> {
        Ok(self.expand(text, &NoVariables)?.words)
    }
}

fn cannot(text: &str, what: &str) -> Error {
    let mut shown: String = text.chars().take(80).collect();
    if shown.len() < text.len() {
        shown.push_str("..");
    }
    Error::new(format!("cannot expand `{shown}`: {what}"))
}

/// What is wrong, without the text that it is wrong in.
type Part<T> = std::result::Result<T, String>;

struct Run<'a> {
    lexer: Lexer,
    chars: Peekable<Chars<'a>>,
    variables: &'a dyn Variables,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
    depth: usize,
}

/// Collects words. Spaces that come from the text or a variable part them, quoted ones do not.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: String,
}

impl Words {
    fn push(&mut self, c: char) {
        if !c.is_whitespace() {
            self.word.push(c);
        } else if !self.word.is_empty() {
            self.done.push(std::mem::take(&mut self.word));
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

impl Run<'_> {
    /// Expands up to `stop`, which is consumed, or to the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Part<(String, Vec<String>)> {
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(&c) = self.chars.peek() {
            if Some(c) == stop {
                self.chars.next();
                return Ok((text, words.finish()));
            }
            let quotes = !self.lexer.keep_quotes;
            let part = match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.push(c));
                    text.push_str(&value);
                    None
                }
                '<' => Some(self.angle()),
                '\'' if quotes => Some(self.single_quoted()?),
                '"' if quotes => Some(self.double_quoted(raw_escapes)?),
                c if c == self.lexer.escape => {
                    self.chars.next();
                    let mut part = String::new();
                    if raw_escapes {
                        part.push(c);
                    }
                    part.extend(self.chars.next());
                    Some(part)
                }
                c => {
                    self.chars.next();
                    words.push(c);
                    text.push(c);
                    None
                }
            };
            if let Some(part) = part {
                words.word.push_str(&part);
                text.push_str(&part);
            }
            if text.len() > MAX_BYTES {
                return Err(format!("it becomes longer than {MAX_BYTES} bytes"));
            }
        }
        match stop {
            None => Ok((text, words.finish())),
            Some(stop) => Err(format!("`{stop}` is missing")),
        }
    }

    fn single_quoted(&mut self) -> Part<String> {
        let mut out = String::new();
        let quote = self.chars.next();
        out.extend(quote.filter(|_| self.lexer.raw_quotes));
        loop {
            match self.chars.next() {
                None => return Err("a single quote has no end".to_owned()),
                Some('\'') => {
                    out.extend(quote.filter(|_| self.lexer.raw_quotes));
                    return Ok(out);
                }
                Some(c) => out.push(c),
            }
        }
    }

    fn double_quoted(&mut self, raw_escapes: bool) -> Part<String> {
        let mut out = String::new();
        let quote = self.chars.next();
        out.extend(quote.filter(|_| self.lexer.raw_quotes));
        loop {
            match self.chars.peek().copied() {
                None => return Err("a double quote has no end".to_owned()),
                Some('"') => {
                    out.extend(self.chars.next().filter(|_| self.lexer.raw_quotes));
                    return Ok(out);
                }
                Some('$') => out.push_str(&self.dollar()?),
                Some(mut c) => {
                    self.chars.next();
                    if c == self.lexer.escape {
                        if raw_escapes {
                            out.push(c);
                        }
                        match self.chars.peek() {
                            None => continue,
                            Some(&next) if next == '"' || next == '$' || next == self.lexer.escape => {
                                self.chars.next();
                                c = next;
                            }
                            // An escape before anything else is itself.
                            Some(_) => {}
                        }
                    }
                    out.push(c);
                }
            }
        }
    }

    /// `<`, or `<<` and the spaces behind it, which do not end the word: a here-document.
    fn angle(&mut self) -> String {
        self.chars.next();
        if self.chars.peek() != Some(&'<') {
            return "<".to_owned();
        }
        let mut out = "<".to_owned();
        out.extend(self.chars.next());
        while let Some(c) = self.chars.next_if(|c| matches!(c, '\t' | '\r' | ' ')) {
            out.push(c);
        }
        out
    }

    fn dollar(&mut self) -> Part<String> {
        self.chars.next();
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.lookup(&name) {
                None if self.lexer.keep_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("`${{` is nested deeper than {MAX_DEPTH}"));
        }
        let out = self.braced();
        self.depth -= 1;
        out
    }

    fn braced(&mut self) -> Part<String> {
        if let None | Some('{' | '}' | ':') = self.chars.peek() {
            return Err("`${` has no variable name".to_owned());
        }
        let name = self.name();
        let Some(c) = self.chars.next() else { return Err("`}` is missing".to_owned()) };
        match c {
            '}' => Ok(match self.lookup(&name) {
                None if self.lexer.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            '/' => self.replace(&name),
            ':' => match self.chars.next() {
                Some(c @ ('-' | '+' | '?')) => self.modified(&name, c, true),
                Some(c) => Err(format!("`:{c}` is not known in `${{{name}:{c}..}}`")),
                None => Err("`}` is missing".to_owned()),
            },
            '-' | '+' | '?' | '#' | '%' => self.modified(&name, c, false),
            c => Err(format!("`{c}` is not known in `${{{name}{c}..}}`")),
        }
    }

    /// `${name` is read, and the modifier.
    fn modified(&mut self, name: &str, modifier: char, empty_is_unset: bool) -> Part<String> {
        let trims = matches!(modifier, '#' | '%');
        let (word, _) = self.until(Some('}'), trims)?;
        let value = self.lookup(name);
        if value.is_none() && self.lexer.keep_unset {
            let colon = if empty_is_unset { ":" } else { "" };
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let set = value.as_deref().is_some_and(|value| !(empty_is_unset && value.is_empty()));
        match modifier {
            '-' if set => Ok(value.unwrap_or_default()),
            '-' => Ok(word),
            '+' if set => Ok(word),
            '+' => Ok(String::new()),
            '?' if set => Ok(value.unwrap_or_default()),
            '?' if !word.is_empty() => Err(format!("{name}: {word}")),
            '?' if value.is_some() => Err(format!("`{name}` must not be empty")),
            '?' => Err(format!("`{name}` must be set")),
            _ => {
                let (longest, pattern) = match word.strip_prefix(modifier) {
                    Some(pattern) => (true, pattern),
                    None => (false, &word[..]),
                };
                pattern::trim(&value.unwrap_or_default(), pattern, modifier == '#', longest)
            }
        }
    }

    /// `${name/` is read.
    fn replace(&mut self, name: &str) -> Part<String> {
        let all = self.chars.next_if_eq(&'/').is_some();
        let (pattern, _) = self.until(Some('/'), true)?;
        let (text, _) = self.until(Some('}'), true)?;
        match self.lookup(name) {
            None if self.lexer.keep_unset => Ok(format!("${{{name}/{pattern}/{text}}}")),
            value => pattern::replace(&value.unwrap_or_default(), &pattern, &text, all),
        }
    }

    /// A name, a number or one special character.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.chars.peek() {
            Some(c) if c.is_numeric() => {
                while let Some(c) = self.chars.next_if(|c| c.is_numeric()) {
                    name.push(c);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.chars.next()),
            _ => {
                while let Some(c) = self.chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                }
            }
        }
        name
    }

    fn lookup(&mut self, name: &str) -> Option<String> {
        let value = self.variables.get(name);
        if value.is_some() { &mut self.matched } else { &mut self.unmatched }.insert(name.to_owned());
        value.map(str::to_owned)
    }
}

#[cfg(test)]
mod tests;
