//! Results for several platforms: what they share, and what is said of each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::frontend::{self, llb_bridge_client::LlbBridgeClient};
use serde_json::{Value, json};
use session::local::LocalSession;

use crate::daemon::Served;
use crate::guest::{Guest, Most};
use crate::harness::{Ended, is_root};
use crate::kitchen::Kitchen;
use crate::who::Who;

const BOTH: &str = "linux/amd64,linux/arm64";

/// A daemon, and a context with files of two platforms.
fn served(files: &[&str]) -> Option<Served> {
    let served = Served::new(if is_root() { Who::Root } else { Who::Single }, "")?;
    files.iter().for_each(|name| served.kitchen.file(name, name));
    served.kitchen.dockerfile("FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /\n");
    Some(served)
}

/// The files of a directory, each with its content.
fn files(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => {
                    let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                    found.insert(name, fs::read_to_string(&path).unwrap());
                }
            }
        }
    }
    found
}

/// By one name or by two: one tree of it is written. Images list it as often as it was named, as BuildKit's.
#[test]
fn a_platform_that_is_named_twice_is_written_once() {
    let Some(served) = served(&["amd64/f", "arm64/f"]) else { return };
    let (kitchen, world) = (&served.kitchen, &served.kitchen.world);
    for (n, (names, expected)) in [
        ("linux/amd64,linux/amd64", &["linux_amd64/f"][..]),
        ("linux/arm64,linux/amd64,linux/arm64/v8", &["linux_amd64/f", "linux_arm64/f"]),
    ]
    .into_iter()
    .enumerate()
    {
        let remote = |output: &str| served.build(&format!("--opt platform={names} --output {output}")).succeeds();
        let here = |output: &str| kitchen.build(&format!("--platform {names} --output {output}")).succeeds();
        for (from, build) in [("sent", &remote as &dyn Fn(&str) -> Ended), ("here", &here)] {
            let to = format!("{from}{n}");
            build(&format!("type=local,dest={to}"));
            assert_eq!(files(&world.path(&to)).into_keys().collect::<Vec<_>>(), expected, "{to}");
            build(&format!("type=tar,dest={to}.tar"));
            let listed = world.run("tar").args(["tf", &format!("{to}.tar")]).succeeds().text();
            let mut listed: Vec<&str> = listed.lines().filter(|line| line.ends_with("/f")).collect();
            listed.sort_unstable();
            assert_eq!(listed, expected, "{to}.tar");
            build(&format!("type=oci,tar=false,dest={to}.oci"));
            let read = |path: &str| {
                serde_json::from_slice::<Value>(&fs::read(world.path(format!("{to}.oci/{path}"))).unwrap()).unwrap()
            };
            let digest = read("index.json")["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
            let manifests = read(&format!("blobs/{digest}"))["manifests"].as_array().unwrap().len();
            assert_eq!(manifests, names.split(',').count(), "{to}.oci");
        }
    }
    // What both would write is the same file.
    served
        .build("--opt platform=linux/amd64,linux/amd64 --output type=local,platform-split=false,dest=flat")
        .succeeds();
    assert_eq!(files(&world.path("flat")).into_keys().collect::<Vec<_>>(), ["f"]);
    served.ends();
}

#[test]
fn platforms_share_a_directory_where_one_asks_for_it() {
    // A walk sorts `d-x` behind what is in `d`, and clients want files in its order.
    let names = ["amd64/d/b", "arm64/d-x", "arm64/d/a", "amd64/e/f", "arm64/d/sub/c", "amd64/g", "arm64/h"];
    let Some(served) = served(&names) else { return };
    let (kitchen, world) = (&served.kitchen, &served.kitchen.world);
    let expected: BTreeMap<String, String> =
        names.iter().map(|name| (name.split_once('/').unwrap().1.to_owned(), (*name).to_owned())).collect();
    let line = |kind: &str, dest: &str| format!("--output type={kind},platform-split=false,dest={dest}");
    let remote = format!("--opt platform={BOTH}");
    let check = |dir: &str| assert_eq!(files(&world.path(dir)), expected, "{dir}");
    served.build(&format!("{remote} {}", line("local", "sent"))).succeeds();
    check("sent");
    world.write("cleaned/other", "");
    served.build(&format!("{remote} {},mode=delete", line("local", "cleaned"))).succeeds();
    check("cleaned");
    kitchen.build(&format!("--platform {BOTH} {}", line("local", "here"))).succeeds();
    check("here");
    for dir in ["sent", "here"] {
        let mode = fs::metadata(world.path(dir)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{dir} is made for others, too");
    }
    served.build(&format!("{remote} {}", line("tar", "sent.tar"))).succeeds();
    kitchen.build(&format!("--platform {BOTH} {}", line("tar", "here.tar"))).succeeds();
    for tar in ["sent.tar", "here.tar"] {
        let listed = world.run("tar").args(["tf", tar]).succeeds().stdout;
        let listed = String::from_utf8(listed).unwrap();
        let once: BTreeSet<&str> = listed.lines().collect();
        assert_eq!(listed.lines().count(), once.len(), "{listed}");
        let dir = format!("{tar}.d");
        fs::create_dir(world.path(&dir)).unwrap();
        world.run("tar").args(["xf", tar, "-C", &dir]).succeeds();
        check(&dir);
    }
    served.ends();
}

#[test]
fn a_file_of_one_platform_takes_the_place_of_no_other() {
    for (one, other, path) in
        [("amd64/d/f", "arm64/d/f", "d/f"), ("amd64/d/f", "arm64/d", "d"), ("amd64/d", "arm64/d/f", "d")]
    {
        let Some(served) = served(&[one, other, "amd64/more"]) else { return };
        let (kitchen, world) = (&served.kitchen, &served.kitchen.world);
        let words = format!("cannot overwrite {path} from linux/amd64 with linux/arm64 when split option is disabled");
        for kind in ["local", "tar"] {
            let line = format!("--output type={kind},platform-split=false,dest={kind}");
            served.build(&format!("--opt platform={BOTH} {line}")).fails().says(&words);
            kitchen.build(&format!("--platform {BOTH} {line}")).fails().says(&words);
        }
        assert!(!world.path("tar").exists() || fs::read(world.path("tar")).unwrap().is_empty());
        assert!(!world.path("local").exists() || files(&world.path("local")).is_empty());
        served.ends();
    }
}

/// A call of the build of that name.
fn of<T>(build: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("buildkit-controlapi-buildid", build.parse().unwrap());
    request
}

/// Builds for a client that says something of its own about the result.
fn returns(served: &Served, words: &[(&str, &str)], exporter: wire::Exporter) -> Result<(), tonic::Status> {
    let world = &served.kitchen.world;
    let guest = Guest::new(&world.path("b.sock"));
    let mut bridge = LlbBridgeClient::new(guest.channel.clone());
    let id = session::random_id();
    let joined = guest.joins(LocalSession::new(&id).with_dir("context", world.path("context")), Most::ALL);
    let solve = wire::SolveRequest {
        r#ref: id.clone(),
        session: joined.id.clone(),
        exporters: vec![exporter],
        ..wire::SolveRequest::default()
    };
    let options = [("contextkey", "context"), ("dockerfilekey", "context"), ("platform", BOTH)];
    let request = frontend::SolveRequest {
        frontend: "dockerfile.v0".to_owned(),
        frontend_opt: options.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..frontend::SolveRequest::default()
    };
    let words = words.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
    let drives = async {
        bridge.ping(of(&id, frontend::PingRequest {})).await.unwrap();
        let mut result = bridge.solve(of(&id, request)).await.unwrap().into_inner().result.unwrap();
        result.metadata.extend(words);
        let returned = frontend::ReturnRequest { result: Some(result), error: None };
        bridge.r#return(of(&id, returned)).await.unwrap();
    };
    let mut control = guest.control();
    let (solved, ()) = guest.waits(async { tokio::join!(control.solve(solve), drives) });
    solved.map(drop)
}

fn manifest(kitchen: &Kitchen, reference: &str) -> Value {
    serde_json::from_slice(&kitchen.registry.manifest("x/words", reference).unwrap().1).unwrap()
}

#[test]
fn a_result_says_itself_how_its_image_is_annotated() {
    let Some(served) = served(&["amd64/a", "arm64/a"]) else { return };
    let kitchen = &served.kitchen;
    let words = [
        ("annotation.said", "result"),
        ("annotation-manifest.twice", "result"),
        ("annotation-manifest[linux/arm64].own", "result"),
        ("annotation-manifest-descriptor[linux/x86_64].own", "result"),
        ("annotation-index.all", "result"),
        ("annotationless", "nothing"),
    ];
    let attrs = [
        ("name", format!("{}/x/words:1", kitchen.registry.host())),
        ("push", "true".to_owned()),
        ("annotation.twice", "attribute".to_owned()),
        ("annotation-manifest[linux/amd64].said", "attribute".to_owned()),
        ("annotation-index.more", "attribute".to_owned()),
    ];
    let attrs: HashMap<String, String> = attrs.map(|(key, value)| (key.to_owned(), value)).into();
    let exporter = wire::Exporter { r#type: "image".to_owned(), attrs };
    returns(&served, &words, exporter.clone()).unwrap();
    let index = manifest(kitchen, "1");
    assert_eq!(index["annotations"], json!({"all": "result", "more": "attribute"}), "{index:#}");
    // The result's word counts, and one for a platform counts more.
    let expected = [
        (json!({"own": "result"}), json!({"said": "attribute", "twice": "result"})),
        (Value::Null, json!({"said": "result", "twice": "result", "own": "result"})),
    ];
    for (entry, (descriptor, annotations)) in index["manifests"].as_array().unwrap().iter().zip(expected) {
        assert_eq!(entry.get("annotations").unwrap_or(&Value::Null), &descriptor, "{index:#}");
        let manifest = manifest(kitchen, entry["digest"].as_str().unwrap());
        assert_eq!(manifest["annotations"], annotations, "{manifest:#}");
    }
    let refused = returns(&served, &[("annotation[linux/s390x].a", "b")], exporter).unwrap_err();
    assert!(refused.message().contains("linux/s390x"), "{refused:?}");
    served.ends();
}

#[test]
fn the_same_image_of_all_platforms_is_asked_for_once() {
    let Some(served) = served(&[]) else { return };
    let kitchen = &served.kitchen;
    for (from, expected) in [("FROM --platform=$BUILDPLATFORM busybox", 1), ("FROM busybox", 2)] {
        kitchen.dockerfile(&format!(
            "{from} AS all\nFROM scratch\nARG TARGETARCH\nCOPY --from=all /bin/sh /$TARGETARCH\n"
        ));
        let sent = served.build(&format!("--opt platform={BOTH} --output type=tar,dest=x.tar")).succeeds().stderr;
        let here = kitchen.build(&format!("--platform {BOTH} --output type=tar,dest=x.tar")).succeeds().stderr;
        for said in [sent, here] {
            let shown = said.lines().filter(|line| line.contains("internal] load metadata for "));
            let numbers: BTreeSet<&str> = shown.filter_map(|line| line.split(' ').next()).collect();
            assert_eq!(numbers.len(), expected, "{from}: {said}");
        }
        let raw = served.build(&format!("--progress=rawjson --opt platform={BOTH}")).succeeds().stderr;
        let ends = raw.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).flat_map(|event| {
            let vertices = event["vertexes"].as_array().cloned().unwrap_or_default();
            vertices.into_iter().filter(|vertex| {
                vertex["completed"].is_string() && vertex["name"].as_str().unwrap().contains("load metadata for ")
            })
        });
        assert_eq!(ends.count(), expected, "{from}: {raw}");
    }
    served.ends();
}
