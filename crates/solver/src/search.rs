//! The search for an edge's keys: what inputs are known by, and asking the caches what these lead to.

use std::sync::Arc;

use crate::Solver;
use crate::action::Action;
use crate::cache_key::{CacheKey, Dep as KeyDep};
use crate::cache_manager::{InputKeys, Lookup, Question};
use crate::edge::{Content, Dep, EdgeId, Level};
use crate::graph::{ContentState, Exec, VertexId};
use crate::op::CacheMap;
use crate::solver::{Asked, Kind};

impl<V, R: Clone, E: Clone> Solver<V, R, E> {
    /// Takes in cache maps that came since the last look.
    pub(crate) fn learn_maps(&mut self, id: EdgeId) {
        let edge = &mut self.edges[id];
        let node = &self.nodes[edge.vertex];
        let seen = edge.maps_seen;
        if seen == node.maps.len() {
            return;
        }
        edge.maps_seen = node.maps.len();
        edge.recheck = true;
        for map in &node.maps[seen..] {
            let made = (map.digest, edge.output as i32);
            self.news.watch(made);
            edge.watched.push(made);
            edge.heard += self.news.count(&[made]);
        }
        if node.is_root() {
            let new: Vec<Lookup> = node.maps[seen..]
                .iter()
                .map(|map| Lookup {
                    sources: node.sources.clone(),
                    digest: map.digest,
                    output: edge.output,
                    question: Question::Root,
                })
                .collect();
            if !edge.ignore_cache {
                edge.pending += new.len();
                let asked = || Asked { edge: id, new: Vec::new(), meeting: false };
                self.lookups.extend(new.into_iter().map(|lookup| (asked(), lookup)));
            }
            return;
        }
        for (input, dep) in edge.deps.iter_mut().flatten().enumerate() {
            dep.selector = node.maps[0].inputs[input].selector;
            dep.by_content = node.maps[0].inputs[input].by_content;
            if !std::mem::replace(&mut dep.in_touched, true) {
                edge.touched.push(input as u32);
            }
        }
    }

    /// Looks at the inputs that changed. Returns them.
    pub(crate) fn refresh(&mut self, id: EdgeId) -> Vec<u32> {
        let touched = std::mem::take(&mut self.edges[id].touched);
        for input in &touched {
            self.steps += 1;
            self.dep_mut(id, *input).in_touched = false;
            self.learn_keys(id, *input);
            self.learn_content(id, *input);
            self.take_view(id, *input);
        }
        let edge = &mut self.edges[id];
        edge.no_match |= edge.tally.no_match();
        // An op that runs for another output is not worth a search.
        edge.no_match |= matches!(self.nodes[edge.vertex].exec, Exec::Running { .. } | Exec::Done(_));
        self.ask(id, &touched);
        touched.iter().for_each(|input| self.want_content(id, *input));
        touched
    }

    fn take_view(&mut self, id: EdgeId, input: u32) {
        let edge = &self.edges[id];
        let dep = &edge.deps()[input as usize];
        let child = &self.edges[dep.child];
        let mut view = dep.look(child.level, child.is_failed());
        if edge.maps_seen == 0 {
            view.searched = Level::Initial;
            view.ready = false;
        }
        let old = std::mem::replace(&mut self.dep_mut(id, input).view, view);
        let tally = &mut self.edges[id].tally;
        tally.remove(old);
        tally.add(view);
    }

    fn learn_keys(&mut self, id: EdgeId, input: u32) {
        let edge = &self.edges[id];
        let dep = &edge.deps()[input as usize];
        let keys = self.edges[dep.child].keys.len();
        if edge.maps_seen > 0 && !edge.no_match && dep.seen < keys {
            let dep = self.dep_mut(id, input);
            dep.seen = keys;
            dep.unasked = true;
        }
    }

    /// Takes in the digest of an input's content.
    fn learn_content(&mut self, id: EdgeId, input: u32) {
        let edge = &self.edges[id];
        let dep = &edge.deps()[input as usize];
        let ContentState::Known(digest) = self.nodes[edge.vertex].content[input as usize] else { return };
        if edge.maps_seen == 0 || matches!(dep.content, Content::Known(_)) {
            return;
        }
        let search = !edge.no_match && digest.is_some();
        let narrow = edge.is_narrow();
        self.edges[id].recheck |= narrow;
        let dep = self.dep_mut(id, input);
        dep.content = Content::Known(digest.map(|digest| Arc::new(CacheKey::content(digest))));
        dep.unasked |= search;
    }

    /// Asks for the digest of an input's content if it is wanted, unless there is something to load, or an open
    /// question whose answer may bring something.
    fn want_content(&mut self, id: EdgeId, input: u32) {
        let edge = &self.edges[id];
        let dep = &edge.deps()[input as usize];
        let wanted = dep.want == Level::Complete && dep.by_content && matches!(dep.content, Content::Unknown);
        let unknown = self.nodes[edge.vertex].content[input as usize] == ContentState::Unknown;
        if !wanted || !unknown || edge.maps_seen == 0 || dep.pending > 0 || !edge.records.is_empty() {
            return;
        }
        if let Some(Ok(solved)) = &self.edges[dep.child].outcome {
            let (vertex, result) = (edge.vertex, solved.result.clone());
            self.start_content(vertex, input, result);
        }
    }

    /// Looks up what inputs have that is new: together with what is known of all others if these match already,
    /// else each by itself, since only the question whether it matches counts then.
    fn ask(&mut self, id: EdgeId, touched: &[u32]) {
        let edge = &self.edges[id];
        if edge.maps_seen == 0 || edge.no_match || edge.deps().is_empty() {
            return;
        }
        let unasked = |input: &&u32| edge.deps()[**input as usize].unasked;
        let new: Vec<u32> = touched.iter().filter(unasked).copied().collect();
        if new.is_empty() && !edge.meet_due {
            return;
        }
        let inputs = edge.deps().len();
        let unmatched: Vec<u32> = new.iter().copied().filter(|input| !edge.deps()[*input as usize].matched).collect();
        if edge.tally.matched() + unmatched.len() == inputs {
            let all = (0..inputs as u32).map(|input| self.known_of(id, input)).collect();
            self.edges[id].meet_due = false;
            return self.look_up(id, new, Question::Inputs(all));
        }
        self.edges[id].meet_due = true;
        for input in &new {
            self.dep_mut(id, *input).unasked = false;
            self.take_view(id, *input);
        }
        for input in unmatched {
            let question = Question::Input(self.known_of(id, input));
            self.look_up(id, vec![input], question);
        }
    }

    /// The keys of an input: what its edge advertises, and its content.
    fn known_of(&self, id: EdgeId, input: u32) -> InputKeys {
        let dep = &self.edges[id].deps()[input as usize];
        let child = &self.edges[dep.child];
        let by_definition = |key: &Arc<CacheKey>| KeyDep { key: key.clone(), selector: dep.selector };
        let mut keys: Vec<KeyDep> = child.keys.iter().map(|known| by_definition(&known.key)).collect();
        let solved = child.outcome.iter().flatten().flat_map(|solved| &solved.keys);
        let advertised = |key: &&Arc<CacheKey>| child.keys.iter().any(|known| Arc::ptr_eq(&known.key, key));
        let also = solved.filter(|key| !advertised(key)).map(by_definition).collect();
        keys.extend(dep.content_key().map(|key| KeyDep { key: key.clone(), selector: None }));
        InputKeys { index: input, keys, also }
    }

    fn look_up(&mut self, id: EdgeId, new: Vec<u32>, question: Question) {
        let edge = &mut self.edges[id];
        let node = &self.nodes[edge.vertex];
        let (sources, digest) = (node.sources.clone(), node.maps[0].digest);
        let meeting = matches!(question, Question::Inputs(_));
        let lookup = Lookup { sources, digest, output: edge.output, question };
        edge.pending += 1;
        edge.meetings += usize::from(meeting);
        if meeting {
            edge.heard = self.news.count(&edge.watched);
        }
        for input in &new {
            let dep = self.dep_mut(id, *input);
            dep.unasked = false;
            dep.pending += 1;
            self.take_view(id, *input);
        }
        self.lookups.push((Asked { edge: id, new, meeting }, lookup));
    }

    /// Asks once more what is cached before an edge runs, if that may be more than it was told: equal work may have
    /// begun, ended, been saved and forgotten here while this edge waited for an input. Returns whether it asks.
    ///
    /// Once is enough: whatever is equal and still in flight now, or comes later, is merged.
    pub(crate) fn look_again(&mut self, id: EdgeId) -> bool {
        let edge = &self.edges[id];
        let node = &self.nodes[edge.vertex];
        if edge.ignore_cache || edge.looked_again || !matches!(node.exec, Exec::Idle) {
            return edge.looking_again;
        }
        let unseen = |dep: &Dep| self.edges[dep.child].keys.iter().skip(dep.seen).any(|known| known.id.is_some());
        let is_new = edge.doubts || edge.heard != self.news.count(&edge.watched);
        let may_know_more = is_new || edge.no_match && edge.deps().iter().any(unseen);
        if !may_know_more {
            return false;
        }
        let inputs = edge.deps().len() as u32;
        if inputs == 0 {
            let root = |map: &CacheMap| Lookup {
                sources: node.sources.clone(),
                digest: map.digest,
                output: edge.output,
                question: Question::Root,
            };
            let lookups: Vec<Lookup> = node.maps.iter().map(root).collect();
            self.edges[id].pending += lookups.len();
            let asked = || Asked { edge: id, new: Vec::new(), meeting: false };
            self.lookups.extend(lookups.into_iter().map(|lookup| (asked(), lookup)));
        } else {
            let all = (0..inputs).map(|input| self.known_of(id, input)).collect();
            self.look_up(id, Vec::new(), Question::Inputs(all));
        }
        let edge = &mut self.edges[id];
        (edge.looked_again, edge.looking_again, edge.doubts) = (true, true, false);
        true
    }

    fn dep_mut(&mut self, id: EdgeId, input: u32) -> &mut Dep {
        let deps = self.edges[id].deps.as_mut().expect("inputs are named after `open` only");
        &mut deps[input as usize]
    }

    fn start_content(&mut self, vertex: VertexId, input: u32, result: R) {
        let id = self.expect(Kind::Content(vertex, input));
        let node = &mut self.nodes[vertex];
        node.content[input as usize] = ContentState::Running(id);
        node.in_flight.insert(id);
        self.actions.push(Action::Content { id, vertex: node.vertex.clone(), input, result });
    }
}
