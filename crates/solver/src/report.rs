//! Who hears what about the progress of a vertex.

use std::collections::BTreeSet;

use base::Digest;

use crate::Solver;
use crate::action::{Action, JobId, NodeId, Notice, Status};
use crate::edge::EdgeId;
use crate::graph::VertexId;

impl<V, R: Clone, E: Clone> Solver<V, R, E> {
    /// Tells all jobs that hold a vertex.
    pub(crate) fn report(&mut self, id: VertexId, status: Status<E>) {
        let jobs = self.audience([id]).into_iter().collect();
        self.nodes[id].status = Some(status.clone());
        self.notify_jobs(jobs, id, status);
    }

    /// Tells a job that starts to hold a vertex what happened so far, if nobody told it yet.
    pub(crate) fn replay(&mut self, job: JobId, id: VertexId) {
        let mut told = vec![id];
        let mut stack = self.nodes[id].nested.clone();
        while let Some(nested) = stack.pop() {
            let Some(nested) = self.jobs.get(&nested) else { continue };
            told.extend(&nested.vertices);
            stack.extend(nested.vertices.iter().flat_map(|id| &self.nodes[*id].nested));
        }
        told.retain(|id| self.nodes[*id].status.is_some());
        if told.is_empty() {
            return;
        }
        let audience = match self.jobs[&job].parent {
            None => BTreeSet::from([job]),
            Some(parent) => self.audience([parent]),
        };
        for id in told {
            let known = self.audience([id]);
            let new: Vec<JobId> = audience.difference(&known).copied().collect();
            if let Some(status) = self.nodes[id].status.clone().filter(|_| !new.is_empty()) {
                self.notify_jobs(new, id, status);
            }
        }
    }

    /// The result of a vertex came from a cache: nothing below it will be asked for on its behalf.
    pub(crate) fn report_cached(&mut self, id: VertexId) {
        let mut below = vec![id];
        let mut seen = BTreeSet::from([id]);
        let mut stack: Vec<VertexId> = self.nodes[id].inputs.clone();
        while let Some(id) = stack.pop() {
            let node = &self.nodes[id];
            if matches!(node.status, None | Some(Status::Resolved)) && node.in_flight.is_empty() && seen.insert(id) {
                stack.extend(&node.inputs);
                below.push(id);
            }
        }
        // People read steps in the order of the file.
        below.into_iter().rev().for_each(|id| self.report(id, Status::Cached));
    }

    /// The vertices whose edges were replaced by this one have their result without having run.
    pub(crate) fn report_merged(&mut self, edge: EdgeId) {
        for merged in self.edges[edge].merged_from.clone() {
            let Some(id) = self.edges.get(merged).map(|edge| edge.vertex) else { continue };
            if matches!(self.nodes[id].status, None | Some(Status::Resolved)) {
                self.report_cached(id);
            }
        }
    }

    /// The jobs of people that some vertices are worked on for.
    pub(crate) fn audience(&self, vertices: impl IntoIterator<Item = VertexId>) -> BTreeSet<JobId> {
        let mut stack: Vec<VertexId> = vertices.into_iter().collect();
        let mut seen = BTreeSet::new();
        let mut jobs = BTreeSet::new();
        while let Some(id) = stack.pop() {
            let Some(node) = self.nodes.get(id).filter(|_| seen.insert(id)) else { continue };
            for job in &node.jobs {
                match &self.jobs[job] {
                    state if state.closing.is_some() => {}
                    state => match state.parent {
                        Some(parent) => stack.push(parent),
                        None => drop(jobs.insert(*job)),
                    },
                }
            }
        }
        jobs
    }

    fn notify_jobs(&mut self, jobs: Vec<JobId>, id: VertexId, status: Status<E>) {
        if !jobs.is_empty() {
            let merged = self.merged_into(id).filter(|(job, _)| jobs.contains(job)).collect();
            let vertex = self.nodes[id].vertex.digest;
            self.actions.push(Action::Notify(Notice { jobs, merged, vertex, node: NodeId(id), status }));
        }
    }

    /// The jobs of the vertices whose edges a vertex's edges took the place of, and what those are called.
    fn merged_into(&self, id: VertexId) -> impl Iterator<Item = (JobId, Digest)> {
        let edges = self.nodes[id].edges.values().filter_map(|edge| self.edges.get(*edge));
        let merged = edges.flat_map(|edge| &edge.merged_from).filter_map(|edge| self.edges.get(*edge));
        let nodes = merged.filter_map(|edge| self.nodes.get(edge.vertex));
        nodes.flat_map(|node| node.jobs.iter().map(|job| (*job, node.vertex.digest)))
    }
}
