//! From options to results: find the Dockerfile, see who understands it, lower it for each platform.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use base::{Digest, Fault, Platform, SourceFile, SourceSpan};
use image::Reference;
use llb::build::{Builder, Constraints, Defaults, Local};
use llb::{path, pb};

use crate::ask::{Ask, LocalRead, ReadRequest};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instruction::GlobalArgs;
use crate::lint::{self, Audience, Linter, Settings};
use crate::lower::{self, Input};
use crate::options::Options;
use crate::parse::{self, Directives, Syntax};
use crate::request::{self, About};
use crate::{ignore, instruction};

/// What to build.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Frontend options by name, as `--opt` gives them.
    pub options: &'a BTreeMap<String, String>,
    /// The session that local directories are read from.
    pub session: &'a str,
    /// What the workers run, the preferred one first.
    pub build_platforms: &'a [Platform],
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// LLB to solve.
    Built(Built),
    /// The file is for another frontend.
    Gateway(Gateway),
    /// An answer to a question about the file, as metadata.
    Answered(BTreeMap<String, Vec<u8>>),
}

/// A frontend image that must take over.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// The image: option `source` of its call.
    pub image: String,
    /// Option `cmdline` of its call.
    pub cmdline: String,
    /// Where the file asks for it; none if an option does.
    pub place: Option<(Arc<SourceFile>, SourceSpan)>,
}

/// LLB and image configurations, one for each platform.
#[derive(Clone, Debug)]
pub struct Built {
    /// In the order in which the platforms were asked for.
    pub platforms: Vec<PlatformResult>,
    /// The result is an index, even of one platform.
    pub multi_platform: bool,
    /// The Dockerfile.
    pub source: Arc<SourceFile>,
}

/// The result for one platform.
#[derive(Clone, Debug)]
pub struct PlatformResult {
    /// `linux/amd64`, ..
    pub id: String,
    /// The platform.
    pub platform: Platform,
    /// What to solve.
    pub definition: pb::Definition,
    /// The image configuration, without layers and their times: `containerimage.config`.
    pub config: Vec<u8>,
    /// The base image's: `containerimage.base.config`.
    pub base_config: Option<Vec<u8>>,
    /// `SOURCE_DATE_EPOCH` in seconds: `source.date.epoch`.
    pub epoch: Option<i64>,
}

impl Built {
    /// The metadata that exporters look for, by BuildKit's names.
    pub fn metadata(&self) -> BTreeMap<String, Vec<u8>> {
        let mut out = BTreeMap::new();
        let mut platforms = Vec::new();
        for result in &self.platforms {
            let key = |name: &str| {
                if self.multi_platform { format!("{name}/{}", result.id) } else { name.to_owned() }
            };
            out.insert(key("containerimage.config"), result.config.clone());
            if let Some(base) = &result.base_config {
                out.insert(key("containerimage.base.config"), base.clone());
            }
            if let Some(epoch) = result.epoch {
                out.insert(key("source.date.epoch"), epoch.to_string().into_bytes());
            }
            platforms.push(serde_json::json!({ "ID": result.id, "Platform": result.platform }));
        }
        let platforms = serde_json::json!({ "Platforms": platforms });
        out.insert("refs.platforms".to_owned(), platforms.to_string().into_bytes());
        out
    }
}

/// Reads the Dockerfile that the options name and lowers it.
pub fn build(request: &Request<'_>, ask: &dyn Ask) -> std::result::Result<Outcome, Fault> {
    let options = Options::parse(request.options).map_err(|e| e.into_fault(None))?;
    options.unknown.iter().for_each(|name| ask.tell_vain_option(name, "it is not known here"));
    let context = Context::find(&options, request.session, ask).map_err(|e| e.into_fault(None))?;
    if matches!(context, Context::Local) && options.context_subdir.as_deref().is_some_and(|dir| !dir.is_empty()) {
        ask.tell_vain_option("contextsubdir", "it is for contexts from git or a URL, and this one is local");
    }
    let found = find_dockerfile(request, &options, &context, ask).map_err(|e| e.into_fault(None))?;
    if let Some(gateway) = other_frontend(&options, &found) {
        return Ok(Outcome::Gateway(gateway));
    }
    let about = About { request, options: &options, context: &context, found: &found, ask };
    let outcome = match &options.request {
        Some(name) => request::answer(name, &about).map(Outcome::Answered),
        None => lower_all(&about).map(Outcome::Built),
    };
    outcome.map_err(|e| e.into_fault(Some(&found.file)))
}

pub(crate) struct Found {
    pub file: Arc<SourceFile>,
    pub info: pb::SourceInfo,
    /// What it was read by.
    pub vertex: Digest,
    /// `<name>.dockerignore`, which comes before `.dockerignore`.
    pub ignore: Option<Vec<u8>>,
}

fn find_dockerfile(request: &Request<'_>, options: &Options, context: &Context, ask: &dyn Ask) -> Result<Found> {
    let filename = context.filename(&options.filename);
    let mut paths = vec![filename.to_owned(), format!("{filename}.dockerignore")];
    // `dockerfile` is the second choice for `Dockerfile`.
    if path::base(filename) == "Dockerfile" {
        paths.push(path::join(&[&path::dir(filename), "dockerfile"]));
    }
    let log_name = format!("[internal] load build definition from {filename}");
    let mut builder = Builder::new();
    let mut local_read = None;
    let state = match context.dockerfile(&mut builder, options, ask)? {
        Some(state) => state,
        None => {
            let name = options.dockerfile_name.clone().unwrap_or_else(|| "dockerfile".to_owned());
            let session = options.local_sessions.get(&name).map_or(request.session, String::as_str);
            local_read = Some(LocalRead { session: session.to_owned(), name: name.clone() });
            let local = Local {
                session: session.to_owned(),
                follow: paths.clone(),
                shared_key_hint: name.clone(),
                no_differ: true,
                name,
                ..Local::default()
            };
            builder.local(&local, Constraints::named(log_name.clone()))
        }
    };
    let defaults = Defaults { platform: build_platform(request), local_unique: request.session.to_owned() };
    let definition = builder.marshal(&state, &defaults)?;
    let read = ReadRequest { definition, local: local_read, paths, limit: None, log_name };
    let mut files = ask.read_files(&read)?.into_iter();
    let (data, ignore) = (files.next().flatten(), files.next().flatten());
    let data = data.or_else(|| files.next().flatten()).ok_or_else(|| {
        Error::new(format!("failed to read dockerfile: open {filename}: no such file or directory")).hint(
            "the option `filename` names it, the local `dockerfile` its directory; a link must not lead out of that",
        )
    })?;
    let definition = llb::marshalled(&read.definition);
    let file = SourceFile { name: filename.to_owned(), data, language: "Dockerfile".to_owned(), definition };
    let vertex = read.vertex();
    let info = pb::SourceInfo {
        filename: file.name.clone(),
        data: file.data.clone(),
        definition: Some(read.definition),
        language: file.language.clone(),
    };
    Ok(Found { file: Arc::new(file), info, vertex, ignore })
}

fn build_platform(request: &Request<'_>) -> Platform {
    request.build_platforms.first().cloned().unwrap_or_else(Platform::host)
}

/// The frontend that the options or the file ask for, unless it is this one.
fn other_frontend(options: &Options, found: &Found) -> Option<Gateway> {
    if options.from_gateway {
        return None;
    }
    let (syntax, place) = match &options.syntax {
        Some(cmdline) => {
            let image = cmdline.trim().split(' ').next().unwrap_or_default().to_owned();
            (Syntax { image, cmdline: cmdline.clone(), span: SourceSpan::lines(1, 1) }, None)
        }
        None => {
            let syntax = parse::detect_syntax(&found.file.data)?;
            let place = Some((found.file.clone(), syntax.span));
            (syntax, place)
        }
    };
    if is_built_in_image(&syntax.image) {
        return None;
    }
    Some(Gateway { image: syntax.image, cmdline: syntax.cmdline, place })
}

/// Whether a frontend image has what is built in here.
pub fn is_built_in_image(image: &str) -> bool {
    let names = ["docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream"];
    Reference::parse(image).is_ok_and(|reference| names.contains(&reference.name().as_str()))
}

/// A Dockerfile, read.
pub(crate) struct Read {
    globals: Vec<GlobalArgs>,
    stages: Vec<instruction::Stage>,
    escape: char,
    ignore: OnceLock<Vec<String>>,
    build_platforms: Vec<Platform>,
}

impl Read {
    /// Reads the file, and tells the linter what there is to be told of single lines.
    pub fn new(about: &About<'_>, linter: &Linter<'_>) -> Result<Read> {
        let (found, request) = (about.found, about.request);
        let document = parse::parse(&found.file.data)?;
        let escape = document.escape;
        lint::continuation::empty(linter, &document.empty_continuations);
        let (globals, stages) = instruction::stages(document, linter)?;
        lint::stage_name::names(linter, &stages);
        lint::casing::instructions(linter, &stages);
        let ignore = OnceLock::new();
        if let Some(bytes) = &found.ignore {
            let patterns = ignore::parse(&format!("{}.dockerignore", found.file.name), bytes)?;
            ignore.get_or_init(|| patterns);
        }
        let build_platforms =
            if request.build_platforms.is_empty() { vec![Platform::host()] } else { request.build_platforms.to_vec() };
        Ok(Read { globals, stages, escape, ignore, build_platforms })
    }

    /// What is to be lowered.
    pub fn input<'a>(&'a self, about: &'a About<'a>, linter: &'a Linter<'a>) -> Input<'a> {
        Input {
            info: &about.found.info,
            globals: &self.globals,
            stages: &self.stages,
            escape: self.escape,
            options: about.options,
            context: about.context,
            session: about.request.session,
            build_platforms: &self.build_platforms,
            ignore: &self.ignore,
            linter,
            ask: about.ask,
        }
    }
}

fn lower_all(about: &About<'_>) -> Result<Built> {
    let (options, found) = (about.options, about.found);
    let settings = check_settings(options, found)?;
    let linter = Linter::new(settings.clone(), (&found.file, found.vertex), Audience::Told(about.ask));
    let read = Read::new(about, &linter)?;
    let names: Vec<_> = read.stages.iter().map(|stage| stage.from.name.as_deref()).collect();
    for name in options.no_cache.unknown(&names) {
        about.ask.tell_vain_option(&format!("no-cache={name}"), "no stage has this name");
    }
    let input = read.input(about, &linter);
    let mut platforms = Vec::new();
    if options.platforms.is_empty() {
        platforms.push(platform_result(&input, None)?);
    }
    // The checks say the same of every platform.
    let silent = Linter::new(settings, (&found.file, found.vertex), Audience::Nobody);
    for (index, platform) in options.platforms.iter().enumerate() {
        let linter = if index == 0 { &linter } else { &silent };
        platforms.push(platform_result(&Input { linter, ..input }, Some(platform))?);
    }
    Ok(Built { platforms, multi_platform: options.multi_platform, source: found.file.clone() })
}

/// What `# check=` says, or the build argument in its place.
pub(crate) fn check_settings(options: &Options, found: &Found) -> Result<Settings> {
    if let Some(settings) = &options.check {
        return Ok(settings.clone());
    }
    let Some((value, span)) = Directives::of(&found.file.data).check else { return Ok(Settings::default()) };
    // What stands behind the first space is a remark.
    let value = value.split(' ').next().unwrap_or_default();
    Settings::parse(value)
        .map_err(|what| Error::new(format!("directive `check`: {what}")).at(span).hint(lint::SETTINGS_HINT))
}

fn platform_result(input: &Input<'_>, platform: Option<&Platform>) -> Result<PlatformResult> {
    let lowered = lower::lower(input, platform)?;
    let platform = platform.cloned().unwrap_or_else(|| input.build_platforms[0].clone()).normalize();
    Ok(PlatformResult {
        id: platform.to_string(),
        platform,
        definition: lowered.definition,
        config: lowered.image.to_json(),
        base_config: lowered.base_image.as_ref().map(|image| image.to_json()),
        epoch: lowered.epoch,
    })
}
