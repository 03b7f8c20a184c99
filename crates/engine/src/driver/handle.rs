//! A build's side of the solver: it asks for what a graph makes, and waits.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base::progress::Event as Progress;
use base::report::Label;
use base::{Digest, Fault};
use solver::{Input, JobId, Vertex};
use tokio::sync::oneshot;

use super::{Driver, Made, Message, is_stale, stopped};
use crate::cache::early::Early;
use crate::cache::import::ReadCache;
use crate::job::Job;
use crate::ops::{self, Op};
use crate::tree::Tree;

/// A build that the solver knows. It ends when this is dropped: its results are released then.
pub(crate) struct JobHandle {
    pub(super) driver: Driver,
    pub(super) id: JobId,
    pub(crate) job: Arc<Job>,
    /// What sends layers to caches while steps run.
    pub(crate) early: Mutex<Option<Early>>,
}

impl JobHandle {
    /// Has the build's client asked for the secrets and agents of a graph, whoever has it made: a client may hand its result to
    /// another build, which can be the first one to want it.
    pub(crate) fn lend(&self, graph: &llb::Graph) {
        let asking = graph.vertices().iter().filter(|vertex| ops::exec::asks_clients(&vertex.op));
        let vertices: Vec<Digest> = asking.map(|vertex| vertex.digest).collect();
        if !vertices.is_empty() {
            self.driver.send(Message::Lend { job: self.id, vertices });
        }
    }

    /// Solves a graph and answers its output.
    pub(crate) async fn solve(&self, graph: &llb::Graph) -> Result<Made, Fault> {
        if let Some(source) = graph.source() {
            self.job.add_places(source);
        }
        let Some(output) = graph.output() else { return Ok(Made { tree: Tree::Empty, keys: Vec::new() }) };
        for vertex in graph.vertices() {
            self.job.check_rights(vertex)?;
            let checked = ops::check_caps(vertex).and_then(|()| ops::check_values(vertex));
            checked.map_err(|fault| self.locate(graph, fault, vertex.digest))?;
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
                    let fault = self.job.hidden().why(&fault);
                    tracing::info!(fault, "reading the client's directories again");
                }
                // What was made meanwhile is there, and what the lost layers made is made here.
                Err(fault) if self.job.gives_up(&fault) => {
                    let fault = self.job.hidden().why(&fault);
                    tracing::warn!(fault, "going on without a cache");
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
            is_source: ops::source::is_source(&vertex.op),
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
