//! Attributes of outputs and caches as BuildKit takes them: what they name, and what is only said of others.

use std::fs;

use hyper::Method;
use serde_json::{Value, json};
use testkit::image::{CONFIG, MANIFEST, TestImage, descriptor};

use crate::daemon::Served;
use crate::harness::is_root;
use crate::kitchen::{Kitchen, steps};
use crate::who::Who;

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

fn answers(kitchen: &Kitchen) -> Value {
    serde_json::from_slice(&fs::read(kitchen.world.path("meta.json")).unwrap()).unwrap()
}

#[test]
fn names_are_those_that_buildkit_answers() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let kitchen = &served.kitchen;
    let host = kitchen.registry.host();
    kitchen.file("f", "content");
    kitchen.dockerfile("FROM scratch\nCOPY f /\n");
    let builds = |attributes: &str| {
        served.build(&format!("--output type=image,push=true,{attributes} --metadata-file meta.json")).ends()
    };
    let named = |attributes: &str| {
        let ended = builds(attributes);
        assert_eq!(ended.code, Some(0), "{attributes}: {ended:?}");
        let answers = answers(kitchen);
        let digest = answers["containerimage.digest"].as_str().unwrap().to_owned();
        let names =
            answers["image.name"].as_str().unwrap_or_default().replace(&digest, "DIGEST").replace(&host, "HOST");
        (names, ended.stderr.replace(&digest, "DIGEST"), digest)
    };
    let (names, _, digest) = named(&format!("name={host}/a:1,name-canonical=true"));
    assert_eq!(names, "HOST/a:1", "the store that canonical names are for is not here");
    // As they were asked for, where more is meant: `latest`, `docker.io`.
    let (names, ..) = named(&format!("\"name={host}/a,{host}/a:2\""));
    assert_eq!(names, "HOST/a,HOST/a:2");
    assert!(kitchen.registry.manifest("a", "latest").is_some());
    let (names, said, _) = named(&format!("dangling-name-prefix={host}/p"));
    assert_eq!(names, "HOST/p@DIGEST");
    assert!(said.contains("/p@DIGEST") && !said.contains("DIGEST@DIGEST"), "{said}");
    assert!(kitchen.registry.manifest("p", &digest).is_some());
    let (names, ..) = named(&format!("name={host}/b:1,dangling-name-prefix={host}/q"));
    assert_eq!(names, "HOST/b:1,HOST/q@DIGEST");
    assert!(kitchen.registry.manifest("q", &digest).is_some());
    let (names, ..) = named(&format!("name={host}/c:1,dangling-name-prefix={host}/r,danging-name-empty-only=true"));
    assert_eq!(names, "HOST/c:1");
    assert!(kitchen.registry.manifest("r", &digest).is_none());
    // Without a name nothing is pushed; a digest and a tag at once cannot be.
    let (names, said, _) = named("unsafe-internal-store-allow-incomplete=true");
    assert!(names.is_empty() && said.contains("nothing is pushed: the image has no name"), "{said}");
    let refused = builds(&format!("name={host}/d:1,push-by-digest=true"));
    assert_eq!(refused.code, Some(1));
    refused
        .says(&format!("can't push tagged ref {host}/d:1 by digest"))
        .hints(&format!("name it `{host}/d`, or leave out `push-by-digest`"));
    assert!(kitchen.registry.manifest("d", &digest).is_none());
    // A key without a value says yes.
    let (names, ..) = named(&format!("name={host}/e,push-by-digest="));
    assert_eq!(names, "HOST/e");
    assert!(kitchen.registry.manifest("e", &digest).is_some() && kitchen.registry.manifest("e", "latest").is_none());
    // docker's way to build does not let a push without a name begin.
    kitchen.build("--output type=image,push=true").fails().says("a push needs a name");
    kitchen.build(&format!("--output type=image,push=true,dangling-name-prefix={host}/f")).succeeds();
    assert_eq!(kitchen.registry.count(&Method::PUT, "/v2/f/manifests/"), 1);
    served.ends();
}

#[test]
fn foreign_layers_stay_where_they_are_if_that_is_preferred() {
    const FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let Some(kitchen) = Kitchen::new(anybody()) else { return };
    let host = kitchen.registry.host();
    let image = TestImage::busybox().unwrap();
    let mut layer = descriptor(FOREIGN, &image.layers[0]);
    layer["urls"] = json!(["http://layers.example/one"]);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &image.config), "layers": [layer],
    });
    for blob in image.layers.iter().chain([&image.config]) {
        kitchen.registry.put_blob("foreign", blob.clone());
    }
    kitchen.registry.put_manifest("foreign", "latest", MANIFEST, manifest.to_string());
    kitchen.dockerfile(&format!("FROM {host}/foreign\nRUN echo hi > /f\n"));
    for (attribute, media_type, urls) in [
        ("", "application/vnd.oci.image.layer.v1.tar", Value::Null),
        (",prefer-nondist-layers=true", FOREIGN, json!(["http://layers.example/one"])),
    ] {
        kitchen.build(&format!("--output type=image,name={host}/out:1,push=true{attribute}")).succeeds();
        let (_, pushed) = kitchen.registry.manifest("out", "1").unwrap();
        let pushed: Value = serde_json::from_slice(&pushed).unwrap();
        let first = &pushed["layers"][0];
        assert_eq!((&first["mediaType"], &first["urls"]), (&media_type.into(), &urls), "{pushed:#}");
    }
}

/// As BuildKit: a directory of one platform is split where that is asked for, a tar is not.
#[test]
fn a_tar_of_one_platform_is_not_split() {
    let Some(kitchen) = Kitchen::new(anybody()) else { return };
    kitchen.file("f", "content");
    kitchen.dockerfile("FROM scratch\nCOPY f /\n");
    kitchen.build("--output type=tar,dest=out.tar,platform-split=true").succeeds();
    assert_eq!(kitchen.world.run("tar").args(["tf", "out.tar"]).succeeds().text(), "f\n");
}

#[test]
fn levels_beyond_those_of_zstd_are_the_nearest() {
    let Some(kitchen) = Kitchen::new(anybody()) else { return };
    kitchen.file("f", "content");
    kitchen.dockerfile("FROM scratch\nCOPY f /\n");
    let remark = "`compression-level=99` of zstd counts as 22";
    kitchen.build("--output type=oci,dest=a.tar,compression=zstd,compression-level=99").succeeds().says(remark);
    let cache = "--cache-to type=local,dest=cache,mode=MIN,compression=zstd,compression-level=99,oci-mediatypes=false";
    let ended = kitchen.build(cache).succeeds();
    ended.says(remark).says("`mode=MIN` of a cache export counts as min");
    let cached = kitchen.build_on("other", "--cache-from type=local,src=cache").succeeds();
    assert_eq!(steps(&cached).1, ["COPY f /"]);
    for bad in ["compression-level=99", "compression=estargz", "compression=lzma", "colour=red"] {
        kitchen.build(&format!("--output type=oci,dest=b.tar,{bad}")).fails();
    }
}

/// Layers of a cache in a directory.
fn layers(kitchen: &Kitchen, dir: &str) -> usize {
    let read =
        |path: String| -> Value { serde_json::from_slice(&fs::read(kitchen.world.path(path)).unwrap()).unwrap() };
    let index = read(format!("{dir}/index.json"));
    let digest = index["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
    read(format!("{dir}/blobs/{digest}"))["layers"].as_array().unwrap().len()
}

/// `mode=min` makes no layer for steps that the result does not consist of, and has those that are there.
#[test]
fn a_small_cache_has_what_is_there_anyway() {
    let Some(served) = Served::new(anybody(), "") else { return };
    served.kitchen.dockerfile(
        "FROM busybox AS one\nRUN echo 1 > /one\nRUN echo 2 > /two\nFROM busybox\nCOPY --from=one /one /two /\n",
    );
    let builds = |dir: &str, mode: &str| {
        served.build(&format!("--export-cache type=local,dest={dir}{mode}")).succeeds();
        layers(&served.kitchen, dir)
    };
    // Its base and the COPY; then also the two steps.
    assert_eq!(builds("fresh", ""), 2);
    let all = builds("all", ",mode=max");
    assert_eq!((all, builds("later", "")), (4, 4));
    served.ends();
}
