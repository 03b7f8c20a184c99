//! Base images: what stages start from, resolved all at once.

use std::sync::Arc;

use base::{Fault, Platform};
use image::{ImageConfig, Reference};
use llb::build::{Constraints, Image, State};

use super::Lowering;
use super::named::Named;
use super::stage::SCRATCH;
use crate::ask::{ImageRequest, ResolvedImage};
use crate::error::{Error, Result};
use crate::instruction::Kind;
use crate::lint;

/// Where a stage's files come from, once the answer is there.
enum Origin {
    /// The image that it names.
    Image { typed: String, reference: Reference, platform: Platform },
    /// A named context that takes the place of the stage.
    Stage(Named),
    /// A named context that takes the place of the image.
    Base { context: Named, platform: Platform },
}

impl Lowering<'_> {
    /// Resolves what the target needs, until triggers of base images need nothing more.
    pub(super) fn resolve(&mut self, target: usize) -> Result<()> {
        self.check_mounts(target)?;
        loop {
            self.resolve_round(target)?;
            let mut more = false;
            // Triggers are for who builds: what is walked to be checked has none.
            for (index, needed) in self.needed(target).into_iter().enumerate() {
                if needed && self.stages[index].replaced_by.is_none() {
                    self.inherit_for_triggers(index);
                    more |= self.take_triggers(index)?;
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    fn check_mounts(&self, target: usize) -> Result<()> {
        let reachable = self.reachable(target);
        let needed = self.stages.iter().zip(reachable).filter(|(stage, needed)| *needed && stage.replaced_by.is_none());
        for step in needed.flat_map(|(stage, _)| &stage.steps) {
            if let Kind::Run(run) = &step.instruction.kind {
                run.check_mounts().map_err(|e| e.at(step.instruction.span))?;
            }
        }
        Ok(())
    }

    /// Stages that are made from others have no triggers of an image of their own.
    fn inherit_for_triggers(&mut self, index: usize) {
        if self.stages[index].base.is_some() {
            self.stages[index].image.config.on_build.clear();
        }
    }

    fn resolve_round(&mut self, target: usize) -> Result<()> {
        let mut origins = Vec::new();
        for (index, reachable) in self.reachable(target).into_iter().enumerate() {
            let stage = &mut self.stages[index];
            if stage.base.is_some() || stage.dispatched || stage.resolved {
                continue;
            }
            if !reachable {
                self.has_reference(index).map_err(|e| self.at_stage(index, e))?;
                continue;
            }
            stage.resolved = true;
            if stage.base_name == SCRATCH && stage.replaced_by.is_none() {
                stage.state = State::scratch();
                stage.image = ImageConfig::empty(&self.target_platform);
                stage.platform = Some(self.target_platform.clone());
                stage.dispatched = stage.implied;
                continue;
            }
            let origin = self.origin(index).map_err(|e| self.at_stage(index, e))?;
            origins.push((index, origin));
        }
        let mut requests = Vec::new();
        let mut asked = Vec::new();
        for (_, origin) in &origins {
            let request = match origin {
                Origin::Image { reference, platform, .. } => Some(self.image_request(reference, platform)),
                Origin::Stage(context) | Origin::Base { context, .. } => self.named_request(context)?,
            };
            asked.push(request.map(|request| {
                // The same image in several stages is one question.
                requests.iter().position(|have| *have == request).unwrap_or_else(|| {
                    requests.push(request);
                    requests.len() - 1
                })
            }));
        }
        let answers = if requests.is_empty() { Vec::new() } else { self.input.ask.resolve_images(&requests) };
        for ((index, origin), asked) in origins.into_iter().zip(asked) {
            let answer = asked.map(|asked| match answers.get(asked) {
                Some(Ok(resolved)) => Ok(resolved.clone()),
                Some(Err(fault)) => Err(fault.clone()),
                None => Err(Fault::new(base::Kind::Internal, "nobody answered")),
            });
            self.settle(index, origin, answer).map_err(|e| self.at_stage(index, e))?;
            if self.stages[index].implied {
                self.stages[index].dispatched = true;
            }
        }
        Ok(())
    }

    fn at_stage(&self, index: usize, error: Error) -> Error {
        match self.stages[index].span {
            Some(span) => error.at(span),
            None => error,
        }
    }

    fn origin(&mut self, index: usize) -> Result<Origin> {
        let stage = &mut self.stages[index];
        let platform = stage.platform.clone().unwrap_or_else(|| self.target_platform.clone());
        if let Some(context) = stage.replaced_by.clone() {
            return Ok(Origin::Stage(context));
        }
        let typed = stage.base_name.clone();
        let reference = self.reference(index, &typed)?.or_latest();
        if let Some(context) = self.named_context(&reference.to_string(), Some(&platform)) {
            return Ok(Origin::Base { context: context.at(index), platform });
        }
        Ok(Origin::Image { typed, reference, platform })
    }

    /// Stages that nobody needs are not asked for, but must name an image.
    fn has_reference(&self, index: usize) -> Result<()> {
        let stage = &self.stages[index];
        if stage.replaced_by.is_some() || stage.base_name == SCRATCH {
            return Ok(());
        }
        self.reference(index, &stage.base_name).map(drop)
    }

    fn reference(&self, index: usize, typed: &str) -> Result<Reference> {
        Reference::parse(typed).map_err(|error| {
            let error = Error::new(format!("`{typed}` is no stage, and no image: {}", cause(&error)));
            let error = self.suggest_stage(index, error, typed);
            match written_otherwise(typed) {
                Some(hint) => error.hint(hint),
                None => error,
            }
        })
    }

    fn suggest_stage(&self, index: usize, error: Error, typed: &str) -> Error {
        match self.by_name.get(&typed.to_lowercase()).map(|stage| (*stage, self.stages[*stage].span)) {
            // An image and the stage that is made of it often have one name.
            Some((stage, _)) if stage == index => return error,
            Some((stage, Some(span))) if stage > index => {
                let line = span.start.0;
                return error
                    .hint(format!("stage `{typed}` comes later (line {line}): a stage begins with one above it"));
            }
            _ => {}
        }
        match base::suggest::nearest(&typed.to_lowercase(), self.stage_names()) {
            Some(name) => {
                let stage = self.by_name.get(name).and_then(|stage| self.stages[*stage].span);
                let line = stage.map(|span| format!(" (line {})", span.start.0)).unwrap_or_default();
                error.hint(format!("did you mean stage `{name}`{line}?"))
            }
            None => match self.by_name.get_key_value(&typed.to_lowercase()) {
                Some((name, _)) => error.hint(format!("did you mean stage `{name}`?")),
                None => error,
            },
        }
    }

    fn image_request(&self, reference: &Reference, platform: &Platform) -> ImageRequest {
        let prefix = if self.input.options.multi_platform { format!("{platform} ") } else { String::new() };
        ImageRequest {
            reference: reference.to_string(),
            platform: platform.clone(),
            mode: self.input.options.resolve_mode,
            log_name: format!("[{prefix}internal] load metadata for {reference}"),
            layout: None,
        }
    }

    fn settle(
        &mut self,
        index: usize,
        origin: Origin,
        answer: Option<std::result::Result<ResolvedImage, Fault>>,
    ) -> Result<()> {
        match origin {
            Origin::Image { typed, platform, .. } => {
                let answer = answer.unwrap_or_else(|| Err(Fault::new(base::Kind::Internal, "nobody asked")));
                let resolved = answer.map_err(|fault| {
                    let is_refused = fault.find::<llb::policy::Error>().is_some();
                    let doing = if is_refused || typed.contains(['/', ':', '@']) {
                        // The cause begins with the whole name.
                        match !is_refused && names_the_image(&fault.cause(), &typed) {
                            true => "cannot resolve the image".to_owned(),
                            false => format!("cannot resolve `{typed}`"),
                        }
                    } else {
                        format!("no stage `{typed}`, and no image")
                    };
                    let error = Error::Ask { doing, spans: Vec::new(), hint: None, fault: Box::new(fault) };
                    self.suggest_stage(index, error, &typed)
                })?;
                self.start_from_image(index, &typed, platform, &resolved)
            }
            Origin::Stage(context) => {
                let (state, image) = self.load_named(&context.at(index), answer)?;
                let stage = &mut self.stages[index];
                stage.dispatched = true;
                stage.state = state;
                if let Some(image) = image {
                    if !image.architecture.is_empty() && !image.os.is_empty() {
                        stage.platform = Some(image.platform());
                    }
                    stage.image = ImageConfig { created: None, ..image };
                }
                Ok(())
            }
            Origin::Base { context, platform } => {
                let (mut state, image) = self.load_named(&context, answer)?;
                let image = image.unwrap_or_else(|| ImageConfig::empty(&platform));
                state.set_platform(&platform);
                let stage = &mut self.stages[index];
                stage.base_image = Some(Arc::new(image.clone()));
                stage.image = ImageConfig { created: None, ..image };
                stage.state = state;
                stage.platform = Some(platform);
                Ok(())
            }
        }
    }

    fn start_from_image(
        &mut self,
        index: usize,
        typed: &str,
        mut platform: Platform,
        resolved: &ResolvedImage,
    ) -> Result<()> {
        let wrong = |what: String| Error::new(format!("`{typed}`: {what}"));
        if let Some(instead) = &resolved.instead {
            return Err(wrong(format!(
                "a source policy puts `{}` in its place, which is no image",
                base::redact_url(instead)
            )));
        }
        let mut reference = Reference::parse(&resolved.reference).map_err(|error| wrong(cause(&error)))?;
        if let Some(digest) = resolved.digest {
            reference = reference.with_digest(digest);
        }
        let image = parse_config(&resolved.config).map_err(wrong)?;
        if self.stages[index].platform.is_none() && self.implicit {
            platform = self.runnable(&image, platform);
        }
        let state = if has_layers(&image) {
            if let Some(span) = self.stages[index].span {
                let scope = self.input.linter.scope();
                lint::platform::base_image(&scope, span, typed, &platform, &image.platform());
            }
            // The variant that is asked for is part of the op; the prefix shows it too.
            let name = self.base_name(index, &platform, &format!("FROM {reference}"));
            let code = self.stages[index].code.clone();
            let mut constraints = Constraints::named(name).platform(&platform);
            constraints.description.insert(COMMAND.to_owned(), code);
            let spans = Vec::from_iter(self.stages[index].span);
            let constraints = constraints.at(self.source_map, &super::line_spans(&spans));
            let mode = self.input.options.resolve_mode;
            self.builder.image(&Image { reference: reference.to_string(), resolve_mode: mode }, constraints)
        } else {
            State::scratch()
        };
        let stage = &mut self.stages[index];
        stage.base_image = Some(Arc::new(image.clone()));
        stage.image = ImageConfig { created: None, ..image };
        stage.base_name = reference.to_string();
        stage.state = state;
        stage.platform = Some(platform);
        Ok(())
    }

    fn base_name(&mut self, index: usize, platform: &Platform, text: &str) -> String {
        let before = self.stages[index].platform.replace(platform.clone());
        let name = self.step_name(index, false, text);
        self.stages[index].platform = before;
        name
    }

    /// The platform of an image that the builder can run although it is not the one that it prefers.
    fn runnable(&self, image: &ImageConfig, wanted: Platform) -> Platform {
        let is = |p: &Platform| p.os == image.os && p.architecture == image.architecture;
        if is(&wanted) {
            return wanted;
        }
        self.input.build_platforms.iter().find(|p| is(p)).cloned().unwrap_or(wanted)
    }
}

/// Whether a registry's answer begins with the image's whole name, which need not be said twice then.
fn names_the_image(cause: &str, typed: &str) -> bool {
    cause.split_once(": ").is_some_and(|(subject, _)| subject.ends_with(typed))
}

/// How an image's name may have been meant that is none.
fn written_otherwise(typed: &str) -> Option<String> {
    if let Some((scheme, rest)) = typed.split_once("://") {
        return Some(format!("images are named without `{scheme}://`: `{rest}`"));
    }
    let last = typed.rfind('/').map_or(0, |slash| slash + 1);
    let end = typed[last..].find([':', '@']).map_or(typed.len(), |at| last + at);
    let lower = format!("{}{}", typed[..end].to_lowercase(), &typed[end..]);
    (lower != typed && Reference::parse(&lower).is_ok()).then(|| format!("did you mean `{lower}`?"))
}

/// The description that holds an instruction.
pub(super) const COMMAND: &str = "com.docker.dockerfile.v1.command";

/// Reads an image configuration; what is wrong with it otherwise.
pub(super) fn parse_config(bytes: &[u8]) -> std::result::Result<ImageConfig, String> {
    ImageConfig::parse(bytes).map_err(|error| cause(&error))
}

/// Whether an image has files: images of the old schema name no layers, but have a history.
fn has_layers(image: &ImageConfig) -> bool {
    !image.rootfs.diff_ids.is_empty() || image.history.iter().any(|item| !item.empty_layer)
}

/// An error and its sources in one text.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", cause(source)),
        None => error.to_string(),
    }
}
