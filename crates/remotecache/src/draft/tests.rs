use std::sync::Arc;

use solver::cache_export::{ChainLink, ChainRecord, chain};
use solver::cache_manager::{self, InputKeys, Lookup, Question};
use solver::{CacheKey, CacheStore, Dep, KeyDigest, SourceId};

use super::*;
use crate::document::{Document, Form, InlineCache, around};
use crate::imported::Imported;

const MIN: &[u8] = include_bytes!("../../tests/upstream/config-min.json");
const IMAGE: &[u8] = include_bytes!("../../tests/upstream/image-manifest.json");
const IMAGE_CONFIG: &[u8] = include_bytes!("../../tests/upstream/image-config.json");

/// What a solver would have handed over, in another order than the config's.
fn chain_of(config: &CacheConfig) -> Chain {
    let count = config.records.len();
    let turned = |at: i64| count - 1 - usize::try_from(at).expect("a place");
    let link = |input: &CacheInput| ChainLink { record: turned(input.link), selector: input.selector.parse().ok() };
    let records = config.records.iter().rev().map(|record| ChainRecord {
        digest: record.digest.parse().ok(),
        inputs: record.inputs.iter().map(|links| links.iter().rev().map(link).collect()).collect(),
        ..ChainRecord::default()
    });
    Chain { records: records.collect(), tops: Vec::new() }
}

fn made_of(config: &CacheConfig) -> Vec<Option<Made>> {
    let blobs = |top: i64| {
        let below = |at: &i64| Some(config.layers[*at as usize].parent).filter(|parent| *parent >= 0);
        let below = std::iter::successors(Some(top), below);
        let mut blobs: Vec<_> = below.map(|at| Descriptor::new("x", config.layers[at as usize].blob, 1)).collect();
        blobs.reverse();
        blobs
    };
    let made = |record: &CacheRecord| {
        let result = record.results.first()?;
        Some(Made { layers: blobs(result.layer), created_at: result.created_at.0 })
    };
    config.records.iter().rev().map(made).collect()
}

#[test]
fn the_same_keys_make_the_bytes_that_upstream_made() {
    let config = CacheConfig::parse(MIN).expect("upstream wrote it");
    let draft = Draft::new(&chain_of(&config), &made_of(&config));
    assert_eq!(String::from_utf8_lossy(&draft.config.to_json()), String::from_utf8_lossy(MIN));
    let named: Vec<_> = draft.layers.iter().map(|layer| layer.digest).collect();
    assert_eq!(named, config.layers.iter().map(|layer| layer.blob).collect::<Vec<_>>());
}

#[test]
fn the_records_of_an_image_are_those_that_upstream_wrote() {
    let Document::Image(manifest) = Document::parse(IMAGE).expect("upstream wrote it") else { panic!("an image") };
    let cache = InlineCache::of_image(&manifest, IMAGE_CONFIG).expect("upstream wrote it").expect("has a cache");
    assert_eq!(cache.config.layers.iter().map(|layer| layer.parent).collect::<Vec<_>>(), [-1, 0, 1, 2]);
    let within = |record: &CacheRecord| {
        let result = record.results.first()?;
        Some(Within { layers: (0..=result.layer as usize).collect(), created_at: result.created_at.0 })
    };
    let results: Vec<_> = cache.config.records.iter().rev().map(within).collect();
    let records = inline(&chain_of(&cache.config), &results).expect("has results");
    assert_eq!(String::from_utf8_lossy(&records), String::from_utf8_lossy(&cache.config.records_to_json()));
}

/// One of ours: two sources, and an op on both that has the given layers.
fn written(layers: &[Descriptor], extra: Option<CacheKey>) -> (Draft, [Arc<CacheKey>; 2], KeyDigest) {
    let root = |name: &str| Arc::new(CacheKey::root(KeyDigest::Stable(Digest::of(name)), 0));
    let roots = [root("image"), root("files")];
    let op = KeyDigest::Stable(Digest::of("op"));
    let dep = |key: &Arc<CacheKey>, selector| Dep { key: key.clone(), selector };
    let mut first = vec![dep(&roots[0], None)];
    first.extend(extra.map(|key| Dep { key: Arc::new(key), selector: None }));
    let deps = vec![first, vec![dep(&roots[1], Some(Digest::of("part")))]];
    let top = Arc::new(CacheKey::with_deps(op, 1, deps));
    let chain = chain(&[top], &[]).expect("no store");
    let results: Vec<_> = chain
        .records
        .iter()
        .map(|record| (!record.inputs.is_empty()).then(|| Made { layers: layers.to_vec(), created_at: 7_000_000_000 }))
        .collect();
    (Draft::new(&chain, &results), roots, op)
}

fn layer(name: &str) -> Descriptor {
    let layer = Descriptor::of(image::media_type::OCI_LAYER_GZIP, name.as_bytes());
    layer.annotate(image::annotation::UNCOMPRESSED, Digest::of(format!("diff of {name}")).to_string())
}

#[test]
fn what_is_written_is_found_again() {
    let (draft, roots, op) = written(&[layer("a"), layer("b")], None);
    let (_, manifest) =
        around(Form::default(), Descriptor::of(crate::MEDIA_TYPE, &draft.config.to_json()), &draft.layers);
    let Document::Cache { layers, .. } = Document::parse(&manifest).expect("ours") else { panic!("a cache") };
    let source = SourceId(4);
    let mut imported = Imported::new(source);
    imported.add(&CacheConfig::parse(&draft.config.to_json()).expect("ours"), &layers).expect("ours");
    let imported = Arc::new(imported);
    let stores: [(SourceId, Arc<dyn CacheStore>); 1] = [(source, imported.clone())];
    let input = |index, key: &Arc<CacheKey>, selector| InputKeys {
        index,
        keys: vec![Dep { key: key.clone(), selector }],
        also: Vec::new(),
    };
    let ask = |digest, output, part: &str| Lookup {
        sources: Arc::new([SourceId::LOCAL, source]),
        digest,
        output,
        question: Question::Inputs(vec![input(0, &roots[0], None), input(1, &roots[1], Some(Digest::of(part)))]),
    };
    let root = Lookup { sources: Arc::new([source]), digest: roots[0].digest(), output: 0, question: Question::Root };
    let other = KeyDigest::Stable(Digest::of("other"));
    let lookups = [root, ask(op, 1, "part"), ask(op, 0, "part"), ask(op, 1, "whole"), ask(other, 1, "part")];
    let (answers, failure) = cache_manager::lookup(&stores[..], &lookups);
    assert!(failure.is_none(), "{failure:?}");
    assert_eq!(answers.iter().map(|answer| answer.found.len()).collect::<Vec<_>>(), [1, 1, 0, 0, 0]);
    let [record] = &answers[1].found[0].records[..] else { panic!("one result: {:?}", answers[1]) };
    assert_eq!((record.source, record.result.created_at), (source, 7_000_000_000));
    let layers = imported.layers(&record.result.id).expect("has layers");
    assert_eq!(layers.iter().map(|layer| layer.digest).collect::<Vec<_>>(), [layer("a").digest, layer("b").digest]);
}

#[test]
fn what_names_a_moment_only_is_left_out() {
    let (draft, ..) = written(&[layer("a")], Some(CacheKey::root(KeyDigest::Random(Digest::of("now")), 0)));
    assert_eq!(draft.config.records.len(), 3);
    assert!(!String::from_utf8_lossy(&draft.config.to_json()).contains("random"));
}

#[test]
fn an_image_names_results_by_its_own_layers() {
    let (_, roots, op) = written(&[], None);
    let dep = |key: &Arc<CacheKey>| vec![Dep { key: key.clone(), selector: None }];
    let top = Arc::new(CacheKey::with_deps(op, 0, vec![dep(&roots[0])]));
    let chain = chain(&[top], &[]).expect("no store");
    let check = |layers: &[usize], said: &str| {
        let within = Within { layers: layers.to_vec(), created_at: 0 };
        let text = inline(&chain, &[None, Some(within)]).expect("a result");
        assert!(String::from_utf8_lossy(&text).contains(said), "{}", String::from_utf8_lossy(&text));
    };
    check(&[0, 1], r#""layers":[{"layer":1,"createdAt":"1970-01-01T00:00:00Z"}]"#);
    check(&[1], r#""chains":[{"layers":[1],"createdAt":"1970-01-01T00:00:00Z"}]"#);
    assert_eq!(inline(&chain, &[None, None]), None);
}

/// Records as a chain has them: a digest's name, and the ways of each input.
fn chain_from(records: &[(&str, &[&[usize]])]) -> Chain {
    let link = |record: &usize| ChainLink { record: *record, selector: None };
    let record = |(name, inputs): &(&str, &[&[usize]])| ChainRecord {
        digest: Some(Digest::of(*name)),
        inputs: inputs.iter().map(|ways| ways.iter().map(link).collect()).collect(),
        ..ChainRecord::default()
    };
    Chain { records: records.iter().map(record).collect(), tops: Vec::new() }
}

fn made(name: &str, created_at: i64) -> Option<Made> {
    Some(Made { layers: vec![layer(name)], created_at })
}

#[test]
fn records_that_say_the_same_become_one() {
    // The image twice, so all that stands on it; a third way to the first step; two results, of which the newer stays.
    let twice = chain_from(&[
        ("image", &[]),
        ("image", &[]),
        ("other", &[]),
        ("step", &[&[0]]),
        ("step", &[&[1, 2]]),
        ("top", &[&[3], &[0]]),
        ("top", &[&[4], &[1]]),
    ]);
    let once = chain_from(&[("image", &[]), ("other", &[]), ("step", &[&[0, 1]]), ("top", &[&[2], &[0]])]);
    let results = [None, None, None, made("old", 1), made("new", 2), made("top", 3), made("top", 3)];
    let wanted = Draft::new(&once, &[None, None, made("new", 2), made("top", 3)]);
    assert_eq!(Draft::new(&twice, &results), wanted);
    assert_eq!((wanted.config.records.len(), wanted.config.layers.len()), (4, 2));
    let within = |at: usize, created_at| Some(Within { layers: vec![at], created_at });
    let results = [None, None, None, within(0, 1), within(1, 2), None, None];
    assert_eq!(inline(&twice, &results), inline(&once, &[None, None, within(1, 2), None]));

    // Known to be the same only when what comes later was seen to be.
    let late = chain_from(&[
        ("a", &[]),
        ("b", &[]),
        ("s", &[&[0]]),
        ("s", &[&[1]]),
        ("t", &[&[2]]),
        ("t", &[&[3]]),
        ("s", &[&[0, 1]]),
    ]);
    let once = chain_from(&[("a", &[]), ("b", &[]), ("s", &[&[0, 1]]), ("t", &[&[2]])]);
    assert_eq!(Draft::new(&late, &[]), Draft::new(&once, &[]));
}

#[test]
fn records_of_one_digest_on_other_inputs_stay_apart() {
    let chain = chain_from(&[
        ("a", &[]),
        ("b", &[]),
        ("step", &[&[0]]),
        ("step", &[&[1]]),
        ("both", &[&[0], &[0]]),
        ("both", &[&[0], &[1]]),
    ]);
    assert_eq!(Draft::new(&chain, &[]).config.records.len(), 6);
    // A step that changes nothing has its own record as another way: it leads nowhere.
    let round = chain_from(&[("a", &[]), ("step", &[&[0]]), ("step", &[&[0, 1]])]);
    let draft = Draft::new(&round, &[]);
    let steps: Vec<_> = draft.config.records.iter().filter(|record| !record.inputs.is_empty()).collect();
    assert!(steps.len() == 1 && steps[0].inputs[0].len() == 1, "{steps:?}");
}

/// Chains at random, of few names, so that many of their records are one: none becomes its own input, and a second
/// writing changes nothing.
#[test]
fn what_is_merged_never_leads_round_and_stays_as_it_is() {
    let mut state = 7_u64;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    for _ in 0..2000 {
        let mut chain = chain_from(&[("a", &[]), ("b", &[])]);
        for at in 2..4 + below(12) {
            let name = ["s", "t", "u"][below(3)];
            let mut ways = |count: usize| {
                let link = |record| ChainLink { record, selector: None };
                (0..=below(count)).map(|_| link(below(at))).collect::<Vec<_>>()
            };
            let mut inputs = vec![ways(3)];
            if name == "u" {
                inputs.push(ways(2));
            }
            chain.records.push(ChainRecord { digest: Some(Digest::of(name)), inputs, ..ChainRecord::default() });
        }
        let config = Draft::new(&chain, &[]).config;
        let mut placed: Vec<bool> = vec![false; config.records.len()];
        for _ in 0..placed.len() {
            for (at, record) in config.records.iter().enumerate() {
                placed[at] |= record.inputs.iter().flatten().all(|input| placed[input.link as usize]);
            }
        }
        assert!(placed.iter().all(|placed| *placed), "{chain:?}: {:?}", config.records);
        assert!(config.records.iter().flat_map(|record| &record.inputs).all(|ways| !ways.is_empty()), "{chain:?}");
        assert_eq!(Draft::new(&chain_of(&config), &[]).config, config, "{chain:?}");
    }
}

#[test]
fn the_order_of_a_chain_does_not_show() {
    // Two steps of one digest, on two of one digest, on two images.
    let one = chain_from(&[("a", &[]), ("b", &[]), ("s", &[&[0]]), ("s", &[&[1]]), ("t", &[&[2]]), ("t", &[&[3]])]);
    let other = chain_from(&[("b", &[]), ("a", &[]), ("s", &[&[0]]), ("s", &[&[1]]), ("t", &[&[2]]), ("t", &[&[3]])]);
    let of = |chain, results: [&str; 2]| {
        let results = [None, None, None, None, made(results[0], 1), made(results[1], 1)];
        Draft::new(chain, &results)
    };
    assert_eq!(of(&one, ["on a", "on b"]), of(&other, ["on b", "on a"]));
}
