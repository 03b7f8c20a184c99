//! The layers of base images: in images that stand on them they are what they were, whatever compresses them.

use std::fs;

use base::Digest;
use bytes::Bytes;
use serde_json::Value;
use testkit::image::{File, TestImage, tar};

use crate::kitchen::Kitchen;
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
