//! The graph that all jobs share: vertices by digest, held by jobs.
//!
//! Invariants:
//! * A job that holds a vertex also holds all its inputs, and the vertices whose edges took the
//!   place of its edges. So whatever an edge reads lives as long as the edge.
//! * A vertex goes when the last job that holds it goes, with everything it knows.
//! * A job that has ended stays until the actions that only it held are answered; whoever wants
//!   the same vertex meanwhile finds it as it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use base::Digest;

use crate::Solver;
use crate::action::{ActionId, JobId, RequestId, Status};
use crate::arena::Id;
use crate::cache_key::SourceId;
use crate::edge::{Edge, EdgeId};
use crate::op::{CacheMap, Output, SolveError, Vertex};

/// Names a vertex in the graph.
pub(crate) type VertexId = Id<VertexKind>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum VertexKind {}

/// A vertex of the graph and all that is known of its op, whichever output is asked for.
pub(crate) struct Node<V, R, E> {
    pub vertex: Arc<Vertex<V>>,
    /// Some vertex below, or this one, must run although it is cached. Kept apart from the same
    /// digest without that wish.
    pub fresh: bool,
    pub inputs: Vec<VertexId>,
    pub jobs: BTreeSet<JobId>,
    /// The jobs that work for this vertex while it runs.
    pub nested: Vec<JobId>,
    pub sources: Arc<[SourceId]>,
    pub edges: BTreeMap<u32, EdgeId>,
    pub maps: Vec<CacheMap>,
    pub maps_done: bool,
    pub map_action: Option<ActionId>,
    pub content: Vec<ContentState>,
    pub exec: Exec<R>,
    pub failure: Option<SolveError<E>>,
    pub status: Option<Status<E>>,
    /// Actions under way, lookups not counted.
    pub in_flight: BTreeSet<ActionId>,
}

/// The content digest of an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ContentState {
    #[default]
    Unknown,
    Running(ActionId),
    Known(Option<Digest>),
}

/// Whether an op ran.
pub(crate) enum Exec<R> {
    Idle,
    Queued,
    Running {
        id: ActionId,
        /// The edge that asked first; it gets its result even if it is wanted no more.
        edge: EdgeId,
        /// It waits for a nested job, so its place in the parallelism limit is free.
        lent: bool,
    },
    Done(Vec<Output<R>>),
}

pub(crate) struct Job {
    /// The vertex that it works for, if it is nested.
    pub parent: Option<VertexId>,
    pub vertices: BTreeSet<VertexId>,
    /// Which vertex of the graph the job means by a digest.
    pub names: HashMap<Digest, VertexId>,
    pub requests: BTreeSet<RequestId>,
    /// It has ended; how many actions are still to be answered.
    pub closing: Option<usize>,
}

/// Why vertices were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The job is unknown or has ended.
    #[error("{0} is not a running build")]
    UnknownJob(JobId),
    /// The vertex was not loaded into the job.
    #[error("vertex {vertex} is not part of {job}")]
    UnknownVertex {
        /// The job.
        job: JobId,
        /// The vertex.
        vertex: Digest,
    },
    /// An input was not loaded before its reader.
    #[error("vertex {vertex} reads {input}, which was not loaded before it")]
    UnknownInput {
        /// The reader.
        vertex: Digest,
        /// Its input.
        input: Digest,
    },
    /// A nested job was begun for something that does not run.
    #[error("{0} is not a running op")]
    NotRunning(ActionId),
}

impl<V, R, E> Node<V, R, E> {
    fn new(vertex: Vertex<V>, fresh: bool, inputs: Vec<VertexId>) -> Self {
        let content = vec![ContentState::Unknown; inputs.len()];
        Node {
            vertex: Arc::new(vertex),
            fresh,
            inputs,
            jobs: BTreeSet::new(),
            nested: Vec::new(),
            sources: Arc::new([SourceId::LOCAL]),
            edges: BTreeMap::new(),
            maps: Vec::new(),
            maps_done: false,
            map_action: None,
            content,
            exec: Exec::Idle,
            failure: None,
            status: None,
            in_flight: BTreeSet::new(),
        }
    }

    pub fn is_root(&self) -> bool {
        self.inputs.is_empty()
    }

    fn add_sources(&mut self, sources: &[SourceId]) {
        let mut all = self.sources.to_vec();
        for source in sources {
            if !all.contains(source) {
                all.push(*source);
            }
        }
        if all.len() > self.sources.len() {
            self.sources = all.into();
        }
    }
}

impl Job {
    pub fn new(parent: Option<VertexId>) -> Job {
        Job { parent, vertices: BTreeSet::new(), names: HashMap::new(), requests: BTreeSet::new(), closing: None }
    }
}

impl<V, R: Clone, E: Clone> Solver<V, R, E> {
    pub(crate) fn load_vertex(&mut self, job: JobId, vertex: Vertex<V>) -> Result<(), Error> {
        let names = &self.running(job)?.names;
        let mut inputs = Vec::with_capacity(vertex.inputs.len());
        for input in &vertex.inputs {
            let unknown = || Error::UnknownInput { vertex: vertex.digest, input: input.vertex };
            inputs.push(*names.get(&input.vertex).ok_or_else(unknown)?);
        }
        let mut sources = vertex.sources.clone();
        if let Some(parent) = self.jobs[&job].parent {
            sources.extend(self.nodes[parent].sources.iter().copied());
        }
        let digest = vertex.digest;
        let id = self.find_or_add(vertex, inputs);
        self.nodes[id].add_sources(&sources);
        self.hold(job, id);
        self.job_mut(job).names.insert(digest, id);
        Ok(())
    }

    /// A vertex that runs although it is cached serves those who would take the cached result too,
    /// but not the other way round.
    fn find_or_add(&mut self, vertex: Vertex<V>, inputs: Vec<VertexId>) -> VertexId {
        let fresh = vertex.ignore_cache || inputs.iter().any(|input| self.nodes[*input].fresh);
        let digest = vertex.digest;
        let known = self.active.get(&(digest, true)).or_else(|| self.active.get(&(digest, false)).filter(|_| !fresh));
        if let Some(id) = known {
            return *id;
        }
        let id = self.nodes.insert(Node::new(vertex, fresh, inputs));
        self.active.insert((digest, fresh), id);
        id
    }

    /// Makes `job` hold a vertex and everything that it needs.
    pub(crate) fn hold(&mut self, job: JobId, id: VertexId) {
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            if !self.job_mut(job).vertices.insert(id) {
                continue;
            }
            self.replay(job, id);
            let node = &mut self.nodes[id];
            node.jobs.insert(job);
            stack.extend(&node.inputs);
            let merged = node.edges.values().filter_map(|edge| self.edges[*edge].merged);
            stack.extend(merged.map(|edge| self.edges[edge].vertex));
        }
    }

    /// The edge for an output of a vertex, or the one that took its place.
    pub(crate) fn edge(&mut self, vertex: VertexId, output: u32) -> EdgeId {
        let node = &mut self.nodes[vertex];
        let edges = &mut self.edges;
        let ignore_cache = node.vertex.ignore_cache;
        let id = *node.edges.entry(output).or_insert_with(|| edges.insert(Edge::new(vertex, output, ignore_cache)));
        self.canonical(id)
    }

    pub(crate) fn canonical(&self, mut id: EdgeId) -> EdgeId {
        while let Some(target) = self.edges[id].merged {
            id = target;
        }
        id
    }

    pub(crate) fn running(&self, job: JobId) -> Result<&Job, Error> {
        self.jobs.get(&job).filter(|state| state.closing.is_none()).ok_or(Error::UnknownJob(job))
    }

    pub(crate) fn job_mut(&mut self, job: JobId) -> &mut Job {
        self.jobs.get_mut(&job).expect("callers hold a job that exists")
    }

    /// Ends a job whose requests are gone: now, or when its last action is answered.
    pub(crate) fn close(&mut self, job: JobId) {
        let mut open = 0;
        let vertices: Vec<VertexId> = self.jobs[&job].vertices.iter().copied().collect();
        for id in vertices {
            let node = &self.nodes[id];
            let others = node.jobs.iter().filter(|other| **other != job);
            if others.into_iter().any(|other| self.jobs[other].closing.is_none()) {
                continue;
            }
            for action in &node.in_flight {
                if let Some(pending) = self.pending.get_mut(action)
                    && !pending.closing.contains(&job)
                {
                    pending.closing.push(job);
                    open += 1;
                }
            }
        }
        match open {
            0 => self.release(job),
            open => self.job_mut(job).closing = Some(open),
        }
    }

    /// Counts an answer that ended jobs waited for.
    pub(crate) fn answered(&mut self, jobs: Vec<JobId>) {
        // The answer may have brought a result to save: until it can be found in the cache, it is found here.
        let saving = self.flush_saves();
        for job in jobs {
            let Some(open) = self.jobs.get_mut(&job).and_then(|job| job.closing.as_mut()) else { continue };
            match saving.and_then(|id| self.pending.get_mut(&id)) {
                Some(pending) => pending.closing.push(job),
                None => *open -= 1,
            }
            if *open == 0 {
                self.release(job);
            }
        }
    }

    fn release(&mut self, job: JobId) {
        let Some(state) = self.jobs.remove(&job) else { return };
        let mut nested = Vec::new();
        for id in state.vertices {
            let node = &mut self.nodes[id];
            node.jobs.remove(&job);
            if node.jobs.is_empty() {
                nested.extend(self.drop_vertex(id));
            }
        }
        if let Some(parent) = state.parent.and_then(|parent| self.nodes.get_mut(parent)) {
            parent.nested.retain(|nested| *nested != job);
        }
        nested.into_iter().for_each(|job| self.end(job));
    }

    /// Takes a vertex out of the graph; returns the jobs that worked for it.
    fn drop_vertex(&mut self, id: VertexId) -> Vec<JobId> {
        let Some(node) = self.nodes.remove(id) else { return Vec::new() };
        let name = (node.vertex.digest, node.fresh);
        if self.active.get(&name) == Some(&id) {
            self.active.remove(&name);
        }
        for edge in node.edges.into_values() {
            let Some(edge_state) = self.edges.remove(edge) else { continue };
            edge_state.atoms.iter().for_each(|atom| self.index.remove(atom, edge));
            edge_state.watched.iter().for_each(|made| self.news.forget(made));
            for (input, dep) in edge_state.deps().iter().enumerate() {
                if let Some(child) = self.edges.get_mut(dep.child) {
                    child.dependents.remove(&(edge, input as u32));
                }
            }
        }
        node.nested
    }
}
