//! Against distribution's own server (Debian's `docker-registry`), with crane and skopeo as the other client.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::image::{CONFIG, INDEX, MANIFEST, TestImage, noise};
use testkit::{DockerRegistry, Registry, needs};

use super::*;

async fn push_image(repository: &Repository, image: &TestImage, name: &str) {
    for bytes in image.layers.iter().chain([&image.config]) {
        let pushed = repository.push_blob(&layer(bytes), Arc::new(bytes.clone()), &[], UploadMode::Whole).await;
        pushed.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
    repository.push_manifest(&tag(name), MANIFEST, image.manifest.clone()).await.expect("taken");
}

async fn assert_pulls(repository: &Repository, image: &TestImage, name: &str) {
    let resolved = repository.resolve(&tag(name)).await.expect("there");
    assert_eq!(resolved.descriptor, Descriptor::of(MANIFEST, &image.manifest));
    assert_eq!(repository.fetch_manifest(&resolved.descriptor).await.expect("there"), image.manifest);
    for bytes in &image.layers {
        assert_eq!(&read(repository, &layer(bytes)).await.expect("there"), bytes);
    }
    assert_eq!(read(repository, &Descriptor::of(CONFIG, &image.config)).await.expect("there"), image.config);
}

fn run(program: &Path, args: &[&str]) {
    let output = Command::new(program).args(args).env("HOME", "/nonexistent").output().expect("the program starts");
    assert!(output.status.success(), "{program:?} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn image() -> TestImage {
    TestImage::of_layers(vec![noise(1, 3_000_000), noise(2, 77)])
}

#[tokio::test]
async fn images_round_trip_through_distribution() {
    needs!("docker-registry");
    let server = DockerRegistry::start().expect("it starts");
    // No configuration: a loopback registry is found to speak plain HTTP.
    let client = client(Registries::default());
    let repository = open_with(client.clone(), &server.host(), "team/app");
    let image = image();
    push_image(&repository, &image, "v1").await;
    assert_pulls(&repository, &image, "v1").await;

    let error = repository.resolve(&tag("v2")).await.expect_err("not pushed");
    let words = "not found: registry answered 404 (manifest unknown)";
    assert_eq!(chain(&error), format!("{}/team/app:v2: {words}", server.host()));

    // Mount, chunks, resume at an offset, index.
    let other = open_with(client, &server.host(), "team/other");
    let from = ["team/app".to_owned()];
    let source: Arc<dyn BlobSource> = Arc::new(image.layers[0].clone());
    let mounted = other.push_blob(&layer(&image.layers[0]), source, &from, UploadMode::Whole).await;
    assert_eq!(mounted.expect("mounted"), Pushed::Mounted(from[0].clone()));
    let bytes = noise(9, 2_500_000);
    let mode = UploadMode::Chunked { piece: 1_000_000 };
    let pushed = other.push_blob(&layer(&bytes), Arc::new(bytes.clone()), &[], mode).await;
    assert_eq!(pushed.expect("in pieces"), Pushed::Uploaded);
    let mut hasher = Digest::hasher();
    hasher.update(&bytes[..2_000_000]);
    let start = BlobStart::At { offset: 2_000_000, hasher };
    let mut stream = other.fetch_blob(&layer(&bytes), start).await.expect("there");
    let mut rest = BytesMut::new();
    while let Some(chunk) = stream.chunk().await.expect("verified") {
        rest.extend_from_slice(&chunk);
    }
    assert_eq!(rest, bytes[2_000_000..]);
    let empty = Bytes::new();
    let pushed = other.push_blob(&layer(&empty), Arc::new(empty.clone()), &[], UploadMode::Whole).await;
    assert!(matches!(pushed.expect("empty blobs are blobs"), Pushed::Uploaded | Pushed::Existed));
    let entry = testkit::image::descriptor(MANIFEST, &image.manifest);
    let index = Bytes::from(format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{entry}]}}"#));
    let digest = repository.push_manifest(&tag("multi"), INDEX, index.clone()).await.expect("taken");
    let resolved = repository.resolve(&Target::Digest(digest)).await.expect("there");
    assert_eq!((resolved.descriptor.media_type.as_str(), resolved.document), (INDEX, Some(index)));
}

#[tokio::test]
async fn distribution_s_login_is_understood() {
    needs!("docker-registry");
    let server = DockerRegistry::start_with_login().expect("it starts");
    let name = reference(&format!("{}/team/app", server.host()));
    let (user, password) = testkit::LOGIN;
    let keys = Keys::of(&server.host(), login(user, password));
    let repository = client(plain(&server.host())).repository(&name, keys).expect("a repository");
    push_image(&repository, &image(), "v1").await;
    assert_pulls(&repository, &image(), "v1").await;
    for keys in [Arc::new(Keys::default()), Keys::of(&server.host(), login(user, "wrong"))] {
        let repository = client(plain(&server.host())).repository(&name, keys).expect("a repository");
        let error = repository.resolve(&tag("v1")).await.expect_err("not logged in");
        assert_eq!(error.class(), Class::Unauthorised);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reads_what_we_push_and_we_read_what_skopeo_pushes() {
    needs!("docker-registry", "skopeo");
    let skopeo = testkit::need::program("skopeo").expect("just checked");
    let server = DockerRegistry::start().expect("it starts");
    let fake = Registry::start();
    let dir = testkit::scratch("skopeo");
    let image = image();
    for host in [server.host(), fake.host()] {
        let repository = open_with(client(Registries::default()), &host, "ours/app");
        push_image(&repository, &image, "v1").await;
        let out = format!("dir:{}", dir.path().join(host.replace(':', "-")).display());
        run(&skopeo, &["copy", "--src-tls-verify=false", &format!("docker://{host}/ours/app:v1"), &out]);
        let layout = dir.path().join("layout");
        image.write_layout(&layout, "v1").expect("scratch is writable");
        let from = format!("oci:{}:v1", layout.display());
        run(&skopeo, &["copy", "--dest-tls-verify=false", &from, &format!("docker://{host}/theirs/app:v1")]);
        assert_pulls(
            &open_with(client(Registries::default()), &host, "theirs/app"),
            &image_of(&host, "theirs/app").await,
            "v1",
        )
        .await;
    }
}

/// What a tag holds now: skopeo compresses layers on the way.
async fn image_of(host: &str, path: &str) -> TestImage {
    let repository = open_with(client(Registries::default()), host, path);
    let resolved = repository.resolve(&tag("v1")).await.expect("there");
    let manifest = repository.fetch_manifest(&resolved.descriptor).await.expect("there");
    let parsed = image::Manifest::parse(&manifest, None).expect("a manifest");
    let mut layers = Vec::new();
    for descriptor in &parsed.layers {
        layers.push(read(&repository, descriptor).await.expect("there"));
    }
    let config = read(&repository, &parsed.config).await.expect("there");
    assert_eq!(config, image().config, "the config passes unchanged");
    TestImage { manifest, config, layers }
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_reads_what_we_push_and_we_read_what_crane_pushes() {
    needs!("docker-registry", "crane");
    let crane: PathBuf = testkit::need::program("crane").expect("just checked");
    let server = DockerRegistry::start().expect("it starts");
    let fake = Registry::start();
    let dir = testkit::scratch("crane");
    let image = image();
    for host in [server.host(), fake.host()] {
        let repository = open_with(client(Registries::default()), &host, "ours/app");
        push_image(&repository, &image, "v1").await;
        let (from, to) = (format!("{host}/ours/app:v1"), format!("{host}/theirs/app:v1"));
        // Not all of it: crane takes every layer for gzip there.
        run(&crane, &["validate", "--insecure", "--fast", "--remote", &from]);
        run(&crane, &["copy", "--insecure", &from, &to]);
        assert_pulls(&open_with(client(Registries::default()), &host, "theirs/app"), &image, "v1").await;
        let layout = dir.path().join(host.replace(':', "-"));
        run(&crane, &["pull", "--insecure", "--format=oci", &from, &layout.display().to_string()]);
        for bytes in image.layers.iter().chain([&image.config, &image.manifest]) {
            let blob = layout.join("blobs/sha256").join(Digest::of(bytes).hex());
            assert_eq!(&Bytes::from(std::fs::read(blob).expect("pulled")), bytes);
        }
    }
}
