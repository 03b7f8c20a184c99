//! Instructions to LLB and an image configuration, for one platform.
//!
//! The order of work: expand the `FROM` lines; find which stages the target needs; resolve their base images, all at
//! once, until `ONBUILD` triggers bring no new ones; then walk the needed stages in the order of the file. Stages
//! that nobody needs are never looked at.

mod base_image;
mod copy;
mod epoch;
mod expose;
mod named;
mod run;
mod settings;
mod stage;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use base::{Platform, SourceSpan};
use image::{DateTime, ImageConfig};
use jiff::Timestamp;
use llb::build::{Builder, Constraints, Defaults, Env, Local, Output, SourceMap, State};
use llb::pb;

use crate::ask::{Ask, LocalRead, ReadRequest};
use crate::context::Context;
use crate::error::Result;
use crate::expand::{Lexer, Variables};
use crate::ignore;
use crate::instruction;
use crate::instruction::GlobalArgs;
use crate::lint::{self, Linter, Place, Scope};
use crate::options::Options;
use crate::platform;
use crate::request::{Argument, Outline, description};
use stage::Stage;

/// What is lowered.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub info: &'a pb::SourceInfo,
    pub globals: &'a [instruction::GlobalArgs],
    pub stages: &'a [instruction::Stage],
    pub escape: char,
    pub options: &'a Options,
    pub context: &'a Context,
    pub session: &'a str,
    /// Never empty.
    pub build_platforms: &'a [Platform],
    /// Patterns of the context's ignore file, once they are read.
    pub ignore: &'a OnceLock<Vec<String>>,
    pub linter: &'a Linter<'a>,
    pub ask: &'a dyn Ask,
}

/// What became of it.
pub(crate) struct Lowered {
    pub definition: pb::Definition,
    pub image: ImageConfig,
    pub base_image: Option<Arc<ImageConfig>>,
    /// Seconds since 1970.
    pub epoch: Option<i64>,
}

/// Lowers for a platform, or for what the builder runs if none is asked for.
pub(crate) fn lower(input: &Input<'_>, target: Option<&Platform>) -> Result<Lowered> {
    let mut lowering = Lowering::new(input, target)?;
    let target = lowering.walk()?;
    lowering.finish(target)
}

/// Finds out what a target can be told. Of the result only that is kept.
pub(crate) fn outline(input: &Input<'_>) -> Result<Outline> {
    let mut lowering = Lowering::new(input, None)?;
    let target = lowering.walk()?;
    let written = input.stages.get(target);
    let name = lowering.stages[target].name.clone().unwrap_or_default();
    let comments = written.map(|stage| &stage.comments[..]).unwrap_or_default();
    let mut outline = Outline { description: description(comments, &name), name, ..Outline::default() };
    let globals = lowering.global_arguments()?;
    let (mut todo, mut seen) = (vec![target], BTreeSet::new());
    while let Some(index) = todo.pop() {
        if seen.insert(index) {
            let stage = &lowering.stages[index];
            outline.add(&stage.capture, &globals);
            // The base first.
            todo.extend(stage.needs.iter().rev().map(|(need, _)| *need));
            todo.extend(stage.base);
        }
    }
    input.linter.verdict()?;
    Ok(outline)
}

/// Only looks for what may not be meant: in the target and what it needs, or in all stages where none is asked for.
pub(crate) fn check(input: &Input<'_>) -> Result<()> {
    let mut lowering = Lowering::new(input, None)?;
    lowering.all_stages = input.options.target.is_none();
    lowering.walk()?;
    input.linter.verdict()
}

struct Lowering<'a> {
    input: &'a Input<'a>,
    builder: Builder,
    source_map: Option<SourceMap>,
    lexer: Lexer,
    target_platform: Platform,
    /// Nobody asked for the platform.
    implicit: bool,
    /// Not only what the target needs.
    all_stages: bool,
    build_args: BTreeMap<String, String>,
    globals: Env,
    epoch: Option<Timestamp>,
    proxy: Option<pb::ProxyEnv>,
    /// Stands for the build context, whose paths are known at the end.
    context: Output,
    context_used: bool,
    context_paths: BTreeSet<String>,
    stages: Vec<Stage>,
    /// Paths that are read of a stage. Stages that are made from each other share the first one's.
    paths: Vec<BTreeSet<String>>,
    by_name: HashMap<String, usize>,
    named_locals: Vec<named::LocalSlot>,
    /// The linter as the present instruction sets it, and where that is.
    present: (Scope<'a>, SourceSpan),
}

impl<'a> Lowering<'a> {
    fn new(input: &'a Input<'a>, target: Option<&Platform>) -> Result<Lowering<'a>> {
        let target_platform = target.unwrap_or(&input.build_platforms[0]).clone();
        let mut builder = Builder::new();
        let context = builder.slot();
        let source_map = Some(builder.source_map(input.info.clone()));
        let mut lowering = Lowering {
            input,
            builder,
            source_map,
            lexer: Lexer::new(input.escape),
            target_platform,
            implicit: target.is_none(),
            all_stages: false,
            build_args: input.options.build_args.clone(),
            globals: Env::new(),
            epoch: None,
            proxy: proxies(&input.options.build_args),
            context,
            context_used: false,
            context_paths: BTreeSet::new(),
            stages: Vec::new(),
            paths: Vec::new(),
            by_name: HashMap::new(),
            named_locals: Vec::new(),
            present: (input.linter.scope(), SourceSpan::lines(1, 1)),
        };
        lowering.set_globals()?;
        lowering.set_epoch()?;
        Ok(lowering)
    }

    /// Lowers all that is needed; the target.
    fn walk(&mut self) -> Result<usize> {
        self.collect_stages()?;
        let target = self.find_target()?;
        self.link_stages()?;
        self.resolve(target)?;
        self.dispatch_all(target)?;
        Ok(target)
    }

    /// The arguments in front of the first stage, as an outline has them.
    fn global_arguments(&self) -> Result<BTreeMap<String, Argument>> {
        let mut arguments: BTreeMap<String, Argument> = BTreeMap::new();
        for GlobalArgs { args, span, comments } in self.input.globals {
            for arg in args {
                let value = self.globals.get(&arg.key).unwrap_or_default().to_owned();
                let mut uses = BTreeSet::new();
                if let (false, Some(default)) = (self.build_args.contains_key(&arg.key), &arg.value) {
                    uses = self.lexer.expand(default, &self.globals).map_err(|e| e.at(*span))?.matched;
                    // What it was before is meant, and what that uses.
                    if uses.remove(&arg.key)
                        && let Some(before) = arguments.get(&arg.key)
                    {
                        uses.extend(before.uses.iter().cloned());
                    }
                }
                let description = description(comments, &arg.key);
                arguments.insert(arg.key.clone(), Argument { value, description, uses, span: *span });
            }
        }
        Ok(arguments)
    }

    /// Platform arguments, then those in front of the first stage.
    fn set_globals(&mut self) -> Result<()> {
        let (build, target) = (&self.input.build_platforms[0], &self.target_platform);
        let last = self.input.stages.last().and_then(|stage| stage.from.name.as_deref());
        let stage = self.input.options.target.as_deref().or(last).unwrap_or("default");
        let predefined = [
            ("BUILDPLATFORM", platform::short(build)),
            ("BUILDOS", build.os.clone()),
            ("BUILDOSVERSION", build.os_version.clone()),
            ("BUILDARCH", build.architecture.clone()),
            ("BUILDVARIANT", build.variant.clone()),
            ("TARGETPLATFORM", target.to_string()),
            ("TARGETOS", target.os.clone()),
            ("TARGETOSVERSION", target.os_version.clone()),
            ("TARGETARCH", target.architecture.clone()),
            ("TARGETVARIANT", target.variant.clone()),
            ("TARGETSTAGE", stage.to_owned()),
        ];
        for (key, value) in predefined {
            let value = self.build_args.get(key).cloned().unwrap_or(value);
            self.globals.set(key, value);
        }
        let defaults = self.with_declared(&BTreeMap::new());
        if let Ok(defaults) = &defaults {
            lint::variables::defaults_in_from(self.input.linter, self.input.stages, self.lexer, defaults);
        }
        self.globals = self.with_declared(&self.build_args)?;
        Ok(())
    }

    /// The global arguments with those that are declared in front of the first stage.
    fn with_declared(&self, build_args: &BTreeMap<String, String>) -> Result<Env> {
        let mut env = self.globals.clone();
        for GlobalArgs { args, span, .. } in self.input.globals {
            for arg in args {
                let value = match (build_args.get(&arg.key), &arg.value) {
                    (Some(given), _) => given.clone(),
                    (None, Some(value)) => self.lexer.expand(value, &env).map_err(|e| e.at(*span))?.text,
                    (None, None) => continue,
                };
                env.set(arg.key.clone(), value);
            }
        }
        Ok(env)
    }

    fn defaults(&self) -> Defaults {
        Defaults { platform: self.target_platform.clone(), local_unique: self.input.session.to_owned() }
    }

    /// The time of every line of history, if it is given.
    fn history_time(&self) -> Option<DateTime> {
        self.epoch.map(DateTime::from)
    }

    fn finish(mut self, target: usize) -> Result<Lowered> {
        self.input.linter.verdict()?;
        self.fill_context()?;
        self.fill_named()?;
        let stage = std::mem::take(&mut self.stages[target]);
        let mut image = stage.image;
        image.config.labels.extend(self.input.options.labels.clone());
        if !self.implicit {
            // A variant of the base image says more than a platform without one.
            let (wanted, same) = (&self.target_platform, self.target_platform.os == image.os);
            let same = same && wanted.architecture == image.architecture;
            image.os.clone_from(&wanted.os);
            image.architecture.clone_from(&wanted.architecture);
            if !wanted.variant.is_empty() || !same {
                image.variant.clone_from(&wanted.variant);
            }
            if !wanted.os_version.is_empty() || !same {
                image.os_version.clone_from(&wanted.os_version);
            }
            if !wanted.os_features.is_empty() {
                image.os_features.clone_from(&wanted.os_features);
            }
        }
        let normal = image.platform().normalize();
        (image.os, image.architecture, image.variant) = (normal.os, normal.architecture, normal.variant);
        let defaults = self.defaults();
        let definition = self.builder.marshal(&stage.state, &defaults)?;
        let epoch = self.epoch.map(Timestamp::as_second);
        Ok(Lowered { definition, image, base_image: stage.base_image, epoch })
    }

    fn fill_context(&mut self) -> Result<()> {
        if !self.context_used {
            return Ok(());
        }
        let state = match self.input.context.state(&mut self.builder, self.input.options)? {
            Some(state) => state,
            None => {
                let name = "context";
                let local = Local {
                    session: self.session_of(name),
                    exclude: self.ignore_patterns()?,
                    follow: follow(&self.context_paths),
                    shared_key_hint: name.to_owned(),
                    name: name.to_owned(),
                    ..Local::default()
                };
                self.builder.local(&local, Constraints::named("[internal] load build context"))
            }
        };
        self.builder.fill(self.context, state.output());
        Ok(())
    }

    fn session_of(&self, local: &str) -> String {
        self.input.options.local_sessions.get(local).map_or(self.input.session, String::as_str).to_owned()
    }

    fn ignore_patterns(&self) -> Result<Vec<String>> {
        if let Some(patterns) = self.input.ignore.get() {
            return Ok(patterns.clone());
        }
        let name = "context";
        let patterns = self.read_ignore(name, &format!("{name}-{IGNORE}"), format!("[internal] load {IGNORE}"))?;
        Ok(self.input.ignore.get_or_init(|| patterns).clone())
    }

    /// The ignore file of a directory of the session.
    fn read_ignore(&self, name: &str, shared_key_hint: &str, log_name: String) -> Result<Vec<String>> {
        let mut builder = Builder::new();
        let local = Local {
            name: name.to_owned(),
            session: self.session_of(name),
            follow: vec![IGNORE.to_owned()],
            shared_key_hint: shared_key_hint.to_owned(),
            no_differ: true,
            ..Local::default()
        };
        let state = builder.local(&local, Constraints::named(log_name.clone()));
        let defaults = Defaults { platform: self.target_platform.clone(), local_unique: self.input.session.to_owned() };
        let definition = builder.marshal(&state, &defaults)?;
        let local = Some(LocalRead { session: local.session, name: local.name });
        let read = ReadRequest { definition, local, paths: vec![IGNORE.to_owned()], limit: None, log_name };
        let bytes = self.input.ask.read_files(&read)?.into_iter().next().flatten();
        bytes.map_or_else(|| Ok(Vec::new()), |bytes| ignore::parse(IGNORE, &bytes))
    }

    /// Where a check of the present instruction reports to.
    fn place(&self) -> Place<'_> {
        Place { scope: &self.present.0, span: self.present.1 }
    }

    /// The build context, noting that it is needed.
    fn use_context(&mut self) -> State {
        self.context_used = true;
        State::of(self.context)
    }

    /// Notes a path that is read of the context.
    fn need_context_path(&mut self, path: &str) {
        self.context_paths.insert(llb::path::join(&["/", path]));
    }

    /// Notes a path that is read of a stage.
    fn need_stage_path(&mut self, stage: usize, path: &str) {
        let owner = self.stages[stage].paths;
        self.paths[owner].insert(llb::path::join(&["/", path]));
    }
}

/// Whether a build argument tells scanners what to do, and no step.
pub(crate) fn is_for_scanners(name: &str) -> bool {
    matches!(name, "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE")
}

/// One span for each line, as source maps have them.
pub(crate) fn line_spans(spans: &[SourceSpan]) -> Vec<SourceSpan> {
    let lines = spans.iter().flat_map(|span| span.start.0..=span.end.0);
    lines.map(|line| SourceSpan::lines(line, line)).collect()
}

const IGNORE: &str = ".dockerignore";

/// Paths as a session is asked for them; nothing, meaning all, if the root is among them.
fn follow(paths: &BTreeSet<String>) -> Vec<String> {
    if paths.contains("/") {
        return Vec::new();
    }
    let mut out: Vec<String> = paths.iter().map(|path| path.trim_start_matches('/').to_owned()).collect();
    out.sort();
    out
}

/// Proxies among the build arguments, whatever the case of their names.
fn proxies(args: &BTreeMap<String, String>) -> Option<pb::ProxyEnv> {
    let mut out = pb::ProxyEnv::default();
    let mut any = false;
    for (key, value) in args {
        let place = match key.to_ascii_lowercase().as_str() {
            "http_proxy" => &mut out.http_proxy,
            "https_proxy" => &mut out.https_proxy,
            "ftp_proxy" => &mut out.ftp_proxy,
            "no_proxy" => &mut out.no_proxy,
            "all_proxy" => &mut out.all_proxy,
            _ => continue,
        };
        place.clone_from(value);
        any = true;
    }
    any.then_some(out)
}

/// The text with its first word in upper case.
fn uppercase_first(text: &str) -> String {
    match text.split_once(' ') {
        Some((first, rest)) => format!("{} {rest}", first.to_uppercase()),
        None => text.to_uppercase(),
    }
}

/// The text with variables resolved, or as it is if that fails: for displays.
fn display(lexer: Lexer, text: &str, variables: &dyn Variables) -> String {
    lexer.expand(text, variables).map_or_else(|_| text.to_owned(), |expanded| expanded.text)
}

#[cfg(test)]
mod tests;
