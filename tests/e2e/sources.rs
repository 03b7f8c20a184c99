//! Sources that no Dockerfile names: definitions as other programs make them, on the standard input of `buildctl build`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use base::Digest;
use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::frontend::{self, llb_bridge_client::LlbBridgeClient};
use session::local::LocalSession;
use testkit::image::TestImage;

use crate::daemon::Served;
use crate::frontends::anyone;
use crate::guest::{Guest, Most};
use crate::harness::Invocation;

/// A field of a protobuf message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

/// A definition whose result is one source.
fn source(identifier: &str, attrs: &[(&str, &str)]) -> Vec<u8> {
    let mut op = field(1, identifier.as_bytes());
    for (key, value) in attrs {
        op.extend(field(2, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat()));
    }
    let op = field(3, &op);
    let end = field(1, &field(1, Digest::of(&op).to_string().as_bytes()));
    [field(1, &op), field(1, &end)].concat()
}

/// The same build by the daemon, and without one.
fn both(served: &Served, definition: &[u8], args: &str) -> Vec<(&'static str, Invocation)> {
    let kitchen = &served.kitchen;
    let line = format!("build --progress=plain {args}");
    let daemon = served.buildctl(&format!("{line} --output type=local,dest=daemon-out")).stdin(definition);
    let alone = kitchen.who.daemonless(&kitchen.world).args(line.split_whitespace());
    let alone = alone.args(["--output", "type=local,dest=alone-out"]).stdin(definition);
    let alone = alone.env("BUILDKITD_FLAGS", "--root=state --config=buildkitd.toml");
    vec![("daemon-out", daemon), ("alone-out", alone)]
}

#[test]
fn blobs_become_files() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    let image = TestImage::busybox().unwrap();
    image.write_layout(&kitchen.world.path("layout"), "v1").unwrap();
    kitchen.who.own(&kitchen.world, "layout");
    let digest = Digest::of(&image.config);
    let attrs = [("http.filename", "dir/b"), ("http.perm", "0640")];
    let name = format!("{}/library/busybox@{digest}", kitchen.registry.host());
    let of_registry = source(&format!("docker-image+blob://{name}"), &attrs);
    let stored = [&attrs[..], &[("oci.store", "store")]].concat();
    let of_layout = source(&format!("oci-layout+blob://any/name@{digest}"), &stored);
    for (definition, args) in [(&of_layout, "--oci-layout store=layout"), (&of_registry, "--no-cache")] {
        for (out, build) in both(&served, definition, args) {
            build.succeeds();
            let file = kitchen.world.path(out).join("b");
            assert_eq!(fs::read(&file).unwrap(), image.config, "{out} {args}");
            let meta = fs::metadata(&file).unwrap();
            assert_eq!((meta.permissions().mode() & 0o7777, meta.mtime()), (0o640, 0), "{out} {args}");
            fs::remove_dir_all(kitchen.world.path(out)).unwrap();
        }
    }
    // Wherever it came from, it is the same, and nobody is asked for it again.
    kitchen.registry.forget_requests();
    for (_, build) in both(&served, &of_registry, "") {
        assert!(build.succeeds().stderr.contains(" CACHED"));
    }
    assert_eq!(kitchen.registry.requests().len(), 0);
    let none = Digest::of("none");
    for (definition, words) in [
        (source(&format!("docker-image+blob://{}/x@{none}", kitchen.registry.host()), &[]), "registry answered 404"),
        (source(&format!("oci-layout+blob://x/y@{none}"), &[("oci.store", "store")]), "has no blob"),
    ] {
        for (_, build) in both(&served, &definition, "--oci-layout store=layout") {
            build.fails().says(words);
        }
    }
    served.ends();
}

/// A client that drives its build asks what there is to download, and the build reads what was found then.
#[test]
fn clients_ask_what_an_address_holds() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    let image = TestImage::busybox().unwrap();
    let digest = Digest::of(&image.config);
    let path = format!("/v2/library/busybox/blobs/{digest}");
    let address = format!("http://{}{path}", kitchen.registry.host());
    let asked = || kitchen.registry.requests().iter().filter(|request| request.path.contains(&path)).count();
    let guest = Guest::new(&kitchen.world.path("b.sock"));
    let (most, id) = (Most { read: usize::MAX, written: usize::MAX }, "asking");
    let joined = guest.joins(LocalSession::new(id), most);
    let solve =
        wire::SolveRequest { r#ref: id.to_owned(), session: joined.id.clone(), ..wire::SolveRequest::default() };
    let mut bridge = LlbBridgeClient::new(guest.channel.clone());
    fn of<T>(id: &str, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("buildkit-controlapi-buildid", id.parse().unwrap());
        request
    }
    let of_address = proto::pb::SourceOp { identifier: address.clone(), ..Default::default() };
    let drives = async {
        // The build is there a moment after it was asked for.
        while bridge.ping(of(id, frontend::PingRequest {})).await.is_err() {
            tokio::task::yield_now().await;
        }
        let request = frontend::ResolveSourceMetaRequest { source: Some(of_address), ..Default::default() };
        let found = bridge.resolve_source_meta(of(id, request.clone())).await.unwrap().into_inner();
        assert_eq!(found.source.unwrap().identifier, address);
        let http = found.http.unwrap();
        assert_eq!((http.checksum, http.last_modified), (digest.to_string(), None));
        assert_eq!(asked(), 1);
        // Digests of another kind are refused by name.
        let checksum = frontend::ChecksumRequest { algo: 2, suffix: Vec::new() };
        let other = frontend::ResolveSourceHttpRequest { checksum_request: Some(checksum) };
        let other = frontend::ResolveSourceMetaRequest { http: Some(other), ..request };
        let refused = bridge.resolve_source_meta(of(id, other)).await.unwrap_err();
        assert!(refused.message().contains("other than sha256, are not supported yet"), "{refused:?}");
        let definition = proto::pb::Definition::decode(&source(&address, &[])[..]).unwrap();
        let request = frontend::SolveRequest {
            definition: Some(definition),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..Default::default()
        };
        let result = bridge.solve(of(id, request)).await.unwrap().into_inner().result.unwrap();
        let Some(frontend::result::Result::Ref(reference)) = &result.result else { panic!("{result:?}") };
        let read =
            frontend::ReadFileRequest { r#ref: reference.id.clone(), file_path: http.filename, ..Default::default() };
        assert_eq!(bridge.read_file(of(id, read)).await.unwrap().into_inner().data, image.config);
        assert_eq!(asked(), 1, "what was found is what is read");
        let nothing = frontend::ReturnRequest { result: Some(frontend::Result::default()), error: None };
        bridge.r#return(of(id, nothing)).await.unwrap();
    };
    let mut control = guest.control();
    let (solved, ()) = guest.waits(async { tokio::join!(control.solve(solve), drives) });
    solved.unwrap();
    drop(joined);
    drop(guest);
    served.ends();
}

#[test]
fn a_directory_is_described_and_only_chosen_files_are_sent() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    for (name, content) in [("a/b/1", "one"), ("a/b/2", "two"), ("c", "three"), ("d/e", "four")] {
        kitchen.file(name, content);
    }
    let attrs = [("local.metadatatransfer", "true"), ("local.metadatatransferexclude", r#"["a/**/1","c"]"#)];
    let definition = source("local://src", &attrs);
    for (chosen, content) in [("a/b/1", "one"), ("a/b/1", "changed")] {
        kitchen.file(chosen, content);
        for (out, build) in both(&served, &definition, "--local src=context") {
            build.succeeds();
            let out = kitchen.world.path(out);
            assert_eq!(fs::read_to_string(out.join(chosen)).unwrap(), content);
            assert_eq!(fs::read_to_string(out.join("c")).unwrap(), "three");
            for absent in ["a/b/2", "d"] {
                assert!(!out.join(absent).exists(), "{absent}");
            }
            let described = fs::read(out.join(".fsutil-metadata")).unwrap();
            let described = String::from_utf8_lossy(&described).into_owned();
            let names = ["a/b/1", "a/b/2", "c", "d/e"];
            assert!(names.iter().all(|name| described.contains(name)), "{described:?}");
            assert!(!described.contains("four"));
        }
    }
    served.ends();
}

/// `type=oci,tar=false`: an OCI layout in a directory of the client.
#[test]
fn an_image_lies_in_a_directory_of_the_daemons_client() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    kitchen.file("f", "one");
    kitchen.dockerfile("FROM busybox\nCOPY f /f\n");
    let build = |names: &str| served.build(&format!("--output type=oci,tar=false,dest=layout,name={names}"));
    build("example.com/a:v1").succeeds();
    let layout = kitchen.world.path("layout");
    let index =
        || -> serde_json::Value { serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap() };
    let names = |index: &serde_json::Value| -> Vec<String> {
        let manifests = index["manifests"].as_array().unwrap().iter();
        manifests.map(|m| m["annotations"]["io.containerd.image.name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&index()), ["example.com/a:v1"]);
    // Only what is not there is sent.
    let inodes = || -> Vec<(String, u64)> {
        let entries = fs::read_dir(layout.join("blobs/sha256")).unwrap().map(Result::unwrap);
        let mut inodes: Vec<_> =
            entries.map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().ino())).collect();
        inodes.sort();
        inodes
    };
    let before = inodes();
    let (gone, _) = &before[0];
    fs::rename(layout.join("blobs/sha256").join(gone), kitchen.world.path("aside")).unwrap();
    build("example.com/b:v2").succeeds();
    assert_eq!(names(&index()), ["example.com/a:v1", "example.com/b:v2"]);
    let after = inodes();
    assert_eq!(after[1..], before[1..]);
    assert_eq!(after[0].0, *gone);
    assert_ne!(after[0].1, before[0].1, "it was sent again");
    // What is there is an image.
    kitchen.dockerfile("FROM base\nRUN test $(cat /f) = one\n");
    kitchen.build("--build-context base=oci-layout://layout:v2").succeeds();
    let several = "--output type=oci,tar=false,dest=x --output type=oci,tar=false,dest=y";
    served.build(several).fails().says("a daemon writes one output with tar=false, not several");
    served.ends();
}
