//! Pools against a server of `testkit`; policies by themselves.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, header};
use testkit::registry::{Action, Fault, Registry};
use tokio::time::Instant;
use url::Url;

use super::*;
use crate::proxy::Rules;
use crate::retry::retry_after;

fn quick() -> Settings {
    let retry = Retry {
        attempts: 4,
        first_delay: Duration::from_millis(1),
        longest_delay: Duration::from_millis(2),
        longest_retry_after: Duration::from_secs(1),
    };
    Settings { retry, ..Settings::default() }
}

fn client(settings: Settings) -> Client {
    Pools::new(settings).client(&TlsIdentity::default()).expect("a client")
}

fn url(registry: &Registry, path: &str) -> Url {
    Url::parse(&format!("{}{path}", registry.url())).expect("a url")
}

fn answer(status: u16, headers: Vec<(&'static str, String)>, body: &str) -> Action {
    Action::Answer { status, headers, body: body.to_owned() }
}

#[tokio::test(start_paused = true)]
async fn waits_double_up_to_a_limit_and_never_come_at_once() {
    let policy = Retry::default();
    let begun = Instant::now();
    let mut told = Vec::new();
    let result = retry(
        &policy,
        |retrying| told.push(retrying.clone()),
        async |attempt| Verdict::Again { last: attempt, cause: format!("no {attempt}"), after: None },
    );
    assert_eq!(result.await, 5, "the last answer is returned");
    let delays: Vec<Duration> = told.iter().map(|retrying| retrying.delay).collect();
    for (delay, longest) in delays.iter().zip([500, 1000, 2000, 4000].map(Duration::from_millis)) {
        assert!((longest / 2..=longest).contains(delay), "{delay:?} of {longest:?}");
    }
    // The clock is paused: this is what was slept, not how long it took.
    let slept = begun.elapsed();
    let asked: Duration = delays.iter().sum();
    assert!(slept >= asked && slept <= asked + Duration::from_millis(10), "{slept:?}, {asked:?}");
    let text = told[0].to_string();
    assert!(text.starts_with("no 1; trying again in 0.") && text.ends_with(" s (1/5)"), "{text}");
    assert_eq!(policy.delay(5), Duration::from_secs(8));
    assert_eq!(policy.delay(4000), Duration::from_secs(8));
}

#[tokio::test(start_paused = true)]
async fn servers_choose_the_wait_within_reason() {
    let begun = Instant::now();
    let after = async |seconds| {
        let op = |attempt| async move {
            match attempt {
                1 => Verdict::Again { last: 0, cause: String::new(), after: Some(Duration::from_secs(seconds)) },
                done => Verdict::Done(done),
            }
        };
        retry(&Retry::default(), |_| {}, op).await
    };
    assert_eq!(after(42).await, 2);
    assert_eq!(begun.elapsed().as_secs(), 42);
    assert_eq!(after(61).await, 0, "longer than we wait: no second try");
    assert_eq!(begun.elapsed().as_secs(), 42);
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    for (value, date, expected) in [
        ("120", None, Some(120)),
        (" 0 ", None, Some(0)),
        ("Sun, 06 Nov 1994 08:50:37 GMT", Some("Sun, 06 Nov 1994 08:49:37 GMT"), Some(60)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some("Sun, 06 Nov 1994 08:50:37 GMT"), Some(0)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", None, Some(0)),
        ("soon", None, None),
        ("-1", None, None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(value));
        if let Some(date) = date {
            headers.insert(header::DATE, HeaderValue::from_static(date));
        }
        assert_eq!(retry_after(&headers), expected.map(Duration::from_secs), "{value}");
    }
}

#[test]
fn proxies_follow_the_rules_of_go() {
    let rules = |no_proxy: &str| -> Rules {
        Proxies {
            http: Some("proxy:3128".to_owned()),
            https: Some("http://tls-proxy:3129".to_owned()),
            no_proxy: Some(no_proxy.to_owned()),
        }
        .compile()
        .expect("good proxies")
    };
    for (no_proxy, url, direct) in [
        ("", "http://a.example/", false),
        ("", "http://localhost:5000/", true),
        ("", "http://127.8.0.1/", true),
        ("", "http://[::1]:5000/", true),
        ("*", "https://a.example/", true),
        ("example", "https://a.example/", true),
        ("example", "https://example/", true),
        ("example", "https://notexample/", false),
        (".a.example", "https://a.example/", false),
        (".a.example", "https://b.a.example/", true),
        ("*.a.example", "https://b.a.example/", true),
        ("A.Example ", "https://a.EXAMPLE./", true),
        (" x, a.example:443", "https://a.example/", true),
        ("a.example:80", "https://a.example/", false),
        ("10.0.0.0/8", "http://10.1.2.3/", true),
        ("10.0.0.0/8", "http://11.1.2.3/", false),
        ("0.0.0.0/0", "http://11.1.2.3/", true),
        ("10.0.0.0/99", "http://10.0.0.1/", false),
        ("fd00::/8", "http://[fd12::1]/", true),
        ("10.1.2.3:81", "http://10.1.2.3:81/", true),
        ("10.1.2.3:81", "http://10.1.2.3/", false),
        ("10.1.2.3", "http://10.1.2.3:81/", true),
    ] {
        let parsed = Url::parse(url).expect("a url");
        let proxy = rules(no_proxy).for_url(&parsed).map(Url::to_string);
        let expected = match (direct, parsed.scheme()) {
            (true, _) => None,
            (false, "https") => Some("http://tls-proxy:3129/".to_owned()),
            (false, _) => Some("http://proxy:3128/".to_owned()),
        };
        assert_eq!(proxy, expected, "{no_proxy} {url}");
    }
}

#[test]
fn proxy_variables_are_read_in_both_cases() {
    let vars = |pairs: &'static [(&'static str, &'static str)]| {
        Proxies::from_vars(move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).to_owned()))
    };
    let proxies = vars(&[("HTTP_PROXY", "upper"), ("http_proxy", "lower"), ("https_proxy", "lower"), ("NO_PROXY", "")]);
    let expected = Proxies { http: Some("upper".to_owned()), https: Some("lower".to_owned()), no_proxy: None };
    assert_eq!(proxies, expected);
    for (setting, words) in [
        ("socks5://u:secret@host", "cannot use proxy `socks5://xxxxx@host`: scheme `socks5` is not supported"),
        ("http://", "cannot use proxy `http://`: empty host"),
    ] {
        let proxies = Proxies { https: Some(setting.to_owned()), ..Proxies::default() };
        let pools = Pools::new(Settings { proxies, ..Settings::default() });
        let text = pools.client(&TlsIdentity::default()).err().expect("refused").to_string();
        assert!(text.starts_with(words), "{text}");
    }
}

#[tokio::test]
async fn only_what_can_be_repeated_is_repeated() {
    for (method, tries) in [
        (Method::GET, 4),
        (Method::HEAD, 4),
        (Method::PUT, 4),
        (Method::DELETE, 4),
        (Method::POST, 1),
        (Method::PATCH, 1),
    ] {
        for action in [Action::status(503), Action::status(429), Action::Disconnect] {
            let server = Registry::start();
            server.fault(Fault::anywhere("/", action));
            let told = Arc::new(AtomicUsize::new(0));
            let counter = told.clone();
            let request = Request::new(method.clone(), url(&server, "/x")).notify(Some(Arc::new(move |_| {
                counter.fetch_add(1, Ordering::Relaxed);
            })));
            // The answer or error of the last try is the result.
            let _ = client(quick()).send(&request).await;
            assert_eq!(server.requests().len(), tries, "{method}");
            assert_eq!(told.load(Ordering::Relaxed), tries - 1);
        }
    }
    let server = Registry::start();
    server.fault(Fault::anywhere("/", Action::status(404)));
    let response = client(quick()).send(&Request::get(url(&server, "/x"))).await.expect("an answer");
    assert_eq!((response.status().as_u16(), server.requests().len()), (404, 1), "4xx are answers");
}

#[tokio::test]
async fn credentials_stay_with_the_host_they_are_for() {
    let (home, abroad) = (Registry::start(), Registry::start());
    let get = |target: String| {
        home.behave();
        home.fault(Fault::anywhere("/start", answer(302, vec![("location", target)], "")));
        let request = Request::get(url(&home, "/start")).header(header::AUTHORIZATION, "Bearer x");
        async move { client(quick()).send(&request).await.expect("an answer") }
    };
    get("/v2/".to_owned()).await;
    assert!(home.requests().last().expect("followed").is_authorized(), "same host");
    get(format!("{}/v2/", abroad.url())).await;
    let request = abroad.requests().pop().expect("followed");
    assert!(!request.is_authorized(), "another port is another host");
    // Back home from abroad: what was dropped stays dropped.
    abroad.fault(Fault::anywhere("/v2/", answer(307, vec![("location", format!("{}/v2/", home.url()))], "")));
    get(format!("{}/v2/", abroad.url())).await;
    assert!(!home.requests().last().expect("followed").is_authorized());
}

#[tokio::test]
async fn secret_bodies_stay_with_the_server_they_are_for() {
    let (home, abroad) = (Registry::start(), Registry::start());
    for status in [301, 302, 303, 307, 308] {
        home.behave();
        home.fault(Fault::anywhere("/start", answer(status, vec![("location", "/next".to_owned())], "")));
        let location = format!("{}/token?signature=secret", abroad.url());
        home.fault(Fault::anywhere("/next", answer(status, vec![("location", location)], "")));
        let body = Body::Bytes(Bytes::from_static(b"password=hunter2"));
        let request = Request::new(Method::POST, url(&home, "/start")).body(body);
        let error = client(quick()).send(&Request { redirects: Redirects::Home, ..request }).await.expect_err("abroad");
        let words = format!("`{}/next`: it redirects to `{}`, where the login must not go", home.url(), abroad.url());
        assert_eq!(error.to_string(), words, "{status}");
        assert_eq!(home.requests().last().expect("followed at home").path, "/next", "{status}");
    }
    assert!(abroad.requests().is_empty(), "{:?}", abroad.requests());
}

#[test]
fn a_server_is_its_scheme_host_and_port() {
    for (from, to, same) in [
        ("https://a.example/x", "https://a.example:443/y?z", true),
        ("https://a.example:5000", "https://a.example:5000/y", true),
        ("https://a.example", "https://a.example:5000", false),
        ("https://a.example", "https://b.example", false),
        ("https://a.example", "https://b.a.example", false),
        ("http://a.example", "https://a.example", true),
        ("http://a.example:5000", "https://a.example:5000", true),
        ("http://a.example:5000", "https://a.example", false),
        ("http://a.example", "https://a.example:5000", false),
        ("https://a.example", "http://a.example", false),
        ("https://a.example:5000", "http://a.example:5000", false),
        ("https://a.example", "http://a.example:443", false),
    ] {
        let parse = |text| Url::parse(text).expect("a url");
        assert_eq!(is_same_server(&parse(from), &parse(to)), same, "{from} {to}");
    }
}

#[tokio::test]
async fn redirects_keep_or_drop_the_body_by_status() {
    for (status, method, expected, body) in [
        (301, Method::POST, Method::GET, ""),
        (302, Method::POST, Method::GET, ""),
        (303, Method::PUT, Method::GET, ""),
        (302, Method::PUT, Method::PUT, "hello"),
        (307, Method::POST, Method::POST, "hello"),
        (308, Method::PUT, Method::PUT, "hello"),
        (303, Method::HEAD, Method::HEAD, ""),
    ] {
        let server = Registry::start();
        server.fault(Fault::anywhere("/start", answer(status, vec![("location", "/end".to_owned())], "")));
        let opened = Arc::new(AtomicUsize::new(0));
        let counter = opened.clone();
        let open = Arc::new(move || -> BodyStream {
            counter.fetch_add(1, Ordering::Relaxed);
            stream::iter([Ok(Bytes::from_static(b"hel")), Ok(Bytes::from_static(b"lo"))]).boxed()
        });
        let mut request = Request::new(method.clone(), url(&server, "/start"));
        if method != Method::HEAD {
            request = request.body(Body::Stream { length: 5, open });
        }
        client(quick()).send(&request).await.expect("an answer");
        let last = server.requests().pop().expect("followed");
        assert_eq!((last.path.as_str(), &last.method), ("/end", &expected), "{status} {method}");
        let length = if body.is_empty() { "" } else { "5" };
        assert_eq!(last.header("content-length"), length, "{status} {method}");
    }
}

#[tokio::test]
async fn redirects_to_nowhere_are_errors() {
    for (target, words) in [
        ("/start", "more than 10 redirects"),
        ("file:///etc/passwd", "redirect to `file` is not allowed"),
        ("http://[bad/?token=secret", "bad redirect to `http://[bad/?token=xxxxx`: invalid IPv6 address"),
    ] {
        let server = Registry::start();
        server.fault(Fault::anywhere("/start", answer(302, vec![("location", target.to_owned())], "")));
        let error = client(quick()).send(&Request::get(url(&server, "/start"))).await.expect_err("nowhere");
        assert!(error.to_string().ends_with(words), "{error}");
    }
    let server = Registry::start();
    server.fault(Fault::anywhere("/start", answer(302, vec![("location", "/end".to_owned())], "")));
    let request = Request { redirects: Redirects::Keep, ..Request::get(url(&server, "/start")) };
    assert_eq!(client(quick()).send(&request).await.expect("an answer").status().as_u16(), 302);
}

#[tokio::test]
async fn documents_are_bounded() {
    let server = Registry::start();
    server.fault(Fault::anywhere("/fits", answer(200, vec![], "12345")));
    server.fault(Fault::anywhere("/announced", answer(200, vec![], "123456")));
    server.fault(Fault::anywhere("/v2/", Action::EndEarly(u64::MAX)));
    let pool = client(quick());
    let get = async |path: &str| pool.send(&Request::get(url(&server, path))).await.expect("an answer").bytes(5).await;
    assert_eq!(get("/fits").await.expect("small"), "12345");
    let error = get("/announced").await.expect_err("large");
    assert!(error.to_string().ends_with("answer is larger than 5 bytes"), "{error}");
    // No length announced: noticed while reading.
    assert!(matches!(get("/v2/nothing").await, Err(Error::TooLarge { limit: 5, .. })));
}

#[tokio::test]
async fn large_bodies_may_take_longer_than_silence_may_last() {
    let server = Registry::start();
    let timeouts = Timeouts {
        connect: Duration::from_millis(300),
        idle: Duration::from_millis(300),
        commit: Duration::from_secs(60),
    };
    let pool = client(Settings { timeouts, ..quick() });
    let open = Arc::new(|| -> BodyStream {
        let pieces = stream::iter(0..10).then(async |_| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            io::Result::Ok(Bytes::from_static(b"x"))
        });
        pieces.boxed()
    });
    let request = Request::new(Method::PUT, url(&server, "/v2/")).body(Body::Stream { length: 10, open });
    assert_eq!(pool.send(&request).await.expect("an answer").status().as_u16(), 404);

    // But a body that stands still is not waited for.
    let stuck = Arc::new(|| -> BodyStream { stream::pending().boxed() });
    let request = Request::new(Method::PUT, url(&server, "/v2/")).body(Body::Stream { length: 10, open: stuck });
    let error = pool.send(&request.retry(Retry::NEVER)).await.expect_err("stuck");
    assert!(matches!(error, Error::Timeout { what: "answer", .. }), "{error:?}");
}

#[tokio::test]
async fn pools_are_shared_by_identity() {
    let server = Registry::builder().tls().start();
    let pools = Pools::new(quick());
    let trusting = TlsIdentity { extra_roots: vec![server.ca()], ..TlsIdentity::default() };
    for _ in 0..3 {
        let pool = pools.client(&trusting).expect("a client");
        pool.send(&Request::get(url(&server, "/v2/"))).await.expect("trusted").bytes(10).await.expect("empty");
    }
    // Once made, the identity's files are not read again.
    let copy = TlsIdentity { extra_roots: vec![server.ca()], ..TlsIdentity::default() };
    std::fs::remove_file(server.ca()).expect("it was there");
    assert!(pools.client(&copy).is_ok());
    let strict = pools.client(&TlsIdentity::default()).expect("a client");
    let error = strict.send(&Request::get(url(&server, "/v2/"))).await.expect_err("not trusted");
    assert_eq!(error.connect_failure(), Some(ConnectFailure::Certificate));
    let skipping = TlsIdentity { verify: Verify::Skip, ..TlsIdentity::default() };
    assert!(pools.client(&skipping).expect("a client").send(&Request::get(url(&server, "/v2/"))).await.is_ok());
}

#[tokio::test]
async fn http2_is_spoken_where_wanted_and_possible() {
    // The test server offers HTTP/1.1 only: negotiation must settle on it.
    let server = Registry::builder().tls().start();
    let pools = Pools::new(Settings { protocol: Protocol::Negotiate, ..quick() });
    let trusting = TlsIdentity { extra_roots: vec![server.ca()], ..TlsIdentity::default() };
    let pool = pools.client(&trusting).expect("a client");
    assert!(pool.send(&Request::get(url(&server, "/v2/"))).await.expect("an answer").status().is_success());
}

#[tokio::test]
async fn why_no_connection_was_made_is_told() {
    let plain = Registry::start();
    let free = testkit::free_port();
    for (url, failure) in [
        (format!("https://{}/", plain.host()), ConnectFailure::NotTls),
        (format!("http://127.0.0.1:{free}/"), ConnectFailure::Refused),
        ("http://nobody.invalid/".to_owned(), ConnectFailure::UnknownHost),
    ] {
        let request = Request::get(Url::parse(&url).expect("a url")).retry(Retry::NEVER);
        let error = client(quick()).send(&request).await.expect_err("no connection");
        assert_eq!(error.connect_failure(), Some(failure), "{error}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_in_the_way_is_blamed_and_not_the_server() {
    let free = format!("127.0.0.1:{}", testkit::free_port());
    let refusing = |status| {
        let server = Registry::start();
        server.fault(Fault::anywhere("", answer(status, vec![], "")));
        server
    };
    let (login, closed) = (refusing(407), refusing(403));
    let refused = Some(ConnectFailure::Refused);
    for (scheme, proxy, failure, words) in [
        (
            "https",
            free.as_str(),
            refused,
            "cannot connect to the proxy `http://xxxxx@ADDRESS` (HTTPS_PROXY) for `a.invalid`: ",
        ),
        ("http", &free, refused, "cannot connect to the proxy `http://xxxxx@ADDRESS` (HTTP_PROXY) for `a.invalid`: "),
        (
            "https",
            "proxy.invalid:1",
            Some(ConnectFailure::UnknownHost),
            "cannot connect to the proxy `http://xxxxx@ADDRESS` (HTTPS_PROXY) for `a.invalid`: dial tcp: lookup proxy.invalid: \
             no such host",
        ),
        (
            "https",
            &login.host(),
            Some(ConnectFailure::ProxyLogin),
            "cannot connect to the proxy `http://xxxxx@ADDRESS` (HTTPS_PROXY) for `a.invalid`: proxy authorization required",
        ),
        (
            "http",
            &login.host(),
            Some(ConnectFailure::ProxyLogin),
            "cannot connect to the proxy `http://xxxxx@ADDRESS` (HTTP_PROXY) for `a.invalid`: proxy authorization required",
        ),
        (
            "https",
            &closed.host(),
            None,
            "cannot connect to `a.invalid` through the proxy `http://xxxxx@ADDRESS` (HTTPS_PROXY): the proxy did not connect",
        ),
    ] {
        let setting = Some(format!("http://user:hunter2@{proxy}"));
        let proxies = Proxies { http: setting.clone(), https: setting, no_proxy: None };
        let request = Request::get(format!("{scheme}://a.invalid/").parse().expect("a url")).retry(Retry::NEVER);
        let error = client(Settings { proxies, ..quick() }).send(&request).await.expect_err("no connection");
        let text = error.to_string();
        assert!(text.starts_with(&words.replace("ADDRESS", proxy)), "{text}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        assert_eq!(error.proxy_failure(), failure, "{text}");
        // What is wrong with a proxy says nothing of the server.
        assert_eq!(error.connect_failure().is_none(), failure.is_some(), "{text}");
    }
}

#[tokio::test]
async fn urls_and_headers_never_show_secrets() {
    let server = Registry::start();
    server.fault(Fault::anywhere("/", Action::Disconnect));
    let request = Request::get(url(&server, "/x?token=hunter2")).header(header::AUTHORIZATION, "Bearer hunter2");
    let causes = Arc::new(Mutex::new(String::new()));
    let sink = causes.clone();
    let shown = format!("{request:?}");
    let request = request
        .notify(Some(Arc::new(move |retrying| sink.lock().expect("not poisoned").push_str(&retrying.to_string()))));
    let error = client(quick()).send(&request).await.expect_err("disconnected");
    let all = format!("{shown} {error} {error:?} {}", causes.lock().expect("not poisoned"));
    assert!(all.contains("token=xxxxx") && !all.contains("hunter2"), "{all}");
}
