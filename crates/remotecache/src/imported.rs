//! A cache that was read: answers the solver's questions, and tells which layers a result consists of.
//!
//! Whoever wrote it is not trusted further than that: places that do not exist and circles of layers make it unusable as a
//! whole; a layer without a blob or a diff id, or a record that nothing leads to, only what stands on it. What it gives less
//! than it says is noted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base::Digest;
use image::Descriptor;
use solver::{
    Backlink, CacheResult, CacheStore, Change, KeyDigest, KeyId, Link, LinkRow, ResultId, SourceId, StoreError,
};

use crate::config::{CacheConfig, CacheRecord, Error, shown};

/// More layers than any result may have: each is looked at whenever the result is loaded.
const MOST_LAYERS: usize = 1000;
const TOO_MANY: &str = "more than 1000 layers";

/// More causes are more than anybody reads.
const MOST_CAUSES: usize = 4;

/// One or several configs under one source.
#[derive(Debug)]
pub struct Imported {
    source: SourceId,
    links: HashMap<KeyId, BTreeMap<Way, Vec<KeyId>>>,
    results: HashMap<KeyId, Vec<CacheResult>>,
    layers: HashMap<ResultId, Layers>,
    stacks: Vec<Stack>,
    records: usize,
    /// Results that can be reached, and loaded.
    usable: usize,
    complaints: Vec<String>,
}

/// Where the layers of a result stand.
#[derive(Clone, Debug)]
enum Layers {
    /// One and all below it, in a stack of that number.
    Top(usize, usize),
    /// One by one.
    List(Vec<Descriptor>),
}

/// The layers of one config.
#[derive(Debug)]
struct Stack(Vec<Standing>);

/// A layer and what it stands on.
#[derive(Clone, Debug)]
struct Standing {
    blob: Descriptor,
    /// Whether the manifest has it.
    is_there: bool,
    /// Why it is of no use, itself or one below.
    lost: Option<Arc<str>>,
    parent: Option<usize>,
    /// How many it is with those below; 0 where one of them is of no use.
    depth: usize,
    /// Names it with all below it.
    name: Digest,
}

/// A link as a record has it: the op's digest and output in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    input: u32,
    record: Digest,
    selector: Option<Digest>,
}

impl Imported {
    /// One that knows nothing.
    pub fn new(source: SourceId) -> Imported {
        Imported {
            source,
            links: HashMap::new(),
            results: HashMap::new(),
            layers: HashMap::new(),
            stacks: Vec::new(),
            records: 0,
            usable: 0,
            complaints: Vec::new(),
        }
    }

    /// Which cache it is.
    pub fn source(&self) -> SourceId {
        self.source
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.records
    }

    /// Whether nothing can be found in it.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// What it does not give although it says so, for people; empty if it gives all.
    pub fn complaint(&self) -> Option<String> {
        let what = if self.usable == 0 { "gives nothing" } else { "gives less than it says" };
        (!self.complaints.is_empty()).then(|| format!("{what}: {}", self.complaints.join("; ")))
    }

    /// Notes something that is wrong with it.
    pub fn complain(&mut self, why: impl Into<String>) {
        let why = why.into();
        if self.complaints.len() < MOST_CAUSES && !self.complaints.contains(&why) {
            self.complaints.push(why);
        }
    }

    /// Adds what a config says. `blobs` describes the layers that there are.
    pub fn add(&mut self, config: &CacheConfig, blobs: &[Descriptor]) -> Result<(), Error> {
        let blobs: HashMap<Digest, &Descriptor> = blobs.iter().map(|blob| (blob.digest, blob)).collect();
        self.stacks.push(Stack::new(config, &blobs)?);
        let ids = self.ids(config);
        let mut lost = Lost::default();
        let reached = reached(config, &ids);
        for ((record, id), is_reached) in config.records.iter().zip(&ids).zip(reached) {
            let Some(id) = id else { continue };
            let Ok(digest) = record.digest.parse::<Digest>() else { continue };
            for (input, ways) in (0..).zip(&record.inputs) {
                for way in ways {
                    let Some(from) = &ids[place(way.link, config.records.len(), "record")?] else { continue };
                    let selector = match way.selector.as_str() {
                        "" => None,
                        text => match text.parse() {
                            Ok(selector) => Some(selector),
                            // What none of our ops states is no way for us.
                            Err(_) => continue,
                        },
                    };
                    let targets = self.links.entry(from.clone()).or_default();
                    let targets = targets.entry(Way { input, record: digest, selector }).or_default();
                    if !targets.contains(id) {
                        targets.push(id.clone());
                    }
                }
            }
            let usable = self.add_results(record, id, &mut lost)?;
            self.usable += if is_reached { usable } else { 0 };
        }
        self.records += config.records.len();
        self.complain_of(config, &ids, &lost);
        Ok(())
    }

    fn complain_of(&mut self, config: &CacheConfig, ids: &[Option<KeyId>], lost: &Lost) {
        let all = config.records.len();
        let results = config.records.iter().map(|record| record.results.len() + record.chains.len()).sum::<usize>();
        match (all, results) {
            (0, _) => self.complain("there are no records in it"),
            (_, 0) => self.complain("none of its records has a result"),
            _ => {}
        }
        let nameless = ids.iter().filter(|id| id.is_none()).count();
        let is_open = |record: &&CacheRecord| record.inputs.iter().any(Vec::is_empty);
        let open = config.records.iter().filter(is_open).count();
        for (count, why) in [(nameless, "no digest that is one"), (open, "an input that nothing leads to")] {
            if count > 0 {
                self.complain(format!("{count} of {all} records have {why}"));
            }
        }
        if has_circles(config) {
            self.complain("records lead round in circles");
        }
        for (why, count) in &lost.0 {
            self.complain(format!("{count} of {results} results have {why}"));
        }
    }

    /// What the keys of records are called here: a source by what it is, others by their place. None for what cannot match.
    fn ids(&self, config: &CacheConfig) -> Vec<Option<KeyId>> {
        let mut ids = Vec::with_capacity(config.records.len());
        for (at, record) in config.records.iter().enumerate() {
            let digest = record.digest.parse::<Digest>().ok();
            ids.push(match (record.inputs.is_empty(), digest) {
                (_, None) => None,
                (true, Some(digest)) => Some(KeyId::from(digest)),
                (false, Some(_)) => Some(KeyId::from(format!("imported-{}-{}", self.source.0, self.records + at))),
            });
        }
        ids
    }

    /// How many can be loaded.
    fn add_results(&mut self, record: &CacheRecord, id: &KeyId, lost: &mut Lost) -> Result<usize, Error> {
        let number = self.stacks.len() - 1;
        let Stack(stack) = &self.stacks[number];
        let mut found = Vec::new();
        for result in &record.results {
            let top = place(result.layer, stack.len(), "layer")?;
            if stack[top].depth > 0 {
                found.push((stack[top].name, Layers::Top(number, top), result.created_at));
                continue;
            }
            lost.count(stack[top].lost.as_deref().unwrap_or_default());
        }
        for result in &record.chains {
            let list = result.layers.iter().map(|at| Ok(&stack[place(*at, stack.len(), "layer")?]));
            let list: Vec<&Standing> = list.collect::<Result<_, Error>>()?;
            if let Some(why) = list.iter().find_map(|layer| defect(&layer.blob, layer.is_there)) {
                lost.count(&why);
            } else if list.is_empty() {
                lost.count("no layers");
            } else if list.len() > MOST_LAYERS {
                lost.count(TOO_MANY);
            } else {
                let name = list.iter().fold(None, |below, layer| Some(name_on(below, layer.blob.digest)));
                let blobs = list.into_iter().map(|layer| layer.blob.clone()).collect();
                found.push((name.expect("there is a layer"), Layers::List(blobs), result.created_at));
            }
        }
        let usable = found.len();
        for (name, layers, created_at) in found {
            // Never the name of a local result.
            let result = ResultId::from(format!("layers:{}", name.hex()));
            self.layers.entry(result.clone()).or_insert(layers);
            let results = self.results.entry(id.clone()).or_default();
            results.push(CacheResult { id: result, created_at: created_at.0 });
            results.sort_by_key(|result| std::cmp::Reverse(result.created_at));
        }
        Ok(usable)
    }

    /// The layers of a result, base first. Each has a diff id among its annotations.
    pub fn layers(&self, result: &ResultId) -> Option<Vec<Descriptor>> {
        match self.layers.get(result)? {
            Layers::List(list) => Some(list.clone()),
            Layers::Top(number, top) => {
                let Stack(stack) = &self.stacks[*number];
                let below = std::iter::successors(Some(*top), |at| stack[*at].parent);
                let mut blobs: Vec<Descriptor> = below.map(|at| stack[at].blob.clone()).collect();
                blobs.reverse();
                Some(blobs)
            }
        }
    }

    /// A result of `key` that is the lower part of these layers, and of how many: what they were made on, most often.
    pub fn result_below(&self, key: &KeyId, layers: &[Descriptor]) -> Option<(CacheResult, usize)> {
        self.results.get(key)?.iter().find_map(|result| {
            let own = self.layers(&result.id)?;
            let is_below = own.len() <= layers.len() && own.iter().zip(layers).all(|(own, of)| own.digest == of.digest);
            is_below.then(|| (result.clone(), own.len()))
        })
    }
}

/// Why results cannot be loaded, and how many.
#[derive(Default)]
struct Lost(BTreeMap<String, usize>);

impl Lost {
    fn count(&mut self, why: &str) {
        *self.0.entry(why.to_owned()).or_default() += 1;
    }
}

/// What is wrong with a layer by itself. What is unpacked needs a diff id.
fn defect(blob: &Descriptor, is_there: bool) -> Option<String> {
    if !is_there {
        return Some("layers that its manifest does not have".to_owned());
    }
    if !image::media_type::is_layer(&blob.media_type) {
        return Some(format!("layers of unknown type `{}`", shown(&blob.media_type)));
    }
    blob.diff_id().is_none().then(|| "layers without a diff id".to_owned())
}

/// Which records some way from sources leads to.
fn reached(config: &CacheConfig, ids: &[Option<KeyId>]) -> Vec<bool> {
    let records = &config.records;
    // Inputs of others that have a record as a way, and of each how many nothing leads to yet.
    let mut above: Vec<Vec<(usize, usize)>> = vec![Vec::new(); records.len()];
    let mut open: Vec<Vec<bool>> = records.iter().map(|record| vec![true; record.inputs.len()]).collect();
    let mut missing: Vec<usize> = records.iter().map(|record| record.inputs.len()).collect();
    for (at, record) in records.iter().enumerate() {
        for (input, ways) in record.inputs.iter().enumerate() {
            for from in ways.iter().filter_map(|way| place(way.link, records.len(), "record").ok()) {
                above[from].push((at, input));
            }
        }
    }
    let mut reached = vec![false; records.len()];
    let mut left: Vec<usize> = (0..records.len()).filter(|at| missing[*at] == 0).collect();
    while let Some(at) = left.pop() {
        if ids[at].is_none() {
            continue;
        }
        reached[at] = true;
        for (next, input) in std::mem::take(&mut above[at]) {
            if std::mem::take(&mut open[next][input]) {
                missing[next] -= 1;
                if missing[next] == 0 {
                    left.push(next);
                }
            }
        }
    }
    reached
}

/// Whether a record leads to itself.
fn has_circles(config: &CacheConfig) -> bool {
    let records = &config.records;
    let from = |at: usize| {
        let ways = records[at].inputs.iter().flatten();
        ways.filter_map(|way| place(way.link, records.len(), "record").ok())
    };
    let mut above: Vec<Vec<usize>> = vec![Vec::new(); records.len()];
    let mut open: Vec<usize> = (0..records.len()).map(|at| from(at).count()).collect();
    (0..records.len()).for_each(|at| from(at).for_each(|below| above[below].push(at)));
    let mut left: Vec<usize> = (0..records.len()).filter(|at| open[*at] == 0).collect();
    let mut done = 0;
    while let Some(at) = left.pop() {
        done += 1;
        for next in std::mem::take(&mut above[at]) {
            open[next] -= 1;
            if open[next] == 0 {
                left.push(next);
            }
        }
    }
    done < records.len()
}

/// The name of a layer on those below.
fn name_on(below: Option<Digest>, blob: Digest) -> Digest {
    let below = below.map(|name| name.hex()).unwrap_or_default();
    Digest::of(format!("{below} {blob}"))
}

impl Stack {
    /// Checks that every layer stands on one that exists, and none on itself.
    fn new(config: &CacheConfig, blobs: &HashMap<Digest, &Descriptor>) -> Result<Stack, Error> {
        let count = config.layers.len();
        let mut known: Vec<Option<Standing>> = vec![None; count];
        for start in 0..count {
            let mut path = Vec::new();
            let mut next = Some(start);
            while let Some(at) = next.filter(|at| known[*at].is_none()) {
                path.push(at);
                if path.len() > count {
                    return Err(Error::Damaged(format!("layer {start} stands on itself")));
                }
                next = parent(config, at)?;
            }
            for at in path.into_iter().rev() {
                let parent = parent(config, at)?;
                let below = parent.and_then(|parent| known[parent].as_ref());
                let digest = config.layers[at].blob;
                let blob = blobs.get(&digest).map(|blob| (*blob).clone());
                let depth = below.map_or(1, |below| below.depth + 1);
                let is_there = blob.is_some();
                let blob = blob.unwrap_or_else(|| Descriptor::new("", digest, 0));
                let lost = below.and_then(|below| below.lost.clone());
                let lost = lost.or_else(|| defect(&blob, is_there).map(Arc::from));
                let lost = lost.or_else(|| (depth > MOST_LAYERS).then(|| Arc::from(TOO_MANY)));
                let standing = Standing {
                    is_there,
                    blob,
                    parent,
                    depth: if lost.is_none() { depth } else { 0 },
                    lost,
                    name: name_on(below.map(|below| below.name), digest),
                };
                known[at] = Some(standing);
            }
        }
        Ok(Stack(known.into_iter().flatten().collect()))
    }
}

fn parent(config: &CacheConfig, at: usize) -> Result<Option<usize>, Error> {
    match config.layers[at].parent {
        -1 => Ok(None),
        parent => place(parent, config.layers.len(), "layer").map(Some),
    }
}

fn place(at: i64, of: usize, what: &str) -> Result<usize, Error> {
    let found = usize::try_from(at).ok().filter(|at| *at < of);
    found.ok_or_else(|| Error::Damaged(format!("there is no {what} {at}")))
}

impl CacheStore for Imported {
    fn exist(&self, keys: &[KeyId]) -> Result<Vec<bool>, StoreError> {
        Ok(keys.iter().map(|key| self.links.contains_key(key) || self.results.contains_key(key)).collect())
    }

    fn results(&self, keys: &[KeyId]) -> Result<Vec<Vec<CacheResult>>, StoreError> {
        Ok(keys.iter().map(|key| self.results.get(key).cloned().unwrap_or_default()).collect())
    }

    fn targets(&self, from: &[(KeyId, Link)]) -> Result<Vec<Vec<KeyId>>, StoreError> {
        let targets = |(key, link): &(KeyId, Link)| {
            // What names a moment only is in no cache.
            let KeyDigest::Stable(_) = link.digest else { return None };
            let way = Way { input: link.input, record: link.record_id().digest()?, selector: link.selector };
            self.links.get(key)?.get(&way).cloned()
        };
        Ok(from.iter().map(|row| targets(row).unwrap_or_default()).collect())
    }

    fn has_links(&self, rows: &[LinkRow]) -> Result<Vec<bool>, StoreError> {
        let from: Vec<(KeyId, Link)> = rows.iter().map(|row| (row.from.clone(), row.link)).collect();
        let targets = self.targets(&from)?;
        Ok(rows.iter().zip(targets).map(|(row, targets)| targets.contains(&row.to)).collect())
    }

    fn write(&self, _: &[Change]) -> Result<(), StoreError> {
        Err(StoreError::new("an imported cache is not written to"))
    }

    fn backlinks(&self, keys: &[KeyId]) -> Result<Vec<Vec<Backlink>>, StoreError> {
        let mut found: HashMap<&KeyId, Vec<Backlink>> = keys.iter().map(|key| (key, Vec::new())).collect();
        for (from, ways) in &self.links {
            for (way, targets) in ways {
                for target in targets {
                    if let Some(links) = found.get_mut(target) {
                        let record = KeyId::from(way.record);
                        links.push(Backlink { from: from.clone(), input: way.input, record, selector: way.selector });
                    }
                }
            }
        }
        Ok(keys.iter().map(|key| found.get(key).cloned().unwrap_or_default()).collect())
    }

    fn keys_of_result(&self, result: &ResultId) -> Result<Vec<KeyId>, StoreError> {
        let has = |(_, results): &(&KeyId, &Vec<CacheResult>)| results.iter().any(|known| known.id == *result);
        Ok(self.results.iter().filter(has).map(|(key, _)| key.clone()).collect())
    }

    fn keys(&self) -> Result<Vec<KeyId>, StoreError> {
        let keys: std::collections::BTreeSet<&KeyId> = self.links.keys().chain(self.results.keys()).collect();
        Ok(keys.into_iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests;
