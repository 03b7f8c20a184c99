//! Variables that nobody sets.

use std::collections::BTreeSet;

use image::Reference;
use llb::build::Env;

use super::{Linter, Place, Rule};
use crate::expand::Lexer;
use crate::instruction::{Arg, Stage};
use base::suggest::nearest;

pub(super) const UNDEFINED: Rule = Rule {
    name: "UndefinedVar",
    description: "A variable that nothing sets is empty: declare it by ARG or ENV before it is used",
    url: Some("https://docs.docker.com/go/dockerfile/rule/undefined-var/"),
    experimental: false,
};
pub(super) const UNDEFINED_ARG_IN_FROM: Rule = Rule {
    name: "UndefinedArgInFrom",
    description: "FROM knows only arguments that are declared in front of the first FROM",
    url: Some("https://docs.docker.com/go/dockerfile/rule/undefined-arg-in-from/"),
    experimental: false,
};
pub(super) const INVALID_DEFAULT_ARG_IN_FROM: Rule = Rule {
    name: "InvalidDefaultArgInFrom",
    description: "Without build arguments the name of the base image is empty or malformed",
    url: Some("https://docs.docker.com/go/dockerfile/rule/invalid-default-arg-in-from/"),
    experimental: false,
};

/// What an instruction of a stage uses; `declared` are the stage's arguments, with or without a value.
pub(crate) fn used(place: Place<'_>, unmatched: &BTreeSet<String>, declared: &[Arg], env: &Env) {
    let set = |name: &str| declared.iter().any(|arg| arg.key == name) || crate::lower::is_for_scanners(name);
    for name in unmatched.iter().filter(|name| !set(name)) {
        let meant = nearest(name, env.iter().map(|(key, _)| key));
        let meant = meant.map(|meant| format!(" (did you mean ${meant}?)")).unwrap_or_default();
        place.scope.report(&UNDEFINED, place.span, format!("Usage of undefined variable '${name}'{meant}"));
    }
}

/// What a `FROM` uses; `declared` are all arguments in front of the first one.
pub(crate) fn used_in_from(place: Place<'_>, unmatched: &BTreeSet<String>, declared: &BTreeSet<&str>) {
    for name in unmatched.iter().filter(|name| !declared.contains(name.as_str())) {
        let meant = nearest(name, declared.iter().copied());
        let meant = meant.map(|meant| format!(" (did you mean {meant}?)")).unwrap_or_default();
        place.scope.report(
            &UNDEFINED_ARG_IN_FROM,
            place.span,
            format!("FROM argument '{name}' is not declared{meant}"),
        );
    }
}

/// Looks at all base images as they are without build arguments.
pub(crate) fn defaults_in_from(linter: &Linter<'_>, stages: &[Stage], lexer: Lexer, defaults: &Env) {
    let scope = linter.scope();
    for stage in stages {
        // What cannot be expanded is an error later.
        let Ok(base) = lexer.expand(&stage.from.base, defaults) else { return };
        if Reference::parse(&base.text).is_err() {
            let typed = &stage.from.base;
            let message = format!("Default value for ARG {typed} results in empty or invalid base image name");
            scope.report(&INVALID_DEFAULT_ARG_IN_FROM, stage.span, message);
        }
    }
}
