//! What the programs ask of the engine.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::Fault;
use futures_util::FutureExt as _;

use crate::bridge::Bridge;
use crate::cache;
use crate::cache::export::CacheExports;
use crate::core::{Core, blocking, store_fault};
use crate::devices::Device;
use crate::driver::{Driver, panicked};
use crate::exporting::exporters;
use crate::job::Job;
use crate::ops::CAPS;
use crate::policy;
use crate::request::{
    Begin, Entitlement, Exports, Frontend, SolveRequest, SolveResponse, check_attestations, is_question,
};
use crate::step_log::LogLimits;
use crate::usage::{PruneOptions, UsageRecord};

/// The engine: one per state directory. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) core: Arc<Core>,
    pub(crate) driver: Driver,
    entitlements: Arc<Vec<Entitlement>>,
    gc: Arc<Vec<config::PrunePolicy>>,
    /// Calls of `prune` whose threads run; whoever asked may have gone.
    pruning: Arc<AtomicUsize>,
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
        Engine {
            core,
            driver,
            entitlements: Arc::new(entitlements),
            gc: Arc::new(gc),
            pruning: Arc::default(),
            has_dockerfile,
        }
    }

    /// How snapshots are kept here and why so, for the log.
    pub fn snapshotter(&self) -> String {
        let choice = self.core.store.driver();
        format!("{} ({})", choice.driver.as_str(), choice.reason)
    }

    /// What ends the steps of an engine that is not closed, since its process ends at once, and removes their groups. It
    /// waits for them, and keeps no engine alive.
    pub fn end_of_steps(&self) -> impl FnOnce() + Send + use<> {
        let core = Arc::downgrade(&self.core);
        move || core.upgrade().iter().for_each(|core| core.executor.close())
    }

    /// What is to be told of the state directory as it was found.
    pub fn remark(&self) -> Option<String> {
        let damage = self.core.store.damage()?;
        let path = self.core.store.dir().join("metadata.db");
        Some(format!("`{}` is damaged ({damage}): an empty one takes its place, and steps run again", path.display()))
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

    async fn solve_to_the_end(&self, mut request: SolveRequest) -> Result<SolveResponse, Fault> {
        let (options, inline) = match &request.frontend {
            Frontend::Named { options, .. } => (options.clone(), cache::wants_inline(options)),
            Frontend::Llb { options, .. } => {
                if !request.exports.is_empty() || request.late_exports {
                    check_attestations(options)?;
                }
                request.exports.iter_mut().for_each(|export| export.take_epoch(options));
                (BTreeMap::new(), false)
            }
        };
        exporters(&request.exports)?;
        let mut caches = CacheExports::read(&request.cache_exports)?;
        caches.inline |= inline;
        let bridge = self.begin(Begin {
            reference: request.reference,
            session: request.session,
            progress: request.progress,
            cancel: request.cancel,
            entitlements: request.entitlements,
            source_policies: request.source_policies,
        });
        let bridge = bridge.await?;
        bridge.import(&request.cache_imports);
        // What the client will want of the layers is not known before the end.
        if !is_question(&options) && !request.late_exports {
            self.send_early(&bridge, &request.exports, &request.cache_exports)?;
        }
        let result = bridge.solve(request.frontend).await?;
        if is_question(&options) {
            return Ok(SolveResponse { answer: result.metadata, ..SolveResponse::default() });
        }
        // Names as BuildKit gives them: no gateway of such a build knows them.
        let names = || result.all().into_iter().map(|_| session::random_id()).collect();
        let late = request.late_exports.then(names);
        let exports = Exports { asked: request.exports, late };
        self.make_and_export(&bridge.job, result, exports, &caches, &options).await
    }

    /// Begins a build whose frontend is elsewhere: whoever has the bridge asks what it needs, and gives the result to
    /// [`export`](Self::export).
    pub async fn begin(&self, begin: Begin) -> Result<Bridge, Fault> {
        self.check_rights(&begin.entitlements)?;
        let policies = policy::read(&begin.source_policies)?;
        let job = Job::new(begin.reference, begin.session, begin.progress, begin.cancel, begin.entitlements, policies);
        let job = Arc::new(self.driver.begin(Arc::new(job)).await?);
        Ok(Bridge { core: self.core.clone(), job, has_dockerfile: self.has_dockerfile })
    }

    /// A build gets only what it asks for and the builder allows; who allows devices allows each of them.
    fn check_rights(&self, wanted: &[Entitlement]) -> Result<(), Fault> {
        let allows = |right: &Entitlement| match right {
            Entitlement::Device(Some(wanted)) => self.entitlements.iter().any(|right| match right {
                Entitlement::Device(None) => true,
                // What the client calls it is its business.
                Entitlement::Device(Some(name)) => wanted.split(',').next() == name.split(',').next(),
                _ => false,
            }),
            other => self.entitlements.contains(other),
        };
        match wanted.iter().find(|right| !allows(right)) {
            None => Ok(()),
            Some(right) => Err(Fault::user(format!("entitlement {right} is not allowed by the builder")).hint(
                format!("start it with `--allow-insecure-entitlement {right}`, or list it in `insecure-entitlements`"),
            )),
        }
    }

    /// Devices that builds may ask for.
    pub async fn devices(&self) -> Vec<Device> {
        let core = self.core.clone();
        blocking(move || core.devices.list()).await
    }

    /// What definitions may ask of ops here.
    pub fn llb_caps(&self) -> impl Iterator<Item = &'static str> {
        let has_devices = self.core.devices.are_on();
        CAPS.iter().copied().filter(move |cap| has_devices || *cap != "exec.meta.cdi")
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

    /// Removes what `options` says and answers what went, also where not all could go.
    pub async fn prune(&self, options: PruneOptions) -> (Vec<UsageRecord>, Result<(), Fault>) {
        let store = self.core.store.clone();
        let options = store::PruneOptions {
            all: options.all,
            keep_duration: options.keep_duration.unwrap_or_default(),
            reserved_space: options.reserved_space.map_or(0, |size| size.0),
            max_used_space: options.max_used_space.map_or(0, |size| size.0),
            min_free_space: options.min_free_space.map_or(0, |size| size.0),
            filters: options.filters,
        };
        let counted = Counted::one_of(&self.pruning);
        let (removed, done) = blocking(move || {
            let _counted = counted;
            let mut removed = Vec::new();
            let done = store.prune_into(&options, &mut removed);
            (removed, done)
        })
        .await;
        (removed.into_iter().map(UsageRecord::from).collect(), done.map_err(|e| store_fault("cannot prune", e)))
    }

    /// How many are removing what they were asked to just now; [`close`](Engine::close) waits for them.
    pub fn pruning(&self) -> usize {
        self.pruning.load(Ordering::Relaxed)
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

/// One of those that are counted, as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn one_of(count: &Arc<AtomicUsize>) -> Counted {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn clean(store: &store::Store, gc: &[config::PrunePolicy]) {
    for (number, rule) in gc.iter().enumerate() {
        let began = Instant::now();
        match store.prune(&prune_options(rule)) {
            Ok(removed) => tracing::debug!(
                rule = number + 1,
                records = removed.len(),
                bytes = removed.iter().map(|record| record.size).sum::<u64>(),
                ms = began.elapsed().as_millis() as u64,
                "a rule of cleaning was applied"
            ),
            Err(error) => tracing::warn!(%error, "garbage collection failed"),
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
