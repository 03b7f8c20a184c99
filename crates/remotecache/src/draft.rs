//! A cache config out of the keys of a build and the layers of its results. The same keys make the same bytes.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use base::Digest;
use image::Descriptor;
use solver::cache_export::Chain;

use crate::config::{CacheConfig, CacheInput, CacheLayer, CacheRecord, CacheResult, ChainedResult, Time};

/// The layers of one result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Base first.
    pub layers: Vec<Descriptor>,
    /// When the result was made, in nanoseconds since 1970.
    pub created_at: i64,
}

/// Where the layers of a result are in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Within {
    /// Places of layers in the image, base first.
    pub layers: Vec<usize>,
    /// When the result was made, in nanoseconds since 1970.
    pub created_at: i64,
}

/// A config, and what describes the blobs that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The config.
    pub config: CacheConfig,
    /// One for each of its layers, in its order.
    pub layers: Vec<Descriptor>,
}

impl Draft {
    /// The config of a chain; `results` has one place for each of its records.
    pub fn new(chain: &Chain, results: &[Option<Made>]) -> Draft {
        let (mut records, results) = merged(records(chain), results, |made| {
            (made.created_at, Reverse(made.layers.iter().map(|layer| layer.digest).collect::<Vec<_>>()))
        });
        let mut stack = Stack::default();
        for (record, made) in records.iter_mut().zip(results) {
            let Some(made) = made.filter(|made| !made.layers.is_empty()) else { continue };
            let layer = stack.add(&made.layers);
            record.results.push(CacheResult { layer, created_at: Time(made.created_at) });
        }
        let (layers, places) = stack.sorted();
        for result in records.iter_mut().flat_map(|record| &mut record.results) {
            result.layer = places[result.layer as usize] as i64;
        }
        let (layers, descriptors) = layers.into_iter().unzip();
        Draft { config: CacheConfig { layers, records: sorted(records) }, layers: descriptors }
    }
}

/// The records of a chain for the config of an image that has its results; none if it has none of them.
pub fn inline(chain: &Chain, results: &[Option<Within>]) -> Option<Vec<u8>> {
    let (mut records, results) =
        merged(records(chain), results, |within| (within.created_at, Reverse(within.layers.clone())));
    let mut found = false;
    for (record, within) in records.iter_mut().zip(results) {
        let Some(Within { layers, created_at }) = within.filter(|within| !within.layers.is_empty()) else { continue };
        found = true;
        let created_at = Time(*created_at);
        let layers: Vec<i64> = layers.iter().map(|at| *at as i64).collect();
        // The first layers of the image, in its order: the last of them says it all.
        match layers.iter().zip(0..).all(|(at, place)| *at == place) {
            true => record.results.push(CacheResult { layer: layers.len() as i64 - 1, created_at }),
            false => record.chains.push(ChainedResult { layers, created_at }),
        }
    }
    let config = CacheConfig { layers: Vec::new(), records: sorted(records) };
    found.then(|| config.records_to_json())
}

/// The records without results, links in the order of the chain.
fn records(chain: &Chain) -> Vec<CacheRecord> {
    let link = |link: &solver::cache_export::ChainLink| CacheInput {
        selector: link.selector.map(|selector| selector.to_string()).unwrap_or_default(),
        link: link.record as i64,
    };
    let record = |record: &solver::cache_export::ChainRecord| CacheRecord {
        digest: record.digest.map(|digest| digest.to_string()).unwrap_or_default(),
        inputs: record.inputs.iter().map(|links| links.iter().map(link).collect()).collect(),
        ..CacheRecord::default()
    };
    chain.records.iter().map(record).collect()
}

/// Layers on layers, each once.
#[derive(Default)]
struct Stack {
    layers: Vec<(CacheLayer, Descriptor)>,
    known: HashMap<(Digest, i64), i64>,
}

impl Stack {
    /// The place of the last of `layers` on all others.
    fn add(&mut self, layers: &[Descriptor]) -> i64 {
        layers.iter().fold(-1, |parent, blob| {
            *self.known.entry((blob.digest, parent)).or_insert_with(|| {
                self.layers.push((CacheLayer { blob: blob.digest, parent }, blob.clone()));
                self.layers.len() as i64 - 1
            })
        })
    }

    /// The layers by their blobs, and where each went.
    fn sorted(self) -> (Vec<(CacheLayer, Descriptor)>, Vec<usize>) {
        // Equal blobs by what they stand on; that, by its blob and so on, makes the order one of content.
        let mut names: Vec<Digest> = Vec::with_capacity(self.layers.len());
        for (layer, _) in &self.layers {
            let below = usize::try_from(layer.parent).map(|parent| names[parent].hex()).unwrap_or_default();
            names.push(Digest::of(format!("{below} {}", layer.blob)));
        }
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        order.sort_by_key(|at| (self.layers[*at].0.blob, names[*at]));
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, at)| places[*at] = place);
        let moved = |at: &usize| {
            let (layer, blob) = &self.layers[*at];
            let parent = usize::try_from(layer.parent).map_or(-1, |parent| places[parent] as i64);
            (CacheLayer { blob: layer.blob, parent }, blob.clone())
        };
        (order.iter().map(moved).collect(), places)
    }
}

/// One record for those that whoever reads the cache takes for one, as BuildKit does: of one digest, and for each input with
/// a way that both know. The same build, made out of its own cache, has the same records then. Of the results the one of
/// the highest rank stays.
fn merged<R, K: Ord>(
    mut records: Vec<CacheRecord>,
    results: &[Option<R>],
    rank: impl Fn(&R) -> K,
) -> (Vec<CacheRecord>, Vec<Option<&R>>) {
    let mut results: Vec<Option<&R>> = results.iter().map(Option::as_ref).collect();
    results.resize(records.len(), None);
    // What became of each: itself, or the one that it is part of.
    let mut now: Vec<usize> = (0..records.len()).collect();
    let is_earlier = |at: usize, way: &CacheInput| (way.link as usize) < at;
    // Whether all ways come from earlier records, as those of a chain do: then only later ones stand on one.
    let in_order = |(at, record): (usize, &CacheRecord)| record.inputs.iter().flatten().all(|way| is_earlier(at, way));
    let mut in_order = records.iter().enumerate().all(in_order);
    loop {
        let mut any = false;
        // By its digest and its first input's ways.
        let mut known: HashMap<(String, usize, Option<CacheInput>), Vec<usize>> = HashMap::new();
        for at in 0..records.len() {
            if now[at] != at {
                continue;
            }
            for links in &mut records[at].inputs {
                links.iter_mut().for_each(|input| input.link = root(&now, input.link) as i64);
            }
            let record = &records[at];
            let keys: Vec<_> = match record.inputs.first() {
                None => vec![(record.digest.clone(), 0, None)],
                Some(ways) => {
                    let key = |way: &CacheInput| (record.digest.clone(), record.inputs.len(), Some(way.clone()));
                    ways.iter().map(key).collect()
                }
            };
            let is_same = |other: &usize| {
                let pairs = record.inputs.iter().zip(&records[*other].inputs);
                now[*other] == *other && pairs.skip(1).all(|(own, of)| own.iter().any(|way| of.contains(way)))
            };
            let same = keys.iter().filter_map(|key| known.get(key)).flatten().copied().find(is_same);
            // Of two the one stays that does not stand on the other.
            let other_first = |other: usize| in_order || !stands_on(&records, &now, other as i64, at);
            let (into, from) = match same {
                None => (at, None),
                Some(other) if other_first(other) => (other, Some(at)),
                Some(other) => (at, Some(other)),
            };
            if into == at {
                keys.into_iter().for_each(|key| known.entry(key).or_default().push(at));
            }
            let Some(from) = from else { continue };
            any = true;
            now[from] = into;
            in_order &= into < from;
            let ways = std::mem::take(&mut records[from].inputs);
            for (input, ways) in ways.into_iter().enumerate() {
                for way in ways {
                    // No way from what stands on it.
                    let leads_back =
                        || !(in_order && is_earlier(into, &way)) && stands_on(&records, &now, way.link, into);
                    if !records[into].inputs[input].contains(&way) && !leads_back() {
                        in_order &= is_earlier(into, &way);
                        records[into].inputs[input].push(way);
                    }
                }
            }
            results[into] = results[into].into_iter().chain(results[from]).max_by_key(|result| rank(result));
        }
        if !any {
            break;
        }
    }
    let mut places = vec![0; records.len()];
    let left: Vec<usize> = (0..records.len()).filter(|at| now[*at] == *at).collect();
    left.iter().enumerate().for_each(|(place, at)| places[*at] = place as i64);
    let mut record = |at: &usize| {
        let mut record = std::mem::take(&mut records[*at]);
        for links in &mut record.inputs {
            links.iter_mut().for_each(|input| input.link = places[root(&now, input.link)]);
            links.sort_by(|one, other| (one.link, &one.selector).cmp(&(other.link, &other.selector)));
            links.dedup();
        }
        record
    };
    (left.iter().map(&mut record).collect(), left.iter().map(|at| results[*at]).collect())
}

/// What became of the record that a link names.
fn root(now: &[usize], link: i64) -> usize {
    let mut at = link as usize;
    while now[at] != at {
        at = now[at];
    }
    at
}

/// Whether one of the records that lead to `above` is `below`, or it is that itself.
fn stands_on(records: &[CacheRecord], now: &[usize], above: i64, below: usize) -> bool {
    let (mut seen, mut left) = (HashSet::new(), vec![above]);
    while let Some(at) = left.pop().map(|link| root(now, link)) {
        if at == below {
            return true;
        }
        if seen.insert(at) {
            left.extend(records[at].inputs.iter().flatten().map(|input| input.link));
        }
    }
    false
}

/// What each record says with all that lead to it.
fn names(records: &[CacheRecord]) -> Vec<Digest> {
    let mut names: Vec<Option<Digest>> = vec![None; records.len()];
    let mut begun = vec![false; records.len()];
    let mut left: Vec<usize> = (0..records.len()).rev().collect();
    while let Some(at) = left.last().copied() {
        if !std::mem::replace(&mut begun[at], true) {
            let inputs = records[at].inputs.iter().flatten().map(|input| input.link as usize);
            left.extend(inputs.filter(|from| !begun[*from]));
            continue;
        }
        left.pop();
        if names[at].is_some() {
            continue;
        }
        let said = |links: &Vec<CacheInput>| {
            let way = |input: &CacheInput| names[input.link as usize].map(|name| format!("{} {name}", input.selector));
            let mut ways: Vec<String> = links.iter().filter_map(way).collect();
            ways.sort_unstable();
            ways.join(",")
        };
        let inputs: Vec<String> = records[at].inputs.iter().map(said).collect();
        names[at] = Some(Digest::of(format!("{} {}", records[at].digest, inputs.join(";"))));
    }
    names.into_iter().flatten().collect()
}

/// The records by what they say, links adapted.
fn sorted(mut records: Vec<CacheRecord>) -> Vec<CacheRecord> {
    let digests: Vec<String> = records.iter().map(|record| record.digest.clone()).collect();
    let names = names(&records);
    let by_content = |input: &CacheInput| {
        let from = input.link as usize;
        (input.selector.clone(), digests[from].clone(), names[from])
    };
    for links in records.iter_mut().flat_map(|record| &mut record.inputs) {
        links.sort_by_key(by_content);
    }
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by_cached_key(|at| {
        let inputs = &records[*at].inputs;
        let what = |input: &CacheInput| (input.selector.clone(), digests[input.link as usize].clone());
        let links: Vec<(usize, Vec<_>)> =
            inputs.iter().map(|links| (links.len(), links.iter().map(what).collect())).collect();
        // Those that BuildKit cannot tell apart by what lies deeper.
        (digests[*at].clone(), inputs.len(), links, names[*at])
    });
    let mut places = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, at)| places[*at] = place as i64);
    for links in records.iter_mut().flat_map(|record| &mut record.inputs) {
        links.iter_mut().for_each(|input| input.link = places[input.link as usize]);
        links.sort_by_key(|input| input.link);
    }
    order.into_iter().map(|at| std::mem::take(&mut records[at])).collect()
}

#[cfg(test)]
mod tests;
