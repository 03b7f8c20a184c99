//! Instructions with their flags, typed: what was written, before any variable is expanded.

mod copy;
mod csv;
mod flag;
mod health;
mod mount;
mod run;
mod stage;

use base::SourceSpan;

pub use copy::{Copy, Inline};
pub(crate) use csv::fields as csv_fields;
pub use health::Health;
pub(crate) use health::show_duration;
pub(crate) use mount::parse_bool;
pub use mount::{Kind as MountKind, Mount, Sharing};
pub use run::{Device, Network, Run};
pub(crate) use stage::stages;
pub use stage::{GlobalArgs, Stage};

use crate::error::{Error, Result};
use crate::parse::{Args, Heredoc, Line, Pair};
use flag::Flags;

/// All instructions there are.
pub const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// One instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Its name as it was typed.
    pub name: String,
    /// The whole line, continuations joined.
    pub code: String,
    /// Where it is written.
    pub span: SourceSpan,
    /// The comments right above.
    pub comments: Vec<String>,
    /// What it says.
    pub kind: Kind,
}

/// What an instruction says.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Begins a stage.
    From(From),
    /// Declares build arguments.
    Arg(Vec<Arg>),
    /// Sets environment variables.
    Env(Vec<Pair>),
    /// Sets labels.
    Label(Vec<Pair>),
    /// Names the author.
    Maintainer(String),
    /// Runs a command.
    Run(Box<Run>),
    /// `COPY` or `ADD`.
    Copy(Box<Copy>),
    /// Changes the working directory.
    Workdir(String),
    /// Changes the user.
    User(String),
    /// Sets the default command.
    Cmd(CommandLine),
    /// Sets the program of the image.
    Entrypoint(CommandLine),
    /// Declares ports.
    Expose(Vec<String>),
    /// Declares volumes.
    Volume(Vec<String>),
    /// Sets the health check.
    Healthcheck(Health),
    /// Sets the shell of shell forms.
    Shell(Vec<String>),
    /// Sets the signal that stops the container.
    StopSignal(String),
    /// Leaves an instruction to images made from this one.
    Onbuild(String),
}

/// `FROM base [AS name]`.
#[derive(Clone, Debug)]
pub struct From {
    /// Image or stage, variables not expanded.
    pub base: String,
    /// The stage's name in lower case.
    pub name: Option<String>,
    /// `--platform`, variables not expanded.
    pub platform: Option<String>,
}

/// `ARG name[=value]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arg {
    /// The name.
    pub key: String,
    /// The default.
    pub value: Option<String>,
}

/// A command in shell or exec form.
#[derive(Clone, Debug)]
pub struct CommandLine {
    /// Arguments, or one text for the shell.
    pub args: Vec<String>,
    /// Shell form.
    pub shell: bool,
    /// Here-documents (`RUN` only).
    pub heredocs: Vec<Heredoc>,
}

/// Reads what a line says.
pub(crate) fn parse(line: Line) -> Result<Instruction> {
    let span = line.span;
    parse_kind(&line)
        .map(|kind| Instruction { name: line.name, code: line.original, span, comments: line.comments, kind })
        .map_err(|e| e.at(span))
}

fn parse_kind(line: &Line) -> Result<Kind> {
    let name = line.name.to_ascii_uppercase();
    let mut flags = Flags::new(&name, &line.flags);
    let kind = match name.as_str() {
        "FROM" => stage::parse_from(line, &mut flags)?,
        "ARG" => Kind::Arg(parse_args(line)?),
        "ENV" => Kind::Env(parse_pairs(line, &name)?),
        "LABEL" => Kind::Label(parse_pairs(line, &name)?),
        "RUN" => run::parse(line, &mut flags)?,
        "COPY" => copy::parse(line, &mut flags, false)?,
        "ADD" => copy::parse(line, &mut flags, true)?,
        "WORKDIR" => Kind::Workdir(expect_one(line, &name, "a path")?),
        "USER" => Kind::User(expect_one(line, &name, "a user")?),
        "MAINTAINER" => Kind::Maintainer(expect_one(line, &name, "a name")?),
        "STOPSIGNAL" => Kind::StopSignal(expect_one(line, &name, "a signal")?),
        "CMD" => Kind::Cmd(command_line(line)),
        "ENTRYPOINT" => Kind::Entrypoint(command_line(line)),
        "EXPOSE" => {
            let mut ports = expect_some(line, &name, "a port")?.to_vec();
            ports.sort();
            Kind::Expose(ports)
        }
        "VOLUME" => Kind::Volume(parse_volumes(line, &name)?),
        "HEALTHCHECK" => Kind::Healthcheck(health::parse(line, &mut flags)?),
        "SHELL" => Kind::Shell(parse_shell(line)?),
        "ONBUILD" => Kind::Onbuild(parse_onbuild(line)?),
        _ => {
            let error = Error::new(format!("unknown instruction: {}", line.name));
            return Err(error.suggest(&name, NAMES));
        }
    };
    flags.finish()?;
    Ok(kind)
}

/// The words of a line, of a JSON array as well.
fn words(line: &Line) -> &[String] {
    match &line.args {
        Args::Words(words) | Args::Json(words) => words,
        Args::Pairs(_) | Args::Trigger(_) => &[],
    }
}

fn expect_some<'a>(line: &'a Line, name: &str, what: &str) -> Result<&'a [String]> {
    match words(line) {
        [] => Err(Error::new(format!("{name} needs {what}"))),
        some => Ok(some),
    }
}

fn expect_one(line: &Line, name: &str, what: &str) -> Result<String> {
    Ok(expect_some(line, name, what)?[0].clone())
}

fn parse_pairs(line: &Line, name: &str) -> Result<Vec<Pair>> {
    let Args::Pairs(pairs) = &line.args else { return Err(Error::new(format!("{name} needs name=value"))) };
    if pairs.is_empty() {
        return Err(Error::new(format!("{name} needs name=value")));
    }
    match pairs.iter().find(|pair| pair.key.is_empty()) {
        Some(pair) => Err(Error::new(format!("{name} has no name in front of `={}`", pair.value))),
        None => Ok(pairs.clone()),
    }
}

fn parse_args(line: &Line) -> Result<Vec<Arg>> {
    let arg = |word: &String| match word.split_once('=') {
        Some(("", value)) => Err(Error::new(format!("ARG has no name in front of `={value}`"))),
        Some((key, value)) => Ok(Arg { key: key.to_owned(), value: Some(value.to_owned()) }),
        None => Ok(Arg { key: word.clone(), value: None }),
    };
    expect_some(line, "ARG", "a name")?.iter().map(arg).collect()
}

fn parse_volumes(line: &Line, name: &str) -> Result<Vec<String>> {
    let volume = |word: &String| match word.trim() {
        "" => Err(Error::new("VOLUME has an empty path")),
        path => Ok(path.to_owned()),
    };
    expect_some(line, name, "a path")?.iter().map(volume).collect()
}

fn parse_shell(line: &Line) -> Result<Vec<String>> {
    match &line.args {
        Args::Json(shell) if !shell.is_empty() => Ok(shell.clone()),
        Args::Words(words) if !words.is_empty() => {
            let error = Error::new(format!("SHELL needs a JSON array, not `{}`", words.join(" ")));
            Err(error.hint("write SHELL [\"/bin/bash\", \"-c\"]"))
        }
        _ => Err(Error::new("SHELL needs a program").hint("write SHELL [\"/bin/bash\", \"-c\"]")),
    }
}

fn command_line(line: &Line) -> CommandLine {
    let heredocs = line.heredocs.clone();
    match &line.args {
        Args::Json(args) => CommandLine { args: args.clone(), shell: false, heredocs },
        _ => {
            let words = words(line);
            let args = if words.is_empty() { Vec::new() } else { vec![words.join(" ")] };
            CommandLine { args, shell: true, heredocs }
        }
    }
}

fn parse_onbuild(line: &Line) -> Result<String> {
    let Args::Trigger(trigger) = &line.args else { return Err(Error::new("ONBUILD needs an instruction")) };
    let name = trigger.name.to_ascii_uppercase();
    if matches!(name.as_str(), "FROM" | "MAINTAINER") {
        return Err(Error::new(format!("ONBUILD cannot trigger {name}")));
    }
    let mut text = trigger.original.clone();
    for doc in &line.heredocs {
        text.push('\n');
        text.push_str(&doc.content);
        text.push_str(&doc.name);
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
