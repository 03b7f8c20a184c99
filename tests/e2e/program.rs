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
    for name in ["buildkitd", "buildctl"] {
        let link = world.path(name);
        symlink(binary(), &link).unwrap();
        let version = world.run(&link).arg("--version").succeeds().text();
        assert!(version.starts_with(&format!("{name} ")), "{version}");
    }
    let link = world.path("executor");
    symlink(binary(), &link).unwrap();
    world.run(&link).fails().says("error: `executor` comes with a later release");
    world.hullworks(["executor", "--debug"]).fails().says("comes with a later release");
}

#[test]
fn the_tree_of_an_image_is_laid_out_where_nothing_is() {
    let world = World::new();
    world.write("there/bin/sh", "");
    world
        .hullworks(["install", "there"])
        .fails()
        .says("error: `there/bin` is that of another system")
        .hints(
        "name an empty directory; a system gets the program alone: copy it to /usr/local/bin, and link buildkitd, buildctl and \
         buildctl-daemonless.sh to it there",
    );
    assert_eq!(std::fs::read_dir(world.path("there")).unwrap().count(), 1);
    world.hullworks(["install", "tree"]).succeeds();
    world.hullworks(["install", "tree"]).succeeds();
    assert!(world.path("tree/bin/buildctl").exists());
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
    // Also beside a directory, and through a link.
    std::os::unix::fs::symlink("target", world.path("link")).expect("a link");
    build(&["--iidfile", "link", "-o", "out"]);
    assert_eq!(std::fs::read_to_string(world.path("target")).expect("an id"), id);
    assert!(world.path("out/Dockerfile").exists() && world.path("link").is_symlink());
}

#[test]
fn an_answer_of_an_earlier_build_does_not_outlive_a_failure() {
    let world = World::new();
    world.write("good/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    world.write("empty/file", "");
    let fails = |words: &str| {
        for name in ["iid", "meta"] {
            world.write(name, "of an earlier build");
        }
        let ended = world.hullworks(words.split(' ')).fails();
        for name in ["iid", "meta"] {
            assert!(!world.path(name).exists(), "{name} after {words}: {ended:?}");
        }
    };
    let build = "build --iidfile iid --metadata-file meta";
    for rest in ["empty", "nowhere", "--root good/Dockerfile good", "--target none good", "--ssh default good"] {
        fails(&format!("{build} {rest}"));
    }
    let buildctl = "buildctl-daemonless.sh build --ref-file iid --metadata-file meta --frontend dockerfile.v0";
    for rest in ["--local context=nowhere", "--ssh default", "--opt target"] {
        fails(&format!("{buildctl} {rest}"));
    }
}

#[test]
fn an_archive_goes_where_a_link_leads() {
    let world = World::new();
    world.write("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    // As /dev/stdout, with standard output in a file.
    std::os::unix::fs::symlink("/proc/self/fd/1", world.path("stdout")).expect("a link");
    let script = "$0 build --root state -o type=tar,dest=stdout context > archive";
    world.run("sh").args(["-c", script]).arg(world.program()).succeeds();
    assert!(world.path("stdout").is_symlink());
    let archive = std::fs::read(world.path("archive")).expect("an archive");
    assert!(archive.windows(10).any(|bytes| bytes == b"Dockerfile"), "{} bytes", archive.len());
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
    std::fs::create_dir(world.path("buildkits")).expect("made");
    for (command, root) in [("du", "nothing"), ("prune", "nothing"), ("du", "buildkits"), ("prune", "buildkits")] {
        world.hullworks([command, "--root"]).arg(world.path(root)).succeeds().says("there is no state directory");
    }
    assert!(!world.path("nothing").exists());
    assert!(std::fs::read_dir(world.path("buildkits")).expect("there").next().is_none());
}
