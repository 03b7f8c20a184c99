use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn names_are_normalised_and_shown_familiar() {
    for (text, full, familiar) in [
        ("ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("ubuntu:22.04", "docker.io/library/ubuntu:22.04", "ubuntu:22.04"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("index.docker.io/me/app", "docker.io/me/app", "me/app"),
        ("index.docker.io/ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("me/app", "docker.io/me/app", "me/app"),
        ("library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("localhost:5000/x:v1", "localhost:5000/x:v1", "localhost:5000/x:v1"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ("example.com", "docker.io/library/example.com", "example.com"),
        ("example.com/x", "example.com/x", "example.com/x"),
        ("Example.com/x", "Example.com/x", "Example.com/x"),
        ("UPPER/x", "UPPER/x", "UPPER/x"),
        ("[::1]:5000/a/b", "[::1]:5000/a/b", "[::1]:5000/a/b"),
        ("[2001:db8::1]/a", "[2001:db8::1]/a", "[2001:db8::1]/a"),
        ("127.0.0.1:80/a", "127.0.0.1:80/a", "127.0.0.1:80/a"),
        ("a__b/c---d.e_f", "docker.io/a__b/c---d.e_f", "a__b/c---d.e_f"),
        ("my_registry.local/x", "my_registry.local/x", "my_registry.local/x"),
        ("x:TAG_1.2-3", "docker.io/library/x:TAG_1.2-3", "x:TAG_1.2-3"),
    ] {
        let reference = Reference::parse(text).expect(text);
        assert_eq!(reference.to_string(), full, "{text}");
        assert_eq!(reference.familiar(), familiar, "{text}");
        assert_eq!(Reference::parse(full), Ok(reference.clone()), "{text}");
        assert_eq!(Reference::parse(familiar), Ok(reference), "{text}");
    }
}

#[test]
fn bad_references_name_the_cause() {
    let long = format!("example.com/{}", "a".repeat(256));
    for (text, cause) in [
        ("", "empty image reference"),
        ("Ubuntu", "invalid reference `Ubuntu`: repository name must be lower case"),
        ("me/App:v1", "invalid reference `me/App:v1`: repository name must be lower case"),
        ("a..b", "invalid reference `a..b`: malformed repository name"),
        ("a___b", "invalid reference `a___b`: malformed repository name"),
        ("-a", "invalid reference `-a`: malformed repository name"),
        ("a/", "invalid reference `a/`: malformed repository name"),
        ("/a", "invalid reference `/a`: malformed repository name"),
        ("a//b", "invalid reference `a//b`: malformed repository name"),
        ("a b", "invalid reference `a b`: malformed repository name"),
        ("http://x.io/y", "invalid reference `http://x.io/y`: malformed repository name"),
        ("-x.com/y", "invalid reference `-x.com/y`: malformed repository name"),
        ("x.com:port/y", "invalid reference `x.com:port/y`: malformed repository name"),
        ("[::g]/y", "invalid reference `[::g]/y`: malformed repository name"),
        ("x:", "invalid reference `x:`: malformed tag ``"),
        ("x:-a", "invalid reference `x:-a`: malformed tag `-a`"),
        ("x:a:b", "invalid reference `x:a:b`: malformed tag `a:b`"),
        ("x@sha256:12", "invalid reference `x@sha256:12`"),
        ("x@", "invalid reference `x@`"),
        (
            &DIGEST[7..],
            &format!("invalid reference `{}`: 64 hexadecimal digits cannot be a repository name", &DIGEST[7..]),
        ),
        (&long, &format!("invalid reference `{long}`: repository name must not be longer than 255 characters")),
        ("café", "invalid reference `café`: malformed repository name"),
    ] {
        assert_eq!(Reference::parse(text).expect_err(text).to_string(), cause, "{text}");
    }
    assert!(Reference::parse(&format!("x:{}", "a".repeat(128))).is_ok());
    assert!(Reference::parse(&format!("x:{}", "a".repeat(129))).is_err());
    assert!(Reference::parse(&format!("example.com/{}", "a".repeat(255))).is_ok());
}

#[test]
fn tags_and_digests_combine() {
    let both = Reference::parse(&format!("x:v1@{DIGEST}")).expect("a reference");
    assert_eq!(both.tag(), Some("v1"));
    assert_eq!(both.digest(), Some(Digest::of(b"")));
    assert_eq!(both.object(), DIGEST);
    assert_eq!(both.clone().resolved_form().to_string(), format!("docker.io/library/x@{DIGEST}"));
    assert_eq!(both.clone().or_latest(), both);
    assert_eq!(both.clone().name_only().or_latest().to_string(), "docker.io/library/x:latest");
    assert_eq!(both.name_only().with_tag("v2").expect("a tag").object(), "v2");
    assert!(Reference::parse("x").expect("a name").with_tag("a/b").is_err());
}
