//! Text to [`Config`]: one file applied on top of what earlier files said.

use toml::de::DeTable;

use crate::Config;
use crate::section::{Unknown, apply_table};

/// What is wrong with a text, by byte offset.
pub(crate) enum Flaw {
    /// It is no TOML.
    Syntax { at: usize, message: String },
    /// A key has a value that it cannot have.
    Value { at: usize, key: String, message: String },
}

/// Applies the text to `config` and answers the keys that nobody declares.
pub(crate) fn apply(config: &mut Config, text: &str) -> Result<Vec<Unknown>, Flaw> {
    let document = DeTable::parse(text).map_err(|error| Flaw::Syntax {
        at: error.span().map_or(0, |span| span.start),
        message: error.message().lines().collect::<Vec<_>>().join(", "),
    })?;
    let mut unknown = Vec::new();
    apply_table(config, "", document.get_ref(), &mut unknown).map_err(|bad| Flaw::Value {
        at: bad.span.start,
        key: bad.path,
        message: bad.message,
    })?;
    unknown.sort_by_key(|key| key.span.start);
    Ok(unknown)
}

/// The line and column, from 1, of a byte offset.
pub(crate) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
    (line, column)
}
