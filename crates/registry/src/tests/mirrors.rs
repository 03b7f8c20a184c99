use hyper::Method;
use testkit::image::{MANIFEST, TestImage, noise};
use testkit::registry::{Action, Fault, Registry};

use super::*;

const REPO: &str = "library/app";

fn image() -> TestImage {
    TestImage::of_layers(vec![noise(1, 200_000)])
}

/// `domain` is served by `mirrors`, then by itself.
fn mirrored(domain: &str, mirrors: &[String]) -> Registries {
    let mut registries = plain(domain);
    registries.0.entry(domain.to_owned()).or_default().mirrors = mirrors.to_vec();
    for mirror in mirrors {
        let host = mirror.split('/').next().expect("a host").to_owned();
        registries.0.entry(host).or_default().http = Some(true);
    }
    registries
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_told_for_whom() {
    let (mirror, origin) = (Registry::start(), Registry::start());
    let image = image();
    image.put(&mirror, &format!("proxy/hub/{REPO}"), "v1");
    let registries = mirrored(&origin.host(), &[format!("{}/proxy/hub", mirror.host())]);
    let repository = open_with(client(registries), &origin.host(), REPO);
    repository.resolve(&tag("v1")).await.expect("at the mirror");
    read(&repository, &layer(&image.layers[0])).await.expect("at the mirror");
    assert!(origin.requests().is_empty());
    let namespace = format!("ns={}", origin.host().replace(':', "%3A"));
    for request in mirror.requests() {
        assert!(request.path.starts_with(&format!("/v2/proxy/hub/{REPO}/")), "{}", request.path);
        assert_eq!(request.query, namespace);
    }
    repository.push_manifest(&tag("v2"), MANIFEST, Bytes::from_static(b"{}")).await.expect("pushes go home");
    assert_eq!(origin.count(&Method::PUT, "/manifests/"), 1);
    assert!(origin.requests()[0].query.is_empty());
}

#[tokio::test]
async fn whatever_a_mirror_does_the_registry_stands_in() {
    let gone = format!("127.0.0.1:{}", testkit::free_port());
    let faults = [
        Action::status(401),
        Action::status(403),
        Action::status(404),
        Action::status(429),
        Action::status(500),
        Action::Disconnect,
        Action::WrongBytes,
        Action::WrongLength(1),
    ];
    for fault in faults {
        let (mirror, origin) = (Registry::start(), Registry::start());
        let image = image();
        for registry in [&mirror, &origin] {
            image.put(registry, REPO, "v1");
        }
        mirror.fault(Fault::anywhere("/v2/", fault.clone()));
        let registries = mirrored(&origin.host(), &[gone.clone(), mirror.host()]);
        let repository = open_with(client(registries), &origin.host(), REPO);
        let descriptor = Descriptor::of(MANIFEST, &image.manifest);
        assert_eq!(repository.fetch_manifest(&descriptor).await.expect("at home"), image.manifest, "{fault:?}");
        assert!(mirror.requests().len() <= 2, "no patience with mirrors: {:?}", mirror.requests());
        let blob = layer(&image.layers[0]);
        match (read(&repository, &blob).await, &fault) {
            (Ok(bytes), _) => assert_eq!(bytes, image.layers[0]),
            // Known only when all was handed on: the second try avoids the mirror.
            (Err(error), Action::WrongBytes) => {
                assert_eq!(error.class(), Class::BadDigest);
                assert!(error.to_string().contains(&mirror.host()), "{error}");
                assert_eq!(read(&repository, &blob).await.expect("at home"), image.layers[0]);
            }
            (Err(error), _) => panic!("{fault:?}: {}", chain(&error)),
        }
    }
}

#[tokio::test]
async fn a_blob_that_breaks_off_at_a_mirror_goes_on_at_home() {
    let (mirror, origin) = (Registry::start(), Registry::start());
    let image = image();
    for registry in [&mirror, &origin] {
        image.put(registry, REPO, "v1");
    }
    mirror.fault(Fault::on(Method::GET, "/blobs/", Action::Cut(70_000)).times(1));
    mirror.fault(Fault::on(Method::GET, "/blobs/", Action::status(404)));
    let repository = open_with(client(mirrored(&origin.host(), &[mirror.host()])), &origin.host(), REPO);
    assert_eq!(read(&repository, &layer(&image.layers[0])).await.expect("half and half"), image.layers[0]);
    assert_eq!(origin.requests()[0].header("range"), "bytes=70000-");
}

#[tokio::test]
async fn the_registry_s_own_error_is_the_one_that_counts() {
    let (mirror, origin) = (Registry::start(), Registry::start());
    mirror.fault(Fault::anywhere("/v2/", Action::status(500)));
    let repository = open_with(client(mirrored(&origin.host(), &[mirror.host()])), &origin.host(), REPO);
    let error = repository.resolve(&tag("v1")).await.expect_err("nowhere");
    assert_eq!(error.class(), Class::NotFound);
    // What a mirror said is said as well: it may be the one that was meant to have it.
    let said = chain(&error);
    let expected = format!("{}/{REPO}:v1: not found: mirror `{}` answered 500 (", origin.host(), mirror.host());
    assert!(said.starts_with(&expected) && said.ends_with("); registry answered 404 (manifest unknown)"), "{said}");

    let gone = format!("127.0.0.1:{}", testkit::free_port());
    let repository = open_with(client(mirrored(&origin.host(), std::slice::from_ref(&gone))), &origin.host(), REPO);
    let error = repository.resolve(&tag("v1")).await.expect_err("nowhere");
    let said = chain(&error);
    assert!(said.ends_with("; registry answered 404 (manifest unknown)"), "{said}");
    assert!(said.contains(&format!(":v1: not found: mirror `{gone}`: cannot connect")), "{said}");
}

#[tokio::test]
async fn what_a_mirror_lacks_is_told_where_nothing_else_answers() {
    let (mirror, gone) = (Registry::start(), format!("127.0.0.1:{}", testkit::free_port()));
    let repository = open_with(client(mirrored(&gone, &[mirror.host()])), &gone, REPO);
    let error = repository.resolve(&tag("v1")).await.expect_err("nowhere");
    assert_eq!((error.class(), error.is_missed_by_mirrors()), (Class::Unavailable, true));
    let said = chain(&error);
    let expected =
        format!("{gone}/{REPO}:v1: not found: mirror `{}` answered 404 (manifest unknown); cannot ", mirror.host());
    assert!(said.starts_with(&expected), "{said}");
}

#[tokio::test]
async fn a_mirror_out_of_reach_is_asked_last_for_a_while() {
    let origin = Registry::start();
    let image = image();
    image.put(&origin, REPO, "v1");
    let gone = format!("127.0.0.1:{}", testkit::free_port());
    let client = client(mirrored(&origin.host(), std::slice::from_ref(&gone)));
    let endpoints = client.registries().endpoints(&origin.host()).expect("no directories to read");
    let hosts = || client.shared.in_order(&endpoints).iter().map(|e| e.host.clone()).collect::<Vec<_>>();
    assert_eq!(hosts(), [gone.clone(), origin.host()]);
    open_with(client.clone(), &origin.host(), REPO).resolve(&tag("v1")).await.expect("at home");
    assert_eq!(hosts(), [origin.host(), gone]);
}
