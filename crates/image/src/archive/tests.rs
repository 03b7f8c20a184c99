//! Digests of whole archives were made with containerd's exporter, which BuildKit uses.

use std::collections::HashMap;
use std::io::{Cursor, Read};

use base::Digest;

use super::*;
use crate::{Descriptor, Error, Flavor, Index, Manifest, Reference, media_type};

#[derive(Default)]
struct Blobs(HashMap<Digest, Vec<u8>>);

impl Blobs {
    fn put(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let descriptor = Descriptor::of(media_type, &bytes);
        self.0.insert(descriptor.digest, bytes);
        descriptor
    }

    fn image(&mut self, name: &str) -> Descriptor {
        let config = self.put(media_type::OCI_CONFIG, format!(r#"{{"n":"{name}"}}"#).into());
        let shared = self.put(media_type::OCI_LAYER_GZIP, b"layer".repeat(300));
        let own = self.put(media_type::OCI_LAYER_GZIP, name.into());
        self.put(media_type::OCI_MANIFEST, Manifest::new(Flavor::Oci, config, vec![shared, own]).to_json())
    }

    fn archive(&self, kind: ArchiveKind, roots: &[Descriptor]) -> Result<Vec<u8>, Error> {
        write_archive(Vec::new(), kind, roots, |descriptor| match self.0.get(&descriptor.digest) {
            Some(bytes) => Ok(bytes.as_slice()),
            None => Err(Error::Missing(descriptor.blob_path())),
        })
    }
}

fn names(names: &[&str]) -> Vec<Reference> {
    names.iter().map(|name| name.parse().expect("a reference")).collect()
}

const CREATED: &str = "2024-01-02T03:04:05Z";

#[test]
fn archives_have_the_bytes_of_containerd() {
    let mut blobs = Blobs::default();
    let platform = |d: Descriptor, p: &str| Descriptor { platform: Some(p.parse().expect("a platform")), ..d };
    let amd = platform(blobs.image("amd"), "linux/amd64");
    let arm = platform(blobs.image("arm"), "linux/arm64");
    let index = blobs.put(media_type::OCI_INDEX, Index::new(Flavor::Oci, vec![amd.clone(), arm]).to_json());
    let both = names(&["x", "localhost:5000/a/b:v1"]);
    for (kind, root, names, size, digest) in [
        (ArchiveKind::Oci, &amd, &both[..], 10240, "35734e13353d39107837d4c363f4d06497872279063be6ae8b26e10a278d65a8"),
        (ArchiveKind::Docker, &amd, &both, 11264, "70e84d787e410b36d9ac7a2f0a30375184efe71bacd8207ca8ebddf9afe5485b"),
        (ArchiveKind::Docker, &amd, &[], 10752, "85110e837990956570e7b9a62f76ae2ee7c1df3c0e8cafe9709d8af32ee55b0b"),
        (
            ArchiveKind::Oci,
            &index,
            &both[..1],
            14848,
            "fec82af1fbadc0018770d1cec15099ce09127157b0a2ba511e80d0a176d2d591",
        ),
    ] {
        let bytes = blobs.archive(kind, &name_manifests(root, names, CREATED)).expect("all blobs are there");
        assert_eq!((bytes.len(), Digest::of(&bytes).hex().as_str()), (size, digest), "{kind:?}");
    }
}

#[test]
fn blobs_are_listed_once() {
    let mut blobs = Blobs::default();
    let roots = [blobs.image("amd"), blobs.image("arm")];
    let listed = list_blobs(&roots, |descriptor| Ok(blobs.0[&descriptor.digest].as_slice())).expect("all are there");
    let mut expected: Vec<Digest> = blobs.0.keys().copied().collect();
    expected.sort();
    assert_eq!(listed.iter().map(|descriptor| descriptor.digest).collect::<Vec<_>>(), expected);
    assert_eq!(listed.len(), 7);
}

#[test]
fn names_become_annotations() {
    let digest = Digest::of(b"");
    let named = |name: &str| {
        let [descriptor] = name_manifests(&Descriptor::of("x", b""), &names(&[name]), CREATED).try_into().expect("one");
        let Descriptor { annotations, .. } = descriptor;
        (annotations[crate::annotation::IMAGE_NAME].clone(), annotations[crate::annotation::REF_NAME].clone())
    };
    let full = |text: &str| text.replace("DIGEST", &digest.to_string());
    for (name, image, short) in [
        ("x", "docker.io/library/x:latest", "latest"),
        ("x.io:5000/a:v1", "x.io:5000/a:v1", "v1"),
        ("x@DIGEST", "docker.io/library/x@DIGEST", "docker.io/library/x@DIGEST"),
        ("x:v1@DIGEST", "docker.io/library/x:v1@DIGEST", "v1@DIGEST"),
    ] {
        assert_eq!(named(&full(name)), (full(image), full(short)), "{name}");
    }
}

#[test]
fn broken_stores_do_not_make_archives() {
    let mut blobs = Blobs::default();
    let image = blobs.image("amd");
    let manifest = Manifest::parse(&blobs.0[&image.digest], None).expect("a manifest");
    let fail = |blobs: &Blobs, kind, root: &Descriptor| {
        blobs.archive(kind, std::slice::from_ref(root)).expect_err("broken").to_string()
    };

    let index = Descriptor { media_type: media_type::OCI_INDEX.into(), ..image.clone() };
    assert_eq!(
        fail(&blobs, ArchiveKind::Docker, &index),
        format!("invalid archive: cannot export {} of type `{}`", image.digest, media_type::OCI_INDEX)
    );
    let layer = &manifest.layers[1];
    blobs.0.insert(layer.digest, b"AMD".to_vec());
    assert_eq!(
        fail(&blobs, ArchiveKind::Oci, &image),
        format!("content of {} has digest {}", layer.digest, Digest::of(b"AMD"))
    );
    blobs.0.insert(layer.digest, b"amd and more".to_vec());
    assert_eq!(
        fail(&blobs, ArchiveKind::Oci, &image),
        format!("content of {} has more than 3 bytes, expected 3", layer.digest)
    );
    blobs.0.remove(&layer.digest);
    assert_eq!(fail(&blobs, ArchiveKind::Oci, &image), format!("`{}` is not in the image layout", layer.blob_path()));
    let large = Descriptor { size: 1 << 40, ..image };
    assert_eq!(
        fail(&blobs, ArchiveKind::Oci, &large),
        format!("image manifest {} is larger than the limit of 8388608 bytes", large.digest)
    );
}

#[test]
fn layouts_are_read_from_tars() {
    let mut blobs = Blobs::default();
    let (one, two) = (blobs.image("one"), blobs.image("two"));
    let mut roots = name_manifests(&one, &names(&["x:1"]), CREATED);
    roots.extend(name_manifests(&two, &names(&["x:2"]), CREATED));
    let bytes = blobs.archive(ArchiveKind::Oci, &roots).expect("all blobs are there");
    let mut layout =
        Layout::open(TarFiles::scan(Cursor::new(bytes)).expect("our own archive")).expect("our own layout");
    assert_eq!(layout.find(Some("2")).expect("a tag").digest, two.digest);
    assert_eq!(layout.find(Some("docker.io/library/x:1")).expect("a name").digest, one.digest);
    assert_eq!(
        layout.find(Some("3")).expect_err("no such tag").to_string(),
        "invalid image layout: it has no image `3`, only: 1, docker.io/library/x:1, 2, docker.io/library/x:2"
    );
    assert!(layout.find(None).expect_err("two images").to_string().contains("it has several images"));

    let manifest = layout.document(&two).expect("a manifest");
    let manifest = Manifest::parse(&manifest, Some(&two.media_type)).expect("a manifest");
    for layer in manifest.layers.iter().rev() {
        let mut content = Vec::new();
        layout.blob(layer).expect("a layer").read_to_end(&mut content).expect("the right bytes");
        assert_eq!(content, blobs.0[&layer.digest]);
    }
    let other = Descriptor::of("x", b"other");
    assert_eq!(
        layout.blob(&other).err().expect("not there").to_string(),
        format!("`{}` is not in the image layout", other.blob_path())
    );
}

#[test]
fn layouts_are_read_through_closures() {
    let mut files: HashMap<&str, &str> = HashMap::new();
    let open = |files: &HashMap<&str, &str>| {
        let files: HashMap<String, Vec<u8>> =
            files.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
        let result = Layout::open(move |path: &str| match files.get(path) {
            Some(bytes) => Ok(Cursor::new(bytes.clone())),
            None => Err(Error::Missing(path.to_owned())),
        });
        result.map(|layout| layout.index().manifests.len()).map_err(|error| error.to_string())
    };
    assert_eq!(open(&files), Err("`oci-layout` is not in the image layout".to_owned()));
    files.insert(LAYOUT, r#"{"imageLayoutVersion":"2.0.0"}"#);
    assert_eq!(open(&files), Err("invalid oci-layout: version `2.0.0` is not supported, only 1 is".to_owned()));
    files.insert(LAYOUT, LAYOUT_CONTENT);
    assert_eq!(open(&files), Err("`index.json` is not in the image layout".to_owned()));
    files.insert(INDEX, "[]");
    assert_eq!(open(&files), Err("malformed image index".to_owned()));
    files.insert(INDEX, r#"{"schemaVersion":2,"manifests":[]}"#);
    assert_eq!(open(&files), Ok(0));
}
