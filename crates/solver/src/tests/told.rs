//! What builds are told: failures, wrong calls, progress.

use super::world::*;
use crate::*;

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
        is_source: false,
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
fn what_reads_nothing_and_is_no_source_is_told_when_it_runs_or_need_not() {
    let mut w = World::new();
    let graph = [step(MADE, "seed", "m")];
    w.build(&graph).unwrap();
    assert_eq!(w.statuses(MADE), [Status::Started, Status::Completed]);
    w.notices.clear();
    w.build(&graph).unwrap();
    assert_eq!(w.statuses(MADE), [Status::Loading, Status::Cached]);
}

#[test]
fn nothing_happens_unasked() {
    let mut w = World::new();
    let job = w.solver.begin();
    assert!(w.solver.poll_actions().is_empty());
    w.ask(job, &[step("a", "a", "a"), step("unused", "u", "u"), step("top", "t", "t").reads(&["a"])]);
    w.run_except(|_| false);
    assert_eq!(w.count("map unused") + w.count("exec unused"), 0);
}
