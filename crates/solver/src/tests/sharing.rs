//! Builds at once: what they share, what is cancelled, what runs at the same time.

use super::world::*;
use crate::*;

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
