//! Builds at once: what they share, what is cancelled, who hears of failures and progress.

use super::world::*;
use crate::*;

fn never(_: &str) -> bool {
    false
}

/// Upstream: TestSingleLevelCacheParallel, and the same digest besides.
#[test]
fn equal_steps_of_two_builds_run_once() {
    for name in ["v0", "v0-other"] {
        let mut w = World::new();
        let (a, b) = (w.solver.begin(), w.solver.begin());
        let first = w.ask(a, &[step("v0", "seed0", "result0")]);
        let second = w.ask(b, &[step(name, "seed0", "other")]);
        w.run();
        assert_eq!(text(&w.answer(first)), text(&w.answer(second)), "{name}");
        assert_eq!((w.count("exec "), w.count("load ")), (1, 0), "{name}");
        w.end(a);
        w.end(b);
        assert!(w.solver.is_idle());
    }
}

#[test]
fn steps_of_another_generation_share_no_results() {
    for (generation, runs) in [(0, 1), (1, 2)] {
        let mut w = World::new();
        let job = w.solver.begin();
        let first = w.ask(job, &[step("v0", "seed0", "result0")]);
        let second = w.ask(job, &[Step { generation, ..step("v0-again", "seed0", "result0") }]);
        w.run();
        assert!(w.answer(first).is_ok() && w.answer(second).is_ok());
        assert_eq!(w.count("exec "), runs, "{generation}");
        w.end(job);
        assert!(w.solver.is_idle());
    }
}

/// Upstream: TestMultiLevelCacheParallel.
#[test]
fn equal_steps_on_equal_steps_run_once() {
    let graph = |n: &str, top: &str| {
        [
            step(&format!("v1{n}"), "seed1", "result1"),
            step(&format!("v0{n}"), top, "result0").reads(&[&format!("v1{n}")]),
        ]
    };
    for (top, runs) in [("seed0", 2), ("seed0-other", 3)] {
        for seed in 1..20 {
            let mut w = World::shuffled(seed, None);
            let (a, b) = (w.solver.begin(), w.solver.begin());
            let first = w.ask(a, &graph("", "seed0"));
            let second = w.ask(b, &graph("'", top));
            w.run();
            assert!(w.answer(first).is_ok() && w.answer(second).is_ok());
            assert_eq!(w.count("exec "), runs, "{top} {seed}");
        }
    }
}

/// Upstream: TestSingleCancelCache, TestSingleCancelExec; and a cancelled load.
#[test]
fn what_nobody_wants_any_more_is_cancelled() {
    let one = [step("v0", "seed0", "result0")];
    for phase in ["map v0", "exec v0", "load v0"] {
        let mut w = World::new();
        if phase == "load v0" {
            w.build(&one).unwrap();
        }
        let job = w.solver.begin();
        let request = w.ask(job, &one);
        w.run_except(|action| action == phase);
        assert_eq!(w.waiting(), [phase]);
        w.solver.cancel(request);
        w.poll();
        assert_eq!(w.cancelled.len(), 1, "{phase}");
        assert_eq!(w.waiting(), [phase], "the answer is still expected");
        w.run();
        assert!(!w.answers.contains_key(&request), "a request taken back is not answered");
        assert_eq!(w.statuses("v0").last(), Some(&Status::Cancelled), "{phase}");
        // Asked again, it is done again.
        let request = w.ask(job, &one);
        w.run();
        assert_eq!(text(&w.answer(request)), "result0", "{phase}");
        w.end(job);
        assert!(w.solver.is_idle());
    }
}

/// Upstream: TestSingleCancelParallel.
#[test]
fn work_goes_on_while_one_build_wants_it() {
    for ends in [true, false] {
        let mut w = World::new();
        let one = [step("v0", "seed0", "result0")];
        let (a, b) = (w.solver.begin(), w.solver.begin());
        let first = w.ask(a, &one);
        let second = w.ask(b, &one);
        w.run_except(|action| action == "exec v0");
        if ends {
            w.solver.end(a)
        } else {
            w.solver.cancel(first)
        }
        w.poll();
        assert!(w.cancelled.is_empty());
        w.run();
        assert_eq!(text(&w.answer(second)), "result0");
        assert_eq!(w.count("exec "), 1);
        assert!(!w.answers.contains_key(&first));
        w.end(a);
        w.end(b);
        assert!(w.solver.is_idle());
    }
}

#[test]
fn a_cancelled_step_that_is_wanted_again_at_once_runs_after_its_end() {
    let one = [step("v0", "seed0", "result0")];
    let mut w = World::new();
    let job = w.solver.begin();
    w.ask(job, &one);
    w.run_except(|action| action == "exec v0");
    w.solver.end(job);
    w.poll();
    // Another build finds the step winding down, and waits.
    let job = w.solver.begin();
    let request = w.ask(job, &one);
    w.run_except(|action| action == "exec v0");
    assert_eq!(w.waiting(), ["exec v0"]);
    w.run();
    assert_eq!(text(&w.answer(request)), "result0");
    assert_eq!(w.count("exec "), 2);
    w.end(job);
    assert!(w.solver.is_idle());
}

#[test]
fn a_step_that_finishes_in_spite_of_being_cancelled_is_kept_and_stored() {
    let one = [step("v0", "seed0", "result0")];
    let mut w = World::new();
    let job = w.solver.begin();
    w.ask(job, &one);
    w.run_except(|action| action == "exec v0");
    w.solver.end(job);
    w.poll();
    w.cancelled.clear(); // The world now answers with the result.
    w.run();
    assert!(w.solver.is_idle());
    w.take_counts();
    assert_eq!(text(&w.build(&one)), "result0");
    assert_eq!(w.take_counts(), (1, 0, 1));
}

#[test]
fn an_ended_build_is_known_until_its_results_are_saved() {
    let mut w = World::new();
    let job = w.solver.begin();
    let request = w.ask(job, &[step("v0", "seed0", "result0")]);
    w.run_except(|action| action == "save");
    w.answer(request).unwrap();
    w.solver.end(job);
    assert!(!w.solver.is_idle());
    // Were it forgotten already, this would run: the store does not know it yet.
    let job = w.solver.begin();
    let request = w.ask(job, &[step("v0-other", "seed0", "no")]);
    w.run_except(|action| action == "save");
    assert_eq!(text(&w.answer(request)), "result0");
    w.run();
    w.end(job);
    assert!(w.solver.is_idle());
}

/// One action saves what was made for both.
#[test]
fn builds_that_end_together_are_known_until_the_results_of_each_are_saved() {
    let mut w = World::new();
    let (a, b) = (w.solver.begin(), w.solver.begin());
    w.ask(a, &[step("va", "seed-a", "a")]);
    w.ask(b, &[step("vb", "seed-b", "b")]);
    w.run_except(|action| action.starts_with("exec"));
    w.answer_unseen("exec va");
    w.answer_unseen("exec vb");
    w.poll();
    assert_eq!(w.waiting(), ["save"]);
    w.solver.end(a);
    w.solver.end(b);
    let job = w.solver.begin();
    let requests = ["a", "b"].map(|n| w.ask(job, &[step(&format!("{n}-other"), &format!("seed-{n}"), "no")]));
    w.run_except(|action| action == "save");
    assert_eq!(requests.map(|request| text(&w.answer(request)).to_owned()), ["a", "b"]);
    w.run();
    w.end(job);
    assert!(w.solver.is_idle());
}

/// A client whose files come late asked the cache long ago. What others made meanwhile, saved and went away with is
/// loaded, whether the lower step is still at hand or not.
#[test]
fn what_was_saved_while_an_input_was_awaited_is_not_made_again() {
    let graph = |n: &str, top: &str| {
        let [source, copy] = ["source", "copy"].map(|name| format!("{name}{n}"));
        [
            step("base", "base", "base"),
            step(&source, &source, "same"),
            step(&copy, "copy", "copied").reads(&["base", &source]).content(&[1]),
            step(&format!("{top}{n}"), top, top).reads(&[&copy]),
        ]
    };
    for holds in [false, true] {
        let mut w = World::new();
        let late = w.solver.begin();
        let request = w.ask(late, &graph("-late", "run"));
        w.run_except(|action| action == "exec source-late");
        let other = w.solver.begin();
        if holds {
            w.ask(other, &graph("-other", "other"));
            w.run_except(|action| action == "exec source-late");
        }
        let early = w.solver.begin();
        let first = w.ask(early, &graph("-early", "run"));
        w.run_except(|action| action == "exec source-late");
        assert_eq!(text(&w.answer(first)), "run");
        w.solver.end(early);
        w.run();
        assert_eq!(text(&w.answer(request)), "run");
        assert_eq!((w.count("exec copy"), w.count("exec run")), (1, 1), "{holds}: {:?}", w.calls);
        w.end(late);
        w.end(other);
        assert!(w.solver.is_idle());
        assert!(w.solver.index.is_empty() && w.solver.news.is_empty());
    }
}

/// The reader was told that nothing can be cached above a step whose place another took, or that was found after all.
#[test]
fn a_reader_that_came_late_learns_of_the_keys_of_what_it_reads() {
    let graph = |n: &str| {
        let [source, copy] = ["source", "copy"].map(|name| format!("{name}{n}"));
        [
            step("base", "base", "base"),
            step(&source, &source, "same"),
            step(&copy, "copy", "copied").reads(&["base", &source]).content(&[1]),
            step(&format!("run{n}"), "run", "run").reads(&[&copy]),
        ]
    };
    for holds in [false, true] {
        let mut w = World::new();
        let late = w.solver.begin();
        w.ask(late, &graph("-late")[..3]);
        w.run_except(|action| action == "exec source-late");
        let other = w.solver.begin();
        if holds {
            w.ask(other, &graph("-other")[..3]);
            w.run_except(|action| action == "exec source-late");
        }
        let early = w.solver.begin();
        w.ask(early, &graph("-early"));
        w.run_except(|action| action == "exec source-late");
        w.solver.end(early);
        w.run_except(|action| action == "exec source-late");
        let request = w.ask(late, &graph("-late"));
        w.run();
        assert_eq!(text(&w.answer(request)), "run");
        assert_eq!((w.count("exec copy"), w.count("exec run")), (1, 1), "{holds}: {:?}", w.calls);
    }
}

/// Upstream: TestErrorReturns.
#[test]
fn a_failure_names_its_vertex_and_stops_the_rest_of_the_build() {
    let failures = [
        (Make::Fail("exec-error".into()), Phase::Exec, "exec-error"),
        (Make::FailMap("map-error".into()), Phase::CacheMap, "map-error"),
        (Make::FailContent("content-error".into()), Phase::Content { input: 0 }, "content-error"),
    ];
    for (make, phase, message) in failures {
        let graph = [
            step("base", "base", "base"),
            step("slow", "slow", "slow"),
            step("bad", "bad", "").make(make).reads(&["base"]).content(&[0]),
            step("top", "top", "top").reads(&["slow", "bad"]),
        ];
        let mut w = World::new();
        let (job, other) = (w.solver.begin(), w.solver.begin());
        let request = w.ask(job, &graph);
        let shared = w.ask(other, &graph[..2]);
        w.run_except(|action| action == "exec slow");
        let error = w.answer(request).unwrap_err();
        assert_eq!((error.vertex, error.phase), (graph[2].digest(), phase));
        assert_eq!(error.cause, Cause::Op(Oops(message.into())));
        assert!(w.statuses("bad").contains(&Status::Failed(Oops(message.into()))));
        // The independent branch is still wanted by the other build.
        let slow = w.waiting.iter().find_map(|action| match action {
            Action::Exec { id, .. } => Some(*id),
            _ => None,
        });
        let slow = slow.unwrap();
        assert!(!w.cancelled.contains(&slow));
        w.solver.end(other);
        w.poll();
        assert!(w.cancelled.contains(&slow));
        w.run();
        assert!(!w.answers.contains_key(&shared));
        w.end(job);
        assert!(w.solver.is_idle());
    }
}

#[test]
fn a_failure_reaches_every_build_that_wants_the_step() {
    let mut w = World::new();
    let bad = step("bad", "bad", "").make(Make::Fail("no".into()));
    let (a, b, c) = (w.solver.begin(), w.solver.begin(), w.solver.begin());
    let first = w.ask(a, &[bad.clone(), step("top", "top", "top").reads(&["bad"])]);
    let second = w.ask(b, &[bad.clone(), step("top2", "top2", "top2").reads(&["bad"])]);
    let merged = w.ask(c, &[Step { name: "bad'".into(), ..bad }]);
    w.run();
    for request in [first, second, merged] {
        assert_eq!(w.answer(request).unwrap_err().cause, Cause::Op(Oops("no".into())));
    }
    assert_eq!(w.count("exec "), 1);
}

#[test]
fn what_is_cached_does_not_fail_with_an_input_that_is_not_needed() {
    let graph = |make: Make| [step("base", "base", "b").make(make), step("top", "top", "t").reads(&["base"])];
    let mut w = World::new();
    w.build(&graph(Make::Text("b".into()))).unwrap();
    assert_eq!(text(&w.build(&graph(Make::Fail("never run".into())))), "t");
}

#[test]
fn misfits_between_ops_and_vertices_are_failures() {
    let mut w = World::new();
    let job = w.solver.begin();
    let request = w.ask_output(job, &[step("v0", "seed0", "result0")], 3);
    w.run();
    assert_eq!(w.answer(request).unwrap_err().cause, Cause::NoSuchOutput { asked: 3, outputs: 1 });

    let request = w.ask(job, &[step("v1", "seed1", "result1")]);
    let Some(Action::CacheMap { id, .. }) = w.waiting.pop_front() else { panic!("a cache map is asked for first") };
    let map = CacheMap { digest: base::Digest::of("x").into(), inputs: vec![CacheMapInput::default()] };
    w.solver.handle(Event::Saved(id)); // Does not fit, is ignored.
    w.solver.handle(Event::CacheMap(id, Ok((map, Last::Yes))));
    w.run();
    assert_eq!(w.answer(request).unwrap_err().cause, Cause::CacheMapInputs { described: 1, inputs: 0 });
}

/// Upstream: TestParallelInputs.
#[test]
fn inputs_run_at_the_same_time() {
    let graph = [step("a", "a", "a"), step("b", "b", "b"), step("top", "top", "top").reads(&["a", "b"])];
    let mut w = World::new();
    let job = w.solver.begin();
    w.ask(job, &graph);
    assert_eq!(w.waiting(), ["map top", "map a", "map b"], "all keys are asked for at once");
    w.run_except(|action| action.starts_with("exec"));
    assert_eq!(w.waiting(), ["exec a", "exec b"]);
    w.run();
}

#[test]
fn no_more_ops_run_at_once_than_allowed() {
    let names: Vec<String> = (0..10).map(|n| format!("s{n}")).collect();
    let mut graph: Vec<Step> = names.iter().map(|name| step(name, name, name)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    graph.push(step("top", "top", "top").reads(&names));
    for limit in [1, 3] {
        let mut w = World::limited(Some(limit));
        let job = w.solver.begin();
        let request = w.ask(job, &graph);
        for _ in 0..10_usize.div_ceil(limit) {
            w.run_except(|action| action.starts_with("exec"));
            assert!(w.waiting.len() <= limit && !w.waiting.is_empty());
            w.run_only(|_| true);
        }
        w.run();
        assert_eq!(text(&w.answer(request)), "top");
        assert_eq!(w.count("exec "), 11);
    }
}

#[test]
fn a_queued_op_that_nobody_wants_any_more_never_runs() {
    let mut w = World::limited(Some(1));
    let (a, b) = (w.solver.begin(), w.solver.begin());
    w.ask(a, &[step("first", "first", "first")]);
    let second = w.ask(b, &[step("second", "second", "second")]);
    w.run_except(|action| action.starts_with("exec"));
    assert_eq!(w.waiting(), ["exec first"]);
    w.solver.cancel(second);
    w.run();
    assert_eq!((w.count("exec "), w.cancelled.len()), (1, 0));
    let second = w.ask(b, &[step("second", "second", "second")]);
    w.run();
    assert_eq!(text(&w.answer(second)), "second");
}

/// Upstream: TestSubbuild; with one place for ops the nested one must not wait for its parent.
#[test]
fn an_op_may_build_something_itself() {
    let inner = vec![constant("seven", 7), sum("inner", 0, &["seven"])];
    let graph = [step("sub", "seed0", "").make(Make::Nested(inner)), sum("top", 1, &["sub"])];
    for limit in [None, Some(1)] {
        let mut w = World::limited(limit);
        let (job, result) = w.build_and_hold(&graph);
        assert_eq!(text(&result), "8");
        assert_eq!(w.count("exec "), 4);
        assert_eq!(w.statuses("seven").last(), Some(&Status::Completed));
        assert!(w.notices.iter().all(|(jobs, ..)| *jobs == [job]), "people hear of nested steps in their own build");
        // Who joins later hears of them too.
        let late = w.solver.begin();
        w.notices.clear();
        let request = w.ask(late, &graph);
        w.run();
        assert_eq!(text(&w.answer(request)), "8");
        let told: Vec<&str> = w.notices.iter().filter(|(jobs, ..)| *jobs == [late]).map(|n| n.1.as_str()).collect();
        assert!(told.contains(&"seven") && told.contains(&"inner") && told.contains(&"sub"), "{told:?}");
        w.end(job);
        w.end(late);
        assert!(w.solver.is_idle(), "nested jobs end with the vertex");
        w.take_counts();
        assert_eq!(text(&w.build(&graph)), "8");
        assert_eq!(w.take_counts(), (2, 0, 1));
    }
}

#[test]
fn a_cancelled_op_takes_its_nested_build_along() {
    let graph = [step("sub", "seed0", "").make(Make::Nested(vec![constant("seven", 7)]))];
    let mut w = World::new();
    let job = w.solver.begin();
    w.ask(job, &graph);
    w.run_except(|action| action == "exec seven");
    let exec = *w.nested_execs().first().unwrap();
    assert!(w.solver.begin_nested(exec).is_ok());
    w.solver.end(job);
    w.poll();
    assert!(w.cancelled.contains(&exec));
    // The engine stops the op, whose nested requests end with it.
    w.solver.handle(Event::Exec(exec, Err(Stopped::Cancelled)));
    w.run();
    assert!(w.solver.is_idle());
    assert_eq!(w.solver.begin_nested(exec), Err(Error::NotRunning(exec)));
}

/// Gateway frontends load and ask again and again; results stay until the job ends.
#[test]
fn a_job_may_ask_more_at_any_time() {
    let mut w = World::new();
    let job = w.solver.begin();
    let first = w.ask(job, &[step("a", "a", "a")]);
    w.run();
    w.answer(first).unwrap();
    let second = w.ask(job, &[step("b", "b", "b").reads(&["a"])]);
    w.run_except(|action| action.starts_with("exec"));
    let third = w.ask(job, &[step("c", "c", "c").reads(&["b", "a"])]);
    w.run();
    assert_eq!((text(&w.answer(second)), text(&w.answer(third))), ("b", "c"));
    let again = w.ask(job, &[step("a", "a", "a")]);
    assert_eq!(text(&w.answer(again)), "a", "answered without any action");
    assert_eq!(w.take_counts(), (3, 3, 0));
}

/// Upstream: TestUnknownBuildID, and other wrong calls.
#[test]
fn wrong_calls_are_refused() {
    let mut w = World::new();
    let job = w.solver.begin();
    let orphan = step("b", "b", "b").reads(&["a"]);
    let vertex = Vertex {
        digest: orphan.digest(),
        inputs: vec![Input { vertex: base::Digest::of("a"), output: 0 }],
        op: std::sync::Arc::new(orphan.clone()),
        ignore_cache: false,
        sources: vec![],
        export_cache: None,
        generation: 0,
    };
    let unknown = Error::UnknownInput { vertex: orphan.digest(), input: base::Digest::of("a") };
    assert_eq!(w.solver.load(job, [vertex.clone()]), Err(unknown));
    let unknown = Error::UnknownVertex { job, vertex: orphan.digest() };
    assert_eq!(w.solver.request(job, orphan.digest(), 0), Err(unknown));
    w.end(job);
    assert_eq!(w.solver.load(job, [vertex]), Err(Error::UnknownJob(job)));
    assert_eq!(w.solver.request(job, orphan.digest(), 0), Err(Error::UnknownJob(job)));
    w.solver.end(job);
    assert_eq!(Error::UnknownJob(job).to_string(), format!("{job} is not a running build"));
}

/// Upstream: TestMergedEdgesLookup (moby/buildkit#434).
#[test]
fn equal_subgraphs_within_one_build_run_once() {
    let graph = [
        constant("two", 2),
        constant("two'", 2),
        constant("zero", 0),
        sum("sum2", 2, &["two"]),
        sum("sum2'", 2, &["two'"]),
        sum("sum0", 0, &["sum2", "zero"]),
        sum("top", 3, &["sum0", "sum2'"]),
    ];
    for seed in 1..50 {
        let mut w = World::shuffled(seed, None);
        assert_eq!(text(&w.build(&graph)), "11");
        assert_eq!(w.take_counts(), (7, 5, 0), "{seed}");
        assert!(w.solver.is_idle());
    }
}

fn adder(name: &str, inputs: &[&str]) -> Step {
    Step { make: Make::Add(2), ..step(name, "add-2", "") }.reads(inputs)
}

/// Upstream: TestMergedEdgesCycle, TestMergedEdgesCycleMultipleOwners.
#[test]
fn outputs_of_equal_ops_merge_without_going_round_in_circles() {
    let inputs = ["3", "4", "5"].map(|number| constant(number, number.parse().unwrap()));
    let names = ["3", "4", "5"];
    type Case<'a> = (&'a [(&'a str, u32)], i64, usize);
    let cases: [Case<'_>; 2] = [
        (&[("va", 1), ("vb", 0), ("va", 0), ("vb", 1)], 1 + 6 + 5 + 5 + 6, 1),
        (&[("vb", 0), ("va", 0), ("vc", 1), ("va", 1), ("va", 2), ("vb", 2)], 1 + 5 + 5 + 6 + 6 + 7 + 7, 2),
    ];
    for (reads, expected, runs) in cases {
        for seed in 0..50 {
            let mut graph = inputs.to_vec();
            graph.extend(["va", "vb", "vc"].map(|name| adder(name, &names)));
            let mut top = sum("top", 1, &[]);
            top.inputs = reads.iter().map(|(name, output)| ((*name).to_owned(), *output)).collect();
            graph.push(top);
            let mut w = World::shuffled(seed, None);
            assert_eq!(text(&w.build(&graph)), expected.to_string());
            assert!(w.solver.is_idle());
            assert!(w.count("exec v") <= runs, "{seed}: {:?}", w.calls);
        }
    }
}

/// Where one output of `va` went to `vb`, another of `vb` must not go to `va`: both would run.
#[test]
fn outputs_of_one_op_go_the_same_way() {
    let graph = |name: &str| [constant("3", 3), constant("4", 4), adder(name, &["3", "4"])];
    let mut w = World::new();
    let job = w.solver.begin();
    let mut requests = Vec::new();
    for (name, output) in [("va", 1), ("vb", 0), ("va", 0), ("vb", 1)] {
        requests.push(w.ask_output(job, &graph(name), output));
        w.run_except(|action| action.starts_with("exec"));
    }
    w.run();
    let answers: Vec<ToyResult> = requests.iter().map(|request| w.answer(*request)).collect();
    assert_eq!(answers.iter().map(text).collect::<Vec<_>>(), ["6", "5", "5", "6"]);
    assert_eq!(w.count("exec v"), 1);
}

/// Upstream: TestStaleEdgeMerge. A build whose step was merged keeps what it was merged into alive.
#[test]
fn merged_steps_live_as_long_as_any_of_their_builds() {
    let graph =
        |n: &str| [step(&format!("dep{n}"), "dep", "dep"), step(&format!("v{n}"), "v", n).reads(&[&format!("dep{n}")])];
    let mut w = World::new();
    let (j0, result) = w.build_and_hold(&graph("0"));
    assert_eq!(text(&result), "0");
    let (j1, result) = w.build_and_hold(&graph("1"));
    assert_eq!(text(&result), "0");
    w.end(j0);
    let (j2, result) = w.build_and_hold(&graph("2"));
    assert_eq!(text(&result), "0");
    w.end(j1);
    let more = w.ask(j2, &[step("more", "more", "more").reads(&["v2"])]);
    w.run();
    assert_eq!(text(&w.answer(more)), "more");
    assert_eq!((w.count("exec "), w.count("load ")), (3, 0));
    w.end(j2);
    assert!(w.solver.is_idle());
    assert!(w.solver.index.is_empty());
}

/// The step that took the place of another goes on when the build that began it is gone.
#[test]
fn merged_work_goes_on_for_the_build_that_joined_it() {
    let mut w = World::new();
    let (a, b) = (w.solver.begin(), w.solver.begin());
    w.ask(a, &[step("va", "seed", "a")]);
    w.run_except(|action| action.starts_with("exec"));
    let request = w.ask(b, &[step("vb", "seed", "b")]);
    w.run_except(|action| action.starts_with("exec"));
    assert_eq!(w.waiting(), ["exec va"]);
    let Some(Action::Exec { id, .. }) = w.waiting.front() else { unreachable!() };
    assert_eq!(w.solver.jobs_of(*id), [a, b]);
    let id = *id;
    w.solver.end(a);
    w.poll();
    assert!(w.cancelled.is_empty());
    assert_eq!(w.solver.jobs_of(id), [b]);
    w.run();
    assert_eq!(text(&w.answer(request)), "a");
}

/// Equal content found while both run: the definitions never met.
#[test]
fn running_steps_whose_inputs_turn_out_equal_are_merged() {
    let graph = |n: &str| {
        let (source, copy) = (format!("source{n}"), format!("copy{n}"));
        [step(&source, &source, "same"), step(&copy, "copy", "copied").reads(&[&source]).content(&[0])]
    };
    let mut w = World::new();
    let (a, b) = (w.solver.begin(), w.solver.begin());
    let first = w.ask(a, &graph("0"));
    let second = w.ask(b, &graph("1"));
    w.run();
    assert_eq!((text(&w.answer(first)), text(&w.answer(second))), ("copied", "copied"));
    assert_eq!((w.count("exec source"), w.count("exec copy")), (2, 1));
}

/// A reader that asked about the keys of a step asks again about those of the step that took its place.
#[test]
fn readers_search_by_the_keys_of_what_was_merged() {
    let mut w = World::new();
    // `alias` is known, but nothing can be loaded from it.
    w.build(&[step("old", "alias", "x"), step("other", "other", "x").reads(&["old"])]).unwrap();
    let gone = w.results.iter().find_map(|(id, _)| (id.as_str() == "result-1").then(|| id.clone())).unwrap();
    w.stores[0].1.write(&[Change::Release(gone)]).unwrap();
    let b = step("b", "content", "x");
    let (_held, _) = w.build_and_hold(std::slice::from_ref(&b));
    w.build(&[b, step("reader1", "reader", "read").reads(&["b"])]).unwrap();
    w.calls.clear();
    let a = step("a", "", "x").seeds(&["alias", "content"]);
    assert_eq!(text(&w.build(&[a, step("reader2", "reader", "no").reads(&["a"]).content(&[0])])), "read");
    assert_eq!((w.count("content "), w.count("exec "), w.count("map a")), (0, 0, 2));
}

#[test]
fn progress_tells_each_vertex_once() {
    use Status::{Cached, Completed, Loading, Resolved, Started};
    let graph = [
        step("source", "source", "s"),
        step("mid", "mid", "m").reads(&["source"]),
        step("mid'", "mid", "m").reads(&["source"]),
        step("top", "top", "t").reads(&["mid", "mid'"]),
    ];
    let mut w = World::new();
    w.build(&graph).unwrap();
    assert_eq!(w.statuses("source"), [Started, Resolved, Started, Completed]);
    let (mid, other) = (w.statuses("mid"), w.statuses("mid'"));
    assert_eq!([&mid[..], &other[..]].concat().len(), 3, "one ran, the other was the same: {mid:?} {other:?}");
    assert_eq!(w.statuses("top"), [Started, Completed]);
    w.notices.clear();
    let (job, result) = w.build_and_hold(&graph);
    result.unwrap();
    assert_eq!(w.statuses("top"), [Loading, Cached]);
    assert_eq!((w.statuses("mid"), w.statuses("mid'")), (vec![Cached], vec![Cached]));
    assert_eq!(w.statuses("source"), [Started, Resolved, Cached]);
    // Another build hears what is known, and nothing twice.
    w.notices.clear();
    let late = w.solver.begin();
    w.ask(late, &graph);
    w.run();
    assert!(w.notices.iter().all(|(jobs, ..)| *jobs == [late]));
    assert_eq!(w.statuses("mid"), [Cached]);
    w.end(job);
    w.end(late);
}

#[test]
fn nothing_happens_unasked() {
    let mut w = World::new();
    let job = w.solver.begin();
    assert!(w.solver.poll_actions().is_empty());
    w.ask(job, &[step("a", "a", "a"), step("unused", "u", "u"), step("top", "t", "t").reads(&["a"])]);
    w.run_except(never);
    assert_eq!(w.count("map unused") + w.count("exec unused"), 0);
}
