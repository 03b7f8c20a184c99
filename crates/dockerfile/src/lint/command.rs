//! `CMD`, `ENTRYPOINT` and `HEALTHCHECK`.

use base::SourceSpan;

use super::{Place, Rule};

pub(super) const JSON_ARGS: Rule = Rule {
    name: "JSONArgsRecommended",
    description: "A shell between the container and its program keeps signals from it; the JSON form starts none",
    url: Some("https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"),
    experimental: false,
};
pub(super) const MULTIPLE: Rule = Rule {
    name: "MultipleInstructionsDisallowed",
    description: "Of several CMD, ENTRYPOINT or HEALTHCHECK in one stage only the last one counts",
    url: Some("https://docs.docker.com/go/dockerfile/rule/multiple-instructions-disallowed/"),
    experimental: false,
};

/// A shell form is fine where the file or the image chose the shell.
pub(crate) fn form(place: Place<'_>, name: &str, shell_form: bool, shell: &[String]) {
    if shell_form && shell.is_empty() {
        let message =
            format!("JSON arguments recommended for {name} to prevent unintended behavior related to OS signals");
        place.scope.report(&JSON_ARGS, place.span, message);
    }
}

/// The one before is marked: it is the one that does not count. Remembers this one in its place.
pub(crate) fn once(place: Place<'_>, name: &str, before: &mut Option<SourceSpan>) {
    if let Some(before) = before.replace(place.span) {
        let message = format!(
            "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
        );
        place.scope.report(&MULTIPLE, before, message);
    }
}
