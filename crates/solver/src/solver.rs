//! The solver's face: jobs and requests come in, actions go out, their answers come in.

use std::collections::{BTreeMap, HashMap, VecDeque};

use base::Digest;

use crate::action::{Action, ActionId, Event, JobId, NodeId, RequestId};
use crate::arena::Arena;
use crate::cache_manager::{Lookup, Save};
use crate::edge::{Edge, EdgeId, EdgeKind, Level};
use crate::graph::{Error, Exec, Job, Node, VertexId, VertexKind};
use crate::index::Index;
use crate::news::{Made, News};
use crate::op::Vertex;

/// Decides what of a build is cached, what runs, and when. See the crate's page for how to drive it.
///
/// `V` is what the engine attaches to a vertex, `R` a handle of a result (an `Arc` whose drop
/// releases), `E` what an op fails with.
pub struct Solver<V, R, E> {
    pub(crate) nodes: Arena<VertexKind, Node<V, R, E>>,
    pub(crate) edges: Arena<EdgeKind, Edge<R, E>>,
    /// Vertices by digest and [`Node::fresh`].
    pub(crate) active: HashMap<(Digest, bool), VertexId>,
    pub(crate) index: Index,
    pub(crate) news: News,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) requests: BTreeMap<RequestId, (JobId, EdgeId)>,
    pub(crate) pending: HashMap<ActionId, Pending>,
    /// Edges to look at.
    pub(crate) queue: VecDeque<EdgeId>,
    /// Vertices to run as soon as the limit allows.
    pub(crate) ready: VecDeque<VertexId>,
    pub(crate) executing: usize,
    max_parallelism: usize,
    /// Questions and results that go out in one action each at the end of the tick.
    pub(crate) lookups: Vec<(Asked, Lookup)>,
    pub(crate) saves: Vec<(VertexId, Save)>,
    pub(crate) actions: Vec<Action<V, R, E>>,
    next_id: u64,
    pub(crate) steps: u64,
}

/// An action that was not answered yet.
pub(crate) struct Pending {
    pub kind: Kind,
    pub cancelled: bool,
    /// The ended jobs that wait for it: one action may save the results of several.
    pub closing: Vec<JobId>,
}

/// What an answer is for.
pub(crate) enum Kind {
    CacheMap(VertexId),
    Content(VertexId, u32),
    Exec(VertexId),
    Load(EdgeId),
    Lookup(Vec<Asked>),
    Save(Vec<(VertexId, Made)>),
}

/// Who asked a lookup.
pub(crate) struct Asked {
    pub edge: EdgeId,
    /// The inputs that have something new.
    pub new: Vec<u32>,
    /// It is about all inputs.
    pub meeting: bool,
}

impl<V, R: Clone, E: Clone> Default for Solver<V, R, E> {
    fn default() -> Self {
        Solver::new(None)
    }
}

impl<V, R: Clone, E: Clone> Solver<V, R, E> {
    /// A solver without work. `max_parallelism` limits how many ops run at once.
    pub fn new(max_parallelism: Option<usize>) -> Self {
        Solver {
            nodes: Arena::new(),
            edges: Arena::new(),
            active: HashMap::new(),
            index: Index::default(),
            news: News::default(),
            jobs: BTreeMap::new(),
            requests: BTreeMap::new(),
            pending: HashMap::new(),
            queue: VecDeque::new(),
            ready: VecDeque::new(),
            executing: 0,
            max_parallelism: max_parallelism.unwrap_or(usize::MAX).max(1),
            lookups: Vec::new(),
            saves: Vec::new(),
            actions: Vec::new(),
            next_id: 0,
            steps: 0,
        }
    }

    /// Starts a build.
    pub fn begin(&mut self) -> JobId {
        let job = JobId(self.next_id());
        self.jobs.insert(job, Job::new(None));
        job
    }

    /// Starts a build that a running op needs. What it loads lives as long as the op's vertex, serves
    /// every job that holds the vertex, and may use its cache sources. While the op waits for it,
    /// it does not count as running.
    pub fn begin_nested(&mut self, exec: ActionId) -> Result<JobId, Error> {
        let vertex = match self.pending.get(&exec) {
            Some(Pending { kind: Kind::Exec(vertex), .. }) => *vertex,
            _ => return Err(Error::NotRunning(exec)),
        };
        let job = JobId(self.next_id());
        self.jobs.insert(job, Job::new(Some(vertex)));
        self.nodes[vertex].nested.push(job);
        if let Exec::Running { lent: lent @ false, .. } = &mut self.nodes[vertex].exec {
            *lent = true;
            self.executing -= 1;
        }
        Ok(job)
    }

    /// Adds vertices to a job, inputs before their readers; an input may have been loaded by an
    /// earlier call. Vertices that other jobs hold are shared. If one is refused, those before it stay.
    pub fn load(&mut self, job: JobId, vertices: impl IntoIterator<Item = Vertex<V>>) -> Result<(), Error> {
        vertices.into_iter().try_for_each(|vertex| self.load_vertex(job, vertex))
    }

    /// Asks for a result; [`Action::Answer`] brings it. The result stays at hand until the job ends.
    pub fn request(&mut self, job: JobId, vertex: Digest, output: u32) -> Result<RequestId, Error> {
        let unknown = Error::UnknownVertex { job, vertex };
        let vertex = *self.running(job)?.names.get(&vertex).ok_or(unknown)?;
        let edge = self.edge(vertex, output);
        let request = RequestId(self.next_id());
        self.requests.insert(request, (job, edge));
        self.job_mut(job).requests.insert(request);
        self.edges[edge].requests.push(request);
        self.edges[edge].change_want(Level::Initial, Level::Complete);
        self.enqueue(edge);
        Ok(request)
    }

    /// Takes a request back; it is not answered any more. Work that nobody else wants is cancelled.
    pub fn cancel(&mut self, request: RequestId) {
        let Some((job, edge)) = self.requests.remove(&request) else { return };
        self.job_mut(job).requests.remove(&request);
        let edge_state = &mut self.edges[edge];
        edge_state.requests.retain(|other| *other != request);
        edge_state.change_want(Level::Complete, Level::Initial);
        self.enqueue(edge);
    }

    /// Ends a job: cancels what it asked for and lets go of its vertices. Actions that only it wanted are
    /// cancelled; their answers are still expected.
    pub fn end(&mut self, job: JobId) {
        if self.running(job).is_err() {
            return;
        }
        let requests: Vec<RequestId> = self.jobs[&job].requests.iter().copied().collect();
        requests.into_iter().for_each(|request| self.cancel(request));
        self.run();
        self.flush();
        self.close(job);
    }

    /// The jobs of people that a vertex is worked on for: whose sessions an op may use. The vertex is named by
    /// the action that works on it.
    pub fn jobs_of(&self, action: ActionId) -> Vec<JobId> {
        self.audience(self.node_of(action).map(|node| node.0)).into_iter().collect()
    }

    /// The place of the vertex that an action works on; none if it works on several, or is answered.
    pub fn node_of(&self, action: ActionId) -> Option<NodeId> {
        let vertex = match &self.pending.get(&action)?.kind {
            Kind::CacheMap(vertex) | Kind::Content(vertex, _) | Kind::Exec(vertex) => *vertex,
            Kind::Load(edge) => self.edges.get(*edge)?.vertex,
            _ => return None,
        };
        Some(NodeId(vertex))
    }

    /// The vertices that the questions of a look-up are about, in their order; none where nobody wants the answer any more.
    pub fn asked_by(&self, action: ActionId) -> Vec<Option<Digest>> {
        let Some(Kind::Lookup(asked)) = self.pending.get(&action).map(|pending| &pending.kind) else {
            return Vec::new();
        };
        let node = |asked: &Asked| self.nodes.get(self.edges.get(asked.edge)?.vertex);
        asked.iter().map(|asked| Some(node(asked)?.vertex.digest)).collect()
    }

    /// The vertex at a place, as long as there is one.
    pub fn vertex_of(&self, node: NodeId) -> Option<&Vertex<V>> {
        self.nodes.get(node.0).map(|node| &*node.vertex)
    }

    /// Takes an answer. An event that does not fit its action, or answers it again, is ignored.
    pub fn handle(&mut self, event: Event<R, E>) {
        self.answer(event);
    }

    /// What is to be done now. Call it after each batch of events, until it returns nothing new; lookups
    /// and saves of all events since the last call come together.
    pub fn poll_actions(&mut self) -> Vec<Action<V, R, E>> {
        self.run();
        self.flush();
        std::mem::take(&mut self.actions)
    }

    /// Whether nothing is held: no job, vertex, edge or unanswered action.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.nodes.len() == 0 && self.edges.len() == 0 && self.pending.is_empty()
    }

    /// How many steps were taken in all: a measure of work that does not depend on the machine.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn expect(&mut self, kind: Kind) -> ActionId {
        let id = ActionId(self.next_id());
        self.pending.insert(id, Pending { kind, cancelled: false, closing: Vec::new() });
        id
    }

    pub(crate) fn enqueue(&mut self, edge: EdgeId) {
        if let Some(state) = self.edges.get_mut(edge)
            && !std::mem::replace(&mut state.queued, true)
        {
            self.queue.push_back(edge);
        }
    }

    pub(crate) fn run(&mut self) {
        loop {
            while let Some(edge) = self.queue.pop_front() {
                self.process(edge);
            }
            if !self.start_ready() {
                return;
            }
        }
    }

    /// Runs ops as far as the limit allows. Returns whether edges are to be looked at again.
    fn start_ready(&mut self) -> bool {
        while self.executing < self.max_parallelism
            && let Some(vertex) = self.ready.pop_front()
        {
            self.start_exec(vertex);
        }
        !self.queue.is_empty()
    }

    fn flush(&mut self) {
        if !self.lookups.is_empty() {
            let (asked, lookups) = std::mem::take(&mut self.lookups).into_iter().unzip();
            let id = self.expect(Kind::Lookup(asked));
            self.actions.push(Action::Lookup { id, lookups });
        }
        self.flush_saves();
    }

    pub(crate) fn flush_saves(&mut self) -> Option<ActionId> {
        if self.saves.is_empty() {
            return None;
        }
        let (vertices, saves): (Vec<_>, Vec<_>) = std::mem::take(&mut self.saves).into_iter().unzip();
        let made = |save: &Save| (save.key.digest(), save.key.output());
        let id = self.expect(Kind::Save(vertices.iter().copied().zip(saves.iter().map(made)).collect()));
        for vertex in vertices {
            self.nodes[vertex].in_flight.insert(id);
        }
        self.actions.push(Action::Save { id, saves });
        Some(id)
    }
}

#[cfg(test)]
impl<V: std::fmt::Debug, R: Clone + std::fmt::Debug, E: Clone + std::fmt::Debug> Solver<V, R, E> {
    /// What every edge waits for.
    pub(crate) fn dump(&self, name: impl Fn(&V) -> String) -> String {
        let mut text = String::new();
        for edge in self.nodes.iter().flat_map(|node| node.edges.values()) {
            let state = &self.edges[*edge];
            let vertex = &self.nodes[state.vertex];
            text += &format!("{}@{} {edge:?} {state:?}\n", name(&vertex.vertex.op), state.output);
        }
        text
    }
}
