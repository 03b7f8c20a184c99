//! How hosts are spoken to: TLS, plain HTTP, and which of them a name means.

use http_client::{KeyPair, Proxies, Verify};
use hyper::Method;
use testkit::image::{TestImage, noise};
use testkit::registry::{Action, Fault, Registry};

use super::*;
use crate::config::{Endpoint, Schemes};

const REPO: &str = "team/app";

fn configured(host: &str, config: RegistryConfig) -> Registries {
    Registries([(host.to_owned(), config)].into())
}

async fn resolve(registry: &Registry, config: RegistryConfig) -> Result<(), Error> {
    let host = registry.host();
    open_with(client(configured(&host, config)), &host, REPO).resolve(&tag("v1")).await.map(drop)
}

fn with_image(registry: Registry) -> Registry {
    TestImage::of_layers(vec![noise(1, 10)]).put(&registry, REPO, "v1");
    registry
}

#[tokio::test]
async fn certificates_are_checked_unless_told_otherwise() {
    let registry = with_image(Registry::builder().tls().start());
    let ca = RegistryConfig { ca: vec![registry.ca()], ..RegistryConfig::default() };
    let dir = RegistryConfig {
        tls_config_dirs: vec!["/nonexistent".into(), registry.certificate_dir().to_owned()],
        ..RegistryConfig::default()
    };
    let insecure = RegistryConfig { insecure: Some(true), ..RegistryConfig::default() };
    let both = RegistryConfig { http: Some(true), ..insecure.clone() };
    for config in [ca, dir, insecure, both] {
        resolve(&registry, config.clone()).await.unwrap_or_else(|error| panic!("{config:?}: {}", chain(&error)));
    }
    for config in [RegistryConfig::default(), RegistryConfig { http: Some(false), ..RegistryConfig::default() }] {
        let error = resolve(&registry, config).await.expect_err("nobody knows this CA");
        let words = format!(
            "cannot connect to `{}`: its certificate is signed by no authority that is trusted here",
            registry.host()
        );
        assert_eq!(chain(&error), format!("{}/{REPO}:v1: {words}", registry.host()));
    }
    assert!(registry.requests().iter().all(|request| request.status == 200), "nothing was asked without trust");
}

#[tokio::test]
async fn a_server_of_plain_http_is_told_from_others() {
    let registry = with_image(Registry::start());
    let config = RegistryConfig { http: Some(false), ..RegistryConfig::default() };
    let error = resolve(&registry, config).await.expect_err("it has no TLS");
    assert!(error.is_not_tls() && !error.is_certificate(), "{}", chain(&error));
    assert!(chain(&error).ends_with("it does not answer in TLS"), "{}", chain(&error));
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_where_it_is_configured() {
    let registry = with_image(Registry::builder().self_signed().start());
    let ca = RegistryConfig { ca: vec![registry.ca()], ..RegistryConfig::default() };
    resolve(&registry, ca).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let error = resolve(&registry, RegistryConfig::default()).await.expect_err("nobody knows it");
    assert!(error.is_certificate(), "{}", chain(&error));
    assert!(
        chain(&error).ends_with("its certificate is signed by no authority that is trusted here"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn client_certificates_are_shown() {
    let registry = with_image(Registry::builder().client_certificates().start());
    let other = Registry::builder().client_certificates().start();
    let pair = |registry: &Registry| {
        let (certificate, key) = registry.client_pair();
        KeyPair { certificate, key }
    };
    let ca = vec![registry.ca()];
    let keypairs = vec![pair(&registry)];
    // Of several the one that the server's list of issuers names.
    let several = vec![pair(&other), pair(&registry)];
    for keypairs in [keypairs, several] {
        let config = RegistryConfig { ca: ca.clone(), keypairs, ..RegistryConfig::default() };
        resolve(&registry, config).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
    let config = RegistryConfig { ca, ..RegistryConfig::default() };
    let error = resolve(&registry, config).await.expect_err("a certificate is required");
    assert_eq!(error.class(), Class::Unavailable, "{}", chain(&error));
    assert!(chain(&error).contains("cannot connect to"), "{}", chain(&error));
    assert!(chain(&error).ends_with("received fatal alert: CertificateRequired"), "{}", chain(&error));
}

#[tokio::test]
async fn certificate_files_that_cannot_be_used_are_named() {
    let registry = Registry::builder().tls().start();
    let dir = testkit::scratch("certs");
    let garbage = dir.path().join("garbage.crt");
    std::fs::write(&garbage, "no PEM").expect("scratch is writable");
    let missing = dir.path().join("missing.crt");
    for (path, words) in [(garbage, "it holds no certificate"), (missing, "No such file or directory")] {
        let config = RegistryConfig { ca: vec![path.clone()], ..RegistryConfig::default() };
        let error = resolve(&registry, config).await.expect_err("unusable");
        assert_eq!(error.class(), Class::Local);
        let text = chain(&error);
        assert!(text.contains(&format!("cannot use `{}`", path.display())) && text.contains(words), "{text}");
    }
}

#[tokio::test]
async fn plain_http_needs_a_word_except_on_this_machine() {
    let registry = with_image(Registry::start());
    let insecure = RegistryConfig { insecure: Some(true), ..RegistryConfig::default() };
    let both = RegistryConfig { http: Some(true), ..insecure.clone() };
    let plain = RegistryConfig { http: Some(true), ..RegistryConfig::default() };
    for config in [RegistryConfig::default(), insecure, both, plain] {
        resolve(&registry, config.clone()).await.unwrap_or_else(|error| panic!("{config:?}: {}", chain(&error)));
    }
    let config = RegistryConfig { http: Some(false), ..RegistryConfig::default() };
    let error = resolve(&registry, config).await.expect_err("https was asked for");
    assert_eq!(error.class(), Class::Unavailable);
    // `registry.insecure=true` of one export.
    let host = registry.host();
    let client = client(Registries::default().with_insecure(&host));
    open_with(client, &host, REPO).resolve(&tag("v1")).await.expect("either will do");
}

#[tokio::test]
async fn the_scheme_of_a_loopback_registry_is_found_once() {
    let registry = with_image(Registry::start());
    let client = client(Registries::default());
    for _ in 0..3 {
        open_with(client.clone(), &registry.host(), REPO).resolve(&tag("v1")).await.expect("found");
    }
    assert_eq!(registry.count(&Method::HEAD, "/manifests/"), 3);
    assert_eq!(registry.requests().len(), 3, "a TLS greeting is no request");
}

#[tokio::test]
async fn registries_that_nobody_runs_are_named() {
    let host = format!("127.0.0.1:{}", testkit::free_port());
    let error = open_with(client(Registries::default()), &host, REPO).resolve(&tag("v1")).await.expect_err("nobody");
    let words = format!("{host}/{REPO}:v1: cannot connect to `{host}`: Connection refused (os error 111)");
    assert_eq!(chain(&error), words);
    let host = "registry.invalid";
    let error = open_with(client(Registries::default()), host, REPO).resolve(&tag("v1")).await.expect_err("no name");
    assert!(
        chain(&error).contains("cannot connect to `registry.invalid`: ") && chain(&error).contains("lookup"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn proxies_carry_requests_and_exceptions_go_round_them() {
    // A proxy of plain HTTP sees the whole URL; the test registry answers whatever path it is asked for.
    let proxy = with_image(Registry::start());
    let proxied = |no_proxy: Option<&str>| {
        let proxies = Proxies {
            http: Some(format!("http://user:secret@{}", proxy.host())),
            no_proxy: no_proxy.map(str::to_owned),
            ..Proxies::default()
        };
        let client = Client::new(
            Pools::new(http_client::Settings { proxies, ..settings() }),
            plain("images.invalid"),
            Limits::default(),
        );
        open_with(client, "images.invalid", REPO)
    };
    proxied(None).resolve(&tag("v1")).await.expect("through the proxy");
    let request = proxy.requests().remove(0);
    assert_eq!(request.header("host"), "images.invalid");
    assert_eq!(request.header("proxy-authorization"), "Basic dXNlcjpzZWNyZXQ=");
    let error = proxied(Some("example.com,.invalid")).resolve(&tag("v1")).await.expect_err("directly");
    assert!(chain(&error).contains("lookup"), "{}", chain(&error));
    assert_eq!(proxy.requests().len(), 1);
    proxy.fault(Fault::anywhere("", Action::Answer { status: 407, headers: vec![], body: String::new() }));
    let error = proxied(None).resolve(&tag("v1")).await.expect_err("no login");
    let words =
        format!("cannot connect to the proxy `http://xxxxx@{}` (HTTP_PROXY) for `images.invalid`: ", proxy.host());
    assert!(chain(&error).contains(&words) && !chain(&error).contains("secret"), "{}", chain(&error));
    assert!(error.proxy_hint().is_some_and(|hint| hint.contains("USER:PASSWORD@")), "{:?}", error.proxy_hint());
}

#[test]
fn names_mean_these_hosts() {
    let endpoints = |registries: &Registries, domain: &str| {
        let show = |e: &Endpoint| {
            let scheme = match e.schemes {
                Schemes::Https => "https",
                Schemes::Http => "http",
                Schemes::Either => "either",
            };
            let verify = if e.identity.verify == Verify::Skip { " unverified" } else { "" };
            let namespace = e.namespace.as_ref().map(|ns| format!(" for {ns}")).unwrap_or_default();
            format!("{scheme}://{}{}{verify}{namespace}", e.host, e.api)
        };
        registries.endpoints(domain).expect("no directories to read").iter().map(show).collect::<Vec<_>>()
    };
    let mut registries = Registries::default();
    for (domain, shown) in [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("ghcr.io", "https://ghcr.io/v2"),
        ("localhost", "either://localhost/v2"),
        ("localhost:5000", "either://localhost:5000/v2"),
        ("127.1.2.3:5000", "either://127.1.2.3:5000/v2"),
        ("[::1]:5000", "either://[::1]:5000/v2"),
        ("localhost.example", "https://localhost.example/v2"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
    ] {
        assert_eq!(endpoints(&registries, domain), [shown]);
    }
    let table = |mirrors: &[&str], http, insecure| RegistryConfig {
        mirrors: mirrors.iter().map(|mirror| (*mirror).to_owned()).collect(),
        http,
        insecure,
        ..RegistryConfig::default()
    };
    for (host, config) in [
        (
            "docker.io",
            table(&["m1.example", "m2.example:5000/proxy/hub/", "https://m3.example/x", "localhost:1"], None, None),
        ),
        ("m2.example:5000", table(&[], Some(true), None)),
        ("m3.example", table(&[], None, Some(true))),
        ("localhost:1", table(&[], Some(false), None)),
        ("plain.example", table(&[], Some(true), Some(true))),
    ] {
        registries.0.insert(host.to_owned(), config);
    }
    assert_eq!(
        endpoints(&registries, "docker.io"),
        [
            "https://m1.example/v2 for docker.io",
            "http://m2.example:5000/v2/proxy/hub for docker.io",
            "https://m3.example/v2/x unverified for docker.io",
            "https://localhost:1/v2 for docker.io",
            "https://registry-1.docker.io/v2",
        ]
    );
    assert_eq!(endpoints(&registries, "plain.example"), ["either://plain.example/v2 unverified"]);
}
