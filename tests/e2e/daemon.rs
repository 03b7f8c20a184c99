//! `buildkitd` behind its socket: our own client, and docker's.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;

use crate::harness::{Invocation, Running, is_root};
use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

/// A daemon, and a registry with busybox.
pub struct Served {
    pub kitchen: Kitchen,
    pub daemon: Running,
}

impl Served {
    pub fn new(who: Who, flags: &str) -> Option<Served> {
        let kitchen = Kitchen::new(who)?;
        for name in ["buildkitd", "buildctl"] {
            symlink("hullworks", kitchen.world.path(name)).unwrap();
        }
        Some(Served::again(kitchen, flags))
    }

    /// A daemon where there was one.
    pub fn again(kitchen: Kitchen, flags: &str) -> Served {
        let daemon = Served::daemon(&kitchen, flags).starts();
        daemon.waits_until("that it listens", |said| said.contains("listening"));
        Served { kitchen, daemon }
    }

    pub fn daemon(kitchen: &Kitchen, flags: &str) -> Invocation {
        let program = kitchen.world.path("buildkitd");
        let socket = format!("unix://{}", kitchen.world.path("b.sock").display());
        let line = ["--config", "buildkitd.toml", "--root", "daemon", "--addr", &socket];
        kitchen.who.run(&kitchen.world, program.to_str().unwrap()).args(line).args(flags.split_whitespace())
    }

    /// `buildctl`, as whoever the daemon is.
    pub fn buildctl(&self, args: &str) -> Invocation {
        let program = self.kitchen.world.path("buildctl");
        let socket = format!("unix://{}", self.kitchen.world.path("b.sock").display());
        let client = self.kitchen.who.run(&self.kitchen.world, program.to_str().unwrap());
        client.args(["--addr", &socket]).args(args.split_whitespace())
    }

    pub fn build(&self, args: &str) -> Invocation {
        let line = "build --progress=plain --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
        self.buildctl(&format!("{line} {args}"))
    }

    /// Ends it as a pod is ended. Nothing is left.
    pub fn ends(self) -> Kitchen {
        self.daemon.signal("TERM");
        let ended = self.daemon.ends_soon();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(!self.kitchen.world.path("b.sock").exists(), "the socket is still there");
        let dir = self.kitchen.world.path("daemon");
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(dir.to_str().unwrap()), "{mounts}");
        self.kitchen
    }
}

fn buildctl_builds(who: Who) {
    let Some(served) = Served::new(who, "") else { return };
    let kitchen = &served.kitchen;
    kitchen.file("a", "one");
    kitchen.file("d/b", "two");
    kitchen.file(".dockerignore", "c*\n");
    kitchen.file("c", "not this");
    kitchen.file("secret", "hush");
    kitchen.dockerfile(
        "FROM busybox\nCOPY . /x/\nRUN --mount=type=secret,id=s test \"$(cat /run/secrets/s)\" = hush && ls /x > /ls\n",
    );
    let line = "--secret id=s,src=context/secret --output type=local,dest=out";
    served.build(line).succeeds().says("transferring context:");
    let read = |name: &str| fs::read_to_string(kitchen.world.path(name)).unwrap();
    assert_eq!(
        (read("out/x/a"), read("out/x/d/b"), read("out/ls")),
        ("one".into(), "two".into(), "Dockerfile\na\nd\nsecret\n".into())
    );
    // Nothing changed: all is cached; then one file did.
    let again = served.build(line).succeeds();
    assert_eq!(again.stderr.matches(" CACHED").count(), 3, "{again:?}");
    kitchen.file("d/b", "three");
    fs::remove_file(kitchen.world.path("context/a")).unwrap();
    served.build(line).succeeds();
    assert_eq!((read("out/x/d/b"), read("out/ls")), ("three".into(), "Dockerfile\nd\nsecret\n".into()));

    served.build("--secret id=s,src=context/secret --output type=oci,dest=x.tar").succeeds();
    let listed = kitchen.world.run("tar").args(["tf", "x.tar"]).succeeds();
    assert!(listed.stdout.starts_with(b"blobs/"), "{listed:?}");

    // The daemon's error has the lines of the client's file.
    kitchen.dockerfile("FROM busybox\nRUN echo oops && exit 7\n");
    let failed = served.build("").fails();
    failed.says("   2 | >>> RUN echo oops && exit 7").says("did not complete successfully: exit code: 7");
    kitchen.dockerfile("FROM busybox\nCOPY nothing /\n");
    served.build("").fails().says("\"/nothing\": not found");

    assert!(served.buildctl("du").succeeds().text().contains("Total:"));
    let workers = served.buildctl("debug workers --verbose").succeeds().text();
    assert!(workers.contains("org.mobyproject.buildkit.worker.executor:"), "{workers}");
    assert!(served.buildctl("debug info").succeeds().text().contains("BuildKit: "));
    served.buildctl("prune --all").succeeds();
    assert!(served.buildctl("du").succeeds().text().contains("Total:\t\t0B"));
    served.ends();
}

#[test]
fn privileged_buildctl_builds_by_a_daemon_of_root() {
    buildctl_builds(Who::Root);
}

#[test]
fn buildctl_builds_by_a_daemon_of_a_user_with_one_id() {
    buildctl_builds(Who::Single);
}

#[test]
fn a_client_that_vanishes_takes_its_build_with_it() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN echo begun && sleep 1000\n");
    let client = served.build("").starts();
    client.waits_for("begun");
    client.signal("KILL");
    drop(client.ends());
    // A second client's build is not harmed, and the daemon ends without waiting for the first one's.
    served.kitchen.dockerfile("FROM busybox\nRUN echo fine\n");
    served.build("").succeeds();
    served.ends();
}

#[test]
fn a_daemon_that_is_told_to_end_lets_builds_finish_and_takes_no_more() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    served.kitchen.file("go", "");
    served.kitchen.dockerfile("FROM busybox\nRUN --mount=target=/c echo begun; sleep 2; echo ended > /e\n");
    let client = served.build("--output type=local,dest=out").starts();
    client.waits_for("begun");
    served.daemon.signal("TERM");
    served.daemon.waits_until("no new builds", |said| said.contains("no new builds"));
    served.build("").fails().says("the daemon is about to end");
    let ended = client.ends();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read_to_string(served.kitchen.world.path("out/e")).unwrap(), "ended\n");
    let daemon = served.daemon.ends_soon();
    assert_eq!(daemon.code, Some(0), "{daemon:?}");
}

#[test]
fn the_log_has_a_line_for_each_builds_begin_and_end() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    served.kitchen.dockerfile("FROM busybox\nARG WORD\nRUN test ${#WORD} = 4\n");
    let line = "--ref-file ref --opt build-arg:WORD=";
    served.build(&format!("{line}hush")).succeeds();
    let reference = || fs::read_to_string(served.kitchen.world.path("ref")).unwrap();
    let logged = |text: &str, reference: &str| {
        served
            .daemon
            .waits_until(text, |said| said.lines().any(|line| line.contains(text) && line.contains(reference)));
    };
    logged("a build began", &reference());
    logged("a build succeeded", &reference());
    served.build(&format!("{line}hushhush")).fails();
    logged("a build failed", &reference());
    logged("WARN", &reference());
    logged("exit code: 1", &reference());
    // What errors quote of what was asked: the value of an argument, the text of a step.
    served.kitchen.dockerfile("FROM busybox\nARG WORD\nCOPY $WORD /x\n");
    served.build(&format!("{line}hush")).fails().says("\"/hush\": not found");
    logged("a build failed", &reference());
    logged("/xxxxx", &reference());
    served.kitchen.dockerfile("FROM busybox\nCPOY a b\n");
    served.build("--ref-file ref").fails();
    logged("unknown instruction", &reference());
    served.kitchen.dockerfile("FROM busybox\nRUN test hush = loud\n");
    served.build("--ref-file ref").fails().says("test hush = loud");
    logged("kind=User step=sha256:", &reference());
    served.kitchen.dockerfile("FROM busybox\nRUN echo begun; sleep 1000\n");
    let client = served.build("--ref-file ref").starts();
    client.waits_for("begun");
    client.signal("INT");
    assert_eq!(client.ends().code, Some(1));
    logged("a build was cancelled", &reference());
    served.daemon.signal("TERM");
    let ended = served.daemon.ends_soon();
    ended.says("told to end by SIGTERM").says(" ended\n");
    assert!(!ended.stderr.contains("hush"), "{ended:?}");
}

#[test]
fn a_directory_that_was_not_shared_is_named() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    let ended = served.buildctl("build --frontend=dockerfile.v0").fails();
    ended.says("no access allowed to dir \"dockerfile\"").hints("share it with `--local dockerfile=<directory>`");
    served.ends();
}

#[test]
fn two_daemons_cannot_have_one_debug_address() {
    let address = format!("127.0.0.1:{}", testkit::free_port());
    let flags = format!("--debugaddr {address}");
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, &flags) else { return };
    let other = served.kitchen.world.path("other.sock");
    let program = served.kitchen.world.path("buildkitd");
    let line = ["--root", "other", "--addr", &format!("unix://{}", other.display()), "--debugaddr", &address];
    let refused = served.kitchen.who.run(&served.kitchen.world, program.to_str().unwrap()).args(line).fails();
    refused.says("error: the debug address (`--debugaddr`): cannot listen on ").says("in use (os error");
    served.ends();
}

/// As idle ends of `dial-stdio` are.
#[test]
fn a_daemon_that_ends_does_not_wait_for_who_says_nothing() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    let silent = UnixStream::connect(served.kitchen.world.path("b.sock")).unwrap();
    // It is accepted by the time that the next one is answered.
    served.buildctl("debug workers").succeeds();
    served.daemon.signal("TERM");
    let ended = served.daemon.ends_soon();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("do not hang up"), "{ended:?}");
    drop(silent);
}

#[test]
fn docker_buildx_builds_by_a_daemon() {
    needs!(tool "docker-buildx");
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    let kitchen = &served.kitchen;
    let socket = format!("unix://{}", kitchen.world.path("b.sock").display());
    let buildx = |args: &str| {
        let docker = kitchen.world.path("docker");
        kitchen.who.run(&kitchen.world, "docker-buildx").env("DOCKER_CONFIG", docker).args(args.split_whitespace())
    };
    buildx(&format!("create --name b --driver remote {socket}")).succeeds();
    assert!(buildx("inspect b --bootstrap").succeeds().text().contains("Platforms:"));
    kitchen.file("a", "one");
    kitchen.dockerfile(
        "FROM busybox AS base\nCOPY a /\nARG WORD\nRUN echo $WORD > /word\nFROM base\nRUN cat /a /word > /all\n",
    );
    let host = kitchen.registry.host();
    let line = format!("--builder b build --progress=plain --build-arg WORD=two -t {host}/x/y:1 --push");
    buildx(&format!("{line} --metadata-file meta.json context")).succeeds().says("pushing manifest for");
    let meta = fs::read_to_string(kitchen.world.path("meta.json")).unwrap();
    assert!(meta.contains("containerimage.digest"), "{meta}");
    let line = "--builder b build --progress=plain --build-arg WORD=two -o type=local,dest=out context";
    buildx(line).succeeds().says("CACHED");
    assert_eq!(fs::read_to_string(kitchen.world.path("out/all")).unwrap(), "onetwo\n");
    assert!(buildx("du --builder b").succeeds().text().contains("Total:"));
    kitchen.dockerfile("FROM busybox\nRUN exit 5\n");
    let failed = buildx("--builder b build --progress=plain context").fails();
    failed.says("   2 | >>> RUN exit 5").says("exit code: 5");
    // There is no engine of docker that could take it, and that is said once.
    kitchen.dockerfile("FROM busybox\n");
    let refused = buildx("--builder b build --load context").env("DOCKER_HOST", "unix:///nowhere").fails();
    assert_eq!(refused.stderr.lines().last().unwrap().matches("cannot send the result").count(), 1, "{refused:?}");
    buildx("prune --builder b --force --all").succeeds();
    served.ends();
}
