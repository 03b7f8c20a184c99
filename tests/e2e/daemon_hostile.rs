//! Clients that send what no client sends, that read nothing, and that are gone in the middle: the daemon tells them so, and
//! serves the others.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use base::Digest;
use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use proto::pb;
use session::local::LocalSession;
use testkit::image::noise;

use crate::daemon::Served;
use crate::guest::{Guest, Most};
use crate::harness::{eventually, is_root};
use crate::who::Who;

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

/// Whatever one client did: another one's build.
fn still_builds(served: &Served) {
    served.kitchen.dockerfile("FROM busybox\nRUN read u < /proc/sys/kernel/random/uuid\n");
    served.build("--no-cache").succeeds();
}

/// The most memory that the daemon has had.
fn peak(served: &Served) -> u64 {
    memory(served, "VmHWM:")
}

fn memory(served: &Served, which: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", served.daemon.id())).unwrap();
    let bytes = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
    bytes.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// Waits until nothing is left of builds that were broken off: no step, no mount, no half a file, nothing in use.
fn leaves_nothing(served: &Served) {
    let state = served.kitchen.world.path("daemon/hullworks");
    // Where roots of steps, and what lies beside them, are mounted; the places themselves stay.
    let places = ["rootfs", "files", "aside", "aside.file", "scratch", "empty", "cgroup-parents"];
    let lies_in = |dir: &str| -> Vec<String> {
        let Ok(entries) = fs::read_dir(state.join(dir)) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !places.contains(&name.as_str())).collect()
    };
    eventually(|| {
        let left = ["mounts", "steps", "content/ingest", "ingest"].map(lies_in).concat();
        let used = served.buildctl("du --filter inuse --format json").succeeds().text();
        left.is_empty() && used == "[]\n"
    });
}

fn socket(served: &Served) -> std::path::PathBuf {
    served.kitchen.world.path("b.sock")
}

#[test]
fn bytes_that_are_no_calls_end_their_own_connection() {
    let Some(served) = Served::new(anybody(), "") else { return };
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    // A frame of headers that do not unpack; data of no stream; a frame that is longer than any may be.
    let headers: &[u8] = &[0, 0, 4, 1, 5, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];
    let data: &[u8] = &[0, 0, 1, 0, 0, 0, 0, 0, 9, 0];
    let long: &[u8] = &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        [PREFACE, settings, headers].concat(),
        [PREFACE, settings, data].concat(),
        [PREFACE, settings, long].concat(),
        [PREFACE, &[0xff; 4096][..]].concat(),
    ] {
        let mut stream = UnixStream::connect(socket(&served)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(&bytes);
        // It is hung up on; what it is told before is not looked at.
        let mut told = Vec::new();
        match stream.read_to_end(&mut told) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{bytes:?}: {error}"),
        }
    }
    // Who says nothing at all is in nobody's way.
    let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(socket(&served)).unwrap()).collect();
    still_builds(&served);
    drop(silent);

    let guest = Guest::new(&socket(&served));
    let framed = |length: u32, body: &[u8]| [&[0][..], &length.to_be_bytes(), body].concat();
    for path in [
        "/moby.buildkit.v1.Control/Solve",
        "/moby.buildkit.v1.Control/Status",
        "/moby.buildkit.v1.Control/Prune",
        "/moby.buildkit.v1.Control/ListenBuildHistory",
        "/moby.buildkit.v1.Control/UpdateBuildHistory",
        "/moby.buildkit.v1.frontend.LLBBridge/Solve",
        "/moby.buildkit.v1.frontend.LLBBridge/ReadFile",
        "/containerd.services.content.v1.Content/Read",
        "/no.such.Service/Call",
    ] {
        for body in [
            // No message; one that is no message; one of four gigabytes; half a one; one that is packed in no known way.
            Vec::new(),
            framed(4, &[0xff; 4]),
            framed(u32::MAX, &[0; 64]),
            framed(64, &[0; 8]),
            [&[1][..], &4_u32.to_be_bytes(), &[0; 4]].concat(),
            vec![0xff; 3],
        ] {
            let (code, said) = guest.calls(path, body.clone());
            assert!(!matches!(code.as_str(), "0" | "" | "connection"), "{path} {body:?}: {code} {said}");
        }
    }
    still_builds(&served);
    served.ends();
}

fn op(op: Option<pb::op::Op>, inputs: &[(Digest, i64)]) -> Vec<u8> {
    let inputs = inputs.iter().map(|(digest, index)| pb::Input { digest: digest.to_string(), index: *index }).collect();
    pb::Op { inputs, op, ..pb::Op::default() }.encode_to_vec()
}

fn source(identifier: &str) -> Option<pb::op::Op> {
    Some(pb::op::Op::Source(pb::SourceOp { identifier: identifier.to_owned(), ..pb::SourceOp::default() }))
}

/// Ops in their order, with the one that names the result.
fn definition(mut def: Vec<Vec<u8>>) -> pb::Definition {
    let last = Digest::of(def.last().unwrap());
    def.push(op(None, &[(last, 0)]));
    pb::Definition { def, ..pb::Definition::default() }
}

#[test]
fn absurd_definitions_are_refused() {
    /// Some of what is allowed is large, too: a definition of 100,000 ops takes about so much.
    const MOST: u64 = 768 << 20;
    let Some(served) = Served::new(anybody(), "") else { return };
    let guest = Guest::new(&socket(&served));
    let nowhere = || op(source("docker-image://bad reference"), &[]);
    let merge_of = |inputs: i64| {
        let inputs = (0..inputs).map(|input| pb::MergeInput { input }).collect();
        Some(pb::op::Op::Merge(pb::MergeOp { inputs }))
    };
    let merge = || merge_of(1);
    let chain = |length: usize| {
        let mut def = vec![nowhere()];
        for _ in 1..length {
            let below = Digest::of(def.last().unwrap());
            def.push(op(merge(), &[(below, 0)]));
        }
        definition(def)
    };
    let exec = |mount: pb::Mount| {
        let meta = pb::Meta { args: vec!["true".to_owned()], cwd: "/".to_owned(), ..pb::Meta::default() };
        let exec = pb::ExecOp { meta: Some(meta), mounts: vec![mount], ..pb::ExecOp::default() };
        definition(vec![nowhere(), op(Some(pb::op::Op::Exec(exec)), &[(Digest::of(nowhere()), 0)])])
    };
    let file = |input: i64| {
        let remove = pb::FileActionRm { path: "/x".to_owned(), ..pb::FileActionRm::default() };
        let action =
            pb::FileAction { input, secondary_input: -1, output: 0, action: Some(pb::file_action::Action::Rm(remove)) };
        definition(vec![op(Some(pb::op::Op::File(pb::FileOp { actions: vec![action] })), &[])])
    };
    // Each merges the one below with itself.
    let doubled = |times: usize| {
        let make = pb::FileActionMkDir { path: "/x".to_owned(), mode: 0o755, timestamp: -1, ..Default::default() };
        let action = pb::file_action::Action::Mkdir(make);
        let action = pb::FileAction { input: -1, secondary_input: -1, output: 0, action: Some(action) };
        let mut def = vec![op(Some(pb::op::Op::File(pb::FileOp { actions: vec![action] })), &[])];
        for _ in 0..times {
            let below = Digest::of(def.last().unwrap());
            def.push(op(merge_of(2), &[(below, 0), (below, 0)]));
        }
        definition(def)
    };
    let mut misplaced = definition(vec![nowhere()]);
    let position = |line| Some(pb::Position { line, character: i32::MIN });
    let range = pb::Range { start: position(i32::MAX), end: position(i32::MIN) };
    let location = |source_index| pb::Location { source_index, ranges: vec![range] };
    let locations = pb::Locations { locations: vec![location(7), location(-1), location(0)] };
    misplaced.source = Some(pb::Source {
        locations: [(Digest::of(nowhere()).to_string(), locations)].into(),
        infos: vec![pb::SourceInfo { data: b"one line".to_vec(), filename: "f".repeat(1 << 20), ..Default::default() }],
    });
    let mut talkative = definition(vec![nowhere()]);
    let name = [("llb.customname".to_owned(), "n".repeat(4 << 20))];
    let metadata = pb::OpMetadata { description: name.into(), ..pb::OpMetadata::default() };
    talkative.metadata.insert(Digest::of(nowhere()).to_string(), metadata);
    let read = |digest, index| op(merge(), &[(digest, index)]);
    for (what, definition, wanted) in [
        ("dangling", definition(vec![read(Digest::of("nothing"), 0)]), "is not part of the definition"),
        ("below zero", definition(vec![nowhere(), read(Digest::of(nowhere()), -1)]), "reads output -1"),
        ("beyond", definition(vec![nowhere(), read(Digest::of(nowhere()), i64::MAX)]), "reads output"),
        ("no output", pb::Definition { def: vec![nowhere()], ..Default::default() }, "does not end in one output"),
        ("no op", definition(vec![vec![0xff; 9]]), "does not decode"),
        ("nothing", definition(vec![Vec::new()]), "does not end in one output"),
        ("a million", definition(vec![vec![0x52, 0]; 1_000_000]), "more than the 100000 allowed"),
        ("deep", chain(20_000), "bad reference"),
        (
            "wide",
            definition(vec![nowhere(), op(merge_of(30_000), &vec![(Digest::of(nowhere()), 0); 30_000])]),
            "bad reference",
        ),
        ("mount of nothing", exec(pb::Mount { input: 9, dest: "/".to_owned(), output: 0, ..Default::default() }), ""),
        ("mount far below", exec(pb::Mount { input: i64::MIN, dest: "/".to_owned(), ..Default::default() }), ""),
        ("mount without a place", exec(pb::Mount { input: 0, output: i64::MAX, ..Default::default() }), ""),
        ("file of nothing", file(9), ""),
        ("file far below", file(i64::MIN), ""),
        ("doubled", doubled(14), "a merge has 2048 layers, more than the 1024"),
        ("misplaced", misplaced, "bad reference"),
        ("talkative", talkative, "bad reference"),
    ] {
        let failed = guest.solves(wire::SolveRequest { definition: Some(definition), ..Default::default() });
        let status = failed.expect_err(what);
        assert!(status.message().contains(wanted), "{what}: {status:?}");
    }
    // One message is no larger than all that may be in it.
    let large = pb::Definition { def: vec![vec![0; 17 << 20]], ..pb::Definition::default() };
    let failed = guest.solves(wire::SolveRequest { definition: Some(large), ..Default::default() });
    assert_eq!(failed.expect_err("a message of 17 MiB").code(), tonic::Code::OutOfRange);
    still_builds(&served);
    let peak = peak(&served);
    assert!(peak < MOST, "{peak} bytes");
    leaves_nothing(&served);
    served.ends();
}

#[test]
fn metadata_without_end_is_refused() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let guest = Guest::new(&socket(&served));
    let opens = |metadata: Vec<(&'static str, String)>| {
        let mut request = tonic::Request::new(tokio_stream::pending::<wire::BytesMessage>());
        for (key, value) in metadata {
            request.metadata_mut().append(key, value.parse().unwrap());
        }
        guest.waits(async { guest.control().session(request).await })
    };
    let id = "x-docker-expose-session-uuid";
    assert!(opens(Vec::new()).is_err(), "a session without an id");
    // Each another one: what repeats is sent as a number.
    let methods = |most: usize| (0..most).map(|n| ("x-docker-expose-session-grpc-method", format!("/{n:02000}")));
    let many = std::iter::once((id, "many".to_owned())).chain(methods(100));
    drop(opens(many.collect()).expect("two hundred kilobytes are taken"));
    let endless = std::iter::once((id, "endless".to_owned())).chain(methods(1000));
    assert!(opens(endless.collect()).is_err(), "two megabytes are not");
    // The connection may have ended with that; others have not.
    still_builds(&served);
    let guest = Guest::new(&socket(&served));
    let opens = |id: &str| {
        let mut request = tonic::Request::new(tokio_stream::pending::<wire::BytesMessage>());
        request.metadata_mut().append("x-docker-expose-session-uuid", id.parse().unwrap());
        guest.waits(async { guest.control().session(request).await })
    };
    // The same id twice: the first one has it.
    let first = opens("same").expect("it is free");
    assert!(opens("same").expect_err("it is taken").message().contains("already exists"));
    drop(first);

    let attrs: HashMap<String, String> = (0..15).map(|n| (format!("build-arg:{n}"), "v".repeat(1 << 20))).collect();
    let request =
        wire::SolveRequest { frontend: "dockerfile.v0".to_owned(), frontend_attrs: attrs, ..Default::default() };
    guest.solves(request).expect_err("it shares no Dockerfile");
    still_builds(&served);
    assert!(peak(&served) < 256 << 20, "{}", peak(&served));
    served.ends();
}

/// By one connection that ignores what the daemon says of its limits.
#[test]
fn calls_without_end_and_headers_that_swell_have_a_limit() {
    const SETTINGS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let Some(served) = Served::new(anybody(), "") else { return };
    // POST, http, a path and an authority as they are; then whatever comes.
    let path = b"/moby.buildkit.v1.Control/Solve";
    let begin = [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], &[0x01, 0x01, b'x']].concat();
    let headers = |stream: u32, block: &[u8]| {
        let length = (block.len() as u32).to_be_bytes();
        [&length[1..], &[1, 4], &stream.to_be_bytes(), block].concat()
    };
    // A header of 4,000 bytes goes to the table; each later byte stands for it.
    let long = [&[0x40, 0x01, b'a', 0x7f, 0xa1, 0x1e], &[b'v'; 4000][..]].concat();
    let swelling = |first: bool| [&begin[..], if first { &long } else { &[] }, &[0xbe; 4000]].concat();
    let sends = |block: &dyn Fn(bool) -> Vec<u8>, calls: u32| {
        let mut stream = UnixStream::connect(socket(&served)).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut answers = stream.try_clone().unwrap();
        std::thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
        stream.write_all(SETTINGS).unwrap();
        // The daemon may have had enough before all is sent.
        let _ = (0..calls).try_for_each(|n| stream.write_all(&headers(2 * n + 1, &block(n == 0))));
        still_builds(&served);
    };
    let before = peak(&served);
    sends(&swelling, 2_000);
    sends(&|_| begin.clone(), 50_000);
    // Unpacked these are 16 MB each.
    assert!(peak(&served) - before < 256 << 20, "{} bytes", peak(&served) - before);
    served.ends();
}

#[test]
fn names_of_megabytes_are_refused_and_options_of_megabytes_not_kept() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let guest = Guest::new(&socket(&served));
    let request = |n: usize| wire::SolveRequest {
        r#ref: format!("build-{n}"),
        frontend: "none".to_owned(),
        frontend_attrs: [("key".to_owned(), "v".repeat(15 << 20))].into(),
        ..Default::default()
    };
    let long = || "x".repeat(257);
    for request in [
        wire::SolveRequest { r#ref: long(), ..request(0) },
        wire::SolveRequest { session: long(), ..request(0) },
        wire::SolveRequest { frontend: long(), ..request(0) },
    ] {
        let refused = guest.waits(async { guest.control().solve(request).await }).expect_err("it has a long name");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    }
    for n in 0..10 {
        guest.waits(async { guest.control().solve(request(n)).await }).expect_err("no such frontend");
    }
    let listed = served.buildctl("debug histories").succeeds().text();
    assert!(listed.contains("build-0") && listed.contains("build-9"), "{listed}");
    let asked = wire::BuildHistoryRequest { r#ref: "build-0".to_owned(), early_exit: true, ..Default::default() };
    let kept = guest.waits(async {
        let mut events = guest.control().listen_build_history(asked).await.unwrap().into_inner();
        events.message().await.unwrap().unwrap().record.unwrap()
    });
    let value = &kept.frontend_attrs["key"];
    assert!(value.ends_with("bytes are left out)") && kept.encoded_len() < 10_000, "{} bytes", kept.encoded_len());
    let state = served.kitchen.world.path("daemon/hullworks");
    let size = |name: &str| fs::metadata(state.join(name)).unwrap().len();
    let database = size("metadata.db") + size("metadata.db-wal");
    assert!(database < 8 << 20, "{database} bytes");
    served.ends();
}

#[test]
fn requests_of_megabytes_that_come_at_once_have_a_limit() {
    const AT_ONCE: usize = 30;
    let Some(served) = Served::new(anybody(), "") else { return };
    let guest = Guest::new(&socket(&served));
    let answers = guest.waits(async {
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..AT_ONCE {
            let mut control = guest.control();
            // What each waits for does not come.
            let request = wire::SolveRequest {
                r#ref: format!("build-{n}"),
                session: "nobody".to_owned(),
                frontend: "dockerfile.v0".to_owned(),
                frontend_attrs: [("key".to_owned(), "v".repeat(15 << 20))].into(),
                ..Default::default()
            };
            calls.spawn(async move { control.solve(request).await.expect_err("it has no session").code() });
        }
        calls.join_all().await
    });
    let refused = answers.iter().filter(|code| **code == tonic::Code::ResourceExhausted).count();
    // Eight have room.
    assert!((1..=AT_ONCE - 8).contains(&refused), "{answers:?}");
    assert!(peak(&served) < 512 << 20, "{}", peak(&served));
    // It is given back when there is nothing to do.
    eventually(|| memory(&served, "VmRSS:") < 150 << 20);
    // Later ones have it again.
    let request = wire::SolveRequest {
        frontend: "none".to_owned(),
        frontend_attrs: [("key".to_owned(), "v".repeat(15 << 20))].into(),
        ..Default::default()
    };
    assert_ne!(guest.solves(request).expect_err("no such frontend").code(), tonic::Code::ResourceExhausted);
    still_builds(&served);
    served.ends();
}

#[test]
fn who_asks_how_it_goes_and_does_not_listen_is_not_waited_for() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let kitchen = &served.kitchen;
    // Each line is an event; a step shows two megabytes.
    kitchen.dockerfile("FROM busybox\nRUN yes 0123456789 | head -n 200000\nRUN yes abcdefghij | head -n 200000\n");
    let guest = Guest::new(&socket(&served));
    let context = kitchen.world.path("context");
    let session = LocalSession::new("deaf").with_dir("context", &context).with_dir("dockerfile", &context);
    let joined = guest.joins(session, Most { read: usize::MAX, written: usize::MAX });
    let request = wire::SolveRequest {
        r#ref: "deaf".to_owned(),
        session: joined.id.clone(),
        frontend: "dockerfile.v0".to_owned(),
        ..wire::SolveRequest::default()
    };
    let deaf: Vec<_> = (0..20).map(|_| Guest::new(&socket(&served))).collect();
    let solving = guest.control();
    guest.waits(async {
        let mut control = solving;
        let solved = tokio::spawn(async move { control.solve(request).await });
        let mut unread = Vec::new();
        for deaf in &deaf {
            let asked = wire::StatusRequest { r#ref: "deaf".to_owned() };
            unread.push(deaf.control().status(asked).await.unwrap());
        }
        solved.await.unwrap().unwrap();
    });
    still_builds(&served);
    assert!(peak(&served) < 256 << 20, "{}", peak(&served));
    served.ends();
}

/// A build whose client reads and writes only so much of its files.
fn half_a_build(served: &Served, most: Most, vanishes: bool) {
    let kitchen = &served.kitchen;
    let guest = Guest::new(&socket(served));
    let context = kitchen.world.path("context");
    let out = kitchen.world.path(format!("out-{}", session::random_id()));
    let session = LocalSession::new(session::random_id())
        .with_dir("context", &context)
        .with_dir("dockerfile", &context)
        .with_output(session::Output::Directory(out));
    let mut joined = guest.joins(session, most);
    let request = wire::SolveRequest {
        r#ref: session::random_id(),
        session: joined.id.clone(),
        frontend: "dockerfile.v0".to_owned(),
        exporters: vec![wire::Exporter { r#type: "local".to_owned(), ..wire::Exporter::default() }],
        ..wire::SolveRequest::default()
    };
    let mut control = guest.control();
    guest.waits(async {
        if vanishes {
            tokio::select! {
                () = joined.reached() => {}
                solved = control.solve(request) => panic!("{solved:?}"),
            }
        } else {
            control.solve(request).await.expect_err("its client does not answer");
            joined.reached().await;
        }
    });
    drop(guest);
}

#[test]
fn clients_that_stall_or_vanish_leave_nothing() {
    const LARGE: usize = 48 << 20;
    const SOME: usize = 8 << 20;
    let Some(served) = Served::new(anybody(), "") else { return };
    let phases = [
        ("context upload", Most { read: usize::MAX, written: SOME }),
        ("export", Most { read: SOME, written: usize::MAX }),
    ];
    for (phase, most) in phases {
        for vanishes in [true, false] {
            println!("{phase}, vanishes: {vanishes}");
            // Each time another context, or nothing would be sent.
            served.kitchen.file("large", noise(u64::from(vanishes) + 2 * u64::from(phase == "export"), LARGE));
            served.kitchen.dockerfile("FROM scratch\nCOPY large /\n");
            if phase == "export" {
                served.build("").succeeds();
            }
            half_a_build(&served, most, vanishes);
            leaves_nothing(&served);
        }
    }
    still_builds(&served);
    assert!(peak(&served) < 256 << 20, "{}", peak(&served));
    served.ends();
}
