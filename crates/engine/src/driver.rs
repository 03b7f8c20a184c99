//! The one owner of the solver: feeds it answers, carries out its actions, and tells people how it goes.
//!
//! One task has the solver; it never waits for a disk, a network or a step. Actions run as tasks of their own and
//! send their answers back. Dropping the last [`Driver`] ends the task.

use std::any::Any;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::progress::Event as Progress;
use base::{Digest, Fault, Kind};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use solver::cache_manager;
use solver::{
    Action, ActionId, CacheKey, CacheMap, CacheResult, CacheStore, Cause, Change, Event, Input, JobId, Notice, Output,
    RequestId, ResultId, SolveError, Solved, Solver, SourceId, Stopped, Vertex,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::cache;
use crate::cache::early::Early;
use crate::cache::import::ReadCache;
use crate::core::{Core, blocking};
use crate::job::Job;
use crate::ops::{self, Op, OpContext};
use crate::show::Shows;
use crate::tree::Tree;
use base::report::{Label, Tasks};

/// What is done while results are saved.
const REMEMBERING: &str = "remembering results";
/// The name of the result of ops that make nothing.
const EMPTY_RESULT: &str = "empty";

type Reply = oneshot::Sender<Result<Made, Fault>>;
type Answered = Event<Tree, Fault>;

/// A result, and what it is remembered by.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) tree: Tree,
    pub(crate) keys: Vec<Arc<CacheKey>>,
}

enum Message {
    Begin {
        job: Arc<Job>,
        reply: oneshot::Sender<JobId>,
    },
    /// `caches` are those that the vertices name.
    Solve {
        job: JobId,
        ticket: u64,
        caches: Vec<Arc<ReadCache>>,
        vertices: Vec<Vertex<Arc<Op>>>,
        edge: Input,
        reply: Reply,
    },
    Withdraw {
        ticket: u64,
    },
    End {
        job: JobId,
    },
    Answer(Answered),
    /// Answered once all that is known now is remembered.
    Remembered {
        reply: oneshot::Sender<()>,
    },
    Idle {
        reply: oneshot::Sender<()>,
    },
    Running {
        reply: oneshot::Sender<Vec<String>>,
    },
}

/// The way to the solver. Clones share it.
#[derive(Clone)]
pub(crate) struct Driver {
    messages: mpsc::UnboundedSender<Message>,
    core: Arc<Core>,
}

/// A build that the solver knows. It ends when this is dropped: its results are released then.
pub(crate) struct JobHandle {
    driver: Driver,
    id: JobId,
    pub(crate) job: Arc<Job>,
    /// What sends layers to caches while steps run.
    pub(crate) early: Mutex<Option<Early>>,
}

impl Driver {
    pub(crate) fn start(core: Arc<Core>, max_parallelism: Option<usize>) -> Driver {
        let (messages, inbox) = mpsc::unbounded_channel();
        let owner = Owner {
            solver: Solver::new(max_parallelism),
            core: core.clone(),
            answers: messages.downgrade(),
            jobs: HashMap::new(),
            replies: HashMap::new(),
            tickets: HashMap::new(),
            running: HashMap::new(),
            shown: Shows::default(),
            caches: HashMap::new(),
            remembering: Vec::new(),
            idle: Vec::new(),
        };
        tokio::spawn(owner.run(inbox));
        Driver { messages, core }
    }

    pub(crate) async fn begin(&self, job: Arc<Job>) -> Result<JobHandle, Fault> {
        let (reply, begun) = oneshot::channel();
        self.send(Message::Begin { job: job.clone(), reply });
        let id = begun.await.map_err(|_| stopped())?;
        Ok(JobHandle { driver: self.clone(), id, job, early: Mutex::default() })
    }

    /// Waits until nothing is under way, saving to the cache included, but not longer than this. Answers what still is.
    pub(crate) async fn idle(&self, most: Duration) -> Vec<String> {
        let (reply, idle) = oneshot::channel();
        self.send(Message::Idle { reply });
        if tokio::time::timeout(most, idle).await.is_ok() {
            return Vec::new();
        }
        let (reply, running) = oneshot::channel();
        self.send(Message::Running { reply });
        running.await.unwrap_or_default()
    }

    /// Waits until all results that there are can be found in the cache.
    pub(crate) async fn remembered(&self) {
        let (reply, remembered) = oneshot::channel();
        self.send(Message::Remembered { reply });
        // Without an owner nothing is remembered any more.
        let _ = remembered.await;
    }

    fn send(&self, message: Message) {
        // Fails only when the owner is gone, which whoever waits for a reply then sees.
        let _ = self.messages.send(message);
    }
}

fn stopped() -> Fault {
    Fault::new(Kind::Internal, "the solver has stopped")
}

impl JobHandle {
    /// Solves a graph and answers its output.
    pub(crate) async fn solve(&self, graph: &llb::Graph) -> Result<Made, Fault> {
        if let Some(source) = graph.source() {
            self.job.add_places(source);
        }
        let Some(output) = graph.output() else { return Ok(Made { tree: Tree::Empty, keys: Vec::new() }) };
        for vertex in graph.vertices() {
            self.job.check_rights(vertex)?;
            ops::check_caps(vertex).map_err(|fault| self.locate(graph, fault, vertex.digest))?;
        }
        let granted = self.driver.core.devices.grant(graph, &self.job.devices);
        let granted = granted.map_err(|(digest, fault)| self.locate(graph, fault, digest))?;
        let graph = &*granted;
        for (mount, done) in graph.vertices().iter().flat_map(|vertex| self.job.mounts_to_retire(vertex)) {
            done.get_or_try_init(|| self.driver.core.retire_cache_mount(mount)).await?;
        }
        let caches = self.caches(&self.driver.core).await;
        loop {
            let reading = self.job.reading();
            match self.solve_reading(graph, output, reading, &caches).await {
                // What the changed files took no part in is there already, or goes on.
                Err(fault) if is_stale(&fault) && self.job.read_anew(reading) => {
                    tracing::info!(%fault, "reading the client's directories again");
                }
                // What was made meanwhile is there, and what the lost layers made is made here.
                Err(fault) if self.job.gives_up(&fault) => {
                    tracing::warn!(%fault, "going on without a cache");
                }
                result => return result.map_err(|fault| self.locate_above(graph, fault)),
            }
        }
    }

    /// Adds the place of what needed the vertex that failed, if it has none of its own: reading the context has no line
    /// in the Dockerfile, the COPY whose pattern is wrong has. Where several need it, it is the one that the cause quotes.
    fn locate_above(&self, graph: &llb::Graph, fault: Fault) -> Fault {
        let Some(digest) = fault.get_vertex().map(|(digest, _)| self.job.original(digest)) else { return fault };
        if !fault.places().is_empty() {
            return fault;
        }
        let reads = |vertex: &&llb::Vertex| vertex.inputs.iter().any(|edge| graph.vertex(edge.vertex).digest == digest);
        let readers: Vec<&llb::Vertex> = graph.vertices().iter().filter(reads).collect();
        let cause = fault.cause();
        let is_quoted =
            |vertex: &&&llb::Vertex| ops::file::sources(&vertex.op).any(|path| cause.contains(&format!("`{path}`")));
        let reader = match &readers[..] {
            [only] => Some(only.digest),
            several => several.iter().find(is_quoted).map(|vertex| vertex.digest),
        };
        match reader {
            Some(reader) => self.locate(graph, fault, reader),
            None => fault,
        }
    }

    /// Solves a graph on the client's directories as they are found by this reading of them. What reads them are other
    /// vertices each time: neither a digest nor a copy of what was there before is taken for what is there now. So are all
    /// when a cache has turned out to lack what it says: what was loaded from it is not met again.
    async fn solve_reading(
        &self,
        graph: &llb::Graph,
        output: llb::Edge,
        reading: u32,
        caches: &[Arc<ReadCache>],
    ) -> Result<Made, Fault> {
        let generation = self.job.generation();
        let mut names: Vec<(Digest, bool)> = Vec::with_capacity(graph.vertices().len());
        let mut vertices = Vec::with_capacity(graph.vertices().len());
        for vertex in graph.vertices() {
            let reads_files =
                ops::source::is_local(&vertex.op) || vertex.inputs.iter().any(|edge| names[edge.vertex.0 as usize].1);
            let reading = if reads_files { reading } else { 0 };
            names.push((self.job.rename(vertex.digest, reading, generation), reads_files));
            let sources = caches.iter().map(|cache| cache.keys.source()).collect();
            vertices.push(Vertex { sources, generation, ..self.vertex(vertex, &names, reading) });
        }
        let edge = Input { vertex: names[output.vertex.0 as usize].0, output: output.index };
        static TICKETS: AtomicU64 = AtomicU64::new(0);
        let ticket = TICKETS.fetch_add(1, Ordering::Relaxed);
        let (reply, mut answer) = oneshot::channel();
        let withdrawal = Withdrawal { driver: &self.driver, ticket };
        let caches = caches.to_vec();
        self.driver.send(Message::Solve { job: self.id, ticket, caches, vertices, edge, reply });
        let result = tokio::select! {
            result = &mut answer => result.map_err(|_| stopped()).flatten(),
            () = self.job.cancel.cancelled() => Err(Fault::cancelled()),
        };
        drop(withdrawal);
        result
    }

    /// Adds the place of a vertex, or of the first one above it that has a place: what ADD downloads is a vertex of
    /// its own, and the instruction's place is with the copying.
    fn locate(&self, graph: &llb::Graph, fault: Fault, digest: Digest) -> Fault {
        let mut fault = self.job.locate(fault, digest);
        let mut below = HashSet::from([digest]);
        // Inputs stand in front of those that read them.
        for vertex in graph.vertices() {
            if !fault.places().is_empty() {
                break;
            }
            if vertex.inputs.iter().any(|edge| below.contains(&graph.vertex(edge.vertex).digest)) {
                fault = self.job.locate(fault, vertex.digest);
                below.insert(vertex.digest);
            }
        }
        fault
    }

    /// `names` holds what vertices are called, the last one being this one.
    fn vertex(&self, vertex: &llb::Vertex, names: &[(Digest, bool)], reading: u32) -> Vertex<Arc<Op>> {
        let digest = names[names.len() - 1].0;
        let input = |edge: &llb::Edge| Input { vertex: names[edge.vertex.0 as usize].0, output: edge.index };
        let inputs: Vec<Input> = vertex.inputs.iter().map(input).collect();
        let group = vertex.metadata.progress_group.as_ref();
        let label = Label {
            digest,
            name: vertex.name(),
            inputs: inputs.iter().map(|input| input.vertex).collect(),
            group: group.map(|g| base::progress::ProgressGroup {
                id: g.id.clone(),
                name: g.name.clone(),
                weak: g.weak,
            }),
        };
        if self.job.add_label(label.clone()) {
            self.job.sink.emit(Progress::Vertex(label.vertex()));
        }
        Vertex {
            digest,
            inputs,
            op: Arc::new(Op::new(vertex.clone(), label, reading, &self.driver.core.platforms[0])),
            ignore_cache: vertex.ignore_cache(),
            sources: Vec::new(),
            export_cache: vertex.metadata.export_cache.as_ref().map(|e| e.value),
            generation: 0,
        }
    }
}

/// Takes the question back when nobody waits for the answer any more.
struct Withdrawal<'a> {
    driver: &'a Driver,
    ticket: u64,
}

impl Drop for Withdrawal<'_> {
    fn drop(&mut self) {
        self.driver.send(Message::Withdraw { ticket: self.ticket });
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.driver.send(Message::End { job: self.id });
    }
}

struct Owner {
    solver: Solver<Arc<Op>, Tree, Fault>,
    core: Arc<Core>,
    answers: mpsc::WeakUnboundedSender<Message>,
    jobs: HashMap<JobId, Arc<Job>>,
    replies: HashMap<RequestId, (JobId, u64, Reply)>,
    tickets: HashMap<u64, RequestId>,
    running: HashMap<ActionId, Work>,
    shown: Shows,
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
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) {
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
                self.solver.handle(Event::Load(id, loaded));
            }
            Action::Load { id, vertex, record, key, .. } => {
                let cache = self.caches.get(&record.source).map(|(_, cache)| cache.clone());
                let (Some(cache), Some(ctx)) = (cache, self.context(id, &vertex)) else {
                    return self.solver.handle(Event::Load(id, None));
                };
                let loaded = |id, loaded: Result<_, _>| Event::Load(id, loaded.ok().flatten());
                self.spawn(id, ctx, loaded, move |ctx| async move {
                    if ctx.jobs.iter().any(|job| job.has_given_up(std::slice::from_ref(&cache.place))) {
                        return Ok(None);
                    }
                    let core = ctx.core.clone();
                    let loaded = blocking(move || cache::load::load(&core, &cache, &record, &key)).await;
                    // A failure is a miss, and worth a word.
                    let loaded =
                        loaded.inspect_err(|error| tracing::warn!(%error, "a cached result was not loaded"))?;
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
                // Without answers all are misses.
                self.spawn_blocking(id, "looking results up in the cache", Event::Lookup, move || {
                    let (found, failure) = cache_manager::lookup(&Stores { local: store, caches }, &lookups);
                    if let Some(error) = failure {
                        tracing::warn!(%error, "cache look-up failed, taken as a miss");
                    }
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
        let (cancel, flag) = (CancellationToken::new(), base::Cancel::new());
        let work = Work::Op { op: vertex.op.clone(), cancel: cancel.clone(), flag: flag.clone() };
        self.running.insert(id, work);
        let relay = self.shown.relay(self.solver.node_of(id)?);
        for job in &jobs {
            relay.join(&job.sink, job.name_of(vertex.digest).unwrap_or(vertex.digest));
        }
        let tasks = Tasks::new(relay, vertex.digest);
        Some(OpContext { core: self.core.clone(), jobs, op: vertex.op.clone(), tasks, cancel, flag })
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

    fn notify(&mut self, notice: Notice<Fault>) {
        let jobs: Vec<(JobId, Arc<Job>)> =
            notice.jobs.iter().filter_map(|id| Some((*id, self.jobs.get(id)?.clone()))).collect();
        self.shown.notify(&notice, &jobs);
    }
}

/// Whether a file of the client changed between its checksum and its copy.
pub(crate) fn is_stale(fault: &Fault) -> bool {
    fault.find::<files::Error>().is_some_and(files::Error::is_changed)
}

/// What a panic of an op tells people. It said where on standard error already.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Fault {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Fault::new(Kind::Internal, format!("a bug in the builder: {}", said.unwrap_or("it panicked")))
        .hint("please report it, with what was printed above")
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
