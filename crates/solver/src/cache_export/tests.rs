//! Upstream: TestCacheExporting, TestCacheExportingModeMin, TestCacheExportingPartialSelector,
//! TestCacheExportingMergedKey, TestCacheMultipleMaps, TestCacheInputMultipleMaps (the export half of each).

use std::collections::BTreeSet;

use super::*;
use crate::tests::world::*;
use crate::{CacheResult, Dep, KeyDigest, MemoryStore, Save, cache_manager};

fn export(w: &World, result: &ToyResult) -> Chain {
    let keys = &result.as_ref().expect("a good build").keys;
    chain(keys, &[(SourceId::LOCAL, &*w.stores[0].1)]).expect("in memory")
}

fn digests(chain: &Chain) -> usize {
    chain.records.iter().map(|record| record.digest).collect::<BTreeSet<_>>().len()
}

/// Links name earlier records, and no input is without one.
fn check(chain: &Chain) {
    for (at, record) in chain.records.iter().enumerate() {
        assert!(record.inputs.iter().all(|links| !links.is_empty()));
        assert!(record.inputs.iter().flatten().all(|link| link.record < at));
        assert!(record.digest.is_some());
    }
    assert!(!chain.tops.is_empty());
}

fn top(chain: &Chain) -> &ChainRecord {
    &chain.records[*chain.tops.last().expect("a top")]
}

#[test]
fn a_chain_is_the_same_whether_run_or_loaded() {
    let graph = [constant("two", 2), constant("three", 3), sum("sum", 1, &["two", "three"])];
    let mut w = World::new();
    for _ in 0..3 {
        let result = w.build(&graph);
        let chain = export(&w, &result);
        check(&chain);
        assert_eq!((digests(&chain), chain.records.len()), (3, 3));
        let top = top(&chain);
        assert_eq!((top.inputs.len(), top.results.len()), (2, 1));
        assert_eq!(top.edge, Some((graph[2].digest(), 0)));
        let seed = Digest::of("seed:sum-1-2");
        assert_eq!(top.digest, Some(Digest::of(format!("{seed}@0"))), "the record's digest is BuildKit's");
    }
}

#[test]
fn selectors_and_content_are_both_carried() {
    let graph = |base: &str| {
        [step(base, base, "result1"), step("v0", "seed0", "result0").reads(&[base]).selector(0, "sel0").content(&[0])]
    };
    let mut w = World::new();
    let result = w.build(&graph("seed1"));
    let chain = export(&w, &result);
    check(&chain);
    assert_eq!(digests(&chain), 3, "the source, its content, the step");
    assert_eq!(top(&chain).inputs[0].len(), 2);
    let mut selectors: Vec<_> = top(&chain).inputs[0].iter().map(|link| link.selector).collect();
    selectors.sort();
    assert_eq!(selectors, [None, Some(Digest::of("sel0"))]);
    // Loaded by definition: the way by content comes out of the store.
    let result = w.build(&graph("seed1"));
    assert_eq!(digests(&export(&w, &result)), 3);
    // Another source with the same content adds itself.
    let result = w.build(&graph("seed1-net"));
    let wider = export(&w, &result);
    check(&wider);
    assert_eq!((digests(&wider), top(&wider).results.len()), (4, 1));
    // A step more on top.
    let mut longer = graph("seed1-net").to_vec();
    longer.push(step("v2", "seed2", "result2").reads(&["v0"]));
    let result = w.build(&longer);
    let longest = export(&w, &result);
    check(&longest);
    assert_eq!(digests(&longest), 5);
    assert_eq!(
        longest.records.iter().filter(|record| !record.results.is_empty() && !record.inputs.is_empty()).count(),
        2
    );
}

#[test]
fn without_a_store_only_the_ways_of_this_build_are_carried() {
    let graph = |base: &str| [step(base, base, "same"), step("top", "top", "top").reads(&[base]).content(&[0])];
    let mut w = World::new();
    w.build(&graph("one")).expect("a good build");
    let result = w.build(&graph("two")).expect("a good build");
    let own = chain(&result.keys, &[]).expect("no store");
    assert_eq!((digests(&own), digests(&export(&w, &Ok(result)))), (3, 4));
}

#[test]
fn what_was_merged_adds_its_ways() {
    let mut graph = Vec::new();
    for (side, seed) in [("a", "seed2"), ("b", "seed3")] {
        let (source, middle) = (format!("source-{side}"), format!("middle-{side}"));
        graph.push(step(&source, seed, "result2"));
        graph.push(step(&middle, "seed1", "result1").reads(&[&source]).content(&[0]));
    }
    graph.push(step("top", "seed0", "result0").reads(&["middle-a", "middle-b"]));
    for seed in 0..20 {
        let mut w = World::shuffled(seed, None);
        let result = w.build(&graph);
        assert_eq!(w.count("exec middle"), 1);
        let chain = export(&w, &result);
        check(&chain);
        assert_eq!(digests(&chain), 5, "two sources, their content, the middle, the top");
    }
}

#[test]
fn all_keys_of_a_source_are_carried() {
    let mut w = World::new();
    let result = w.build(&[step("v0", "", "result0").seeds(&["seed0", "seed1", "seed2"])]);
    assert_eq!(digests(&export(&w, &result)), 3);
    // Found by one of them, all are carried.
    let result = w.build(&[step("v1", "", "no").seeds(&["seed1", "seed3"])]);
    let chain = export(&w, &result);
    assert_eq!((digests(&chain), chain.tops.len()), (3, 3));
    assert!(chain.records.iter().all(|record| record.results.len() == 1));

    let graph = |seeds: &[&str]| [step("v1", "", "r").seeds(seeds), step("v0", "top", "r").reads(&["v1"])];
    let result = w.build(&graph(&["one", "two"]));
    assert_eq!(digests(&export(&w, &result)), 3);
    let result = w.build(&graph(&["other", "two"]));
    assert_eq!(digests(&export(&w, &result)), 3);
}

#[test]
fn keys_of_one_moment_are_left_out() {
    let graph = |content: &[u32]| {
        let mut local = step("local", "session", "files");
        local.random = true;
        [local, step("copy", "copy", "copied").reads(&["local"]).content(content)]
    };
    let mut w = World::new();
    let result = w.build(&graph(&[0]));
    let chain = export(&w, &result);
    check(&chain);
    assert_eq!((chain.records.len(), top(&chain).inputs[0].len()), (2, 1), "the content and the copy");
    let mut w = World::new();
    let result = w.build(&graph(&[]));
    assert_eq!(export(&w, &result), Chain::default(), "nothing would ever match");
}

/// A step that changes nothing: by its content it is its own input.
#[test]
fn circles_are_cut() {
    let graph = [
        step("base", "base", "same"),
        step("once", "noop", "same").reads(&["base"]).content(&[0]),
        step("twice", "noop", "same").reads(&["once"]).content(&[0]),
    ];
    let mut w = World::new();
    for _ in 0..3 {
        let result = w.build(&graph);
        assert_eq!(text(&result), "same");
        check(&export(&w, &result));
    }
    assert_eq!(w.count("exec "), 2, "the second was found by its content");
}

#[test]
fn deep_chains_do_not_overflow_the_stack() {
    let mut key = Arc::new(CacheKey::root(Digest::of("base").into(), 0));
    let store = crate::MemoryStore::new();
    for level in 0..20_000 {
        let deps = vec![vec![Dep { key: key.clone(), selector: None }]];
        key = Arc::new(CacheKey::with_deps(Digest::of(level.to_string()).into(), 0, deps));
    }
    let result = crate::CacheResult { id: "r".into(), created_at: 1 };
    cache_manager::save(&store, &[Save { key: key.clone(), result: Some(result), also: Vec::new() }])
        .expect("in memory");
    let chain = chain(&[key], &[(SourceId::LOCAL, &store)]).expect("in memory");
    assert_eq!(chain.records.len(), 20_001);
    check(&chain);
}

#[test]
fn what_was_loaded_from_elsewhere_and_saved_here_is_exported_from_here() {
    let elsewhere = Record { source: SourceId(7), result: CacheResult { id: "layers:1".into(), created_at: 5 } };
    let saved = CacheResult { id: "42".into(), created_at: 5 };
    let root = Arc::new(CacheKey::root(KeyDigest::Stable(Digest::of("source")), 0));
    let op = KeyDigest::Stable(Digest::of("op"));
    let key = CacheKey::with_deps(op, 0, vec![vec![Dep { key: root, selector: None }]]);
    let key = Arc::new(key.with_records(vec![elsewhere.clone()]));
    let store = MemoryStore::new();
    let exported = || chain(std::slice::from_ref(&key), &[(SourceId::LOCAL, &store)]).expect("in memory");
    assert_eq!(top(&exported()).results, std::slice::from_ref(&elsewhere));
    let save = Save { key: key.clone(), result: Some(saved.clone()), also: Vec::new() };
    cache_manager::save(&store, &[save]).expect("in memory");
    assert_eq!(top(&exported()).results, [Record { source: SourceId::LOCAL, result: saved }, elsewhere]);
}

#[test]
fn ways_that_a_cache_elsewhere_knows_are_carried_on() {
    let digest = |name: &str| KeyDigest::Stable(Digest::of(name));
    let root = |name: &str| Arc::new(CacheKey::root(digest(name), 0));
    let on = |roots: Vec<Arc<CacheKey>>| {
        let deps = roots.into_iter().map(|key| Dep { key, selector: None }).collect();
        CacheKey::with_deps(digest("op"), 0, vec![deps])
    };
    // Elsewhere an image is known by two names.
    let (elsewhere, source) = (MemoryStore::new(), SourceId(7));
    let result = CacheResult { id: "1".into(), created_at: 5 };
    let key = Arc::new(on(vec![root("manifest"), root("layers")]));
    let save = Save { key: key.clone(), result: Some(result), also: Vec::new() };
    cache_manager::save(&elsewhere, &[save]).expect("in memory");
    let id = key.id_in(SourceId::LOCAL).expect("saved");
    // Here it was found by one of them.
    let found = Arc::new(on(vec![root("manifest")]).known_as([(source, id)]));
    let local = MemoryStore::new();
    let ways = |stores: &[(SourceId, &dyn CacheStore)]| {
        let chain = chain(std::slice::from_ref(&found), stores).expect("in memory");
        check(&chain);
        top(&chain).inputs[0].len()
    };
    assert_eq!(ways(&[(SourceId::LOCAL, &local)]), 1);
    assert_eq!(ways(&[(SourceId::LOCAL, &local), (source, &elsewhere)]), 2);
}
