//! What a daemon remembers of builds, what it tells probes, and how long it waits when it is told to end.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::daemon::Served;
use crate::harness::{eventually, is_root};
use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

/// What a daemon needs whose environment is the test's.
fn kitchen() -> Option<Kitchen> {
    let kitchen = Kitchen::new(anybody())?;
    for name in ["buildkitd", "buildctl"] {
        symlink("hullworks", kitchen.world.path(name)).unwrap();
    }
    Some(kitchen)
}

/// The first line of an answer and its body.
fn get(socket: &Path, path: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// The references of `debug histories`, with what happened to them.
fn records(served: &Served) -> Vec<(String, String)> {
    let listed = served.buildctl("debug histories").succeeds().text();
    let rows = listed.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.map(|row| (row[0].to_owned(), row[1].to_owned())).collect()
}

fn blobs(served: &Served) -> usize {
    fs::read_dir(served.kitchen.world.path("daemon/hullworks/content/blobs/sha256")).unwrap().count()
}

#[test]
fn a_file_has_the_name_that_the_daemon_knows_a_build_by() {
    let Some(served) = Served::new(anybody(), "") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN echo heard again\n");
    served.build("--ref-file ref").succeeds();
    let named = fs::read_to_string(served.kitchen.world.path("ref")).unwrap();
    assert_eq!(records(&served).iter().map(|(_, name)| name).collect::<Vec<_>>(), [&named]);
    let logs = served.buildctl(&format!("debug logs --progress=plain {named}")).succeeds().text();
    assert!(logs.contains("heard again"), "{logs}");
    served.ends();
}

#[test]
fn records_outlive_a_daemon_as_long_as_the_settings_say() {
    let Some(kitchen) = kitchen() else { return };
    let common = fs::read_to_string(kitchen.world.path("buildkitd.toml")).unwrap();
    let again = |kitchen: Kitchen, settings: &str| {
        kitchen.world.write("buildkitd.toml", format!("{common}[history]\n{settings}"));
        Served::again(kitchen, "")
    };
    kitchen.dockerfile("FROM busybox\n");
    let mut served = again(kitchen, "");
    (0..3).for_each(|_| drop(served.build("").succeeds()));
    let made = records(&served);
    assert_eq!(made.len(), 3);
    // Too many, and not old: they stay. Old, and not too many: the same.
    for settings in ["maxEntries = 1\nmaxAge = \"1h\"\n", "maxEntries = 3\nmaxAge = 1\n"] {
        served = again(served.ends(), settings);
        assert_eq!(records(&served), made, "{settings}");
    }
    // Both: the latest is left. A daemon looks when it starts.
    let mut served = Some(served);
    eventually(|| {
        let kitchen = served.take().unwrap().ends();
        let left = records(served.insert(again(kitchen, "maxEntries = 1\nmaxAge = 1\n")));
        left.len() == 1 && made.contains(&left[0])
    });
    served.unwrap().ends();
}

#[test]
fn docker_buildx_shows_what_was_built() {
    needs!(tool "docker-buildx");
    let Some(served) = Served::new(anybody(), "") else { return };
    let Served { kitchen, daemon } = &served;
    let socket = format!("unix://{}", kitchen.world.path("b.sock").display());
    let buildx = |args: &str| {
        let docker = kitchen.world.path("docker");
        kitchen.who.run(&kitchen.world, "docker-buildx").env("DOCKER_CONFIG", docker).args(args.split_whitespace())
    };
    buildx(&format!("create --name b --driver remote {socket}")).succeeds();
    kitchen.dockerfile("FROM busybox\nRUN echo heard again\n");
    let line = "--builder b build --progress=plain --metadata-file meta.json";
    buildx(&format!("{line} --output type=oci,dest=x.tar context")).succeeds();
    let meta = fs::read_to_string(kitchen.world.path("meta.json")).unwrap();
    let reference = meta.split("b/b0/").nth(1).unwrap().split('"').next().unwrap();
    kitchen.dockerfile("FROM busybox\nRUN exit 5\n");
    buildx("--builder b build --progress=plain context").fails();

    let listed = buildx("--builder b history ls").succeeds().text();
    assert!(listed.contains("Completed") && listed.contains("Error"), "{listed}");
    let logs = buildx(&format!("--builder b history logs {reference} --progress=plain")).succeeds();
    assert!(format!("{}{}", logs.text(), logs.stderr).contains("heard again"), "{logs:?}");
    let good = buildx(&format!("--builder b history inspect {reference}")).succeeds().text();
    assert!(good.contains("application/vnd.oci.image.manifest.v1+json"), "{good}");
    let bad = buildx("--builder b history inspect").succeeds().text();
    assert!(bad.contains("exit code: 5") && bad.contains(">>> RUN exit 5"), "{bad}");
    buildx(&format!("--builder b history export -o x.dockerbuild {reference}")).succeeds();
    assert!(fs::metadata(kitchen.world.path("x.dockerbuild")).unwrap().len() > 500);

    // Another daemon on the same state knows them too; what they keep is no cache.
    daemon.signal("TERM");
    let Served { kitchen, daemon } = served;
    assert_eq!(daemon.ends_soon().code, Some(0));
    let daemon = Served::daemon(&kitchen, "").starts();
    daemon.waits_until("that it listens", |said| said.contains("listening"));
    let served = Served { kitchen, daemon };
    assert_eq!(records(&served).len(), 2);
    served.buildctl("prune --all").succeeds();
    let logs = served.buildctl(&format!("debug logs --progress=plain {reference}")).succeeds().text();
    assert!(logs.contains("heard again"), "{logs}");
    let buildx = |args: &str| {
        let docker = served.kitchen.world.path("docker");
        let client = served.kitchen.who.run(&served.kitchen.world, "docker-buildx");
        client.env("DOCKER_CONFIG", docker).args(args.split_whitespace())
    };
    buildx(&format!("--builder b history rm {reference}")).succeeds();
    assert_eq!(records(&served).len(), 1);
    buildx("--builder b history rm --all").succeeds();
    assert_eq!(records(&served), []);
    // Without records nothing is in use, and nothing is left when the cache is gone.
    served.buildctl("prune --all").succeeds();
    assert!(served.buildctl("du").succeeds().text().contains("Total:\t\t0B"));
    assert_eq!(blobs(&served), 0);
    served.ends();
}

#[test]
fn a_second_client_follows_a_build_and_reads_about_it_later() {
    let Some(served) = Served::new(anybody(), "") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN echo begun; sleep 1000\n");
    let monitor = served.buildctl("debug monitor").starts();
    let line = "build --progress=plain --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
    let waiting = served.buildctl(&format!("{line} --ref-file ref")).starts();
    waiting.waits_for("begun");
    let (happened, reference) = records(&served).pop().unwrap();
    assert_eq!(happened, "STARTED");
    let following = served.buildctl(&format!("debug logs --progress=plain {reference}")).starts();
    following.prints("begun");
    let only = served.buildctl("debug histories --format {{.|json}}").succeeds().text();
    assert!(
        only.contains(&format!("\"Ref\":\"{reference}\"")) && only.contains("\"Frontend\":\"dockerfile.v0\""),
        "{only}"
    );
    waiting.signal("INT");
    assert_ne!(waiting.ends().code, Some(0));
    assert_eq!(following.ends().code, Some(0));
    eventually(|| records(&served).pop().unwrap().0 == "COMPLETE");
    let cancelled = served.buildctl("debug histories --format json").succeeds().text();
    assert!(cancelled.contains("\"error\":{\"code\":1,"), "{cancelled}");

    // Its log as a blob, and again from the daemon.
    let digest = cancelled.split("\"logs\":").nth(1).unwrap().split("\"digest\":\"").nth(1).unwrap();
    let digest = digest.split('"').next().unwrap();
    let log = served.buildctl(&format!("debug get {digest}")).succeeds();
    assert!(log.stdout.windows(5).any(|bytes| bytes == b"begun"));
    let none = format!("sha256:{}", "0".repeat(64));
    served.buildctl(&format!("debug get {none}")).fails().says("not found");
    served.buildctl("debug get sha256:1").fails().says("bad digest");
    served.buildctl("debug logs nobody").fails().says("no such job nobody");

    let pruned = served.buildctl("prune-histories").succeeds().text();
    assert!(pruned.contains(&reference), "{pruned}");
    assert_eq!(records(&served), []);
    served.buildctl(&format!("debug get {digest}")).fails().says("not found");
    monitor.prints("event: DELETED");
    // Who only listens does not keep the daemon.
    served.ends();
    let heard = monitor.ends();
    let told = heard.text();
    for event in ["STARTED", "COMPLETE", "DELETED"] {
        assert!(told.contains(&format!("event: {event} ref:{reference}")), "{told}");
    }
}

#[test]
fn probes_and_prometheus_are_answered() {
    let Some(kitchen) = kitchen() else { return };
    let socket = kitchen.world.path("d.sock");
    let daemon =
        Served::daemon(&kitchen, "").env("BUILDKITD_DEBUGADDR", format!("unix://{}", socket.display())).starts();
    daemon.waits_until("that it listens", |said| said.contains("listening"));
    eventually(|| UnixStream::connect(&socket).is_ok());
    eventually(|| get(&socket, "/readyz").0.contains("200"));
    assert_eq!(get(&socket, "/healthz"), ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned()));
    assert!(get(&socket, "/debug/pprof/").0.contains("404"));
    let served = Served { kitchen, daemon };
    served.kitchen.dockerfile("FROM busybox\nRUN echo begun; sleep 1000\n");
    let client = served.build("").starts();
    client.waits_for("begun");
    assert!(get(&socket, "/metrics").1.contains("\nhullworks_builds_running 1\n"));
    served.buildctl("debug info").succeeds();
    served.buildctl("debug logs nothing").fails();
    for (method, code) in [("Info", "OK"), ("Status", "NOT_FOUND")] {
        let labels = format!("rpc_method=\"moby.buildkit.v1.Control/{method}\",rpc_response_status_code=\"{code}\"");
        let line = format!("\nrpc_server_call_duration_seconds_count{{{labels},rpc_system_name=\"grpc\"}} 1\n");
        let metrics = || get(&socket, "/metrics").1;
        eventually(|| metrics().contains(&line));
    }
    served.daemon.signal("TERM");
    eventually(|| get(&socket, "/readyz").1 == "draining\n");
    assert!(get(&socket, "/healthz").0.contains("200"));
    // The second signal does not wait for builds. One that comes at once is the first.
    eventually(|| {
        served.daemon.signal("TERM");
        served.daemon.said().matches("told to end by SIGTERM").count() == 2
    });
    let daemon = served.daemon.ends_soon();
    assert_eq!(daemon.code, Some(0), "{daemon:?}");
    assert_ne!(client.ends().code, Some(0));
}

#[test]
fn draining_has_an_end() {
    let Some(kitchen) = kitchen() else { return };
    let bad = Served::daemon(&kitchen, "").env("HULLWORKS_DRAIN_TIMEOUT", "soon").fails();
    bad.says("HULLWORKS_DRAIN_TIMEOUT");
    let daemon = Served::daemon(&kitchen, "").env("HULLWORKS_DRAIN_TIMEOUT", "100ms").starts();
    daemon.waits_until("that it listens", |said| said.contains("listening"));
    let served = Served { kitchen, daemon };
    served.kitchen.dockerfile("FROM busybox\nRUN echo begun; sleep 1000\n");
    let client = served.build("").starts();
    client.waits_for("begun");
    served.daemon.signal("TERM");
    let daemon = served.daemon.ends_soon();
    assert_eq!(daemon.code, Some(0), "{daemon:?}");
    daemon.says("builds did not end in time");
    assert_ne!(client.ends().code, Some(0));
}
