//! What the programs ask of the engine.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base::progress::{Discard, Event, Sink, Warning};
use base::report::{Label, Running, Tasks};
use base::{ByteSize, Cancel, Fault};
use export::{BuildResult, Exporter, PlatformResult};
use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use session::{Output, SharedSession};
use solver::CacheKey;
use tokio_util::sync::CancellationToken;

use crate::bridge::Bridge;
use crate::cache;
use crate::cache::early::Early;
use crate::cache::export::{CacheExports, chain};
use crate::cache::inline::Records;
use crate::core::{Core, blocking, store_fault};
use crate::driver::{Driver, JobHandle, panicked};
use crate::job::{Built, Job};
use crate::policy;
use crate::result::FrontendResult;
use crate::step_log::LogLimits;
use crate::tree::Tree;

/// The engine: one per state directory. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    core: Arc<Core>,
    driver: Driver,
    entitlements: Arc<Vec<Entitlement>>,
    gc: Arc<Vec<config::PrunePolicy>>,
    /// `[frontend."dockerfile.v0"] enabled`.
    has_dockerfile: bool,
}

/// How to open an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// BuildKit's root directory; our state goes into a subfolder of it.
    pub root: PathBuf,
    /// The parsed `buildkitd.toml`.
    pub config: config::Config,
    /// Which snapshotter to use.
    pub snapshotter: SnapshotterChoice,
    /// How long to wait for another process that holds the state directory.
    pub lock_wait: Duration,
    /// What is kept back of the disk, so that what is stored can be seen and removed on a full one.
    pub reserve: store::Reserve,
    /// Environment for outgoing connections: proxy variables, from the program's environment.
    pub proxy: BTreeMap<String, String>,
    /// Where programs are looked for that the builder needs: git.
    pub path: Option<std::ffi::OsString>,
    /// How much of a step's output is shown.
    pub step_log: LogLimits,
    /// What `sys::userns::enter` got at the start of the program.
    pub isolation: sys::userns::Isolation,
}

/// Which snapshotter to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotterChoice {
    /// The best one that works here.
    #[default]
    Auto,
    /// overlayfs or an error.
    Overlay,
    /// Reflinks or copies.
    Copy,
}

/// One build.
pub struct SolveRequest {
    /// What makes the LLB.
    pub frontend: Frontend,
    /// What happens with the result; several run one after another. None: the build is only run.
    pub exports: Vec<ExportRequest>,
    /// Whether the client is asked for more of them when the result is there.
    pub late_exports: bool,
    /// `--import-cache`.
    pub cache_imports: Vec<CacheOptions>,
    /// `--export-cache`.
    pub cache_exports: Vec<CacheOptions>,
    /// `--allow`.
    pub entitlements: Vec<Entitlement>,
    /// Which sources may be used, and which in the place of others.
    pub source_policies: Vec<llb::policy::Policy>,
    /// The client.
    pub session: SharedSession,
    /// Where progress goes.
    pub progress: Arc<dyn Sink>,
    /// Ends the build early.
    pub cancel: CancellationToken,
}

/// What a build begins with.
pub struct Begin {
    /// The client.
    pub session: SharedSession,
    /// Where progress goes.
    pub progress: Arc<dyn Sink>,
    /// Ends the build early.
    pub cancel: CancellationToken,
    /// Rights that it asks for.
    pub entitlements: Vec<Entitlement>,
    /// Which sources may be used, and which in the place of others.
    pub source_policies: Vec<llb::policy::Policy>,
}

/// What makes the LLB.
#[derive(Clone, Debug)]
pub enum Frontend {
    /// A frontend by name (`dockerfile.v0`, `gateway.v0`) with its `--opt` values.
    Named {
        /// Its name.
        name: String,
        /// `--opt key=value`.
        options: BTreeMap<String, String>,
        /// What the client made for it, by names that the options use.
        inputs: Inputs,
    },
    /// A marshalled `pb.Definition`.
    Llb(Vec<u8>),
}

impl Frontend {
    /// `gateway.v0` with a built-in frontend as its source, or an image that has the same, is that one, unless a context
    /// stands for the source.
    pub(crate) fn built_in(self) -> Frontend {
        const BUILT_IN: &str = "dockerfile.v0";
        let is_it = |source: &str| source == BUILT_IN || ::dockerfile::is_this(source);
        let is_context = |key: &String| {
            let name = key.strip_prefix("context:").and_then(|name| name.split("::").next());
            name.is_some_and(is_it)
        };
        match self {
            Frontend::Named { name, mut options, inputs }
                if name == "gateway.v0"
                    && options.get("source").is_some_and(|source| is_it(source))
                    && !options.keys().any(is_context) =>
            {
                options.remove("source");
                Frontend::Named { name: BUILT_IN.to_owned(), options, inputs }
            }
            other => other,
        }
    }
}

/// Marshalled `pb.Definition`s by name.
pub type Inputs = BTreeMap<String, Vec<u8>>;

/// One `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRequest {
    /// `image`, `oci`, `docker`, `tar`, `local`.
    pub kind: String,
    /// Its attributes, such as `name`, `push`, `compression`. Where it goes is the session's business:
    /// `session.output(i)` is asked for the i-th export.
    pub attrs: BTreeMap<String, String>,
}

/// What is to become of a result.
#[derive(Clone, Debug, Default)]
pub struct Exports {
    /// What the client asked for with the build.
    pub asked: Vec<ExportRequest>,
    /// The client is asked for more when the result is there, and told what all came to
    /// ([`Session::late_exports`](session::Session::late_exports)): by these names it can look into the trees.
    pub late: Option<Vec<String>>,
}

/// One `--import-cache` or `--export-cache`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// `registry`, `local`, `inline`, ..
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// A right that a build asks for and the daemon must allow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entitlement {
    /// `network.host`
    NetworkHost,
    /// `security.insecure`
    SecurityInsecure,
    /// `device` or `device=NAME`
    Device(Option<String>),
}

/// What a build answers.
#[derive(Clone, Debug, Default)]
pub struct SolveResponse {
    /// BuildKit's exporter response: `containerimage.digest`, `image.name`, ..
    pub exporter_response: BTreeMap<String, String>,
    /// What each export made, where that is an image: its descriptor, in base64.
    pub descriptors: Vec<Option<String>>,
    /// The frontend's answer where it was asked something (`requestid`) in the place of a build: `result.txt`, ..
    pub answer: BTreeMap<String, Vec<u8>>,
}

/// One line of `du`.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageRecord {
    /// Its id.
    pub id: String,
    /// `regular`, `internal`, `frontend`, `source.local`, `source.git.checkout`, `exec.cachemount`.
    pub record_type: String,
    /// What made it.
    pub description: String,
    /// Disk space.
    pub size: ByteSize,
    /// It can still change (cache mounts).
    pub mutable: bool,
    /// A running build needs it.
    pub in_use: bool,
    /// An image or another record shares its layers.
    pub shared: bool,
    /// Ids of the records that it builds on.
    pub parents: Vec<String>,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// When a build last used it.
    pub last_used_at: Option<jiff::Timestamp>,
    /// How often builds used it.
    pub usage_count: u64,
}

/// What `prune` removes.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Also internal and frontend records.
    pub all: bool,
    /// Keep what was used within this time.
    pub keep_duration: Option<Duration>,
    /// Keep this much in any case.
    pub reserved_space: Option<ByteSize>,
    /// Remove until at most so much is used.
    pub max_used_space: Option<ByteSize>,
    /// Remove until so much of the disk is free.
    pub min_free_space: Option<ByteSize>,
    /// `--filter key=value` (`type==regular`, `id=..`, `until=24h`, `unused-for=..`), all must match.
    pub filters: Vec<String>,
}

/// What was told to end looks for that after each piece of its work, which takes so long at most.
const STUCK_AFTER: Duration = Duration::from_secs(20);

impl Engine {
    /// Opens the state directory. Fails when another process keeps it locked, or nothing can be
    /// written there. The process must be in a mount namespace of its own.
    pub async fn open(options: EngineOptions) -> Result<Engine, Fault> {
        crate::open::open(options).await
    }

    pub(crate) fn new(
        core: Arc<Core>,
        driver: Driver,
        entitlements: Vec<Entitlement>,
        gc: Vec<config::PrunePolicy>,
        has_dockerfile: bool,
    ) -> Engine {
        Engine { core, driver, entitlements: Arc::new(entitlements), gc: Arc::new(gc), has_dockerfile }
    }

    /// How snapshots are kept here and why so, for the log.
    pub fn snapshotter(&self) -> String {
        let choice = self.core.store.driver();
        format!("{} ({})", choice.driver.as_str(), choice.reason)
    }

    /// How snapshots are kept here, by BuildKit's name.
    pub fn snapshotter_name(&self) -> &'static str {
        match self.core.store.driver().driver {
            store::Driver::Copy => "native",
            store::Driver::Overlay | store::Driver::Auto => "overlayfs",
        }
    }

    /// Where everything is kept: for what the programs keep beside the cache.
    pub fn store(&self) -> &store::Store {
        &self.core.store
    }

    /// What is run here, the preferred platform first.
    pub fn platforms(&self) -> &[base::Platform] {
        &self.core.platforms
    }

    /// The rules of garbage collection.
    pub fn gc_rules(&self) -> Vec<config::PrunePolicy> {
        self.gc.to_vec()
    }

    /// Runs one build to its end.
    pub async fn solve(&self, request: SolveRequest) -> Result<SolveResponse, Fault> {
        let cancel = request.cancel.clone();
        // What panics in an op fails that; this is for all that is none.
        let result = AssertUnwindSafe(self.solve_to_the_end(request)).catch_unwind().await;
        let result = result.unwrap_or_else(|panic| Err(panicked(&*panic)));
        // Whatever broke on the way: the user knows it as the cancellation that it was.
        if cancel.is_cancelled() { result.map_err(|_| Fault::cancelled()) } else { result }
    }

    async fn solve_to_the_end(&self, request: SolveRequest) -> Result<SolveResponse, Fault> {
        let (options, inline) = match &request.frontend {
            Frontend::Named { options, .. } => (options.clone(), cache::wants_inline(options)),
            Frontend::Llb(_) => (BTreeMap::new(), false),
        };
        exporters(&request.exports)?;
        let mut caches = CacheExports::read(&request.cache_exports)?;
        caches.inline |= inline;
        let bridge = self.begin(Begin {
            session: request.session,
            progress: request.progress,
            cancel: request.cancel,
            entitlements: request.entitlements,
            source_policies: request.source_policies,
        });
        let bridge = bridge.await?;
        bridge.import(&request.cache_imports)?;
        if !is_question(&options) {
            self.send_early(&bridge, &request.exports, &request.cache_exports)?;
        }
        let result = bridge.solve(request.frontend).await?;
        if is_question(&options) {
            return Ok(SolveResponse { answer: result.metadata, ..SolveResponse::default() });
        }
        // No gateway answers its client: there are no names for trees.
        let late = request.late_exports.then(Vec::new);
        let exports = Exports { asked: request.exports, late };
        self.make_and_export(&bridge.job, result, exports, &caches, &options).await
    }

    /// Begins a build whose frontend is elsewhere: whoever has the bridge asks what it needs, and gives the result to
    /// [`export`](Self::export).
    pub async fn begin(&self, begin: Begin) -> Result<Bridge, Fault> {
        self.check_rights(&begin.entitlements)?;
        let policies = policy::read(&begin.source_policies)?;
        let job = Job::new(begin.session, begin.progress, begin.cancel, begin.entitlements, policies);
        let job = Arc::new(self.driver.begin(Arc::new(job)).await?);
        Ok(Bridge { core: self.core.clone(), job, has_dockerfile: self.has_dockerfile })
    }

    /// Has caches that get all steps get their layers while later steps run. It is said before the first step.
    pub fn send_early(&self, bridge: &Bridge, exports: &[ExportRequest], caches: &[CacheOptions]) -> Result<(), Fault> {
        let (exporters, caches) = (exporters(exports)?, CacheExports::read(caches)?);
        let job = &bridge.job.job;
        let nowhere = || Tasks::new(Arc::new(Discard), Label::phase("sending layers ahead").digest);
        let early = Early::start(job, &caches, &exporters, |cancel| self.context(job, nowhere(), cancel));
        *bridge.job.early.lock().unwrap_or_else(PoisonError::into_inner) = early;
        Ok(())
    }

    /// Makes a result and does with it what `exports` say; several run one after another, caches beside them. `options` are
    /// what its frontend was told.
    pub async fn export(
        &self,
        bridge: &Bridge,
        result: &FrontendResult,
        exports: Exports,
        caches: &[CacheOptions],
        options: &BTreeMap<String, String>,
    ) -> Result<SolveResponse, Fault> {
        let cancel = bridge.job.job.cancel.clone();
        let work = async {
            let caches = CacheExports::read(caches)?;
            self.make_and_export(&bridge.job, result.clone(), exports, &caches, options).await
        };
        let done = AssertUnwindSafe(work).catch_unwind().await;
        let done = done.unwrap_or_else(|panic| Err(panicked(&*panic)));
        if cancel.is_cancelled() { done.map_err(|_| Fault::cancelled()) } else { done }
    }

    /// Where an export finds that a cache lacks what it promised, the build goes on without that cache.
    async fn make_and_export(
        &self,
        job: &Arc<JobHandle>,
        mut result: FrontendResult,
        exports: Exports,
        caches: &CacheExports,
        options: &BTreeMap<String, String>,
    ) -> Result<SolveResponse, Fault> {
        let session = &job.job.session;
        let Exports { asked: mut exports, late } = exports;
        let tells = late.is_some();
        if let Some(refs) = late {
            let late = session.late_exports(result.metadata.clone(), refs).await?;
            exports.extend(late.into_iter().map(|late| ExportRequest { kind: late.kind, attrs: late.attrs }));
        }
        // Before anything is done: what is wrong with them is said now.
        exporters(&exports)?;
        let mut is_verified = false;
        loop {
            let built = result.build(job).await?;
            if !std::mem::replace(&mut is_verified, true) {
                warn_of_platforms(job, options, &result)?;
            }
            match self.export_built(job, &result, built, exporters(&exports)?, caches, options).await {
                Err(fault) if job.job.gives_up(&fault) => {
                    tracing::warn!(%fault, "going on without a cache");
                    result = result.anew();
                }
                Ok(response) if tells => {
                    session.exported(&response.exporter_response).await?;
                    return Ok(response);
                }
                exported => return exported,
            }
        }
    }

    async fn export_built(
        &self,
        job: &Arc<JobHandle>,
        made: &FrontendResult,
        built: Built,
        exporters: Vec<Exporter>,
        caches: &CacheExports,
        options: &BTreeMap<String, String>,
    ) -> Result<SolveResponse, Fault> {
        if caches.inline || !caches.is_empty() {
            self.driver.remembered().await;
        }
        let keys: Vec<Arc<CacheKey>> = built.platforms.iter().flat_map(|platform| &platform.keys).cloned().collect();
        // `SOURCE_DATE_EPOCH` as a build argument holds where neither exports nor the result say otherwise.
        let epoch = default_epoch(options).or(built.platforms.iter().find_map(|platform| platform.epoch));
        let mut result = BuildResult { platforms: Vec::new(), multi: built.multi };
        for platform in built.platforms {
            let tree = match platform.tree {
                Tree::Empty => None,
                Tree::Snapshot(hold) => Some(hold),
                Tree::Local(local) => {
                    let flag = Cancel::new();
                    tokio::select! {
                        copied = local.copied(&self.core, flag.clone()) => Some(copied?),
                        () = job.job.cancel.cancelled() => {
                            flag.cancel();
                            return Err(Fault::cancelled());
                        }
                    }
                }
            };
            let inline: Option<Arc<dyn export::Inline>> = match caches.inline && !platform.keys.is_empty() {
                false => None,
                true => {
                    let chain = chain(&self.core, &job.job, platform.keys).await?;
                    let (core, job) = (self.core.clone(), job.job.clone());
                    Some(Arc::new(blocking(move || Records::of(&core, &job, chain)).await))
                }
            };
            result.platforms.push(PlatformResult {
                inline,
                id: platform.id,
                platform: platform.platform,
                tree,
                config: platform.config,
                base_config: platform.base_config,
            });
        }
        let exporting = self.run_exporters(job, made, &result, exporters, epoch);
        if caches.is_empty() {
            return exporting.await;
        }
        let early = job.early.lock().unwrap_or_else(PoisonError::into_inner).take();
        let writing = async {
            if let Some(early) = early {
                tokio::select! {
                    () = early.finish() => {}
                    () = job.job.cancel.cancelled() => {}
                }
            }
            let context = |running: &Running, cancel| self.context(&job.job, running.tasks(), cancel);
            caches.write(&self.core, &job.job, &keys, context).await
        };
        // The image does not wait for the cache, and one that failed needs none.
        let (mut response, answers) = match select(pin!(exporting), pin!(writing)).await {
            Either::Left((exported, writing)) => (exported?, writing.await),
            Either::Right((answers, exporting)) => (exporting.await?, answers),
        };
        response.exporter_response.extend(answers?);
        Ok(response)
    }

    async fn run_exporters(
        &self,
        job: &Arc<JobHandle>,
        made: &FrontendResult,
        result: &BuildResult,
        exporters: Vec<Exporter>,
        epoch: Option<i64>,
    ) -> Result<SolveResponse, Fault> {
        let mut response = SolveResponse { exporter_response: made.told_clients(), ..SolveResponse::default() };
        for (index, exporter) in exporters.into_iter().enumerate() {
            let output = match job.job.session.output(index).await? {
                output if exporter.makes_layout() && !matches!(output, Output::Directory(_)) => {
                    job.job.session.export_store().await?.map_or(output, Output::Store)
                }
                output => output,
            };
            let running = Running::start(job.job.sink.clone(), &Label::phase(exporter.title()));
            let exporter = exporter.with_default_epoch(epoch).with_chosen_name(made.image_name());
            let cancel = Cancel::new();
            let context = self.context(&job.job, running.tasks(), cancel.clone());
            let exported = tokio::select! {
                exported = exporter.export(&context, result, output) => exported,
                () = job.job.cancel.cancelled() => {
                    cancel.cancel();
                    Err(Fault::cancelled())
                }
            };
            let answer = running.end(exported)?;
            response.descriptors.push(answer.get("containerimage.descriptor").cloned());
            response.exporter_response.extend(answer);
        }
        Ok(response)
    }

    fn context(&self, job: &Arc<Job>, tasks: Tasks, cancel: Cancel) -> export::Context {
        export::Context {
            store: self.core.store.clone(),
            registry: self.core.images.client.clone(),
            credentials: job.credentials(),
            lazy: Arc::new(LazyLayers { core: self.core.clone(), job: job.clone(), tasks: tasks.clone() }),
            tasks,
            cancel,
            unfinished: self.core.threads.clone(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// A build gets only what it asks for and the builder allows; who allows devices allows each of them.
    fn check_rights(&self, wanted: &[Entitlement]) -> Result<(), Fault> {
        let whole = |right: &Entitlement| match right {
            Entitlement::Device(_) => Entitlement::Device(None),
            other => other.clone(),
        };
        let allows =
            |right: &Entitlement| self.entitlements.contains(right) || self.entitlements.contains(&whole(right));
        match wanted.iter().find(|right| !allows(right)) {
            None => Ok(()),
            Some(right) => {
                let fault = Fault::user(format!("the builder does not allow the entitlement `{right}`"));
                let right = whole(right);
                Err(fault.hint(format!(
                    "start it with `--allow-insecure-entitlement {right}`, or list it in `insecure-entitlements`"
                )))
            }
        }
    }

    /// Everything that is stored.
    pub async fn disk_usage(&self) -> Result<Vec<UsageRecord>, Fault> {
        let store = self.core.store.clone();
        let usage = blocking(move || store.disk_usage()).await;
        let usage = usage.map_err(|e| store_fault("cannot count what is stored", e))?;
        Ok(usage.into_iter().map(UsageRecord::from).collect())
    }

    /// What is stored and matches any of the filters, in containerd's language; everything if there are none.
    pub async fn disk_usage_of(&self, filters: &[String]) -> Result<Vec<UsageRecord>, Fault> {
        crate::usage::select(self.disk_usage().await?, filters)
    }

    /// Removes what `options` says and answers what went.
    pub async fn prune(&self, options: PruneOptions) -> Result<Vec<UsageRecord>, Fault> {
        let store = self.core.store.clone();
        let options = store::PruneOptions {
            all: options.all,
            keep_duration: options.keep_duration.unwrap_or_default(),
            reserved_space: options.reserved_space.map_or(0, |size| size.0),
            max_used_space: options.max_used_space.map_or(0, |size| size.0),
            min_free_space: options.min_free_space.map_or(0, |size| size.0),
            filters: options.filters,
        };
        let removed = blocking(move || store.prune(&options)).await;
        let removed = removed.map_err(|e| store_fault("cannot prune", e))?;
        Ok(removed.into_iter().map(UsageRecord::from).collect())
    }

    /// Collects garbage by the configured rules, beside builds: what they use stays.
    pub async fn collect_garbage(&self) {
        let (store, gc) = (self.core.store.clone(), self.gc.clone());
        blocking(move || clean(&store, &gc)).await;
    }

    /// Waits for what is still being remembered and for what was cancelled, collects garbage by the configured rules,
    /// and writes everything to disk. Nothing is left of the executor.
    ///
    /// Answers what did not end in time: it is stuck in the kernel, and so would be who waits for the same disk. It ends with
    /// the process; what it leaves half done is removed by the next opening.
    pub async fn close(self) -> Vec<String> {
        self.close_within(STUCK_AFTER).await
    }

    /// The same with another time for what is to end.
    pub async fn close_within(self, most: Duration) -> Vec<String> {
        let began = Instant::now();
        let mut stuck = self.driver.idle(most).await;
        stuck.extend(self.core.threads.end(most.saturating_sub(began.elapsed())).await);
        let (core, store, gc) = (self.core.clone(), self.core.store.clone(), self.gc.clone());
        if !stuck.is_empty() {
            // It, too, may wait for them.
            let _ = tokio::time::timeout(most, blocking(move || core.executor.close())).await;
            return stuck;
        }
        blocking(move || {
            core.executor.close();
            clean(&store, &gc);
            if let Err(error) = store.sync() {
                tracing::warn!(%error, "the state directory was not synced");
            }
            store.give_back();
        })
        .await;
        stuck
    }
}

fn clean(store: &store::Store, gc: &[config::PrunePolicy]) {
    for rule in gc {
        if let Err(error) = store.prune(&prune_options(rule)) {
            tracing::warn!(%error, "garbage collection failed");
        }
    }
}

fn prune_options(rule: &config::PrunePolicy) -> store::PruneOptions {
    store::PruneOptions {
        all: rule.all,
        keep_duration: rule.keep_duration,
        reserved_space: rule.reserved_space,
        max_used_space: rule.max_used_space,
        min_free_space: rule.min_free_space,
        filters: rule.filters.clone(),
    }
}

fn exporters(exports: &[ExportRequest]) -> Result<Vec<Exporter>, Fault> {
    exports.iter().map(|export| Exporter::read(&export.kind, &export.attrs)).collect()
}

/// `SOURCE_DATE_EPOCH` as a build argument holds for exporters too.
fn default_epoch(options: &BTreeMap<String, String>) -> Option<i64> {
    let text = options.get("build-arg:SOURCE_DATE_EPOCH").filter(|text| !text.is_empty())?;
    // Not a number of seconds: the frontend knows other forms, and refuses what is none.
    text.parse().ok().filter(|seconds| *seconds >= 0)
}

/// Whether a frontend's options ask it something in the place of a build.
pub fn is_question(options: &BTreeMap<String, String>) -> bool {
    options.get("requestid").is_some_and(|request| !request.is_empty())
}

/// Warns if the result is not for the platforms that were asked for.
fn warn_of_platforms(
    job: &Arc<JobHandle>,
    options: &BTreeMap<String, String>,
    made: &FrontendResult,
) -> Result<(), Fault> {
    let odd = crate::verify::odd_platforms(options, made)?;
    if odd.is_empty() {
        return Ok(());
    }
    let sink = &job.job.sink;
    let label = Label::phase("verifying build result");
    let running = Running::start(sink.clone(), &label);
    for short in odd {
        sink.emit(Event::Warning(Warning {
            vertex: label.digest,
            level: 0,
            short,
            detail: Vec::new(),
            url: None,
            file: None,
            spans: Vec::new(),
        }));
    }
    running.end(Ok(()))
}

/// Lazy layers, fetched on behalf of one build.
struct LazyLayers {
    core: Arc<Core>,
    job: Arc<Job>,
    tasks: Tasks,
}

#[async_trait]
impl export::Lazy for LazyLayers {
    async fn fetch_blob(&self, snapshot: store::SnapshotId) -> Result<(), Fault> {
        match self.core.store.snapshots().lazy(&snapshot) {
            Some(layer) => self.core.fetch_layer(&self.job, &self.tasks, snapshot, layer).await,
            None => Ok(()),
        }
    }

    async fn fill(&self, snapshot: &store::Hold) -> Result<(), Fault> {
        self.core.fill(&self.job, &self.tasks, &self.job.cancel, snapshot).await
    }
}

impl From<store::UsageRecord> for UsageRecord {
    fn from(record: store::UsageRecord) -> Self {
        let time = |time| jiff::Timestamp::try_from(time).unwrap_or_default();
        UsageRecord {
            id: record.id,
            record_type: record.record_type.as_str().to_owned(),
            description: record.description,
            size: ByteSize(record.size),
            mutable: record.mutable,
            in_use: record.in_use,
            shared: record.shared,
            parents: record.parents,
            created_at: time(record.created_at),
            last_used_at: record.last_used_at.map(time),
            usage_count: record.usage_count.into(),
        }
    }
}

impl std::fmt::Display for Entitlement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Entitlement::NetworkHost => f.write_str("network.host"),
            Entitlement::SecurityInsecure => f.write_str("security.insecure"),
            Entitlement::Device(None) => f.write_str("device"),
            Entitlement::Device(Some(name)) => write!(f, "device={name}"),
        }
    }
}

impl std::str::FromStr for Entitlement {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text {
            "network.host" => Ok(Entitlement::NetworkHost),
            "security.insecure" => Ok(Entitlement::SecurityInsecure),
            "device" => Ok(Entitlement::Device(None)),
            _ => match text.strip_prefix("device=") {
                Some(name) => Ok(Entitlement::Device(Some(name.to_owned()))),
                None => Err(Fault::user(format!(
                    "no entitlement named `{text}`: there are network.host, security.insecure and device"
                ))),
            },
        }
    }
}
