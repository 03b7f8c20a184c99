//! Build checks: what works and may not be meant.
//!
//! A rule is a constant and one function that looks and reports; the code that knows the facts calls it: parsing,
//! the walk over the `FROM` lines, the walk over the instructions. Rules, their names, pages and texts are BuildKit's,
//! since editors and CI match on them; `tests/checks.txt` holds what upstream says about the same Dockerfiles.
//!
//! `# check=` at the top of the file, or the build argument in its place, sets what is skipped and whether a warning
//! fails the build. The same comment above an instruction counts for that instruction ([`Scope`]).

pub(crate) mod casing;
pub(crate) mod command;
pub(crate) mod continuation;
pub(crate) mod deprecated;
pub(crate) mod description;
pub(crate) mod expose;
pub(crate) mod ignored;
pub(crate) mod platform;
pub(crate) mod secrets;
mod settings;
pub(crate) mod stage_name;
pub(crate) mod variables;
pub(crate) mod workdir;

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

use base::{Digest, SourceFile, SourceSpan};

use crate::ask::Ask;
use crate::error::{Error, Mistake, Result};
pub(crate) use settings::{HINT as SETTINGS_HINT, Settings};

/// A rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// What `skip=` names.
    pub name: &'static str,
    /// What it is about, for those who want to know more.
    pub description: &'static str,
    /// A page about it.
    pub url: Option<&'static str>,
    /// Looked at only if `experimental=` says so.
    pub experimental: bool,
}

/// Something that works and may not be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The rule, `NoEmptyContinuation`.
    pub rule: &'static str,
    /// What was found.
    pub message: String,
    /// What the rule is about.
    pub description: &'static str,
    /// A page about the rule.
    pub url: Option<&'static str>,
    /// Where: one span for each line.
    pub spans: Vec<SourceSpan>,
    /// The Dockerfile.
    pub file: Arc<SourceFile>,
    /// The vertex that it was read by.
    pub vertex: Digest,
}

impl Warning {
    /// All in one line, as displays show it: `StageNameCasing: Stage name 'A' should be lowercase (line 1)`.
    pub fn short(&self) -> String {
        match self.spans.first() {
            Some(span) => format!("{}: {} (line {})", self.rule, self.message, span.start.0),
            None => format!("{}: {}", self.rule, self.message),
        }
    }
}

/// Who is told of findings.
#[derive(Clone, Copy)]
pub(crate) enum Audience<'a> {
    /// Nobody: a further platform would say the same again.
    Nobody,
    /// Whoever asked, at once.
    Told(&'a dyn Ask),
    /// Whoever looks at the end.
    Kept,
}

/// Where findings go. It speaks of each thing once.
pub(crate) struct Linter<'a> {
    settings: Settings,
    file: &'a Arc<SourceFile>,
    vertex: Digest,
    audience: Audience<'a>,
    said: RefCell<Vec<Warning>>,
}

/// The linter as the comments above one instruction set it.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Who reports.
    pub scope: &'a Scope<'a>,
    /// The instruction.
    pub span: SourceSpan,
}

/// The linter with the settings of one instruction.
#[derive(Clone)]
pub(crate) struct Scope<'a> {
    linter: &'a Linter<'a>,
    settings: Cow<'a, Settings>,
}

impl<'a> Linter<'a> {
    /// For a file that was read by a vertex.
    pub fn new(
        settings: Settings,
        (file, vertex): (&'a Arc<SourceFile>, Digest),
        audience: Audience<'a>,
    ) -> Linter<'a> {
        Linter { settings, file, vertex, audience, said: RefCell::new(Vec::new()) }
    }

    /// For the whole file.
    pub fn scope(&'a self) -> Scope<'a> {
        Scope { linter: self, settings: Cow::Borrowed(&self.settings) }
    }

    /// For an instruction with these comments above it.
    pub fn scope_of(&'a self, comments: &[String]) -> Scope<'a> {
        match comments.iter().find_map(|comment| Settings::of_comment(comment)) {
            Some(own) => Scope { linter: self, settings: Cow::Owned(self.settings.merged(own)) },
            None => self.scope(),
        }
    }

    /// All that was said.
    pub fn into_said(self) -> Vec<Warning> {
        self.said.into_inner()
    }

    /// Fails if a rule has fired and the settings say that this is an error.
    pub fn verdict(&self) -> Result<()> {
        let said = self.said.borrow();
        if !self.settings.error || said.is_empty() {
            return Ok(());
        }
        let mut rules: Vec<&str> = Vec::new();
        let mut spans: Vec<SourceSpan> = Vec::new();
        for warning in said.iter() {
            if !rules.contains(&warning.rule) {
                rules.push(warning.rule);
            }
            spans.extend(warning.spans.iter().filter(|span| !spans.contains(span)).copied().collect::<Vec<_>>());
        }
        spans.sort_by_key(|span| span.start);
        let message = format!("lint violation found for rules: {}", rules.join(", "));
        let hint = "change what the warnings name, or let a rule pass: `# check=skip=<rule>` above the instruction";
        Err(Error::Dockerfile(Box::new(Mistake { message, spans, hint: Some(hint.to_owned()) })))
    }
}

impl Scope<'_> {
    /// Reports, unless the rule is off.
    pub fn report(&self, rule: &'static Rule, span: SourceSpan, message: String) {
        let audience = self.linter.audience;
        if matches!(audience, Audience::Nobody) || !self.settings.allows(rule) {
            return;
        }
        let lines = span.start.0..=span.end.0;
        let warning = Warning {
            rule: rule.name,
            message,
            description: rule.description,
            url: rule.url,
            spans: lines.map(|line| SourceSpan::lines(line, line)).collect(),
            file: self.linter.file.clone(),
            vertex: self.linter.vertex,
        };
        let mut said = self.linter.said.borrow_mut();
        if !said.contains(&warning) {
            if let Audience::Told(listener) = audience {
                listener.warn(&warning);
            }
            said.push(warning);
        }
    }
}

#[cfg(test)]
mod tests;
