//! Two processes on one state directory: a build waits for the other and says so; whoever gives up says what to do.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::daemon::Served;
use crate::harness::Invocation;
use crate::kitchen::{Kitchen, ran};
use crate::needs;
use crate::who::Who;

fn daemonless(kitchen: &Kitchen, args: &str) -> Invocation {
    let line = format!(
        "build --frontend dockerfile.v0 --local context=context --local dockerfile=context --progress=plain {args}"
    );
    let build = kitchen.who.daemonless(&kitchen.world).args(line.split_whitespace());
    build.env("BUILDKITD_FLAGS", "--root=state --config=buildkitd.toml")
}

#[test]
fn who_comes_second_waits_and_is_told_for_whom() {
    const HINT: &str = "try again when it has ended, or take another state directory (`--root`)";
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile("FROM busybox\nRUN echo started; sleep 1000\n");
    let first = kitchen.build("").starts();
    first.waits_for("started");
    let state = fs::canonicalize(kitchen.world.path("state/hullworks")).unwrap();
    let held = format!("state directory `{}` is in use by process {} (`hullworks`)", state.display(), first.id());
    let waiting = format!("waiting: {held}\n");
    kitchen.dockerfile("FROM busybox\nRUN true\n");
    let builds = [kitchen.build("").starts(), daemonless(&kitchen, "").starts(), kitchen.build("").starts()];
    let tidying = [kitchen.hullworks("du").starts(), kitchen.hullworks("prune").starts()];
    let impatient = daemonless(&kitchen, "").env("BUILDCTL_CONNECT_RETRIES_MAX", "0").starts();
    for other in tidying.into_iter().chain([impatient]) {
        let ended = other.ends();
        assert!(ended.code == Some(1), "{ended:?}");
        ended.says(&format!("error: cannot open the state directory: {held}\n")).hints(HINT);
    }
    builds.iter().for_each(|build| build.waits_until(&waiting, |text| text.contains(&waiting)));
    // Programs that read JSON are told so too.
    let program = kitchen.build("--progress=rawjson").starts();
    program.waits_until(&held, |text| text.contains(waiting.trim_end()));
    program.signal("INT");
    let ended = program.ends();
    let (json, error): (Vec<&str>, Vec<&str>) = ended.stderr.lines().partition(|line| line.starts_with('{'));
    assert_eq!(error, ["error: ended by SIGINT"], "{ended:?}");
    assert!(json.iter().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{ended:?}");
    let [one, other, stopped] = builds;
    stopped.signal("INT");
    let ended = stopped.ends();
    assert!(ended.code == Some(1), "{ended:?}");
    ended.says("error: ended by SIGINT\n");
    first.signal("INT");
    let ended = first.ends();
    assert!(ended.code == Some(1), "{ended:?}");
    let (one, other) = (one.ends(), other.ends());
    assert!(one.code == Some(0) && other.code == Some(0), "{one:?} {other:?}");
    // It is the same step: who comes later finds it.
    assert_eq!(ran(&one).len() + ran(&other).len(), 1, "{one:?} {other:?}");
}

#[test]
fn builds_that_overlap_for_a_moment_both_succeed() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        kitchen.dockerfile("FROM busybox\nARG N\nRUN echo $N\n");
        let build = |n: usize| daemonless(&kitchen, &format!("--opt=build-arg:N={n}")).starts();
        let builds: Vec<_> = (0..3).map(build).collect();
        for (n, build) in builds.into_iter().enumerate() {
            let ended = build.ends();
            assert!(ended.code == Some(0) && ran(&ended) == [format!("RUN echo {n}")], "{who:?}: {ended:?}");
        }
    }
}

#[test]
fn who_may_not_have_a_state_directory_is_told_to_take_another() {
    needs!(root);
    let Some(kitchen) = Kitchen::new(Who::Single) else { return };
    kitchen.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    // Root's, who lets others look.
    let lock = kitchen.world.write("state/hullworks/lock", "");
    fs::set_permissions(lock, fs::Permissions::from_mode(0o600)).unwrap();
    for command in [kitchen.build(""), kitchen.hullworks("du"), kitchen.hullworks("prune"), daemonless(&kitchen, "")] {
        let ended = command.fails();
        ended.says("error: cannot open the state directory: ").says("/state/hullworks/");
        ended.hints("it belongs to somebody else: take another state directory (`--root`)");
    }
    kitchen.build_on("own", "").succeeds();
}

#[test]
fn who_begins_with_an_empty_database_is_told() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile("FROM busybox\nRUN echo > /x\n");
    let said = "metadata.db` is damaged (";
    for command in ["build", "du", "prune"] {
        assert!(!kitchen.build("").succeeds().stderr.contains(said));
        let path = kitchen.world.path("state/hullworks/metadata.db");
        let _ = fs::remove_file(path.with_extension("db-wal"));
        fs::write(&path, vec![7; 8192]).unwrap();
        let ended = if command == "build" { kitchen.build("") } else { kitchen.hullworks(command) };
        let ended = ended.succeeds();
        assert_eq!(ended.stderr.matches(said).count(), 1, "{command}: {ended:?}");
    }
}

/// Snapshots hold what builds and clients made: set-uid programs, nodes of devices, what lies in cache mounts.
#[test]
fn nobody_else_gets_at_what_lies_in_the_state() {
    for who in [Who::Root, Who::Ranges, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        kitchen.dockerfile("FROM busybox\nRUN echo > /x && chmod 4755 /x\n");
        let state = kitchen.world.path("state/hullworks");
        let mode = || fs::metadata(&state).unwrap().permissions().mode() & 0o7777;
        kitchen.build("").succeeds();
        assert_eq!(mode(), 0o700, "{who:?}");
        // One that an older version made is closed, too.
        fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
        let again = kitchen.build("").succeeds();
        assert!(mode() == 0o700 && ran(&again).is_empty(), "{who:?}: {again:?}");
    }
}

#[test]
fn who_finds_a_daemon_there_is_told_to_ask_it() {
    let Some(served) = Served::new(Who::Root, "") else { return };
    let kitchen = &served.kitchen;
    kitchen.dockerfile("FROM busybox\n");
    let on = |command: &str| kitchen.who.hullworks(&kitchen.world).args([command, "--root", "daemon"]);
    for command in ["du", "prune"] {
        on(command).fails().says("(`buildkitd`)").hints(
            "the daemon keeps it: use `buildctl du`, `buildctl prune`, and build with `buildctl build` or `docker buildx`",
        );
    }
    let build = on("build").args(["context"]).fails();
    build.says("which keeps it until it ends: build with `buildctl build` or `docker buildx` instead");
    build.says("(`buildkitd`)").hints(
        "the daemon keeps it: use `buildctl du`, `buildctl prune`, and build with `buildctl build` or `docker buildx`",
    );
    served.ends();
}
