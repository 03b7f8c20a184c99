//! What of a client's files goes over the wire, and what sessions a build reads from: by clients that write down what they
//! send.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base::Digest;
use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use proto::pb;
use session::local::LocalSession;
use testkit::image::noise;

use crate::buildx::{Docker, NEWEST};
use crate::daemon::Served;
use crate::frontends::buildx;
use crate::guest::{Guest, Most};
use crate::harness::{Ended, eventually, is_root};
use crate::who::Who;
use crate::wire::Wire;

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn guest(served: &Served) -> Guest {
    Guest::new(&served.kitchen.world.path("b.sock"))
}

fn op(op: Option<pb::op::Op>, inputs: &[Digest]) -> Vec<u8> {
    let inputs = inputs.iter().map(|digest| pb::Input { digest: digest.to_string(), index: 0 }).collect();
    pb::Op { inputs, op, ..pb::Op::default() }.encode_to_vec()
}

fn local(name: &str, attrs: &[(&str, &str)]) -> Vec<u8> {
    let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    op(Some(pb::op::Op::Source(pb::SourceOp { identifier: format!("local://{name}"), attrs: attrs.collect() })), &[])
}

/// All of these trees in one.
fn merged(sources: Vec<Vec<u8>>) -> pb::Definition {
    let inputs: Vec<Digest> = sources.iter().map(Digest::of).collect();
    let mut def = sources;
    let last = match inputs.as_slice() {
        [one] => *one,
        several => {
            let inputs = (0..several.len() as i64).map(|input| pb::MergeInput { input }).collect();
            let merge = op(Some(pb::op::Op::Merge(pb::MergeOp { inputs })), several);
            def.push(merge.clone());
            Digest::of(&merge)
        }
    };
    def.push(op(None, &[last]));
    pb::Definition { def, ..pb::Definition::default() }
}

/// Builds what is made of local directories, into a directory of the client's that must be empty.
fn exports(guest: &Guest, session: &str, sources: Vec<Vec<u8>>) -> Result<wire::SolveResponse, tonic::Status> {
    guest.solves(wire::SolveRequest {
        session: session.to_owned(),
        definition: Some(merged(sources)),
        exporters: vec![wire::Exporter { r#type: "local".to_owned(), ..wire::Exporter::default() }],
        ..wire::SolveRequest::default()
    })
}

fn session(id: &str, dir: &Path, out: &Path) -> LocalSession {
    let session = LocalSession::new(id).with_dir("context", dir);
    session.with_output(session::Output::Directory(out.to_owned()))
}

#[test]
fn files_are_compared_as_the_source_says() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let kitchen = &served.kitchen;
    let guest = guest(&served);
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    // Same length, same time, another content: only who looks at the bytes sees it.
    let write = |text: &str| {
        kitchen.file("file", text);
        let file = fs::File::options().write(true).open(kitchen.world.path("context/file")).unwrap();
        file.set_modified(at).unwrap();
    };
    for (differ, sees) in [("metadata", false), ("", false), ("none", true)] {
        for (n, text) in ["text-one", "text-two"].into_iter().enumerate() {
            write(text);
            let out = kitchen.world.path(format!("out-{differ}-{n}"));
            let id = session::random_id();
            let joined = guest.joins(session(&id, &kitchen.world.path("context"), &out), Most::ALL);
            let hint = format!("of-{differ}");
            let attrs = [("local.differ", differ), ("local.sharedkeyhint", hint.as_str())];
            exports(&guest, &id, vec![local("context", &attrs)]).unwrap();
            let sent = contains(&joined.take_sent(), text);
            let seen = fs::read_to_string(out.join("file")).unwrap();
            let expected = if n == 0 || sees { (true, text) } else { (false, "text-one") };
            assert_eq!((sent, seen.as_str()), expected, "`{differ}`, {n}");
        }
    }
    let id = session::random_id();
    let joined = guest.joins(session(&id, &kitchen.world.path("context"), &kitchen.world.path("x")), Most::ALL);
    let refused = exports(&guest, &id, vec![local("context", &[("local.differ", "guess")])]).unwrap_err();
    assert!(refused.message().contains("`guess` is not a way to compare files"), "{refused:?}");
    drop((joined, guest));
    served.ends();
}

#[test]
fn only_what_is_asked_for_is_sent() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let kitchen = &served.kitchen;
    let guest = guest(&served);
    for name in ["a/b/target", "a/b/other", "c/kept.txt", "c/left.log", "d"] {
        kitchen.file(name, format!("content of {name}"));
    }
    let context = kitchen.world.path("context");
    std::os::unix::fs::symlink("a/b/target", context.join("link")).unwrap();
    std::os::unix::fs::symlink("link", context.join("chain")).unwrap();
    let all = ["a/b/target", "a/b/other", "c/kept.txt", "c/left.log", "d"];
    /// Attributes of the source.
    type Attrs = &'static [(&'static str, &'static str)];
    let cases: [(&str, Attrs, &[&str]); 4] = [
        ("follows", &[("local.followpaths", r#"["chain"]"#)], &["a/b/target"]),
        ("includes", &[("local.includepattern", r#"["c", "d"]"#)], &["c/kept.txt", "c/left.log", "d"]),
        (
            "excludes",
            &[("local.excludepatterns", r#"["**/*.log", "a", "!a/b/other"]"#)],
            &["a/b/other", "c/kept.txt", "d"],
        ),
        (
            "both",
            &[
                ("local.includepattern", r#"["c"]"#),
                ("local.followpaths", r#"["link"]"#),
                ("local.excludepatterns", r#"["c/left*"]"#),
            ],
            &["a/b/target", "c/kept.txt"],
        ),
    ];
    for (what, attrs, expected) in cases {
        let out = kitchen.world.path(what);
        let id = session::random_id();
        let joined = guest.joins(session(&id, &context, &out), Most::ALL);
        let hinted: Vec<_> = attrs.iter().copied().chain([("local.sharedkeyhint", what)]).collect();
        exports(&guest, &id, vec![local("context", &hinted)]).unwrap();
        let sent = joined.take_sent();
        for name in all {
            let wanted = expected.contains(&name);
            assert_eq!(contains(&sent, &format!("content of {name}")), wanted, "{what}: {name} was sent");
            assert_eq!(out.join(name).exists(), wanted, "{what}: {name} is there");
        }
        // The links that lead there, too, and no others.
        let links = ["chain", "link"].map(|link| out.join(link).is_symlink());
        let expected = match what {
            "follows" => [true, true],
            "both" => [false, true],
            "excludes" => [true, true],
            _ => [false, false],
        };
        assert_eq!(links, expected, "{what}");
    }
    drop(guest);
    served.ends();
}

/// Killed while it takes files in: the next one goes on, and nothing is left of the half.
#[test]
fn a_daemon_that_is_killed_while_it_takes_files_begins_again() {
    for who in [Who::Root, Who::Single] {
        let Some(served) = Served::new(who, "") else { continue };
        served.kitchen.file("large", noise(3, 24 << 20));
        served.kitchen.file("small", "small");
        served.kitchen.dockerfile("FROM scratch\nCOPY . /\n");
        let context = served.kitchen.world.path("context");
        let client = guest(&served);
        let session = LocalSession::new("half").with_dir("context", &context).with_dir("dockerfile", &context);
        let mut joined = client.joins(session, Most { read: usize::MAX, written: 8 << 20 });
        let request = wire::SolveRequest {
            r#ref: "half".to_owned(),
            session: joined.id.clone(),
            frontend: "dockerfile.v0".to_owned(),
            ..wire::SolveRequest::default()
        };
        let mut control = client.control();
        client.waits(async {
            tokio::select! {
                () = joined.reached() => {}
                solved = control.solve(request) => panic!("{solved:?}"),
            }
        });
        let Served { kitchen, daemon } = served;
        daemon.kill_after(Duration::ZERO).expect("it served");
        drop((joined, client));
        let dir = kitchen.world.path("daemon");
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(dir.to_str().unwrap()), "{mounts}");

        let served = Served::again(kitchen, "");
        served.build("--output type=local,dest=out").succeeds();
        let diff = served.kitchen.world.run("diff").args(["--recursive", "context", "out"]).ends();
        assert_eq!(diff.code, Some(0), "{who:?}: {diff:?}");
        let used = || served.buildctl("du --filter inuse --format json").succeeds().text();
        eventually(|| used() == "[]\n");
        served.buildctl("prune --all").succeeds();
        assert!(served.buildctl("du").succeeds().text().contains("Total:\t\t0B"));
        served.ends();
    }
}

/// What a context of many files and a large one costs on the wire: at first, when it is the same, when a file changed.
fn costs(served: &Served, wire: &Wire, builds: impl Fn() -> Ended) {
    const FILES: usize = 2000;
    const LARGE: usize = 16 << 20;
    for n in 0..FILES {
        served.kitchen.world.write(&format!("context/d{}/f{n}", n % 20), noise(n as u64, 4096));
    }
    served.kitchen.file("large", noise(1, LARGE));
    served.kitchen.dockerfile("FROM scratch\nCOPY . /\n");
    let whole = (LARGE + FILES * 4096) as u64;
    wire.take();
    let sent = || {
        let ended = builds();
        let (sent, received) = wire.take();
        // What comes back are questions and progress.
        assert!(received < whole / 10, "{received} bytes came back: {ended:?}");
        sent
    };
    let first = sent();
    assert!((whole..whole + whole / 5).contains(&first), "{first} of {whole}");
    // A name, a mode and times of each file, and no content.
    let same = sent();
    assert!(same < first / 50, "{same} bytes for a context that is the same, {first} at first");
    let changed = noise(7, 1 << 20);
    served.kitchen.file("d3/f3", &changed);
    fs::remove_file(served.kitchen.world.path("context/d4/f4")).unwrap();
    let once = sent();
    let most = same + same / 2 + changed.len() as u64;
    assert!((changed.len() as u64..most).contains(&once), "{once} bytes for one changed file, {same} for none");
    assert!(sent() < first / 50, "what changed once is sent again");
}

#[test]
fn a_second_sync_moves_only_what_changed() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let wire = Wire::before(&served.kitchen.world.path("b.sock"));
    costs(&served, &wire, || {
        let address = format!("unix://{}", wire.path.display());
        let line = "build --progress=plain --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
        let world = &served.kitchen.world;
        let client = served.kitchen.who.run(world, world.path("buildctl").to_str().unwrap());
        client.args(["--addr", &address]).args(line.split_whitespace()).succeeds()
    });
    let listed = served.buildctl("du --verbose --filter type==source.local").succeeds().text();
    assert_eq!(listed.matches("local source for context").count(), 1, "a context is kept twice: {listed}");
    served.ends();
}

#[test]
fn a_second_sync_of_docker_moves_only_what_changed() {
    let Some(docker) = Docker::new(NEWEST, "") else { return };
    let wire = Wire::before(&docker.path("b.sock"));
    docker.run(&format!("create --name counted --driver remote unix://{}", wire.path.display())).succeeds();
    costs(&docker.served, &wire, || docker.run("--builder counted build --progress=plain context").succeeds());
    docker.served.ends();
}

#[test]
fn a_build_reads_from_the_sessions_that_its_sources_name() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let kitchen = &served.kitchen;
    let guest = guest(&served);
    for name in ["one", "two"] {
        kitchen.world.write(&format!("{name}/{name}"), name);
    }
    kitchen.who.own(&kitchen.world, "two");
    let out = |name: &str| kitchen.world.path(format!("out-{name}"));
    let joins = |dir: &str, to: &str| {
        let id = session::random_id();
        (guest.joins(session(&id, &kitchen.world.path(dir), &out(to)), Most::ALL), id)
    };
    let ((_first, one), (second, two)) = (joins("one", "both"), joins("two", "none"));
    // The build is the first one's, and so is what it makes; each source is somebody's.
    let sources = || vec![local("context", &[("local.session", &one)]), local("context", &[("local.session", &two)])];
    exports(&guest, &one, sources()).unwrap();
    let read = |name: &str| fs::read_to_string(out("both").join(name)).unwrap();
    assert_eq!((read("one"), read("two")), ("one".into(), "two".into()));
    assert!(contains(&second.take_sent(), "two"));
    assert!(!out("none").exists(), "the other client got what was built");
    drop(second);
    drop(guest);
    served.ends();
}

/// Upstream's clients send what they may not read as if it were empty; that would be an image without it.
#[test]
fn a_file_that_the_client_cannot_read_is_no_empty_one() {
    let Some(served) = Served::new(Who::Single, "") else { return };
    let kitchen = &served.kitchen;
    kitchen.dockerfile("FROM scratch\nCOPY . /\n");
    kitchen.file("closed", "words");
    kitchen.file("empty", "");
    let mode =
        |mode| fs::set_permissions(kitchen.world.path("context/closed"), PermissionsExt::from_mode(mode)).unwrap();
    mode(0o000);
    let line = "build --frontend dockerfile.v0 --local context=context --local dockerfile=context --output type=local,dest=out";
    served.buildctl(line).fails().says("cannot read `closed`: Permission denied");
    if crate::harness::tools(&["docker-buildx"]).is_ok() {
        let build = buildx(&served, "build --builder b --progress=plain -o type=local,dest=out context");
        build
            .fails()
            .says("`/closed` came without its bytes: whoever sends it cannot read it, or it is gone")
            .says("hint: make it readable, or see whether a line of `.dockerignore` takes out ");
    }
    mode(0o400);
    served.buildctl(line).succeeds();
    let read = |name: &str| fs::read_to_string(kitchen.world.path("out").join(name)).unwrap();
    assert_eq!((read("closed"), read("empty")), ("words".to_owned(), String::new()));
    served.ends();
}
