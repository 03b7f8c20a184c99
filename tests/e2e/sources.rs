//! Sources that no Dockerfile names: definitions as other programs make them, on the standard input of `buildctl build`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use base::Digest;
use testkit::image::TestImage;

use crate::daemon::Served;
use crate::frontends::anyone;
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
