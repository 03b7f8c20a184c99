//! `golden/` was written by BuildKit's exporter and the Go types that it uses.

use base::Digest;
use serde_json::Value;

use super::*;
use crate::{Compression, Error, layer};

#[test]
fn configs_are_patched_to_the_bytes_of_buildkit() {
    let lines = include_str!("golden/configs.jsonl").lines();
    assert!(lines.clone().count() > 100);
    for line in lines {
        let case: Value = serde_json::from_str(line).expect("a case");
        let text = |key: &str| case[key].as_str().expect(key);
        let history = |key: &str| -> Vec<History> {
            serde_json::from_value::<Option<_>>(case[key].clone()).expect("a history").unwrap_or_default()
        };
        let layers = case["layers"].as_u64().expect("a number") as usize;
        let normalized = normalize_history(history("history"), &vec![LayerMeta::default(); layers]);
        assert_eq!(normalized, history("normalized"), "{line}");

        let diff_ids: Vec<Digest> = (0..layers).map(|i| Digest::of(format!("d{i}"))).collect();
        let base_history = history("base");
        let epoch = case["epoch"].as_i64().filter(|epoch| *epoch != 0);
        let patch = ConfigPatch {
            diff_ids: &diff_ids,
            history: normalized,
            epoch: epoch.map(|epoch| jiff::Timestamp::from_second(epoch).expect("in range")),
            base_history: &base_history,
            inline_cache: case["cache"].as_bool().expect("a flag").then_some(br#"{"a":1}"#),
        };
        let got = match patch_config(text("config").as_bytes(), patch) {
            Ok(bytes) => String::from_utf8(bytes).expect("JSON is UTF-8"),
            Err(_) => "refused".to_owned(),
        };
        // The exporter takes the history from the config; these cases give it beside, never nil.
        let absent = !text("config").contains("history");
        let expected =
            if absent { text("out").replace(r#""history":[]"#, r#""history":null"#) } else { text("out").to_owned() };
        assert_eq!(got, expected, "{line}");
    }
}

#[test]
fn documents_have_the_bytes_of_go() {
    let bytes = include_bytes!("golden/manifest.json");
    let manifest = Manifest::parse(bytes, Some(media_type::OCI_MANIFEST)).expect("a manifest");
    assert_eq!(manifest.to_json(), bytes);
    let bytes = include_bytes!("golden/manifest-empty.json");
    assert_eq!(Manifest::parse(bytes, None).expect("a manifest").to_json(), bytes);
    let bytes = include_bytes!("golden/index.json");
    assert_eq!(Index::parse(bytes, None).expect("an index").to_json(), bytes);
    for bytes in [&include_bytes!("golden/config-full.json")[..], include_bytes!("golden/config-zero.json")] {
        let config = ImageConfig::parse(bytes).expect("a config");
        assert_eq!(String::from_utf8_lossy(&config.to_json()), String::from_utf8_lossy(bytes));
    }
    let empty = ImageConfig::empty(&"linux/arm64".parse().expect("a platform"));
    assert_eq!(
        String::from_utf8_lossy(&empty.to_json()),
        r#"{"architecture":"arm64","os":"linux","rootfs":{"type":"layers","diff_ids":null},"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"}}"#
    );
}

#[test]
fn layers_bring_their_own_history() {
    let layer = |n: i64| LayerMeta {
        description: format!("COPY {n}"),
        created: Some(DateTime::from(jiff::Timestamp::from_second(n).expect("in range"))),
    };
    let meta = History { created_by: "ENV A=b".into(), empty_layer: true, ..History::default() };
    let own = History { created_by: "RUN x".into(), ..History::default() };
    let history = normalize_history(vec![meta, own], &[layer(1), layer(2)]);
    let shown: Vec<_> =
        history.iter().map(|h| (h.created_by.as_str(), h.created.clone().map(|c| c.to_string()))).collect();
    let at = |n| Some(format!("1970-01-01T00:00:0{n}Z"));
    assert_eq!(shown, [("ENV A=b", at(1)), ("RUN x", at(1)), ("COPY 2", at(2))]);
    assert_eq!(history[2].comment, "buildkit.exporter.image.v0");
}

#[test]
fn times_keep_their_offset_and_lose_zeros() {
    for (text, shown) in [
        ("2020-01-02T03:04:05Z", "2020-01-02T03:04:05Z"),
        ("2020-01-02T03:04:05.120000000+02:00", "2020-01-02T03:04:05.12+02:00"),
        ("2020-01-02T03:04:05.000+00:00", "2020-01-02T03:04:05Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
    ] {
        assert_eq!(text.parse::<DateTime>().expect(text).to_string(), shown);
    }
    for bad in [
        "",
        "2020-01-02",
        "2020-01-02 03:04:05Z",
        "2020-01-02T03:04:05",
        "2020-01-02T03:04:05+0200",
        "2020-13-02T03:04:05Z",
        "é020-01-02T03:04:05Z",
        "2020-01-02T03:04:05Z[UTC]",
    ] {
        assert!(bad.parse::<DateTime>().is_err(), "{bad}");
    }
    let time: DateTime = "2020-01-02T03:04:05.9+01:00".parse().expect("a time");
    assert_eq!(time.to_seconds_text(), "2020-01-02T02:04:05Z");
}

#[test]
fn bad_documents_name_the_rule() {
    let digest = Digest::of(b"");
    let descriptor = format!(r#"{{"mediaType":"x","digest":"{digest}","size":1}}"#);
    let manifest =
        |body: &str| Manifest::parse(body.as_bytes(), Some(media_type::OCI_MANIFEST)).expect_err(body).to_string();
    for (body, cause) in [
        ("", "malformed image manifest".to_owned()),
        (r#"{"schemaVersion":1}"#, "invalid image manifest: Docker schema 1 is not supported".to_owned()),
        ("{}", "invalid image manifest: schemaVersion is missing".to_owned()),
        (r#"{"schemaVersion":3}"#, "invalid image manifest: schemaVersion is 3, expected 2".to_owned()),
        (r#"{"schemaVersion":2,"manifests":[]}"#, "invalid image manifest: it has the fields of an index".to_owned()),
        (
            r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#,
            "invalid image manifest: it has the fields of both a manifest and an index".to_owned(),
        ),
        (
            r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}"#,
            format!(
                "invalid image manifest: it calls itself `{}` but was referred to as `{}`",
                media_type::DOCKER_MANIFEST,
                media_type::OCI_MANIFEST
            ),
        ),
        (
            &format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{{"digest":"md5:0"}}]}}"#),
            "malformed image manifest".to_owned(),
        ),
        (
            &format!(r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":-1}}}}"#),
            "malformed image manifest".to_owned(),
        ),
    ] {
        assert_eq!(manifest(body), cause, "{body}");
    }
    assert!(matches!(Manifest::parse(b"{}", Some("text/html")), Err(Error::Document { .. })));
    assert!(matches!(Index::parse(b"{}", Some(media_type::OCI_MANIFEST)), Err(Error::Document { .. })));
    let error = Index::parse(br#"{"schemaVersion":2,"config":{}}"#, None).expect_err("a manifest").to_string();
    assert_eq!(error, "invalid image index: it has the fields of a manifest");
    let error = ImageConfig::parse(&vec![b' '; MAX_DOCUMENT + 1]).expect_err("too large").to_string();
    assert_eq!(error, "image config is larger than the limit of 8388608 bytes");
    assert!(ImageConfig::parse(br#"{"config":null,"rootfs":null,"history":null}"#).is_ok());
}

#[test]
fn the_best_platform_is_chosen() {
    let manifest = |n: u8, platform: Option<&str>| Descriptor {
        platform: platform.map(|p| p.parse().expect("a platform")),
        ..Descriptor::of(media_type::OCI_MANIFEST, &[n])
    };
    let attestation = Descriptor {
        platform: Some(base::Platform {
            os: "unknown".into(),
            architecture: "unknown".into(),
            ..base::Platform::new("linux", "amd64", "")
        }),
        ..manifest(9, None)
    };
    let artifact = Descriptor { media_type: "application/x".into(), ..manifest(8, Some("linux/amd64")) };
    let index = Index::new(
        Flavor::Oci,
        vec![
            artifact,
            attestation,
            manifest(0, None),
            manifest(1, Some("linux/arm/v6")),
            manifest(2, Some("linux/arm/v7")),
            manifest(3, Some("linux/amd64")),
            manifest(4, Some("linux/amd64")),
        ],
    );
    let without_default = Index::new(Flavor::Oci, index.manifests[3..].to_vec());
    for (wanted, chosen) in
        [("linux/arm/v7", 2), ("linux/arm/v6", 1), ("linux/arm/v8", 2), ("linux/amd64", 3), ("linux/s390x", 0)]
    {
        let wanted = wanted.parse().expect("a platform");
        assert_eq!(index.choose(&wanted).expect("an image").digest, Digest::of([chosen]), "{wanted}");
    }
    let error = without_default.choose(&"linux/s390x".parse().expect("a platform")).expect_err("none").to_string();
    assert_eq!(error, "no image for platform linux/s390x, only for linux/arm/v6, linux/arm/v7, linux/amd64");
}

#[test]
fn media_types_convert_and_tell_the_compression() {
    use media_type::*;
    for (oci, docker, compression) in [
        (OCI_LAYER, DOCKER_LAYER, Compression::Uncompressed),
        (OCI_LAYER_GZIP, DOCKER_LAYER_GZIP, Compression::Gzip),
        (OCI_LAYER_ZSTD, DOCKER_LAYER_ZSTD, Compression::Zstd),
    ] {
        for media_type in [oci, docker] {
            assert!(is_layer(media_type) && !is_foreign(media_type));
            assert_eq!(layer_compression(media_type), Some(compression));
            assert_eq!(Flavor::Oci.convert_layer(media_type), oci);
            assert_eq!(Flavor::Docker.convert_layer(media_type), docker);
        }
        assert_eq!((Flavor::Oci.layer(compression), Flavor::Docker.layer(compression)), (oci, docker));
    }
    let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    assert!(is_layer(encrypted) && layer_compression(encrypted).is_none());
    assert_eq!(Flavor::Docker.convert_layer(encrypted), encrypted);
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    assert!(is_foreign(foreign));
    assert_eq!(distributable(foreign), "application/vnd.docker.image.rootfs.diff.tar.gzip");
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    assert_eq!(distributable(foreign), "application/vnd.oci.image.layer.v1.tar");
    assert!(!is_layer(OCI_CONFIG) && is_config(OCI_CONFIG) && is_config(DOCKER_CONFIG));
    let needs = |force, have| layer::CompressionOptions { force, ..Default::default() }.needs_conversion(have);
    assert!(
        !needs(false, Some(Compression::Zstd))
            && needs(true, Some(Compression::Zstd))
            && !needs(true, Some(Compression::Gzip))
    );
}

#[test]
fn internal_annotations_stay_out_of_manifests() {
    let layer = Descriptor::of(media_type::DOCKER_LAYER_GZIP, b"x")
        .annotate(annotation::UNCOMPRESSED, Digest::of(b"tar").to_string())
        .annotate("containerd.io/distribution.source.docker.io", "library/x")
        .annotate("buildkit/createdat", "now")
        .annotate("kept", "yes");
    assert_eq!(layer.diff_id(), Some(Digest::of(b"tar")));
    let oci = layer.clone().for_manifest(Flavor::Oci);
    assert_eq!(oci.media_type, media_type::OCI_LAYER_GZIP);
    assert_eq!(oci.annotations.keys().collect::<Vec<_>>(), ["kept"]);
    assert!(layer.for_manifest(Flavor::Docker).annotations.is_empty());
}
