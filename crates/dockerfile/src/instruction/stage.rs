//! `FROM`, and how instructions group into stages.

use base::SourceSpan;

use super::{Arg, From, Instruction, Kind, flag::Flags, words};
use crate::error::{Error, Result};
use crate::lint::{self, Linter, Place};
use crate::parse::{Document, Line};

/// `FROM` and what follows it.
#[derive(Clone, Debug)]
pub struct Stage {
    /// `FROM` as it was typed.
    pub keyword: String,
    /// What it starts from.
    pub from: From,
    /// The `FROM` line.
    pub code: String,
    /// Where the `FROM` is.
    pub span: SourceSpan,
    /// The comments right above.
    pub comments: Vec<String>,
    /// Its instructions.
    pub instructions: Vec<Instruction>,
}

pub(super) fn parse_from(line: &Line, flags: &mut Flags<'_>) -> Result<Kind> {
    let (base, name) = match words(line) {
        [] => return Err(Error::new("FROM needs an image or stage")),
        [base] => (base, None),
        [base, as_, name] if as_.eq_ignore_ascii_case("as") => (base, Some(stage_name(name)?)),
        [_, as_] if as_.eq_ignore_ascii_case("as") => return Err(Error::new("FROM lacks a name after AS")),
        [base, name] => {
            let error = Error::new(format!("FROM takes an image and perhaps AS and a name, not `{base} {name}`"));
            return Err(error.hint(format!("write FROM {base} AS {name}")));
        }
        words => {
            let words = words.join(" ");
            return Err(Error::new(format!("FROM takes an image and perhaps AS and a name, not `{words}`")));
        }
    };
    Ok(Kind::From(From { base: base.clone(), name, platform: flags.text("platform")?.filter(|p| !p.is_empty()) }))
}

fn stage_name(typed: &str) -> Result<String> {
    let name = typed.to_lowercase();
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    let rest = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
    if starts && rest {
        return Ok(name);
    }
    let error = Error::new(format!("`{typed}` is not a stage name"));
    Err(error.hint("a stage name starts with a letter and goes on with letters, digits, `-`, `_` and `.`"))
}

/// One `ARG` in front of the first stage.
#[derive(Clone, Debug)]
pub struct GlobalArgs {
    /// What it declares.
    pub args: Vec<Arg>,
    /// Where it is.
    pub span: SourceSpan,
    /// The comments right above.
    pub comments: Vec<String>,
}

/// What stands in front of the first stage, and the stages.
pub(crate) fn stages(document: Document, linter: &Linter<'_>) -> Result<(Vec<GlobalArgs>, Vec<Stage>)> {
    let mut globals = Vec::new();
    let mut stages: Vec<Stage> = Vec::new();
    for line in document.lines {
        let scope = linter.scope_of(&line.comments);
        let place = Place { scope: &scope, span: line.span };
        check_line(place, &line);
        let instruction = super::parse(line)?;
        check_definition(place, &instruction);
        match instruction {
            Instruction { kind: Kind::From(from), name: keyword, code, span, comments } => {
                stages.push(Stage { keyword, from, code, span, comments, instructions: Vec::new() });
            }
            Instruction { kind: Kind::Arg(args), span, comments, .. } if stages.is_empty() => {
                globals.push(GlobalArgs { args, span, comments });
            }
            instruction => match stages.last_mut() {
                Some(stage) => stage.instructions.push(instruction),
                None => {
                    let name = instruction.name.to_ascii_uppercase();
                    let error = Error::new(format!("{name} stands before the first FROM"));
                    return Err(error.at(instruction.span).hint("only ARG can stand before FROM"));
                }
            },
        }
    }
    if stages.is_empty() {
        return Err(Error::new("dockerfile contains no stages to build: it has no FROM"));
    }
    Ok((globals, stages))
}

/// Checks that come before the line is understood.
fn check_line(place: Place<'_>, line: &Line) {
    if line.name.eq_ignore_ascii_case("MAINTAINER") {
        lint::deprecated::maintainer(place);
    }
    if line.name.eq_ignore_ascii_case("FROM") {
        lint::casing::from(place, line);
    }
}

fn check_definition(place: Place<'_>, instruction: &Instruction) {
    let comments = &instruction.comments;
    match &instruction.kind {
        Kind::From(from) => {
            let name: Vec<&str> = from.name.as_deref().into_iter().collect();
            lint::description::definition(place, "FROM", &name, comments);
        }
        Kind::Arg(args) => {
            let names: Vec<&str> = args.iter().map(|arg| arg.key.as_str()).collect();
            lint::description::definition(place, "ARG", &names, comments);
        }
        _ => {}
    }
}
