//! Putting one edge in the place of another that turned out to be the same.

use std::sync::Arc;

use crate::Solver;
use crate::cache_key::{CacheKey, Dep, KeyDigest, SourceId};
use crate::cache_manager::{Record, Save};
use crate::edge::{EdgeId, Known, Level};
use crate::graph::Exec;
use crate::index::{Atom, By};

impl<V, R: Clone, E: Clone> Solver<V, R, E> {
    /// Looks for an edge in flight that is the same. Returns whether `id` was replaced by one.
    pub(crate) fn try_merge(&mut self, id: EdgeId) -> bool {
        if self.edges[id].maps_seen == 0 {
            return false;
        }
        self.register(id);
        if !self.can_leave(id) {
            return false;
        }
        let equal = self.index.equal_to(id, &self.edges[id].atoms);
        let fits = |other: &&EdgeId| self.can_take(id, **other);
        // What was made anew before what came from a cache, what is there before what is under way.
        let rank = |other: &&EdgeId| (!self.edges[**other].ignore_cache, self.edges[**other].outcome.is_none());
        let target = equal.iter().filter(fits).min_by_key(rank).copied();
        let Some(target) = target else { return false };
        // Outputs of one op should go the same way, or both vertices would run.
        if self.leans_on(target, id) && self.can_leave(target) && self.can_take(target, id) {
            self.merge(target, id);
            return false;
        }
        self.merge(id, target);
        true
    }

    /// Brings the index up to date with what is known of the edge's inputs.
    fn register(&mut self, id: EdgeId) {
        let atoms = self.atoms(id);
        let old = std::mem::replace(&mut self.edges[id].atoms, atoms.clone());
        old.iter().for_each(|atom| self.index.remove(atom, id));
        atoms.into_iter().for_each(|atom| self.index.insert(atom, id));
    }

    fn atoms(&self, id: EdgeId) -> Vec<Atom> {
        let edge = &self.edges[id];
        let maps = &self.nodes[edge.vertex].maps;
        let inputs = edge.deps().len() as u32;
        let atom = |digest, input, by| Atom { digest, output: edge.output, inputs, input, by };
        if inputs == 0 {
            return maps.iter().map(|map| atom(map.digest, 0, By::Root)).collect();
        }
        let digest = maps[0].digest;
        let mut atoms = Vec::with_capacity(edge.deps().len());
        for (input, dep) in edge.deps().iter().enumerate() {
            atoms.push(atom(digest, input as u32, By::Edge(dep.child, dep.selector)));
            let content = dep.content_key().map(|key| By::Content(key.digest().digest()));
            atoms.extend(content.map(|by| atom(digest, input as u32, by)));
        }
        atoms
    }

    /// Whether an edge may be replaced: not when it has, or is about to have, its own result.
    fn can_leave(&self, id: EdgeId) -> bool {
        let edge = &self.edges[id];
        let idle = matches!(self.nodes[edge.vertex].exec, Exec::Idle | Exec::Queued);
        idle && edge.outcome.is_none() && edge.merged.is_none() && edge.loading.is_none()
    }

    /// Whether `to` may replace `from`. What must run anew is not replaced by what need not.
    fn can_take(&self, from: EdgeId, to: EdgeId) -> bool {
        let (from, to) = (&self.edges[from], &self.edges[to]);
        if self.nodes[from.vertex].vertex.generation != self.nodes[to.vertex].vertex.generation {
            return false;
        }
        let failed = to.is_failed() || self.nodes[to.vertex].failure.is_some();
        to.merged.is_none() && !failed && (to.ignore_cache || !from.ignore_cache)
    }

    /// Whether another output of `of`'s vertex was replaced by one of `on`'s.
    fn leans_on(&self, of: EdgeId, on: EdgeId) -> bool {
        let on = self.edges[on].vertex;
        let edges = &self.nodes[self.edges[of].vertex].edges;
        edges
            .values()
            .any(|edge| self.edges[*edge].merged.is_some_and(|to| self.edges[self.canonical(to)].vertex == on))
    }

    fn merge(&mut self, from: EdgeId, to: EdgeId) {
        self.steps += 1;
        for atom in std::mem::take(&mut self.edges[from].atoms) {
            self.index.remove(&atom, from);
        }
        for (reader, input) in std::mem::take(&mut self.edges[from].dependents) {
            self.steps += 1;
            self.redirect(reader, input, from, to);
        }
        for request in std::mem::take(&mut self.edges[from].requests) {
            self.edges[from].change_want(Level::Complete, Level::Initial);
            self.edges[to].change_want(Level::Initial, Level::Complete);
            self.edges[to].requests.push(request);
            if let Some((_, edge)) = self.requests.get_mut(&request) {
                *edge = to;
            }
        }
        let mut merged = std::mem::take(&mut self.edges[from].merged_from);
        merged.push(from);
        self.edges[from].merged = Some(to);
        self.edges[to].merged_from.extend(&merged);
        self.link_merged(to, &merged);
        let holders = self.nodes[self.edges[from].vertex].jobs.clone();
        let vertex = self.edges[to].vertex;
        holders.into_iter().for_each(|job| self.hold(job, vertex));
        self.rest(from);
        if self.edges[to].outcome.is_some() {
            self.report_merged(to);
        }
        self.enqueue(to);
    }

    /// Has the cache know that the inputs of replaced edges lead to the result that is there already.
    pub(crate) fn link_merged(&mut self, id: EdgeId, merged: &[EdgeId]) {
        let edge = &self.edges[id];
        let Some(key) = edge.outcome.iter().flatten().flat_map(|solved| &solved.keys).next().cloned() else { return };
        let mut also = Vec::new();
        for merged in merged.iter().filter(|merged| self.edges.get(**merged).is_some()) {
            for (input, (deps, known)) in (0..).zip(self.input_keys(*merged).into_iter().zip(key.deps())) {
                let new = |dep: &Dep| !known.iter().any(|known| known.is_same(dep));
                also.extend(deps.into_iter().filter(new).map(|dep| (input, dep)));
            }
        }
        let vertex = edge.vertex;
        if key.is_root() {
            self.add_stated(id);
        }
        if !also.is_empty() {
            self.saves.push((vertex, Save { key, result: None, also }));
        }
    }

    /// Adds what replaced sources stated to the keys of the result that is there already.
    fn add_stated(&mut self, id: EdgeId) {
        let edge = &self.edges[id];
        let Some(Ok(solved)) = &edge.outcome else { return };
        let local = |record: &&Record| record.source == SourceId::LOCAL;
        let stored = solved.keys.iter().flat_map(|key| key.records()).find(local).map(|record| record.result.clone());
        let new = |digest: &KeyDigest| !solved.keys.iter().any(|key| key.digest() == *digest);
        let key = |digest| Arc::new(self.finished_key(id, digest, Vec::new(), stored.as_ref()));
        let keys: Vec<Arc<CacheKey>> = self.stated(id).into_iter().filter(new).map(key).collect();
        let (vertex, ignore_cache) = (edge.vertex, edge.ignore_cache);
        for key in keys {
            let edge = &mut self.edges[id];
            if let Some(Ok(solved)) = &mut edge.outcome {
                solved.keys.push(key.clone());
            }
            if !ignore_cache {
                edge.keys.push(Known { key: key.clone(), id: None });
            }
            if stored.is_some() {
                self.saves.push((vertex, Save { key, result: stored.clone(), also: Vec::new() }));
            }
            self.notify(id);
        }
    }

    /// Makes a reader of `from` read `to`.
    fn redirect(&mut self, reader: EdgeId, input: u32, from: EdgeId, to: EdgeId) {
        let Some(state) = self.edges.get_mut(reader) else { return };
        let narrow = state.is_narrow();
        state.recheck |= narrow && state.outcome.is_none();
        let Some(dep) = state.deps.as_mut().and_then(|deps| deps.get_mut(input as usize)) else { return };
        dep.child = to;
        dep.seen = 0;
        state.doubts |= state.no_match;
        state.looked_again = false;
        let (want, selector) = (dep.want, dep.selector);
        let old = By::Edge(from, selector);
        let at = state.atoms.iter().position(|atom| atom.input == input && atom.by == old);
        if let Some(at) = at {
            let old = state.atoms[at];
            let new = Atom { by: By::Edge(to, selector), ..old };
            state.atoms[at] = new;
            self.index.remove(&old, reader);
            self.index.insert(new, reader);
        }
        self.edges[from].change_want(want, Level::Initial);
        self.edges[to].change_want(Level::Initial, want);
        self.edges[to].dependents.insert((reader, input));
        self.touch(reader, input);
    }
}
