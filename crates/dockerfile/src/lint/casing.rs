//! Upper and lower case: stage names, `FROM .. as`, and instructions.

use super::{Linter, Place, Rule};
use crate::instruction::Stage;
use crate::parse::{Args, Line};

pub(super) const STAGE_NAME: Rule = Rule {
    name: "StageNameCasing",
    description: "Names of stages are compared in lower case and should be written so",
    url: Some("https://docs.docker.com/go/dockerfile/rule/stage-name-casing/"),
    experimental: false,
};
pub(super) const FROM_AS: Rule = Rule {
    name: "FromAsCasing",
    description: "FROM and its AS should both be in upper case or both in lower case",
    url: Some("https://docs.docker.com/go/dockerfile/rule/from-as-casing/"),
    experimental: false,
};
pub(super) const INSTRUCTION: Rule = Rule {
    name: "ConsistentInstructionCasing",
    description: "All instructions of a file should be in upper case or all in lower case",
    url: Some("https://docs.docker.com/go/dockerfile/rule/consistent-instruction-casing/"),
    experimental: false,
};

fn is_lower(text: &str) -> bool {
    text == text.to_lowercase()
}

fn is_upper(text: &str) -> bool {
    text == text.to_uppercase()
}

/// Looks at a `FROM` line before anybody knows whether it is right.
pub(crate) fn from(place: Place<'_>, line: &Line) {
    let Args::Words(words) = &line.args else { return };
    if let [_, _, name] = &words[..]
        && !is_lower(name)
    {
        place.scope.report(&STAGE_NAME, place.span, format!("Stage name '{name}' should be lowercase"));
    }
    if let [_, as_, _, ..] = &words[..] {
        // Of a mixed keyword `ConsistentInstructionCasing` speaks.
        let (lower, upper) = (is_lower(&line.name), is_upper(&line.name));
        if (lower && !is_lower(as_)) || (upper && !is_upper(as_)) {
            let message = format!("'{as_}' and '{}' keywords' casing do not match", line.name);
            place.scope.report(&FROM_AS, place.span, message);
        }
    }
}

/// Holds every instruction against what most of them do.
pub(crate) fn instructions(linter: &Linter<'_>, stages: &[Stage]) {
    let typed = || {
        stages.iter().flat_map(|stage| {
            let own = stage.instructions.iter().map(|instruction| (&instruction.name, instruction.span));
            std::iter::once((&stage.keyword, stage.span)).chain(own)
        })
    };
    let lower = typed().filter(|(name, _)| is_lower(name)).count();
    let upper = typed().filter(|(name, _)| !is_lower(name) && is_upper(name)).count();
    let scope = linter.scope();
    for (name, span) in typed() {
        let (fine, wanted) = if lower > upper { (is_lower(name), "lowercase") } else { (is_upper(name), "uppercase") };
        if !fine {
            let message = format!("Command '{name}' should match the case of the command majority ({wanted})");
            scope.report(&INSTRUCTION, span, message);
        }
    }
}
