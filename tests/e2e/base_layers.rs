//! The layers of base images: in images that stand on them they are what they were, whatever compresses them, and whoever does
//! not read them does not have them.

use std::fs;

use base::Digest;
use bytes::Bytes;
use hyper::Method;
use serde_json::Value;
use testkit::image::{File, TestImage, tar};

use crate::kitchen::{Kitchen, steps};
use crate::who::Who;

const REPO: &str = "team/app";
const OURS: &str = "RUN mkdir /d && echo z > /d/z && echo a > /d/a\nCOPY f /f\n";

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// A layer in an order that no tree gives, with an attribute that nobody may set here: its first entry is of another format and
/// about the second.
fn odd_layer() -> Bytes {
    let record = " SCHILY.xattr.security.selinux=system_u:object_r:etc_t:s0\n";
    let record = format!("{}{record}", record.len() + 2);
    let file = |path, data: &str| File { path, mode: 0o644, data: data.into(), link: None };
    let mut layer = tar(&[file("pax", &record), file("z", "z"), file("a", "a")]).to_vec();
    layer[156] = b'x';
    layer[148..156].fill(b' ');
    let sum: u32 = layer[..512].iter().map(|byte| u32::from(*byte)).sum();
    layer[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    layer.into()
}

/// The diff ids of an image in the kitchen's registry, and the descriptors of its layers.
fn layers(kitchen: &Kitchen, repository: &str, tag: &str) -> (Vec<Value>, Vec<Value>) {
    let manifest = json(&kitchen.registry.manifest(repository, tag).unwrap().1);
    let config = manifest["config"]["digest"].as_str().unwrap().parse().unwrap();
    let config = json(&kitchen.registry.blob(repository, &config).unwrap());
    let list = |value: &Value| value.as_array().unwrap().clone();
    (list(&config["rootfs"]["diff_ids"]), list(&manifest["layers"]))
}

#[test]
fn a_base_keeps_its_diff_ids_whatever_compresses_it() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let base = TestImage::of_layers(vec![TestImage::busybox().unwrap().layers[0].clone(), odd_layer()]);
        let base_ids: Vec<String> = base.layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        base.put(&kitchen.registry, REPO, "plain");
        base.put_docker(&kitchen.registry, REPO, "gzip");
        let host = kitchen.registry.host();
        kitchen.file("f", "f");
        for (base, lines) in [("plain", OURS), ("gzip", OURS), ("plain", "LABEL a=b\n"), ("gzip", "LABEL a=b\n")] {
            kitchen.dockerfile(&format!("FROM {host}/{REPO}:{base}\n{lines}"));
            let state = format!("state-{base}-{}", lines.len());
            let mut all_ids = None;
            for (n, (compression, kind)) in
                [("gzip,compression-level=9", "+gzip"), ("zstd", "+zstd"), ("uncompressed", "")].into_iter().enumerate()
            {
                let case = format!("{who:?}, {base}, {lines:?}, {compression}");
                let name = format!("{host}/out/made:{n}");
                let output = format!("--output type=image,name={name},push=true,compression={compression}");
                let ended = kitchen.build_on(&state, &format!("{output},force-compression=true")).succeeds();
                let is_read = lines == OURS && n == 0;
                assert_eq!(ended.stderr.contains("extracting "), is_read, "{case}: who unpacks what is not read?");
                let (ids, made) = layers(&kitchen, "out/made", &n.to_string());
                assert_eq!(ids[..2], base_ids[..], "{case}");
                // Ours are the same tar in all of them.
                assert_eq!(all_ids.get_or_insert_with(|| ids.clone()), &ids, "{case}");
                for (layer, id) in made.iter().zip(&ids) {
                    let media_type = format!("application/vnd.oci.image.layer.v1.tar{kind}");
                    // What is compressed with gzip already is so.
                    assert!(layer["mediaType"] == media_type, "{case}: {layer}");
                    assert!(!kind.is_empty() || layer["digest"] == *id, "{case}: {layer}");
                }
                // Whoever unpacks it looks whether it is what it says.
                fs::write(kitchen.world.path("Dockerfile.again"), format!("FROM {name}\nRUN cat /a /z\n")).unwrap();
                kitchen.build_on(&format!("again-{state}-{n}"), "-f Dockerfile.again").succeeds();
            }
        }
        let cache = format!("--cache-to type=registry,ref={host}/cache:1,compression=zstd,force-compression=true");
        kitchen.dockerfile(&format!("FROM {host}/{REPO}:gzip\n{OURS}"));
        kitchen.build_on("cached", &cache).succeeds();
        let manifest = json(&kitchen.registry.manifest("cache", "1").unwrap().1);
        let cached: Vec<&Value> = manifest["layers"].as_array().unwrap().iter().collect();
        for id in &base_ids {
            let layer = cached.iter().find(|layer| layer["annotations"]["containerd.io/uncompressed"] == **id);
            assert!(layer.is_some_and(|layer| layer["mediaType"].as_str().unwrap().ends_with("+zstd")), "{manifest:#}");
        }
    }
}

/// A copy that is a layer of its own asks nothing of its base.
#[test]
fn nobody_fetches_the_base_of_a_linked_copy() {
    for (who, snapshotter) in [(Who::Root, "overlayfs"), (Who::Single, "overlayfs"), (Who::Root, "native")] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let base = TestImage::of_layers(vec![TestImage::busybox().unwrap().layers[0].clone(), odd_layer()]);
        base.put(&kitchen.registry, REPO, "v1");
        let host = kitchen.registry.host();
        let common = fs::read_to_string(kitchen.world.path("buildkitd.toml")).unwrap();
        let settings = format!("{common}[worker.oci]\nsnapshotter = \"{snapshotter}\"\n");
        kitchen.world.write("buildkitd.toml", settings);
        for (name, content) in [("f", "f"), ("dir/bin/own", "own"), ("z", "another")] {
            kitchen.file(name, content);
        }
        let lines =
            format!("FROM {host}/{REPO}:v1\nLABEL a=b\nCOPY --link f /ff\nCOPY --link z /z\nCOPY --link dir /\n");
        let fetched = || kitchen.registry.count(&Method::GET, "/blobs/");
        let case = format!("{who:?}, {snapshotter}");

        kitchen.dockerfile(&lines);
        let made = format!("{host}/out/made:1");
        let ended = kitchen.build(&format!("--output type=image,name={made},push=true")).ends();
        if ended.code != Some(0) && ended.stderr.contains("snapshot driver does not work") {
            testkit::need::report_skip(&format!("{case}: it wants overlayfs where tests are"));
            continue;
        }
        assert_eq!(ended.code, Some(0), "{case}: {ended:?}");
        // Where each tree is whole there is no tree without its base.
        let layers = if snapshotter == "native" { 2 } else { 0 };
        assert_eq!(fetched(), 1 + layers, "{case}: the config, and layers: {ended:?}");
        assert_eq!(ended.stderr.contains("extracting "), layers > 0, "{case}: {ended:?}");
        let (ids, pushed) = self::layers(&kitchen, "out/made", "1");
        assert_eq!(
            ids[..2],
            base.layers.iter().map(|layer| Digest::of(layer).to_string()).collect::<Vec<_>>(),
            "{case}"
        );
        assert_eq!(pushed.len(), 5, "{case}");
        // As a client has it, and with another state that never saw the base as one.
        let checks = "RUN test \"$(cat /ff /z /bin/own /a)\" = fanotherowna && test -x /bin/busybox\n";
        fs::write(kitchen.world.path("Dockerfile.again"), format!("FROM {made}\n{checks}")).unwrap();
        kitchen.build_on("again", "-f Dockerfile.again").succeeds();

        // The same once somebody reads it: here, and as files.
        kitchen.dockerfile(&format!("{lines}{checks}"));
        let output = format!("--output type=image,name={host}/out/made:2,push=true");
        let ended = kitchen.build(&output).succeeds();
        assert_eq!(steps(&ended).0, [checks.trim()], "{case}: {ended:?}");
        assert_eq!(self::layers(&kitchen, "out/made", "2").0[..5], ids[..], "{case}");
        kitchen.dockerfile(&lines);
        kitchen.build_on("files", "--output out").succeeds();
        for (file, content) in [("ff", "f"), ("z", "another"), ("a", "a"), ("bin/own", "own")] {
            assert_eq!(fs::read_to_string(kitchen.world.path("out").join(file)).unwrap(), content, "{case}: {file}");
        }
        assert!(kitchen.world.path("out/bin/busybox").exists(), "{case}");
    }
}
