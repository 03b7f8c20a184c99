//! The solver's owner: what it wants done is done, and what it says is passed on.

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use base::report::Tasks;
use base::{Digest, Fault, Kind};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use solver::cache_manager;
use solver::{
    Action, ActionId, CacheMap, CacheResult, CacheStore, Cause, Change, Event, JobId, Notice, Output, RequestId,
    ResultId, SolveError, Solved, Solver, SourceId, Stopped, Vertex,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Answered, Made, Message, Reply, panicked};
use crate::cache;
use crate::cache::import::ReadCache;
use crate::core::{Core, blocking};
use crate::job::Job;
use crate::journal;
use crate::ops::{self, Op, OpContext};
use crate::show::Shows;
use crate::tree::Tree;

/// What is done while results are saved.
const REMEMBERING: &str = "remembering results";
/// The name of the result of ops that make nothing.
const EMPTY_RESULT: &str = "empty";

pub(super) struct Owner {
    solver: Solver<Arc<Op>, Tree, Fault>,
    core: Arc<Core>,
    answers: mpsc::WeakUnboundedSender<Message>,
    jobs: HashMap<JobId, Arc<Job>>,
    replies: HashMap<RequestId, (JobId, u64, Reply)>,
    tickets: HashMap<u64, RequestId>,
    running: HashMap<ActionId, Work>,
    shown: Shows,
    /// The builds that have answered a result made by a vertex, and not asked for it yet perhaps.
    lenders: HashMap<Digest, Vec<JobId>>,
    /// Caches beside the local one, and the builds that read them.
    caches: HashMap<SourceId, (JobId, Arc<ReadCache>)>,
    /// What is being remembered, and who waits for that.
    remembering: Vec<(BTreeSet<ActionId>, oneshot::Sender<()>)>,
    idle: Vec<oneshot::Sender<()>>,
}

/// The caches that a lookup names.
struct Stores {
    local: store::CacheKeys,
    caches: Vec<Arc<ReadCache>>,
}

impl cache_manager::Sources for Stores {
    fn store(&self, source: SourceId) -> Option<&dyn CacheStore> {
        if source == SourceId::LOCAL {
            return Some(&self.local);
        }
        self.caches.iter().find(|cache| cache.keys.source() == source).map(|cache| &cache.keys as &dyn CacheStore)
    }
}

/// An action that is carried out.
enum Work {
    Op { op: Arc<Op>, cancel: CancellationToken, flag: base::Cancel },
    Cache(&'static str),
}

impl Work {
    fn name(&self) -> String {
        match self {
            Work::Op { op, .. } => op.label.name.clone(),
            Work::Cache(what) => (*what).to_owned(),
        }
    }
}

impl Owner {
    pub(super) fn new(
        core: Arc<Core>,
        answers: mpsc::WeakUnboundedSender<Message>,
        max_parallelism: Option<usize>,
    ) -> Owner {
        Owner {
            solver: Solver::new(max_parallelism),
            core,
            answers,
            jobs: HashMap::new(),
            replies: HashMap::new(),
            tickets: HashMap::new(),
            running: HashMap::new(),
            shown: Shows::default(),
            lenders: HashMap::new(),
            caches: HashMap::new(),
            remembering: Vec::new(),
            idle: Vec::new(),
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) {
        while let Some(message) = inbox.recv().await {
            self.take(message);
            // All that is there at once: the solver then asks its questions in fewer, larger batches.
            while let Ok(message) = inbox.try_recv() {
                self.take(message);
            }
            loop {
                let actions = self.solver.poll_actions();
                if actions.is_empty() {
                    break;
                }
                actions.into_iter().for_each(|action| self.carry_out(action));
            }
            if self.solver.is_idle() {
                self.idle.drain(..).for_each(|reply| reply.send(()).unwrap_or(()));
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Begin { job, reply } => {
                let id = self.solver.begin();
                self.jobs.insert(id, job);
                if reply.send(id).is_err() {
                    self.end(id);
                }
            }
            Message::Solve { job, ticket, caches, vertices, edge, reply } => {
                self.caches.extend(caches.into_iter().map(|cache| (cache.keys.source(), (job, cache))));
                let asked =
                    self.solver.load(job, vertices).and_then(|()| self.solver.request(job, edge.vertex, edge.output));
                match asked {
                    Ok(request) => {
                        self.tickets.insert(ticket, request);
                        self.replies.insert(request, (job, ticket, reply));
                    }
                    Err(error) => {
                        let fault = Fault::because(Kind::User, "the build cannot be solved", error);
                        let _ = reply.send(Err(fault));
                    }
                }
            }
            Message::Lend { job, vertices } => {
                for vertex in vertices.into_iter().filter(|_| self.jobs.contains_key(&job)) {
                    let lenders = self.lenders.entry(vertex).or_default();
                    if !lenders.contains(&job) {
                        lenders.push(job);
                    }
                }
            }
            Message::Withdraw { ticket } => {
                if let Some(request) = self.tickets.remove(&ticket) {
                    self.replies.remove(&request);
                    self.solver.cancel(request);
                }
            }
            Message::End { job } => self.end(job),
            Message::Answer(event) => {
                self.running.remove(&event.id());
                if let Event::Saved(id) = event {
                    self.remembering.iter_mut().for_each(|(left, _)| _ = left.remove(&id));
                    let done = self.remembering.extract_if(.., |(left, _)| left.is_empty());
                    done.for_each(|(_, reply)| reply.send(()).unwrap_or(()));
                }
                self.solver.handle(event);
            }
            Message::Remembered { reply } => {
                let saving = self.running.iter().filter(|(_, work)| matches!(work, Work::Cache(REMEMBERING)));
                let left: BTreeSet<ActionId> = saving.map(|(id, _)| *id).collect();
                match left.is_empty() {
                    true => drop(reply.send(())),
                    false => self.remembering.push((left, reply)),
                }
            }
            Message::Idle { reply } => self.idle.push(reply),
            Message::Running { reply } => {
                let names: BTreeSet<String> = self.running.values().map(Work::name).collect();
                let _ = reply.send(names.into_iter().collect());
            }
        }
    }

    fn end(&mut self, job: JobId) {
        self.solver.end(job);
        if let Some(job) = self.jobs.remove(&job) {
            self.shown.leave(&job);
        }
        self.caches.retain(|_, (of, _)| *of != job);
        self.lenders.retain(|_, lenders| {
            lenders.retain(|lender| *lender != job);
            !lenders.is_empty()
        });
    }

    fn carry_out(&mut self, action: Action<Arc<Op>, Tree, Fault>) {
        match action {
            Action::CacheMap { id, vertex, index } => {
                let Some(ctx) = self.context(id, &vertex) else {
                    return self.solver.handle(Event::CacheMap(id, Err(Stopped::Cancelled)));
                };
                // Only sources need to look anywhere; all others are read off the op, which is quicker than a task.
                if ctx.op.is_source() {
                    self.spawn(id, ctx, Event::CacheMap, move |ctx| async move {
                        ops::key(&ctx, index).await.map(cache_map)
                    });
                } else {
                    self.running.remove(&id);
                    let stated = ctx.op.stated_key();
                    self.solver.handle(Event::CacheMap(id, stated.map(cache_map).map_err(Stopped::Failed)));
                }
            }
            Action::Content { id, vertex, input, result } => {
                let Some(ctx) = self.context(id, &vertex) else {
                    return self.solver.handle(Event::Content(id, Err(Stopped::Cancelled)));
                };
                self.spawn(id, ctx, Event::Content, move |ctx| async move { ops::content(&ctx, input, &result).await });
            }
            Action::Exec { id, vertex, inputs } => {
                let Some(ctx) = self.context(id, &vertex) else {
                    return self.solver.handle(Event::Exec(id, Err(Stopped::Cancelled)));
                };
                journal::began(&ctx);
                let is_kept = vertex.export_cache != Some(false) && !ctx.op.is_source();
                self.spawn(id, ctx, Event::Exec, move |ctx| async move {
                    let trees = ops::run(&ctx, &inputs).await?;
                    for tree in trees.iter().filter(|_| is_kept) {
                        if let Tree::Snapshot(hold) = tree {
                            ctx.jobs.iter().for_each(|job| job.has_made(hold));
                        }
                    }
                    Ok(trees.into_iter().map(|tree| output(&ctx.core, tree)).collect())
                });
            }
            Action::Load { id, record, .. } if record.source == SourceId::LOCAL => {
                let jobs = self.solver.jobs_of(id);
                let jobs: Vec<Arc<Job>> = jobs.iter().filter_map(|id| self.jobs.get(id)).cloned().collect();
                let loaded = self.load(&record.result, &jobs);
                if loaded.is_some() && journal::is_kept() {
                    self.found(id, journal::Found::Here);
                }
                self.solver.handle(Event::Load(id, loaded));
            }
            Action::Load { id, vertex, record, key, .. } => {
                let cache = self.caches.get(&record.source).map(|(_, cache)| cache.clone());
                let (Some(cache), Some(ctx)) = (cache, self.context(id, &vertex)) else {
                    return self.solver.handle(Event::Load(id, None));
                };
                if journal::is_kept() {
                    self.found(id, journal::Found::In(cache.place.clone()));
                }
                let loaded = |id, loaded: Result<_, _>| Event::Load(id, loaded.ok().flatten());
                self.spawn(id, ctx, loaded, move |ctx| async move {
                    let step = ctx.op.label.digest;
                    if ctx.jobs.iter().any(|job| job.has_given_up(std::slice::from_ref(&cache.place))) {
                        journal::not_loaded(step, &cache, "the build has given it up: layers were missing");
                        return Ok(None);
                    }
                    let (core, jobs, from) = (ctx.core.clone(), ctx.jobs.clone(), cache.clone());
                    let loaded = blocking(move || cache::load::load(&core, &jobs, &from, &record, &key)).await;
                    // A failure is a miss, and worth a word.
                    let loaded =
                        loaded.inspect_err(|error| tracing::warn!(%error, "a cached result was not loaded"))?;
                    if loaded.is_none() {
                        journal::not_loaded(step, &cache, "it names no layers for it");
                    }
                    Ok(loaded.map(|loaded| {
                        let output = output(&ctx.core, Tree::snapshot(loaded.hold));
                        let stored =
                            output.stored.map(|stored| CacheResult { created_at: loaded.created_at, ..stored });
                        Output { stored, ..output }
                    }))
                });
            }
            Action::Lookup { id, lookups } => {
                let store = self.core.store.cache_keys();
                let asked: BTreeSet<SourceId> =
                    lookups.iter().flat_map(|lookup| lookup.sources.iter().copied()).collect();
                let caches = asked.iter().filter_map(|source| self.caches.get(source));
                let caches: Vec<Arc<ReadCache>> = caches.map(|(_, cache)| cache.clone()).collect();
                let steps = match journal::is_kept() && !caches.is_empty() {
                    true => self.solver.asked_by(id),
                    false => Vec::new(),
                };
                // Without answers all are misses.
                self.spawn_blocking(id, "looking results up in the cache", Event::Lookup, move || {
                    let stores = Stores { local: store, caches };
                    let (found, failure) = cache_manager::lookup(&stores, &lookups);
                    if let Some(error) = failure {
                        tracing::warn!(%error, "cache look-up failed, taken as a miss");
                    }
                    journal::missed(&stores.caches, &steps, &lookups, &found);
                    found
                });
            }
            Action::Save { id, saves } => {
                let store = self.core.store.cache_keys();
                self.spawn_blocking(
                    id,
                    REMEMBERING,
                    |id, ()| Event::Saved(id),
                    move || {
                        if let Err(error) = cache_manager::save(&store, &saves) {
                            tracing::warn!(%error, "results were not remembered");
                        }
                    },
                );
            }
            Action::Cancel(id) => {
                if let Some(Work::Op { cancel, flag, .. }) = self.running.get(&id) {
                    flag.cancel();
                    cancel.cancel();
                }
            }
            Action::Answer { request, result } => {
                if let Some((job, ticket, reply)) = self.replies.remove(&request) {
                    self.tickets.remove(&ticket);
                    let job = self.jobs.get(&job);
                    let made = |Solved { result, keys }| Made { tree: result, keys };
                    let result = result.map(made).map_err(|error| fault(error, job));
                    let _ = reply.send(result);
                }
            }
            Action::Notify(notice) => self.notify(notice),
        }
    }

    /// None if the builds that wanted the action have ended meanwhile.
    fn context(&mut self, id: ActionId, vertex: &Vertex<Arc<Op>>) -> Option<OpContext> {
        let ids = self.solver.jobs_of(id);
        let jobs: Vec<Arc<Job>> = ids.iter().filter_map(|id| self.jobs.get(id)).cloned().collect();
        if jobs.is_empty() {
            return None;
        }
        let lenders = self.lenders.get(&vertex.op.vertex.digest);
        let others = ids.iter().filter(|id| lenders.is_none_or(|lenders| !lenders.contains(id)));
        let lenders = lenders.into_iter().flatten().chain(others);
        let lenders = lenders.filter_map(|id| self.jobs.get(id)).cloned().collect();
        let (cancel, flag) = (CancellationToken::new(), base::Cancel::new());
        let work = Work::Op { op: vertex.op.clone(), cancel: cancel.clone(), flag: flag.clone() };
        self.running.insert(id, work);
        let relay = self.shown.relay(self.solver.node_of(id)?);
        for job in &jobs {
            relay.join(&job.sink, job.name_of(vertex.digest).unwrap_or(vertex.digest));
        }
        let tasks = Tasks::new(relay, vertex.digest);
        Some(OpContext { core: self.core.clone(), jobs, lenders, op: vertex.op.clone(), tasks, cancel, flag })
    }

    /// Works for a vertex on a task of its own. A panic fails the vertex: the solver gets its answer in any case.
    fn spawn<T: Send + 'static, F>(
        &self,
        id: ActionId,
        ctx: OpContext,
        event: fn(ActionId, Result<T, Stopped<Fault>>) -> Answered,
        work: impl FnOnce(OpContext) -> F,
    ) where
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let Some(answers) = self.answers.upgrade() else { return };
        let cancel = ctx.cancel.clone();
        let work = AssertUnwindSafe(work(ctx)).catch_unwind();
        tokio::spawn(async move {
            let result = work.await.unwrap_or_else(|panic| Err(panicked(&*panic)));
            let stop = |fault| if cancel.is_cancelled() { Stopped::Cancelled } else { Stopped::Failed(fault) };
            let _ = answers.send(Message::Answer(event(id, result.map_err(stop))));
        });
    }

    /// Works with the cache on a blocking thread. A panic, as any failure there, is as good as an empty answer.
    fn spawn_blocking<T: Default + 'static>(
        &mut self,
        id: ActionId,
        what: &'static str,
        event: fn(ActionId, T) -> Answered,
        work: impl FnOnce() -> T + Send + 'static,
    ) {
        let Some(answers) = self.answers.upgrade() else { return };
        self.running.insert(id, Work::Cache(what));
        tokio::task::spawn_blocking(move || {
            let result = std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_default();
            let _ = answers.send(Message::Answer(event(id, result)));
        });
    }

    /// Snapshot records are in memory: holding one is no more than a look at a table.
    fn load(&self, result: &CacheResult, jobs: &[Arc<Job>]) -> Option<Output<Tree>> {
        let stored = Some(result.clone());
        if result.id.as_str() == EMPTY_RESULT {
            return Some(Output { result: Tree::Empty, stored });
        }
        let id = result.id.as_str().parse().ok();
        if let Some(hold) = id.and_then(|id| self.core.store.snapshots().hold(&id)) {
            if jobs.iter().any(|job| self.core.is_lost(job, &hold)) {
                return None;
            }
            return Some(Output { result: Tree::snapshot(hold), stored });
        }
        let (keys, gone) = (self.core.store.cache_keys(), result.id.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = keys.write(&[Change::Release(gone)]) {
                tracing::warn!(%error, "a lost result was not forgotten");
            }
        });
        None
    }

    /// Where the result that is being loaded was found.
    fn found(&mut self, load: ActionId, found: journal::Found) {
        if let Some(node) = self.solver.node_of(load) {
            self.shown.found(node, found);
        }
    }

    fn notify(&mut self, notice: Notice<Fault>) {
        let jobs: Vec<(JobId, Arc<Job>)> =
            notice.jobs.iter().filter_map(|id| Some((*id, self.jobs.get(id)?.clone()))).collect();
        let op = self.solver.vertex_of(notice.node).map(|vertex| vertex.op.clone());
        self.shown.notify(&notice, op.as_deref(), &jobs);
    }
}

fn cache_map(stated: ops::StatedKey) -> (CacheMap, solver::Last) {
    (CacheMap { digest: stated.digest, inputs: stated.inputs }, stated.last)
}

fn output(core: &Core, tree: Tree) -> Output<Tree> {
    let stored = match &tree {
        Tree::Empty => Some((EMPTY_RESULT.to_owned(), None)),
        Tree::Snapshot(hold) => Some((hold.id().to_string(), core.store.snapshots().info(&hold.id()))),
        Tree::Local(_) => None,
    };
    let stored = stored.map(|(id, info)| {
        let created = info.and_then(|info| Timestamp::try_from(info.created_at).ok()).unwrap_or_else(Timestamp::now);
        let created_at = i64::try_from(created.as_nanosecond()).unwrap_or(i64::MAX);
        CacheResult { id: ResultId::from(id.as_str()), created_at }
    });
    Output { result: tree, stored }
}

fn fault(error: SolveError<Fault>, job: Option<&Arc<Job>>) -> Fault {
    let vertex = error.vertex;
    let fault = match error.cause {
        Cause::Op(fault) => fault,
        cause => Fault::because(Kind::User, "the build cannot be solved", cause),
    };
    let Some(job) = job else { return fault };
    let vertex = job.name_of(vertex).unwrap_or(vertex);
    let fault = job.locate(fault, vertex);
    match job.label(vertex) {
        Some(label) => match why_outside(&fault, &label.name) {
            Some(why) => fault.better_hint(why),
            None => fault,
        }
        .vertex(job.original(vertex), &label.name),
        None => fault,
    }
}

/// A hint for who tried to copy what is not in the context, by the instruction that a step is called after: paths of ops have no
/// `..` any more.
fn why_outside(fault: &Fault, step: &str) -> Option<String> {
    let is_missing = fault.find::<files::Error>().is_some_and(files::Error::is_not_found);
    let is_copy = step.split_whitespace().any(|word| word == "COPY" || word == "ADD") && !step.contains("--from=");
    let outside = step.split_whitespace().find(|word| *word == ".." || word.starts_with("../"));
    let outside = outside.filter(|_| is_missing && is_copy)?;
    Some(format!("`{outside}` is outside of the context: only what is in it can be copied"))
}
