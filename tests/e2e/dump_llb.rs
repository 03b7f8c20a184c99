//! `buildctl debug dump-llb`: what a definition says, for people. No daemon is asked.

use std::os::unix::fs::symlink;

use base::Digest;
use proto::Message as _;
use proto::pb;
use serde_json::Value;

use crate::harness::{World, binary};

/// An image, a step in it, and the end; the digests of the first two.
fn definition() -> (Vec<u8>, [String; 2]) {
    let source =
        pb::SourceOp { identifier: "docker-image://docker.io/library/busybox:latest".to_owned(), ..Default::default() };
    let source = pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() }.encode_to_vec();
    let input = |of: &[u8]| vec![pb::Input { digest: Digest::of(of).to_string(), index: 0 }];
    let meta =
        pb::Meta { args: vec!["echo".to_owned(), "a \"b\"".to_owned()], cwd: "/".to_owned(), ..Default::default() };
    let mounts = vec![pb::Mount { input: 0, dest: "/".to_owned(), output: 0, ..Default::default() }];
    let exec = pb::ExecOp { meta: Some(meta), mounts, ..Default::default() };
    let exec = pb::Op { inputs: input(&source), op: Some(pb::op::Op::Exec(exec)), ..pb::Op::default() }.encode_to_vec();
    let end = pb::Op { inputs: input(&exec), ..pb::Op::default() }.encode_to_vec();
    let digests = [&source, &exec].map(|op| Digest::of(op).to_string());
    let description = [("llb.customname".to_owned(), "says it".to_owned())].into();
    let metadata = [(digests[1].clone(), pb::OpMetadata { description, ..Default::default() })].into();
    (pb::Definition { def: vec![source, exec, end], metadata, ..Default::default() }.encode_to_vec(), digests)
}

#[test]
fn a_definition_is_shown_as_json_and_as_a_graph() {
    let world = World::new();
    symlink(binary(), world.path("buildctl")).unwrap();
    let dump = |args: &[&str]| world.run(world.path("buildctl")).args(["debug", "dump-llb"]).args(args);
    let (bytes, [source, exec]) = definition();
    world.write("llb", &bytes);
    let lines = dump(&["llb"]).succeeds().text();
    let ops: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(ops.len(), 3, "{lines}");
    assert_eq!((ops[0]["Digest"].as_str(), ops[1]["Digest"].as_str()), (Some(source.as_str()), Some(exec.as_str())));
    let image = &ops[0]["Op"]["Op"]["source"]["identifier"];
    assert_eq!(image, "docker-image://docker.io/library/busybox:latest", "{lines}");
    assert_eq!(ops[1]["Op"]["Op"]["exec"]["meta"]["args"][1], "a \"b\"", "{lines}");
    assert_eq!(ops[1]["Op"]["inputs"][0]["digest"], source.as_str(), "{lines}");
    assert_eq!(ops[1]["OpMetadata"]["description"]["llb.customname"], "says it", "{lines}");
    assert_eq!(ops[2]["Op"]["inputs"][0]["digest"], exec.as_str(), "{lines}");
    // From standard input, the same.
    for args in [&[][..], &["-"]] {
        assert_eq!(dump(args).stdin(bytes.clone()).succeeds().text(), lines);
    }

    let graph = dump(&["--dot", "llb"]).succeeds().text();
    assert!(graph.starts_with("digraph {\n") && graph.ends_with("}\n"), "{graph}");
    for edge in [format!("\"{source}\" -> \"{exec}\""), format!("\"{exec}\" -> \"")] {
        assert!(graph.contains(&edge), "{edge}: {graph}");
    }
    assert_eq!(dump(&["--dot"]).stdin(bytes).succeeds().text(), graph);

    dump(&["nothing"]).fails().says("cannot read `nothing`");
    world.write("text", "no definition");
    dump(&["text"]).fails().says("`text` is no LLB definition");
}
