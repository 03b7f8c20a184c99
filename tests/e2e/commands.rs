//! Commands and flags as upstream's clients and scripts have them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;

use serde_json::Value;

use crate::daemon::Served;
use crate::harness::{Invocation, is_root};
use crate::kitchen::Kitchen;
use crate::needs;
use crate::upstream_client::keys;
use crate::who::Who;

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

/// `buildctl` with nothing said of the daemon.
fn client(served: &Served, line: &str) -> Invocation {
    let program = served.kitchen.world.path("buildctl");
    served.kitchen.who.run(&served.kitchen.world, program.to_str().unwrap()).args(line.split_whitespace())
}

fn socket(served: &Served) -> String {
    format!("unix://{}", served.kitchen.world.path("b.sock").display())
}

#[test]
fn docker_buildx_finds_what_the_daemon_can_do() {
    needs!(tool "docker-buildx");
    let Some(served) = Served::new(anybody(), "") else { return };
    let kitchen = &served.kitchen;
    let buildx = |args: &str| {
        let docker = kitchen.world.path("docker");
        kitchen.who.run(&kitchen.world, "docker-buildx").env("DOCKER_CONFIG", docker).args(args.split_whitespace())
    };
    buildx(&format!("create --name b --driver remote {}", socket(&served))).succeeds();
    kitchen.file("a", "one");
    kitchen.dockerfile("FROM scratch\nCOPY a /\n");
    // Several outputs at once; annotations mean nothing to files, and come with an image.
    let line = "--builder b build --progress=plain --annotation x.y=z -o type=local,dest=m1 -o type=tar,dest=m2.tar";
    buildx(&format!("{line} -o type=oci,dest=m3.tar context")).succeeds();
    assert_eq!(fs::read_to_string(kitchen.world.path("m1/a")).unwrap(), "one");
    let listed = |name: &str| kitchen.world.run("tar").args(["tf", name]).succeeds().text();
    assert_eq!(listed("m2.tar"), "a\n");
    let manifests = kitchen.world.run("tar").args(["xOf", "m3.tar", "--wildcards", "blobs/*"]).succeeds().text();
    assert!(manifests.contains("\"x.y\": \"z\""), "{manifests}");
    assert!(buildx("prune --builder b --force --max-used-space 1gb").succeeds().text().contains("Total:"));
    served.ends();
}

#[test]
fn buildctl_ends_and_forgives_as_upstreams() {
    let Some(served) = Served::new(anybody(), "") else { return };
    served.kitchen.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    for line in ["frobnicate", "debug frobnicate", "help frobnicate"] {
        let ended = served.buildctl(line).ends();
        assert_eq!(ended.code, Some(3), "{ended:?}");
        ended.says("error: unrecognized subcommand `frobnicate`");
    }
    // Words that a command has no use for are told of.
    for line in ["du more", "debug workers more", "debug info more", "debug histories more"] {
        served.buildctl(line).succeeds().says("warning: the argument `more` has no effect");
    }
    served.build("one two").succeeds().says("warning: the arguments `one`, `two` have no effect");
    let json = served.build("--progress=rawjson more").succeeds();
    assert!(json.stderr.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{json:?}");
    assert!(keys(&json.stderr).contains(".statuses.name: text"), "{json:?}");
    let daemonless = served.kitchen.who.daemonless(&served.kitchen.world);
    daemonless.args(["debug", "info", "more"]).succeeds().says("warning: the argument `more` has no effect");
    let daemonless = served.kitchen.who.daemonless(&served.kitchen.world);
    assert_eq!(daemonless.args(["frobnicate"]).ends().code, Some(3));
    // Not where things go that were not meant, or where a second one would not be looked at.
    for line in ["prune more", "prune-histories more", "debug dump-metadata more"] {
        let ended = served.buildctl(line).ends();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        ended.says("error: unexpected argument `more` found");
    }
    for line in ["debug logs one more", "debug get one more", "debug ctl one more"] {
        served.buildctl(line).fails().says("error: unexpected argument `more` found");
    }
    // Files go into directories that are there; that shows before the build.
    let ended = served.build("--output type=oci,dest=nowhere/x.tar").fails();
    ended.says("there is no directory `nowhere`").hints("make it first: only for type=local it is made");
    assert!(!ended.stderr.contains("load build definition") && !served.kitchen.world.path("nowhere").exists());
    served.build("--output type=local,dest=nowhere/x").succeeds();
    served.ends();
}

#[test]
fn a_supervisor_hears_of_the_daemons_life() {
    let Some(kitchen) = Kitchen::new(anybody()) else { return };
    for name in ["buildkitd", "buildctl"] {
        std::os::unix::fs::symlink("hullworks", kitchen.world.path(name)).unwrap();
    }
    let path = kitchen.world.path("notify.sock");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    // Whoever the daemon is.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    supervisor.set_read_timeout(Some(std::time::Duration::from_secs(120))).unwrap();
    let hears = || {
        let mut bytes = [0; 64];
        let length = supervisor.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let daemon = Served::daemon(&kitchen, "").env("NOTIFY_SOCKET", &path).starts();
    assert_eq!(hears(), "READY=1");
    // From then on builds are taken.
    let served = Served { kitchen, daemon };
    served.kitchen.file("go", "");
    served.kitchen.dockerfile("FROM busybox\nRUN --mount=target=/c echo begun; sleep 2\n");
    let build = served.build("").starts();
    build.waits_for("begun");
    served.daemon.signal("TERM");
    assert_eq!(hears(), "STOPPING=1");
    let build = build.ends();
    assert_eq!(build.code, Some(0), "{build:?}");
    let daemon = served.daemon.ends_soon();
    assert_eq!(daemon.code, Some(0), "{daemon:?}");
}

#[test]
fn flags_are_taken_where_upstream_takes_them() {
    // Said twice, the last counts; what means nothing is named.
    let flags = "--oci-max-parallelism 1 --oci-max-parallelism 2 --containerd-worker=true --containerd-worker-addr=/x";
    let Some(served) = Served::new(anybody(), flags) else { return };
    let said = "--containerd-worker, --containerd-worker-addr are not used: containerd is not offered";
    served.daemon.waits_until("what is not used", |text| text.contains(said));
    let address = socket(&served);
    let workers = client(&served, &format!("debug workers --addr {address} --wait --timeout=9")).succeeds().text();
    assert!(workers.starts_with("ID\t"), "{workers}");
    let asks = |line: &str| client(&served, line).env("BUILDKIT_HOST", &address).succeeds().text();
    assert_eq!(asks("debug workers"), workers);
    assert!(asks("debug workers -v").contains("Keep duration:\t"));
    assert_eq!(asks("debug workers --format {{.|len}}"), "1\n");
    let worker: Value = serde_json::from_str(&asks("debug workers --format json")).unwrap();
    let id = worker[0]["id"].as_str().unwrap();
    assert_eq!(asks("debug workers --format {{range$}}{{.ID}}{{end}}"), format!("{id}\n"));
    let version = asks("debug info --format json --format {{.BuildkitVersion.Version}}");
    assert!(version.starts_with('v') && version.lines().count() == 1, "{version}");
    client(&served, "debug info --format {{.Nothing}}")
        .env("BUILDKIT_HOST", &address)
        .fails()
        .says("there is no field `Nothing`, but buildkitVersion");
    // With --debug there is where an error was made, and not what goes over the connection.
    served.kitchen.dockerfile("FROM busybox\nRUN exit 3\n");
    let failed = served.build("--debug").fails();
    failed.says("exit code: 3").says("buildkitd\nhullworks\n\t");
    assert!(!failed.stderr.contains("h2::"), "{failed:?}");
    served.ends();
}

#[test]
fn a_program_that_does_not_get_through_says_why() {
    let Some(kitchen) = Kitchen::new(anybody()) else { return };
    let world = &kitchen.world;
    std::os::unix::fs::symlink("hullworks", world.path("buildctl")).unwrap();
    for name in ["ssh", "docker", "kubectl"] {
        let path = world.write(&format!("bin/{name}"), "#!/bin/sh\necho no such host >&2\nexit 255\n");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let asks = |address: &str| {
        let path = format!("{}:/usr/bin:/bin", world.path("bin").display());
        let client = kitchen.who.run(world, world.path("buildctl").to_str().unwrap()).env("PATH", path);
        client.args(["--addr", address, "debug", "info"]).fails()
    };
    let why = "ended with exit status: 255: no such host";
    for (address, line) in [
        ("ssh://nohost/x.sock", "ssh -- nohost buildctl --addr unix:///x.sock dial-stdio"),
        ("docker-container://c", "docker exec -i c buildctl dial-stdio"),
        ("kube-pod://p", "kubectl exec -i p -- buildctl dial-stdio"),
    ] {
        asks(address).says(&format!("no buildkitd answers at `{address}`: `{line}` {why}"));
    }
    asks("nerdctl-container://c").says("cannot start `nerdctl`");
}

#[test]
fn a_directory_may_be_replaced_by_a_result() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let world = &served.kitchen.world;
    served.kitchen.file("d/a", "one");
    served.kitchen.dockerfile("FROM scratch\nCOPY d /d\n");
    let prepare = |dir: &str| {
        for name in ["old/x", "d/y", "z"] {
            world.write(&format!("{dir}/{name}"), "");
        }
        served.kitchen.who.own(world, dir);
    };
    let left = |dir: &str| {
        let found = world.run("find").args([dir, "-mindepth", "1"]).succeeds().text();
        let mut names: Vec<_> = found.lines().map(|name| name[dir.len() + 1..].to_owned()).collect();
        names.sort();
        names.join(" ")
    };
    prepare("out");
    served.build("--output type=local,dest=out").succeeds();
    assert_eq!(left("out"), "d d/a d/y old old/x z");
    served.build("--output type=local,dest=out,mode=delete").succeeds();
    assert_eq!(left("out"), "d d/a");
    prepare("alone");
    served.kitchen.build("-o type=local,dest=alone,mode=delete").succeeds();
    assert_eq!(left("alone"), "d d/a");
    served.ends();
}

#[test]
fn the_daemonless_client_knows_its_worker() {
    let Some(kitchen) = Kitchen::new(anybody()) else { return };
    let runs = |line: &str| kitchen.who.daemonless(&kitchen.world).args(line.split_whitespace());
    let root = |line: &str| runs(line).env("BUILDKITD_FLAGS", "--config buildkitd.toml --root state");
    let verbose = root("debug workers -v").succeeds().text();
    assert!(verbose.contains("org.mobyproject.buildkit.worker.executor:"), "{verbose}");
    assert!(root("debug info").succeeds().text().starts_with("BuildKit: "));
    root("prune-histories").fails().says("builds without a daemon leave none");
}

#[test]
fn a_build_belongs_to_the_trace_of_who_calls() {
    let Some(served) = Served::new(anybody(), "") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN true\n");
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let caller = format!("00-{trace}-b7ad6b7169203331-01");
    served.build("--ref-file ref").env("TRACEPARENT", caller).succeeds();
    let reference = fs::read_to_string(served.kitchen.world.path("ref")).unwrap();
    crate::harness::eventually(|| served.buildctl("debug histories").succeeds().text().contains("COMPLETE"));
    let spans = served.buildctl(&format!("debug logs --trace {reference}")).succeeds().text();
    assert!(spans.contains(trace), "{spans}");
    served.ends();
}
