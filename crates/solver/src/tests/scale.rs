//! Large graphs: the steps that the solver takes grow with the graph, not with its square.

use super::world::*;

/// Builds a graph twice, uncached and cached, and checks the steps per vertex and edge.
fn check(what: &str, graph: &[Step]) {
    let size = graph.iter().map(|step| 1 + step.inputs.len()).sum::<usize>() as u64;
    let mut w = World::new();
    let mut before = 0;
    for round in ["uncached", "cached"] {
        w.build(graph).expect("a good build");
        let steps = w.solver.steps() - before;
        before = w.solver.steps();
        assert!(steps <= 40 * size, "{what}, {round}: {steps} steps for {size} vertices and edges");
    }
    assert!(w.solver.is_idle());
}

fn name(n: usize) -> String {
    format!("v{n}")
}

fn numbered(n: usize) -> Step {
    step(&name(n), &name(n), &name(n))
}

fn top(below: &[Step]) -> Step {
    let names: Vec<&str> = below.iter().map(|step| step.name.as_str()).collect();
    step("top", "top", "top").reads(&names)
}

#[test]
fn a_long_chain() {
    let mut graph = vec![numbered(0)];
    graph.extend((1..10_000).map(|n| numbered(n).reads(&[&name(n - 1)])));
    check("chain", &graph);
}

#[test]
fn a_long_chain_that_matches_by_content() {
    let mut graph = vec![numbered(0)];
    graph.extend((1..5_000).map(|n| numbered(n).reads(&[&name(n - 1)]).content(&[0])));
    check("chain by content", &graph);
}

#[test]
fn one_step_with_many_inputs() {
    let mut graph: Vec<Step> = (0..10_000).map(numbered).collect();
    graph.push(top(&graph));
    check("wide", &graph);
    // The same, where every input is digested.
    let all: Vec<u32> = (0..10_000).collect();
    let last = graph.pop().expect("a top").content(&all);
    graph.push(last);
    check("wide by content", &graph);
}

#[test]
fn many_readers_of_one_base() {
    let mut graph = vec![step("base", "base", "base")];
    graph.extend((0..10_000).map(|n| numbered(n).reads(&["base"])));
    graph.push(top(&graph[1..]));
    check("fan", &graph);
}

/// `COPY . .` of thousands of stages onto one base: equal ops, one input in common.
#[test]
fn many_equal_ops_that_differ_in_one_input() {
    let mut graph = vec![step("base", "base", "base")];
    graph.extend((0..3_000).map(numbered));
    graph.extend((0..3_000).map(|n| {
        let copied = step(&format!("copy{n}"), "copy", &format!("copied{n}"));
        copied.reads(&["base", &name(n)]).content(&[1])
    }));
    graph.push(top(&graph[3_001..]));
    check("copies", &graph);
}

/// Two chains that are the same under other names are merged link by link.
#[test]
fn equal_chains() {
    let mut graph = Vec::new();
    for side in ["a", "b"] {
        graph.push(step(&format!("{side}0"), "0", "0"));
        graph.extend((1..3_000).map(|n| {
            step(&format!("{side}{n}"), &n.to_string(), &n.to_string()).reads(&[&format!("{side}{}", n - 1)])
        }));
    }
    graph.push(step("top", "top", "top").reads(&["a2999", "b2999"]));
    check("equal chains", &graph);
}

/// Upstream: TestHugeGraph.
#[test]
fn a_layered_graph() {
    let mut graph: Vec<Step> = (0..100).map(numbered).collect();
    for n in 100..5_000 {
        let inputs: Vec<String> = (1..6).map(|k| name(n - 100 + (n * k * 7) % 100)).collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        graph.push(numbered(n).reads(&inputs));
    }
    graph.push(top(&graph[4_900..]));
    check("layers", &graph);
}
