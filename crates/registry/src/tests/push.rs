use std::io;

use hyper::Method;
use testkit::image::{MANIFEST, TestImage, noise};
use testkit::registry::{Action, Fault, Locations, Registry};

use super::*;

const REPO: &str = "team/app";

async fn push(repository: &Repository, bytes: &Bytes) -> Result<Pushed, Error> {
    repository.push_blob(&layer(bytes), Arc::new(bytes.clone()), &[], UploadMode::Whole).await
}

#[tokio::test]
async fn an_image_goes_up_once_and_comes_down_the_same() {
    for locations in [Locations::Absolute, Locations::Path, Locations::Relative] {
        let registry = Registry::builder().locations(locations).start();
        let moves = Arc::new(Moves::default());
        let repository = open(&registry.host(), REPO).with_progress(moves.clone());
        let image = TestImage::of_layers(vec![noise(1, 700_000), noise(2, 0), noise(3, 1)]);
        for bytes in image.layers.iter().chain([&image.config]) {
            assert_eq!(push(&repository, bytes).await.expect("taken"), Pushed::Uploaded);
            assert_eq!(push(&repository, bytes).await.expect("there"), Pushed::Existed);
            assert_eq!(registry.blob(REPO, &Digest::of(bytes)).as_ref(), Some(bytes));
            let last = moves.moved.lock().expect("not poisoned").last().copied();
            assert_eq!(last, Some((Digest::of(bytes), bytes.len() as u64, bytes.len() as u64)));
        }
        let digest = repository.push_manifest(&tag("v1"), MANIFEST, image.manifest.clone()).await.expect("taken");
        assert_eq!(digest, image.digest());
        let by_digest = repository.push_manifest(&Target::Digest(digest), MANIFEST, image.manifest.clone()).await;
        assert_eq!(by_digest.expect("taken"), digest);
        assert_eq!(registry.manifest(REPO, "v1"), Some((MANIFEST.to_owned(), image.manifest.clone())));
        assert!(repository.blob_exists(&Digest::of(&image.config)).await.expect("asked"));
        assert!(!repository.blob_exists(&Digest::of(b"other")).await.expect("asked"));
    }
}

#[tokio::test]
async fn blobs_of_neighbours_are_mounted() {
    let registry = Registry::start();
    let bytes = noise(1, 1000);
    registry.put_blob("base/debian", bytes.clone());
    let repository = open(&registry.host(), REPO);
    let source: Arc<dyn BlobSource> = Arc::new(bytes.clone());
    let from = ["base/alpine".to_owned(), "base/debian".to_owned()];
    let pushed = repository.push_blob(&layer(&bytes), source.clone(), &from[1..], UploadMode::Whole).await;
    assert_eq!(pushed.expect("mounted"), Pushed::Mounted("base/debian".to_owned()));
    assert_eq!(registry.blob(REPO, &Digest::of(&bytes)), Some(bytes.clone()));
    assert_eq!(registry.count(&Method::PUT, "/blobs/"), 0);

    // The neighbour does not have it: the session that came instead is used.
    let other = open(&registry.host(), "team/other");
    let pushed = other.push_blob(&layer(&bytes), source, &from[..1], UploadMode::Whole).await;
    assert_eq!(pushed.expect("uploaded"), Pushed::Uploaded);
    assert_eq!(registry.count(&Method::POST, "team/other/blobs/uploads/"), 1);
}

#[tokio::test]
async fn uploads_that_break_begin_anew() {
    let bytes = noise(2, 600_000);
    let lost_session = Action::Answer {
        status: 404,
        headers: vec![],
        body: r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}"#.to_owned(),
    };
    for action in [
        Action::CutUpload(100_000),
        Action::Disconnect,
        Action::status(500),
        Action::status(503),
        Action::status_retry_after(429, 0),
        lost_session,
    ] {
        let registry = Registry::start();
        registry.fault(Fault::on(Method::PUT, "/blobs/uploads/", action.clone()).times(2));
        let moves = Arc::new(Moves::default());
        let repository = open(&registry.host(), REPO).with_progress(moves.clone());
        assert_eq!(push(&repository, &bytes).await.expect("the third try"), Pushed::Uploaded, "{action:?}");
        assert_eq!(registry.blob(REPO, &Digest::of(&bytes)), Some(bytes.clone()));
        assert_eq!(registry.count(&Method::POST, "/blobs/uploads/"), 3, "a session each");
        assert_eq!(moves.retries.lock().expect("not poisoned").len(), 2, "{action:?}");
    }
}

#[tokio::test]
async fn uploads_that_cannot_succeed_say_why() {
    let bytes = noise(3, 100_000);
    for (method, path, action, class, words) in [
        (Method::POST, "/uploads/", Action::status(403), Class::Denied, "403 (denied: requested access"),
        (Method::POST, "/uploads/", Action::status(401), Class::Unauthorised, "401 (unauthorized"),
        (Method::PUT, "/uploads/", Action::status(403), Class::Denied, "403 (denied: requested access"),
        (Method::PUT, "/uploads/", Action::CutUpload(10), Class::Unavailable, "connection lost"),
        (Method::POST, "/uploads/", Action::status(503), Class::Unavailable, "503"),
        (
            Method::POST,
            "/uploads/",
            Action::Answer { status: 202, headers: vec![], body: String::new() },
            Class::Invalid,
            "no location for the upload",
        ),
        (
            Method::POST,
            "/uploads/",
            Action::Answer {
                status: 202,
                headers: vec![("location", "ftp://x/?t=secret".to_owned())],
                body: String::new(),
            },
            Class::Invalid,
            "upload location `ftp://x/?t=xxxxx`",
        ),
    ] {
        let registry = Registry::start();
        registry.fault(Fault::on(method, path, action));
        let error = push(&open(&registry.host(), REPO), &bytes).await.expect_err("refused");
        assert_eq!(error.class(), class, "{error}");
        let text = chain(&error);
        let subject = format!("{}/{REPO}@{}: ", registry.host(), Digest::of(&bytes));
        assert!(text.starts_with(&subject) && text.contains(words), "{text}");
    }
}

#[tokio::test]
async fn a_registry_that_refuses_the_question_may_take_the_blob() {
    let registry = Registry::start();
    registry.fault(Fault::on(Method::HEAD, "/blobs/", Action::status(403)));
    let bytes = noise(4, 10);
    assert_eq!(push(&open(&registry.host(), REPO), &bytes).await.expect("taken"), Pushed::Uploaded);
}

#[tokio::test]
async fn sources_that_fail_are_to_blame() {
    let registry = Registry::start();
    let repository = open(&registry.host(), REPO);
    let bytes = noise(5, 400_000);
    let push = |source: Arc<dyn BlobSource>| {
        let repository = repository.clone();
        let descriptor = layer(&bytes);
        async move { repository.push_blob(&descriptor, source, &[], UploadMode::Whole).await }
    };
    let missing = push(Arc::new(FileSource("/nonexistent/blob".into()))).await.expect_err("no file");
    assert_eq!(missing.class(), Class::Local);
    assert!(chain(&missing).ends_with("No such file or directory (os error 2)"), "{}", chain(&missing));
    let short = push(Arc::new(bytes.slice(..399_999))).await.expect_err("short");
    assert!(chain(&short).ends_with("it ends 1 bytes early"), "{}", chain(&short));
    let broken = bytes.clone();
    let failing = ReadSource(move |_| -> io::Result<Box<dyn io::Read + Send>> {
        let head = io::Cursor::new(broken.slice(..300_000));
        Ok(Box::new(io::Read::chain(head, Broken)))
    });
    let failed = push(Arc::new(failing)).await.expect_err("broken disk");
    assert!(chain(&failed).ends_with("bad sector"), "{}", chain(&failed));
    // Other bytes than the descriptor's: the registry finds out.
    let other = push(Arc::new(noise(6, 400_000))).await.expect_err("other bytes");
    assert_eq!(other.class(), Class::BadDigest);
    assert_eq!(registry.blob(REPO, &Digest::of(&bytes)), None);
}

struct Broken;

impl io::Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("bad sector"))
    }
}

#[tokio::test]
async fn files_and_readers_are_sources() {
    let registry = Registry::start();
    let repository = open(&registry.host(), REPO);
    let dir = testkit::scratch("push");
    let bytes = noise(7, 1_000_001);
    let path = dir.path().join("blob");
    std::fs::write(&path, &bytes).expect("scratch is writable");
    let file = Arc::new(FileSource(path.clone()));
    repository.push_blob(&layer(&bytes), file.clone(), &[], UploadMode::Whole).await.expect("taken");
    let chunked = open(&registry.host(), "team/chunked");
    chunked.push_blob(&layer(&bytes), file, &[], UploadMode::Chunked { piece: 300_000 }).await.expect("taken");
    for repository in [REPO, "team/chunked"] {
        assert_eq!(registry.blob(repository, &Digest::of(&bytes)).as_ref(), Some(&bytes));
    }
    assert_eq!(registry.count(&Method::PATCH, "team/chunked"), 4);
}

#[tokio::test]
async fn chunked_uploads_go_on_where_they_broke() {
    let bytes = noise(8, 500_000);
    for locations in [Locations::Absolute, Locations::Path, Locations::Relative] {
        let registry = Registry::builder().locations(locations).start();
        registry.fault(Fault::on(Method::PATCH, "/uploads/", Action::CutUpload(1000)).after(2).times(2));
        registry.fault(Fault::on(Method::PATCH, "/uploads/", Action::status(503)).after(1).times(1));
        let repository = open(&registry.host(), REPO);
        let mode = UploadMode::Chunked { piece: 100_000 };
        let pushed = repository.push_blob(&layer(&bytes), Arc::new(bytes.clone()), &[], mode).await;
        assert_eq!(pushed.expect("resumed"), Pushed::Uploaded);
        assert_eq!(registry.blob(REPO, &Digest::of(&bytes)).as_ref(), Some(&bytes));
        assert_eq!(registry.count(&Method::POST, "/uploads/"), 1, "one session");
        assert_eq!(registry.count(&Method::GET, "/uploads/"), 3, "asked after each break");
        assert_eq!(registry.count(&Method::PATCH, "/uploads/"), 8);
    }
}

#[tokio::test]
async fn what_refuses_the_size_gets_pieces() {
    let registry = Registry::builder().largest_upload(80 << 20).start();
    let bytes = noise(9, (80 << 20) + 1);
    assert_eq!(push(&open(&registry.host(), REPO), &bytes).await.expect("in pieces"), Pushed::Uploaded);
    assert_eq!(registry.count(&Method::PATCH, "/uploads/"), 2);
}

#[tokio::test]
async fn manifests_that_are_refused_say_why() {
    let registry = Registry::start();
    let repository = open(&registry.host(), REPO);
    let image = TestImage::of_layers(vec![noise(1, 10)]);
    let error = repository.push_manifest(&tag("v1"), MANIFEST, image.manifest.clone()).await.expect_err("no blobs yet");
    let words = "not found: registry answered 404 (manifest blob unknown: blob unknown to registry)";
    assert_eq!(chain(&error), format!("{}/{REPO}:v1: {words}", registry.host()));

    image.put(&registry, REPO, "v0");
    registry.fault(Fault::on(Method::PUT, "/manifests/", Action::status(503)).times(3));
    repository.push_manifest(&tag("v1"), MANIFEST, image.manifest.clone()).await.expect("the fourth try");

    let other = Action::Answer {
        status: 201,
        headers: vec![("docker-content-digest", Digest::of(b"other").to_string())],
        body: String::new(),
    };
    registry.fault(Fault::on(Method::PUT, "/manifests/", other));
    let error = repository.push_manifest(&tag("v1"), MANIFEST, image.manifest.clone()).await.expect_err("changed");
    assert_eq!(error.class(), Class::BadDigest);
}
