//! Bytes to lines: where each instruction begins and ends, its flags, its words and its here-documents.
//!
//! Nothing is expanded and no instruction is understood here, only how its line splits. Spans count lines from 1 and
//! lie inside the file. Any bytes are accepted or refused, never a panic; depth is bounded, so that no input can
//! exhaust the stack.

mod directive;
mod heredoc;
mod line;
mod logical;

use base::SourceSpan;

pub(crate) use directive::check_comment;
pub use directive::{Directives, Syntax, detect_syntax};
pub use heredoc::Heredoc;
pub(crate) use heredoc::chomp;
pub use line::{Args, Line, Pair};

use crate::error::{Error, Result};

/// Most bytes of a Dockerfile: what fits into one message of the wire protocol.
pub const MAX_BYTES: usize = 16 << 20;

/// Most instructions of a Dockerfile.
pub const MAX_INSTRUCTIONS: usize = 20_000;

/// A Dockerfile split into its instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The instructions in order. Never empty.
    pub lines: Vec<Line>,
    /// `\`, or what `# escape=` says.
    pub escape: char,
    /// Instructions that were continued over an empty line.
    pub empty_continuations: Vec<SourceSpan>,
}

/// Splits a Dockerfile.
pub fn parse(bytes: &[u8]) -> Result<Document> {
    if bytes.is_empty() {
        return Err(Error::new("the Dockerfile is empty"));
    }
    if bytes.len() > MAX_BYTES {
        let message = format!("the Dockerfile has {} bytes, more than the {MAX_BYTES} allowed", bytes.len());
        return Err(Error::new(message));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        let error = Error::new("the Dockerfile is UTF-16").at(SourceSpan::lines(1, 1));
        return Err(error.hint("save it as UTF-8"));
    }
    logical::Reader::new(bytes).read()
}

/// Splits one instruction that was not written in the file at hand, such as an `ONBUILD` trigger of a base image.
pub(crate) fn parse_single(text: &str, span: SourceSpan) -> Result<Line> {
    let document = parse(text.as_bytes()).map_err(|e| e.elsewhere().at(span))?;
    let mut lines = document.lines;
    let first = lines.swap_remove(0);
    if lines.is_empty() {
        return Ok(Line { span, ..first });
    }
    Err(Error::new(format!("trigger `{text}` is more than one instruction")).at(span))
}

#[cfg(test)]
mod tests;
