//! One look at an edge: take in what changed below, then decide what to ask for.

use crate::Solver;
use crate::action::Action;
use crate::edge::{Dep, EdgeId, Goal, Level};
use crate::op::{SolveError, Solved};

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
}
