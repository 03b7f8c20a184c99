//! One build from its plan to its files: session, display, signals, engine.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::{Fault, Kind};
use daemon::TracedBuild;
use engine::{Engine, SolveRequest, SolveResponse, UsageRecord};
use session::local::{Layout, LocalSession};
use tokio_util::sync::CancellationToken;

use super::cache_metrics::CacheMetrics;
use super::caches::LocalCaches;
use super::layout::ImageLayout;
use super::signals::{before_an_end_at_once, cancelled_by_signals, cut_short};
use super::{BuildPlan, Settings};
use crate::display::{self, Display, Mode, Notice};
use crate::environment::Environment;
use crate::fault::{FailedStep, print_warning};
use crate::metadata;
use crate::spec::output;

/// Why a command failed, and the last output of the steps that did.
#[derive(Debug)]
pub struct Failure {
    /// The cause.
    pub fault: Fault,
    /// What the display kept.
    pub steps: Vec<FailedStep>,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure { fault, steps: Vec::new() }
    }
}

/// Opens the engine, builds, writes the files.
pub async fn build(
    plan: BuildPlan,
    settings: &Settings,
    environment: &Environment,
    cancel: CancellationToken,
) -> Result<(), Failure> {
    let mode = plan.mode;
    if let (Some(text), false) = (environment.tell_single_id(), matches!(mode, Mode::Quiet | Mode::RawJson)) {
        display::tell(mode, &mut std::io::stderr(), &Notice::Warning(text));
    }
    let warn = |text| display::tell(mode, &mut std::io::stderr(), &Notice::Warning(text));
    let traced = TracedBuild::begin(|name| environment.get(name).map(str::to_owned));
    let traced = traced.unwrap_or_else(|why| {
        warn(format!("traces go to no collector: {why}"));
        None
    });
    let engine = open(settings, environment, mode, &cancel).await?;
    let (solving, listened_to) = (engine.clone(), traced.as_ref());
    let solve = |mut request: SolveRequest| async move {
        if let Some(traced) = listened_to {
            request.progress = traced.listening(request.progress);
        }
        solving.solve(request).await
    };
    let result = drive(plan, environment, Box::new(std::io::stderr()), cancel, solve).await;
    if let Some(traced) = traced {
        let error = result.as_ref().err().map(|failure| failure.fault.to_string());
        if let Err(why) = traced.end(error.as_deref()).await {
            warn(format!("the trace collector does not take spans: {why}"));
        }
    }
    close(engine, mode).await;
    result.map_err(|failure| Failure { fault: settings.name_root(failure.fault, environment), ..failure })
}

/// After this time we say what we wait for.
const PATIENCE: Duration = Duration::from_secs(1);

/// So long a build waits for a daemon, which may be about to end.
const DAEMON_PATIENCE: Duration = Duration::from_secs(2);

/// Opens the engine, unless a signal comes first. Where another process has the state directory, that is told, and waited
/// for.
pub async fn open(
    settings: &Settings,
    environment: &Environment,
    mode: Mode,
    cancel: &CancellationToken,
) -> Result<Engine, Fault> {
    let tell = |notice| display::tell(mode, &mut std::io::stderr(), &notice);
    for warning in &settings.warnings {
        tell(Notice::Warning(warning.clone()));
    }
    settings.start_log(mode);
    let mut left = settings.lock_wait;
    // Who says how long gets that, also of a daemon.
    let mut patience = left.unwrap_or(DAEMON_PATIENCE);
    let mut told = None;
    loop {
        let turn = left.map_or(PATIENCE, |left| left.min(PATIENCE));
        let opened = tokio::select! {
            opened = Engine::open(settings.engine_options(environment, turn)) => opened,
            () = cancel.cancelled() => Err(cut_short("ended")),
        };
        left = left.map(|left| left - turn);
        if opened.as_ref().err().is_some_and(engine::is_in_use_by_daemon) && !settings.is_daemon {
            patience = patience.saturating_sub(turn);
        }
        match opened.as_ref().err().and_then(engine::in_use) {
            Some(by) if left.is_none_or(|left| !left.is_zero()) && !patience.is_zero() => {
                if told.as_ref() != Some(&by) {
                    tell(Notice::Waiting(by.clone()));
                    told = Some(by);
                }
            }
            _ => {
                let engine = opened?;
                before_an_end_at_once(engine.end_of_steps());
                engine.remark().into_iter().for_each(|text| tell(Notice::Warning(text)));
                return Ok(engine);
            }
        }
    }
}

/// Looks at or removes what is stored, and nothing else goes. Where nothing ever was, that is said, and no state is made.
pub async fn tidy<F: Future<Output = Result<Vec<UsageRecord>, Fault>>>(
    mut settings: Settings,
    environment: &Environment,
    work: impl FnOnce(Engine) -> F,
) -> Result<Vec<UsageRecord>, Fault> {
    if !settings.has_state() {
        let text = format!("there is no state directory `{}/hullworks`: nothing is stored", settings.root.display());
        print_warning(&mut std::io::stderr(), text);
        return Ok(Vec::new());
    }
    settings.config.worker.oci.gc.enabled = Some(false);
    let cancel = cancelled_by_signals()?;
    let engine = open(&settings, environment, Mode::Plain, &cancel).await?;
    let records = tokio::select! {
        records = work(engine.clone()) => records,
        () = cancel.cancelled() => Err(cut_short("ended")),
    };
    close(engine, Mode::Plain).await;
    records
}

/// Closes the engine, and tells what it does not wait for any longer.
async fn close(engine: Engine, mode: Mode) {
    let tell = |notice| display::tell(mode, &mut std::io::stderr(), &notice);
    let mut closing = std::pin::pin!(engine.close());
    let stuck = tokio::select! {
        biased;
        stuck = &mut closing => stuck,
        () = tokio::time::sleep(PATIENCE) => {
            tell(Notice::Waiting("for the end of what still runs, and of cleaning up".to_owned()));
            closing.await
        }
    };
    for what in stuck {
        tell(Notice::Warning(format!("gave up waiting for the end of: {what}")));
    }
}

/// The build around `solve`: everything that is not the engine.
pub async fn drive<F, S>(
    mut plan: BuildPlan,
    environment: &Environment,
    mut out: Box<dyn Write + Send>,
    cancel: CancellationToken,
    solve: S,
) -> Result<(), Failure>
where
    S: FnOnce(SolveRequest) -> F,
    F: Future<Output = Result<SolveResponse, Fault>>,
{
    let caches = plan.cache_exports.iter().filter_map(|cache| cache.attrs.get("dest")).map(Path::new);
    let kept = plan.dirs.values().chain(plan.layouts.values()).map(PathBuf::as_path).chain(caches);
    output::expect_spared(&plan.exports, kept)?;
    let reference = session::random_id();
    if let Some(path) = &plan.ref_file {
        metadata::write(path.clone(), reference.clone(), &cancel).await?;
    }
    let trace = match plan.trace.clone() {
        Some(path) => Some(metadata::unless_cancelled(path, &cancel, open_trace).await?),
        None => None,
    };
    let (caches, missing) = LocalCaches::of(&mut plan.cache_imports, &plan.cache_exports)?;
    for warning in missing {
        display::tell(plan.mode, &mut out, &Notice::Warning(warning));
    }
    let metrics = plan.cache_metrics.as_deref().map(CacheMetrics::new).transpose()?;
    let display = Display::start(plan.mode, out, trace, plan.sum_up_warnings, environment)?;
    let layout = ImageLayout::of(&plan.exports);
    let mut request = request(&plan, &caches, &layout, reference, environment, &display, cancel.clone());
    if let Some(metrics) = &metrics {
        request.progress = metrics.counting(request.progress);
    }
    let result = solve(request).await;
    let steps = display.finish();
    let counted = metrics.map_or(Ok(()), CacheMetrics::write);
    match result {
        Ok(response) => {
            if response.exporter_response.contains_key(CACHE_MANIFEST) {
                caches.tag()?;
            }
            layout.name(&response)?;
            write_answers(&plan, &response, &cancel).await?;
            Ok(counted?)
        }
        Err(fault) if cancel.is_cancelled() && fault.kind() == Kind::Cancelled => {
            Err(Failure { fault: cut_short("build cancelled").context("failed to solve"), steps: Vec::new() })
        }
        Err(fault) => Err(Failure { fault: in_frame(fault), steps }),
    }
}

/// What is answered once a cache was written.
const CACHE_MANIFEST: &str = "cache.manifest";

/// Tools look for these words.
fn in_frame(fault: Fault) -> Fault {
    if fault.cause().starts_with("failed to solve") { fault } else { fault.context("failed to solve") }
}

fn request(
    plan: &BuildPlan,
    caches: &LocalCaches,
    layout: &ImageLayout,
    reference: String,
    environment: &Environment,
    display: &Display,
    cancel: CancellationToken,
) -> SolveRequest {
    let session = crate::credentials::add(LocalSession::new(reference.clone()), environment);
    let mut session = layout.add_to(caches.add_to(session));
    for (name, dir) in &plan.dirs {
        session = session.with_dir(name, dir);
    }
    for (name, dir) in &plan.layouts {
        session = session.with_layout(name, Layout::new(dir));
    }
    for (id, source) in &plan.secrets {
        session = session.with_secret(id, source.clone());
    }
    for (id, source) in &plan.agents {
        session = session.with_agent(id, source.clone());
    }
    for export in &plan.exports {
        session = session.with_output(export.output.clone());
    }
    SolveRequest {
        reference,
        frontend: plan.frontend.clone(),
        exports: plan.exports.iter().map(|export| export.request.clone()).collect(),
        late_exports: false,
        cache_imports: plan.cache_imports.clone(),
        cache_exports: plan.cache_exports.clone(),
        entitlements: plan.entitlements.clone(),
        source_policies: plan.source_policy.clone().into_iter().collect(),
        session: Arc::new(session),
        progress: display.sink(),
        cancel,
    }
}

async fn write_answers(plan: &BuildPlan, response: &SolveResponse, cancel: &CancellationToken) -> Result<(), Fault> {
    if !response.answer.is_empty() {
        return super::answer::print(plan.call, &response.answer);
    }
    let answers = &response.exporter_response;
    let id = metadata::image_id(answers);
    if let Some(path) = &plan.metadata_file {
        metadata::write(path.clone(), metadata::metadata_json(answers), cancel).await?;
    }
    if let (Some(path), Some(id)) = (&plan.iid_file, id) {
        metadata::write(path.clone(), id.to_owned(), cancel).await?;
    }
    if let (true, Some(id)) = (plan.print_id, id) {
        crate::print_line(id)?;
    }
    Ok(())
}

fn open_trace(path: &Path) -> Result<Box<dyn Write + Send>, Fault> {
    let file = File::options().append(true).create(true).open(path);
    let file =
        file.map_err(|e| Fault::because(Kind::User, format!("cannot write the trace `{}`", path.display()), e))?;
    Ok(Box::new(file))
}

#[cfg(test)]
mod tests;
