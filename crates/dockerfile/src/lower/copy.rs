//! `COPY` and `ADD`.

use std::sync::LazyLock;

use base::{Digest, SourceSpan};
use llb::build::{Chmod, Constraints, CopyInfo, FileAction, Git, Http, Owner, State, User};
use llb::{path, pb};
use regex::Regex;

use super::stage::Step;
use super::{Lowering, base_image, display, line_spans, uppercase_first};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::git::Repository;
use crate::instruction::Copy;
use crate::lint;

/// Modes as `chmod` takes them.
static SYMBOLIC: LazyLock<Regex> = LazyLock::new(|| {
    let clause = "[ugoa]*(?:[-+=](?:[rwxXst]*|[ugo]))+";
    Regex::new(&format!("^{clause}(?:,{clause})*$")).expect("a constant")
});

/// Passwords of addresses, which variables may have brought.
static PASSWORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(://[^/@:\s]*:)[^/@\s]+@").expect("a constant"));

/// `dir` from `parent`, absolute. Spelled as upstream does: what is absolute already stays as it is.
pub(super) fn absolute(parent: &str, dir: &str) -> String {
    let parent = match parent {
        "" => "/".to_owned(),
        parent if path::is_abs(parent) => parent.to_owned(),
        parent => path::join(&["/", parent]),
    };
    match dir {
        "" => parent,
        dir if path::is_abs(dir) => dir.to_owned(),
        dir => path::join(&[&parent, dir]),
    }
}

/// A destination from the working directory. What says that it is a directory stays.
fn destination(workdir: &str, dest: &str) -> String {
    if path::is_abs(dest) {
        return dest.to_owned();
    }
    let dest = if dest.is_empty() || dest == "." { "./" } else { dest };
    let mut out = absolute(workdir, dest);
    if dest.ends_with('/') && !out.ends_with('/') {
        out.push('/');
    } else if dest.ends_with("/.") {
        if out != "/" {
            out.push('/');
        }
        out.push('.');
    }
    out
}

struct Plan<'a> {
    copy: &'a Copy,
    dest: String,
    chmod: Option<Chmod>,
    owner: Option<Owner>,
    /// What progress displays call the step.
    name: String,
}

impl Lowering<'_> {
    /// `copy` has its variables expanded.
    pub(super) fn copy(&mut self, index: usize, step: &Step, copy: &Copy) -> Result<()> {
        let span = step.instruction.span;
        check(copy)?;
        let state = self.stages[index].state.clone();
        let text = uppercase_first(&display(self.lexer, step.instruction.code.trim(), &**state.env()));
        // Progress and logs are read by more people than the Dockerfile.
        let text = PASSWORD.replace_all(&text, "${1}xxxxx@");
        let plan = Plan {
            copy,
            dest: destination(state.dir(), &copy.dest),
            chmod: chmod(&copy.chmod)?,
            owner: owner(copy, &state)?,
            name: self.step_name(index, step.trigger, &text),
        };
        let mut actions = Vec::new();
        for source in &copy.sources {
            actions.push(self.copy_source_action(step, &plan, source)?);
        }
        for inline in &copy.inline {
            let file = FileAction::Mkfile {
                path: inline.name.clone(),
                mode: 0o644,
                data: inline.content.clone().into_bytes(),
                owner: None,
                created: None,
            };
            let inline_state = self.inline_file(index, file);
            actions.push(plan.action(CopyInfo::new(&inline_state, &inline.name, &plan.dest)));
        }
        let named = self.step_constraints(index, &plan.name, span);
        let state = if stands_alone(copy) {
            self.link(index, step, actions, &text, named)
        } else {
            self.builder.file(&state, actions, named)
        };
        let history = history(copy);
        let epoch = self.history_time();
        let stage = &mut self.stages[index];
        stage.state = state;
        stage.record(epoch, history, true)
    }

    /// A file written in the Dockerfile, alone in a file system.
    pub(super) fn inline_file(&mut self, index: usize, file: FileAction) -> State {
        let mut constraints = Constraints::named("[internal] preparing inline document");
        constraints.platform.clone_from(&self.stages[index].platform);
        self.builder.file(&State::scratch(), vec![file], constraints)
    }

    pub(super) fn step_constraints(&self, index: usize, name: &str, span: SourceSpan) -> Constraints {
        let mut constraints = Constraints::named(name).at(self.source_map, &line_spans(&[span]));
        constraints.ignore_cache = self.stages[index].ignore_cache;
        constraints
    }

    fn copy_source_action(&mut self, step: &Step, plan: &Plan<'_>, source: &str) -> Result<FileAction> {
        let found = Repository::parse(source).map_err(Error::new)?.filter(|repository| !repository.ambiguous);
        if let Some(found) = found {
            return self.add_repository(plan, &found);
        }
        if is_address(source) {
            return self.add_download(plan, source);
        }
        let from = match step.sources.first() {
            None => {
                self.check_ignored(plan.copy.add, source)?;
                self.need_context_path(source);
                self.use_context()
            }
            Some(&stage) => {
                if !self.stages[stage].dispatched {
                    return Err(self.too_late(stage, "copy"));
                }
                self.need_stage_path(stage, source);
                self.stages[stage].state.clone()
            }
        };
        let (src, include, required) = if plan.copy.parents { parents(source) } else { (source, vec![], vec![]) };
        let mut copy = CopyInfo::new(&from, &absolute("/", src), &plan.dest);
        copy.follow_symlinks = true;
        copy.contents_only = true;
        copy.include = include;
        copy.required = required;
        copy.unpack = plan.copy.unpack.unwrap_or(plan.copy.add);
        copy.wildcard = true;
        copy.empty_wildcard = true;
        Ok(plan.action(copy))
    }

    /// Says so if the ignore file takes the source out of the context.
    fn check_ignored(&self, add: bool, source: &str) -> Result<()> {
        if matches!(self.input.context, Context::Local) {
            lint::ignored::source(self.place(), self.input.ask, &self.ignore_patterns()?, add, source);
        }
        Ok(())
    }

    /// The mistake of needing a stage that comes later.
    pub(super) fn too_late(&self, stage: usize, what: &str) -> Error {
        let stage = &self.stages[stage];
        let error = Error::new(format!(
            "cannot {what} from stage \"{}\", it needs to be defined before current stage",
            stage.shown
        ));
        match stage.span {
            Some(span) => error.hint(format!("put the stage of line {} in front of this one", span.start.0)),
            None => error,
        }
    }

    fn add_repository(&mut self, plan: &Plan<'_>, found: &Repository) -> Result<FileAction> {
        let state = self.builder.git(&repository(plan.copy, found)?, Constraints::named(&plan.name));
        Ok(plan.action(CopyInfo::new(&state, "/", &plan.dest)))
    }

    fn add_download(&mut self, plan: &Plan<'_>, url: &str) -> Result<FileAction> {
        let http = download(plan.copy, url)?;
        let mut constraints = Constraints::named(&plan.name);
        constraints.description.insert(base_image::COMMAND.to_owned(), String::new());
        let state = self.builder.http(&http, constraints);
        let mut info = CopyInfo::new(&state, &http.filename, &plan.dest);
        info.unpack = plan.copy.unpack.unwrap_or(false);
        Ok(plan.action(info))
    }

    /// The files in a layer of their own, laid over the stage: what is below may change without copying again.
    fn link(
        &mut self,
        index: usize,
        step: &Step,
        actions: Vec<FileAction>,
        text: &str,
        constraints: Constraints,
    ) -> State {
        let name = self.same_step_name(index, step.trigger, text);
        let group = |weak| {
            let id = format!("link-{}-{}", self.stages[index].shown, self.stages[index].step);
            Some(pb::ProgressGroup { id: format!("{id}-{}", self.target_platform), name: name.clone(), weak })
        };
        let mut copy = constraints.clone();
        copy.platform.clone_from(&self.stages[index].platform);
        copy.progress_group = group(true);
        let mut merge = constraints.name(self.same_step_name(index, step.trigger, &format!("LINK {text}")));
        merge.progress_group = group(false);
        let state = self.stages[index].state.clone();
        let files = self.builder.file(&State::scratch(), actions, copy);
        let merged = self.builder.merge(&[state.clone(), files], merge);
        state.with_output(merged.output())
    }
}

impl Plan<'_> {
    fn action(&self, mut info: CopyInfo) -> FileAction {
        info.chmod.clone_from(&self.chmod);
        info.owner.clone_from(&self.owner);
        info.exclude.clone_from(&self.copy.exclude);
        FileAction::Copy(Box::new(info))
    }
}

fn check(copy: &Copy) -> Result<()> {
    if copy.checksum.is_empty() {
        return Ok(());
    }
    let [source] = &copy.sources[..] else { return Err(Error::new("--checksum needs exactly one source")) };
    if is_address(source) || Repository::parse(source).is_ok_and(|repository| repository.is_some()) {
        return Ok(());
    }
    Err(Error::new(format!("--checksum needs a source from the network, not `{source}`")))
}

fn chmod(text: &str) -> Result<Option<Chmod>> {
    if text.is_empty() {
        return Ok(None);
    }
    match u32::from_str_radix(text, 8) {
        Ok(bits) if bits <= 0o7777 => Ok(Some(Chmod::Bits(bits))),
        _ if SYMBOLIC.is_match(text) => Ok(Some(Chmod::Symbolic(text.to_owned()))),
        _ => {
            let error = Error::new(format!(
                "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
            ));
            Err(error.hint("letters such as u+rwX,go=rX are good, too"))
        }
    }
}

/// The commit that an `ADD` adds.
pub(super) fn repository(copy: &Copy, repository: &Repository) -> Result<Git> {
    if !copy.add {
        return Err(Error::new("COPY takes no git repository").hint("ADD does"));
    }
    let mut git = repository.source();
    if let (Some(flag), Some(query)) = (copy.keep_git_dir, repository.keep_git_dir)
        && flag != query
    {
        return Err(Error::new("--keep-git-dir and the address of the git repository contradict each other"));
    }
    git.keep_git_dir |= copy.keep_git_dir.unwrap_or(false) && repository.keep_git_dir.is_none();
    git.mtime.clear();
    if git.checksum.is_empty() {
        git.checksum.clone_from(&copy.checksum);
    } else if !copy.checksum.is_empty() && git.checksum != copy.checksum {
        return Err(Error::new("--checksum and the address of the git repository contradict each other"));
    }
    Ok(git)
}

/// The file of the web that an `ADD` adds.
pub(super) fn download(copy: &Copy, url: &str) -> Result<Http> {
    if !copy.add {
        return Err(Error::new(format!("COPY takes no address: `{url}`")).hint("ADD does"));
    }
    let checksum = match copy.checksum.as_str() {
        "" => None,
        text => Some(text.parse::<Digest>().map_err(|e| Error::new(format!("--checksum: {e}")))?),
    };
    Ok(Http { url: url.to_owned(), filename: file_of(url), checksum })
}

/// An address of the web that is no git repository.
pub(super) fn is_address(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// The file name in an address.
fn file_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let path = rest.find('/').map_or("", |slash| &rest[slash..]);
    let path = crate::git::decode(path, false);
    match path::base(&path) {
        "." | "/" => "__unnamed__".to_owned(),
        name => name.to_owned(),
    }
}

/// `--parents`: where to copy from, the pattern below it, and the path that must exist if nothing is a pattern.
/// `/./` marks where the kept part begins.
fn parents(source: &str) -> (&str, Vec<String>, Vec<String>) {
    let (root, below) = source.split_once("/./").unwrap_or(("/", source));
    let pattern = absolute("/", below);
    let required = if is_pattern(root) || is_pattern(&pattern) {
        Vec::new()
    } else {
        vec![absolute("/", &path::join(&[root, &pattern]))]
    };
    (root, vec![pattern.strip_prefix('/').unwrap_or(&pattern).to_owned()], required)
}

/// Whether it becomes a layer that does not read what it is laid upon.
fn stands_alone(copy: &Copy) -> bool {
    copy.link && copy.chmod.is_empty()
}

fn owner(copy: &Copy, state: &State) -> Result<Option<Owner>> {
    if copy.chown.is_empty() {
        return Ok(None);
    }
    let owner = Owner::parse(&copy.chown);
    let named = [&owner.user, &owner.group].into_iter().flatten().any(|user| matches!(user, User::Name(_)));
    if named && (stands_alone(copy) || state.output().is_none()) {
        let chown = &copy.chown;
        let error = Error::new(format!("`--chown={chown}` is a name, and there is no /etc/passwd to look it up in"));
        return Err(match stands_alone(copy) {
            true => error.hint("`--link` copies onto nothing: write numbers, or leave `--link` out"),
            false => error.hint("write numbers: what is built on is empty"),
        });
    }
    Ok(Some(owner))
}

fn is_pattern(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => _ = chars.next(),
            _ => {}
        }
    }
    false
}

fn history(copy: &Copy) -> String {
    let mut out = String::from(if copy.add { "ADD" } else { "COPY" });
    if copy.parents {
        out.push_str(" --parents");
    }
    for (flag, value) in [("chown", &copy.chown), ("chmod", &copy.chmod)] {
        if !value.is_empty() {
            out.push_str(&format!(" --{flag}={value}"));
        }
    }
    for source in &copy.sources {
        out.push_str(&format!(" {source}"));
    }
    for inline in &copy.inline {
        out.push_str(&format!(" <<{}", inline.name));
    }
    format!("{out} {} # buildkit", copy.dest)
}
