//! Registries that refuse, break off and lie: what people then see, and that the next build finds everything in order.

use std::fs;

use base::Digest;
use bytes::Bytes;
use hyper::Method;
use testkit::image::{CONFIG, File, INDEX, LAYER, MANIFEST, TestImage, descriptor, noise, tar};
use testkit::registry::{Action, Auth, Fault, Registry};

use crate::harness::each;
use crate::kitchen::{Kitchen, ran};
use crate::needs;
use crate::who::Who;

const REPO: &str = "team/app";

const LOGIN: &str = "log in with `docker login`, or check the credentials' rights";
const LOGIN_TO_PUSH: &str = "log in with `docker login`, or check the credentials' right to push";
const SPELLING: &str = "check the spelling of name and tag";
const MIRROR: &str = "log in, or use a mirror (`[registry.\"..\"] mirrors` in buildkitd.toml)";
const LATER: &str = "try again later, or use a mirror (`[registry.\"..\"] mirrors` in buildkitd.toml)";
const PUSH_LATER: &str = "try again later: what was pushed already is not pushed again";
const CHANGED: &str = "try again; if it stays so, a proxy or a mirror on the way changes what is sent";
const LOST: &str = "the registry has lost a part of the image: push the image again, or use another tag";
const CREATE: &str = "check the name; some registries want the repository to be created first";

/// What goes wrong, the words that it must be told with (`HOST` is the registry, `LAYER` the layer's digest), and the hint.
struct Trouble(Fault, Vec<&'static str>, &'static str);

/// busybox and a layer on top.
fn image() -> TestImage {
    let data = noise(1, 200_000).to_vec();
    let layer = tar(&[File { path: "noise", mode: 0o644, data, link: None }]);
    TestImage::of_layers(vec![TestImage::busybox().unwrap().layers[0].clone(), layer])
}

/// Every blob is what its name says, and nothing is half done.
fn check_content(kitchen: &Kitchen) {
    let content = kitchen.world.path("state/hullworks/content");
    for entry in fs::read_dir(content.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let digest = Digest::of(fs::read(&path).unwrap());
        assert_eq!(path.file_name().unwrap().to_str(), Some(digest.hex().as_str()), "a blob that it is not");
    }
    let partial: Vec<_> = fs::read_dir(content.join("ingest")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(partial.is_empty(), "{partial:?}");
}

#[test]
fn failed_pulls_and_pushes_say_why_and_leave_nothing_wrong() {
    let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
    let html = Action::Answer {
        status: 200,
        headers: vec![("content-type", "text/html".to_owned())],
        body: "<html>log in</html>".to_owned(),
    };
    let taken = Action::Answer {
        status: 400,
        headers: Vec::new(),
        body: r#"{"errors":[{"code":"TAG_INVALID","message":"tag is immutable"}]}"#.to_owned(),
    };
    let resolve = "cannot resolve the image: HOST/team/app:v1: ";
    let document = "cannot resolve `HOST/team/app:v1`: HOST/team/app@sha256:";
    let layer = "cannot fetch layer sha256:LAYER: HOST/team/app@sha256:LAYER: ";
    let manifests = |action| Fault::anywhere("/team/app/manifests/", action);
    let documents = |action| Fault::on(get.clone(), "/team/app/manifests/", action);
    let config = |action| Fault::on(get.clone(), "CONFIG", action);
    let blob = |action| Fault::on(get.clone(), "LAYER", action);
    let digest = "`HOST` sent bytes of digest sha256:";
    let pulls = vec![
        // Those that are tried again and again come first, as they take longest.
        Trouble(blob(Action::Cut(1000)), vec![layer, "`HOST` broke off after 5000 of ", "connection lost"], LATER),
        Trouble(blob(Action::status(500)), vec![layer, "registry answered 500 (unknown: something went wrong)"], LATER),
        Trouble(manifests(Action::status(500)), vec![resolve, "registry answered 500 (unknown: something"], LATER),
        Trouble(manifests(Action::Disconnect), vec![resolve, "connection lost: "], LATER),
        Trouble(manifests(Action::status(401)), vec![resolve, "registry answered 401 (unauthorized: authent"], LOGIN),
        Trouble(manifests(Action::status(403)), vec![resolve, "registry answered 403 (denied: requested acc"], LOGIN),
        Trouble(
            manifests(Action::status(404)),
            vec![resolve, "not found: registry answered 404 (manifest unknown)"],
            SPELLING,
        ),
        Trouble(
            manifests(Action::status_retry_after(429, 3600)),
            vec![resolve, "registry answered 429 (toomanyrequests: too many requests)"],
            MIRROR,
        ),
        Trouble(documents(Action::WrongBytes), vec![document, digest], CHANGED),
        Trouble(documents(Action::WrongLength(5)), vec![document, digest], CHANGED),
        Trouble(manifests(html), vec![resolve, "`text/html` is no type of manifest"], ""),
        Trouble(config(Action::WrongBytes), vec![document, digest], CHANGED),
        Trouble(config(Action::status(404)), vec![document, "registry answered 404 (manifest unknown)"], SPELLING),
        Trouble(blob(Action::status(401)), vec![layer, "registry answered 401 (unauthorized: authent"], LOGIN),
        Trouble(blob(Action::status(403)), vec![layer, "registry answered 403 (denied: requested acc"], LOGIN),
        Trouble(blob(Action::status(404)), vec![layer, "registry answered 404 (manifest unknown)"], LOST),
        Trouble(blob(Action::status_retry_after(429, 3600)), vec![layer, "registry answered 429 (toomany"], MIRROR),
        Trouble(blob(Action::WrongBytes), vec![layer, digest], CHANGED),
        Trouble(blob(Action::WrongLength(5)), vec![layer, "`HOST` sent ", " bytes instead of "], CHANGED),
        Trouble(blob(Action::WrongLength(-5)), vec![layer, "`HOST` sent ", " bytes instead of "], CHANGED),
    ];
    let pushed = "failed to push HOST/out/app:1: HOST/out/app@sha256:";
    let named = "failed to push HOST/out/app:1: HOST/out/app:1: ";
    let begin = |action| Fault::on(post.clone(), "/out/app/blobs/", action);
    let send = |action| Fault::on(put.clone(), "/out/app/blobs/", action);
    let manifest = |action| Fault::on(put.clone(), "/out/app/manifests/", action);
    let pushes = vec![
        Trouble(send(Action::CutUpload(1000)), vec![pushed, "connection lost"], PUSH_LATER),
        Trouble(manifest(Action::status(500)), vec![named, "registry answered 500 (unknown: something"], PUSH_LATER),
        Trouble(begin(Action::status(401)), vec![pushed, "registry answered 401 (unauthorized"], LOGIN_TO_PUSH),
        Trouble(begin(Action::status(403)), vec![pushed, "registry answered 403 (denied: req"], LOGIN_TO_PUSH),
        Trouble(begin(Action::status(404)), vec![pushed, "registry answered 404 (manifest unknown)"], CREATE),
        Trouble(begin(Action::status_retry_after(429, 3600)), vec![pushed, "registry answered 429"], PUSH_LATER),
        Trouble(send(Action::status(403)), vec![pushed, "registry answered 403 (denied: req"], LOGIN_TO_PUSH),
        Trouble(
            send(Action::status(413)),
            vec![pushed, "registry answered 413"],
            "raise the body limit of the proxy in front of the registry",
        ),
        Trouble(manifest(taken), vec![named, "registry answered 400 (tag invalid: tag is immutable)"], ""),
    ];
    let all = pulls.into_iter().map(|pull| (true, pull)).chain(pushes.into_iter().map(|push| (false, push)));
    let mut all: Vec<(bool, Trouble)> = all.collect();
    all.reverse();
    each(all, |(pulls, trouble)| if pulls { check_pull(trouble) } else { check_push(trouble) });
}

fn check_pull(Trouble(fault, words, hint): Trouble) {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let (image, host) = (image(), kitchen.registry.host());
    image.put(&kitchen.registry, REPO, "v1");
    let layer = Digest::of(&image.layers[1]).hex();
    let config = Digest::of(&image.config).hex();
    let what = format!("{fault:?}");
    kitchen.registry.fault(fault.at(|path| path.replace("LAYER", &layer).replace("CONFIG", &config)));
    kitchen.dockerfile(&format!("# the base\nFROM {host}/{REPO}:v1\nRUN true\n"));
    let ended = kitchen.build("").fails();
    ended.says(&format!(
        "Dockerfile:2\n--------------------\n   1 |     # the base\n   2 | >>> FROM {host}/{REPO}:v1\n"
    ));
    ended.says("\nerror: failed to solve: ").hints(hint);
    for words in words {
        ended.says(&words.replace("HOST", &host).replace("LAYER", &layer));
    }
    check_content(&kitchen);
    kitchen.registry.behave();
    let again = kitchen.build("").succeeds();
    assert_eq!(ran(&again), ["RUN true"], "{what}: {again:?}");
    check_content(&kitchen);
}

fn check_push(Trouble(fault, words, hint): Trouble) {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let host = kitchen.registry.host();
    kitchen.dockerfile("FROM busybox\nCOPY big /\n");
    kitchen.file("big", noise(2, 300_000));
    let what = format!("{fault:?}");
    kitchen.registry.fault(fault);
    let push = format!("--push -t {host}/out/app:1");
    let ended = kitchen.build(&push).fails();
    ended.says("\nerror: failed to solve: ").hints(hint);
    for words in words {
        ended.says(&words.replace("HOST", &host));
    }
    assert!(kitchen.registry.manifest("out/app", "1").is_none(), "{what}");
    kitchen.registry.behave();
    let again = kitchen.build(&push).succeeds();
    assert_eq!(ran(&again), [""; 0], "{what}: {again:?}");
    assert!(kitchen.registry.manifest("out/app", "1").is_some(), "{what}");
    check_content(&kitchen);
}

#[test]
fn passing_troubles_are_outlasted() {
    let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
    let html = Action::Answer { status: 502, headers: Vec::new(), body: "<html>bad gateway</html>".to_owned() };
    let troubles = vec![
        Fault::on(get.clone(), "/manifests/", html).times(1),
        Fault::anywhere("/manifests/", Action::status(503)).times(1),
        Fault::anywhere("/manifests/", Action::status_retry_after(429, 0)).times(2),
        Fault::on(get.clone(), "LAYER", Action::status(500)).times(1),
        Fault::on(get.clone(), "LAYER", Action::Disconnect).times(1),
        Fault::on(get.clone(), "LAYER", Action::Cut(100_000)).times(2),
        Fault::on(get.clone(), "LAYER", Action::EndEarly(100_000)).times(1),
        // What came is wrong: the whole is fetched once more.
        Fault::on(get, "LAYER", Action::WrongBytes).times(1),
        // Whether a blob is there may be nobody's business.
        Fault::on(Method::HEAD, "/out/app/blobs/", Action::status(403)),
        Fault::on(post, "/out/app/blobs/", Action::status(503)).times(1),
        Fault::on(put.clone(), "/out/app/blobs/", Action::CutUpload(1000)).times(1),
        Fault::on(put.clone(), "/out/app/blobs/", Action::status(500)).times(1),
        Fault::on(put.clone(), "/out/app/manifests/", Action::status(502)).times(1),
        Fault::on(put, "/out/app/manifests/", Action::Disconnect).times(1),
    ];
    each(troubles, |fault| {
        let Some(kitchen) = Kitchen::new(Who::Root) else { return };
        let (image, host) = (image(), kitchen.registry.host());
        image.put(&kitchen.registry, REPO, "v1");
        let layer = Digest::of(&image.layers[1]).hex();
        let what = format!("{fault:?}");
        kitchen.registry.fault(fault.at(|path| path.replace("LAYER", &layer)));
        kitchen.dockerfile(&format!("FROM {host}/{REPO}:v1\nRUN cat noise > /again\n"));
        let ended = kitchen.build(&format!("--push -t {host}/out/app:1")).succeeds();
        if what.contains("LAYER") && !what.contains("WrongBytes") {
            ended.says(&format!("{host}/{REPO}@sha256:{layer}: ")).says("; trying again in ");
        }
        check_content(&kitchen);
        assert!(kitchen.registry.manifest("out/app", "1").is_some(), "{what}");
        let again = kitchen.registry.requests();
        let mut ranges = again.iter().map(|request| request.header("range")).filter(|range| !range.is_empty());
        assert_eq!(ranges.next().is_some(), what.contains("Cut(") || what.contains("EndEarly"), "{what}");
    });
}

#[test]
fn tokens_that_end_on_the_way_are_renewed_and_wrong_logins_named() {
    let Some(kitchen) = Kitchen::with(Who::Root, Registry::builder().auth(Auth::token()).start()) else { return };
    let host = kitchen.registry.host();
    kitchen.dockerfile("FROM scratch\nCOPY a b /\nCOPY a b /again/\n");
    kitchen.file("a", noise(1, 100_000));
    kitchen.file("b", noise(2, 100_000));
    let push = || kitchen.build(&format!("--push -t {host}/out/app:1"));
    let login = |password: &str| {
        let text = format!(r#"{{"auths":{{"{host}":{{"username":"hull","password":"{password}"}}}}}}"#);
        kitchen.world.write(".docker/config.json", text);
    };
    let ended = push().fails();
    ended
        .says(&format!(
            "registry answered 401 (unauthorized: authentication required); no login for `{host}` was found"
        ))
        .hints(LOGIN_TO_PUSH);
    login("wrong");
    let ended = push().fails();
    ended.says(&format!("token server `{host}` answered 401 (incorrect username or password)")).hints(LOGIN_TO_PUSH);
    login("works");
    for path in ["/blobs/uploads/", "/manifests/"] {
        kitchen.registry.fault(Fault::on(Method::PUT, path, Action::RevokeTokens).times(1));
    }
    push().succeeds();
    assert!(kitchen.registry.manifest("out/app", "1").is_some());
    let refused = kitchen.registry.requests().iter().filter(|r| r.method == Method::PUT && r.status == 401).count();
    assert!(refused >= 2, "no token ended on the way");
}

#[test]
fn documents_that_make_no_image_are_named() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let (host, image) = (kitchen.registry.host(), TestImage::busybox().unwrap());
    image.put(&kitchen.registry, REPO, "v1");
    let manifest = String::from_utf8(image.manifest.to_vec()).unwrap();
    let of = |config: &Bytes, layers: &[&Bytes]| {
        kitchen.registry.put_blob(REPO, config.clone());
        let layers: Vec<String> = layers.iter().map(|layer| descriptor(LAYER, layer).to_string()).collect();
        let (config, layers) = (descriptor(CONFIG, config), layers.join(","));
        format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[{layers}]}}"#)
    };
    let index = |manifests: &str| format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{manifests}]}}"#);
    let foreign = format!(
        r#"{{"mediaType":"{MANIFEST}","digest":"{}","size":{},"platform":{{"os":"plan9","architecture":"mips"}}}}"#,
        image.digest(),
        image.manifest.len()
    );
    let size = |of: usize| format!("\"size\":{of}");
    let layer = image.layers[0].len();
    for (n, (media_type, text, words)) in [
        (MANIFEST, "not json".to_owned(), "malformed image manifest: "),
        (MANIFEST, String::new(), "malformed image manifest: "),
        (MANIFEST, "{}".to_owned(), "invalid image manifest: schemaVersion is missing"),
        (MANIFEST, "[".repeat(1 << 20), "malformed image manifest: "),
        (MANIFEST, " ".repeat(5 << 20), "answer is larger than 4194304 bytes"),
        (MANIFEST, manifest.replace("\"size\":", "\"size\":-"), "malformed image manifest: invalid value: integer `-"),
        (MANIFEST, manifest.replace("sha256:", "sha256:../../"), "is not a digest: expected `sha256:` and 64"),
        (MANIFEST, manifest.replace("sha256:", "md5:"), "is not a digest: expected `sha256:` and 64"),
        (MANIFEST, manifest.replace(&size(layer), &size(layer + 7)), "sent "),
        (MANIFEST, of(&image.config, &[]), "the image has 0 layers, but its config 1"),
        (MANIFEST, of(&Bytes::from(r#"{"rootfs":3}"#), &[&image.layers[0]]), "malformed image config: invalid type"),
        (INDEX, index(""), "no image for platform linux/amd64, and for no other"),
        (INDEX, index(&foreign), "no image for platform linux/amd64, only for plan9/mips"),
    ]
    .into_iter()
    .enumerate()
    {
        kitchen.registry.put_manifest(REPO, &format!("bad{n}"), media_type, text);
        kitchen.dockerfile(&format!("FROM {host}/{REPO}:bad{n}\nRUN true\n"));
        let ended = kitchen.build("--platform linux/amd64").fails();
        ended.says(&format!("   1 | >>> FROM {host}/{REPO}:bad{n}\n")).says(words);
    }
    check_content(&kitchen);
}

#[test]
fn what_a_mirror_said_stands_beside_what_the_registry_said() {
    let Some(kitchen) = Kitchen::new(Who::Single) else { return };
    let (mirror, origin) = (kitchen.registry.host(), Registry::start());
    kitchen.registry.fault(Fault::anywhere("/team/none/", Action::status(403)));
    let host = origin.host();
    let plain = |host: &str| format!("[registry.\"{host}\"]\nhttp = true\n");
    kitchen.world.write("buildkitd.toml", format!("{}mirrors = [\"{mirror}\"]\n{}", plain(&host), plain(&mirror)));
    kitchen.dockerfile(&format!("FROM {host}/team/none:1\nCOPY Dockerfile /\n"));
    let ended = kitchen.build("").fails();
    ended.says(&format!("{host}/team/none:1: not found: mirror `{mirror}` answered 403 (")).hints(SPELLING);
    ended.says("); registry answered 404 (manifest unknown)\n");
    // Of a mirror that has no such tag one is told first, also where the registry cannot be reached.
    drop(origin);
    kitchen.dockerfile(&format!("FROM {host}/library/busybox:typo\nCOPY Dockerfile /\n"));
    let ended = kitchen.build("").fails();
    ended.says(&format!(
        "cannot resolve the image: {host}/library/busybox:typo: not found: mirror `{mirror}` answered 404 ("
    ));
    ended.says(&format!("hint: {SPELLING}; where they are right, the mirror lacks the image "));
    ended.says(&format!("; cannot connect to `{host}`"));
}

#[test]
fn bad_references_are_named_with_their_line() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let digest = "is not a digest: expected `sha256:` and 64 hexadecimal digits";
    for (name, words, hint) in [
        ("UPPER", "invalid reference `UPPER`: repository name must be lower case", "did you mean `upper`?"),
        ("Some/App:V1", "repository name must be lower case", "did you mean `some/app:V1`?"),
        ("a:b:c", "invalid reference `a:b:c`: malformed tag `b:c`", ""),
        ("x@sha256:short", &format!("invalid reference `x@sha256:short`: `sha256:short` {digest}"), ""),
        ("x@sha256:", &format!("invalid reference `x@sha256:`: `sha256:` {digest}"), ""),
        ("a//b", "invalid reference `a//b`: malformed repository name", ""),
        ("https://r.io/x", "malformed repository name", "images are named without `https://`: `r.io/x`"),
        (":tag", "invalid reference `:tag`: malformed repository name", ""),
    ] {
        for (dockerfile, line) in [
            (format!("FROM {name}\nRUN true\n"), format!("   1 | >>> FROM {name}\n")),
            (format!("FROM busybox\nCOPY --from={name} /a /\n"), format!("   2 | >>> COPY --from={name} /a /\n")),
        ] {
            kitchen.dockerfile(&dockerfile);
            let ended = kitchen.build("").fails();
            ended.says(&line).says(&format!("error: failed to solve: `{name}` is no stage, and no image: "));
            ended.says(words).hints(hint);
        }
    }
}

/// Names are looked up by what is built in, whatever modules the machine's C library would load for that.
#[test]
fn privileged_a_missing_name_is_said_however_the_machine_looks_names_up() {
    needs!(root);
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile("FROM no-such-host.invalid/image\n");
    kitchen.world.write("nsswitch.conf", "hosts: files myhostname dns\n");
    // Nobody answers there, and that at once.
    kitchen.world.write("resolv.conf", "nameserver 127.0.0.1\noptions attempts:1 timeout:1\n");
    let script = "for name in nsswitch resolv; do mount --bind $name.conf /etc/$name.conf || exit 9; done\n\
                  exec ./hullworks build --progress=plain --config=buildkitd.toml --root state context";
    let build = kitchen.world.run("unshare").args(["--mount", "--propagation", "private", "sh", "-c", script]);
    let ended = build.fails();
    assert!(ended.stderr.lines().any(|line| line.starts_with("error: ") && line.contains("no-such-host")), "{ended:?}");
}
