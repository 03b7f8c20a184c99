//! `# key=value` at the top of the file: `syntax`, `escape`, `check`.

use base::SourceSpan;

use crate::error::{Error, Result};

/// The directives of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    /// `# syntax=`: the frontend that understands the file.
    pub syntax: Option<(String, SourceSpan)>,
    /// `# escape=`.
    pub escape: Option<(String, SourceSpan)>,
    /// `# check=`: settings of the build checks.
    pub check: Option<(String, SourceSpan)>,
}

/// The frontend that a file asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syntax {
    /// The image.
    pub image: String,
    /// The whole value, which goes to the frontend as `cmdline`.
    pub cmdline: String,
    /// Where it is written.
    pub span: SourceSpan,
}

/// Reads directives line by line, until a line is none.
pub(super) struct Parser {
    comment: &'static str,
    line: u32,
    done: bool,
    found: Directives,
}

impl Parser {
    pub fn new(comment: &'static str, line: u32) -> Parser {
        Parser { comment, line, done: false, found: Directives::default() }
    }

    /// Looks at one more line. Whether it is a directive, and of which value if it is `escape`.
    pub fn line(&mut self, text: &[u8]) -> Result<Option<(&'static str, String)>> {
        self.line += 1;
        if self.done {
            return Ok(None);
        }
        let Some((key, value)) = split(text, self.comment) else {
            self.done = true;
            return Ok(None);
        };
        let (key, place) = match key.to_ascii_lowercase().as_str() {
            "syntax" => ("syntax", &mut self.found.syntax),
            "escape" => ("escape", &mut self.found.escape),
            "check" => ("check", &mut self.found.check),
            _ => {
                self.done = true;
                return Ok(None);
            }
        };
        let span = SourceSpan::lines(self.line, self.line);
        if place.is_some() {
            return Err(Error::new(format!("directive `{key}` is given twice")).at(span));
        }
        *place = Some((value.clone(), span));
        Ok(Some((key, value)))
    }

    pub fn finish(self) -> Directives {
        self.found
    }
}

fn split(text: &[u8], comment: &str) -> Option<(String, String)> {
    let text = std::str::from_utf8(text).ok()?.strip_prefix(comment)?.trim_start();
    let (key, value) = text.split_once('=')?;
    let (key, value) = (key.trim_end(), value.trim());
    let name = key.starts_with(|c: char| c.is_ascii_alphabetic()) && key.chars().all(|c| c.is_ascii_alphanumeric());
    (name && !value.is_empty()).then(|| (key.to_owned(), value.to_owned()))
}

/// The directives of a file whose comments begin with `comment`. Those before a mistake count.
fn all(bytes: &[u8], comment: &'static str) -> Directives {
    let (bytes, line) = skip_shebang(bytes);
    let mut parser = Parser::new(comment, line);
    for text in bytes.split(|b| *b == b'\n') {
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if parser.done || parser.line(text).is_err() {
            break;
        }
    }
    parser.finish()
}

/// The value of `check=` in a comment above an instruction.
pub(crate) fn check_comment(comment: &str) -> Option<String> {
    let (key, value) = split(comment.as_bytes(), "")?;
    key.eq_ignore_ascii_case("check").then_some(value)
}

impl Directives {
    /// The directives of a Dockerfile.
    pub fn of(bytes: &[u8]) -> Directives {
        all(bytes, "#")
    }
}

/// The frontend that a file asks for, in a `#` or `//` comment or as JSON: the file may be no Dockerfile at all.
pub fn detect_syntax(bytes: &[u8]) -> Option<Syntax> {
    let commented = all(bytes, "#").syntax.or_else(|| all(bytes, "//").syntax);
    let (cmdline, span) = commented.or_else(|| {
        let (bytes, line) = skip_shebang(bytes);
        let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        Some((value.get("syntax")?.as_str()?.to_owned(), SourceSpan::lines(line + 1, line + 1)))
    })?;
    let image = cmdline.split(' ').next().unwrap_or_default().to_owned();
    Some(Syntax { image, cmdline, span })
}

fn skip_shebang(bytes: &[u8]) -> (&[u8], u32) {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if !bytes.starts_with(b"#!") {
        return (bytes, 0);
    }
    match memchr::memchr(b'\n', bytes) {
        Some(end) => (&bytes[end + 1..], 1),
        None => (&[], 1),
    }
}
