//! The last part of a build: its result becomes images, archives and directories, and what caches get of it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use base::progress::{Discard, Event, Warning};
use base::report::{Label, Running, Tasks};
use base::{Cancel, Fault, Kind};
use export::{BuildResult, Exporter, PlatformResult};
use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use session::Output;
use solver::CacheKey;

use crate::api::Engine;
use crate::bridge::Bridge;
use crate::cache::early::Early;
use crate::cache::export::{CacheExports, Lacking, chain};
use crate::cache::inline::Records;
use crate::core::{Core, blocking};
use crate::driver::{JobHandle, panicked};
use crate::job::{Built, Job};
use crate::request::{CacheOptions, ExportRequest, Exports, SolveResponse};
use crate::result::FrontendResult;
use crate::tree::Tree;

impl Engine {
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
    pub(crate) async fn make_and_export(
        &self,
        job: &Arc<JobHandle>,
        mut result: FrontendResult,
        exports: Exports,
        caches: &CacheExports,
        options: &BTreeMap<String, String>,
    ) -> Result<SolveResponse, Fault> {
        let Exports { asked: mut exports, mut late } = exports;
        let tells = late.is_some();
        // Before anything is done: what is wrong with them is said now.
        exporters(&exports)?;
        let (mut is_verified, mut is_told) = (false, false);
        loop {
            let built = result.build(job).await?;
            if !std::mem::replace(&mut is_verified, true) {
                warn_of_platforms(job, options, &result)?;
            }
            if let Some(refs) = late.take() {
                let session = &job.job.session;
                let wanted = job.job.unless_cancelled(session.late_exports(result.metadata.clone(), refs)).await?;
                exports.extend(wanted.into_iter().map(|late| ExportRequest { kind: late.kind, attrs: late.attrs }));
            }
            let epoch = built.platforms.iter().find_map(|platform| platform.epoch);
            for export in &mut exports {
                export.take_epoch(options);
                export.take_result_epoch(epoch);
            }
            let readable = exporters(&exports)?;
            if !std::mem::replace(&mut is_told, true) {
                warn_of_attributes(job, &exports);
            }
            match self.export_built(job, &result, built, readable, caches).await {
                Err(fault) if job.job.gives_up(&fault) => {
                    tracing::warn!(%fault, "going on without a cache");
                    result = result.anew();
                }
                Ok(response) if tells => {
                    let told = job.job.session.exported(&response.exporter_response);
                    return job.job.unless_cancelled(told).await.map(|()| response);
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
    ) -> Result<SolveResponse, Fault> {
        if caches.inline || !caches.is_empty() {
            self.driver.remembered().await;
        }
        let keys: Vec<Arc<CacheKey>> = built.platforms.iter().flat_map(|platform| &platform.keys).cloned().collect();
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
        // Outputs are written once.
        let lacking = if exporters.is_empty() { Lacking::Repeat } else { Lacking::LeaveOut };
        let exporting = self.run_exporters(job, made, &result, exporters);
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
            caches.write(&self.core, &job.job, &keys, lacking, context).await
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
    ) -> Result<SolveResponse, Fault> {
        let (exporter_response, metadata) = (made.told_clients(), made.metadata.clone());
        let mut response = SolveResponse { exporter_response, metadata, ..SolveResponse::default() };
        for (index, exporter) in exporters.into_iter().enumerate() {
            let output = match job.job.session.output(index).await? {
                output if exporter.makes_layout() && !matches!(output, Output::Directory(_)) => {
                    job.job.session.export_store().await?.map_or(output, Output::Store)
                }
                output => output,
            };
            let exporter = exporter.with_annotations(&made.metadata)?.with_chosen_name(made.image_name());
            let running = Running::start(job.job.sink.clone(), &Label::phase(exporter.title()));
            let cancel = Cancel::new();
            let context = self.context(&job.job, running.tasks(), cancel.clone());
            let exported = tokio::select! {
                exported = exporter.export(&context, result, output) => exported,
                () = job.job.cancel.cancelled() => {
                    cancel.cancel();
                    Err(Fault::cancelled())
                }
            };
            // What is begun again without a cache has not failed.
            let exported = match exported {
                Err(fault) if fault.kind() == Kind::Cancelled || job.job.would_give_up(&fault) => {
                    drop(running);
                    return Err(fault);
                }
                exported => running.end(exported)?,
            };
            response.descriptors.push(exported.answer.get("containerimage.descriptor").cloned());
            response.exporter_response.extend(exported.answer);
            response.documents.extend(exported.documents);
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
}

/// How outputs are written. What is wrong with them is said before anything is done.
pub(crate) fn exporters(exports: &[ExportRequest]) -> Result<Vec<Exporter>, Fault> {
    exports.iter().map(|export| Exporter::read(&export.kind, &export.attrs)).collect()
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
    odd.into_iter().for_each(|short| warn(job, &label, short));
    running.end(Ok(()))
}

fn warn(job: &JobHandle, label: &Label, short: String) {
    job.job.sink.emit(Event::Warning(Warning {
        vertex: label.digest,
        level: 0,
        short,
        detail: Vec::new(),
        url: None,
        file: None,
        spans: Vec::new(),
    }));
}

/// Warns of attributes that other outputs have, as BuildKit's clients write them for all, and of values that count as others.
fn warn_of_attributes(job: &JobHandle, exports: &[ExportRequest]) {
    let remarks = exports.iter().flat_map(|export| Exporter::remarks(&export.kind, &export.attrs));
    let warnings: Vec<String> = remarks.collect();
    if warnings.is_empty() {
        return;
    }
    let label = Label::phase("reading outputs");
    let running = Running::start(job.job.sink.clone(), &label);
    warnings.into_iter().for_each(|short| warn(job, &label, short));
    let _ = running.end(Ok::<(), Fault>(()));
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
