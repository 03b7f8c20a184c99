//! The logic on top of [`CacheStore`]: which keys an op's output may be found under, and saving.
//!
//! Plain functions without state, called by the engine's blocking threads with what
//! [`Action::Lookup`](crate::Action::Lookup) and [`Action::Save`](crate::Action::Save) carry. A batch
//! costs a fixed number of store calls, whatever its length; only keys whose inputs are new to a
//! source cost one more each.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::cache_store::{CacheResult, CacheStore, Change, LinkRow, StoreError};
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

/// "Under which keys may this output be stored, as far as these keys of one input tell?"
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Where to look, most preferred first.
    pub sources: Arc<[SourceId]>,
    /// The op's own digest.
    pub digest: KeyDigest,
    /// The op's output.
    pub output: u32,
    /// What is known about one input; none asks for the op's root key.
    pub input: Option<LookupInput>,
}

/// One input of an op, as far as it is known.
#[derive(Clone, Debug)]
pub struct LookupInput {
    /// Which input.
    pub index: u32,
    /// Keys of the input that stand for the same content: what is found from one of them is linked
    /// to all others.
    pub keys: Vec<Dep>,
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
    /// The result.
    pub result: CacheResult,
}

/// Answers lookups, in their order. A source that fails finds nothing; its first error is returned
/// beside the answers, for the log.
pub fn lookup<S: Sources + ?Sized>(sources: &S, lookups: &[Lookup]) -> (Vec<Vec<Found>>, Option<StoreError>) {
    let mut answers = vec![Vec::new(); lookups.len()];
    let mut failure = None;
    let mut by_source: BTreeMap<SourceId, Vec<usize>> = BTreeMap::new();
    for (at, lookup) in lookups.iter().enumerate() {
        for source in lookup.sources.iter() {
            by_source.entry(*source).or_default().push(at);
        }
    }
    for (source, asked) in by_source {
        let Some(store) = sources.store(source) else { continue };
        match lookup_in(source, store, lookups, &asked) {
            Ok(found) => asked.iter().zip(found).for_each(|(at, found)| merge(&mut answers[*at], found)),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    for (lookup, found) in lookups.iter().zip(&mut answers) {
        let rank = |record: &Record| lookup.sources.iter().position(|source| *source == record.source);
        found.iter_mut().for_each(|found| found.records.sort_by_key(rank));
    }
    (answers, failure)
}

/// Saves results in the local cache, in one transaction.
pub fn save(store: &dyn CacheStore, saves: &[Save]) -> Result<(), StoreError> {
    let source = SourceId::LOCAL;
    resolve(source, store, saves.iter().map(|save| &save.key))?;
    let result = |save: &Save| Change::Result { key: id_of(&save.key, source), result: save.result.clone() };
    let mut changes: Vec<Change> = saves.iter().map(result).collect();
    // A link that is missing means that the key it comes from may be unknown too, and so on downwards.
    let mut level: Vec<Arc<CacheKey>> = saves.iter().map(|save| save.key.clone()).collect();
    let mut seen: HashSet<*const CacheKey> = level.iter().map(Arc::as_ptr).collect();
    while !level.is_empty() {
        let (links, inputs) = links_to(source, &level);
        level.clear();
        for ((row, input), known) in links.iter().zip(inputs).zip(store.has_links(&links)?) {
            if known {
                continue;
            }
            changes.push(Change::Link(row.clone()));
            if seen.insert(Arc::as_ptr(&input)) {
                level.push(input);
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

/// All links that lead to `keys`, and the input keys that they come from.
fn links_to(source: SourceId, keys: &[Arc<CacheKey>]) -> (Vec<LinkRow>, Vec<Arc<CacheKey>>) {
    let mut rows = Vec::new();
    let mut inputs = Vec::new();
    for key in keys {
        let to = id_of(key, source);
        for (input, deps) in key.deps().iter().enumerate() {
            for dep in deps {
                let from = id_of(&dep.key, source);
                rows.push(LinkRow { from, link: key.link(input, dep.selector), to: to.clone() });
                inputs.push(dep.key.clone());
            }
        }
    }
    (rows, inputs)
}

fn lookup_in(
    source: SourceId,
    store: &dyn CacheStore,
    lookups: &[Lookup],
    asked: &[usize],
) -> Result<Vec<Vec<Found>>, StoreError> {
    let keys = asked.iter().filter_map(|at| lookups[*at].input.as_ref()).flat_map(|input| &input.keys);
    resolve(source, store, keys.map(|dep| &dep.key))?;
    let ids = candidates(source, store, lookups, asked)?;
    let flat: Vec<KeyId> = ids.iter().flatten().cloned().collect();
    let mut results = store.results(&flat)?.into_iter();
    let found = |id: KeyId| {
        let records = results.next().unwrap_or_default().into_iter().map(|result| Record { source, result });
        Found { id, sources: vec![source], records: records.collect() }
    };
    let mut found = found;
    Ok(ids.into_iter().map(|ids| ids.into_iter().map(&mut found).collect()).collect())
}

/// The keys that each lookup finds. What one key of an input leads to, its other keys lead to from now on.
fn candidates(
    source: SourceId,
    store: &dyn CacheStore,
    lookups: &[Lookup],
    asked: &[usize],
) -> Result<Vec<Vec<KeyId>>, StoreError> {
    let root = |at: &usize| root_key(lookups[*at].digest, output(&lookups[*at]));
    let roots: Vec<KeyId> = asked.iter().filter(|at| lookups[**at].input.is_none()).map(root).collect();
    let exist = if roots.is_empty() { Vec::new() } else { store.exist(&roots)? };
    let mut roots = roots.into_iter().zip(exist);

    let from: Vec<(KeyId, Link)> = asked.iter().flat_map(|at| questions(source, &lookups[*at])).collect();
    let targets = if from.is_empty() { Vec::new() } else { store.targets(&from)? };
    let mut answered = from.into_iter().zip(targets);

    let mut links = Vec::new();
    let mut found = Vec::with_capacity(asked.len());
    for at in asked {
        let Some(input) = &lookups[*at].input else {
            found.push(roots.next().filter(|(_, exists)| *exists).map(|(id, _)| id).into_iter().collect());
            continue;
        };
        let answers: Vec<_> = answered.by_ref().take(input.keys.len()).collect();
        found.push(union(&answers));
        missing_links(&answers, &mut links);
    }
    if source == SourceId::LOCAL && !links.is_empty() {
        store.write(&links)?;
    }
    Ok(found)
}

fn questions(source: SourceId, lookup: &Lookup) -> Vec<(KeyId, Link)> {
    let Some(input) = &lookup.input else { return Vec::new() };
    let link = |selector| Link { input: input.index, output: output(lookup), digest: lookup.digest, selector };
    input.keys.iter().map(|dep| (id_of(&dep.key, source), link(dep.selector))).collect()
}

fn union(answers: &[((KeyId, Link), Vec<KeyId>)]) -> Vec<KeyId> {
    let mut seen = HashSet::new();
    answers.iter().flat_map(|(_, targets)| targets).filter(|id| seen.insert(*id)).cloned().collect()
}

fn missing_links(answers: &[((KeyId, Link), Vec<KeyId>)], changes: &mut Vec<Change>) {
    if answers.len() < 2 {
        return;
    }
    for to in union(answers) {
        for ((from, link), targets) in answers {
            if !targets.contains(&to) {
                changes.push(Change::Link(LinkRow { from: from.clone(), link: *link, to: to.clone() }));
            }
        }
    }
}

fn merge(into: &mut Vec<Found>, found: Vec<Found>) {
    for one in found {
        match into.iter_mut().find(|known| known.id == one.id) {
            None => into.push(one),
            Some(known) => {
                known.sources.extend(one.sources);
                known.records.extend(one.records);
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
    let mut from = Vec::new();
    for (input, deps) in key.deps().iter().enumerate() {
        from.extend(deps.iter().map(|dep| (id_of(&dep.key, source), key.link(input, dep.selector))));
    }
    let mut targets = store.targets(&from)?.into_iter();
    let mut common: Option<Vec<KeyId>> = None;
    for deps in key.deps() {
        let reached: HashSet<KeyId> = targets.by_ref().take(deps.len()).flatten().collect();
        common = Some(match common {
            None => reached.into_iter().collect(),
            Some(ids) => ids.into_iter().filter(|id| reached.contains(id)).collect(),
        });
    }
    Ok(common.into_iter().flatten().min().unwrap_or_else(random_id))
}

fn id_of(key: &CacheKey, source: SourceId) -> KeyId {
    key.id_in(source).expect("`resolve` gave the key an id in this source")
}

fn output(lookup: &Lookup) -> i32 {
    i32::try_from(lookup.output).expect("output indexes are small")
}

#[cfg(test)]
mod tests;
