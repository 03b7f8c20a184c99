//! Kinds of registries: what they store, how they are reached, who may enter. Pulls and pushes through each.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use testkit::image::{CONFIG, File, MANIFEST, TestImage, docker, tar};
use testkit::registry::{Auth, Registry, TokenAuth};

use crate::harness::{Ended, each, has_tool};
use crate::kitchen::{Kitchen, steps};
use crate::who::Who;

const REPO: &str = "team/app";

/// Where the hint of a failed handshake sends people.
const CERTIFICATES: &str = "see `ca`, `keypair` and `insecure` of `[registry.\"HOST\"]` in buildkitd.toml";
/// And that of a server without TLS.
const PLAIN: &str = "if it speaks plain HTTP, say `http = true` in `[registry.\"HOST\"]` of buildkitd.toml";

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// The image for another platform: the same, but for a file that names it.
fn of_platform(architecture: &str, variant: Option<&str>) -> TestImage {
    let name = format!("{architecture}{}", variant.unwrap_or_default());
    let note = tar(&[File { path: "platform", mode: 0o644, data: name.into_bytes(), link: None }]);
    let mut image = TestImage::of_layers(vec![TestImage::busybox().unwrap().layers[0].clone(), note]);
    let mut config = json_of(&image.config);
    config["architecture"] = architecture.into();
    if let Some(variant) = variant {
        config["variant"] = variant.into();
    }
    image.config = Bytes::from(config.to_string());
    image
}

/// A manifest list of Docker's schema 2 in the kitchen's registry: this machine's platform among others.
fn put_list(registry: &Registry, tag: &str) {
    let native = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let others = [("s390x", None), ("arm", Some("v6")), ("arm", Some("v7")), (native, None), ("ppc64le", None)];
    let entries: Vec<Value> = others
        .into_iter()
        .map(|(architecture, variant)| {
            let image = of_platform(architecture, variant);
            let name = format!("{tag}-{architecture}{}", variant.unwrap_or_default());
            let mut entry = image.put_docker(registry, REPO, &name);
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            if let Some(variant) = variant {
                entry["platform"]["variant"] = variant.into();
            }
            entry
        })
        .collect();
    let list = json!({"schemaVersion": 2, "mediaType": docker::LIST, "manifests": entries});
    registry.put_manifest(REPO, tag, docker::LIST, list.to_string());
}

#[test]
fn a_manifest_list_of_docker_is_a_base_by_its_platform() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    put_list(&kitchen.registry, "v1");
    let from = format!("{}/{REPO}:v1", kitchen.registry.host());
    kitchen.dockerfile(&format!(
        "FROM {from} AS own\nRUN cp /platform /ran\n\
         FROM --platform=linux/arm/v7 {from} AS arm\nFROM --platform=linux/s390x {from} AS s390x\n\
         FROM scratch\nCOPY --from=own /platform /ran /own/\nCOPY --from=arm /platform /arm\n\
         COPY --from=s390x /platform /s390x\n"
    ));
    kitchen.build("--output out").succeeds();
    let native = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    for (file, expected) in [("own/platform", native), ("own/ran", native), ("arm", "armv7"), ("s390x", "s390x")] {
        assert_eq!(fs::read_to_string(kitchen.world.path("out").join(file)).unwrap(), expected, "{file}");
    }
    // What nobody reads is not downloaded, and what is known by its digest is not asked for again.
    let paths = kitchen.registry.requests().into_iter().filter(|r| r.method == Method::GET).map(|r| r.path);
    let mut paths: Vec<String> = paths.filter(|path| path.contains(REPO)).collect();
    paths.sort();
    let (all, different) = (paths.len(), paths.iter().collect::<BTreeSet<_>>().len());
    assert_eq!(different, 1 + 3 * 2 + 4, "the list; manifest and config of three platforms; layers: {paths:#?}");
    assert!(all - different <= 2, "only the list may be fetched once for each platform: {paths:#?}");

    kitchen.dockerfile(&format!("FROM --platform=linux/riscv64 {from}\nCOPY --from=busybox /bin/sh /sh\n"));
    let ended = kitchen.build("").fails();
    ended.says("   1 | >>> FROM --platform=linux/riscv64 ");
    ended.says("no image for platform linux/riscv64, only for ").says("linux/arm/v6");
}

#[test]
fn an_image_of_docker_is_exported_in_the_words_that_are_asked_for() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    put_list(&kitchen.registry, "v1");
    let host = kitchen.registry.host();
    let oci = (MANIFEST, CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip");
    let docker = (docker::MANIFEST, docker::CONFIG, docker::LAYER);
    // The second is only other words: its layers stay where they are.
    for (n, (lines, layers)) in [("RUN echo > /new", 3), ("LABEL a=b", 2)].into_iter().enumerate() {
        kitchen.dockerfile(&format!("FROM {host}/{REPO}:v1\n{lines}\n"));
        for (attributes, (manifest_type, config_type, layer_type)) in
            [("oci-mediatypes=true", oci), ("oci-mediatypes=false", docker)]
        {
            let case = format!("{lines}, {attributes}");
            let state = format!("state{n}{attributes}");
            let name = format!("{host}/{REPO}:made");
            kitchen.registry.forget_requests();
            let output = format!("--output type=image,name={name},push=true,{attributes}");
            kitchen.build_on(&state, &output).succeeds();
            let fetched = kitchen.registry.count(&Method::GET, "/blobs/");
            assert_eq!(fetched, if n == 0 { 3 } else { 1 }, "{case}: config and layers that are read");
            let (media_type, manifest) = kitchen.registry.manifest(REPO, "made").unwrap();
            let manifest = json_of(&manifest);
            assert_eq!((media_type.as_str(), &manifest["mediaType"]), (manifest_type, &json!(manifest_type)), "{case}");
            assert_eq!(manifest["config"]["mediaType"], config_type, "{case}");
            let types: Vec<&Value> =
                manifest["layers"].as_array().unwrap().iter().map(|layer| &layer["mediaType"]).collect();
            assert_eq!(types, vec![layer_type; layers], "{case}");
            if has_tool("skopeo") {
                let image = format!("docker://{name}");
                kitchen.world.run("skopeo").args(["inspect", "--config", "--tls-verify=false", &image]).succeeds();
            }
            // And it is a base again.
            let again = format!("again{n}{attributes}");
            fs::write(kitchen.world.path("Dockerfile.again"), format!("FROM {name}\nRUN cat /platform\n")).unwrap();
            kitchen.build_on(&again, "-f Dockerfile.again").succeeds();
        }
    }
    for (file, output) in [("oci.tar", "type=oci"), ("docker.tar", "type=docker,name=some/name:tag")] {
        kitchen.build(&format!("--output {output},dest={file}")).succeeds();
        if has_tool("skopeo") {
            let image = format!("{}-archive:{file}", file.trim_end_matches(".tar"));
            let config = kitchen.world.run("skopeo").args(["inspect", "--config", &image]).succeeds().text();
            assert_eq!(json_of(config.as_bytes())["config"]["Labels"]["a"], "b", "{file}");
        }
    }
}

/// A kitchen with one more registry, which has a base image.
struct Beside {
    kitchen: Kitchen,
    registry: Registry,
}

impl Beside {
    fn new(registry: Registry) -> Option<Beside> {
        let kitchen = Kitchen::new(Who::Root)?;
        TestImage::busybox().unwrap().put(&registry, REPO, "v1");
        let host = registry.host();
        kitchen.dockerfile(&format!("FROM {host}/{REPO}:v1\nRUN echo > /new\n"));
        Some(Beside { kitchen, registry })
    }

    /// Pulls from it and pushes to it, by a state that has nothing, with these settings of its in `buildkitd.toml`.
    fn ends(&self, settings: &str) -> Ended {
        let (world, host) = (&self.kitchen.world, self.registry.host());
        let _ = fs::remove_dir_all(world.path("state"));
        let common = fs::read_to_string(world.path("buildkitd.toml")).unwrap();
        world.write("beside.toml", format!("{common}[registry.\"{host}\"]\n{settings}\n"));
        let line =
            format!("build --progress=plain --config=beside.toml --root state context --push -t {host}/out/app:1");
        self.kitchen.who.hullworks(world).args(line.split_whitespace()).ends()
    }

    #[track_caller]
    fn works(&self, settings: &str) {
        let ended = self.ends(settings);
        assert_eq!(ended.code, Some(0), "{settings}: {ended:?}");
        let (_, manifest) = self.registry.manifest("out/app", "1").expect("it was pushed");
        let layers = json_of(&manifest)["layers"].as_array().unwrap().len();
        assert_eq!(layers, 2, "{settings}");
    }

    #[track_caller]
    fn fails(&self, settings: &str) -> Ended {
        let ended = self.ends(settings);
        assert_eq!(ended.code, Some(1), "{settings}: {ended:?}");
        ended.says("   1 | >>> FROM ");
        ended
    }
}

#[test]
fn certificates_are_judged_as_buildkitd_toml_says() {
    let ca = |of: &Beside| format!("ca = [{:?}]", of.registry.ca());
    let pair = |of: &Beside| {
        let (cert, key) = of.registry.client_pair();
        format!("[[registry.\"{}\".keypair]]\ncert = {cert:?}\nkey = {key:?}", of.registry.host())
    };
    let Some(other) = Beside::new(Registry::builder().tls().start()) else { return };
    for builder in [Registry::builder().tls(), Registry::builder().self_signed()] {
        let of = Beside::new(builder.start()).unwrap();
        of.works(&ca(&of));
        of.works("insecure = true");
        of.works(&format!("tlsconfigdir = [{:?}]", of.registry.certificate_dir()));
        for settings in ["http = false".to_owned(), format!("http = false\n{}", ca(&other))] {
            of.fails(&settings).says(&format!("{}/{REPO}:v1", of.registry.host())).hints(CERTIFICATES);
        }
        let gone = of.fails("ca = [\"/nowhere/ca.pem\"]");
        gone.says("/nowhere/ca.pem").says("No such file or directory");
    }

    // Where only the push goes there.
    other.kitchen.dockerfile("FROM busybox\n");
    let ended = other.ends("http = false");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    ended.says(&format!("failed to push {}/out/app:1: ", other.registry.host())).hints(CERTIFICATES);

    let of = Beside::new(Registry::builder().client_certificates().start()).unwrap();
    of.works(&format!("{}\n{}", ca(&of), pair(&of)));
    of.works(&format!("insecure = true\n{}", pair(&of)));
    of.works(&format!("tlsconfigdir = [{:?}]", of.registry.certificate_dir()));
    of.fails(&format!("http = false\n{}", ca(&of))).hints(CERTIFICATES);
    of.fails(&format!("http = false\n{}\n{}", ca(&of), pair(&other))).hints(CERTIFICATES);
}

#[test]
fn one_push_may_go_where_nobody_vouches_for() {
    let Some(of) = Beside::new(Registry::builder().tls().start()) else { return };
    of.kitchen.dockerfile("FROM busybox\nRUN echo > /new\n");
    let name = format!("{}/out/app:1", of.registry.host());
    let push = |more: &str| of.kitchen.build(&format!("--output type=image,name={name},push=true{more}"));
    push("").fails().hints(CERTIFICATES);
    push(",registry.insecure=false").fails().hints(CERTIFICATES);
    assert!(of.registry.manifest("out/app", "1").is_none());
    push(",registry.insecure=true").succeeds();
    assert!(of.registry.manifest("out/app", "1").is_some());
    push("").fails().hints(CERTIFICATES);

    // In plain HTTP, too; a registry of this machine is asked for that anyway, unless the settings say otherwise.
    let plain = Beside::new(Registry::start()).unwrap();
    plain.kitchen.dockerfile("FROM busybox\nRUN echo > /new\n");
    let (host, world) = (plain.registry.host(), &plain.kitchen.world);
    let common = fs::read_to_string(world.path("buildkitd.toml")).unwrap();
    world.write("buildkitd.toml", format!("{common}[registry.\"{host}\"]\nhttp = false\n"));
    let push = |more: &str| plain.kitchen.build(&format!("--output type=image,name={host}/out/app:1,push=true{more}"));
    push("").fails().hints(PLAIN);
    push(",registry.insecure=true").succeeds();
    assert!(plain.registry.manifest("out/app", "1").is_some());
}

#[test]
fn plain_http_is_spoken_where_buildkitd_toml_says_so() {
    let Some(of) = Beside::new(Registry::start()) else { return };
    of.works("http = true");
    of.works("insecure = true\nhttp = true");
    for settings in ["http = false", "insecure = true\nhttp = false"] {
        of.fails(settings).says("it does not answer in TLS").hints(PLAIN);
    }
    of.kitchen.dockerfile("FROM busybox\n");
    let ended = of.ends("http = false");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    ended.says(&format!("failed to push {}/out/app:1: ", of.registry.host())).hints(PLAIN);
    let with_tls = Beside::new(Registry::builder().tls().start()).unwrap();
    with_tls.works("insecure = true\nhttp = true");
}

/// A credential helper of docker's protocol: it knows one host, and writes down what it was asked.
fn put_helper(kitchen: &Kitchen, name: &str, host: &str, user: &str, secret: &str) {
    let asked = kitchen.world.path(format!("asked-{name}"));
    let script = format!(
        "#!/bin/sh\nread host || test -n \"$host\"\necho \"$1 $host\" >> {}\n\
         if [ \"$host\" != {host} ]; then echo credentials not found in native keychain; exit 1; fi\n\
         printf '{{\"ServerURL\":\"%s\",\"Username\":\"{user}\",\"Secret\":\"{secret}\"}}' \"$host\"\n",
        asked.display()
    );
    let path = kitchen.world.write(&format!("helpers/docker-credential-{name}"), script);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn credential_helpers_log_in_and_what_they_say_stays_secret() {
    let token = |anonymous_pull| {
        Auth::Token(TokenAuth { anonymous_pull, password: "pass-of-helper".to_owned(), ..TokenAuth::default() })
    };
    let basic = Auth::Basic { user: "hull".to_owned(), password: "pass-of-helper".to_owned() };
    // The last: an identity token.
    let kinds = vec![
        (basic, "hull", "pass-of-helper"),
        (token(false), "hull", "pass-of-helper"),
        (token(true), "hull", "pass-of-helper"),
        (token(false), "<token>", "refresh-me"),
    ];
    each(kinds, |(auth, user, secret)| check_helpers(auth, user, secret));
}

fn check_helpers(auth: Auth, user: &str, secret: &str) {
    let what = format!("{auth:?}, {user}");
    let Some(of) = Beside::new(Registry::builder().auth(auth).start()) else { return };
    let (kitchen, host) = (&of.kitchen, of.registry.host());
    put_helper(kitchen, "knows", &host, user, secret);
    put_helper(kitchen, "other", "elsewhere.example", user, secret);
    let configs = [
        (r#"{"credsStore":"other"}"#.to_owned(), false),
        (format!(r#"{{"credsStore":"knows","credHelpers":{{"{host}":"other"}}}}"#), false),
        (format!(r#"{{"credHelpers":{{"{host}":"knows"}}}}"#), true),
        (r#"{"credsStore":"knows"}"#.to_owned(), true),
        (format!(r#"{{"credsStore":"other","credHelpers":{{"{host}":"knows"}}}}"#), true),
    ];
    for (n, (config, works)) in configs.into_iter().enumerate() {
        let push = format!("--push -t {host}/out/app:1 --metadata-file meta.json");
        let mut run = kitchen.build_on(&format!("state{n}"), &push).env("PATH", search_path(kitchen));
        if n % 2 == 0 {
            kitchen.world.write(".docker/config.json", &config);
        } else {
            // Where the variable says; the one in the home directory does not count then.
            kitchen.world.write(".docker/config.json", r#"{"credsStore":"missing"}"#);
            kitchen.world.write("elsewhere/config.json", &config);
            run = run.env("DOCKER_CONFIG", kitchen.world.path("elsewhere"));
        }
        let ended = run.ends();
        assert_eq!(ended.code, Some(i32::from(!works)), "{what}, {config}: {ended:?}");
        if !works {
            ended.says("registry answered 401 (unauthorized: authentication required)");
        }
        assert!(!ended.stderr.contains(secret) && !ended.text().contains(secret), "{what}, {config}: {ended:?}");
    }
    let asked = fs::read_to_string(kitchen.world.path("asked-knows")).unwrap();
    assert!(asked.lines().all(|line| line == format!("get {host}")) && !asked.is_empty(), "{asked}");
    let states: Vec<String> = (0..5).map(|n| format!("state{n}")).collect();
    let search = ["--recursive", "--text", "--files-with-matches", secret, "meta.json"];
    let found = kitchen.world.run("grep").args(search).args(&states).ends();
    assert!(found.code == Some(1), "the secret lies in {found:?}");
}

/// PATH with the helpers.
fn search_path(kitchen: &Kitchen) -> String {
    format!("{}:{}", kitchen.world.path("helpers").display(), std::env::var("PATH").unwrap())
}

#[test]
fn a_helper_that_fails_is_named_and_not_quoted() {
    let Some(of) = Beside::new(Registry::builder().auth(Auth::basic()).start()) else { return };
    let (kitchen, host) = (&of.kitchen, of.registry.host());
    for (script, words) in [
        (None, "no such program in `PATH`"),
        (Some("#!/bin/sh\necho the vault is closed; exit 1\n"), "the vault is closed"),
        (Some("#!/bin/sh\necho 'Username: hull, Secret: works-not'\n"), "its answer is not the JSON it should be"),
    ] {
        if let Some(script) = script {
            let path = kitchen.world.write("helpers/docker-credential-bad", script);
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        kitchen.world.write(".docker/config.json", r#"{"credsStore":"bad"}"#);
        let ended = kitchen.build("").env("PATH", search_path(kitchen)).fails();
        ended
            .says("   1 | >>> FROM ")
            .says(&format!("credential helper `docker-credential-bad` for `{host}`: {words}"));
        assert!(!ended.stderr.contains("works-not"), "{ended:?}");
    }
}

#[test]
fn a_tag_that_moved_is_noticed() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let image = |text: &str| {
        let note = File { path: "note", mode: 0o644, data: text.as_bytes().to_vec(), link: None };
        TestImage::of_layers(vec![TestImage::busybox().unwrap().layers[0].clone(), tar(&[note])])
    };
    let from = format!("{}/{REPO}:v1", kitchen.registry.host());
    kitchen.dockerfile(&format!("FROM {from}\nRUN cat /note\n"));
    let build = |args: &str, text: &str, ran: bool| {
        kitchen.registry.forget_requests();
        let ended = kitchen.build(args).succeeds();
        assert_eq!(ended.stderr.contains(&format!(" {text}\n")), ran, "{args}, {text}: {ended:?}");
        assert_eq!(steps(&ended).0.len(), usize::from(ran), "{args}, {text}: {ended:?}");
        kitchen.registry.count(&Method::HEAD, "/manifests/v1") + kitchen.registry.count(&Method::GET, "/manifests/v1")
    };
    image("first").put(&kitchen.registry, REPO, "v1");
    assert_ne!(build("", "first", true), 0);
    assert_ne!(build("", "first", false), 0, "a daemonless build asks each time, as upstream's");
    image("second").put(&kitchen.registry, REPO, "v1");
    assert_ne!(build("", "second", true), 0);
    let third = image("third").put(&kitchen.registry, REPO, "v1");
    assert_ne!(build("--pull", "third", true), 0);
    assert_ne!(build("--pull", "third", false), 0, "nothing moved");
    image("first").put(&kitchen.registry, REPO, "v1");
    build("", "first", false);

    // Who names a digest means that one, and nobody needs to be asked for it again.
    kitchen.dockerfile(&format!("FROM {from}@{third}\nRUN cat /note\n"));
    assert_eq!(build("", "third", false), 0);
    assert_eq!(kitchen.registry.requests().len(), 0);

    // BuildKit's third mode: what is known already is good enough.
    kitchen.dockerfile(&format!("FROM {from}\nRUN cat /note && :\n"));
    image("fourth").put(&kitchen.registry, REPO, "v1");
    let line = "build --progress=plain --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
    let local = kitchen.who.daemonless(&kitchen.world).args(line.split_whitespace());
    let local = local.env("BUILDKITD_FLAGS", "--root=state --config=buildkitd.toml");
    local.arg("--opt=image-resolve-mode=local").succeeds().says(" first\n");
}

#[test]
fn what_a_registry_was_given_it_hands_on_itself() {
    let Some(kitchen) = Kitchen::new(Who::Single) else { return };
    let registry = &kitchen.registry;
    kitchen.file("f", "content");
    kitchen.dockerfile("FROM scratch\nCOPY f /f\n");
    // Builds that end, and state that is opened again.
    let push = |name: &str| {
        registry.forget_requests();
        kitchen.build(&format!("--push -t {}/{name}", registry.host())).succeeds();
        let repository = name.split(':').next().unwrap();
        registry.count(&Method::PUT, &format!("/v2/{repository}/blobs/"))
    };
    // A layer and a config; then the config; and what is there already is not pushed at all.
    for (name, uploads) in [("a/one:1", 2), ("b/two:1", 1), ("c/three:1", 1), ("a/one:2", 0)] {
        assert_eq!(push(name), uploads, "{name}");
    }
    let (_, manifest) = registry.manifest("c/three", "1").unwrap();
    let layer = json_of(&manifest)["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    assert!(registry.blob("c/three", &layer).is_some());
    // Another registry has nothing to hand on.
    let other = Registry::start();
    kitchen.build(&format!("--push -t {}/d/four:1", other.host())).succeeds();
    assert!(other.blob("d/four", &layer).is_some());
}
