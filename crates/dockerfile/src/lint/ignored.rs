//! `COPY` and `ADD` of what the ignore file takes out of the context.

use llb::path;

use super::{Place, Rule};
use crate::ask::Ask;
use base::gotext::quote;

pub(super) const COPY: Rule = Rule {
    name: "CopyIgnoredFile",
    description: "The ignore file takes this file out of the context, so that it cannot be copied",
    url: Some("https://docs.docker.com/go/dockerfile/rule/copy-ignored-file/"),
    experimental: false,
};

/// Looks at one source in the context. Where a pattern takes files back (`!`) nothing is certain, and nothing is said.
pub(crate) fn source(place: Place<'_>, ask: &dyn Ask, patterns: &[String], add: bool, source: &str) {
    if patterns.is_empty() || patterns.iter().any(|pattern| pattern.starts_with('!')) {
        return;
    }
    let source = path::clean(source);
    // The context itself is ignored only by a pattern for everything.
    let everything = |pattern: &String| matches!(pattern.as_str(), "*" | "**" | "**/*");
    if matches!(source.as_str(), "." | "/") && !patterns.iter().any(everything) {
        return;
    }
    if ask.ignored(patterns, &source) {
        let verb = if add { "Add" } else { "Copy" };
        let message = format!("Attempting to {verb} file {} that is excluded by .dockerignore", quote(&source));
        place.scope.report(&COPY, place.span, message);
    }
}
