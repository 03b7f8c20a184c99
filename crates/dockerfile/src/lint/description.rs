//! Comments that describe a stage or an argument.

use super::{Place, Rule};

pub(super) const DEFINITION: Rule = Rule {
    name: "InvalidDefinitionDescription",
    description: "A comment right above a stage or an argument describes it and should begin with its name; \
                  put an empty line or an empty comment in between if it is something else",
    url: Some("https://docs.docker.com/go/dockerfile/rule/invalid-definition-description/"),
    experimental: true,
};

/// `names` are what the instruction defines.
pub(crate) fn definition(place: Place<'_>, instruction: &str, names: &[&str], comments: &[String]) {
    let (Some(comment), Some(first)) = (comments.last(), names.first()) else { return };
    let word = comment.split(' ').next().unwrap_or_default();
    if names.contains(&word) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    let message = format!("Comment for {instruction} should follow the format: `# {example} <description>`");
    place.scope.report(&DEFINITION, place.span, message);
}
