use super::*;

fn basic(user: &str, password: &str) -> Option<Credentials> {
    Some(Credentials::Basic { username: user.to_owned(), password: Secret::new(password) })
}

fn dir_with(config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("scratch space");
    std::fs::write(dir.path().join("config.json"), config).expect("scratch is writable");
    dir
}

/// A helper that is a shell script, in the directory of the configuration.
///
/// Written by another process: were it open for writing here while another test forks, it could not be run (ETXTBSY).
fn add_helper(dir: &tempfile::TempDir, name: &str, script: &str) {
    let path = dir.path().join(format!("docker-credential-{name}"));
    let status = std::process::Command::new("sh")
        .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""#])
        .arg(&path)
        .arg(script)
        .status();
    assert!(status.expect("sh runs").success());
}

fn with_helpers(dir: &tempfile::TempDir) -> DockerConfig {
    let mut path = dir.path().as_os_str().to_owned();
    path.push(":/usr/bin:/bin");
    DockerConfig::new(dir.path()).with_search_path(path)
}

#[tokio::test]
async fn entries_are_found_as_docker_finds_them() {
    // `aHVsbDp3b3Jrcw==` is hull:works.
    let dir = dir_with(
        r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHVsbDp3b3Jrcw=="},
            "https://ghcr.io": {"auth": "aHVsbDp3b3Jrcw"},
            "localhost:5000": {"username": "u", "password": "p:q"},
            "quay.io/v2/": {"identitytoken": "refresh"},
            "direct.example": {"registrytoken": "bearer"},
            "token.example": {"username": "<token>", "password": "idt"},
            "empty.example": {},
            "nul.example": {"auth": "dTpwAAA="}
        }, "HttpHeaders": {"User-Agent": "x"}, "experimental": "enabled"}"#,
    );
    let config = DockerConfig::new(dir.path());
    for (host, expected) in [
        ("docker.io", basic("hull", "works")),
        ("index.docker.io", basic("hull", "works")),
        ("registry-1.docker.io", basic("hull", "works")),
        ("ghcr.io", basic("hull", "works")),
        ("localhost:5000", basic("u", "p:q")),
        ("localhost", None),
        ("localhost:5001", None),
        ("quay.io", Some(Credentials::Refresh(Secret::new("refresh")))),
        ("direct.example", Some(Credentials::Bearer(Secret::new("bearer")))),
        ("token.example", Some(Credentials::Refresh(Secret::new("idt")))),
        ("empty.example", None),
        ("nul.example", basic("u", "p")),
        ("other.example", None),
    ] {
        assert_eq!(config.credentials(host).await.expect("readable"), expected, "{host}");
    }
}

#[tokio::test]
async fn a_missing_or_empty_file_is_anonymous() {
    let dir = tempfile::tempdir().expect("scratch space");
    assert_eq!(DockerConfig::new(dir.path()).credentials("x").await.expect("no file"), None);
    assert_eq!(DockerConfig::new(dir.path().join("no/where")).credentials("x").await.expect("no dir"), None);
    let dir = dir_with("\n");
    assert_eq!(DockerConfig::new(dir.path()).credentials("x").await.expect("empty file"), None);
}

#[tokio::test]
async fn bad_files_are_named_and_their_secrets_are_not() {
    for (config, words) in [
        (r#"{"auths": {"x": {"auth": "aHVudGVyMg=="}}}"#, "entry of `x`: `auth` is not `user:password` in base64"),
        (r#"{"auths": {"x": {"auth": "hunter2!"}}}"#, "entry of `x`: `auth` is not base64"),
        (r#"{"auths": {"x": {"auth": "OmhodW50ZXIy"}}}"#, "entry of `x`: `auth` names no user"),
        (r#"{"auths": "hunter2"}"#, "malformed at line 1"),
        (r#"{"auths": "#, "malformed at line 1"),
    ] {
        let dir = dir_with(config);
        let text = DockerConfig::new(dir.path()).credentials("x").await.expect_err("bad").to_string();
        assert!(text.contains("config.json") && text.contains(words), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn the_variable_goes_before_the_file() {
    let dir = dir_with(
        r#"{"auths": {"a": {"username": "file", "password": "p"}, "b": {"username": "file", "password": "p"}}}"#,
    );
    let inline = Secret::new(r#"{"auths": {"a": {"auth": "aHVsbDp3b3Jrcw=="}}}"#);
    let config = DockerConfig::new(dir.path()).with_inline(Some(inline));
    assert_eq!(config.credentials("a").await.expect("readable"), basic("hull", "works"));
    assert_eq!(config.credentials("b").await.expect("readable"), basic("file", "p"));
}

#[tokio::test]
async fn helpers_answer_for_their_hosts() {
    let dir = dir_with(
        r#"{"credsStore": "all", "credHelpers": {"one.example": "one", "off.example": ""},
            "auths": {"off.example": {"username": "file", "password": "p"}, "miss.example": {"username": "file", "password": "q"}}}"#,
    );
    let known = r#"read -r key || true
        case "$1 $key" in
        "get https://index.docker.io/v1/") echo '{"ServerURL":"x","Username":"hub","Secret":"s"}';;
        "get token.example") echo '{"Username":"<token>","Secret":"idt"}';;
        *) echo "credentials not found in native keychain"; exit 1;;
        esac"#;
    add_helper(&dir, "all", known);
    add_helper(&dir, "one", r#"echo '{"Username":"one","Secret":"s1"}'"#);
    let config = with_helpers(&dir);
    for (host, expected) in [
        ("registry-1.docker.io", basic("hub", "s")),
        ("one.example", basic("one", "s1")),
        ("token.example", Some(Credentials::Refresh(Secret::new("idt")))),
        ("off.example", basic("file", "p")),
        ("miss.example", basic("file", "q")),
        ("unknown.example", None),
    ] {
        assert_eq!(config.credentials(host).await.expect("helpers work"), expected, "{host}");
    }
}

#[tokio::test]
async fn failing_helpers_are_named_and_secrets_stay_inside() {
    let dir = dir_with(
        r#"{"credHelpers": {"a": "absent", "b": "angry", "c": "leaky", "d": "mute", "e": "../x", "f": "garbled", "g": "stuck"}}"#,
    );
    add_helper(&dir, "angry", "echo 'the vault is sealed' >&2; exit 3");
    add_helper(&dir, "leaky", r#"echo '{"Username":"u","Secret":"hunter2"}'; exit 1"#);
    add_helper(&dir, "mute", "exit 1");
    add_helper(&dir, "garbled", "echo hunter2");
    add_helper(&dir, "stuck", "exec sleep 1000");
    let mut config = with_helpers(&dir);
    config.patience = Duration::from_secs(5);
    for (host, words) in [
        ("a", "`docker-credential-absent` for `a`: no such program in `PATH`"),
        ("b", "`docker-credential-angry` for `b`: the vault is sealed"),
        ("c", "`docker-credential-leaky` for `c`: it failed"),
        ("d", "`docker-credential-mute` for `d`: it failed without a word"),
        ("e", "`docker-credential-../x` for `e`: its name holds a slash"),
        ("f", "`docker-credential-garbled` for `f`: its answer is not the JSON it should be"),
    ] {
        let text = config.credentials(host).await.expect_err("broken").to_string();
        assert!(text.ends_with(words), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    config.patience = Duration::ZERO;
    let text = config.credentials("g").await.expect_err("stuck").to_string();
    assert!(text.ends_with("no answer within 0 s"), "{text}");
}

#[test]
fn the_directory_is_that_of_dockers_client() {
    let vars = |pairs: &'static [(&str, &str)]| {
        move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    };
    for (pairs, dir) in [
        (&[("DOCKER_CONFIG", "/cfg"), ("HOME", "/root")][..], Some("/cfg")),
        (&[("DOCKER_CONFIG", ""), ("HOME", "/root")], Some("/root/.docker")),
        (&[], None),
    ] {
        assert_eq!(DockerConfig::default_dir(vars(pairs)), dir.map(PathBuf::from));
    }
}
