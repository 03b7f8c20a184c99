use super::*;
use crate::document::{Document, Form, around};

const CONFIG: &[u8] = include_bytes!("../../tests/upstream/config.json");
const MANIFEST: &[u8] = include_bytes!("../../tests/upstream/manifest.json");
const INDEX: &[u8] = include_bytes!("../../tests/upstream/index.json");

fn cache(bytes: &[u8]) -> (Descriptor, Vec<Descriptor>) {
    match Document::parse(bytes).expect("upstream wrote it") {
        Document::Cache { config, layers } => (*config, layers),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_upstream_wrote_is_read_and_written_byte_for_byte() {
    let config = CacheConfig::parse(CONFIG).expect("upstream wrote it");
    assert_eq!(String::from_utf8_lossy(&config.to_json()), String::from_utf8_lossy(CONFIG));
    for (form, bytes) in [(Form::default(), MANIFEST), (Form { image_manifest: false, ..Form::default() }, INDEX)] {
        let (descriptor, layers) = cache(bytes);
        assert_eq!(descriptor, Descriptor::of(crate::MEDIA_TYPE, CONFIG));
        let (_, written) = around(form, descriptor, &layers);
        assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(bytes));
    }
}

#[test]
fn what_upstream_wrote_leads_from_sources_to_layers() {
    let config = CacheConfig::parse(CONFIG).expect("upstream wrote it");
    let mut imported = Imported::new(SourceId(1));
    imported.add(&config, &cache(MANIFEST).1).expect("upstream wrote it");
    assert_eq!((imported.len(), imported.complaint()), (9, None));
    // The image by its manifest and by its layers, the files, and the content that COPY --from found.
    let roots: Vec<KeyId> = config
        .records
        .iter()
        .filter(|record| record.inputs.is_empty())
        .map(|record| KeyId::from(record.digest.parse::<Digest>().expect("a digest")))
        .collect();
    assert_eq!(roots.len(), 4);
    assert_eq!(imported.exist(&roots).expect("in memory"), [true; 4]);
    assert!(imported.results(&roots).expect("in memory").iter().all(Vec::is_empty));
    // Every step has its layers on those of the image.
    let steps = imported.keys().expect("in memory").into_iter().filter(|key| key.digest().is_none());
    let results = imported.results(&steps.collect::<Vec<_>>()).expect("in memory");
    let mut depths: Vec<usize> =
        results.iter().flatten().map(|result| imported.layers(&result.id).expect("has layers").len()).collect();
    depths.sort_unstable();
    assert_eq!(depths, [2, 3, 3, 4, 4]);
}

fn config(layers: &str, records: &str) -> CacheConfig {
    let digest = |c: char| format!("sha256:{}", c.to_string().repeat(64));
    let text = format!(r#"{{"layers":[{layers}],"records":[{records}]}}"#);
    let text = ['a', 'b', 'c'].into_iter().fold(text, |text, c| text.replace(&format!("<{c}>"), &digest(c)));
    CacheConfig::parse(text.as_bytes()).expect("JSON")
}

fn blobs(names: &[char]) -> Vec<Descriptor> {
    let blob = |c: &char| {
        let digest = Digest::from_hex(&c.to_string().repeat(64)).expect("hex");
        let blob = Descriptor::new(image::media_type::OCI_LAYER_GZIP, digest, 1);
        blob.annotate(image::annotation::UNCOMPRESSED, digest.to_string())
    };
    names.iter().map(blob).collect()
}

#[test]
fn a_damaged_cache_is_refused() {
    let record = |rest: &str| format!(r#"{{"digest":"<a>"{rest}}}"#);
    for (layers, records, said) in [
        (r#"{"blob":"<a>","parent":5}"#, String::new(), "there is no layer 5"),
        (r#"{"blob":"<a>","parent":-2}"#, String::new(), "there is no layer -2"),
        (r#"{"blob":"<a>"}"#, String::new(), "layer 0 stands on itself"),
        (r#"{"blob":"<a>","parent":1},{"blob":"<b>"}"#, String::new(), "layer 0 stands on itself"),
        ("", record(r#","layers":[{"layer":0}]"#), "there is no layer 0"),
        ("", record(r#","chains":[{"layers":[3]}]"#), "there is no layer 3"),
        ("", record(r#","inputs":[[{"link":1}]]"#), "there is no record 1"),
        ("", record(r#","inputs":[[{"link":-1}]]"#), "there is no record -1"),
    ] {
        let error = Imported::new(SourceId(1)).add(&config(layers, &records), &blobs(&['a', 'b']));
        assert_eq!(error.expect_err(said).to_string(), format!("it is damaged: {said}"));
    }
}

#[test]
fn what_lacks_a_blob_or_a_diff_id_has_no_result_and_all_else_has() {
    let layers = r#"{"blob":"<a>","parent":-1},{"blob":"<b>","parent":0},{"blob":"<c>","parent":1}"#;
    let all = |at: usize| {
        let digest = ["<a>", "<b>", "<c>"][at];
        format!(
            r#"{{"digest":"{digest}","layers":[{{"layer":{at},"createdAt":"2020-01-01T00:00:00Z"}}],"chains":[{{"layers":[{at}]}}]}}"#
        )
    };
    let config = config(layers, &(0..3).map(all).collect::<Vec<_>>().join(","));
    let check = |blobs: &[Descriptor], wanted: [usize; 3]| {
        let mut imported = Imported::new(SourceId(1));
        imported.add(&config, blobs).expect("sound");
        let keys: Vec<KeyId> = config.records.iter().map(|record| record.digest.as_str().into()).collect();
        let found = imported.results(&keys).expect("in memory");
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), wanted);
    };
    check(&blobs(&['a', 'b', 'c']), [2, 2, 2]);
    check(&blobs(&['a', 'c']), [2, 0, 1]);
    let mut odd = blobs(&['a', 'b', 'c']);
    odd[0].annotations.clear();
    odd[2].media_type = "text/html".to_owned();
    check(&odd, [0, 1, 0]);
}

#[test]
fn circles_of_records_lead_nowhere() {
    let records = r#"{"digest":"<a>","inputs":[[{"link":1}]]},{"digest":"<b>","inputs":[[{"link":0},{"link":1}]]}"#;
    let mut imported = Imported::new(SourceId(1));
    imported.add(&config("", records), &[]).expect("sound enough");
    assert_eq!(imported.exist(&[KeyId::from("sha256:x")]).expect("in memory"), [false]);
}

#[test]
fn what_a_cache_does_not_give_is_told() {
    let layer = r#"{"blob":"<a>","parent":-1},{"blob":"<b>","parent":0}"#;
    let source = r#"{"digest":"<a>"}"#;
    let step = r#"{"digest":"<b>","inputs":[[{"link":0}]],"layers":[{"layer":0}]}"#;
    let top = r#"{"digest":"<c>","inputs":[[{"link":1}]],"layers":[{"layer":1}]}"#;
    let good = || blobs(&['a', 'b']);
    let with = |change: &dyn Fn(&mut Descriptor)| {
        let mut blobs = good();
        change(&mut blobs[1]);
        blobs
    };
    let no_id = with(&|blob| blob.annotations.clear());
    let odd = with(&|blob| blob.media_type = "text/html".to_owned());
    let list = |records: &[&str]| records.join(",");
    let all = list(&[source, step, top]);
    for (records, blobs, said) in [
        (all.clone(), good(), ""),
        (String::new(), good(), "gives nothing: there are no records in it"),
        (source.to_owned(), good(), "gives nothing: none of its records has a result"),
        (all.clone(), Vec::new(), "gives nothing: 2 of 2 results have layers that its manifest does not have"),
        (
            all.clone(),
            good()[..1].to_vec(),
            "gives less than it says: 1 of 2 results have layers that its manifest does not have",
        ),
        (all.clone(), odd, "gives less than it says: 1 of 2 results have layers of unknown type `text/html`"),
        (all.clone(), no_id, "gives less than it says: 1 of 2 results have layers without a diff id"),
        (all.replacen("<a>", "sha256:7", 1), good(), "gives nothing: 1 of 3 records have no digest that is one"),
        (
            list(&[source, step, &top.replace(r#"[{"link":1}]"#, "null")]),
            good(),
            "gives less than it says: 1 of 3 records have an input that nothing leads to",
        ),
        (
            list(&[source, step, &top.replace(r#""link":1"#, r#""link":2"#)]),
            good(),
            "gives less than it says: records lead round in circles",
        ),
        (
            list(&[source, &step.replace(r#""link":0"#, r#""link":2"#), top]),
            good(),
            "gives nothing: records lead round in circles",
        ),
        (
            list(&[source, &step.replace(r#""layers":[{"layer":0}]"#, r#""chains":[{"layers":null}]"#)]),
            good(),
            "gives nothing: 1 of 1 results have no layers",
        ),
    ] {
        let mut imported = Imported::new(SourceId(1));
        imported.add(&config(layer, &records), &blobs).expect(said);
        assert_eq!(imported.complaint().unwrap_or_default(), said, "{records}");
    }
}

#[test]
fn what_is_neither_a_cache_nor_an_image_is_said() {
    let manifest = String::from_utf8_lossy(MANIFEST);
    for (from, document) in [("manifest", manifest), ("index", String::from_utf8_lossy(INDEX))] {
        let later = document.replace("cacheconfig.v0", "cacheconfig.v1");
        let said = Document::parse(later.as_bytes()).expect_err(from).to_string();
        assert!(said.contains("of type `application/vnd.buildkit.cacheconfig.v1`"), "{said}");
    }
    assert_eq!(Document::parse(br#"{"schemaVersion":2,"manifests":[]}"#).expect("empty"), Document::Images(Vec::new()));
}
