//! Steps that turn out to be the same work, by their definitions or by what is found: they become one.

use super::world::*;
use crate::*;

/// Upstream: TestMergedEdgesLookup (moby/buildkit#434).
#[test]
fn equal_subgraphs_within_one_build_run_once() {
    let graph = twins();
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
