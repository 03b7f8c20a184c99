//! `WORKDIR`.

use llb::path;

use super::{Place, Rule};
use base::gotext::quote;

pub(super) const RELATIVE: Rule = Rule {
    name: "WorkdirRelativePath",
    description: "A relative working directory begins where the base image's ends, which another version may change",
    url: Some("https://docs.docker.com/go/dockerfile/rule/workdir-relative-path/"),
    experimental: false,
};

/// Looks at the first `WORKDIR` of a stage and those that it is made from.
pub(crate) fn first(place: Place<'_>, dir: &str) {
    if !path::is_abs(dir) {
        let message = format!("Relative workdir {} can have unexpected results if the base image changes", quote(dir));
        place.scope.report(&RELATIVE, place.span, message);
    }
}
