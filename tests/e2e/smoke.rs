//! The shortest way through every room.

use std::fs;

use crate::harness::World;
use crate::needs;

#[test]
fn a_file_goes_through() {
    let world = World::new();
    world.write("context/Dockerfile", "FROM scratch\nCOPY a /b/\n");
    world.write("context/a", "content\n");
    let out = world.path("out");
    world.build().arg("--output").arg(&out).arg(world.path("context")).succeeds().says("[1/1] COPY a /b/");
    assert_eq!(fs::read_to_string(out.join("b/a")).unwrap(), "content\n");
    // The second time nothing is done.
    world.build().arg("--output").arg(&out).arg(world.path("context")).succeeds().says("CACHED");
}

#[test]
fn an_ordinary_user_builds_too() {
    needs!(userns);
    let world = World::of_user();
    world.write("context/Dockerfile", "FROM scratch\nCOPY a /b/\n");
    world.write("context/a", "content\n");
    // State and output lie where users have them.
    world.hullworks(["build", "--progress=plain", "--output", "out", "context"]).succeeds().says("[1/1] COPY a /b/");
    assert_eq!(fs::read_to_string(world.path("out/b/a")).unwrap(), "content\n");
    assert!(world.path(".local/share/buildkit").is_dir());
}

#[test]
fn buildkits_command_line_does_the_same() {
    let world = World::new();
    world.write("context/Dockerfile", "FROM scratch\nARG NAME=x\nCOPY a /${NAME}\n");
    world.write("context/a", "content\n");
    let line = "build --frontend dockerfile.v0 --local context=context --local dockerfile=context --opt build-arg:NAME=y \
                --output type=local,dest=out --progress=plain";
    world.daemonless(line.split_whitespace()).succeeds();
    assert_eq!(fs::read_to_string(world.path("out/y")).unwrap(), "content\n");
}

#[test]
fn a_dockerfile_may_come_from_standard_input() {
    let world = World::new();
    world.write("context/a", "content\n");
    let build = world.build().args(["--file", "-", "--output"]).arg(world.path("out")).arg(world.path("context"));
    build.stdin("FROM scratch\nCOPY a /\n").succeeds();
    assert_eq!(fs::read_to_string(world.path("out/a")).unwrap(), "content\n");
}

#[test]
fn mistakes_are_shown_where_they_are() {
    let world = World::new();
    world.write("context/Dockerfile", "FROM scratch\nCOPY nothing /\n");
    world
        .build()
        .arg(world.path("context"))
        .fails()
        .says("   2 | >>> COPY nothing /\n")
        .says("error: failed to solve: ");
}

#[test]
fn the_cache_can_be_seen_and_emptied() {
    let world = World::new();
    world.write("context/Dockerfile", "FROM scratch\nCOPY a /\n");
    world.write("context/a", vec![b'x'; 100_000]);
    world.build().arg(world.path("context")).succeeds().says("no output is given");
    let du = |world: &World| world.hullworks(["du", "--root"]).arg(world.path("state")).succeeds().text();
    assert!(du(&world).lines().count() > 3, "{}", du(&world));
    world.hullworks(["prune", "--all", "--root"]).arg(world.path("state")).succeeds();
    assert!(du(&world).contains("Total:\t\t0B"), "{}", du(&world));
}
