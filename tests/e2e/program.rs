//! Which program the binary is, and what it says without building anything.

use std::os::unix::fs::symlink;

use crate::harness::{World, binary};

#[test]
fn versions_are_four_words() {
    let world = World::new();
    let version = world.hullworks(["--version"]).succeeds().text();
    let words: Vec<&str> = version.split_whitespace().collect();
    let [name, package, version, revision] = words.as_slice() else { panic!("{words:?}") };
    assert_eq!((*name, *package), ("hullworks", "github.com/hullworks/hullworks"));
    assert!(version.starts_with('v') && !revision.is_empty());
}

#[test]
fn the_name_decides() {
    let world = World::new();
    let link = world.path("buildctl-daemonless.sh");
    symlink(binary(), &link).unwrap();
    let version = world.run(&link).arg("--version").succeeds().text();
    assert!(version.starts_with("buildctl-daemonless.sh "), "{version}");
    for name in ["buildkitd", "buildctl", "executor"] {
        let link = world.path(name);
        symlink(binary(), &link).unwrap();
        world.run(&link).fails().says(&format!("error: `{name}` comes with a later release"));
        world.hullworks([name, "--debug"]).fails().says("comes with a later release");
    }
}

#[test]
fn mistakes_are_exit_code_1() {
    let world = World::new();
    world.hullworks(["frobnicate"]).fails().says("error: unrecognized subcommand `frobnicate`");
    world.build().arg("/no/such/dir").fails().says("no such file or directory");
    world.daemonless(["build", "--frontend", "dockerfile.v0", "--opt", "target"]).fails().says("expected key=value");
}

#[test]
fn a_bad_configuration_is_named_with_its_line() {
    let world = World::new();
    let config = world.write("buildkitd.toml", "[worker.oci]\ngc = \"yes\"\n");
    let said = format!("`{}`, line 2: `worker.oci.gc`: expected true or false, found a string", config.display());
    world.build().arg("--config").arg(&config).arg(world.path(".")).fails().says(&said);
}

#[test]
fn who_asks_for_an_id_gets_one() {
    let world = World::new();
    world.write("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let build = |flags: &[&str]| {
        let run = world.hullworks(["build", "--root"]).arg(world.path("state")).args(flags);
        run.arg("context").succeeds()
    };
    build(&["--iidfile", "iid"]);
    let id = std::fs::read_to_string(world.path("iid")).expect("an id");
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    assert_eq!(build(&["-q"]).stdout, format!("{id}\n").into_bytes());
    assert_eq!(build(&["-q", "-o", "type=cacheonly"]).stdout, b"");
}

#[test]
fn a_context_without_dockerfile_is_told_in_docker_s_terms() {
    let world = World::new();
    world.write("context/file", "");
    let said = "failed to read dockerfile: there is no `Dockerfile` in `context`";
    world.build().arg("context").fails().says(said).says("--file");
}

#[test]
fn flags_for_another_name_are_not_silently_ignored() {
    let world = World::new();
    world.write("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let build = world.build().env("BUILDKITD_FLAGS", "--root elsewhere").arg("context");
    build.succeeds().says("BUILDKITD_FLAGS is for buildctl-daemonless.sh and not used here");
    assert!(!world.path("elsewhere").exists());
}

#[test]
fn looking_at_a_cache_makes_none() {
    let world = World::new();
    for command in ["du", "prune"] {
        world.hullworks([command, "--root"]).arg(world.path("nothing")).succeeds().says("there is no state directory");
    }
    assert!(!world.path("nothing").exists());
}
