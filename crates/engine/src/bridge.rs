//! All that a frontend may ask, whether it is built in, a client, or an image: to solve, to look into results, to find
//! images, to warn.

use std::sync::Arc;

use base::progress::{Event, Warning};
use base::report::{Label, Running};
use base::{Digest, Fault, Kind, Platform};
use files::receive::Sent;
use llb::policy::Policy;
use sys::path::{Links, Root};

use crate::cache;
use crate::core::{Core, blocking};
use crate::driver::JobHandle;
use crate::frontend;
use crate::look;
use crate::ops::source::{Asking, GitDescription, HttpDescription, ResolveMode, Source};
use crate::policy::Rules;
use crate::request::{CacheOptions, Frontend};
use crate::result::{FrontendResult, Ref, Refs};
use crate::tree::Tree;

/// One build, as its frontend sees it. It ends when this is dropped.
#[derive(Clone)]
pub struct Bridge {
    pub(crate) core: Arc<Core>,
    pub(crate) job: Arc<JobHandle>,
    /// `[frontend."dockerfile.v0"] enabled`.
    pub(crate) has_dockerfile: bool,
}

/// An image that a name was resolved to.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// The name, normalised.
    pub reference: String,
    /// Of the index or manifest.
    pub digest: Digest,
    /// The config's bytes.
    pub config: Vec<u8>,
}

impl Bridge {
    /// Asks a frontend, or takes a definition as it is. Nothing runs until somebody needs it.
    pub async fn solve(&self, frontend: Frontend) -> Result<FrontendResult, Fault> {
        self.solve_by(frontend, &[]).await
    }

    /// The same, with more rules about sources than those of the build.
    pub async fn solve_by(&self, frontend: Frontend, policies: &[Policy]) -> Result<FrontendResult, Fault> {
        let rules = Rules::of(&self.job.job, policies)?;
        let (Frontend::Named { options, .. } | Frontend::Llb { options, .. }) = &frontend;
        self.job.job.hidden().add(options);
        let result = match frontend.built_in() {
            Frontend::Named { name, mut options, inputs } => match name.as_str() {
                "dockerfile.v0" if !self.has_dockerfile => {
                    Err(Fault::user("frontend `dockerfile.v0` is switched off here")
                        .hint("remove `enabled = false` under [frontend.\"dockerfile.v0\"] in buildkitd.toml"))
                }
                "dockerfile.v0" => {
                    self.import(&cache::take_imports(&mut options)?);
                    frontend::dockerfile::build(&self.core, &self.job, rules, options, inputs).await
                }
                "gateway.v0" => Err(Fault::user("frontend `gateway.v0` is not supported yet")
                    .hint("use `--frontend dockerfile.v0`: the built-in frontend knows the newest syntax")),
                _ => Err(Fault::user(format!("no frontend named `{name}`: there is dockerfile.v0"))),
            },
            Frontend::Llb { definition, .. } => {
                let definition = llb::read_definition(&definition);
                let definition = definition.map_err(|e| Fault::because(Kind::User, "malformed definition", e))?;
                Ok(FrontendResult { refs: Refs::One(Ref::new(definition, &rules)?), ..FrontendResult::default() })
            }
        }?;
        result.all().into_iter().filter_map(Ref::graph).for_each(|graph| self.job.lend(graph));
        Ok(result)
    }

    /// Names caches that the build may read. They serve all that it asks for from now on. One that cannot be read, whatever
    /// the reason, is a miss, and is said.
    pub fn import(&self, caches: &[CacheOptions]) {
        caches.iter().for_each(|cache| self.job.job.add_import(cache));
    }

    /// Has ops that fail from now on leave behind what there is to see ([`wreck`](crate::wreck)), until the build ends.
    pub fn keep_wrecks(&self) {
        self.job.job.want_wrecks();
    }

    /// Asks the build's rules and these whether a source may be used, and what in its place.
    pub fn judge(&self, source: &mut llb::pb::SourceOp, policies: &[Policy]) -> Result<(), Fault> {
        Rules::of(&self.job.job, policies)?.apply_to_metadata(source).map(drop)
    }

    /// Makes a result now.
    pub async fn evaluate(&self, reference: &Ref) -> Result<(), Fault> {
        self.job_until_cancelled(async { reference.tree(&self.job).await.map(drop) }).await
    }

    /// Finds an image and its config.
    pub async fn resolve_image(
        &self,
        name: &str,
        platform: Option<Platform>,
        mode: &str,
        log_name: &str,
    ) -> Result<ImageConfig, Fault> {
        let reference: image::Reference =
            name.parse().map_err(|e| Fault::because(Kind::User, format!("bad image reference `{name}`"), e))?;
        let mode = match mode {
            "" | "default" => ResolveMode::Default,
            "pull" => ResolveMode::ForcePull,
            "local" => ResolveMode::PreferLocal,
            other => return Err(Fault::user(format!("no resolve mode `{other}`"))),
        };
        let platform = platform.unwrap_or_else(|| self.core.platforms[0].clone());
        let job = &self.job.job;
        let running = self.asking_for_image(&format!("docker-image://{reference}"), &platform, log_name);
        let resolving = self.core.images.resolve(job, &reference, &platform, mode);
        let image = running.end(self.job_until_cancelled(resolving).await)?;
        let reference = image.reference.to_string();
        Ok(ImageConfig { reference, digest: image.root.digest, config: image.config.clone() })
    }

    /// Finds an image of a store that a client offers (`oci-layout://`), and its config.
    pub async fn resolve_layout(
        &self,
        source: &llb::pb::SourceOp,
        platform: Option<Platform>,
        log_name: &str,
    ) -> Result<ImageConfig, Fault> {
        let Source::Layout(layout) = Source::read(source)? else {
            return Err(Fault::user(format!("source `{}` is no image of an OCI layout", source.identifier)));
        };
        let platform = platform.unwrap_or_else(|| self.core.platforms[0].clone());
        let job = &self.job.job;
        let running = self.asking_for_image(&source.identifier, &platform, log_name);
        let jobs = std::slice::from_ref(job);
        let resolving = self.core.images.resolve_layout(jobs, &layout.store, &layout.reference, &platform);
        let image = running.end(self.job_until_cancelled(resolving).await)?;
        let reference = image.reference.to_string();
        Ok(ImageConfig { reference, digest: image.root.digest, config: image.config.clone() })
    }

    /// Begins what people see of a question about an image.
    fn asking_for_image(&self, identifier: &str, platform: &Platform, log_name: &str) -> Running {
        let label = match log_name {
            "" => format!("resolve image config for {identifier}"),
            given => given.to_owned(),
        };
        Running::start(self.job.job.sink.clone(), &Label::question(label, identifier, platform))
    }

    /// Begins what people see of a question about a source.
    fn resolving(&self, kind: &str, source: &llb::pb::SourceOp, log_name: &str) -> Running {
        let shown = base::redact_url(&source.identifier);
        let label = if log_name.is_empty() { format!("resolve {kind} source {shown}") } else { log_name.to_owned() };
        Running::start(self.job.job.sink.clone(), &Label::phase(&label))
    }

    /// Finds what a git source stands for, and the objects behind it where they are wanted.
    pub async fn resolve_git(
        &self,
        source: &llb::pb::SourceOp,
        wants_objects: bool,
        log_name: &str,
    ) -> Result<GitDescription, Fault> {
        let job = &self.job.job;
        let running = self.resolving("git", source, log_name);
        let jobs = std::slice::from_ref(job);
        let asking = Asking { core: &self.core, jobs, tasks: running.tasks(), cancel: job.cancel.clone() };
        let described = asking.describe(source, wants_objects).await;
        running.end(described)
    }

    /// Finds what a source of the web is now. The build that asks reads that.
    pub async fn resolve_http(&self, source: &llb::pb::SourceOp, log_name: &str) -> Result<HttpDescription, Fault> {
        let job = &self.job.job;
        let running = self.resolving("http", source, log_name);
        let jobs = std::slice::from_ref(job);
        let asking = Asking { core: &self.core, jobs, tasks: running.tasks(), cancel: job.cancel.clone() };
        let described = asking.describe_file(source).await;
        running.end(described)
    }

    /// Reads a file of a result, or a part of it: an offset and a length, 0 for all that follows.
    pub async fn read_file(&self, reference: &Ref, path: &str, range: Option<(u64, u64)>) -> Result<Vec<u8>, Fault> {
        let path = path.to_owned();
        self.in_root(reference, move |root| look::read_file(root, &path, range)).await
    }

    /// What is in a directory of a result, by name; only what a pattern matches, unless that is empty.
    pub async fn read_dir(&self, reference: &Ref, path: &str, pattern: &str) -> Result<Vec<Sent>, Fault> {
        let (path, pattern, is_recorded) = (path.to_owned(), pattern.to_owned(), self.core.shadow);
        self.in_root(reference, move |root| look::read_dir(root, &path, &pattern, is_recorded)).await
    }

    /// What a path of a result is; its last component is not followed.
    pub async fn stat_file(&self, reference: &Ref, path: &str) -> Result<Sent, Fault> {
        let (path, is_recorded) = (path.to_owned(), self.core.shadow);
        self.in_root(reference, move |root| look::stat(root, &path, Links::FollowParents, is_recorded)).await
    }

    /// Tells the user.
    pub fn warn(&self, warning: Warning) {
        self.job.job.sink.emit(Event::Warning(warning));
    }

    /// What this machine runs, the preferred platform first.
    pub fn platforms(&self) -> &[Platform] {
        &self.core.platforms
    }

    /// Does something in the root of a result.
    async fn in_root<T: Send + 'static>(
        &self,
        reference: &Ref,
        work: impl FnOnce(&Root) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let job = &self.job.job;
        let tree = self.job_until_cancelled(reference.tree(&self.job)).await?;
        match tree {
            Tree::Empty => {
                let core = self.core.clone();
                blocking(move || work(&core.empty_root()?)).await
            }
            Tree::Local(local) => {
                let root = local.root.clone();
                blocking(move || work(&root)).await
            }
            Tree::Snapshot(hold) => {
                if !self.core.is_filled(&hold)? {
                    let running = Running::start(job.sink.clone(), &Label::phase("reading files of an image"));
                    let filled = self.core.fill(job, &running.tasks(), &job.cancel, &hold).await;
                    running.end(filled)?;
                }
                let (core, view) = (self.core.clone(), self.core.view(&hold)?);
                blocking(move || {
                    let mounted = core.mount(&view)?;
                    let root = Root::open(mounted.path());
                    let root = root.map_err(|e| Fault::because(Kind::Environment, "cannot open a snapshot", e))?;
                    let answer = work(&root);
                    drop(hold);
                    answer
                })
                .await
            }
        }
    }

    pub(crate) async fn job_until_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        tokio::select! {
            done = work => done,
            () = self.job.job.cancel.cancelled() => Err(Fault::cancelled()),
        }
    }
}
