//! What is cached, and what is asked for on the way.

use std::sync::Arc;

use super::world::*;
use crate::*;

/// Upstream: TestSingleLevelCache, TestSingleLevelActiveGraph.
#[test]
fn one_step_runs_once_and_is_then_loaded() {
    let mut w = World::new();
    assert_eq!(text(&w.build(&[step("v0", "seed0", "result0")])), "result0");
    assert_eq!(w.take_counts(), (1, 1, 0));
    // Another vertex with the same key.
    assert_eq!(text(&w.build(&[step("v0-other", "seed0", "not this")])), "result0");
    assert_eq!(w.take_counts(), (1, 0, 1));
    assert_eq!(text(&w.build(&[step("v0", "seed1", "result1")])), "result1");
    assert_eq!(w.take_counts(), (1, 1, 0));
    assert!(w.solver.is_idle());
}

fn chain(length: usize, suffix: &str) -> Vec<Step> {
    let mut steps = vec![step(&format!("v0{suffix}"), "seed0", "result0")];
    for n in 1..length {
        let below = steps.last().unwrap().name.clone();
        steps.push(step(&format!("v{n}{suffix}"), &format!("seed{n}"), &format!("result{n}")).reads(&[&below]));
    }
    steps
}

/// A cached top means that nothing below it is loaded or run; every step states its key once.
#[test]
fn a_cached_chain_loads_its_top_only() {
    let mut w = World::new();
    w.build(&chain(50, "")).unwrap();
    assert_eq!(w.take_counts(), (50, 50, 0));
    w.lookups = 0;
    let top = w.build(&chain(50, "-again"));
    assert_eq!(text(&top), "result49");
    assert_eq!((w.count("load v49-again"), w.count("save")), (1, 0), "nothing is written");
    assert_eq!(w.take_counts(), (50, 0, 1));
    assert_eq!(w.lookups, 50, "one question for each step");
    // One step more on top: the old top is loaded for it.
    let mut longer = chain(50, "-again");
    longer.push(step("new", "new", "new").reads(&["v49-again"]));
    assert_eq!(text(&w.build(&longer)), "new");
    assert_eq!(w.take_counts(), (51, 1, 1));
}

/// A build without anything cached asks the cache about sources only.
#[test]
fn an_uncached_chain_costs_one_question() {
    let mut w = World::new();
    w.build(&chain(50, "")).unwrap();
    assert_eq!(w.lookups, 1);
}

/// Upstream: TestMultiLevelCalculation.
#[test]
fn numbers_add_up() {
    let mut w = World::new();
    let graph = [
        constant("a", 1),
        constant("b", 5),
        constant("c", 3),
        sum("ab", 2, &["a", "b"]),
        sum("bc", 4, &["b", "c"]),
        sum("top", 10, &["ab", "bc", "a", "a"]),
    ];
    assert_eq!(text(&w.build(&graph)), (10 + (2 + 1 + 5) + (4 + 5 + 3) + 1 + 1).to_string());
    assert_eq!(w.take_counts(), (6, 6, 0));
    assert_eq!(text(&w.build(&graph)), "32");
    assert_eq!(w.take_counts(), (6, 0, 1));
}

/// Upstream: TestSlowCache.
#[test]
fn equal_content_matches_where_definitions_differ() {
    let mut w = World::new();
    w.build(&[step("v1", "seed1", "result1"), step("v0", "seed0", "result0").reads(&["v1"]).content(&[0])]).unwrap();
    w.take_counts();
    let graph = [step("v3", "seed3", "result1"), step("v2", "seed0", "no").reads(&["v3"]).content(&[0])];
    assert_eq!(text(&w.build(&graph)), "result0");
    assert_eq!(w.take_counts(), (2, 1, 1));
    // From now on the definition suffices: the keys were linked.
    assert_eq!(text(&w.build(&graph)), "result0");
    assert_eq!(w.count("content "), 0);
    assert_eq!(w.take_counts(), (2, 0, 1));
}

fn two_inputs(first: (&str, &str), second: (&str, &str), content: &[u32], top: &str) -> [Step; 3] {
    [
        step(first.0, first.0, first.1),
        step(second.0, second.0, second.1),
        step(top, "seed0", top).reads(&[first.0, second.0]).content(content),
    ]
}

/// Upstream: TestOptimizedCacheAccess.
#[test]
fn an_input_that_matched_is_not_loaded_for_the_sake_of_another() {
    let mut w = World::new();
    w.build(&two_inputs(("v1", "result1"), ("v2", "result2"), &[1], "result0")).unwrap();
    assert_eq!(w.take_counts(), (3, 3, 0));
    let graph = two_inputs(("v1", "no"), ("v2-changed", "result2"), &[1], "no");
    assert_eq!(text(&w.build(&graph)), "result0");
    assert_eq!(w.take_counts(), (3, 1, 1));
}

/// Upstream: TestOptimizedCacheAccess2.
#[test]
fn inputs_that_match_by_definition_are_digested_last() {
    let mut w = World::new();
    w.build(&two_inputs(("v1", "result1"), ("v2", "result2"), &[0, 1], "result0")).unwrap();
    assert_eq!(w.take_counts(), (3, 3, 0));
    let graph = two_inputs(("v1", "no"), ("v2-changed", "result2"), &[0, 1], "no");
    assert_eq!(text(&w.build(&graph)), "result0");
    assert_eq!((w.count("content "), w.count("load v1")), (1, 0));
    assert_eq!(w.take_counts(), (3, 1, 1));
    let graph = two_inputs(("v1-changed2", "result1"), ("v2-changed2", "result2"), &[0, 1], "no");
    assert_eq!(text(&w.build(&graph)), "result0");
    assert_eq!(w.count("content "), 2);
    assert_eq!(w.take_counts(), (3, 2, 1));
}

/// Upstream: TestSlowCacheAvoidAccess. Whichever cache map comes first, nothing below is loaded.
#[test]
fn content_is_not_asked_for_while_definitions_may_match() {
    let graph = [
        step("v2", "seed2", "result2"),
        step("v1", "seed1", "result1").reads(&["v2"]).selector(0, "sel0").content(&[0]),
        step("v0", "seed0", "result0").reads(&["v1"]),
    ];
    let mut w = World::new();
    w.build(&graph).unwrap();
    for late in ["map v0", "map v1", "map v2", "nothing"] {
        w.take_counts();
        let job = w.solver.begin();
        let request = w.ask(job, &graph);
        w.run_except(|action| action == late);
        w.run();
        assert_eq!(text(&w.answer(request)), "result0");
        w.end(job);
        assert_eq!(w.count("content "), 0, "{late}");
        assert_eq!(w.take_counts(), (3, 0, 1), "{late}");
    }
}

/// Upstream: TestSlowCacheAvoidLoadOnCache (moby/buildkit#648).
#[test]
fn a_matched_input_waits_while_another_has_no_key_yet() {
    let graph = |seed3: &str| {
        [
            step("v3", seed3, "result3"),
            step("v1", "seed1", "result1").reads(&["v3"]).content(&[0]),
            step("v2", "seed2", "result2"),
            step("v0", "seed0", "result0").reads(&["v1", "v2"]).content(&[1]),
            step("vmain", "seedmain", "resultmain").reads(&["v0"]),
        ]
    };
    let mut w = World::new();
    w.build(&graph("seed3")).unwrap();
    assert_eq!(w.take_counts(), (5, 5, 0));
    assert_eq!(text(&w.build(&graph("seed3-new"))), "resultmain");
    assert_eq!((w.count("exec v3"), w.count("load vmain")), (1, 1));
    assert_eq!(w.take_counts(), (5, 1, 1));
}

/// Upstream: TestCacheWithSelector.
#[test]
fn selectors_tell_reads_of_one_input_apart() {
    let graph = |top: &str, selector: Option<&str>| {
        let mut top = step(top, "seed0", top).reads(&["v1"]);
        if let Some(selector) = selector {
            top = top.selector(0, selector);
        }
        [step("v1", "seed1", "result1"), top]
    };
    let mut w = World::new();
    let cases = [
        ("a", Some("sel0"), "a", (2, 2, 0)),
        ("b", Some("sel0"), "a", (2, 0, 1)),
        ("c", Some("sel1"), "c", (2, 1, 1)),
        ("d", None, "d", (2, 1, 1)),
        ("e", Some("sel1"), "c", (2, 0, 1)),
    ];
    for (name, selector, expected, counts) in cases {
        assert_eq!(text(&w.build(&graph(name, selector))), expected, "{name}");
        assert_eq!(w.take_counts(), counts, "{name}");
    }
}

/// Upstream: TestCacheSlowWithSelector.
#[test]
fn content_matches_across_selectors() {
    let graph = |top: &str, selector: &str, base: &str| {
        let top = step(top, "seed0", top).reads(&[base]).selector(0, selector).content(&[0]);
        [step(base, base, "result1"), top]
    };
    let mut w = World::new();
    w.build(&graph("a", "sel0", "v1")).unwrap();
    w.take_counts();
    assert_eq!(text(&w.build(&graph("b", "sel1", "v1"))), "a");
    assert_eq!(w.take_counts(), (2, 0, 2), "the input was loaded to be digested");
    assert_eq!(text(&w.build(&graph("c", "sel2", "v1-other"))), "a");
    assert_eq!(w.take_counts(), (2, 1, 1));
}

/// Upstream: TestRepeatBuildWithIgnoreCache.
#[test]
fn ignored_caches_are_written_but_not_read() {
    let graph = |n: &str, below: bool, top: bool| {
        let mut steps = [step("v1", "seed1", &format!("result1{n}")), step("v0", "seed0", &format!("result0{n}"))];
        steps[0].ignore_cache = below;
        steps[1].ignore_cache = top;
        let [below, top] = steps;
        [below, top.reads(&["v1"])]
    };
    let mut w = World::new();
    w.build(&graph("", false, false)).unwrap();
    assert_eq!(w.take_counts(), (2, 2, 0));
    assert_eq!(text(&w.build(&graph("-1", true, true))), "result0-1");
    assert_eq!(w.take_counts(), (2, 2, 0));
    // What reads a step that was run anew runs too.
    assert_eq!(text(&w.build(&graph("-2", true, false))), "result0-2");
    assert_eq!(w.take_counts(), (2, 2, 0));
    // The newest result counts.
    assert_eq!(text(&w.build(&graph("-3", false, false))), "result0-2");
    assert_eq!(w.take_counts(), (2, 0, 1));
}

/// Upstream: TestIgnoreCacheResumeFromSlowCache.
#[test]
fn a_step_run_anew_with_equal_content_lets_its_reader_match() {
    let mut w = World::new();
    w.build(&[step("v1", "seed1", "result1"), step("v0", "seed0", "result0").reads(&["v1"]).content(&[0])]).unwrap();
    w.take_counts();
    let graph =
        [step("v1-1", "seed1-1", "result1").ignore_cache(), step("v0-1", "seed0", "no").reads(&["v1-1"]).content(&[0])];
    assert_eq!(text(&w.build(&graph)), "result0");
    assert_eq!(w.take_counts(), (2, 1, 1));
}

/// ...but with other content it must not, though its definition is that of the cached one.
#[test]
fn a_step_run_anew_with_other_content_makes_its_reader_run() {
    let graph = |value: &str, ignore: bool| {
        let mut below = step("v1", "seed1", value);
        below.ignore_cache = ignore;
        [below, step("v0", "seed0", value).reads(&["v1"]).content(&[0])]
    };
    let mut w = World::new();
    w.build(&graph("old", false)).unwrap();
    assert_eq!(text(&w.build(&graph("new", true))), "new");
    assert_eq!(text(&w.build(&graph("newer", true))), "newer");
}

/// Upstream: TestParallelBuildsIgnoreCache.
#[test]
fn builds_that_ignore_the_cache_share_with_each_other_only() {
    let mut w = World::new();
    let (j0, result) = w.build_and_hold(&[step("v0", "seed0", "result0")]);
    assert_eq!(text(&result), "result0");
    let (j1, result) = w.build_and_hold(&[step("v0", "seed1", "result1").ignore_cache()]);
    assert_eq!(text(&result), "result1", "same digest, but run anew");
    w.end(j0);
    w.end(j1);
    let cases = [("v2", false, "v2"), ("v3", true, "v3"), ("v4", true, "v3"), ("v5", false, "v3")];
    for (name, ignore, expected) in cases {
        let mut one = step(name, "seed2", name);
        one.ignore_cache = ignore;
        assert_eq!(text(&w.build_and_hold(&[one]).1), expected, "{name}");
    }
}

/// A step below that must run anew keeps its readers apart from those of the cached one, though their digests agree.
#[test]
fn readers_of_a_step_run_anew_do_not_join_readers_of_the_cached_one() {
    let graph = |n: &str, ignore: bool| {
        let mut base = step("base", "base", &format!("base{n}"));
        base.ignore_cache = ignore;
        [base, step("top", "top", &format!("top{n}")).reads(&["base"])]
    };
    let mut w = World::new();
    let (cached, result) = w.build_and_hold(&graph("", false));
    assert_eq!(text(&result), "top");
    let (anew, result) = w.build_and_hold(&graph("-anew", true));
    assert_eq!(text(&result), "top-anew");
    // Who does not mind gets the newer one while it is there.
    assert_eq!(text(&w.build(&graph("-no", false))), "top-anew");
    w.end(anew);
    w.end(cached);
    assert!(w.solver.is_idle());
}

/// Upstream: TestMultipleCacheSources.
#[test]
fn other_caches_are_read_after_the_local_one_and_copied_into_it() {
    let remote = SourceId(7);
    let mut first = World::new();
    first.build(&chain(2, "")).unwrap();
    let mut w = World::new();
    w.stores.push((remote, first.stores[0].1.clone()));
    w.results = first.results.clone();
    let with = |steps: Vec<Step>| -> Vec<Step> { steps.into_iter().map(|step| step.sources(&[remote])).collect() };
    assert_eq!(text(&w.build(&with(chain(2, "-b")))), "result1");
    assert_eq!(w.take_counts(), (2, 0, 1));
    // What was loaded is now in the local cache, with all that leads to it.
    assert_eq!(text(&w.build(&chain(2, "-c"))), "result1");
    assert_eq!(w.take_counts(), (2, 0, 1));
    // On top of the old cache; an unknown source finds nothing and harms nothing.
    let mut longer: Vec<Step> = chain(2, "-d").into_iter().map(|step| step.sources(&[SourceId(9), remote])).collect();
    longer.push(step("v2", "seed2", "result2").reads(&["v1-d"]));
    assert_eq!(text(&w.build(&longer)), "result2");
    assert_eq!(w.take_counts(), (3, 1, 1));
}

#[test]
fn sources_come_in_order_and_then_the_newest_record() {
    let mut worlds = [World::new(), World::new(), World::new()];
    for (n, world) in worlds.iter_mut().enumerate() {
        for round in 0..3 - n {
            // The same key, run anew: the last one is the newest of its source.
            world.build(&[step("v", "seed", &format!("source{n} round{round}")).ignore_cache()]).unwrap();
        }
    }
    let [local, one, two] = worlds;
    let load = |order: &[SourceId], with_local: bool| {
        let mut w = World::new();
        w.loads_fail = true;
        if with_local {
            w.stores[0].1 = local.stores[0].1.clone();
        }
        w.stores.push((SourceId(1), one.stores[0].1.clone()));
        w.stores.push((SourceId(2), two.stores[0].1.clone()));
        let job = w.solver.begin();
        w.ask(job, &[step("v", "seed", "ran").sources(order)]);
        let mut loads = Vec::new();
        loop {
            w.run_except(|action| action.starts_with("load"));
            let Some(Action::Load { record, .. }) = w.waiting.front() else { break };
            loads.push((record.source.0, record.result.created_at));
            w.run_only(|_| true);
        }
        loads
    };
    assert_eq!(load(&[SourceId(1), SourceId(2)], true), [(0, 3), (0, 2), (0, 1), (1, 2), (1, 1), (2, 1)]);
    assert_eq!(load(&[SourceId(2), SourceId(1)], false), [(2, 1), (1, 2), (1, 1)]);
}

/// Upstream: TestCacheMultipleMaps.
#[test]
fn a_source_with_several_keys_is_asked_until_one_matches() {
    let mut w = World::new();
    w.build(&[step("v0", "", "result0").seeds(&["seed0", "seed1", "seed2"])]).unwrap();
    assert_eq!(w.take_counts(), (3, 1, 0));
    assert_eq!(text(&w.build(&[step("v1", "", "no").seeds(&["seed1", "seed3"])])), "result0");
    assert_eq!(w.take_counts(), (1, 0, 1), "the first matched");
    assert_eq!(text(&w.build(&[step("v2", "", "no").seeds(&["seed3", "seed2"])])), "result0");
    assert_eq!(w.take_counts(), (2, 0, 1));
}

/// What a source is found by, its other keys stand for from then on.
#[test]
fn all_keys_of_a_source_are_linked_to_what_one_finds() {
    let mut w = World::new();
    w.build(&[step("v0", "", "result").seeds(&["content"])]).unwrap();
    let graph =
        |name: &str| [step(name, "", "no").seeds(&["alias", "content"]), step("top", "top", "t").reads(&[name])];
    w.build(&graph("v1")).unwrap();
    w.take_counts();
    w.build(&graph("v2")).unwrap();
    assert_eq!(w.take_counts(), (2, 0, 1), "the alias alone is enough now, for what reads it too");
}

/// Upstream: TestCacheInputMultipleMaps.
#[test]
fn any_key_of_an_input_leads_on() {
    let graph =
        |n: &str, seeds: &[&str]| [step("v1", "", "result1").seeds(seeds), step("v0", "seed0", n).reads(&["v1"])];
    let mut w = World::new();
    w.build(&graph("result0", &["seed1", "seed2"])).unwrap();
    assert_eq!(w.take_counts(), (3, 2, 0));
    assert_eq!(text(&w.build(&graph("no", &["seed1.changed", "seed2"]))), "result0");
    assert_eq!(w.take_counts(), (3, 0, 1));
}

/// Upstream: TestCacheLoadError.
#[test]
fn records_that_do_not_load_are_misses() {
    let graph = twins();
    let mut w = World::new();
    assert_eq!(text(&w.build(&graph)), "11");
    assert_eq!(w.take_counts(), (7, 5, 0));
    assert_eq!(text(&w.build(&graph)), "11");
    assert_eq!(w.take_counts(), (7, 0, 1));
    w.loads_fail = true;
    assert_eq!(text(&w.build(&graph)), "11");
    assert_eq!(w.take_counts(), (7, 5, 5));
}

/// Upstream: TestInputRequestDeadlock.
#[test]
fn inputs_whose_search_ends_at_different_times_do_not_block() {
    let graph = |top: &str, one: &str, two: &str, content: &[u32]| {
        [
            step("v1", one, "result1"),
            step("v2", two, "result2"),
            step("v0", top, "result0").reads(&["v1", "v2"]).content(content),
        ]
    };
    let mut w = World::new();
    w.build(&graph("seed0", "seed1", "seed2", &[])).unwrap();
    w.build(&graph("seed0-1", "seed1-1", "seed2-1", &[])).unwrap();
    w.take_counts();
    assert_eq!(text(&w.build(&graph("seed0-1", "seed1", "seed2-1", &[1]))), "result0");
    assert_eq!(w.take_counts(), (3, 1, 2));
}

/// Upstream: TestCacheMissStaleCompleteSharedDep.
#[test]
fn a_base_that_another_build_holds_complete_still_gives_its_keys() {
    let base = |value: &str, ignore: bool| {
        let mut base = step("base", "base-seed", value);
        base.ignore_cache = ignore;
        base
    };
    let on = |name: &str, value: &str, base: Step| [base, step(name, "step-seed", value).reads(&["base"])];
    let cases = [
        // held, same vertex, warm, ignored base -> runs of the second build
        (false, true, false, false, 0),
        (true, true, true, false, 0),
        (true, true, false, false, 0),
        (true, false, false, false, 0),
        (true, true, false, true, 1),
    ];
    for (held, same, warm, ignore, runs) in cases {
        let mut w = World::new();
        if warm {
            w.build(&[base("warm", ignore)]).unwrap();
        }
        let (first, _) = w.build_and_hold(&on("step", "step-result", base("base", ignore)));
        if held {
            w.build_and_hold(&[base("concurrent", ignore)]).1.unwrap();
        }
        w.end(first);
        w.take_counts();
        let name = if same { "step" } else { "step-second" };
        let result = w.build(&on(name, "uncached", base("base-uncached", ignore)));
        assert_eq!(w.count("exec step"), runs, "{held} {same} {warm} {ignore}");
        assert_eq!(text(&result), if runs == 0 { "step-result" } else { "uncached" });
    }
}

/// A moment's key (a client's directory) never matches, but its content does.
#[test]
fn random_keys_match_by_content_only() {
    let graph = |session: &str, value: &str| {
        let mut local = step("local", session, value);
        local.random = true;
        [local, step("copy", "copy", value).reads(&["local"]).content(&[0])]
    };
    let mut w = World::new();
    w.build(&graph("session1", "files")).unwrap();
    w.take_counts();
    assert_eq!(text(&w.build(&graph("session2", "files"))), "files");
    assert_eq!(w.take_counts(), (2, 1, 1));
    assert_eq!(text(&w.build(&graph("session3", "changed"))), "changed");
    assert_eq!(w.take_counts(), (2, 2, 0));
}

/// A failed build leaves what it finished in the cache.
#[test]
fn finished_steps_of_a_failed_build_are_cached() {
    let graph = |make: Make| [step("v1", "seed1", "result1"), step("v0", "seed0", "").reads(&["v1"]).make(make)];
    let mut w = World::new();
    w.build(&graph(Make::Fail("no".into()))).unwrap_err();
    w.take_counts();
    assert_eq!(text(&w.build(&graph(Make::Text("yes".into())))), "yes");
    assert_eq!(w.take_counts(), (2, 1, 1));
    assert!(w.solver.is_idle());
}

/// A store that fails is a cache that has nothing.
#[test]
fn lookups_without_answers_are_misses() {
    let mut w = World::new();
    w.build(&chain(3, "")).unwrap();
    w.stores.clear();
    let job = w.solver.begin();
    let request = w.ask(job, &chain(3, ""));
    w.run_except(|action| action == "save");
    assert_eq!(text(&w.answer(request)), "result2");
    assert_eq!(w.count("exec "), 6);
}

#[test]
fn results_are_let_go_with_their_last_job() {
    let mut w = World::new();
    let (job, result) = w.build_and_hold(&chain(3, ""));
    drop(result);
    w.answers.clear();
    let counts = |w: &World| w.results.values().map(Arc::strong_count).collect::<Vec<_>>();
    assert!(counts(&w).iter().all(|count| *count > 1));
    w.end(job);
    assert_eq!(counts(&w), [1, 1, 1]);
}

#[test]
fn an_input_that_completes_as_another_turns_out_to_lead_nowhere_is_still_digested() {
    let mut w = World::new();
    let steps = [constant("base", 1), constant("context", 2), sum("copy", 0, &["base", "context"]).content(&[1])];
    let job = w.solver.begin();
    let request = w.ask(job, &steps);
    w.run_except(|action| action == "map base" || action == "exec context");
    assert_eq!(w.run_only(|action| action == "map base"), 1);
    assert_eq!(w.waiting(), ["exec context", "lookup"]);
    w.answer_unseen("lookup");
    w.answer_unseen("exec context");
    w.run();
    assert_eq!(text(&w.answer(request)), "3");
    assert_eq!(w.count("content copy/1"), 1);
    w.end(job);
    assert!(w.solver.is_idle());
}
