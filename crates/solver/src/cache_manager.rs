//! The logic on top of [`CacheStore`]: which keys an op's output may be found under, and saving.
//!
//! Plain functions without state, called by the engine's blocking threads with what
//! [`Action::Lookup`](crate::Action::Lookup) and [`Action::Save`](crate::Action::Save) carry. A batch
//! costs a fixed number of store calls, whatever its length; only keys whose inputs are new to a
//! source cost one more each.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::cache_store::{CacheResult, CacheStore, Change, Inputs, LinkRow, Meeting, StoreError};
use crate::{CacheKey, Dep, KeyDigest, KeyId, Link, SourceId, random_id, root_key};

/// The caches that a lookup may name. The engine owns the list; an unknown source finds nothing.
pub trait Sources {
    /// The store of a source.
    fn store(&self, source: SourceId) -> Option<&dyn CacheStore>;
}

impl Sources for [(SourceId, Arc<dyn CacheStore>)] {
    fn store(&self, source: SourceId) -> Option<&dyn CacheStore> {
        self.iter().find(|(id, _)| *id == source).map(|(_, store)| &**store)
    }
}

/// A question about an output of an op.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Where to look, most preferred first.
    pub sources: Arc<[SourceId]>,
    /// The op's own digest.
    pub digest: KeyDigest,
    /// The op's output.
    pub output: u32,
    /// What is asked.
    pub question: Question,
}

/// What is asked about an output.
#[derive(Clone, Debug)]
pub enum Question {
    /// Whether an op without inputs is known.
    Root,
    /// Whether one input of several leads to any key of the op. The answer says nothing about which.
    Input(InputKeys),
    /// Which keys of the op all its inputs lead to.
    Inputs(Vec<InputKeys>),
}

/// What one input of an op is known by.
#[derive(Clone, Debug)]
pub struct InputKeys {
    /// Which input.
    pub index: u32,
    /// Keys that stand for the same content: any of them may lead to a key of the op, which all others are
    /// then linked to.
    pub keys: Vec<Dep>,
    /// Keys to link only, not to search by.
    pub also: Vec<Dep>,
}

/// The answer to a [`Lookup`]; the default one is "nothing".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// For each input that the question named, whether it leads to any key of the op.
    pub matched: Vec<bool>,
    /// The keys that the output may be stored under.
    pub found: Vec<Found>,
}

/// A key that an output may be stored under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The key's id.
    pub id: KeyId,
    /// The sources that know it.
    pub sources: Vec<SourceId>,
    /// What can be loaded, in the order of the lookup's sources, each newest first.
    pub records: Vec<Record>,
}

/// A stored result and where it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// The cache.
    pub source: SourceId,
    /// The result.
    pub result: CacheResult,
}

/// "This result is what that key stands for."
#[derive(Clone, Debug)]
pub struct Save {
    /// The key; links from all its inputs' keys are written with it.
    pub key: Arc<CacheKey>,
    /// The result; none if only links are new.
    pub result: Option<CacheResult>,
    /// Further keys of inputs, by the number of the input, that lead to it.
    pub also: Vec<(u32, Dep)>,
}

/// Answers lookups, in their order. A source that fails finds nothing; its first error is returned
/// beside the answers, for the log.
pub fn lookup<S: Sources + ?Sized>(sources: &S, lookups: &[Lookup]) -> (Vec<Answer>, Option<StoreError>) {
    let mut answers = vec![Answer::default(); lookups.len()];
    let mut failure = None;
    let mut by_source: BTreeMap<SourceId, Vec<usize>> = BTreeMap::new();
    for (at, lookup) in lookups.iter().enumerate() {
        for source in lookup.sources.iter() {
            by_source.entry(*source).or_default().push(at);
        }
    }
    for (source, asked) in by_source {
        let Some(store) = sources.store(source) else { continue };
        let asked_here: Vec<&Lookup> = asked.iter().map(|at| &lookups[*at]).collect();
        match lookup_in(source, store, &asked_here) {
            Ok(found) => asked.iter().zip(found).for_each(|(at, answer)| answers[*at].merge(answer)),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    for (lookup, answer) in lookups.iter().zip(&mut answers) {
        let rank = |record: &Record| lookup.sources.iter().position(|source| *source == record.source);
        answer.found.iter_mut().for_each(|found| found.records.sort_by_key(rank));
    }
    (answers, failure)
}

/// Saves results in the local cache, in one transaction.
pub fn save(store: &dyn CacheStore, saves: &[Save]) -> Result<(), StoreError> {
    let source = SourceId::LOCAL;
    let also = saves.iter().flat_map(|save| &save.also).map(|(_, dep)| &dep.key);
    resolve(source, store, saves.iter().map(|save| &save.key).chain(also))?;
    let result = |save: &Save| Some(Change::Result { key: id_of(&save.key, source), result: save.result.clone()? });
    let mut changes: Vec<Change> = saves.iter().filter_map(result).collect();
    let mut links: Vec<(LinkRow, Arc<CacheKey>)> = saves.iter().flat_map(|save| save.links(source)).collect();
    let mut seen: HashSet<*const CacheKey> = saves.iter().map(|save| Arc::as_ptr(&save.key)).collect();
    // A link that is missing means that the key it comes from may be unknown too, and so on downwards.
    while !links.is_empty() {
        let (rows, inputs): (Vec<LinkRow>, Vec<Arc<CacheKey>>) = links.drain(..).unzip();
        let known = store.has_links(&rows)?;
        for ((row, input), _) in rows.into_iter().zip(inputs).zip(known).filter(|(_, known)| !known) {
            changes.push(Change::Link(row));
            if seen.insert(Arc::as_ptr(&input)) {
                links.extend(links_to(source, &input));
            }
        }
    }
    store.write(&changes)
}

/// The id of a key in one source, found by its inputs if need be; a new one if the source does not
/// know the key.
pub fn key_id(source: SourceId, store: &dyn CacheStore, key: &Arc<CacheKey>) -> Result<KeyId, StoreError> {
    resolve(source, store, [key])?;
    Ok(id_of(key, source))
}

/// All links that lead to a key, and the input keys that they come from.
fn links_to(source: SourceId, key: &CacheKey) -> Vec<(LinkRow, Arc<CacheKey>)> {
    let inputs = key.deps().iter().enumerate();
    inputs.flat_map(|(input, deps)| deps.iter().map(move |dep| link_from(source, key, input, dep))).collect()
}

fn link_from(source: SourceId, key: &CacheKey, input: usize, dep: &Dep) -> (LinkRow, Arc<CacheKey>) {
    let (from, to) = (id_of(&dep.key, source), id_of(key, source));
    (LinkRow { from, link: key.link(input, dep.selector), to }, dep.key.clone())
}

impl Save {
    fn links(&self, source: SourceId) -> Vec<(LinkRow, Arc<CacheKey>)> {
        let mut links = links_to(source, &self.key);
        links.extend(self.also.iter().map(|(input, dep)| link_from(source, &self.key, *input as usize, dep)));
        links
    }
}

fn lookup_in(source: SourceId, store: &dyn CacheStore, lookups: &[&Lookup]) -> Result<Vec<Answer>, StoreError> {
    let inputs = lookups.iter().flat_map(|lookup| lookup.inputs());
    resolve(source, store, inputs.flat_map(|input| input.keys.iter().chain(&input.also)).map(|dep| &dep.key))?;
    let meetings = meetings(source, store, lookups)?;
    let keys: Vec<KeyId> = meetings.iter().flat_map(|meeting| &meeting.keys).cloned().collect();
    let mut results = if keys.is_empty() { Vec::new() } else { store.results(&keys)? }.into_iter();
    let mut found = |id: KeyId| {
        let records = results.next().unwrap_or_default().into_iter().map(|result| Record { source, result });
        Found { id, sources: vec![source], records: records.collect() }
    };
    let answer = |meeting: Meeting| Answer {
        matched: meeting.matched,
        found: meeting.keys.into_iter().map(&mut found).collect(),
    };
    Ok(meetings.into_iter().map(answer).collect())
}

/// What each lookup finds. What one key of an input leads to, its other keys lead to from now on.
fn meetings(source: SourceId, store: &dyn CacheStore, lookups: &[&Lookup]) -> Result<Vec<Meeting>, StoreError> {
    let root = |lookup: &&Lookup| root_key(lookup.digest, lookup.number());
    let roots: Vec<KeyId> = lookups.iter().filter(|lookup| lookup.is_root()).map(root).collect();
    let ops: Vec<Inputs> =
        lookups.iter().filter(|lookup| !lookup.is_root()).map(|lookup| lookup.links(source)).collect();
    let exist = if roots.is_empty() { Vec::new() } else { store.exist(&roots)? };
    let met = if ops.is_empty() { Vec::new() } else { store.meet(&ops)? };
    let mut roots = roots.into_iter().zip(exist);
    let mut met = met.into_iter();
    let mut meetings = Vec::with_capacity(lookups.len());
    let mut rows = Vec::new();
    for lookup in lookups {
        let meeting = match lookup.question {
            Question::Root => {
                let known = roots.next().filter(|(_, exists)| *exists);
                Meeting { matched: Vec::new(), keys: known.map(|(id, _)| id).into_iter().collect() }
            }
            Question::Input(_) | Question::Inputs(_) => met.next().unwrap_or_default(),
        };
        rows.extend(lookup.rows_to(source, &meeting.keys));
        meetings.push(meeting);
    }
    if source == SourceId::LOCAL && !rows.is_empty() {
        let known = store.has_links(&rows)?;
        let missing = rows.into_iter().zip(known).filter(|(_, known)| !known);
        let missing: Vec<Change> = missing.map(|(row, _)| Change::Link(row)).collect();
        if !missing.is_empty() {
            store.write(&missing)?;
        }
    }
    Ok(meetings)
}

impl Lookup {
    fn is_root(&self) -> bool {
        matches!(self.question, Question::Root)
    }

    fn number(&self) -> i32 {
        i32::try_from(self.output).expect("output indexes are small")
    }

    fn inputs(&self) -> &[InputKeys] {
        match &self.question {
            Question::Root => &[],
            Question::Input(input) => std::slice::from_ref(input),
            Question::Inputs(inputs) => inputs,
        }
    }

    fn link(&self, input: u32, dep: &Dep) -> Link {
        Link { input, output: self.number(), digest: self.digest, selector: dep.selector }
    }

    /// The links to follow.
    fn links(&self, source: SourceId) -> Inputs {
        let link = |input: &InputKeys, dep: &Dep| (id_of(&dep.key, source), self.link(input.index, dep));
        let links = self.inputs().iter().map(|input| input.keys.iter().map(|dep| link(input, dep)).collect());
        Inputs { links: links.collect(), only_matched: matches!(self.question, Question::Input(_)) }
    }

    /// The links that should lead to `keys`, where some could be missing.
    fn rows_to(&self, source: SourceId, keys: &[KeyId]) -> Vec<LinkRow> {
        let mut rows = Vec::new();
        for input in self.inputs().iter().filter(|input| input.keys.len() + input.also.len() > 1) {
            for dep in input.keys.iter().chain(&input.also) {
                let from = id_of(&dep.key, source);
                let link = self.link(input.index, dep);
                rows.extend(keys.iter().map(|to| LinkRow { from: from.clone(), link, to: to.clone() }));
            }
        }
        rows
    }
}

impl Answer {
    /// Adds what another source says.
    fn merge(&mut self, other: Answer) {
        self.matched.resize(self.matched.len().max(other.matched.len()), false);
        self.matched.iter_mut().zip(other.matched).for_each(|(here, there)| *here |= there);
        for one in other.found {
            match self.found.iter_mut().find(|known| known.id == one.id) {
                None => self.found.push(one),
                Some(known) => {
                    known.sources.extend(one.sources);
                    known.records.extend(one.records);
                }
            }
        }
    }
}

/// Gives every key, and the keys below it, an id in `source`.
fn resolve<'k>(
    source: SourceId,
    store: &dyn CacheStore,
    keys: impl IntoIterator<Item = &'k Arc<CacheKey>>,
) -> Result<(), StoreError> {
    let mut stack: Vec<(Arc<CacheKey>, bool)> = Vec::new();
    for key in keys {
        stack.push((key.clone(), false));
        while let Some((key, inputs_done)) = stack.pop() {
            if key.id_in(source).is_some() {
                continue;
            }
            if inputs_done {
                key.set_id(source, id_by_inputs(source, store, &key)?);
                continue;
            }
            let inputs: Vec<_> = key.deps().iter().flatten().map(|dep| (dep.key.clone(), false)).collect();
            stack.push((key, true));
            stack.extend(inputs);
        }
    }
    Ok(())
}

/// The key that every input leads to, by any of its keys.
fn id_by_inputs(source: SourceId, store: &dyn CacheStore, key: &CacheKey) -> Result<KeyId, StoreError> {
    let link = |input, dep: &Dep| (id_of(&dep.key, source), key.link(input, dep.selector));
    let links = key.deps().iter().enumerate();
    let links = links.map(|(input, deps)| deps.iter().map(|dep| link(input, dep)).collect()).collect();
    let met = store.meet(&[Inputs { links, only_matched: false }])?;
    Ok(met.into_iter().flat_map(|meeting| meeting.keys).min().unwrap_or_else(random_id))
}

fn id_of(key: &CacheKey, source: SourceId) -> KeyId {
    key.id_in(source).expect("`resolve` gave the key an id in this source")
}

#[cfg(test)]
mod tests;
