//! Physical lines to logical ones: comments, continuation, here-documents.

use std::borrow::Cow;

use base::SourceSpan;

use super::directive::Parser;
use super::{Document, Heredoc, Line, MAX_INSTRUCTIONS, heredoc};
use crate::error::{Error, Result};

pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Number of the line that was read last.
    number: u32,
    escape: char,
    directives: Parser,
    comments: Vec<String>,
    out: Vec<Line>,
    empty_continuations: Vec<SourceSpan>,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader {
            rest: bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes),
            number: 0,
            escape: '\\',
            directives: Parser::new("#", 0),
            comments: Vec::new(),
            out: Vec::new(),
            empty_continuations: Vec::new(),
        }
    }

    pub fn read(mut self) -> Result<Document> {
        while let Some(physical) = self.next() {
            self.physical(physical)?;
        }
        if self.out.is_empty() {
            let span = SourceSpan::lines(self.number.max(1), self.number.max(1));
            return Err(Error::new("the Dockerfile has no instructions").at(span));
        }
        Ok(Document { lines: self.out, escape: self.escape, empty_continuations: self.empty_continuations })
    }

    /// The next physical line with its end.
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', self.rest).map_or(self.rest.len(), |end| end + 1);
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.number += 1;
        Some(line)
    }

    fn physical(&mut self, physical: &'a [u8]) -> Result<()> {
        let first = self.number;
        let text = physical.trim_ascii();
        if text.first() == Some(&b'#') {
            return self.comment(text);
        }
        // Only what stands above every instruction is a directive.
        self.directives.line(text)?;
        if text.is_empty() {
            return Ok(());
        }
        let start = without_end(physical).trim_ascii_start();
        let (logical, empty) = self.continued(start)?;
        let span = SourceSpan::lines(first, self.number);
        if empty {
            self.empty_continuations.push(SourceSpan::lines(self.number, self.number));
        }
        if logical.trim().is_empty() {
            return Ok(());
        }
        let comments = std::mem::take(&mut self.comments);
        let mut line = Line::parse(&logical, self.escape, span).map_err(|e| e.at(span))?;
        line.comments = comments;
        if line.may_have_heredocs() && logical.contains("<<") {
            let wanted = heredoc::in_line(&logical).map_err(|e| e.at(span))?;
            for mut doc in wanted {
                self.heredoc(&mut doc, first)?;
                line.heredocs.push(doc);
            }
        }
        line.span = SourceSpan::lines(first, self.number);
        if self.out.len() == MAX_INSTRUCTIONS {
            return Err(
                Error::new(format!("the Dockerfile has more than {MAX_INSTRUCTIONS} instructions")).at(line.span)
            );
        }
        self.out.push(line);
        Ok(())
    }

    fn comment(&mut self, text: &[u8]) -> Result<()> {
        if let Some((key, value)) = self.directives.line(text)? {
            if key == "escape" {
                self.escape = match value.as_str() {
                    "\\" => '\\',
                    "`" => '`',
                    other => {
                        let span = SourceSpan::lines(self.number, self.number);
                        let message = format!("`{other}` cannot be the escape character: it must be \\ or `");
                        return Err(Error::new(message).at(span));
                    }
                };
            }
            return Ok(());
        }
        match String::from_utf8_lossy(&text[1..]).trim() {
            "" => self.comments.clear(),
            comment => self.comments.push(comment.to_owned()),
        }
        Ok(())
    }

    /// Adds the lines that continue `start`. The instruction, and whether an empty line was passed.
    fn continued(&mut self, start: &'a [u8]) -> Result<(String, bool)> {
        let mut logical = String::new();
        let mut empty = false;
        let (text, mut more) = self.continuation(start);
        // Names of people in files from before everybody wrote UTF-8. They end in the image's configuration, which is JSON.
        let is_about = ["MAINTAINER", "LABEL"].iter().any(|name| is_instruction(start, name.as_bytes()));
        let read = |reader: &Self, text: &'a [u8]| match is_about {
            true => reader.text(&replaced(text)).map(|text| Cow::Owned(text.to_owned())),
            false => reader.utf8(text).map(Cow::Borrowed),
        };
        logical.push_str(&read(self, text)?);
        while more {
            let Some(physical) = self.next() else { break };
            let text = without_end(physical);
            if text.trim_ascii().is_empty() {
                empty = true;
                continue;
            }
            if text.trim_ascii_start().starts_with(b"#") {
                continue;
            }
            let part;
            (part, more) = self.continuation(text);
            logical.push_str(&read(self, part)?);
        }
        Ok((logical, empty))
    }

    /// The line without the escape at its end, and whether there was one that is not escaped itself.
    fn continuation<'b>(&self, text: &'b [u8]) -> (&'b [u8], bool) {
        let end = text.iter().rposition(|b| *b != b' ' && *b != b'\t').map_or(0, |at| at + 1);
        let escape = self.escape as u8;
        match text[..end].split_last() {
            Some((last, before)) if *last == escape && before.last() != Some(&escape) => (before, true),
            _ => (text, false),
        }
    }

    fn utf8<'b>(&self, text: &'b [u8]) -> Result<&'b str> {
        match std::str::from_utf8(text) {
            Ok(text) => self.text(text),
            Err(_) => Err(self.wrong("is not UTF-8").hint("save the file as UTF-8: `iconv -f latin1 -t utf-8`")),
        }
    }

    fn text<'b>(&self, text: &'b str) -> Result<&'b str> {
        if text.contains('\0') { Err(self.wrong("has a NUL byte")) } else { Ok(text) }
    }

    /// A mistake of the line that was read last.
    fn wrong(&self, what: &str) -> Error {
        Error::new(format!("line {} {what}", self.number)).at(SourceSpan::lines(self.number, self.number))
    }

    fn heredoc(&mut self, doc: &mut Heredoc, first: u32) -> Result<()> {
        while let Some(physical) = self.next() {
            let text = self.utf8(physical)?;
            let mut end = text.trim_end_matches(['\r', '\n']);
            if doc.chomp {
                end = end.trim_start_matches('\t');
            }
            if end == doc.name {
                return Ok(());
            }
            doc.content.push_str(text);
        }
        let error = Error::new(format!("here-document `{}` has no end", doc.name));
        Err(error.at(SourceSpan::lines(first, self.number)).hint(format!("end it by a line `{}`", doc.name)))
    }
}

/// Whether a line begins with that instruction.
fn is_instruction(line: &[u8], name: &[u8]) -> bool {
    line.split_at_checked(name.len())
        .is_some_and(|(word, rest)| word.eq_ignore_ascii_case(name) && rest.first().is_none_or(u8::is_ascii_whitespace))
}

/// Each byte that is not UTF-8 becomes the character that stands for such bytes, as in Go's JSON.
fn replaced(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    out
}

fn without_end(mut line: &[u8]) -> &[u8] {
    while let Some((b'\r' | b'\n', rest)) = line.split_last() {
        line = rest;
    }
    line
}
