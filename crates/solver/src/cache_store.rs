//! The trait behind which cache keys, links and results are kept, and one kept in memory.
//!
//! A store holds three relations and no data of results:
//!
//! ```text
//! results   (key, result, created_at)       what a key can be loaded from
//! links     (from, Link, to)                key `to` is reached from key `from` of an input
//! by result (result) -> keys                derived; needed to forget a result
//! ```
//!
//! A key *exists* while it has results or outgoing links; there is no row for a key itself.
//!
//! Every reading method takes many questions at once and answers in their order, so that a database
//! answers with a handful of statements in one read transaction however many vertices ask. Methods
//! are called from blocking threads, several at a time; each call is atomic by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use base::Digest;

use crate::{KeyId, Link, ResultId};

/// A failure of a store: never a build's failure, callers take it as a miss and say so in the log.
#[derive(Debug, thiserror::Error)]
#[error("the cache store failed")]
pub struct StoreError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

impl StoreError {
    /// Wraps what the backend says.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
        StoreError(source.into())
    }
}

/// One result that a key can be loaded from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheResult {
    /// Its name in the result store.
    pub id: ResultId,
    /// When it was made, in nanoseconds since 1970 (UTC).
    pub created_at: i64,
}

/// A link with both of its ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkRow {
    /// A key of an input.
    pub from: KeyId,
    /// Which op, output, input and selector.
    pub link: Link,
    /// The key of the op's output.
    pub to: KeyId,
}

/// A link seen from its target. Imported caches know the op's digest and output only in one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backlink {
    /// A key of an input.
    pub from: KeyId,
    /// Which input.
    pub input: u32,
    /// [`Link::record_id`] of the link.
    pub record: KeyId,
    /// Which part of the input.
    pub selector: Option<Digest>,
}

/// One thing to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A key can be loaded from a result. A known pair takes the new time.
    Result {
        /// The key.
        key: KeyId,
        /// The result.
        result: CacheResult,
    },
    /// A link; known ones stay as they are.
    Link(LinkRow),
    /// A result is gone: forget it under every key. A key that then has neither results nor outgoing
    /// links is forgotten with all links that lead to it, and so are, in turn, the keys which these
    /// links started from if nothing else is left of them.
    Release(ResultId),
}

/// What is known of the inputs of an op.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Keys of each input, and the links from them to keys of the op.
    pub links: Vec<Vec<(KeyId, Link)>>,
    /// Only [`Meeting::matched`] is asked for.
    pub only_matched: bool,
}

/// What the inputs of an op have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meeting {
    /// For each input, whether any of its keys leads anywhere.
    pub matched: Vec<bool>,
    /// The keys that all inputs lead to, each by any of its keys. Empty if only `matched` was asked for.
    pub keys: Vec<KeyId>,
}

/// Where cache keys are kept.
///
/// The cache manager has the logic; nothing else calls this. An imported (remote) cache implements it too
/// and refuses [`write`](CacheStore::write).
pub trait CacheStore: Send + Sync {
    /// For each key, whether it has results or outgoing links. Asked for root keys: once per source
    /// vertex of a build.
    fn exist(&self, keys: &[KeyId]) -> Result<Vec<bool>, StoreError>;

    /// For each key its results, newest first, without those whose data is known to be gone. That is a belief,
    /// not a promise: loading may still fail, which is a miss. Asked for the keys that were found.
    fn results(&self, keys: &[KeyId]) -> Result<Vec<Vec<CacheResult>>, StoreError>;

    /// For each key and link the keys it leads to.
    fn targets(&self, from: &[(KeyId, Link)]) -> Result<Vec<Vec<KeyId>>, StoreError>;

    /// For each op what its inputs have in common. The hot path: asked for every vertex with inputs.
    ///
    /// One input may lead to thousands of keys (every `COPY . .` that was ever done onto one base), of
    /// which the other inputs share one or none: a store had better start from the input that leads to
    /// fewest. This default is right for any store, but reads all.
    fn meet(&self, ops: &[Inputs]) -> Result<Vec<Meeting>, StoreError> {
        let links = ops.iter().flat_map(|op| &op.links);
        let from: Vec<(KeyId, Link)> = links.flatten().cloned().collect();
        let mut targets = self.targets(&from)?.into_iter();
        let mut reached = |keys: &Vec<(KeyId, Link)>| targets.by_ref().take(keys.len()).flatten().collect();
        Ok(ops.iter().map(|op| op.meeting(op.links.iter().map(&mut reached).collect())).collect())
    }

    /// For each row whether it is there. Asked before saving, to write only what is new.
    fn has_links(&self, rows: &[LinkRow]) -> Result<Vec<bool>, StoreError>;

    /// Writes all changes in order, in one transaction: all or nothing.
    fn write(&self, changes: &[Change]) -> Result<(), StoreError>;

    /// For each key the links that lead to it. Asked when a cache is exported.
    fn backlinks(&self, keys: &[KeyId]) -> Result<Vec<Vec<Backlink>>, StoreError>;

    /// The keys that can be loaded from a result. Asked when a cache is exported.
    fn keys_of_result(&self, result: &ResultId) -> Result<Vec<KeyId>, StoreError>;

    /// All keys that exist. Asked by maintenance only.
    fn keys(&self) -> Result<Vec<KeyId>, StoreError>;
}

impl Inputs {
    /// What the keys that inputs lead to have in common.
    fn meeting(&self, mut reached: Vec<BTreeSet<KeyId>>) -> Meeting {
        let matched = reached.iter().map(|keys| !keys.is_empty()).collect();
        if self.only_matched {
            return Meeting { matched, keys: Vec::new() };
        }
        reached.sort_by_key(BTreeSet::len);
        let mut reached = reached.into_iter();
        let mut keys: Vec<KeyId> = reached.next().into_iter().flatten().collect();
        for others in reached {
            keys.retain(|key| others.contains(key));
        }
        Meeting { matched, keys }
    }
}

/// A store that is gone with the process: tests, and caches imported from a remote.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: RwLock<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    results: BTreeMap<KeyId, BTreeMap<ResultId, i64>>,
    by_result: BTreeMap<ResultId, BTreeSet<KeyId>>,
    links: BTreeMap<KeyId, BTreeMap<Link, BTreeSet<KeyId>>>,
    backlinks: BTreeMap<KeyId, BTreeSet<(KeyId, Link)>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CacheStore for MemoryStore {
    fn exist(&self, keys: &[KeyId]) -> Result<Vec<bool>, StoreError> {
        let tables = self.read();
        Ok(keys.iter().map(|key| tables.exists(key)).collect())
    }

    fn results(&self, keys: &[KeyId]) -> Result<Vec<Vec<CacheResult>>, StoreError> {
        let tables = self.read();
        Ok(keys.iter().map(|key| tables.results_of(key)).collect())
    }

    fn targets(&self, from: &[(KeyId, Link)]) -> Result<Vec<Vec<KeyId>>, StoreError> {
        let tables = self.read();
        let targets = |key, link| tables.links.get(key).and_then(|links| links.get(link)).into_iter().flatten();
        Ok(from.iter().map(|(key, link)| targets(key, link).cloned().collect()).collect())
    }

    fn meet(&self, ops: &[Inputs]) -> Result<Vec<Meeting>, StoreError> {
        let tables = self.read();
        Ok(ops.iter().map(|inputs| tables.meet(inputs)).collect())
    }

    fn has_links(&self, rows: &[LinkRow]) -> Result<Vec<bool>, StoreError> {
        let tables = self.read();
        let has = |row: &LinkRow| Some(tables.links.get(&row.from)?.get(&row.link)?.contains(&row.to));
        Ok(rows.iter().map(|row| has(row).unwrap_or(false)).collect())
    }

    fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut tables = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        changes.iter().for_each(|change| tables.apply(change));
        Ok(())
    }

    fn backlinks(&self, keys: &[KeyId]) -> Result<Vec<Vec<Backlink>>, StoreError> {
        let tables = self.read();
        Ok(keys.iter().map(|key| tables.backlinks_of(key)).collect())
    }

    fn keys_of_result(&self, result: &ResultId) -> Result<Vec<KeyId>, StoreError> {
        Ok(self.read().by_result.get(result).into_iter().flatten().cloned().collect())
    }

    fn keys(&self) -> Result<Vec<KeyId>, StoreError> {
        let tables = self.read();
        let keys: BTreeSet<&KeyId> = tables.results.keys().chain(tables.links.keys()).collect();
        Ok(keys.into_iter().cloned().collect())
    }
}

impl Tables {
    fn exists(&self, key: &KeyId) -> bool {
        self.results.contains_key(key) || self.links.contains_key(key)
    }

    fn results_of(&self, key: &KeyId) -> Vec<CacheResult> {
        let results = self.results.get(key).into_iter().flatten();
        let mut results: Vec<CacheResult> =
            results.map(|(id, created_at)| CacheResult { id: id.clone(), created_at: *created_at }).collect();
        results.sort_by_key(|result| std::cmp::Reverse(result.created_at));
        results
    }

    fn meet(&self, inputs: &Inputs) -> Meeting {
        let reached = |(key, link): &(KeyId, Link)| self.links.get(key)?.get(link);
        let mut sets: Vec<Vec<&BTreeSet<KeyId>>> =
            inputs.links.iter().map(|keys| keys.iter().filter_map(reached).collect()).collect();
        let matched = sets.iter().map(|sets| !sets.is_empty()).collect();
        if inputs.only_matched {
            return Meeting { matched, keys: Vec::new() };
        }
        sets.sort_by_key(|sets| sets.iter().map(|set| set.len()).sum::<usize>());
        let Some((fewest, others)) = sets.split_first() else { return Meeting::default() };
        let fewest: BTreeSet<&KeyId> = fewest.iter().copied().flatten().collect();
        let common = |key: &&KeyId| others.iter().all(|sets| sets.iter().any(|set| set.contains(*key)));
        Meeting { matched, keys: fewest.into_iter().filter(common).cloned().collect() }
    }

    fn backlinks_of(&self, key: &KeyId) -> Vec<Backlink> {
        let links = self.backlinks.get(key).into_iter().flatten();
        links
            .map(|(from, link)| Backlink {
                from: from.clone(),
                input: link.input,
                record: link.record_id(),
                selector: link.selector,
            })
            .collect()
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Result { key, result } => {
                self.results.entry(key.clone()).or_default().insert(result.id.clone(), result.created_at);
                self.by_result.entry(result.id.clone()).or_default().insert(key.clone());
            }
            Change::Link(LinkRow { from, link, to }) => {
                self.links.entry(from.clone()).or_default().entry(*link).or_default().insert(to.clone());
                self.backlinks.entry(to.clone()).or_default().insert((from.clone(), *link));
            }
            Change::Release(result) => self.release(result),
        }
    }

    fn release(&mut self, result: &ResultId) {
        let mut touched: Vec<KeyId> = self.by_result.remove(result).into_iter().flatten().collect();
        for key in &touched {
            if let Some(results) = self.results.get_mut(key) {
                results.remove(result);
                if results.is_empty() {
                    self.results.remove(key);
                }
            }
        }
        while let Some(key) = touched.pop() {
            if self.exists(&key) {
                continue;
            }
            for (from, link) in self.backlinks.remove(&key).into_iter().flatten() {
                self.unlink(&from, &link, &key);
                touched.push(from);
            }
        }
    }

    fn unlink(&mut self, from: &KeyId, link: &Link, to: &KeyId) {
        let Some(links) = self.links.get_mut(from) else { return };
        if let Some(targets) = links.get_mut(link) {
            targets.remove(to);
            if targets.is_empty() {
                links.remove(link);
            }
        }
        if links.is_empty() {
            self.links.remove(from);
        }
    }
}

#[cfg(test)]
mod tests;
