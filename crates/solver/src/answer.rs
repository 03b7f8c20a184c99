//! Answers to actions: noted where they belong, and the edges that they concern are looked at again.

use std::sync::Arc;

use base::Digest;

use crate::Solver;
use crate::action::{ActionId, Event, Last, Status};
use crate::cache_key::{CacheKey, SourceId};
use crate::cache_manager::{Answer, Found, Record, Save};
use crate::cache_store::CacheResult;
use crate::edge::{Candidate, EdgeId, Known, Level};
use crate::graph::{ContentState, Exec, VertexId};
use crate::op::{CacheMap, Cause, Output, Phase, SolveError, Solved, Stopped};
use crate::solver::{Asked, Kind, Pending};

impl<V, R: Clone, E: Clone> Solver<V, R, E> {
    pub(crate) fn answer(&mut self, event: Event<R, E>) {
        let id = event.id();
        let Some(Pending { kind, cancelled, closing }) = self.pending.remove(&id) else { return };
        match (kind, event) {
            (Kind::CacheMap(vertex), Event::CacheMap(_, answer)) => {
                self.landed(vertex, id);
                self.nodes[vertex].map_action = None;
                self.mapped(vertex, answer, cancelled);
            }
            (Kind::Content(vertex, input), Event::Content(_, answer)) => {
                self.landed(vertex, id);
                self.nodes[vertex].content[input as usize] = ContentState::Unknown;
                self.digested(vertex, input, answer, cancelled);
            }
            (Kind::Exec(vertex), Event::Exec(_, answer)) => {
                self.landed(vertex, id);
                self.executed(vertex, answer, cancelled);
            }
            (Kind::Load(edge), Event::Load(_, answer)) => self.loaded(id, edge, answer, cancelled),
            (Kind::Lookup(asked), Event::Lookup(_, answers)) => self.looked_up(asked, answers),
            (Kind::Save(saved), Event::Saved(_)) => {
                for (vertex, made) in saved {
                    self.news.saved(&made);
                    self.landed(vertex, id);
                }
            }
            (kind, _) => {
                self.pending.insert(id, Pending { kind, cancelled, closing });
                return;
            }
        }
        if !closing.is_empty() {
            self.answered(closing);
        }
    }

    fn landed(&mut self, vertex: VertexId, id: ActionId) {
        if let Some(node) = self.nodes.get_mut(vertex) {
            node.in_flight.remove(&id);
        }
    }

    fn mapped(&mut self, vertex: VertexId, answer: Result<(CacheMap, Last), Stopped<E>>, cancelled: bool) {
        let node = &mut self.nodes[vertex];
        let (described, inputs) = match answer {
            Ok((map, last)) => {
                let fits = map.inputs.len() == node.inputs.len();
                let counts = (map.inputs.len(), node.inputs.len());
                if fits {
                    node.maps_done = last == Last::Yes || !node.is_root();
                    node.maps.push(map);
                    if node.vertex.is_source && node.maps.len() == 1 {
                        self.report(vertex, Status::Resolved);
                    }
                    return self.enqueue_edges(vertex);
                }
                counts
            }
            Err(stopped) => return self.stopped(vertex, Phase::CacheMap, stopped, cancelled),
        };
        self.fail(vertex, Phase::CacheMap, Cause::CacheMapInputs { described, inputs }, None);
    }

    fn digested(&mut self, vertex: VertexId, input: u32, answer: Result<Option<Digest>, Stopped<E>>, cancelled: bool) {
        match answer {
            Ok(digest) => self.nodes[vertex].content[input as usize] = ContentState::Known(digest),
            Err(stopped) => return self.stopped(vertex, Phase::Content { input }, stopped, cancelled),
        }
        let edges: Vec<EdgeId> = self.nodes[vertex].edges.values().copied().collect();
        edges.into_iter().for_each(|edge| self.touch(edge, input));
    }

    fn executed(&mut self, vertex: VertexId, answer: Result<Vec<Output<R>>, Stopped<E>>, cancelled: bool) {
        let exec = std::mem::replace(&mut self.nodes[vertex].exec, Exec::Idle);
        let Exec::Running { edge, lent, .. } = exec else { return };
        if !lent {
            self.executing -= 1;
        }
        self.drop_nested_requests(vertex);
        match answer {
            Ok(outputs) => {
                self.nodes[vertex].exec = Exec::Done(outputs);
                self.report(vertex, Status::Completed);
                if self.edges.get(edge).is_some_and(|edge| edge.outcome.is_none() && edge.merged.is_none()) {
                    self.complete_from_exec(edge);
                }
                self.enqueue_edges(vertex);
            }
            Err(stopped) => self.stopped(vertex, Phase::Exec, stopped, cancelled),
        }
    }

    /// An op that has answered listens to no nested answers any more.
    fn drop_nested_requests(&mut self, vertex: VertexId) {
        let requests = |job| self.jobs.get(job).into_iter().flat_map(|job| &job.requests);
        let requests: Vec<_> = self.nodes[vertex].nested.iter().flat_map(requests).copied().collect();
        requests.into_iter().for_each(|request| self.cancel(request));
    }

    /// An op's action failed or was cancelled. What fails after it was cancelled, fails because of that.
    fn stopped(&mut self, vertex: VertexId, phase: Phase, stopped: Stopped<E>, cancelled: bool) {
        match stopped {
            Stopped::Failed(error) if !cancelled => {
                self.fail(vertex, phase, Cause::Op(error.clone()), Some(error));
            }
            Stopped::Failed(_) | Stopped::Cancelled => {
                if matches!(self.nodes[vertex].status, Some(Status::Started)) {
                    self.report(vertex, Status::Cancelled);
                }
                self.touch_edges(vertex, phase);
            }
        }
    }

    fn fail(&mut self, vertex: VertexId, phase: Phase, cause: Cause<E>, error: Option<E>) {
        let digest = self.nodes[vertex].vertex.digest;
        self.nodes[vertex].failure = Some(SolveError { vertex: digest, phase, cause });
        if let Some(error) = error {
            self.report(vertex, Status::Failed(error));
        }
        self.enqueue_edges(vertex);
    }

    /// Somebody may want again what was cancelled.
    fn touch_edges(&mut self, vertex: VertexId, phase: Phase) {
        if let Phase::Content { input } = phase {
            let edges: Vec<EdgeId> = self.nodes[vertex].edges.values().copied().collect();
            edges.into_iter().for_each(|edge| self.touch(edge, input));
        }
        self.enqueue_edges(vertex);
    }

    fn enqueue_edges(&mut self, vertex: VertexId) {
        let edges: Vec<EdgeId> = self.nodes[vertex].edges.values().copied().collect();
        edges.into_iter().for_each(|edge| self.enqueue(edge));
    }

    fn loaded(&mut self, id: ActionId, edge: EdgeId, answer: Option<Output<R>>, cancelled: bool) {
        let Some(state) = self.edges.get_mut(edge) else { return };
        let vertex = state.vertex;
        let loading = state.loading.take();
        self.landed(vertex, id);
        let Some((_, candidate)) = loading else { return };
        match answer {
            Some(output) => {
                let keys = self.keys_of_loaded(edge, &candidate, output.stored.as_ref());
                let solved = Solved { result: output.result, keys };
                self.report_cached(vertex);
                self.conclude(edge, Ok(solved));
                let merged = self.edges[edge].merged_from.clone();
                self.link_merged(edge, &merged);
            }
            None => {
                if cancelled {
                    let state = &mut self.edges[edge];
                    state.tried.remove(&(candidate.record.source, candidate.record.result.id.clone()));
                    state.records.insert(0, candidate);
                    self.report(vertex, Status::Cancelled);
                }
                self.enqueue(edge);
            }
        }
    }

    /// The keys of a loaded result: that of its record and, for a source, all that it stated, since
    /// they stand for the same. What the local cache does not know yet is saved.
    fn keys_of_loaded(&mut self, id: EdgeId, loaded: &Candidate, stored: Option<&CacheResult>) -> Vec<Arc<CacheKey>> {
        let edge = &self.edges[id];
        let node = &self.nodes[edge.vertex];
        let mut keys = vec![loaded.key.clone()];
        if node.is_root() {
            let found = edge.keys.iter().map(|known| known.key.clone());
            let stated = self.stated(id).into_iter();
            let stated = stated.map(|digest| Arc::new(self.finished_key(id, digest, Vec::new(), stored)));
            for key in found.chain(stated) {
                if !keys.iter().any(|known| known.digest() == key.digest()) {
                    keys.push(key);
                }
            }
        }
        let vertex = edge.vertex;
        if let Some(result) = stored {
            let local = Record { source: SourceId::LOCAL, result: result.clone() };
            let known = |key: &CacheKey| key.known_in().iter().any(|(source, _)| *source == SourceId::LOCAL);
            let unsaved = keys.iter().filter(|key| !known(key) || !key.records().contains(&local));
            let save = |key: &Arc<CacheKey>| Save { key: key.clone(), result: Some(result.clone()), also: Vec::new() };
            self.saves.extend(unsaved.map(|key| (vertex, save(key))));
        }
        keys
    }

    fn looked_up(&mut self, asked: Vec<Asked>, answers: Vec<Answer>) {
        let mut answers = answers.into_iter();
        for Asked { edge, new, meeting } in asked {
            let answer = answers.next().unwrap_or_default();
            let Some(state) = self.edges.get_mut(edge) else { continue };
            state.pending -= 1;
            state.meetings -= usize::from(meeting);
            state.looking_again &= state.pending > 0;
            for input in &new {
                // A question about all inputs has an answer for each, one about one input has one.
                let matched = answer.matched.get(if meeting { *input as usize } else { 0 });
                if let Some(dep) = state.deps.as_mut().and_then(|deps| deps.get_mut(*input as usize)) {
                    dep.pending -= 1;
                    dep.matched |= matched.copied().unwrap_or_default();
                }
            }
            for found in answer.found {
                self.found(edge, found);
            }
            new.into_iter().for_each(|input| self.touch(edge, input));
            self.enqueue(edge);
        }
    }

    fn found(&mut self, id: EdgeId, found: Found) {
        let edge = &mut self.edges[id];
        if edge.found.insert(found.id.clone()) {
            return self.add_key(id, found);
        }
        // Known, but there may be more to load by now.
        let sources = self.nodes[edge.vertex].sources.clone();
        let key = edge.keys.iter().find(|known| known.id.as_ref() == Some(&found.id)).map(|known| known.key.clone());
        if let Some(key) = key {
            edge.add_records(&key, &found.records, &sources);
        }
    }

    /// All inputs lead to this key: the edge may be stored under it.
    fn add_key(&mut self, id: EdgeId, found: Found) {
        let edge = &self.edges[id];
        if edge.outcome.is_some() || edge.merged.is_some() {
            return;
        }
        let node = &self.nodes[edge.vertex];
        let output = edge.output as i32;
        let of_found = |map: &&CacheMap| crate::root_key(map.digest, output) == found.id;
        let map = node.maps.iter().find(of_found).or(node.maps.first());
        let digest = map.expect("a lookup follows a cache map").digest;
        let key = CacheKey::with_deps(digest, output, self.input_keys(id))
            .for_vertex(node.vertex.digest)
            .with_records(found.records)
            .exported(node.vertex.export_cache)
            .known_as(found.sources.iter().map(|source| (*source, found.id.clone())));
        let key = Arc::new(key);
        let sources = node.sources.clone();
        let edge = &mut self.edges[id];
        edge.add_records(&key, key.records(), &sources);
        edge.keys.push(Known { key, id: Some(found.id) });
        if edge.demand() > Level::Initial {
            self.enqueue(id);
        }
        self.notify(id);
    }
}
