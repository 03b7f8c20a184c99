//! What a remote cache must carry so that a later build finds these results again.
//!
//! [`chain`] walks from the keys of a solved edge down to its sources. For each key it tells the digest
//! that `cacheconfig.v0` calls a record's digest, the ways that lead to it from its inputs' records, and what can
//! be loaded. Making layers of results, and which of them to carry (`mode=min|max`), is the exporter's part.

use std::collections::HashMap;
use std::sync::Arc;

use base::Digest;

use crate::cache_key::{CacheKey, KeyId, SourceId, walk_inputs_first};
use crate::cache_manager::Record;
use crate::cache_store::{Backlink, CacheStore, StoreError};

/// A cache chain: records in an order in which inputs come first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The records. Links name earlier ones.
    pub records: Vec<ChainRecord>,
    /// The records of the keys that the walk started from, and others that name the same results.
    pub tops: Vec<usize>,
}

/// One key of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainRecord {
    /// The op's digest and output in one, or the id of an input's content.
    pub digest: Option<Digest>,
    /// For each input of the op the records that it is known by. Empty for sources and content.
    pub inputs: Vec<Vec<ChainLink>>,
    /// What can be loaded, best first. Empty for keys that serve as ways only.
    pub results: Vec<Record>,
    /// The vertex and output that the key was made for.
    pub edge: Option<(Digest, i32)>,
    /// Whether the client wants the result exported, if it said so.
    pub exported: Option<bool>,
}

/// A way from a record to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainLink {
    /// The place of the input's record in [`Chain::records`].
    pub record: usize,
    /// Which part of the input is read.
    pub selector: Option<Digest>,
}

/// The chain of some keys: those of [`Solved::keys`](crate::Solved::keys). Keys of one moment and
/// keys with an input that nothing lasting leads to are left out.
///
/// With stores (the local one should know all results by now: wait for [`Event::Saved`](crate::Event::Saved)), other
/// ways that they know to the same keys are added (builds that had the same content under other definitions), and other
/// sources that stand for the same results. This asks the stores, so call it on a blocking thread.
pub fn chain(keys: &[Arc<CacheKey>], stores: &[(SourceId, &dyn CacheStore)]) -> Result<Chain, StoreError> {
    let mut draft = Draft::default();
    keys.iter().for_each(|key| walk_inputs_first(key, &mut |key| draft.add_key(key)));
    let mut tops: Vec<usize> = keys.iter().map(|key| draft.by_key[&Arc::as_ptr(key)]).collect();
    for (source, store) in stores {
        draft.name_stored(*source);
        if *source == SourceId::LOCAL {
            draft.add_stored(*source, *store)?;
        }
        draft.add_backlinks(*store)?;
        if *source == SourceId::LOCAL {
            draft.add_aliases(*store, &mut tops)?;
        }
    }
    Ok(draft.finish(&tops))
}

/// Records in any order, which may lead round in circles: a step that changes nothing has its own key as input.
#[derive(Default)]
struct Draft {
    records: Vec<ChainRecord>,
    ids: Vec<Option<KeyId>>,
    keys: Vec<Arc<CacheKey>>,
    by_key: HashMap<*const CacheKey, usize>,
    by_id: HashMap<KeyId, usize>,
}

impl Draft {
    fn add_key(&mut self, key: &Arc<CacheKey>) {
        if self.by_key.contains_key(&Arc::as_ptr(key)) {
            return;
        }
        let mut inputs = Vec::with_capacity(key.deps().len());
        for deps in key.deps() {
            let link =
                |dep: &crate::Dep| ChainLink { record: self.by_key[&Arc::as_ptr(&dep.key)], selector: dep.selector };
            inputs.push(deps.iter().map(link).collect());
        }
        self.by_key.insert(Arc::as_ptr(key), self.records.len());
        self.keys.push(key.clone());
        self.records.push(ChainRecord {
            digest: key.root_id().digest(),
            inputs,
            results: key.records().to_vec(),
            edge: key.vertex().map(|vertex| (vertex, key.output())),
            exported: key.is_exported(),
        });
        self.ids.push(None);
    }

    /// Notes what the store calls the keys. Two keys of one id become two records: their ways and results add up
    /// for whoever reads the cache.
    fn name_stored(&mut self, source: SourceId) {
        self.by_id.clear();
        for at in 0..self.records.len() {
            self.ids[at] = match self.keys.get(at) {
                Some(key) => key.id_in(source),
                // Of another store: what has no inputs is called the same in all of them.
                None => self.records[at].digest.filter(|_| self.records[at].inputs.is_empty()).map(KeyId::from),
            };
            if let Some(id) = self.ids[at].clone() {
                self.by_id.entry(id).or_insert(at);
            }
        }
    }

    /// Adds what the store has for keys that were found elsewhere: it was saved when it was loaded.
    fn add_stored(&mut self, source: SourceId, store: &dyn CacheStore) -> Result<(), StoreError> {
        let elsewhere = |at: &usize| {
            let results = &self.records[*at].results;
            self.ids[*at].is_some() && !results.is_empty() && results.iter().all(|record| record.source != source)
        };
        let places: Vec<usize> = (0..self.records.len()).filter(elsewhere).collect();
        let ids: Vec<KeyId> = places.iter().filter_map(|at| self.ids[*at].clone()).collect();
        for (at, stored) in places.into_iter().zip(store.results(&ids)?) {
            let stored = stored.into_iter().map(|result| Record { source, result });
            self.records[at].results.splice(0..0, stored);
        }
        Ok(())
    }

    /// Adds the ways that the store knows to all records, level by level downwards.
    fn add_backlinks(&mut self, store: &dyn CacheStore) -> Result<(), StoreError> {
        let mut level: Vec<usize> = (0..self.records.len()).collect();
        while !level.is_empty() {
            let ids: Vec<(usize, KeyId)> = level.drain(..).filter_map(|at| Some((at, self.ids[at].clone()?))).collect();
            let asked: Vec<KeyId> = ids.iter().map(|(_, id)| id.clone()).collect();
            for ((at, id), backlinks) in ids.into_iter().zip(store.backlinks(&asked)?) {
                if backlinks.is_empty() && self.records[at].digest.is_none() {
                    self.records[at].digest = id.digest();
                }
                backlinks.into_iter().for_each(|link| self.add_backlink(at, link, &mut level));
            }
        }
        Ok(())
    }

    fn add_backlink(&mut self, at: usize, link: Backlink, new: &mut Vec<usize>) {
        let digest = link.record.digest();
        let known = self.records[at].digest;
        if known.is_some() && known != digest {
            return;
        }
        let from = match self.by_id.get(&link.from) {
            Some(from) => *from,
            None => {
                self.records.push(ChainRecord::default());
                self.ids.push(Some(link.from.clone()));
                self.by_id.insert(link.from, self.records.len() - 1);
                new.push(self.records.len() - 1);
                self.records.len() - 1
            }
        };
        let record = &mut self.records[at];
        record.digest = digest;
        let input = link.input as usize;
        // A source that the store knows a way to is none of ours: it has no inputs.
        if at < self.keys.len() && input >= record.inputs.len() {
            return;
        }
        if record.inputs.len() <= input {
            record.inputs.resize(input + 1, Vec::new());
        }
        let link = ChainLink { record: from, selector: link.selector };
        if !record.inputs[input].contains(&link) {
            record.inputs[input].push(link);
        }
    }

    /// Adds the other keys of sources whose results may be exported: an image is known by its manifest and by
    /// its layers.
    fn add_aliases(&mut self, store: &dyn CacheStore, tops: &mut Vec<usize>) -> Result<(), StoreError> {
        for at in 0..self.keys.len() {
            let record = self.records[at].clone();
            let Some(best) = record.results.first().filter(|_| record.inputs.is_empty()) else { continue };
            for id in store.keys_of_result(&best.result.id)? {
                if self.by_id.contains_key(&id) || id.digest().is_none() {
                    continue;
                }
                if !store.backlinks(std::slice::from_ref(&id))?.iter().all(Vec::is_empty) {
                    continue;
                }
                self.by_id.insert(id.clone(), self.records.len());
                tops.push(self.records.len());
                self.records.push(ChainRecord { digest: id.digest(), ..record.clone() });
                self.ids.push(Some(id));
            }
        }
        Ok(())
    }

    /// Orders the records that `tops` need; leaves out links that lead back and records that nothing lasting leads to.
    fn finish(self, tops: &[usize]) -> Chain {
        let mut chain = Chain::default();
        let mut places: Vec<Place> = vec![Place::New; self.records.len()];
        for top in tops {
            let mut stack = vec![*top];
            while let Some(at) = stack.last().copied() {
                match places[at] {
                    Place::New => {
                        places[at] = Place::Open;
                        let links = self.records[at].inputs.iter().flatten();
                        stack.extend(links.map(|link| link.record).filter(|from| places[*from] == Place::New));
                    }
                    Place::Open => {
                        stack.pop();
                        places[at] = self.place(at, &places, &mut chain);
                    }
                    Place::At(_) | Place::Nowhere => drop(stack.pop()),
                }
            }
            if let Place::At(place) = places[*top] {
                chain.tops.push(place);
            }
        }
        chain.tops.sort_unstable();
        chain.tops.dedup();
        chain
    }

    fn place(&self, at: usize, places: &[Place], chain: &mut Chain) -> Place {
        let link = |link: &ChainLink| match places[link.record] {
            Place::At(record) => Some(ChainLink { record, ..*link }),
            _ => None,
        };
        let record = &self.records[at];
        let inputs: Vec<Vec<ChainLink>> =
            record.inputs.iter().map(|links| links.iter().filter_map(link).collect()).collect();
        if record.digest.is_none() || inputs.iter().any(Vec::is_empty) {
            return Place::Nowhere;
        }
        chain.records.push(ChainRecord { inputs, ..record.clone() });
        Place::At(chain.records.len() - 1)
    }
}

/// Where a record of the draft goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    New,
    /// Its inputs are being placed.
    Open,
    At(usize),
    Nowhere,
}

#[cfg(test)]
mod tests;
