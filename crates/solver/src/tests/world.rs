//! A world for the solver to live in: toy ops with call counters, caches in memory, and full control over
//! which action is answered next.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use base::Digest;

use crate::*;

/// A result; `Arc`, so that tests see who holds one.
pub type Made = Arc<String>;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Oops(pub String);

/// The name of a step that reads nothing and is no source.
pub const MADE: &str = "made";

/// A toy vertex. Its digest is that of its name.
#[derive(Clone, Debug, Default)]
pub struct Step {
    pub name: String,
    /// What its cache maps' digests are made from.
    pub seeds: Vec<String>,
    pub inputs: Vec<(String, u32)>,
    pub make: Make,
    /// Inputs that have a content digest.
    pub content: BTreeSet<u32>,
    pub selectors: BTreeMap<u32, String>,
    pub ignore_cache: bool,
    pub random: bool,
    pub sources: Vec<SourceId>,
    pub generation: u64,
}

/// What a toy op makes.
#[derive(Clone, Debug)]
pub enum Make {
    /// This text.
    Text(String),
    /// The sum of its inputs and a number.
    Sum(i64),
    /// Each of its inputs plus a number, an output for each.
    Add(i64),
    /// The result of a nested build.
    Nested(Vec<Step>),
    /// Two outputs that depend on its last seed and its inputs.
    Mix,
    Fail(String),
    FailMap(String),
    FailContent(String),
}

impl Default for Make {
    fn default() -> Self {
        Make::Text(String::new())
    }
}

pub fn step(name: &str, seed: &str, value: &str) -> Step {
    Step { name: name.into(), seeds: vec![seed.into()], make: Make::Text(value.into()), ..Step::default() }
}

/// Two steps that are the same work under two names, and what is made of them: 11.
pub fn twins() -> [Step; 7] {
    [
        constant("two", 2),
        constant("two'", 2),
        constant("zero", 0),
        sum("sum2", 2, &["two"]),
        sum("sum2'", 2, &["two'"]),
        sum("sum0", 0, &["sum2", "zero"]),
        sum("top", 3, &["sum0", "sum2'"]),
    ]
}

/// A number. Its name is unlike its seed, so that equal numbers have equal keys under many names.
pub fn constant(name: &str, value: i64) -> Step {
    step(name, &format!("const-{value}"), &value.to_string())
}

pub fn sum(name: &str, add: i64, inputs: &[&str]) -> Step {
    let seed = format!("sum-{add}-{}", inputs.len());
    Step { make: Make::Sum(add), ..step(name, &seed, "").reads(inputs) }
}

impl Step {
    pub fn reads(mut self, inputs: &[&str]) -> Step {
        self.inputs = inputs.iter().map(|name| ((*name).to_owned(), 0)).collect();
        self
    }

    pub fn content(mut self, inputs: &[u32]) -> Step {
        self.content = inputs.iter().copied().collect();
        self
    }

    pub fn selector(mut self, input: u32, selector: &str) -> Step {
        self.selectors.insert(input, selector.into());
        self
    }

    pub fn seeds(mut self, seeds: &[&str]) -> Step {
        self.seeds = seeds.iter().map(|seed| (*seed).to_owned()).collect();
        self
    }

    pub fn ignore_cache(mut self) -> Step {
        self.ignore_cache = true;
        self
    }

    pub fn make(mut self, make: Make) -> Step {
        self.make = make;
        self
    }

    pub fn sources(mut self, sources: &[SourceId]) -> Step {
        self.sources = sources.to_vec();
        self
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.name)
    }

    fn vertex(&self) -> Vertex<Arc<Step>> {
        let input = |(name, output): &(String, u32)| Input { vertex: Digest::of(name), output: *output };
        Vertex {
            digest: self.digest(),
            inputs: self.inputs.iter().map(input).collect(),
            op: Arc::new(self.clone()),
            ignore_cache: self.ignore_cache,
            sources: self.sources.clone(),
            export_cache: None,
            generation: self.generation,
            is_source: self.inputs.is_empty() && self.name != MADE,
        }
    }

    fn cache_map(&self, index: usize) -> CacheMap {
        let digest = Digest::of(format!("seed:{}", self.seeds[index]));
        let input = |input| CacheMapInput {
            selector: self.selectors.get(&input).map(Digest::of),
            by_content: self.content.contains(&input),
        };
        CacheMap {
            digest: if self.random { KeyDigest::Random(digest) } else { KeyDigest::Stable(digest) },
            inputs: (0..self.inputs.len() as u32).map(input).collect(),
        }
    }
}

pub type ToyAction = Action<Arc<Step>, Made, Oops>;
pub type ToyResult = Result<Solved<Made>, SolveError<Oops>>;

/// Everything around the solver.
pub struct World {
    pub solver: Solver<Arc<Step>, Made, Oops>,
    pub stores: Vec<(SourceId, Arc<dyn CacheStore>)>,
    pub results: HashMap<ResultId, Made>,
    /// Actions that wait for their answer.
    pub waiting: VecDeque<ToyAction>,
    pub answers: BTreeMap<RequestId, ToyResult>,
    /// `exec v0`, `map v0`, `load v0`, `content v0/1`: how often each was asked.
    pub calls: BTreeMap<String, usize>,
    pub notices: Vec<(Vec<JobId>, String, Status<Oops>)>,
    pub cancelled: BTreeSet<ActionId>,
    pub loads_fail: bool,
    pub lookups: usize,
    nested: HashMap<RequestId, ActionId>,
    names: HashMap<Digest, String>,
    clock: i64,
    seed: u64,
}

impl World {
    pub fn new() -> World {
        World::limited(None)
    }

    pub fn limited(max_parallelism: Option<usize>) -> World {
        World {
            solver: Solver::new(max_parallelism),
            stores: vec![(SourceId::LOCAL, Arc::new(MemoryStore::new()))],
            results: HashMap::new(),
            waiting: VecDeque::new(),
            answers: BTreeMap::new(),
            calls: BTreeMap::new(),
            notices: Vec::new(),
            cancelled: BTreeSet::new(),
            loads_fail: false,
            lookups: 0,
            nested: HashMap::new(),
            names: HashMap::new(),
            clock: 0,
            seed: 0,
        }
    }

    /// Answers come in an order that follows from `seed` instead of first come, first served.
    pub fn shuffled(seed: u64, max_parallelism: Option<usize>) -> World {
        World { seed, ..World::limited(max_parallelism) }
    }

    /// Loads steps, inputs first, and asks for the last one.
    pub fn ask(&mut self, job: JobId, steps: &[Step]) -> RequestId {
        self.ask_output(job, steps, 0)
    }

    pub fn ask_output(&mut self, job: JobId, steps: &[Step], output: u32) -> RequestId {
        for step in steps {
            self.names.insert(step.digest(), step.name.clone());
        }
        self.solver.load(job, steps.iter().map(Step::vertex)).expect("a good graph");
        let top = steps.last().expect("not empty");
        let request = self.solver.request(job, top.digest(), output).expect("a loaded vertex");
        self.poll();
        request
    }

    /// A whole build from begin to end.
    pub fn build(&mut self, steps: &[Step]) -> ToyResult {
        let (job, result) = self.build_and_hold(steps);
        self.end(job);
        result
    }

    /// A build whose job stays open.
    pub fn build_and_hold(&mut self, steps: &[Step]) -> (JobId, ToyResult) {
        let job = self.solver.begin();
        let request = self.ask(job, steps);
        self.run();
        (job, self.answer(request))
    }

    pub fn end(&mut self, job: JobId) {
        self.solver.end(job);
        self.run();
    }

    pub fn answer(&self, request: RequestId) -> ToyResult {
        self.answers.get(&request).cloned().expect("no actions are outstanding, so the request must be answered")
    }

    /// Answers everything, one at a time.
    pub fn run(&mut self) {
        while self.answer_one() {}
    }

    /// Answers one action, if any waits. In a shuffled world the solver takes in several answers at once now and then,
    /// as it does when they come faster than it looks.
    pub fn answer_one(&mut self) -> bool {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(u64::from(self.seed != 0));
        if self.waiting.is_empty() || self.seed >> 62 == 0 {
            self.poll();
        }
        if self.waiting.is_empty() {
            return false;
        }
        let next = (self.seed >> 33) as usize % self.waiting.len();
        let action = self.waiting.remove(next).expect("below its length");
        self.perform(action);
        true
    }

    /// Answers whatever does not match, until only matching actions wait.
    pub fn run_except(&mut self, matches: impl Fn(&str) -> bool) {
        self.poll();
        while let Some(at) = self.waiting.iter().position(|action| !matches(&describe(action))) {
            let action = self.waiting.remove(at).expect("it was found");
            self.perform(action);
            self.poll();
        }
    }

    /// Answers the waiting actions that match now, but none that follow from them.
    pub fn run_only(&mut self, matches: impl Fn(&str) -> bool) -> usize {
        self.poll();
        let all = std::mem::take(&mut self.waiting);
        let (chosen, rest): (VecDeque<_>, _) = all.into_iter().partition(|action| matches(&describe(action)));
        self.waiting = rest;
        let count = chosen.len();
        for action in chosen {
            self.perform(action);
            self.poll();
        }
        count
    }

    /// Answers a waiting action; the solver does not look at it before the next poll.
    pub fn answer_unseen(&mut self, name: &str) {
        let at = self.waiting.iter().position(|action| describe(action) == name).expect("it waits");
        let action = self.waiting.remove(at).expect("it was found");
        self.perform(action);
    }

    pub fn waiting(&self) -> Vec<String> {
        self.waiting.iter().map(describe).collect()
    }

    /// The ops that wait for nested builds.
    pub fn nested_execs(&self) -> Vec<ActionId> {
        self.nested.values().copied().collect()
    }

    pub fn count(&self, what: &str) -> usize {
        self.calls.iter().filter(|(call, _)| call.starts_with(what)).map(|(_, count)| count).sum()
    }

    /// Forgets the counters. Returns how many ops were asked for cache maps, ran, and were loaded.
    pub fn take_counts(&mut self) -> (usize, usize, usize) {
        let counts = (self.count("map "), self.count("exec "), self.count("load "));
        self.calls.clear();
        counts
    }

    pub fn statuses(&self, name: &str) -> Vec<Status<Oops>> {
        self.notices.iter().filter(|(_, vertex, _)| vertex == name).map(|(.., status)| status.clone()).collect()
    }

    pub fn poll(&mut self) {
        loop {
            let actions = self.solver.poll_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.take(action);
            }
        }
    }

    fn take(&mut self, action: ToyAction) {
        match action {
            Action::Answer { request, result } => match self.nested.remove(&request) {
                None => {
                    assert!(self.answers.insert(request, result).is_none(), "a request is answered once");
                }
                Some(exec) => {
                    let outputs = result.map(|solved| vec![self.store((*solved.result).clone())]);
                    let outputs = outputs.map_err(|error| Stopped::Failed(Oops(error.to_string())));
                    self.solver.handle(Event::Exec(exec, outputs));
                }
            },
            Action::Notify(Notice { jobs, vertex, status, .. }) => {
                let name = self.names.get(&vertex).cloned().unwrap_or_default();
                self.notices.push((jobs, name, status));
            }
            Action::Cancel(id) => {
                assert!(self.cancelled.insert(id), "an action is cancelled once");
            }
            action => {
                *self.calls.entry(describe(&action)).or_default() += 1;
                self.waiting.push_back(action);
            }
        }
    }

    fn perform(&mut self, action: ToyAction) {
        let event = match action {
            Action::CacheMap { id, vertex, index } if !self.cancelled.contains(&id) => {
                let step = &vertex.op;
                let last = if index as usize + 1 == step.seeds.len() { Last::Yes } else { Last::No };
                Event::CacheMap(
                    id,
                    match &step.make {
                        Make::FailMap(text) => Err(Stopped::Failed(Oops(text.clone()))),
                        _ => Ok((step.cache_map(index as usize), last)),
                    },
                )
            }
            Action::Content { id, vertex, result, .. } if !self.cancelled.contains(&id) => Event::Content(
                id,
                match &vertex.op.make {
                    Make::FailContent(text) => Err(Stopped::Failed(Oops(text.clone()))),
                    _ => Ok(Some(Digest::of(&*result))),
                },
            ),
            Action::Exec { id, vertex, inputs } if !self.cancelled.contains(&id) => {
                match self.exec(id, &vertex.op, &inputs) {
                    Some(answer) => Event::Exec(id, answer),
                    None => return,
                }
            }
            Action::Load { id, record, .. } if !self.cancelled.contains(&id) && !self.loads_fail => {
                let result = self.results.get(&record.result.id).cloned();
                Event::Load(id, result.map(|result| Output { result, stored: Some(record.result) }))
            }
            Action::CacheMap { id, .. } => Event::CacheMap(id, Err(Stopped::Cancelled)),
            Action::Content { id, .. } => Event::Content(id, Err(Stopped::Cancelled)),
            Action::Exec { id, .. } => Event::Exec(id, Err(Stopped::Cancelled)),
            Action::Load { id, .. } => Event::Load(id, None),
            Action::Lookup { id, lookups } => {
                self.lookups += lookups.len();
                let (found, failure) = cache_manager::lookup(self.stores.as_slice(), &lookups);
                assert!(failure.is_none());
                Event::Lookup(id, found)
            }
            Action::Save { id, saves } => {
                cache_manager::save(&*self.stores[0].1, &saves).expect("in memory");
                Event::Saved(id)
            }
            Action::Answer { .. } | Action::Notify(_) | Action::Cancel(_) => return,
        };
        self.solver.handle(event);
    }

    /// Runs a toy; none if it waits for a nested build.
    fn exec(&mut self, id: ActionId, step: &Step, inputs: &[Made]) -> Option<Result<Vec<Output<Made>>, Stopped<Oops>>> {
        assert_eq!(inputs.len(), step.inputs.len());
        let numbers = || inputs.iter().map(|input| input.parse::<i64>().expect("a number"));
        let texts = match &step.make {
            Make::Text(text) => vec![text.clone()],
            Make::Sum(add) => vec![(numbers().sum::<i64>() + add).to_string()],
            Make::Add(add) => numbers().map(|number| (number + add).to_string()).collect(),
            Make::Mix => {
                (0..2).map(|output| mix(step.seeds.last().expect("a seed"), inputs, step.random, output)).collect()
            }
            Make::Fail(text) => return Some(Err(Stopped::Failed(Oops(text.clone())))),
            Make::FailMap(_) | Make::FailContent(_) => vec![String::new()],
            Make::Nested(steps) => {
                let job = self.solver.begin_nested(id).expect("it runs");
                let request = self.ask_nested(job, steps);
                self.nested.insert(request, id);
                return None;
            }
        };
        Some(Ok(texts.into_iter().map(|text| self.store(text)).collect()))
    }

    fn ask_nested(&mut self, job: JobId, steps: &[Step]) -> RequestId {
        for step in steps {
            self.names.insert(step.digest(), step.name.clone());
        }
        self.solver.load(job, steps.iter().map(Step::vertex)).expect("a good graph");
        self.solver.request(job, steps.last().expect("not empty").digest(), 0).expect("a loaded vertex")
    }

    fn store(&mut self, text: String) -> Output<Made> {
        self.clock += 1;
        let id = ResultId::from(format!("result-{}", self.clock));
        let result = Arc::new(text);
        self.results.insert(id.clone(), result.clone());
        Output { result, stored: Some(CacheResult { id, created_at: self.clock }) }
    }
}

pub fn describe(action: &ToyAction) -> String {
    match action {
        Action::CacheMap { vertex, index: 0, .. } => format!("map {}", vertex.op.name),
        Action::CacheMap { vertex, index, .. } => format!("map {}#{index}", vertex.op.name),
        Action::Content { vertex, input, .. } => format!("content {}/{input}", vertex.op.name),
        Action::Exec { vertex, .. } => format!("exec {}", vertex.op.name),
        Action::Load { vertex, .. } => format!("load {}", vertex.op.name),
        Action::Lookup { .. } => "lookup".into(),
        Action::Save { .. } => "save".into(),
        Action::Cancel(id) => format!("cancel {id}"),
        Action::Answer { request, .. } => format!("answer {request}"),
        Action::Notify(_) => "notify".into(),
    }
}

/// What [`Make::Mix`] makes. BuildKit's random root keys do not tell outputs apart, so such outputs are equal.
pub fn mix(seed: &str, inputs: &[Made], random: bool, output: u32) -> String {
    let output = if random && inputs.is_empty() { 0 } else { output };
    Digest::of(format!("{seed}.{output}({inputs:?})")).short()
}

pub fn text(result: &ToyResult) -> &str {
    &result.as_ref().expect("a good build").result
}
