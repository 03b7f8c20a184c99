use std::io::{self, Read};

use hyper::Method;
use testkit::image::{MANIFEST, TestImage, noise};
use testkit::registry::{Action, Fault, Headers, Registry};

use super::*;

const REPO: &str = "team/app";

fn image() -> TestImage {
    TestImage::of_layers(vec![noise(1, 300_000), noise(2, 5)])
}

#[tokio::test]
async fn a_tag_is_resolved_by_head_and_the_rest_is_verified() {
    let registry = Registry::start();
    let image = image();
    let digest = image.put(&registry, REPO, "v1");
    let repository = open(&registry.host(), REPO);

    let resolved = repository.resolve(&tag("v1")).await.expect("it is there");
    let expected = Descriptor::of(MANIFEST, &image.manifest);
    assert_eq!(resolved, Resolved { descriptor: expected.clone(), document: None });
    assert_eq!(registry.count(&Method::GET, "/manifests/"), 0, "HEAD suffices");

    assert_eq!(repository.fetch_manifest(&expected).await.expect("verified"), image.manifest);
    let by_digest = repository.resolve(&Target::Digest(digest)).await.expect("it is there");
    assert_eq!(by_digest, Resolved { descriptor: expected, document: Some(image.manifest.clone()) });
    for bytes in image.layers.iter().chain([&image.config]) {
        assert_eq!(&read(&repository, &layer(bytes)).await.expect("verified"), bytes);
    }
    assert_eq!(registry.requests()[0].header("user-agent"), http_client::USER_AGENT);
}

#[tokio::test]
async fn resolve_copes_with_registries_that_lack_headers_or_head() {
    let image = image();
    let without_digest = Registry::builder().digest_headers(Headers::Missing).start();
    let without_head = Registry::start();
    without_head.fault(Fault::on(Method::HEAD, "/manifests/", Action::status(405)));
    let generic = Registry::start();
    for registry in [&without_digest, &without_head, &generic] {
        image.put(registry, REPO, "v1");
    }
    generic.put_manifest(REPO, "v1", "application/json", image.manifest.clone());
    for registry in [&without_digest, &without_head, &generic] {
        let resolved = open(&registry.host(), REPO).resolve(&tag("v1")).await.expect("found by GET");
        assert_eq!(resolved.descriptor, Descriptor::of(MANIFEST, &image.manifest));
        assert_eq!(resolved.document, Some(image.manifest.clone()));
    }
}

#[tokio::test]
async fn documents_that_are_not_what_was_asked_for_are_refused() {
    let registry = Registry::start();
    let image = image();
    let digest = image.put(&registry, REPO, "v1");
    registry.put_manifest(
        REPO,
        "old",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        r#"{"schemaVersion": 1}"#,
    );
    registry.put_manifest(REPO, "older", "application/json", r#"{"schemaVersion": 1, "name": "x"}"#);
    registry.put_manifest(REPO, "huge", MANIFEST, vec![b' '; 5 << 20]);
    let repository = open(&registry.host(), REPO);
    let name = repository.name();

    for old in ["old", "older"] {
        let error = repository.resolve(&tag(old)).await.expect_err("schema 1");
        assert_eq!(error.class(), Class::Unsupported);
        assert!(chain(&error).starts_with(&format!("{name}:{old}: it is a Docker schema 1 image")), "{error}");
    }
    let error = repository.resolve(&tag("huge")).await.expect_err("too large");
    assert_eq!(error.class(), Class::TooLarge);

    let descriptor = Descriptor::of(MANIFEST, &image.manifest);
    registry.fault(Fault::on(Method::GET, "/manifests/", Action::WrongBytes).times(1));
    let error = repository.fetch_manifest(&descriptor).await.expect_err("other bytes");
    assert!(matches!(&error, Error::BadDigest { found, .. } if *found != digest), "{error:?}");

    let wrong_size = Descriptor { size: descriptor.size + 1, ..descriptor };
    let error = repository.fetch_manifest(&wrong_size).await.expect_err("another size");
    assert!(matches!(error, Error::BadSize { .. }), "{error:?}");
}

#[tokio::test]
async fn refusals_are_told_in_the_words_of_the_registry() {
    let registry = Registry::start();
    let host = registry.host();
    let repository = open(&host, REPO);
    let html = Action::Answer { status: 418, headers: vec![], body: "<html>teapot</html>".to_owned() };
    let text = Action::Answer { status: 400, headers: vec![], body: "bad\u{7} wish\nmore".to_owned() };
    for (action, class, words) in [
        (None, Class::NotFound, "not found: registry answered 404 (manifest unknown)"),
        (
            Some(Action::status(401)),
            Class::Unauthorised,
            "registry answered 401 (unauthorized: authentication required)",
        ),
        (
            Some(Action::status(403)),
            Class::Denied,
            "registry answered 403 (denied: requested access to the resource is denied)",
        ),
        (Some(Action::status(429)), Class::RateLimited, "registry answered 429 (toomanyrequests: too many requests)"),
        (Some(Action::status(500)), Class::Unavailable, "registry answered 500 (unknown: something went wrong)"),
        (Some(Action::status(503)), Class::Unavailable, "registry answered 503 (unknown: something went wrong)"),
        (Some(html), Class::Invalid, "registry answered 418 (i'm a teapot)"),
        (Some(text), Class::Invalid, "registry answered 400 (bad  wish)"),
    ] {
        registry.behave();
        registry.fault(Fault::anywhere("/manifests/", action.unwrap_or(Action::IgnoreRange)));
        let error = repository.resolve(&tag("v1")).await.expect_err("refused");
        assert_eq!(error.class(), class, "{error}");
        assert_eq!(chain(&error), format!("{host}/{REPO}:v1: {words}"));
    }
}

#[tokio::test]
async fn passing_troubles_are_outlasted_and_told() {
    for status in [408, 429, 500, 502, 503, 504] {
        let registry = Registry::start();
        let image = image();
        image.put(&registry, REPO, "v1");
        for path in ["/manifests/", "/blobs/"] {
            registry.fault(Fault::on(Method::GET, path, Action::status(status)).times(3));
        }
        let moves = Arc::new(Moves::default());
        let repository = open(&registry.host(), REPO).with_progress(moves.clone());
        let manifest = repository.fetch_manifest(&Descriptor::of(MANIFEST, &image.manifest)).await;
        assert_eq!(manifest.expect("the fourth try"), image.manifest, "{status}");
        let bytes = read(&repository, &layer(&image.layers[0])).await.expect("the fourth try");
        assert_eq!(bytes, image.layers[0]);
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 4);
        let retries = moves.retries.lock().expect("not poisoned").clone();
        assert_eq!(retries.len(), 6, "{retries:?}");
        assert!(retries[0].contains(&format!("answered {status}")) && retries[0].contains("(1/4)"), "{retries:?}");
    }
}

#[tokio::test]
async fn an_overloaded_registry_is_not_asked_twice_as_often() {
    let registry = Registry::start();
    registry.fault(Fault::anywhere("/manifests/", Action::status(503)));
    let error = open(&registry.host(), REPO).resolve(&tag("v1")).await.expect_err("overloaded");
    assert!(chain(&error).contains("503 (unknown: something went wrong)"), "{}", chain(&error));
    assert_eq!((registry.count(&Method::HEAD, "/"), registry.count(&Method::GET, "/")), (4, 1));
}

#[tokio::test]
async fn retry_after_is_obeyed_up_to_a_point() {
    let registry = Registry::start();
    let image = image();
    image.put(&registry, REPO, "v1");
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::status_retry_after(429, 0)).times(2));
    let repository = open(&registry.host(), REPO);
    assert!(read(&repository, &layer(&image.layers[0])).await.is_ok());
    assert_eq!(registry.count(&Method::GET, "/blobs/"), 3);

    registry.forget_requests();
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::status_retry_after(429, 3600)));
    let error = read(&repository, &layer(&image.layers[0])).await.expect_err("an hour is too long");
    let Error::Answer(answer) = error else { panic!("{error:?}") };
    assert_eq!(answer.retry_after, Some(Duration::from_secs(3600)));
    assert_eq!(registry.count(&Method::GET, "/blobs/"), 1, "no second try");
}

#[tokio::test]
async fn a_blob_that_is_cut_short_goes_on_where_it_broke() {
    let registry = Registry::start();
    let image = image();
    image.put(&registry, REPO, "v1");
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::Cut(100_000)).times(2));
    let moves = Arc::new(Moves::default());
    let repository = open(&registry.host(), REPO).with_progress(moves.clone());
    assert_eq!(read(&repository, &layer(&image.layers[0])).await.expect("resumed"), image.layers[0]);
    let requests = registry.requests();
    let ranges: Vec<&str> = requests.iter().map(|request| request.header("range")).collect();
    assert_eq!(ranges, ["", "bytes=100000-", "bytes=200000-"]);
    assert_eq!(requests[1].status, 206);
    let moved = moves.moved.lock().expect("not poisoned").clone();
    assert!(moved.windows(2).all(|pair| pair[0].1 < pair[1].1), "progress goes forward only");
    assert_eq!(moved.last().map(|(_, current, total)| (*current, *total)), Some((300_000, 300_000)));
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_read_from_the_start_again() {
    let registry = Registry::start();
    let image = image();
    image.put(&registry, REPO, "v1");
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::Cut(100_000)).times(1));
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::IgnoreRange));
    let repository = open(&registry.host(), REPO);
    assert_eq!(read(&repository, &layer(&image.layers[0])).await.expect("resumed"), image.layers[0]);
    assert_eq!(registry.requests()[1].status, 200);
}

#[tokio::test]
async fn a_caller_can_go_on_with_what_it_has_kept() {
    let registry = Registry::start();
    let image = image();
    image.put(&registry, REPO, "v1");
    let bytes = &image.layers[0];
    let repository = open(&registry.host(), REPO);
    let mut hasher = Digest::hasher();
    hasher.update(&bytes[..123_456]);
    let start = BlobStart::At { offset: 123_456, hasher: hasher.clone() };
    let mut stream = repository.fetch_blob(&layer(bytes), start).await.expect("it is there");
    let mut rest = BytesMut::new();
    while let Some(chunk) = stream.chunk().await.expect("verified as a whole") {
        rest.extend_from_slice(&chunk);
    }
    assert_eq!(rest, bytes[123_456..]);

    // What was kept is wrong: the end tells.
    hasher.update(b"!");
    let start = BlobStart::At { offset: 123_456, hasher };
    let mut stream = repository.fetch_blob(&layer(bytes), start).await.expect("it is there");
    let error = loop {
        match stream.chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("verified wrong bytes"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.class(), Class::BadDigest);

    // All is there already: nothing is asked.
    registry.forget_requests();
    let mut hasher = Digest::hasher();
    hasher.update(bytes);
    let start = BlobStart::At { offset: bytes.len() as u64, hasher };
    let mut stream = repository.fetch_blob(&layer(bytes), start).await.expect("nothing to do");
    assert_eq!(stream.chunk().await.expect("verified"), None);
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn blobs_that_are_wrong_are_errors_and_never_an_end() {
    let bytes = noise(3, 200_000);
    for (action, class, words) in [
        (Action::WrongBytes, Class::BadDigest, "sent bytes of digest sha256:"),
        (Action::WrongLength(5), Class::BadDigest, "sent 200005 bytes instead of 200000"),
        (Action::WrongLength(-5), Class::BadDigest, "sent 199995 bytes instead of 200000"),
        // It never gets far enough to be worth more tries.
        (Action::Cut(10), Class::Truncated, "broke off after"),
        (Action::EndEarly(10), Class::Truncated, "connection closed early"),
        (Action::Disconnect, Class::Unavailable, "connection lost"),
    ] {
        let registry = Registry::start();
        registry.put_blob(REPO, bytes.clone());
        registry.fault(Fault::on(Method::GET, "/blobs/", action.clone()));
        let repository = open(&registry.host(), REPO);
        let error = read(&repository, &layer(&bytes)).await.expect_err("wrong");
        assert_eq!(error.class(), class, "{action:?}: {error}");
        if let Ok(mut stream) = repository.fetch_blob(&layer(&bytes), BlobStart::Beginning).await {
            while stream.chunk().await.is_ok_and(|chunk| chunk.is_some()) {}
            for _ in 0..3 {
                assert!(stream.chunk().await.is_err(), "{action:?}: an error is no end, however often one asks");
            }
        }
        assert!(chain(&error).contains(words), "{action:?}: {}", chain(&error));
        assert!(chain(&error).contains(&Digest::of(&bytes).to_string()), "{error}");
    }
}

#[tokio::test]
async fn more_bytes_than_announced_nowhere_are_refused() {
    // Without a length, only the descriptor tells.
    let registry = Registry::start();
    let bytes = noise(4, 200_000);
    registry.put_blob(REPO, bytes.clone());
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::EndEarly(u64::MAX)));
    let shorter = Descriptor { size: 100_000, ..layer(&bytes) };
    let error = read(&open(&registry.host(), REPO), &shorter).await.expect_err("too long");
    assert!(matches!(error, Error::BadSize { expected: 100_000, .. }), "{error:?}");
}

#[tokio::test]
async fn silence_is_an_error() {
    for action in [Action::Hang, Action::Drip(10, Duration::from_secs(3600))] {
        let registry = Registry::start();
        let bytes = noise(5, 1000);
        registry.put_blob(REPO, bytes.clone());
        registry.fault(Fault::on(Method::GET, "/blobs/", action));
        let client = Client::new(Pools::new(impatient()), plain(&registry.host()), Limits::default());
        let error = read(&open_with(client, &registry.host(), REPO), &layer(&bytes)).await.expect_err("silence");
        assert!(matches!(error.class(), Class::Unavailable | Class::Truncated), "{error:?}");
        assert!(chain(&error).contains("within"), "{}", chain(&error));
    }
}

#[tokio::test]
async fn slow_is_not_silent() {
    let registry = Registry::start();
    let bytes = noise(6, 500);
    registry.put_blob(REPO, bytes.clone());
    // In all longer than the idle limit, each pause far shorter.
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::Drip(10, Duration::from_millis(20))));
    let client = Client::new(Pools::new(impatient()), plain(&registry.host()), Limits::default());
    assert_eq!(read(&open_with(client, &registry.host(), REPO), &layer(&bytes)).await.expect("slow"), bytes);
}

#[tokio::test]
async fn redirected_blobs_come_without_our_credentials() {
    let storage = Registry::start();
    let registry = Registry::builder().auth(testkit::Auth::token()).start();
    let bytes = noise(7, 200_000);
    storage.put_blob(REPO, bytes.clone());
    registry.put_blob(REPO, bytes.clone());
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::Redirect(storage.url())).after(1));
    storage.fault(Fault::on(Method::GET, "/blobs/", Action::Cut(90_000)).times(1));
    let repository = open(&registry.host(), REPO);
    assert_eq!(read(&repository, &layer(&bytes)).await.expect("redirected"), bytes);
    let requests = storage.requests();
    assert_eq!(requests.len(), 2, "the broken one and its continuation, each by a redirect of its own");
    assert!(requests.iter().all(|request| !request.is_authorized()), "tokens stay with the registry");
    assert_eq!(requests[1].header("range"), "bytes=90000-");
    assert!(registry.requests().iter().filter(|r| r.path.contains("/blobs/")).skip(1).all(|r| r.is_authorized()));

    storage.fault(Fault::on(Method::GET, "/blobs/", Action::status(403)));
    let error = read(&repository, &layer(&bytes)).await.expect_err("storage refuses");
    assert!(!chain(&error).contains("secret-signature"), "{}", chain(&error));
}

#[tokio::test]
async fn redirect_loops_end() {
    let registry = Registry::start();
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::Redirect(registry.url())));
    let error = read(&open(&registry.host(), REPO), &layer(&noise(1, 1))).await.expect_err("a loop");
    assert!(chain(&error).ends_with("more than 10 redirects"), "{}", chain(&error));
}

#[tokio::test]
async fn foreign_layers_come_from_their_urls() {
    let elsewhere = Registry::start();
    let registry = Registry::start();
    let bytes = noise(8, 50_000);
    elsewhere.put_blob("base/windows", bytes.clone());
    let url = format!("{}/v2/base/windows/blobs/{}", elsewhere.url(), Digest::of(&bytes));
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let descriptor = Descriptor { urls: vec!["ftp://x/y".to_owned(), url], ..Descriptor::of(foreign, &bytes) };
    let repository = open(&registry.host(), REPO);
    assert_eq!(read(&repository, &descriptor).await.expect("from the url"), bytes);
    assert!(registry.requests().is_empty(), "foreign layers are asked for abroad first");
    let ordinary = Descriptor { media_type: LAYER.to_owned(), ..descriptor };
    assert_eq!(read(&repository, &ordinary).await.expect("from the url"), bytes);
    assert_eq!(registry.count(&Method::GET, "/blobs/"), 1, "others are asked for at home first");
}

#[tokio::test]
async fn a_blocking_reader_gets_the_same_bytes_and_errors() {
    let registry = Registry::start();
    let bytes = noise(9, 300_000);
    registry.put_blob(REPO, bytes.clone());
    let repository = open(&registry.host(), REPO);
    for (action, good) in [(Action::IgnoreRange, true), (Action::WrongBytes, false)] {
        registry.behave();
        registry.fault(Fault::on(Method::GET, "/blobs/", action));
        let stream = repository.fetch_blob(&layer(&bytes), BlobStart::Beginning).await.expect("it is there");
        let mut reader = stream.into_blocking();
        let result = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        match result.await.expect("no panic") {
            Ok(all) => assert!(good && all == bytes),
            Err(error) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).expect("our error");
                assert!(!good && inner.class() == Class::BadDigest);
            }
        }
    }
}

#[tokio::test]
async fn a_stopped_download_is_an_error_and_no_end() {
    let registry = Registry::start();
    let bytes = noise(11, 300_000);
    registry.put_blob(REPO, bytes.clone());
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::Drip(1000, Duration::from_secs(3600))));
    let repository = open(&registry.host(), REPO);
    let stream = repository.fetch_blob(&layer(&bytes), BlobStart::Beginning).await.expect("it is there");
    let mut reader = stream.into_blocking();
    let stopper = reader.stopper();
    let (sender, first) = tokio::sync::oneshot::channel();
    let reading = tokio::task::spawn_blocking(move || {
        let mut buffer = [0; 100];
        let read = reader.read(&mut buffer);
        sender.send(read.is_ok()).expect("the test waits");
        io::copy(&mut reader, &mut io::sink()).expect_err("stopped").to_string()
    });
    assert!(first.await.expect("something came"));
    stopper.stop();
    assert_eq!(reading.await.expect("no panic"), "the download was stopped");
}

#[tokio::test]
async fn empty_blobs_need_no_request() {
    let registry = Registry::start();
    let empty = Bytes::new();
    assert_eq!(read(&open(&registry.host(), REPO), &layer(&empty)).await.expect("empty"), empty);
    let wrong = Descriptor { size: 0, ..layer(&noise(1, 1)) };
    assert_eq!(read(&open(&registry.host(), REPO), &wrong).await.expect_err("not empty").class(), Class::BadDigest);
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn at_most_so_many_blobs_of_a_host_move_at_once() {
    let registry = Registry::start();
    let bytes = noise(10, 10);
    registry.put_blob(REPO, bytes.clone());
    let client = Client::new(Pools::new(settings()), plain(&registry.host()), Limits { transfers_per_host: 2 });
    let repository = open_with(client, &registry.host(), REPO);
    let descriptor = layer(&bytes);
    let fetch = || repository.fetch_blob(&descriptor, BlobStart::Beginning);
    let first = fetch().await.expect("one");
    let _second = fetch().await.expect("two");
    let mut third = Box::pin(fetch());
    tokio::select! {
        biased;
        _ = &mut third => panic!("the third waits"),
        () = tokio::task::yield_now() => {}
    }
    assert!(repository.resolve(&tag("none")).await.expect_err("documents do not wait").is_not_found());
    drop(first);
    assert!(third.await.is_ok());
}
