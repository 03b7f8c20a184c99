//! OCI layouts as build contexts: images that lie in directories of the user.

use std::fs;
use std::path::Path;

use base::Digest;
use serde_json::{Value, json};
use testkit::image::{CONFIG, File, INDEX, MANIFEST, TestImage, descriptor, tar};

use crate::harness::{Ended, is_root};
use crate::kitchen::{Kitchen, ran};
use crate::needs;
use crate::remote_caches::Machine;
use crate::who::Who;

/// busybox with a file on top.
fn image() -> TestImage {
    let mut layers = TestImage::busybox().unwrap().layers;
    layers.push(tar(&[File { path: "f", mode: 0o644, data: b"of the layout".to_vec(), link: None }]));
    TestImage::of_layers(layers)
}

fn blob(layout: &Path, digest: Digest) -> std::path::PathBuf {
    layout.join("blobs/sha256").join(digest.hex())
}

/// How many RUNs ran.
fn runs(ended: &Ended) -> usize {
    ran(ended).iter().filter(|step| step.starts_with("RUN ")).count()
}

#[test]
fn images_of_layouts_are_bases() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let image = image();
        image.write_layout(&kitchen.world.path("layout"), "v1").unwrap();
        who.own(&kitchen.world, "layout");
        kitchen.dockerfile("FROM base\nRUN cat /f > /copied && echo ran >> /copied\n");
        let wanted = |out: &str| {
            let copied = fs::read_to_string(kitchen.world.path(out).join("copied")).unwrap();
            assert_eq!(copied, "of the layoutran\n");
        };
        kitchen.registry.forget_requests();
        let build = |context: &str, args: &str| -> Ended {
            kitchen.build(&format!("--build-context base={context} {args}")).succeeds()
        };
        assert_eq!(runs(&build("oci-layout://layout:v1", "--output out")), 1);
        wanted("out");
        // However it is named, it is the same image.
        let digest = image.digest();
        image.write_layout(&kitchen.world.path("a@b:c/base"), "v1").unwrap();
        image.write_layout(&kitchen.world.path("a@b"), "v1").unwrap();
        who.own(&kitchen.world, "a@b:c");
        who.own(&kitchen.world, "a@b");
        let places = ["layout", "a@b:c/base", "a@b", "a@b:v1"];
        for context in
            places.into_iter().flat_map(|p| [format!("oci-layout://{p}"), format!("oci-layout://{p}@{digest}")])
        {
            assert_eq!(runs(&build(&context, "")), 0);
        }
        assert_eq!(kitchen.registry.requests().len(), 0);
        // BuildKit's way to write it.
        let line = format!(
            "build --frontend dockerfile.v0 --local context=context --local dockerfile=context --progress=plain \
             --oci-layout store=layout --opt context:base=oci-layout://store@{digest} --output type=local,dest=again"
        );
        let build = who.daemonless(&kitchen.world).args(line.split_whitespace());
        assert_eq!(runs(&build.env("BUILDKITD_FLAGS", "--root=state").succeeds()), 0);
        wanted("again");
    }
}

/// An image of a platform, with a file that says which.
fn of_architecture(architecture: &str) -> TestImage {
    let file = File { path: "f", mode: 0o644, data: architecture.as_bytes().to_vec(), link: None };
    let mut image = TestImage::of_layers(vec![tar(&[file])]);
    let mut config: Value = serde_json::from_slice(&image.config).unwrap();
    config["architecture"] = architecture.into();
    image.config = config.to_string().into();
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["config"] = descriptor(CONFIG, &image.config);
    image.manifest = manifest.to_string().into();
    image
}

#[test]
fn a_layout_may_have_an_image_of_several_platforms() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let layout = kitchen.world.path("lay@out");
        let mut entries = Vec::new();
        for architecture in ["amd64", "arm64"] {
            let image = of_architecture(architecture);
            image.write_layout(&layout, "one").unwrap();
            let mut entry = descriptor(MANIFEST, &image.manifest);
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entries.push(entry);
        }
        // An index in the index, as every program writes it.
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
        let digest = Digest::of(&index);
        fs::write(blob(&layout, digest), &index).unwrap();
        let mut entry = descriptor(INDEX, &index.into());
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
        let outer = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        fs::write(layout.join("index.json"), outer.to_string()).unwrap();
        who.own(&kitchen.world, "lay@out");
        kitchen.dockerfile("FROM base\nCOPY --from=base /f /copied\n");
        for (out, context) in [("a", "lay@out".to_owned()), ("b", format!("lay@out:v1@{digest}"))] {
            let args =
                format!("--platform linux/amd64,linux/arm64 --build-context base=oci-layout://{context} -o {out}");
            kitchen.build(&args).succeeds();
            for architecture in ["amd64", "arm64"] {
                let dir = kitchen.world.path(out).join(format!("linux_{architecture}"));
                for file in ["f", "copied"] {
                    assert_eq!(fs::read_to_string(dir.join(file)).unwrap(), architecture, "{who:?}, {context}: {file}");
                }
            }
        }
        let missing = "--platform linux/s390x --build-context base=oci-layout://lay@out";
        kitchen.build(missing).fails().says("linux/s390x");
    }
}

#[test]
fn a_layer_stays_where_it_is_until_somebody_reads_it() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let (image, world) = (image(), &kitchen.world);
    image.write_layout(&world.path("layout"), "latest").unwrap();
    let top = Digest::of(image.layers.last().unwrap());
    kitchen.dockerfile("FROM base\nLABEL a=b\n");
    // A label needs no layer.
    fs::rename(blob(&world.path("layout"), top), world.path("aside")).unwrap();
    kitchen.build("--build-context base=oci-layout://layout --output type=image,name=x").succeeds();
    // A later build does, and by then the layout has moved.
    fs::rename(world.path("layout"), world.path("moved")).unwrap();
    let layout = world.path("moved");
    kitchen.dockerfile("FROM base\nRUN cat /f\n");
    let build = || kitchen.build("--build-context base=oci-layout://moved");
    build().fails().says(&format!("has no blob {top}"));
    fs::write(blob(&layout, top), b"something else").unwrap();
    build().fails().says("error: failed to solve: ").says(&top.to_string()).says("OCI layout `").says("moved`: ");
    fs::rename(world.path("aside"), blob(&layout, top)).unwrap();
    assert_eq!(runs(&build().succeeds()), 1);
    // A push takes it from there, too.
    let host = kitchen.registry.host();
    kitchen.dockerfile("FROM base\nLABEL a=b\n");
    let push = format!("--build-context base=oci-layout://moved --push -t {host}/pushed:1");
    kitchen.build_on("other-state", &push).succeeds();
    let (_, manifest) = kitchen.registry.manifest("pushed", "1").unwrap();
    assert!(String::from_utf8_lossy(&manifest).contains(&top.to_string()));
}

/// Whatever the image was called when its layers were first seen.
#[test]
fn the_same_image_is_read_from_where_this_build_has_it() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let (image, world) = (image(), &kitchen.world);
    image.write_layout(&world.path("layout"), "latest").unwrap();
    image.put(&kitchen.registry, "library/same", "latest");
    let (layout, registry) = ("base=oci-layout://layout", "base=docker-image://same");
    for (state, first, then) in [("one", layout, registry), ("other", registry, layout)] {
        kitchen.dockerfile("FROM base\nLABEL a=b\n");
        kitchen.build_on(state, &format!("--build-context {first} --output type=image,name=x")).succeeds();
        kitchen.dockerfile("FROM base\nRUN cat /f\n");
        kitchen.registry.forget_requests();
        let ended = kitchen.build_on(state, &format!("--build-context {then}")).succeeds();
        assert_eq!(runs(&ended), 1);
        let asked = kitchen.registry.requests().iter().filter(|request| request.path.contains("/blobs/")).count();
        assert_eq!(asked > 0, then == registry, "{state}");
    }
}

#[test]
fn what_is_no_image_of_a_layout_is_said_so() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let (image, layout) = (image(), kitchen.world.path("layout"));
    image.write_layout(&layout, "v1").unwrap();
    kitchen.dockerfile("FROM base\nRUN true\n");
    let fails = |context: &str, words: &str| {
        kitchen.build(&format!("--build-context base=oci-layout://{context}")).fails().says(words);
    };
    fails("layout:v2", "it has no image `v2`, only: v1");
    fails("context", "`oci-layout`");
    let config = Digest::of(&image.config);
    fails(&format!("layout@{config}"), "is neither an index nor a manifest");
    fails(&format!("layout@{}", Digest::of("other")), "has no blob sha256:");
    fs::write(blob(&layout, image.digest()), b"{}").unwrap();
    fails("layout:v1", &image.digest().to_string());
}

#[test]
fn a_daemon_reads_layouts_of_its_clients() {
    let Some(kitchen) = Kitchen::new(if is_root() { Who::Root } else { Who::Single }) else { return };
    let image = image();
    image.write_layout(&kitchen.world.path("layout"), "latest").unwrap();
    kitchen.who.own(&kitchen.world, "layout");
    kitchen.dockerfile("FROM base\nRUN cat /f > /copied\n");
    let daemon = Machine::new(&kitchen, "one");
    let base = format!("--oci-layout store=layout --opt context:base=oci-layout://store@{}", image.digest());
    daemon.buildctl(&format!("{base} --output type=local,dest=out")).succeeds();
    assert_eq!(fs::read_to_string(kitchen.world.path("out/copied")).unwrap(), "of the layout");
    daemon.buildctl(&base.replace("store=layout", "store=context")).fails().says("has no blob ");
    daemon.ends();

    needs!(tool "docker-buildx");
    let other = Machine::new(&kitchen, "two");
    other.buildx(&format!("create --name b --driver remote {}", other.socket)).succeeds();
    let line =
        "--builder b build --progress=plain --build-context base=oci-layout://layout -o type=local,dest=buildx context";
    other.buildx(line).succeeds();
    assert_eq!(fs::read_to_string(kitchen.world.path("buildx/copied")).unwrap(), "of the layout");
    other.ends();
}
