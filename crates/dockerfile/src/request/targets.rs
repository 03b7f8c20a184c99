//! `frontend.targets`: the stages of a Dockerfile.

use serde_json::{Value, json};

use super::{About, Answer, Definition, json, result, text};
use crate::error::Result;
use crate::lint::{Audience, Linter, Settings};
use crate::{instruction, parse};

pub(super) const DEFINITION: Definition =
    Definition { name: "frontend.targets", description: "List all targets current build supports", options: Some(&[]) };

pub(super) fn answer(about: &About<'_>) -> Result<Answer> {
    let found = about.found;
    let linter = Linter::new(Settings::default(), (&found.file, found.vertex), Audience::Nobody);
    let (_, stages) = instruction::stages(parse::parse(&found.file.data)?, &linter)?;
    let mut targets = Vec::new();
    let mut rows = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let is_default = index + 1 == stages.len();
        let name = stage.from.name.as_deref().unwrap_or_default();
        let description = text::description(&stage.comments, name);
        targets.push(json::object([
            ("name", json::text(name)),
            ("default", json::flag(is_default)),
            ("description", json::text(&description)),
            ("base", json::text(&stage.from.base)),
            ("platform", json::text(stage.from.platform.as_deref().unwrap_or_default())),
            ("location", Some(json::location(&[stage.span]))),
        ]));
        let shown = match (name, is_default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        rows.push(vec![shown, description]);
    }
    let json = json!({ "targets": Value::Array(targets), "sources": [json::bytes(&found.file.data)] });
    Ok(result(&json, text::table(&["TARGET", "DESCRIPTION"], rows, 1)))
}
