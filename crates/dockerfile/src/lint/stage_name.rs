//! Names of stages.

use std::collections::BTreeSet;

use super::{Linter, Rule};
use crate::instruction::Stage;
use base::gotext::quote;

pub(super) const DUPLICATE: Rule = Rule {
    name: "DuplicateStageName",
    description: "Of two stages with one name only the last one can be built or copied from",
    url: Some("https://docs.docker.com/go/dockerfile/rule/duplicate-stage-name/"),
    experimental: false,
};
pub(super) const RESERVED: Rule = Rule {
    name: "ReservedStageName",
    description: "`scratch` and `context` mean something of their own and cannot name a stage",
    url: Some("https://docs.docker.com/go/dockerfile/rule/reserved-stage-name/"),
    experimental: false,
};

pub(crate) fn names(linter: &Linter<'_>, stages: &[Stage]) {
    let scope = linter.scope();
    let mut seen = BTreeSet::new();
    for stage in stages {
        let Some(name) = &stage.from.name else { continue };
        if matches!(name.as_str(), "context" | "scratch") {
            let message = format!("Stage name should not use the same name as reserved stage {}", quote(name));
            scope.report(&RESERVED, stage.span, message);
        }
        if !seen.insert(name) {
            let message = format!("Duplicate stage name {}, stage names should be unique", quote(name));
            scope.report(&DUPLICATE, stage.span, message);
        }
    }
}
