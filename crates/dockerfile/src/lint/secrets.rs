//! Secrets in the image's configuration and history.

use super::{Place, Rule};
use base::gotext::quote;

pub(super) const IN_ARG_OR_ENV: Rule = Rule {
    name: "SecretsUsedInArgOrEnv",
    description: "Whoever has the image can read its ARG and ENV: give secrets by RUN --mount=type=secret",
    url: Some("https://docs.docker.com/go/dockerfile/rule/secrets-used-in-arg-or-env/"),
    experimental: false,
};

/// Words of a name that make it a secret's.
const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
/// Words that make it harmless again.
const HARMLESS: [&str; 3] = ["public", "file", "version"];

pub(crate) fn name(place: Place<'_>, instruction: &str, name: &str) {
    let has = |words: &[&str]| name.split('_').any(|word| words.iter().any(|known| word.eq_ignore_ascii_case(known)));
    if has(&SECRET) && !has(&HARMLESS) {
        let message = format!("Do not use ARG or ENV instructions for sensitive data ({instruction} {})", quote(name));
        place.scope.report(&IN_ARG_OR_ENV, place.span, message);
    }
}
