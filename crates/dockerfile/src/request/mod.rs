//! Questions about a Dockerfile, in the place of a build: BuildKit's subrequests, `--call` of docker and `requestid` among
//! the options.
//!
//! An answer is metadata without files: `result.json` for programs, `result.txt` for people, and for the checks
//! `result.statuscode`. Both are formatted as BuildKit's frontend formats them, since clients parse the one and print the
//! other.

mod describe;
mod json;
mod lint;
mod outline;
mod targets;
mod text;

use std::collections::BTreeMap;

use crate::ask::Ask;
use crate::context::Context;
use crate::error::{Result, Unsupported};
use crate::frontend::{Found, Request};
use crate::options::Options;

pub(crate) use outline::{Argument, Capture, Outline};
pub(crate) use text::description;

/// Metadata of a result.
pub(crate) type Answer = BTreeMap<String, Vec<u8>>;

/// What a question is asked about.
pub(crate) struct About<'a> {
    pub request: &'a Request<'a>,
    pub options: &'a Options,
    pub context: &'a Context,
    pub found: &'a Found,
    pub ask: &'a dyn Ask,
}

/// A kind of question.
struct Definition {
    name: &'static str,
    description: &'static str,
    /// Options that it knows, and what they are. None where that is not said.
    options: Option<&'static [(&'static str, &'static str)]>,
}

/// The version of all answers' formats.
const VERSION: &str = "1.0.0";

/// Answers.
pub(crate) fn answer(name: &str, about: &About<'_>) -> Result<Answer> {
    match name {
        _ if name == describe::DEFINITION.name => Ok(describe::answer()),
        _ if name == outline::DEFINITION.name => outline::answer(about),
        _ if name == targets::DEFINITION.name => targets::answer(about),
        _ if name == lint::NAME => lint::answer(about),
        _ => Err(Unsupported::Request(name.to_owned()).into()),
    }
}

/// An answer of these two forms.
fn result(json: &serde_json::Value, text: String) -> Answer {
    let metadata = [("result.json", json::pretty(json)), ("result.txt", text), ("version", VERSION.to_owned())];
    metadata.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect()
}
