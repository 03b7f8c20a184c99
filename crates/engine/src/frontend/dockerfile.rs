//! `dockerfile.v0`, the built-in frontend, and what it asks for.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};

use ::dockerfile::{Ask, ImageRequest, Outcome, ReadRequest, Request, ResolvedImage};
use base::progress::{Event, Stream, Warning};
use base::report::{Label, Running};
use base::{Fault, Kind};
use files::pattern::Matcher;
use files::walk::Filter;
use futures_util::future::join_all;
use llb::pb;
use proto::Message as _;
use sys::path::{Links, Root};

use crate::core::{Core, blocking};
use crate::driver::JobHandle;
use crate::local::{Found, find};
use crate::ops::source::{Asking, ResolveMode, Source};
use crate::policy::Rules;
use crate::request::Inputs;
use crate::result::{FrontendResult, Ref, Refs};
use crate::tree::Tree;

/// Files that frontends read are small.
const FILE_LIMIT: u64 = 16 << 20;

/// Builds what the options describe.
pub(crate) async fn build(
    core: &Arc<Core>,
    job: &Arc<JobHandle>,
    rules: Rules,
    options: BTreeMap<String, String>,
    inputs: Inputs,
) -> Result<FrontendResult, Fault> {
    let runtime = tokio::runtime::Handle::current();
    let asker = Asker {
        core: core.clone(),
        job: job.clone(),
        rules: rules.clone(),
        runtime,
        inputs,
        matcher: Mutex::default(),
        images: Mutex::default(),
    };
    let platforms = core.platforms.clone();
    let session = job.job.session.id().to_owned();
    // The frontend asks and waits; the answers come from this runtime, so it needs a thread of its own.
    let outcome = blocking(move || {
        let request = Request { options: &options, session: &session, build_platforms: &platforms };
        ::dockerfile::build(&request, &asker)
    })
    .await?;
    let built = match outcome {
        Outcome::Built(built) => built,
        Outcome::Answered(metadata) => return Ok(FrontendResult { refs: Refs::One(None), metadata }),
        Outcome::Gateway(gateway) => {
            let text = format!("frontend image `{}` is not supported yet", gateway.image);
            let fault = Fault::user(text);
            return Err(match &gateway.place {
                Some((file, span)) => fault
                    .hint("remove the `# syntax` line: the built-in frontend knows the newest syntax")
                    .at(file, &[*span]),
                None => fault
                    .hint("remove the build argument BUILDKIT_SYNTAX: the built-in frontend knows the newest syntax"),
            });
        }
    };
    let metadata = built.metadata();
    let reference = |definition| Ref::new(definition, &rules);
    let refs = match built.multi_platform {
        true => {
            let each = built.platforms.into_iter().map(|platform| Ok((platform.id, reference(platform.definition)?)));
            Refs::Many(each.collect::<Result<_, Fault>>()?)
        }
        false => {
            let only = built.platforms.into_iter().next();
            Refs::One(only.map(|platform| reference(platform.definition)).transpose()?.flatten())
        }
    };
    Ok(FrontendResult { refs, metadata })
}

struct Asker {
    core: Arc<Core>,
    job: Arc<JobHandle>,
    rules: Rules,
    runtime: tokio::runtime::Handle,
    inputs: Inputs,
    /// The ignore file that was asked about last, ready to match.
    matcher: Mutex<Option<(Vec<String>, Matcher)>>,
    /// What was answered about images: platforms of the result that share one ask once.
    images: Mutex<Vec<(ImageRequest, ResolvedImage)>>,
}

impl Ask for Asker {
    fn resolve_images(&self, requests: &[ImageRequest]) -> Vec<Result<ResolvedImage, Fault>> {
        self.runtime.block_on(join_all(requests.iter().map(|request| self.resolve(request))))
    }

    fn read_files(&self, request: &ReadRequest) -> Result<Vec<Option<Vec<u8>>>, Fault> {
        self.runtime.block_on(self.read(request))
    }

    fn input(&self, name: &str) -> Result<Option<pb::Definition>, Fault> {
        let Some(bytes) = self.inputs.get(name) else { return Ok(None) };
        let definition = pb::Definition::decode(bytes.as_slice());
        definition.map(Some).map_err(|e| Fault::because(Kind::User, format!("malformed input `{name}`"), e))
    }

    fn source_time(&self, source: &pb::SourceOp, log_name: &str) -> Result<Option<i64>, Fault> {
        self.runtime.block_on(self.time_of(source, log_name))
    }

    fn ignored(&self, patterns: &[String], path: &str) -> bool {
        let mut known = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|(have, _)| have != patterns) {
            // A malformed pattern fails the build where the context is read.
            *known = Matcher::new(patterns).ok().map(|matcher| (patterns.to_vec(), matcher));
        }
        known.as_ref().is_some_and(|(_, matcher)| matcher.matches(path).unwrap_or(false))
    }

    fn tell_vain_option(&self, name: &str, why: &str) {
        let label = Label::phase("[internal] options of the frontend");
        let running = Running::start(self.job.job.sink.clone(), &label);
        let said = format!("warning: option `{name}` has no effect: {why}\n");
        running.tasks().log(Stream::Stderr, said.as_bytes());
        let _ = running.end(Ok::<_, Fault>(()));
    }

    fn warn(&self, warning: &dockerfile::Warning) {
        self.job.job.sink.emit(Event::Warning(Warning {
            vertex: warning.vertex,
            level: 1,
            short: warning.short(),
            detail: vec![warning.description.to_owned()],
            url: warning.url.map(str::to_owned),
            file: Some(warning.file.clone()),
            spans: warning.spans.clone(),
        }));
    }
}

impl Asker {
    async fn resolve(&self, request: &ImageRequest) -> Result<ResolvedImage, Fault> {
        let images = || self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = images().iter().find(|(have, _)| have == request) {
            return Ok(known.clone());
        }
        let resolved = self.resolve_now(request).await?;
        images().push((request.clone(), resolved.clone()));
        Ok(resolved)
    }

    async fn resolve_now(&self, request: &ImageRequest) -> Result<ResolvedImage, Fault> {
        let job = &self.job.job;
        let mut source = asked(request);
        let changed = self.rules.apply_to_metadata(&mut source)?;
        let scheme = source.identifier.split_once("://").map_or("", |(scheme, _)| scheme);
        if changed && !matches!(scheme, "docker-image" | "oci-layout") {
            return Ok(ResolvedImage {
                reference: request.reference.clone(),
                digest: None,
                config: Vec::new(),
                instead: Some(source.identifier),
            });
        }
        let label = Label::question(&request.log_name, &source.identifier, &request.platform);
        let running = Running::start(job.sink.clone(), &label);
        let mut name = request.reference.clone();
        let resolved = async {
            let (images, platform) = (&self.core.images, &request.platform);
            let resolving = async {
                match Source::read(&source)? {
                    Source::Image(image) => {
                        if changed {
                            name = image.reference.clone().or_latest().to_string();
                        }
                        // What the source says, a policy did.
                        let mode = match source.attrs.contains_key("image.resolvemode") {
                            true => image.mode,
                            false => ResolveMode::from(request.mode),
                        };
                        images.resolve(job, &image.reference, platform, mode).await
                    }
                    Source::Layout(layout) => {
                        let jobs = std::slice::from_ref(job);
                        images.resolve_layout(jobs, &layout.store, &layout.reference, platform).await
                    }
                    _ => Err(Fault::new(Kind::Internal, "no image is asked for")),
                }
            };
            tokio::select! {
                resolved = resolving => resolved,
                () = job.cancel.cancelled() => Err(Fault::cancelled()),
            }
        };
        let image = running.end(resolved.await)?;
        Ok(ResolvedImage {
            reference: name,
            digest: Some(image.root.digest),
            config: image.config.clone(),
            instead: None,
        })
    }

    async fn time_of(&self, source: &pb::SourceOp, log_name: &str) -> Result<Option<i64>, Fault> {
        let mut source = source.clone();
        self.rules.apply_to_metadata(&mut source)?;
        let job = &self.job.job;
        let running = Running::start(job.sink.clone(), &Label::phase(log_name));
        let jobs = std::slice::from_ref(job);
        let asking = Asking { core: &self.core, jobs, tasks: running.tasks(), cancel: job.cancel.clone() };
        running.end(asking.time_of(&source).await)
    }

    async fn read(&self, request: &ReadRequest) -> Result<Vec<Option<Vec<u8>>>, Fault> {
        let paths = request.paths.clone();
        let limit = request.limit.map_or(Limit::Whole, Limit::Head);
        let graph = self.rules.read(request.definition.clone())?;
        let is_policed = graph.vertices().first().is_some_and(|vertex| vertex.digest != request.vertex());
        if let Some(local) = request.local.as_ref().filter(|_| !is_policed) {
            let job = &self.job.job;
            // Warnings are tied to the vertex of the definition.
            let label = Label { digest: request.vertex(), ..Label::phase(&request.log_name) };
            let running = Running::start(job.sink.clone(), &label);
            let read = async {
                match find(std::slice::from_ref(job), Some(&local.session), &local.name).await? {
                    Found::InPlace(root) => blocking(move || read_all(&root, &paths, limit)).await,
                    Found::Remote(remote) => {
                        let filter = Filter { follow: paths.clone(), ..Filter::default() };
                        let transfer = tokio::select! {
                            transfer = remote.transfer(&filter) => transfer?,
                            () = job.cancel.cancelled() => return Err(Fault::cancelled()),
                        };
                        let wanted = paths.clone();
                        let files = blocking(move || transfer.into_memory(&wanted, &base::Cancel::new())).await?;
                        let file = |path: &String| match files.get(path) {
                            Some(bytes) => limit.of(path, bytes.to_vec()).map(Some),
                            None => Ok(None),
                        };
                        paths.iter().map(file).collect()
                    }
                }
            };
            let files = read.await;
            if let Ok(files) = &files {
                let size: usize = files.iter().flatten().map(Vec::len).sum();
                let mut task = running.tasks().start(format!("transferring {}:", local.name), 0);
                task.at(size as u64);
            }
            return running.end(files);
        }
        match self.job.solve(&graph).await?.tree {
            Tree::Empty => Ok(vec![None; paths.len()]),
            Tree::Local(local) => {
                let root = local.root.clone();
                blocking(move || read_all(&root, &paths, limit)).await
            }
            Tree::Snapshot(hold) => {
                let running = Running::start(self.job.job.sink.clone(), &Label::phase(&request.log_name));
                let job = &self.job.job;
                self.core.fill(job, &running.tasks(), &job.cancel, &hold).await?;
                let (core, view) = (self.core.clone(), self.core.view(&hold)?);
                let files = blocking(move || {
                    let mounted = core.mount(&view)?;
                    let root = Root::open(mounted.path());
                    let root = root.map_err(|e| Fault::because(Kind::Environment, "cannot open a snapshot", e))?;
                    read_all(&root, &paths, limit)
                });
                running.end(files.await)
            }
        }
    }
}

/// The source op that a question for an image is about.
fn asked(request: &ImageRequest) -> pb::SourceOp {
    let op = |scheme, attrs| pb::SourceOp { identifier: format!("{scheme}://{}", request.reference), attrs };
    match &request.layout {
        None => op("docker-image", Default::default()),
        Some(layout) => op(
            "oci-layout",
            [("oci.session", &layout.session), ("oci.store", &layout.store)]
                .map(|(key, value)| (key.to_owned(), value.clone()))
                .into(),
        ),
    }
}

/// How much of a file is read.
#[derive(Clone, Copy)]
enum Limit {
    /// All, if that is not too much.
    Whole,
    /// Only so many bytes.
    Head(u64),
}

impl Limit {
    fn most(self) -> u64 {
        match self {
            Limit::Whole => FILE_LIMIT + 1,
            Limit::Head(bytes) => bytes.min(FILE_LIMIT),
        }
    }

    fn of(self, path: &str, mut bytes: Vec<u8>) -> Result<Vec<u8>, Fault> {
        match self {
            Limit::Whole if bytes.len() as u64 > FILE_LIMIT => {
                Err(Fault::user(format!("cannot read `{path}`: larger than {FILE_LIMIT} bytes")))
            }
            _ => {
                bytes.truncate(usize::try_from(self.most()).unwrap_or(usize::MAX));
                Ok(bytes)
            }
        }
    }
}

/// Reads files inside a root; none for those that are not there.
fn read_all(root: &Root, paths: &[String], limit: Limit) -> Result<Vec<Option<Vec<u8>>>, Fault> {
    let read = |path: &String| -> Result<Option<Vec<u8>>, Fault> {
        let failed = |e: std::io::Error| Fault::because(Kind::User, format!("cannot read `{path}`"), e);
        let file = match root.open_file(path.trim_start_matches('/'), Links::Follow) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(failed(e)),
        };
        let mut bytes = Vec::new();
        file.take(limit.most()).read_to_end(&mut bytes).map_err(failed)?;
        limit.of(path, bytes).map(Some)
    };
    paths.iter().map(read).collect()
}
