//! What an edge has done for it: stating its key, loading, running; and stopping that.

use std::sync::Arc;

use crate::Solver;
use crate::action::{Action, ActionId, Status};
use crate::cache_key::{CacheKey, Dep as KeyDep, KeyDigest, SourceId};
use crate::cache_manager::{Record, Save};
use crate::cache_store::CacheResult;
use crate::edge::{Dep, EdgeId, Known, Level};
use crate::graph::{ContentState, Exec, VertexId};
use crate::op::{Cause, Phase, SolveError, Solved};
use crate::solver::Kind;

impl<V, R: Clone, E: Clone> Solver<V, R, E> {
    /// Does what the edge itself can do: ask for a cache map, load, run.
    pub(crate) fn act(&mut self, id: EdgeId) {
        let edge = &self.edges[id];
        let demand = edge.demand();
        if demand < Level::Complete {
            self.stop_completing(id);
        }
        let edge = &self.edges[id];
        if edge.outcome.is_some() || edge.level >= demand {
            return;
        }
        if edge.loading.is_some() {
            return;
        }
        if demand == Level::Complete && !edge.records.is_empty() {
            return self.start_load(id);
        }
        self.ask_map(id);
        let edge = &self.edges[id];
        if edge.wants_exec && matches!(self.nodes[edge.vertex].exec, Exec::Queued | Exec::Running { .. }) {
            return;
        }
        if demand == Level::Complete && self.can_exec(id) && !self.try_merge(id) && !self.look_again(id) {
            self.want_exec(id);
        }
    }

    fn ask_map(&mut self, id: EdgeId) {
        let edge = &self.edges[id];
        let (vertex, pending) = (edge.vertex, edge.pending);
        let node = &mut self.nodes[vertex];
        let complete = node.maps_done || (!node.maps.is_empty() && !node.is_root());
        if complete || node.map_action.is_some() || pending > 0 {
            return;
        }
        let index = node.maps.len() as u32;
        let id = self.expect(Kind::CacheMap(vertex));
        let node = &mut self.nodes[vertex];
        node.map_action = Some(id);
        node.in_flight.insert(id);
        let (first, vertex_data) = (node.vertex.is_source && index == 0, node.vertex.clone());
        if first {
            self.report(vertex, Status::Started);
        }
        self.actions.push(Action::CacheMap { id, vertex: vertex_data, index });
    }

    fn can_exec(&self, id: EdgeId) -> bool {
        let edge = &self.edges[id];
        let node = &self.nodes[edge.vertex];
        let mapped = edge.maps_seen > 0 && edge.maps_seen == node.maps.len();
        let inputs = edge.deps().len();
        let searched = edge.pending == 0 || (edge.no_match && !node.is_root() && !edge.looking_again);
        mapped && searched && (node.maps_done || !node.is_root()) && edge.tally.all_ready(inputs)
    }

    fn want_exec(&mut self, id: EdgeId) {
        let edge = &mut self.edges[id];
        edge.wants_exec = true;
        let vertex = edge.vertex;
        match &self.nodes[vertex].exec {
            Exec::Idle => {
                self.nodes[vertex].exec = Exec::Queued;
                self.ready.push_back(vertex);
            }
            Exec::Queued | Exec::Running { .. } => {}
            Exec::Done(_) => self.complete_from_exec(id),
        }
    }

    /// Runs a vertex, if somebody still waits for it.
    pub(crate) fn start_exec(&mut self, vertex: VertexId) {
        let Some(node) = self.nodes.get(vertex).filter(|node| matches!(node.exec, Exec::Queued)) else { return };
        let Some(edge) = node.edges.values().copied().find(|edge| self.edges[*edge].wants_exec) else {
            self.nodes[vertex].exec = Exec::Idle;
            return;
        };
        let result = |dep: &Dep| Some(self.edges[dep.child].outcome.as_ref()?.as_ref().ok()?.result.clone());
        let inputs: Option<Vec<R>> = self.edges[edge].deps().iter().map(result).collect();
        let inputs = inputs.expect("an edge wants to run when its inputs are complete");
        let id = self.expect(Kind::Exec(vertex));
        self.executing += 1;
        let node = &mut self.nodes[vertex];
        node.exec = Exec::Running { id, edge, lent: false };
        node.in_flight.insert(id);
        let others: Vec<EdgeId> = node.edges.values().copied().collect();
        let action = Action::Exec { id, vertex: node.vertex.clone(), inputs };
        self.report(vertex, Status::Started);
        self.actions.push(action);
        others.into_iter().for_each(|edge| self.enqueue(edge));
    }

    fn start_load(&mut self, id: EdgeId) {
        let candidate = self.edges[id].records.remove(0);
        let action = self.expect(Kind::Load(id));
        let (record, key) = (candidate.record.clone(), candidate.key.clone());
        let edge = &mut self.edges[id];
        edge.tried.insert((record.source, record.result.id.clone()));
        edge.loading = Some((action, candidate));
        let (vertex, output) = (edge.vertex, edge.output);
        let node = &mut self.nodes[vertex];
        node.in_flight.insert(action);
        let data = node.vertex.clone();
        self.report(vertex, Status::Loading);
        self.actions.push(Action::Load { id: action, vertex: data, output, record, key });
    }

    /// Gives the edge its output of an op that ran, and its key.
    pub(crate) fn complete_from_exec(&mut self, id: EdgeId) {
        let edge = &self.edges[id];
        let node = &self.nodes[edge.vertex];
        let Exec::Done(outputs) = &node.exec else { return };
        let digest = node.vertex.digest;
        let Some(output) = outputs.get(edge.output as usize).cloned() else {
            let cause = Cause::NoSuchOutput { asked: edge.output, outputs: outputs.len() };
            return self.conclude(id, Err(SolveError { vertex: digest, phase: Phase::Exec, cause }));
        };
        let vertex = edge.vertex;
        let key = |digest, deps| Arc::new(self.finished_key(id, digest, deps, output.stored.as_ref()));
        let keys: Vec<Arc<CacheKey>> = match node.is_root() {
            true => self.stated(id).into_iter().map(|digest| key(digest, Vec::new())).collect(),
            false => vec![key(node.maps[0].digest, self.all_input_keys(id))],
        };
        if let Some(result) = &output.stored {
            let save = |key: &Arc<CacheKey>| {
                (vertex, Save { key: key.clone(), result: Some(result.clone()), also: Vec::new() })
            };
            self.saves.extend(keys.iter().map(save));
        }
        // Readers must not find what is cached on top of a result that was asked to be made anew.
        if !self.edges[id].ignore_cache {
            self.edges[id].keys.extend(keys.iter().map(|key| Known { key: key.clone(), id: None }));
        }
        self.conclude(id, Ok(Solved { result: output.result, keys }));
    }

    /// A key for a result of the edge that is (or will soon be) in the local cache.
    pub(crate) fn finished_key(
        &self,
        id: EdgeId,
        digest: KeyDigest,
        deps: Vec<Vec<KeyDep>>,
        stored: Option<&CacheResult>,
    ) -> CacheKey {
        let edge = &self.edges[id];
        let vertex = &self.nodes[edge.vertex].vertex;
        let local = |result: &CacheResult| Record { source: SourceId::LOCAL, result: result.clone() };
        CacheKey::with_deps(digest, edge.output as i32, deps)
            .for_vertex(vertex.digest)
            .with_records(stored.map(local).into_iter().collect())
            .exported(vertex.export_cache)
    }

    /// All that a source stated, and the sources that it took the place of: they stand for the same.
    pub(crate) fn stated(&self, id: EdgeId) -> Vec<KeyDigest> {
        let merged = self.edges[id].merged_from.iter();
        let edges = [id].into_iter().chain(merged.copied()).filter_map(|edge| self.edges.get(edge));
        let mut digests = Vec::new();
        for map in edges.flat_map(|edge| &self.nodes[edge.vertex].maps) {
            if !digests.contains(&map.digest) {
                digests.push(map.digest);
            }
        }
        digests
    }

    /// The keys of the inputs, and of those of the edges that this one took the place of: they stand for the same.
    fn all_input_keys(&self, id: EdgeId) -> Vec<Vec<KeyDep>> {
        let mut all = self.input_keys(id);
        for merged in &self.edges[id].merged_from {
            if self.edges.get(*merged).is_none_or(|edge| edge.deps().len() != all.len()) {
                continue;
            }
            for (deps, more) in all.iter_mut().zip(self.input_keys(*merged)) {
                let new = |dep: &KeyDep| !deps.iter().any(|known| known.is_same(dep));
                let more: Vec<KeyDep> = more.into_iter().filter(new).collect();
                deps.extend(more);
            }
        }
        all
    }

    /// For each input all keys that it is known by.
    pub(crate) fn input_keys(&self, id: EdgeId) -> Vec<Vec<KeyDep>> {
        let keys = |dep: &Dep| {
            let child = &self.edges[dep.child];
            let by_definition = |key: &Arc<CacheKey>| KeyDep { key: key.clone(), selector: dep.selector };
            let mut keys: Vec<KeyDep> = match &child.outcome {
                Some(Ok(solved)) => solved.keys.iter().map(by_definition).collect(),
                _ => child.keys.iter().map(|known| by_definition(&known.key)).collect(),
            };
            keys.extend(dep.content_key().map(|key| KeyDep { key: key.clone(), selector: None }));
            keys
        };
        self.edges[id].deps().iter().map(keys).collect()
    }

    /// The result is not wanted any more (but perhaps keys are).
    pub(crate) fn stop_completing(&mut self, id: EdgeId) {
        if let Some((action, _)) = &self.edges[id].loading {
            let action = *action;
            self.stop(action);
        }
        if std::mem::take(&mut self.edges[id].wants_exec) {
            let vertex = self.edges[id].vertex;
            self.settle(vertex);
        }
    }

    /// Stops what a vertex does for no edge.
    pub(crate) fn settle(&mut self, vertex: VertexId) {
        let node = &self.nodes[vertex];
        let edges = || node.edges.values().map(|edge| &self.edges[*edge]);
        let mut stop = Vec::new();
        if !edges().any(|edge| edge.is_active()) {
            stop.extend(node.map_action);
            stop.extend(node.content.iter().filter_map(|content| match content {
                ContentState::Running(id) => Some(*id),
                _ => None,
            }));
        }
        if let Exec::Running { id, .. } = node.exec
            && !edges().any(|edge| edge.is_active() && edge.demand() == Level::Complete)
        {
            stop.push(id);
        }
        stop.into_iter().for_each(|action| self.stop(action));
    }

    fn stop(&mut self, action: ActionId) {
        if let Some(pending) = self.pending.get_mut(&action)
            && !std::mem::replace(&mut pending.cancelled, true)
        {
            self.actions.push(Action::Cancel(action));
        }
    }
}
