//! Stages: how they depend on each other, and the walk through their instructions.

use std::collections::BTreeSet;
use std::sync::Arc;

use base::{Platform, SourceSpan};
use image::{DEFAULT_PATH, DateTime, History, ImageConfig, MAX_DOCUMENT};
use llb::build::{Env, State};

use super::Lowering;
use super::named::Named;
use crate::error::{Error, Result};
use crate::instruction::{Arg, Instruction, Kind};
use crate::lint::{self, Place};
use crate::request::Capture;
use crate::{parse, platform};

/// The image without files.
pub(super) const SCRATCH: &str = "scratch";

/// A stage on its way. Images that `COPY --from` and mounts name are stages without instructions.
#[derive(Default)]
pub(super) struct Stage {
    /// As written.
    pub name: Option<String>,
    /// As shown: the name, or a number; empty if there is only one.
    pub shown: String,
    /// Image or stage.
    pub base_name: String,
    pub code: String,
    pub span: Option<SourceSpan>,
    pub platform: Option<Platform>,
    /// The stage that it is made from.
    pub base: Option<usize>,
    /// Stages that it copies or mounts from, and where.
    pub needs: Vec<(usize, SourceSpan)>,
    pub steps: Vec<Step>,
    /// A named context that takes the stage's place.
    pub replaced_by: Option<Named>,
    /// Made for a `--from` that is no stage.
    pub implied: bool,
    pub resolved: bool,
    pub dispatched: bool,
    pub triggers_taken: bool,
    pub state: State,
    pub image: ImageConfig,
    /// As it was resolved.
    pub base_image: Option<Arc<ImageConfig>>,
    /// Of the texts in the image's history.
    pub history_bytes: usize,
    pub args: Vec<Arg>,
    /// Whose paths these are, in [`Lowering::paths`].
    pub paths: usize,
    pub ignore_cache: bool,
    pub step: usize,
    pub steps_total: usize,
    /// The last `CMD`, which survives a later `ENTRYPOINT`.
    pub own_cmd: Option<SourceSpan>,
    pub own_entrypoint: Option<SourceSpan>,
    pub own_healthcheck: Option<SourceSpan>,
    /// Here or in a stage that it is made from.
    pub workdir_set: bool,
    /// What it can be told.
    pub capture: Capture,
}

/// An instruction and what it needs.
#[derive(Clone)]
pub(super) struct Step {
    pub instruction: Instruction,
    /// Stages that it copies from, or one for each mount.
    pub sources: Vec<usize>,
    /// Comes from an `ONBUILD` of the base.
    pub trigger: bool,
}

impl<'a> Lowering<'a> {
    /// Expands the `FROM` lines.
    pub(super) fn collect_stages(&mut self) -> Result<()> {
        for (index, written) in self.input.stages.iter().enumerate() {
            self.collect_stage(index, written).map_err(|e| e.at(written.span))?;
        }
        Ok(())
    }

    fn collect_stage(&mut self, index: usize, written: &crate::instruction::Stage) -> Result<()> {
        let from = &written.from;
        let scope = self.input.linter.scope_of(&written.comments);
        let place = Place { scope: &scope, span: written.span };
        let base_name = self.lexer.expand(&from.base, &self.globals)?;
        lint::variables::used_in_from(place, &base_name.unmatched, &self.declared());
        if base_name.text.is_empty() {
            let error = Error::new(format!("`{}` is empty: there is no image to start from", from.base));
            return Err(self.suggest_argument(error, &base_name.unmatched));
        }
        let mut used = base_name.matched;
        let mut stage = Stage {
            name: from.name.clone(),
            shown: from.name.clone().unwrap_or_else(|| format!("stage-{index}")),
            base_name: base_name.text,
            code: written.code.clone(),
            span: Some(written.span),
            ..Stage::default()
        };
        if let Some(typed) = &from.platform {
            let (platform, matched) = self.stage_platform(place, typed, from.name.as_deref())?;
            stage.platform = Some(platform);
            used.extend(matched);
        }
        if let Some(name) = &from.name {
            stage.replaced_by = self.named_context(name, stage.platform.as_ref());
        }
        let replaced = stage.replaced_by.is_some();
        stage.base = self.by_name.get(&stage.base_name).copied().filter(|_| !replaced);
        stage.ignore_cache = !replaced && self.input.options.no_cache.covers(from.name.as_deref());
        let counted = |i: &&Instruction| matches!(i.kind, Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_));
        stage.steps_total = written.instructions.iter().filter(counted).count();
        stage.steps_total += usize::from(stage.base_name != SCRATCH && stage.base.is_none());
        if replaced {
            stage.steps_total = 0;
        } else {
            stage.capture.used = used;
        }
        let place = self.add_stage(stage);
        if let Some(name) = &from.name {
            self.by_name.insert(name.clone(), place);
        }
        Ok(())
    }

    /// Arguments that a `FROM` can use, with or without a value.
    fn declared(&self) -> BTreeSet<&str> {
        let written = self.input.globals.iter().flat_map(|global| &global.args).map(|arg| arg.key.as_str());
        self.globals.iter().map(|(key, _)| key).chain(written).collect()
    }

    fn stage_platform(
        &self,
        place: Place<'_>,
        typed: &str,
        name: Option<&str>,
    ) -> Result<(Platform, BTreeSet<String>)> {
        let expanded = self.lexer.expand(typed, &self.globals)?;
        lint::variables::used_in_from(place, &expanded.unmatched, &self.declared());
        lint::platform::flag(place, typed, &expanded, name, &self.globals);
        if expanded.text.is_empty() {
            let text = format!("empty platform value from expression {typed}");
            return Err(self.wrong_platform(text, &expanded.unmatched));
        }
        let platform = platform::parse(&expanded.text).map_err(|e| {
            let is_odd = |part: &&str| part.is_empty() || part.contains(|c: char| !c.is_ascii_alphanumeric() && !"_.-".contains(c));
            let text = match expanded.text.split('/').find(is_odd) {
                Some(part) => format!(
                    "failed to parse platform {typed}: \"{part}\" is an invalid component of \"{}\": platform specifier \
                     component must match \"^[A-Za-z0-9_.-]+$\": invalid argument",
                    expanded.text
                ),
                None => format!("platform {e}"),
            };
            self.wrong_platform(text, &expanded.unmatched)
        })?;
        if platform.os == "windows" {
            return Err(Error::new("Windows images are not supported yet"));
        }
        Ok((platform, expanded.matched))
    }

    /// With the argument that was probably meant in the text itself, as BuildKit says it.
    fn wrong_platform(&self, text: String, unmatched: &BTreeSet<String>) -> Error {
        let names = self.globals.iter().map(|(key, _)| key);
        match unmatched.first().and_then(|name| base::suggest::likely(name, names)) {
            Some(name) => Error::new(format!("{text} (did you mean {name}?)")),
            None => self.suggest_argument(Error::new(text), unmatched),
        }
    }

    /// Hints at what an unset variable was probably meant to be.
    fn suggest_argument(&self, error: Error, unmatched: &BTreeSet<String>) -> Error {
        let Some(name) = unmatched.first() else { return error };
        let error = error.suggest(name, self.globals.iter().map(|(key, _)| key));
        error.hint(format!(
            "declare `ARG {name}=<value>` in front of the first FROM, or give --build-arg {name}=<value>"
        ))
    }

    pub(super) fn add_stage(&mut self, stage: Stage) -> usize {
        self.paths.push(BTreeSet::new());
        self.stages.push(Stage { paths: self.paths.len() - 1, ..stage });
        self.stages.len() - 1
    }

    /// Names of stages, for hints.
    pub(super) fn stage_names(&self) -> impl Iterator<Item = &str> {
        self.stages.iter().filter_map(|stage| stage.name.as_deref())
    }

    /// The stage that is asked for, or the last one.
    pub(super) fn find_target(&self) -> Result<usize> {
        let Some(target) = &self.input.options.target else { return Ok(self.stages.len() - 1) };
        self.by_name.get(&target.to_lowercase()).copied().ok_or_else(|| {
            let names: Vec<String> = self.stage_names().map(|name| format!("`{name}`")).collect();
            let text = format!("target stage \"{target}\" could not be found");
            let near = base::suggest::likely(target, self.stage_names());
            let error = Error::new(match near {
                Some(name) => format!("{text} (did you mean {name}?)"),
                None => text,
            });
            match near {
                Some(_) => error,
                None if names.is_empty() => error.hint("no stage has a name: write FROM image AS name"),
                None => error.hint(format!("the stages are {}", names.join(", "))),
            }
        })
    }

    /// Finds out who needs whom.
    pub(super) fn link_stages(&mut self) -> Result<()> {
        for (index, written) in self.input.stages.iter().enumerate() {
            for instruction in &written.instructions {
                let span = instruction.span;
                let step = self.step(index, instruction.clone(), false).map_err(|e| e.at(span))?;
                self.stages[index].steps.push(step);
            }
        }
        self.check_cycles()?;
        if let [only] = &mut self.stages[..] {
            only.shown.clear();
        }
        Ok(())
    }

    /// An instruction with the stages that it needs. Those that do not exist yet are made.
    pub(super) fn step(&mut self, stage: usize, instruction: Instruction, trigger: bool) -> Result<Step> {
        let span = instruction.span;
        let mut sources = Vec::new();
        match &instruction.kind {
            Kind::Copy(copy) => {
                if let Some(from) = &copy.from {
                    sources.push(self.copy_source(from, span)?);
                }
            }
            Kind::Run(run) => {
                for from in &run.mount_sources {
                    sources.push(self.source(from.as_deref().unwrap_or(SCRATCH), span));
                }
            }
            _ => {}
        }
        self.stages[stage].needs.extend(sources.iter().map(|source| (*source, span)));
        Ok(Step { instruction, sources, trigger })
    }

    fn copy_source(&mut self, from: &str, span: SourceSpan) -> Result<usize> {
        let plain = self.lexer.expand(from, &crate::expand::NoVariables)?;
        if plain.text != from {
            let error = Error::new(
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global \
                 scope as a workaround",
            );
            return Err(
                error.hint(format!("`{from}`: name the image in a stage, FROM <image> AS <name>, and copy from that"))
            );
        }
        let Ok(number) = from.parse::<i64>() else { return Ok(self.source(from, span)) };
        let written = self.input.stages.len();
        usize::try_from(number).ok().filter(|number| *number < written).ok_or_else(|| {
            Error::new(format!("there is no stage {number}")).hint(format!("stages count from 0 to {}", written - 1))
        })
    }

    /// The stage of a name, or a new one made from the image of that name.
    fn source(&mut self, name: &str, span: SourceSpan) -> usize {
        if let Some(stage) = self.by_name.get(&name.to_lowercase()) {
            return *stage;
        }
        let base_name = name.to_owned();
        self.add_stage(Stage { base_name, span: Some(span), implied: true, ..Stage::default() })
    }

    fn check_cycles(&self) -> Result<()> {
        #[derive(Clone, Copy, PartialEq)]
        enum Seen {
            No,
            Open,
            Done,
        }
        let mut seen = vec![Seen::No; self.stages.len()];
        for root in 0..self.stages.len() {
            let mut stack = vec![(root, 0)];
            while let Some((stage, next)) = stack.pop() {
                if next == 0 && seen[stage] == Seen::Done {
                    continue;
                }
                seen[stage] = Seen::Open;
                let Some(&(need, _)) = self.stages[stage].needs.get(next) else {
                    seen[stage] = Seen::Done;
                    continue;
                };
                stack.push((stage, next + 1));
                match seen[need] {
                    Seen::No => stack.push((need, 0)),
                    Seen::Done => {}
                    Seen::Open => return Err(self.cycle(&stack, need)),
                }
            }
        }
        Ok(())
    }

    /// The mistake of stages that need each other: each instruction on the way is marked.
    fn cycle(&self, stack: &[(usize, usize)], to: usize) -> Error {
        let begin = stack.iter().position(|(stage, _)| *stage == to).unwrap_or(0);
        let way = &stack[begin..];
        let names: Vec<String> = way.iter().map(|(stage, _)| format!("`{}`", self.stages[*stage].shown)).collect();
        let message = match &names[..] {
            [one] => format!("stage {one} copies from itself"),
            names => format!("stages {} need each other", names.join(", ")),
        };
        let mut error = Error::new(message);
        if let Error::Dockerfile(mistake) = &mut error {
            mistake.spans = way.iter().map(|(stage, next)| self.stages[*stage].needs[next - 1].1).collect();
        }
        error
    }

    /// The stages that are walked: those that one needs, or all that there are.
    pub(super) fn reachable(&self, target: usize) -> Vec<bool> {
        if self.all_stages { vec![true; self.stages.len()] } else { self.needed(target) }
    }

    /// The stages that one needs, itself included. What a named context has replaced needs nothing.
    pub(super) fn needed(&self, target: usize) -> Vec<bool> {
        let mut reachable = vec![false; self.stages.len()];
        let mut stack = vec![target];
        while let Some(stage) = stack.pop() {
            if std::mem::replace(&mut reachable[stage], true) || self.stages[stage].replaced_by.is_some() {
                continue;
            }
            stack.extend(self.stages[stage].base);
            stack.extend(self.stages[stage].needs.iter().map(|(need, _)| *need));
        }
        reachable
    }

    /// Takes over what the base stage has, the configuration too if nobody needs it there any more.
    fn inherit(&mut self, index: usize, last: bool) {
        let Some(base) = self.stages[index].base else { return };
        let from = &mut self.stages[base];
        let (state, platform, history_bytes) = (from.state.clone(), from.platform.clone(), from.history_bytes);
        let (base_image, paths, workdir_set) = (from.base_image.clone(), from.paths, from.workdir_set);
        let (mut image, mut args) = if last {
            // Others may still copy from it, and need only its files.
            from.state.forget_env();
            (std::mem::take(&mut from.image), std::mem::take(&mut from.args))
        } else {
            (from.image.clone(), from.args.clone())
        };
        // Triggers of the base run in this stage and are not handed on.
        image.config.on_build.clear();
        let stage = &mut self.stages[index];
        args.append(&mut stage.args);
        (stage.state, stage.platform, stage.image) = (state, platform, image);
        (stage.base_image, stage.paths, stage.args) = (base_image, paths, args);
        stage.history_bytes = history_bytes;
        stage.workdir_set = workdir_set;
    }

    /// Puts the triggers of the base in front of the stage's own steps. Whether they need further stages.
    pub(super) fn take_triggers(&mut self, index: usize) -> Result<bool> {
        let mut triggers = std::mem::take(&mut self.stages[index].image.config.on_build);
        if let Some(base) = self.stages[index].base
            && !self.stages[index].triggers_taken
        {
            let of_base = self.stages[base].steps.iter().filter_map(|step| match &step.instruction.kind {
                Kind::Onbuild(trigger) => Some(trigger.clone()),
                _ => None,
            });
            triggers.extend(of_base.collect::<Vec<_>>());
            self.stages[index].triggers_taken = true;
        }
        let span = self.stages[index].span.unwrap_or(SourceSpan::lines(1, 1));
        let mut steps = Vec::with_capacity(triggers.len());
        let mut needs_more = false;
        for trigger in triggers {
            let line = parse::parse_single(&trigger, span)?;
            let instruction = crate::instruction::parse(line).map_err(|e| e.elsewhere().at(span))?;
            let step = self.step(index, Instruction { span, ..instruction }, true).map_err(|e| e.at(span))?;
            needs_more |= !step.sources.is_empty();
            steps.push(step);
        }
        let stage = &mut self.stages[index];
        stage.steps_total += steps.len();
        steps.append(&mut stage.steps);
        stage.steps = steps;
        Ok(needs_more)
    }

    /// Walks the stages that the target needs.
    pub(super) fn dispatch_all(&mut self, target: usize) -> Result<()> {
        let waits: Vec<bool> =
            self.reachable(target).iter().zip(&self.stages).map(|(r, s)| *r && !s.dispatched).collect();
        let mut users = vec![0; self.stages.len()];
        users[target] += 1;
        for stage in self.stages.iter().zip(&waits).filter(|(_, waits)| **waits).map(|(stage, _)| stage) {
            stage.base.into_iter().for_each(|base| users[base] += 1);
        }
        for (index, _) in waits.into_iter().enumerate().filter(|(_, waits)| *waits) {
            let left = self.stages[index].base.map_or(0, |base| {
                users[base] -= 1;
                users[base]
            });
            self.inherit(index, left == 0);
            self.stages[index].dispatched = true;
            self.start_stage(index);
            let steps = self.stages[index].steps.clone();
            for step in steps {
                let span = step.instruction.span;
                self.dispatch(index, step).map_err(|e| e.at(span))?;
            }
        }
        self.need_stage_path(target, "/");
        Ok(())
    }

    /// What the base image's configuration means for the steps.
    fn start_stage(&mut self, index: usize) {
        let options = self.input.options;
        let stage = &mut self.stages[index];
        stage.platform.get_or_insert_with(|| self.target_platform.clone());
        let env = &mut stage.image.config.env;
        if !env.iter().any(|pair| pair.split('=').next() == Some("PATH")) {
            env.push(format!("PATH={DEFAULT_PATH}"));
        }
        let pairs = stage.image.config.env.iter().map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        stage.state.set_env_all(pairs);
        if !options.hostname.is_empty() {
            stage.state.set_hostname(&options.hostname);
        }
        let dir = stage.image.config.working_dir.clone();
        if !dir.is_empty() {
            stage.set_workdir(&dir);
        }
        if !stage.image.config.user.is_empty() {
            stage.state.set_user(&stage.image.config.user);
        }
        stage.state.set_network(options.network.unwrap_or(llb::pb::NetMode::Unset));
    }

    /// The name of the next step of a stage: `[build 2/5] RUN make`.
    pub(super) fn step_name(&mut self, stage: usize, trigger: bool, text: &str) -> String {
        if self.stages[stage].steps_total == 0 {
            return text.to_owned();
        }
        self.stages[stage].step += 1;
        self.same_step_name(stage, trigger, text)
    }

    /// Another name with the number of the present step.
    pub(super) fn same_step_name(&self, stage: usize, trigger: bool, text: &str) -> String {
        let stage = &self.stages[stage];
        if stage.steps_total == 0 {
            return text.to_owned();
        }
        let mut out = String::from("[");
        if self.input.options.multi_platform {
            let own = stage.state.platform().or(stage.platform.as_ref()).unwrap_or(&self.target_platform);
            out.push_str(&format!("{own}{} ", cross(own, stage.state.env())));
        }
        if !stage.shown.is_empty() {
            out.push_str(&format!("{} ", stage.shown));
        }
        let total = stage.steps_total.to_string();
        out.push_str(&format!("{:>width$}/{total}] ", stage.step, width = total.len()));
        format!("{out}{}{text}", if trigger { "ONBUILD " } else { "" })
    }
}

impl Stage {
    /// Adds a line to the image's history.
    pub(super) fn record(&mut self, epoch: Option<DateTime>, text: String, layer: bool) -> Result<()> {
        self.history_bytes += text.len();
        if self.history_bytes > MAX_DOCUMENT {
            return Err(Error::new(format!("the history of the image has more than {MAX_DOCUMENT} bytes")));
        }
        self.image.history.push(History {
            created: epoch,
            created_by: text,
            author: String::new(),
            comment: "buildkit.dockerfile.v0".to_owned(),
            empty_layer: !layer,
        });
        Ok(())
    }

    /// Changes the working directory; the new one.
    pub(super) fn set_workdir(&mut self, dir: &str) -> String {
        let dir = super::copy::absolute(&self.image.config.working_dir, dir);
        self.image.config.working_dir.clone_from(&dir);
        self.state.set_dir(&dir);
        dir
    }
}

/// `->arm64` where a stage runs on one platform and makes files for another.
fn cross(own: &Platform, env: &Env) -> String {
    let mut target: Option<Platform> = None;
    let unset = || Platform { os: String::new(), ..Platform::new("", "", "") };
    for (key, value) in env.iter() {
        match key {
            "TARGETPLATFORM" => {
                if let Ok(platform) = platform::parse(value) {
                    target = Some(platform);
                    break;
                }
            }
            "TARGETOS" => value.clone_into(&mut target.get_or_insert_with(unset).os),
            "TARGETARCH" => value.clone_into(&mut target.get_or_insert_with(unset).architecture),
            "TARGETVARIANT" => value.clone_into(&mut target.get_or_insert_with(unset).variant),
            _ => {}
        }
    }
    let Some(mut target) = target else { return String::new() };
    if target.os.is_empty() {
        target.os.clone_from(&own.os);
    }
    if target.architecture.is_empty() {
        target.architecture.clone_from(&own.architecture);
    }
    let target = target.normalize();
    if target.os != own.os {
        return format!("->{target}");
    }
    if target.architecture == own.architecture {
        return String::new();
    }
    let variant = if target.variant.is_empty() { String::new() } else { format!("/{}", target.variant) };
    format!("->{}{variant}", target.architecture)
}
