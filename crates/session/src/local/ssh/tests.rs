use std::os::unix::net::UnixListener;
use std::process::Command;

use super::*;

/// A key pair by `ssh-keygen`; none, with the reason told, where there is none.
fn generate(dir: &Path, name: &str, args: &[&str]) -> Option<PathBuf> {
    let path = dir.join(name);
    let made = Command::new("ssh-keygen").args(["-q", "-N", "", "-C", name, "-f"]).arg(&path).args(args).status();
    match made {
        Ok(status) if status.success() => Some(path),
        other => {
            testkit::need::report_skip(&format!("ssh-keygen {args:?}: {other:?}"));
            None
        }
    }
}

/// One question over a connection of its own.
async fn asked(source: &SshSource, request: &[u8]) -> Vec<u8> {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    let source = source.clone();
    let answering = tokio::spawn(async move { source.answer(theirs).await });
    send(&mut ours, request).await.expect("sent");
    let answer = receive(&mut ours).await.expect("received").expect("an answer");
    drop(ours);
    answering.await.expect("no panic").expect("a clean end");
    answer
}

fn sign_request(public: &[u8], data: &[u8], flags: u32) -> Vec<u8> {
    let mut request = vec![SIGN_REQUEST];
    wire::put_string(&mut request, public);
    wire::put_string(&mut request, data);
    request.extend_from_slice(&flags.to_be_bytes());
    request
}

#[tokio::test]
async fn keys_of_files_sign_as_their_public_halves_expect() {
    let dir = tempfile::tempdir().expect("scratch");
    for (name, args, flags, algorithm) in [
        ("ed25519", &["-t", "ed25519"][..], 0, "ssh-ed25519"),
        ("rsa", &["-t", "rsa", "-b", "2048"], RSA_256, "rsa-sha2-256"),
        ("rsa3072", &["-t", "rsa", "-b", "3072"], 4, "rsa-sha2-512"),
        ("rsapem", &["-t", "rsa", "-b", "2048", "-m", "PEM"], 4, "rsa-sha2-512"),
        ("ecdsa", &["-t", "ecdsa", "-b", "256"], 0, "ecdsa-sha2-nistp256"),
        ("ecdsa384", &["-t", "ecdsa", "-b", "384"], 0, "ecdsa-sha2-nistp384"),
        ("pkcs8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"], 2, "rsa-sha2-256"),
    ] {
        let Some(path) = generate(dir.path(), name, args) else { continue };
        let source = SshSource::open(std::slice::from_ref(&path), false).expect("a key");
        let listed = asked(&source, &[REQUEST_IDENTITIES]).await;
        assert_eq!(listed[..5], [IDENTITIES_ANSWER, 0, 0, 0, 1], "{name}");
        let public = wire::Reader(&listed[5..]).string().expect("a key").to_vec();
        let expected = std::fs::read_to_string(path.with_extension("pub")).expect("written");
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&public);
        assert_eq!(expected.split(' ').nth(1), Some(text.as_str()), "{name}");

        let signed = asked(&source, &sign_request(&public, b"text", flags)).await;
        assert_eq!(signed[0], SIGN_RESPONSE, "{name}");
        let blob = wire::Reader(&signed[1..]).string().expect("a signature");
        let mut parts = wire::Reader(blob);
        assert_eq!(parts.text(), Some(algorithm), "{name}");
        verify(&public, algorithm, parts.string().expect("bytes"));
        let other = asked(&source, &sign_request(b"other", b"text", flags)).await;
        assert_eq!(other, [FAILURE], "a key that it does not have");
    }
}

const RSA_256: u32 = 2;

/// Checks a signature of `text` by ring's other half.
fn verify(public: &[u8], algorithm: &str, signed: &[u8]) {
    use ring::signature::*;
    let mut fields = wire::Reader(public);
    let kind = fields.text().expect("a kind");
    match kind {
        "ssh-ed25519" => {
            let key = UnparsedPublicKey::new(&ED25519, fields.string().expect("a point"));
            key.verify(b"text", signed).expect("signed");
        }
        "ssh-rsa" => {
            let (e, n) = (fields.large().expect("e"), fields.large().expect("n"));
            let padding = match algorithm {
                "rsa-sha2-256" => &RSA_PKCS1_2048_8192_SHA256,
                _ => &RSA_PKCS1_2048_8192_SHA512,
            };
            RsaPublicKeyComponents { n, e }.verify(padding, b"text", signed).expect("signed");
        }
        _ => {
            let curve = fields.text().expect("a curve").to_owned();
            let point = fields.string().expect("a point");
            let (size, verification): (usize, &dyn VerificationAlgorithm) = match curve.as_str() {
                "nistp256" => (32, &ECDSA_P256_SHA256_FIXED),
                _ => (48, &ECDSA_P384_SHA384_FIXED),
            };
            let mut numbers = wire::Reader(signed);
            let mut fixed = Vec::new();
            for number in [numbers.large().expect("r"), numbers.large().expect("s")] {
                fixed.extend(vec![0; size - number.len()]);
                fixed.extend_from_slice(number);
            }
            UnparsedPublicKey::new(verification, point).verify(b"text", &fixed).expect("signed");
        }
    }
}

#[tokio::test]
async fn an_agent_is_used_and_not_changed() {
    let dir = tempfile::tempdir().expect("scratch");
    let socket = dir.path().join("a");
    let listener = UnixListener::bind(&socket).expect("a socket");
    listener.set_nonblocking(true).expect("a setting");
    let listener = tokio::net::UnixListener::from_std(listener).expect("a socket");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while let Ok(Some(request)) = receive(&mut stream).await {
                    let answer = [b"heard ", &request[..]].concat();
                    send(&mut stream, &answer).await.expect("sent");
                }
            });
        }
    });
    let paths = [socket];
    let agent = SshSource::open(&paths, false).expect("a socket");
    assert_eq!(asked(&agent, &[REQUEST_IDENTITIES]).await, b"heard \x0b");
    assert_eq!(asked(&agent, &[SIGN_REQUEST, 7]).await, b"heard \x0d\x07");
    // Add, remove, remove all, lock, unlock, extension, nothing.
    for kind in [17, 18, 19, 22, 23, 25, 27] {
        assert_eq!(asked(&agent, &[kind]).await, [FAILURE], "{kind}");
    }
    assert_eq!(asked(&agent, &[]).await, [FAILURE]);
    let raw = SshSource::open(&paths, true).expect("a socket");
    assert_eq!(asked(&raw, &[17]).await, b"heard \x11");
}

#[test]
fn what_is_no_agent_is_named() {
    let dir = tempfile::tempdir().expect("scratch");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("text"), "hello").expect("scratch");
    std::fs::write(path("public"), "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n").expect("scratch");
    let encrypted = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\nAA==\n";
    std::fs::write(path("encrypted"), encrypted).expect("scratch");
    std::fs::write(path("dsa"), "-----BEGIN DSA PRIVATE KEY-----\nAA==\n").expect("scratch");
    std::fs::write(path("cut"), "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n").expect("scratch");
    let _socket = UnixListener::bind(path("socket")).expect("a socket");
    let _other = UnixListener::bind(path("other")).expect("a socket");
    for (names, raw, expected) in [
        (&["text"][..], false, "no line `-----BEGIN"),
        (&["public"], false, "no line `-----BEGIN"),
        (&["encrypted"], false, "protected by a passphrase"),
        (&["dsa"], false, "`DSA PRIVATE KEY` are not supported"),
        (&["cut"], false, "cut short"),
        (&["missing"], false, "No such file"),
        (&["text"], true, "is no socket"),
        (&["socket", "other"], false, "only one socket"),
        (&[], false, "neither a socket nor a key"),
    ] {
        let paths: Vec<PathBuf> = names.iter().map(|name| path(name)).collect();
        let fault = SshSource::open(&paths, raw).expect_err(expected);
        assert!(fault.cause().contains(expected), "{names:?}: {}", fault.cause());
    }
}
