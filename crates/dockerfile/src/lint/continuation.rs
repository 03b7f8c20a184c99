//! Empty lines inside of an instruction.

use base::SourceSpan;

use super::{Linter, Rule};

pub(super) const EMPTY: Rule = Rule {
    name: "NoEmptyContinuation",
    description: "An empty line after a continued one is passed over today and will be an error one day",
    url: Some("https://docs.docker.com/go/dockerfile/rule/no-empty-continuation/"),
    experimental: false,
};

pub(crate) fn empty(linter: &Linter<'_>, spans: &[SourceSpan]) {
    for span in spans {
        linter.scope().report(&EMPTY, *span, "Empty continuation line".to_owned());
    }
}
