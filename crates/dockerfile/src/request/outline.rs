//! `frontend.outline`: what a target can be told: arguments, secrets, SSH agents.

use std::collections::{BTreeMap, BTreeSet};

use base::SourceSpan;
use serde_json::Value;

use super::{About, Answer, Definition, json, result, text};
use crate::error::Result;
use crate::frontend::Read;
use crate::lint::{Audience, Linter};
use crate::lower;

pub(super) const DEFINITION: Definition = Definition {
    name: "frontend.outline",
    description: "List all parameters current build target supports",
    options: Some(&[("target", "Target build stage")]),
};

/// What a stage uses, noted while it is lowered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Capture {
    /// Arguments of its `FROM` and of its own.
    pub used: BTreeSet<String>,
    /// What it declares itself.
    pub arguments: BTreeMap<String, Argument>,
    /// Whether they are required, and where they are named first.
    pub secrets: BTreeMap<String, (bool, SourceSpan)>,
    /// The same.
    pub agents: BTreeMap<String, (bool, SourceSpan)>,
}

/// A build argument.
#[derive(Clone, Debug)]
pub(crate) struct Argument {
    /// Its value, where it has one.
    pub value: String,
    /// The comment above it.
    pub description: String,
    /// Arguments that its default uses.
    pub uses: BTreeSet<String>,
    pub span: SourceSpan,
}

/// The outline of a target.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    pub name: String,
    pub description: String,
    pub arguments: Vec<(String, Argument)>,
    pub secrets: Vec<(String, bool, SourceSpan)>,
    pub agents: Vec<(String, bool, SourceSpan)>,
}

impl Outline {
    /// Adds what a stage uses and nobody did before it. `globals` are the arguments in front of the first stage.
    pub fn add(&mut self, capture: &Capture, globals: &BTreeMap<String, Argument>) {
        let find = |name: &str| capture.arguments.get(name).or_else(|| globals.get(name));
        let mut todo: Vec<&String> = capture.used.iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(name) = todo.pop() {
            if !seen.insert(name) {
                continue;
            }
            let Some(argument) = find(name) else { continue };
            todo.extend(&argument.uses);
            if !self.arguments.iter().any(|(known, _)| known == name) {
                self.arguments.push((name.clone(), argument.clone()));
            }
        }
        for (list, found) in [(&mut self.secrets, &capture.secrets), (&mut self.agents, &capture.agents)] {
            for (name, (required, span)) in found {
                if !list.iter().any(|(known, ..)| known == name) {
                    list.push((name.clone(), *required, *span));
                }
            }
        }
    }

    /// In the order of the file.
    fn sorted(mut self) -> Outline {
        self.arguments.sort_by(|(a, one), (b, other)| (one.span.start, a).cmp(&(other.span.start, b)));
        for list in [&mut self.secrets, &mut self.agents] {
            list.sort_by(|(a, _, one), (b, _, other)| (one.start, a).cmp(&(other.start, b)));
        }
        self
    }
}

pub(super) fn answer(about: &About<'_>) -> Result<Answer> {
    let found = about.found;
    let settings = crate::frontend::check_settings(about.options, found)?;
    let linter = Linter::new(settings, (&found.file, found.vertex), Audience::Told(about.ask));
    let read = Read::new(about, &linter)?;
    let outline = lower::outline(&read.input(about, &linter))?.sorted();
    let argument = |(name, argument): &(String, Argument)| {
        json::object([
            ("name", Some(name.as_str().into())),
            ("description", json::text(&argument.description)),
            ("value", json::text(&argument.value)),
            ("location", Some(json::location(&[argument.span]))),
        ])
    };
    let credential = |(name, required, span): &(String, bool, SourceSpan)| {
        json::object([
            ("name", Some(name.as_str().into())),
            ("required", json::flag(*required)),
            ("location", Some(json::location(&[*span]))),
        ])
    };
    let json = json::object([
        ("name", json::text(&outline.name)),
        ("description", json::text(&outline.description)),
        ("args", json::list(outline.arguments.iter().map(argument))),
        ("secrets", json::list(outline.secrets.iter().map(credential))),
        ("ssh", json::list(outline.agents.iter().map(credential))),
        ("sources", Some(Value::Array(vec![json::bytes(&found.file.data)]))),
    ]);
    Ok(result(&json, printed(&outline)))
}

fn printed(outline: &Outline) -> String {
    let mut out = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let described = vec!["DESCRIPTION:".to_owned(), outline.description.clone()];
        let rows = if outline.description.is_empty() { Vec::new() } else { vec![described] };
        out.push_str(&text::table(&["TARGET:", name], rows, 1));
        out.push('\n');
    }
    if !outline.arguments.is_empty() {
        let row = |(name, argument): &(String, Argument)| {
            vec![name.clone(), argument.value.clone(), argument.description.clone()]
        };
        let rows = outline.arguments.iter().map(row).collect();
        out.push_str(&text::table(&["BUILD ARG", "VALUE", "DESCRIPTION"], rows, 3));
        out.push('\n');
    }
    for (title, list) in [("SECRET", &outline.secrets), ("SSH", &outline.agents)] {
        if !list.is_empty() {
            let row = |(name, required, _): &(String, bool, SourceSpan)| {
                vec![name.clone(), if *required { "true" } else { "" }.to_owned()]
            };
            out.push_str(&text::table(&[title, "REQUIRED"], list.iter().map(row).collect(), 3));
            out.push('\n');
        }
    }
    out
}
