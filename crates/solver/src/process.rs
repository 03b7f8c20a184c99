//! One look at an edge: take in what changed below, then decide what to ask for.

use std::sync::Arc;

use crate::Solver;
use crate::action::{Action, Status};
use crate::cache_key::{CacheKey, Dep as KeyDep};
use crate::cache_manager::{InputKeys, Lookup, Question, Record};
use crate::edge::{Content, Dep, EdgeId, Goal, Known, Level};
use crate::graph::{ContentState, Exec, VertexId};
use crate::op::{Cause, Phase, SolveError, Solved};
use crate::solver::{Asked, Kind};

impl<V, R: Clone, E: Clone> Solver<V, R, E> {
    pub(crate) fn process(&mut self, id: EdgeId) {
        self.steps += 1;
        let Some(edge) = self.edges.get_mut(id) else { return };
        edge.queued = false;
        if edge.merged.is_some() {
            return;
        }
        if edge.outcome.is_some() {
            return self.finish(id);
        }
        if edge.demand() == Level::Initial {
            return self.rest(id);
        }
        self.open(id);
        self.learn_maps(id);
        let changed = self.refresh(id);
        if self.fail_with_inputs(id) {
            return;
        }
        if std::mem::take(&mut self.edges[id].recheck) && self.try_merge(id) {
            return;
        }
        self.climb(id);
        self.act(id);
        self.spread_wants(id, &changed);
    }

    /// Does what the edge itself can do: ask for a cache map, load, run.
    fn act(&mut self, id: EdgeId) {
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
        if demand == Level::Complete && self.can_exec(id) && !self.try_merge(id) {
            self.want_exec(id);
        }
    }

    /// Makes the inputs' edges at the first look.
    fn open(&mut self, id: EdgeId) {
        if self.edges[id].deps.is_some() {
            return;
        }
        let vertex = self.edges[id].vertex;
        let inputs = self.nodes[vertex].inputs.clone();
        let outputs: Vec<u32> = self.nodes[vertex].vertex.inputs.iter().map(|input| input.output).collect();
        let mut deps = Vec::with_capacity(inputs.len());
        for (input, (vertex, output)) in inputs.into_iter().zip(outputs).enumerate() {
            let child = self.edge(vertex, output);
            self.edges[child].dependents.insert((id, input as u32));
            deps.push(Dep::new(child));
        }
        let edge = &mut self.edges[id];
        deps.iter().for_each(|dep| edge.tally.add(dep.view));
        edge.deps = Some(deps);
        edge.level = if edge.ignore_cache { Level::Slow } else { Level::Initial };
        edge.no_match = edge.ignore_cache;
        if edge.ignore_cache {
            self.notify(id);
        }
    }

    /// Takes in cache maps that came since the last look.
    fn learn_maps(&mut self, id: EdgeId) {
        let edge = &mut self.edges[id];
        let node = &self.nodes[edge.vertex];
        let seen = edge.maps_seen;
        if seen == node.maps.len() {
            return;
        }
        edge.maps_seen = node.maps.len();
        edge.recheck = true;
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
    fn refresh(&mut self, id: EdgeId) -> Vec<u32> {
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

    /// Takes in the digest of an input's content, or asks for it if it is wanted by now.
    fn learn_content(&mut self, id: EdgeId, input: u32) {
        let edge = &self.edges[id];
        let dep = &edge.deps()[input as usize];
        if edge.maps_seen == 0 || !dep.by_content || matches!(dep.content, Content::Known(_)) {
            return;
        }
        let Some(Ok(solved)) = &self.edges[dep.child].outcome else { return };
        let digest = match self.nodes[edge.vertex].content[input as usize] {
            ContentState::Known(digest) => digest,
            ContentState::Unknown if dep.want == Level::Complete => {
                let (vertex, result) = (edge.vertex, solved.result.clone());
                return self.start_content(vertex, input, result);
            }
            _ => return,
        };
        let search = !edge.no_match && digest.is_some();
        let narrow = edge.is_narrow();
        self.edges[id].recheck |= narrow;
        let dep = self.dep_mut(id, input);
        dep.content = Content::Known(digest.map(|digest| Arc::new(CacheKey::content(digest))));
        dep.unasked |= search;
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
        for input in &new {
            let dep = self.dep_mut(id, *input);
            dep.unasked = false;
            dep.pending += 1;
            self.take_view(id, *input);
        }
        self.lookups.push((Asked { edge: id, new, meeting }, lookup));
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

    /// An edge that cannot be had without its inputs fails with the first of them, or with its own op.
    fn fail_with_inputs(&mut self, id: EdgeId) -> bool {
        let edge = &self.edges[id];
        if !edge.records.is_empty() || edge.loading.is_some() {
            return false;
        }
        let mut error = self.nodes[edge.vertex].failure.clone();
        if error.is_none() && edge.tally.failed > 0 {
            let failed = edge.deps().iter().find_map(|dep| self.edges[dep.child].outcome.as_ref()?.as_ref().err());
            error = failed.cloned();
        }
        let Some(error) = error else { return false };
        self.conclude(id, Err(error));
        true
    }

    /// Raises the edge to the level that its inputs allow.
    fn climb(&mut self, id: EdgeId) {
        let edge = &self.edges[id];
        let node = &self.nodes[edge.vertex];
        let settled = edge.pending == 0 && (node.maps_done || !edge.keys.is_empty());
        let level = match () {
            () if edge.maps_seen == 0 || edge.meetings > 0 => Level::Initial,
            () if edge.no_match => Level::Slow,
            () if !node.is_root() => edge.searched(),
            () if settled => Level::Slow,
            () => Level::Initial,
        };
        if level > edge.level {
            self.edges[id].level = level;
            self.notify(id);
        }
    }

    /// Tells inputs what is wanted of them.
    fn spread_wants(&mut self, id: EdgeId, changed: &[u32]) {
        let edge = &self.edges[id];
        let goal = self.goal(id);
        let inputs = edge.deps().len() as u32;
        if goal == edge.goal {
            changed.iter().for_each(|input| self.spread_want(id, *input, goal));
        } else {
            self.edges[id].goal = goal;
            (0..inputs).for_each(|input| self.spread_want(id, input, goal));
        }
    }

    fn goal(&self, id: EdgeId) -> Goal {
        let edge = &self.edges[id];
        let demand = if edge.is_active() { edge.demand() } else { Level::Initial };
        if demand == Level::Initial {
            return Goal::default();
        }
        let inputs = edge.deps().len();
        Goal {
            demand,
            satisfied: edge.level >= demand,
            has_map: edge.maps_seen > 0,
            no_match: edge.no_match,
            meeting: edge.meetings > 0,
            has_records: !edge.records.is_empty() || edge.loading.is_some(),
            open: edge.tally.open(inputs),
            all_slow: edge.tally.all_slow(inputs),
        }
    }

    fn spread_want(&mut self, id: EdgeId, input: u32, goal: Goal) {
        self.steps += 1;
        let dep = &mut self.edges[id].deps.as_mut().expect("it has this input")[input as usize];
        let (old, new) = (dep.want, dep.want(goal));
        if old == new {
            return;
        }
        dep.want = new;
        let child = dep.child;
        if self.edges[child].change_want(old, new) {
            self.enqueue(child);
        }
        if new > old {
            // What the child has by now went unnoticed, or was of no use before.
            self.touch(id, input);
        }
    }

    pub(crate) fn touch(&mut self, id: EdgeId, input: u32) {
        let edge = &mut self.edges[id];
        let Some(dep) = edge.deps.as_mut().and_then(|deps| deps.get_mut(input as usize)) else { return };
        if !std::mem::replace(&mut dep.in_touched, true) {
            edge.touched.push(input);
        }
        self.enqueue(id);
    }

    /// Tells readers that the edge has something new.
    pub(crate) fn notify(&mut self, id: EdgeId) {
        let wanting = |(reader, input): &&(EdgeId, u32)| {
            self.edges[*reader].deps().get(*input as usize).is_some_and(|dep| dep.want > Level::Initial)
        };
        let readers: Vec<(EdgeId, u32)> = self.edges[id].dependents.iter().filter(wanting).copied().collect();
        readers.into_iter().for_each(|(reader, input)| self.touch(reader, input));
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
        let (first, vertex_data) = (node.is_root() && index == 0, node.vertex.clone());
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
        let searched = edge.pending == 0 || (edge.no_match && !node.is_root());
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
        let record = candidate.record.clone();
        let edge = &mut self.edges[id];
        edge.tried.insert((record.source, record.result.id.clone()));
        edge.loading = Some((action, candidate));
        let (vertex, output) = (edge.vertex, edge.output);
        let node = &mut self.nodes[vertex];
        node.in_flight.insert(action);
        let data = node.vertex.clone();
        self.report(vertex, Status::Loading);
        self.actions.push(Action::Load { id: action, vertex: data, output, record });
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
        let number = edge.output as i32;
        let keys: Vec<Arc<CacheKey>> = if node.is_root() {
            let root = |map: &crate::CacheMap| Arc::new(CacheKey::root(map.digest, number).for_vertex(digest));
            node.maps.iter().map(root).collect()
        } else {
            let key = CacheKey::with_deps(node.maps[0].digest, number, self.input_keys(id)).for_vertex(digest);
            vec![Arc::new(key)]
        };
        let result = output.stored.as_ref();
        let records: Vec<Record> = result
            .map(|result| Record { source: crate::SourceId::LOCAL, result: result.clone() })
            .into_iter()
            .collect();
        let vertex = edge.vertex;
        for key in &keys {
            let saves = output.stored.iter().map(|result| crate::Save { key: key.clone(), result: result.clone() });
            self.saves.extend(saves.map(|save| (vertex, save)));
        }
        let known = keys.iter().map(|key| Known { key: key.clone(), id: None, records: records.clone() });
        self.edges[id].produced.extend(known.clone());
        // Readers must not find what is cached on top of a result that was asked to be made anew.
        if !self.edges[id].ignore_cache {
            self.edges[id].keys.extend(known);
        }
        self.conclude(id, Ok(Solved { result: output.result, keys }));
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

    /// The edge is done, in success or not.
    pub(crate) fn conclude(&mut self, id: EdgeId, outcome: Result<Solved<R>, SolveError<E>>) {
        let edge = &mut self.edges[id];
        edge.level = Level::Complete;
        edge.wants_exec = false;
        let succeeded = outcome.is_ok();
        edge.outcome = Some(outcome);
        if succeeded {
            self.report_merged(id);
        }
        self.notify(id);
        self.finish(id);
    }

    /// Answers requests and wants nothing more from inputs.
    fn finish(&mut self, id: EdgeId) {
        let edge = &mut self.edges[id];
        let Some(outcome) = edge.outcome.clone() else { return };
        for request in std::mem::take(&mut edge.requests) {
            self.edges[id].change_want(Level::Complete, Level::Initial);
            if let Some((job, _)) = self.requests.remove(&request) {
                self.job_mut(job).requests.remove(&request);
                self.actions.push(Action::Answer { request, result: outcome.clone() });
            }
        }
        self.rest(id);
    }

    /// Nobody wants the edge, or it is done: nothing is wanted from its inputs, and what it waited for is stopped.
    pub(crate) fn rest(&mut self, id: EdgeId) {
        self.stop_completing(id);
        self.spread_wants(id, &[]);
        let vertex = self.edges[id].vertex;
        self.settle(vertex);
    }

    /// The result is not wanted any more (but perhaps keys are).
    fn stop_completing(&mut self, id: EdgeId) {
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

    fn stop(&mut self, action: crate::ActionId) {
        if let Some(pending) = self.pending.get_mut(&action)
            && !std::mem::replace(&mut pending.cancelled, true)
        {
            self.actions.push(Action::Cancel(action));
        }
    }
}
