//! Local caches that a client offers and that are not there, or no longer whole: a miss, whoever the client is.

use std::fs;

use serde_json::Value;

use crate::buildx::with_each_client;
use crate::daemon::Served;
use crate::harness::{Invocation, is_root};
use crate::kitchen::ran;
use crate::needs;
use crate::upstream_client::builds;
use crate::who::Who;

const ALL: [&str; 2] = ["COPY a /", "RUN cat /a > /b"];

/// Makes a cache in the directory `whole`, and others out of it.
fn caches(served: &Served, export: Invocation) -> [&'static str; 6] {
    let kitchen = &served.kitchen;
    export.succeeds();
    let path = |name: &str| kitchen.world.path(name);
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(path(name)).unwrap()).unwrap() };
    let blob = |digest: &Value| digest.as_str().unwrap().replace(':', "/");
    let manifest = blob(&read("whole/index.json")["manifests"][0]["digest"]);
    let config = blob(&read(&format!("whole/blobs/{manifest}"))["config"]["digest"]);
    let copy = |name: &str| drop(kitchen.world.run("cp").args(["--recursive", "whole", name]).succeeds());
    for (name, lost) in [("no-manifest", &manifest), ("no-config", &config)] {
        copy(name);
        fs::remove_file(path(&format!("{name}/blobs/{lost}"))).unwrap();
    }
    copy("no-layers");
    for entry in fs::read_dir(path("no-layers/blobs/sha256")).unwrap() {
        let entry = entry.unwrap().path();
        if ![&manifest, &config].iter().any(|kept| entry.ends_with(kept)) {
            fs::remove_file(entry).unwrap();
        }
    }
    copy("no-blobs");
    fs::remove_dir_all(path("no-blobs/blobs")).unwrap();
    fs::create_dir(path("empty")).unwrap();
    let all = ["nowhere", "empty", "no-blobs", "no-manifest", "no-config", "no-layers"];
    all[1..].iter().for_each(|name| kitchen.who.own(&kitchen.world, name));
    all
}

/// `build` reads the cache in a directory and writes the files of the result into another.
fn are_misses(served: &Served, export: Invocation, build: impl Fn(&str, &str) -> Invocation) {
    let kitchen = &served.kitchen;
    let built = |cache: &str| {
        served.buildctl("prune --all").succeeds();
        let out = format!("out-{cache}");
        let ended = build(cache, &out).succeeds();
        assert_eq!(fs::read_to_string(kitchen.world.path(out).join("b")).unwrap(), "one\n", "{cache}: {ended:?}");
        let mut steps = ran(&ended);
        steps.dedup();
        (steps, ended)
    };
    let lost = caches(served, export);
    let (steps, ended) = built("whole");
    assert!(steps.is_empty(), "what is whole is used: {ended:?}");
    for cache in lost {
        let (steps, ended) = built(cache);
        assert_eq!(steps, ALL, "{cache}: {ended:?}");
    }
}

fn prepare(served: &Served) {
    served.kitchen.file("a", "one\n");
    served.kitchen.dockerfile("FROM busybox\nCOPY a /\nRUN cat /a > /b\n");
}

#[test]
fn what_buildkit_s_client_does_not_find_is_a_miss() {
    needs!(tool "upstream-buildctl");
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    prepare(&served);
    let export = builds(&served, "--export-cache type=local,dest=whole,mode=max");
    are_misses(&served, export, |cache, out| {
        builds(&served, &format!("--import-cache type=local,src={cache} --output type=local,dest={out}"))
    });
    served.ends();
}

#[test]
fn what_docker_s_clients_do_not_find_is_a_miss() {
    with_each_client(|docker| {
        prepare(&docker.served);
        let export = docker.build("--cache-to type=local,dest=whole,mode=max context");
        are_misses(&docker.served, export, |cache, out| {
            docker.build(&format!("--cache-from type=local,src={cache} -o type=local,dest={out} context"))
        });
    });
}
