//! An edge: what is known about one output of a vertex, and what it wants from its inputs next.
//!
//! An edge climbs [`Level`]s as far as it is wanted to. On the way it collects keys that it may be
//! stored under; the first that has a record ends the climb. Each input of it has two questions:
//! did any of the input's keys lead to a key of ours ([`Dep::matched`]), and how far has the search
//! gone there ([`Dep::searched`])? All decisions follow from the sums of these ([`Tally`]), so that one
//! changed input costs one step, however many inputs there are.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use base::Digest;

use crate::action::{ActionId, RequestId};
use crate::arena::Id;
use crate::cache_key::{CacheKey, KeyId, ResultId, SourceId};
use crate::cache_manager::Record;
use crate::graph::VertexId;
use crate::index::Atom;
use crate::news::Made;
use crate::op::{SolveError, Solved};

/// Up to this many inputs an edge is compared with others whenever one input changes; wider ones only
/// when they get their cache map and before they run, lest that be quadratic.
const NARROW: usize = 16;

/// Names an edge.
pub(crate) type EdgeId = Id<EdgeKind>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum EdgeKind {}

/// How far an edge has come, and how far its readers want it to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Level {
    /// Nothing is known or wanted.
    #[default]
    Initial,
    /// All keys that follow from definitions are known.
    Fast,
    /// All keys that follow from the content of inputs are known too: none will come before it ran.
    Slow,
    /// The result is there.
    Complete,
}

#[derive(Debug)]
pub(crate) struct Edge<R, E> {
    pub vertex: VertexId,
    pub output: u32,
    pub ignore_cache: bool,
    /// The edge that took this one's place because it has the same key.
    pub merged: Option<EdgeId>,
    /// The edges that this one took the place of.
    pub merged_from: Vec<EdgeId>,

    /// How many readers and requests want each level.
    wants: [usize; 4],
    pub requests: Vec<RequestId>,
    /// The inputs of other edges that read this one, whether they want something now or not.
    pub dependents: BTreeSet<(EdgeId, u32)>,
    pub queued: bool,

    pub level: Level,
    pub keys: Vec<Known>,
    /// Of the cache maps of a vertex without inputs, how many were looked up.
    pub maps_seen: usize,
    /// Lookups under way.
    pub pending: usize,
    /// Those of them that are about all inputs.
    pub meetings: usize,
    /// The ids of `keys` that were found.
    pub found: HashSet<KeyId>,
    /// Inputs have keys that were not looked up together with those of the others.
    pub meet_due: bool,
    /// What can be loaded, best first.
    pub records: Vec<Candidate>,
    pub tried: HashSet<(SourceId, ResultId)>,
    /// A record whose load is under way.
    pub loading: Option<(ActionId, Candidate)>,
    /// No key can match any more: run it.
    pub no_match: bool,
    /// What it watches the news of, and how much of that it had heard when it last asked for a key that all inputs
    /// lead to, or began.
    pub watched: Vec<Made>,
    pub heard: u64,
    /// It reads another edge than when it was told that no key can match.
    pub doubts: bool,
    /// It asked once more before it runs, and whether that is under way.
    pub looked_again: bool,
    pub looking_again: bool,
    /// Waits for the vertex to run.
    pub wants_exec: bool,

    pub deps: Option<Vec<Dep>>,
    /// Inputs that changed since the edge was last looked at.
    pub touched: Vec<u32>,
    pub tally: Tally,
    /// What the wants of inputs were last computed from.
    pub goal: Goal,
    /// Where the edge stands in the index of keys in flight.
    pub atoms: Vec<Atom>,
    /// The index may know an equal edge by now.
    pub recheck: bool,
    pub outcome: Option<Result<Solved<R>, SolveError<E>>>,
}

/// A key of an edge that its readers may search by.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub key: Arc<CacheKey>,
    /// What it was found by; none for keys that a run made.
    pub id: Option<KeyId>,
}

/// A record and the key it was found under.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub record: Record,
    pub key: Arc<CacheKey>,
    /// Place of its source among the sources of the vertex.
    pub rank: usize,
}

/// An input of an edge.
#[derive(Debug)]
pub(crate) struct Dep {
    pub child: EdgeId,
    /// What the child was told that we want.
    pub want: Level,
    /// How many of the child's keys were looked up.
    pub seen: usize,
    /// Lookups of this input under way.
    pub pending: usize,
    /// It has keys that were not asked about yet.
    pub unasked: bool,
    /// This input leads to some key of ours.
    pub matched: bool,
    pub selector: Option<Digest>,
    pub by_content: bool,
    pub content: Content,
    pub in_touched: bool,
    /// What [`Tally`] counted of it.
    pub view: View,
}

/// The content digest of an input, as this edge sees it.
#[derive(Clone, Debug, Default)]
pub(crate) enum Content {
    /// Not known.
    #[default]
    Unknown,
    /// Known and looked up; none if this content has no digest.
    Known(Option<Arc<CacheKey>>),
}

/// The state of one input in brief.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// How far the search has gone here: `Initial`, `Fast` or `Slow`.
    pub searched: Level,
    pub matched: bool,
    /// The child's own level.
    pub child: Level,
    /// The result is there, and its content digest too if there is one.
    pub ready: bool,
    pub failed: bool,
}

/// Sums over all inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    fast: usize,
    slow: usize,
    matched: usize,
    unmatched_fast: usize,
    unmatched_slow: usize,
    ready: usize,
    pub failed: usize,
}

/// What an edge is after: everything besides an input's own state that its want depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Goal {
    pub demand: Level,
    /// The edge has come as far as it is wanted to.
    pub satisfied: bool,
    pub has_map: bool,
    /// The cache is being asked for a key that all inputs lead to.
    pub meeting: bool,
    pub no_match: bool,
    pub has_records: bool,
    /// Some input has not matched, but may.
    pub open: bool,
    pub all_slow: bool,
}

impl<R, E> Edge<R, E> {
    pub fn new(vertex: VertexId, output: u32, ignore_cache: bool) -> Self {
        Edge {
            vertex,
            output,
            ignore_cache,
            merged: None,
            merged_from: Vec::new(),
            wants: [0; 4],
            requests: Vec::new(),
            dependents: BTreeSet::new(),
            queued: false,
            level: Level::Initial,
            keys: Vec::new(),
            maps_seen: 0,
            pending: 0,
            meetings: 0,
            found: HashSet::new(),
            meet_due: false,
            records: Vec::new(),
            tried: HashSet::new(),
            loading: None,
            no_match: false,
            watched: Vec::new(),
            heard: 0,
            doubts: false,
            looked_again: false,
            looking_again: false,
            wants_exec: false,
            deps: None,
            touched: Vec::new(),
            tally: Tally::default(),
            goal: Goal::default(),
            atoms: Vec::new(),
            recheck: false,
            outcome: None,
        }
    }

    /// The most that anybody wants.
    pub fn demand(&self) -> Level {
        let levels = [Level::Complete, Level::Slow, Level::Fast];
        levels.into_iter().find(|level| self.wants[*level as usize] > 0).unwrap_or_default()
    }

    /// Somebody's want goes from `old` to `new`. Returns whether the demand changed.
    pub fn change_want(&mut self, old: Level, new: Level) -> bool {
        let before = self.demand();
        self.wants[old as usize] -= usize::from(old != Level::Initial);
        self.wants[new as usize] += usize::from(new != Level::Initial);
        self.demand() != before
    }

    pub fn is_narrow(&self) -> bool {
        self.deps().len() <= NARROW
    }

    pub fn deps(&self) -> &[Dep] {
        self.deps.as_deref().unwrap_or_default()
    }

    /// Whether anybody waits for it.
    pub fn is_active(&self) -> bool {
        self.outcome.is_none() && self.merged.is_none() && self.demand() > Level::Initial
    }

    pub fn is_failed(&self) -> bool {
        matches!(self.outcome, Some(Err(_)))
    }

    /// Adds what can be loaded, keeping the best first: the order of sources, then the newest.
    pub fn add_records(&mut self, key: &Arc<CacheKey>, records: &[Record], sources: &[SourceId]) {
        for record in records {
            let known = |candidate: &Candidate| candidate.record == *record;
            let tried = self.tried.contains(&(record.source, record.result.id.clone()));
            if tried || self.records.iter().any(known) {
                continue;
            }
            let rank = sources.iter().position(|source| *source == record.source).unwrap_or(usize::MAX);
            self.records.push(Candidate { record: record.clone(), key: key.clone(), rank });
        }
        self.records.sort_by_key(|c| (c.rank, std::cmp::Reverse(c.record.result.created_at)));
    }

    /// How far an edge with inputs has come in its search for keys.
    pub fn searched(&self) -> Level {
        let searched = self.tally.searched(self.deps().len());
        // With something to load, more keys by content would be of no use, only of cost.
        if searched == Level::Fast && !self.records.is_empty() { Level::Slow } else { searched }
    }
}

impl Dep {
    pub fn new(child: EdgeId) -> Dep {
        Dep {
            child,
            want: Level::Initial,
            seen: 0,
            pending: 0,
            unasked: false,
            matched: false,
            selector: None,
            by_content: false,
            content: Content::Unknown,
            in_touched: false,
            view: View::default(),
        }
    }

    /// The view of this input, given its child's state.
    pub fn look(&self, child: Level, failed: bool) -> View {
        let digested = !self.by_content || matches!(self.content, Content::Known(_));
        let searched = match child {
            _ if self.pending > 0 || self.unasked => Level::Initial,
            Level::Initial => Level::Initial,
            Level::Fast => Level::Fast,
            Level::Slow | Level::Complete if self.by_content && !digested => Level::Fast,
            Level::Slow | Level::Complete => Level::Slow,
        };
        let ready = child == Level::Complete && digested && !failed;
        View { searched, matched: self.matched, child, ready, failed }
    }

    /// How far this input should come.
    pub fn want(&self, goal: Goal) -> Level {
        let hold = self.want.max(Level::Fast);
        match goal {
            Goal { demand: Level::Initial, .. } => Level::Initial,
            // Without a match for it the edge is going to run, and so are those above: they just have to learn of it.
            // What already runs for it must not be stopped and started again meanwhile.
            Goal { satisfied: true, no_match: true, .. } => self.want,
            // Keep cheap work that has begun: whoever wants more later needs it at once.
            Goal { satisfied: true, .. } => self.want.min(Level::Fast),
            Goal { demand: Level::Complete, has_records: true, .. } => Level::Initial,
            Goal { demand: Level::Complete, no_match: true, .. } => Level::Complete,
            Goal { has_map: false, .. } | Goal { demand: Level::Fast, .. } => Level::Fast,
            _ if goal.meeting || self.view.searched == Level::Initial => hold,
            // Inputs that matched wait until the others have: their content may never be needed.
            Goal { open: true, .. } if self.view.matched => hold,
            _ if self.view.child < Level::Slow => Level::Slow,
            _ if self.view.searched < Level::Slow => Level::Complete,
            Goal { demand: Level::Complete, all_slow: true, .. } => Level::Complete,
            _ => self.want.max(Level::Slow),
        }
    }

    /// The key of the input's content, if it has one.
    pub fn content_key(&self) -> Option<&Arc<CacheKey>> {
        match &self.content {
            Content::Known(key) => key.as_ref(),
            Content::Unknown => None,
        }
    }
}

impl Tally {
    pub fn add(&mut self, view: View) {
        self.each(view, |count| *count += 1);
    }

    pub fn remove(&mut self, view: View) {
        self.each(view, |count| *count -= 1);
    }

    fn each(&mut self, view: View, change: impl Fn(&mut usize)) {
        let fast = view.searched >= Level::Fast;
        let slow = view.searched >= Level::Slow;
        let counts = [
            (fast, &mut self.fast),
            (slow, &mut self.slow),
            (view.matched, &mut self.matched),
            (fast && !view.matched, &mut self.unmatched_fast),
            (slow && !view.matched, &mut self.unmatched_slow),
            (view.ready, &mut self.ready),
            (view.failed, &mut self.failed),
        ];
        counts.into_iter().filter(|(holds, _)| *holds).for_each(|(_, count)| change(count));
    }

    /// As far as all inputs were searched, or one that leads nowhere: no key can come of the others then.
    fn searched(&self, inputs: usize) -> Level {
        if self.slow == inputs || self.unmatched_slow > 0 {
            Level::Slow
        } else if self.fast == inputs || self.unmatched_fast > 0 {
            Level::Fast
        } else {
            Level::Initial
        }
    }

    pub fn no_match(&self) -> bool {
        self.unmatched_slow > 0
    }

    pub fn matched(&self) -> usize {
        self.matched
    }

    pub fn open(&self, inputs: usize) -> bool {
        inputs - self.matched > self.unmatched_slow
    }

    pub fn all_slow(&self, inputs: usize) -> bool {
        self.slow == inputs
    }

    pub fn all_ready(&self, inputs: usize) -> bool {
        self.ready == inputs
    }
}

#[cfg(test)]
mod tests;
