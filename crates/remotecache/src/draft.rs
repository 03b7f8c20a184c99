//! A cache config out of the keys of a build and the layers of its results. The same keys make the same bytes.

use std::collections::HashMap;

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
        let mut records = records(chain);
        let mut stack = Stack::default();
        for (record, made) in records.iter_mut().zip(results) {
            let Some(made) = made.as_ref().filter(|made| !made.layers.is_empty()) else { continue };
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
    let mut records = records(chain);
    let mut found = false;
    for (record, within) in records.iter_mut().zip(results) {
        let Some(Within { layers, created_at }) = within.as_ref().filter(|within| !within.layers.is_empty()) else {
            continue;
        };
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

/// The records by what they say, links adapted.
fn sorted(mut records: Vec<CacheRecord>) -> Vec<CacheRecord> {
    let digests: Vec<String> = records.iter().map(|record| record.digest.clone()).collect();
    let by_content = |input: &CacheInput| (input.selector.clone(), digests[input.link as usize].clone());
    for links in records.iter_mut().flat_map(|record| &mut record.inputs) {
        links.sort_by_key(by_content);
    }
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by_cached_key(|at| {
        let inputs = &records[*at].inputs;
        let links: Vec<(usize, Vec<_>)> =
            inputs.iter().map(|links| (links.len(), links.iter().map(by_content).collect())).collect();
        (digests[*at].clone(), inputs.len(), links)
    });
    let mut places = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, at)| places[*at] = place as i64);
    for links in records.iter_mut().flat_map(|record| &mut record.inputs) {
        links.iter_mut().for_each(|input| input.link = places[input.link as usize]);
        links.sort_by_key(|input| input.link);
        links.dedup();
    }
    order.into_iter().map(|at| std::mem::take(&mut records[at])).collect()
}

#[cfg(test)]
mod tests;
