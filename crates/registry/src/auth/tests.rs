use http::{HeaderMap, HeaderValue, header};
use proptest::prelude::*;

use super::*;

fn challenges(values: &[&str]) -> Vec<Challenge> {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_str(value).expect("a header value"));
    }
    parse_challenges(&headers)
}

fn token(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
    Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned), scope: scope.map(str::to_owned) }
}

#[test]
fn challenges_are_read_as_servers_write_them() {
    let hub = token("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/x:pull"));
    for (values, expected) in [
        (
            &[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull""#,
            ] as &[&str],
            vec![hub.clone()],
        ),
        // Without quotes, in other cases, with blanks.
        (
            &[
                "BEARER Realm=https://auth.docker.io/token , SERVICE = registry.docker.io, scope=repository:library/x:pull",
            ],
            vec![hub.clone()],
        ),
        // Two in one header, two headers, the better one first.
        (&[r#"Basic realm="x", Bearer realm="https://t/""#], vec![token("https://t/", None, None), Challenge::Basic]),
        (&["Basic realm=x", r#"Bearer realm="https://t/""#], vec![token("https://t/", None, None), Challenge::Basic]),
        (
            &[r#"Bearer realm="https://t/", Basic realm="x, y""#],
            vec![token("https://t/", None, None), Challenge::Basic],
        ),
        (&["Basic"], vec![Challenge::Basic]),
        // Schemes that we do not know, with a token68 and with parameters.
        (&["Negotiate YII==, Basic realm=\"x\""], vec![Challenge::Basic]),
        (&[r#"Digest realm="a", nonce="b", Basic realm="c""#], vec![Challenge::Basic]),
        // Escapes, empty scopes, a comma at the end, a missing quote.
        (&[r#"Bearer realm="https://t/?a=\"b\"",scope="","#], vec![token(r#"https://t/?a="b""#, None, None)]),
        (&[r#"Bearer realm="https://t/"#], vec![token("https://t/", None, None)]),
        // Several scopes and an error.
        (
            &[r#"Bearer realm="https://t/",scope="repository:a:pull repository:b:pull",error="insufficient_scope""#],
            vec![token("https://t/", None, Some("repository:a:pull repository:b:pull"))],
        ),
        (&["Bearer service=x"], vec![]),
        (&["", ",", "=", "===,=", "realm=x"], vec![]),
    ] {
        assert_eq!(challenges(values), expected, "{values:?}");
    }
}

proptest! {
    #[test]
    fn no_challenge_hangs_or_panics(text in r#"[ ,="\\a-cB:/]{0,40}"#) {
        if let Ok(value) = HeaderValue::from_str(&text) {
            let mut headers = HeaderMap::new();
            headers.append(header::WWW_AUTHENTICATE, value);
            parse_challenges(&headers);
        }
    }
}

#[test]
fn scopes_have_one_spelling() {
    let mut scopes = Scopes::push("team/app").and_pull("base/os");
    assert_eq!(scopes.to_string(), "repository:base/os:pull repository:team/app:pull,push");
    assert!(!scopes.merge("repository:team/app:push,pull"), "known already");
    assert!(scopes.merge("repository:team/app:delete registry:catalog:* everything"));
    assert!(!scopes.merge("everything"), "known already");
    let all: Vec<String> = scopes.each().collect();
    assert_eq!(
        all,
        ["everything", "registry:catalog:*", "repository:base/os:pull", "repository:team/app:delete,pull,push"]
    );
    // A name may hold a port.
    assert!(scopes.merge("repository:host:5000/x:pull"));
    assert!(scopes.to_string().contains("repository:host:5000/x:pull"));
}

#[test]
fn credentials_are_told_apart_and_never_shown() {
    let basic =
        |user: &str, password: &str| Credential::Basic { username: user.to_owned(), password: Secret::new(password) };
    let all = [
        None,
        Some(basic("a", "b")),
        Some(basic("a", "c")),
        Some(basic("b", "b")),
        Some(Credential::Refresh(Secret::new("b"))),
        Some(Credential::Bearer(Secret::new("b"))),
    ];
    let prints: std::collections::HashSet<Digest> = all.iter().map(|c| Credential::fingerprint(c.as_ref())).collect();
    assert_eq!(prints.len(), all.len());
    assert!(!format!("{:?}", basic("a", "hunter2")).contains("hunter2"));
    let header = super::basic("a", &Secret::new("hunter2")).expect("a header");
    assert_eq!(format!("{header:?}"), "Sensitive");
}
