//! Caches between machines: a second machine is a second state directory, which has nothing.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use hyper::Method;
use serde_json::Value;
use testkit::registry::{Action, Fault};

use crate::harness::{Ended, Invocation, Running, eventually, is_root};
use crate::kitchen::{Kitchen, ran, steps};
use crate::needs;
use crate::who::Who;

/// Two stages. What the first one makes is no layer of the result.
const STAGES: &str = "FROM busybox AS maker\nCOPY a /\nRUN cat /a > /b && echo made >> /b\nFROM busybox\nCOPY --from=maker /b /\nRUN cat /b > /c\n";
const ALL: [&str; 4] = ["COPY --from=maker /b /", "COPY a /", "RUN cat /a > /b && echo made >> /b", "RUN cat /b > /c"];

fn kitchen(who: Who) -> Option<Kitchen> {
    let kitchen = Kitchen::new(who)?;
    kitchen.file("a", "one\n");
    kitchen.dockerfile(STAGES);
    Some(kitchen)
}

fn read(kitchen: &Kitchen, name: &str) -> String {
    fs::read_to_string(kitchen.world.path(name)).unwrap()
}

fn is_all_cached(ended: &Ended) {
    assert_eq!(steps(ended), (Vec::new(), ALL.map(str::to_owned).to_vec()), "{ended:?}");
}

#[test]
fn what_one_machine_made_no_other_makes_again() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = kitchen(who) else { continue };
        let host = kitchen.registry.host();
        let line = format!(
            "--cache-to type=registry,ref={host}/c/max,mode=max \
             --cache-to type=registry,ref={host}/c/index:2,mode=max,image-manifest=false,compression=zstd,force-compression=true \
             --cache-to type=local,dest=cache,mode=max,tag=x --cache-to type=inline -t {host}/c/image:1 --push"
        );
        let first = kitchen.build(&line).succeeds();
        assert_eq!(ran(&first), ALL, "{first:?}");
        // Beside a full cache, or after one, it has those layers as well.
        kitchen.build_on("small", &format!("--cache-to {host}/c/min")).succeeds();
        first.says("exporting cache to registry").says("exporting cache to client directory");
        first.says("preparing layers for inline cache");

        let local = "type=local,src=cache,tag=x".to_owned();
        let places = [
            format!("{host}/c/max"),
            format!("{host}/c/min"),
            format!("{host}/c/index:2"),
            format!("{host}/c/image:1"),
            local,
        ];
        for (at, place) in places.iter().enumerate() {
            let (state, out) = (format!("state{at}"), format!("out{at}"));
            let second = kitchen.build_on(&state, &format!("--cache-from {place} --output {out}")).succeeds();
            is_all_cached(&second);
            second.says("importing cache manifest from ");
            assert_eq!(read(&kitchen, &format!("{out}/c")), "one\nmade\n", "{who:?}: {place}");
            // What came from there is known here by now.
            is_all_cached(&kitchen.build_on(&state, "").succeeds());
        }

        // An image that was made from its own cache is the same one.
        let image = |tag: &str| kitchen.registry.manifest("c/image", tag).unwrap().1;
        let again = format!("--cache-from {host}/c/image:1 --cache-to type=inline -t {host}/c/image:2 --push");
        is_all_cached(&kitchen.build_on("again", &again).succeeds());
        assert_eq!(image("1"), image("2"), "{who:?}");

        // A step that needs more than the first machine's result: that of the first stage is in a full cache only.
        let changed = |state: &str, place: &str| {
            let (copy, run) = (("COPY --from=maker /b /", "COPY --from=maker /b /b2"), ("cat /b > /c", "cat /b2 > /c"));
            kitchen.dockerfile(&STAGES.replace(copy.0, copy.1).replace(run.0, run.1));
            ran(&kitchen.build_on(state, &format!("--cache-from {place}")).succeeds())
        };
        let above = ["COPY --from=maker /b /b2", "RUN cat /b2 > /c"];
        assert_eq!(changed("full", &format!("{host}/c/max")), above, "{who:?}");
        let more = ["COPY --from=maker /b /b2", "COPY a /", "RUN cat /a > /b && echo made >> /b", "RUN cat /b2 > /c"];
        assert_eq!(changed("least", &format!("{host}/c/min")), more, "{who:?}");
    }
}

#[test]
fn layers_of_a_cache_that_nobody_reads_are_not_fetched() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = kitchen(who) else { return };
    let host = kitchen.registry.host();
    kitchen.build(&format!("--cache-to type=registry,ref={host}/c/x,mode=max")).succeeds();
    kitchen.registry.forget_requests();
    is_all_cached(&kitchen.build_on("other", &format!("--cache-from {host}/c/x")).succeeds());
    // The config of the cache is a blob, too.
    let blobs = |path: &str| kitchen.registry.count(&Method::GET, path);
    assert_eq!((blobs("/c/x/blobs/"), kitchen.registry.count(&Method::PUT, "/c/x/")), (1, 0));
}

#[test]
fn what_buildkit_cached_is_not_made_again() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = Kitchen::new(who) else { return };
    for (name, content) in [("a", "one\n"), ("d/b", "two\n")] {
        kitchen.file(name, content);
        let mode = |name: &str, mode| {
            fs::set_permissions(kitchen.world.path("context").join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(name, 0o644);
        name.split_once('/').into_iter().for_each(|(dir, _)| mode(dir, 0o755));
    }
    kitchen.dockerfile(
        "FROM scratch AS one\nCOPY a d /x/\nCOPY --chmod=600 a /y\nFROM scratch\nWORKDIR /w\nCOPY --from=one /x /x\n",
    );
    // Its manifest and its config are enough to see that.
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/cache-of-buildkit");
    copy_tree(&golden, &kitchen.world.path("cache"));
    who.own(&kitchen.world, "cache");
    let ended = kitchen.build("--cache-from type=local,src=cache").succeeds();
    let all = ["COPY --chmod=600 a /y", "COPY --from=one /x /x", "COPY a d /x/", "WORKDIR /w"];
    assert_eq!(steps(&ended), (Vec::new(), all.map(str::to_owned).to_vec()), "{ended:?}");
    // The layers are not there. Whoever needs them makes them.
    let ended = kitchen.build("--cache-from type=local,src=cache --output out").succeeds();
    assert_eq!(read(&kitchen, "out/x/b"), "two\n", "{ended:?}");
    let mut made = ran(&ended);
    made.dedup();
    assert_eq!(made, all, "{ended:?}");
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to: PathBuf = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[test]
fn a_cache_that_is_no_good_is_a_miss() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = kitchen(who) else { return };
    let (host, registry) = (kitchen.registry.host(), &kitchen.registry);
    kitchen
        .build(&format!("--cache-to type=registry,ref={host}/c/good,mode=max --cache-to type=local,dest=dir"))
        .succeeds();
    let (media_type, manifest) = registry.manifest("c/good", "latest").unwrap();
    let manifest = String::from_utf8(manifest.to_vec()).unwrap();
    // Of a later version; with a config that is none; no manifest at all.
    let later = manifest.replace("cacheconfig.v0", "cacheconfig.v9");
    registry.put_manifest("c/good", "later", &media_type, later);
    let (_, config) = manifest.split_once("\"digest\":\"").unwrap();
    let config = &config[..71];
    let garbage = registry.put_blob("c/good", "garbage");
    registry.put_manifest("c/good", "garbage", &media_type, manifest.replace(config, &garbage.to_string()));
    registry.put_manifest("c/good", "nothing", &media_type, "{");
    fs::write(kitchen.world.path("dir/index.json"), "{").unwrap();
    let mut places: Vec<String> =
        ["later", "garbage", "nothing", "missing"].map(|tag| format!("{host}/c/good:{tag}")).to_vec();
    places.push(format!("{host}/no/such"));
    places.push("127.0.0.1:1/x".to_owned());
    places.push("type=local,src=dir".to_owned());
    places.push("type=local,src=nowhere".to_owned());
    places.push("busybox".to_owned());
    // Caches that nobody has, or not yet.
    places.extend(["type=bogus", "type=s3,bucket=b", "type=gha", "type=registry,ref=%%"].map(str::to_owned));
    let all: Vec<String> = places.iter().map(|place| format!("--cache-from {place}")).collect();
    let ended = kitchen.build_on("bad", &format!("{} --output out", all.join(" "))).succeeds();
    assert_eq!((ran(&ended), read(&kitchen, "out/c")), (ALL.map(str::to_owned).to_vec(), "one\nmade\n".to_owned()));
    ended.says("ERROR: the cache cannot be used").says("registry answered 404");
    ended.says("local cache `nowhere` is not used");
    ended.says("ERROR: no cache import of type `bogus`").says("ERROR: cache import type=s3 is not supported yet");
    // An image without one is where everybody begins.
    ended.says("there is no cache in it");
    assert_eq!(ended.stderr.matches(" ERROR: ").count(), 10, "{ended:?}");
    // A registry in trouble is asked once more, and keeps nobody waiting.
    registry.fault(Fault::on(Method::GET, "/v2/c/good/", Action::status(503)));
    registry.fault(Fault::on(Method::HEAD, "/v2/c/good/", Action::status(503)));
    let before = registry.requests().len();
    kitchen.build_on("worse", &format!("--cache-from {host}/c/good:missing")).succeeds().says("registry answered 503");
    let asked = registry.requests().split_off(before);
    let tags = asked.iter().filter(|request| request.method == Method::HEAD && request.status == 503);
    assert_eq!(tags.count(), 2, "{asked:?}");
}

#[test]
fn layers_that_a_cache_has_lost_are_made_again() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = kitchen(who) else { return };
    let host = kitchen.registry.host();
    kitchen.build(&format!("--cache-to type=registry,ref={host}/c/x,mode=max")).succeeds();
    let import = format!("--cache-from {host}/c/x");
    let blobs = |action: Action| {
        // The config comes first.
        let fault = Fault::on(Method::GET, "/v2/c/x/blobs/", action).after(1);
        kitchen.registry.behave();
        kitchen.registry.fault(fault);
    };
    for (at, action) in [Action::status(404), Action::WrongBytes].into_iter().enumerate() {
        // A step that reads them, and an exporter.
        kitchen.dockerfile(&format!("{STAGES}RUN cat /c > /e\n"));
        blobs(action.clone());
        let ended = kitchen.build_on(&format!("read{at}"), &format!("{import} --output read{at}.out")).succeeds();
        assert_eq!(read(&kitchen, &format!("read{at}.out/e")), "one\nmade\n", "{ended:?}");
        kitchen.dockerfile(STAGES);
        blobs(action);
        let ended = kitchen.build_on(&format!("out{at}"), &format!("{import} --output out{at}.out")).succeeds();
        assert_eq!(
            (ran(&ended), read(&kitchen, &format!("out{at}.out/c"))),
            (ALL.map(str::to_owned).to_vec(), "one\nmade\n".into())
        );
    }
    // A cache that is to be written has what was asked for.
    let line = format!(
        "{import} --cache-to type=local,dest=left,mode=max --cache-to type=registry,ref={host}/c/other,mode=max"
    );
    blobs(Action::status(404));
    assert_eq!(ran(&kitchen.build_on("written", &line).succeeds()), ALL);
    kitchen.registry.behave();
    for (name, place) in [("local", "type=local,src=left".to_owned()), ("other", format!("{host}/c/other"))] {
        let line = format!("--cache-from {place} --output {name}.out");
        is_all_cached(&kitchen.build_on(&format!("reads-{name}"), &line).succeeds());
    }
    // Outputs are not written twice: the cache that stands beside one lacks what that does not need.
    let line = format!("{import} --cache-to type=registry,ref={host}/c/less,mode=max --output beside.out");
    blobs(Action::status(404));
    kitchen.build_on("beside", &line).succeeds();
    assert_eq!(read(&kitchen, "beside.out/c"), "one\nmade\n");

    // What an earlier build knows from a directory that this one does not read.
    kitchen.registry.behave();
    is_all_cached(&kitchen.build_on("aside", "--cache-from type=local,src=left").succeeds());
    // A cache that may fail is worth no step.
    let line = format!("--cache-to type=registry,ref={host}/c/maybe,mode=max,ignore-error=true");
    let ended = kitchen.build_on("aside", &line).succeeds();
    is_all_cached(&ended);
    ended.says("leaving out results whose layers cannot be had: ");
    assert_eq!(
        ran(&kitchen.build_on("aside", &format!("--cache-to type=registry,ref={host}/c/later,mode=max")).succeeds()),
        ALL
    );
    is_all_cached(&kitchen.build_on("later", &format!("--cache-from {host}/c/later --output later.out")).succeeds());

    // What an earlier build knows from a registry that is gone since.
    kitchen.registry.behave();
    is_all_cached(&kitchen.build_on("gone", &import).succeeds());
    kitchen.registry.fault(Fault::anywhere("/v2/c/x/", Action::status(404)));
    let ended = kitchen.build_on("gone", "--output gone.out").succeeds();
    assert_eq!((ran(&ended), read(&kitchen, "gone.out/c")), (ALL.map(str::to_owned).to_vec(), "one\nmade\n".into()));
}

/// Digest and size.
fn described(descriptor: &Value) -> (String, u64) {
    (descriptor["digest"].as_str().unwrap().to_owned(), descriptor["size"].as_u64().unwrap())
}

/// What an image has does not fail for a copy of it: neither a damaged one, nor one that a cache describes wrongly.
#[test]
fn a_damaged_layer_of_an_image_in_a_cache_comes_from_where_the_image_is() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = kitchen(who) else { return };
    let (host, registry) = (kitchen.registry.host(), &kitchen.registry);
    kitchen
        .build(&format!("--cache-to type=local,dest=dir,mode=max --cache-to type=registry,ref={host}/c/x,mode=max"))
        .succeeds();
    let (_, manifest) = registry.manifest("library/busybox", "latest").unwrap();
    let (layer, size) = described(&serde_json::from_slice::<Value>(&manifest).unwrap()["layers"][0]);
    let file = format!("blobs/{}", layer.replace(':', "/"));
    let blob = kitchen.world.path(format!("dir/{file}"));
    let whole = fs::read(&blob).unwrap();
    assert_eq!(whole.len() as u64, size);
    let flipped = || {
        let mut bytes = whole.clone();
        bytes[500] ^= 1;
        bytes
    };
    for (state, bytes) in [("cut", whole[..1000].to_vec()), ("flipped", flipped()), ("empty", Vec::new())] {
        fs::write(&blob, bytes).unwrap();
        let line = format!("--cache-from type=local,src=dir --output {state}.out");
        let ended = kitchen.build_on(state, &line).succeeds();
        is_all_cached(&ended);
        ended.says("OCI layout `dir`: ").says("trying again, or elsewhere");
        assert_eq!(read(&kitchen, &format!("{state}.out/c")), "one\nmade\n", "{state}");
    }
    // A second cache has it.
    fs::create_dir_all(kitchen.world.path("other")).unwrap();
    copy_tree(&kitchen.world.path("dir"), &kitchen.world.path("other"));
    fs::write(kitchen.world.path(format!("other/{file}")), &whole).unwrap();
    who.own(&kitchen.world, "other");
    let blobs = format!("/v2/library/busybox/blobs/{layer}");
    registry.fault(Fault::on(Method::GET, &blobs, Action::status(404)));
    let both = "--cache-from type=local,src=dir --cache-from type=local,src=other --output two.out";
    is_all_cached(&kitchen.build_on("two", both).succeeds());
    // Nobody has it.
    kitchen.build_on("none", "--cache-from type=local,src=dir --output none.out").fails().says("cannot fetch layer");
    registry.behave();

    // The image knows how large it is.
    fs::write(&blob, &whole).unwrap();
    let (media_type, manifest) = registry.manifest("c/x", "latest").unwrap();
    let (size, wrong) = (format!("\"size\":{size}"), format!("\"size\":{}", size + 7));
    let manifest = String::from_utf8(manifest.to_vec()).unwrap();
    assert!(manifest.contains(&size), "{manifest}");
    registry.put_manifest("c/x", "wrong", &media_type, manifest.replace(&size, &wrong));
    let ended = kitchen.build_on("wrong", &format!("--cache-from {host}/c/x:wrong --output wrong.out")).succeeds();
    is_all_cached(&ended);
    assert_eq!(read(&kitchen, "wrong.out/c"), "one\nmade\n");
}

/// An image that is made from its own cache is the same one, also where a client's files came to a daemon.
#[test]
fn an_image_with_a_cache_is_the_same_in_each_generation() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = kitchen(who) else { return };
    let host = kitchen.registry.host();
    let mut before: Option<(String, String)> = None;
    for generation in ["g0", "g1", "g2"] {
        let machine = Machine::new(&kitchen, generation);
        let import = before.as_ref().map(|(last, _)| format!("--import-cache type=registry,ref={host}/c/i:{last}"));
        let line = format!(
            "--export-cache type=inline --output type=image,name={host}/c/i:{generation},push=true {}",
            import.unwrap_or_default()
        );
        let ended = machine.buildctl(&line).succeeds();
        machine.ends();
        let image = String::from_utf8(kitchen.registry.manifest("c/i", generation).unwrap().1.to_vec()).unwrap();
        if let Some((_, last)) = before {
            assert_eq!(image, last, "{generation}");
            assert!(ran(&ended).is_empty(), "{ended:?}");
        }
        before = Some((generation.to_owned(), image));
    }
}

/// What gives nothing, or less than it says, is said once, with its name.
#[test]
fn a_cache_that_gives_less_than_it_says_is_warned_of() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = kitchen(who) else { return };
    let (host, registry) = (kitchen.registry.host(), &kitchen.registry);
    kitchen.build(&format!("--cache-to type=registry,ref={host}/c/x,mode=max")).succeeds();
    let (media_type, manifest) = registry.manifest("c/x", "latest").unwrap();
    let (digest, size) = described(&serde_json::from_slice::<Value>(&manifest).unwrap()["config"]);
    let config = registry.blob("c/x", &digest.parse().unwrap()).unwrap();
    let config = String::from_utf8(config.to_vec()).unwrap();
    let manifest = String::from_utf8(manifest.to_vec()).unwrap();
    let with_config = |tag: &str, text: String| {
        let new = (format!("\"size\":{}", text.len()), registry.put_blob("c/x", text).to_string());
        let (before, after) = manifest.split_once("\"layers\"").unwrap();
        let before = before.replace(&format!("\"size\":{size}"), &new.0).replace(&digest, &new.1);
        registry.put_manifest("c/x", tag, &media_type, format!("{before}\"layers\"{after}"));
    };
    with_config("empty", "{}".to_owned());
    with_config("late", config.replace("\"createdAt\":\"20", "\"createdAt\":\"9999-12-31T23:59:59Z\",\"x\":\"20"));
    // Each record with inputs is its own.
    let mut round: Value = serde_json::from_str(&config).unwrap();
    for (at, record) in (0..).zip(round["records"].as_array_mut().unwrap()) {
        for input in record.get_mut("inputs").and_then(Value::as_array_mut).into_iter().flatten() {
            *input = serde_json::json!([{ "link": at }]);
        }
    }
    with_config("circle", round.to_string());
    let bare = manifest.split_once("\"layers\"").unwrap().0;
    registry.put_manifest("c/x", "bare", &media_type, format!("{bare}\"layers\":[]}}"));
    registry.put_manifest("c/x", "v1", &media_type, manifest.replace("cacheconfig.v0", "cacheconfig.v1"));
    let index = "application/vnd.oci.image.index.v1+json";
    registry.put_manifest("c/x", "nothing", index, "{\"schemaVersion\":2,\"manifests\":[]}");
    for (tag, said) in [
        ("empty", "gives nothing: there are no records in it"),
        ("circle", "gives nothing: records lead round in circles"),
        ("bare", "results have layers that its manifest does not have"),
        ("nothing", "gives nothing: its index leads to no image, and names no config of a cache"),
        ("v1", "its config is of type `application/vnd.buildkit.cacheconfig.v1`"),
        // Everyday.
        ("busybox", ""),
    ] {
        let place = if tag == "busybox" { "busybox".to_owned() } else { format!("{host}/c/x:{tag}") };
        let ended = kitchen.build_on(tag, &format!("--cache-from {place}")).succeeds();
        assert_eq!(ran(&ended), ALL, "{tag}");
        let is_error = tag == "v1";
        let warned = ended.stderr.matches(&format!(" WARN: cache `{place}` ")).count();
        assert_eq!(warned, usize::from(!is_error && !said.is_empty()), "{tag}: {ended:?}");
        assert_eq!(ended.stderr.contains(" ERROR: "), is_error, "{tag}: {ended:?}");
        ended.says(said);
    }
    // A time that nobody can tell is none.
    is_all_cached(&kitchen.build_on("late", &format!("--cache-from {host}/c/x:late --output late.out")).succeeds());
}

#[test]
fn a_cache_that_cannot_be_written_fails_the_build_unless_that_is_ignored() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = kitchen(who) else { return };
    let host = kitchen.registry.host();
    kitchen.registry.fault(Fault::on(Method::PUT, "/v2/c/x/manifests/", Action::status(403)));
    let line = |more: &str| format!("--cache-to type=registry,ref={host}/c/x{more} -t {host}/i:1 --push");
    let failed = kitchen.build(&line("")).fails();
    failed.says(&format!("failed to push {host}/c/x:latest: ")).says("registry answered 403");
    // The image did not wait for that.
    assert!(kitchen.registry.manifest("i", "1").is_some(), "{failed:?}");
    kitchen.build(&line(",ignore-error=true")).succeeds().says("exporting cache to registry");
    for (flag, said) in [
        ("--cache-to type=gha,url=http://127.0.0.1:1/,token=t", "cache export type=gha is not supported yet"),
        ("--cache-to type=gha", "cache export type=gha is not supported yet"),
        ("--cache-to type=s3,bucket=b", "cache export type=s3 is not supported yet"),
    ] {
        kitchen.build(flag).fails().says(said);
    }
}

/// A daemon of its own state, and its clients.
pub struct Machine<'k> {
    kitchen: &'k Kitchen,
    /// How it is reached.
    pub socket: String,
    daemon: Running,
}

impl Machine<'_> {
    pub fn new<'k>(kitchen: &'k Kitchen, name: &str) -> Machine<'k> {
        for program in ["buildkitd", "buildctl"] {
            let _ = symlink("hullworks", kitchen.world.path(program));
        }
        let path = kitchen.world.path(format!("{name}.sock"));
        let socket = format!("unix://{}", path.display());
        let program = kitchen.world.path("buildkitd");
        let line = ["--config", "buildkitd.toml", "--root", name, "--addr", &socket];
        let daemon = kitchen.who.run(&kitchen.world, program.to_str().unwrap()).args(line).starts();
        eventually(|| path.exists());
        Machine { kitchen, socket, daemon }
    }

    /// `buildctl build` of the context.
    pub fn buildctl(&self, args: &str) -> Invocation {
        let program = self.kitchen.world.path("buildctl");
        let line = "build --progress=plain --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
        let client = self.kitchen.who.run(&self.kitchen.world, program.to_str().unwrap());
        client.args(["--addr", &self.socket]).args(line.split(' ')).args(args.split_whitespace())
    }

    /// docker's client.
    pub fn buildx(&self, args: &str) -> Invocation {
        let docker = self.kitchen.world.path("docker");
        let client = self.kitchen.who.run(&self.kitchen.world, "docker-buildx").env("DOCKER_CONFIG", docker);
        client.args(args.split_whitespace())
    }

    /// Ends it as a pod is ended.
    pub fn ends(self) {
        self.daemon.signal("TERM");
        assert_eq!(self.daemon.ends_soon().code, Some(0));
    }
}

#[test]
fn daemons_share_caches_by_our_client() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = kitchen(who) else { return };
    let host = kitchen.registry.host();
    let one = Machine::new(&kitchen, "one");
    let exports =
        format!("--export-cache type=registry,ref={host}/c/x,mode=max --export-cache type=local,dest=cache,mode=max");
    let ended = one.buildctl(&format!("{exports} --metadata-file meta.json")).succeeds();
    assert_eq!(ran(&ended), ALL, "{ended:?}");
    assert!(read(&kitchen, "meta.json").contains("\"cache.manifest\""));
    one.ends();
    for (name, place) in
        [("two", format!("type=registry,ref={host}/c/x")), ("three", "type=local,src=cache".to_owned())]
    {
        let other = Machine::new(&kitchen, name);
        let ended = other.buildctl(&format!("--import-cache {place} --output type=local,dest={name}.out")).succeeds();
        is_all_cached(&ended);
        assert_eq!(read(&kitchen, &format!("{name}.out/c")), "one\nmade\n");
        other.ends();
    }
}

#[test]
fn daemons_share_caches_by_docker_buildx() {
    needs!(tool "docker-buildx");
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = kitchen(who) else { return };
    let host = kitchen.registry.host();
    let build = |machine: &Machine<'_>, name: &str, args: &str| {
        machine.buildx(&format!("create --name {name} --driver remote {}", machine.socket)).succeeds();
        machine.buildx(&format!("--builder {name} build --progress=plain {args} context")).succeeds()
    };
    let one = Machine::new(&kitchen, "one");
    let exports = format!(
        "--cache-to type=registry,ref={host}/c/x,mode=max --cache-to type=local,dest=cache,mode=max \
         --build-arg BUILDKIT_INLINE_CACHE=1 -t {host}/c/image:1 --push"
    );
    build(&one, "one", &exports).says("exporting cache to registry").says("preparing layers for inline cache");
    one.ends();
    let places =
        [format!("{host}/c/x"), "type=local,src=cache".to_owned(), format!("type=registry,ref={host}/c/image:1")];
    for (at, place) in places.iter().enumerate() {
        let name = format!("other{at}");
        let other = Machine::new(&kitchen, &name);
        let ended = build(&other, &name, &format!("--cache-from {place} --output type=local,dest={name}.out"));
        is_all_cached(&ended);
        assert_eq!(read(&kitchen, &format!("{name}.out/c")), "one\nmade\n");
        other.ends();
    }
}

/// Blobs that a repository was given.
fn uploads(kitchen: &Kitchen, repository: &str) -> usize {
    let path = format!("/v2/{repository}/blobs/uploads/");
    kitchen
        .registry
        .requests()
        .iter()
        .filter(|request| request.path.starts_with(&path) && request.status == 201)
        .count()
}

#[test]
fn layers_go_to_the_cache_while_later_steps_run() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = kitchen(who) else { return };
    let host = kitchen.registry.host();
    // Two steps end, the third one does not.
    kitchen.dockerfile("FROM busybox\nCOPY a /\nRUN cat /a > /b\nRUN echo $((1+1)) begun; sleep 1000\n");
    let is_sent = |name: &str, build: Running| {
        build.waits_until("that the last step runs", |said| said.contains("2 begun"));
        eventually(|| uploads(&kitchen, name) == 2);
        build.signal("INT");
        let ended = build.ends_soon();
        assert_ne!(ended.code, Some(0), "{ended:?}");
        assert!(kitchen.registry.manifest(name, "latest").is_none(), "a build that failed left a cache");
    };
    is_sent("c/one", kitchen.build(&format!("--cache-to type=registry,ref={host}/c/one,mode=max")).starts());
    let machine = Machine::new(&kitchen, "two");
    let line = format!("--export-cache type=registry,ref={host}/c/two,mode=max");
    is_sent("c/two", machine.buildctl(&line).starts());
    if crate::harness::has_tool("docker-buildx") {
        machine.buildx(&format!("create --name b --driver remote {}", machine.socket)).succeeds();
        let line = format!("--builder b build --progress=plain --cache-to type=registry,ref={host}/c/three,mode=max");
        // What was made before is no news.
        kitchen.file("a", "three\n");
        is_sent("c/three", machine.buildx(&format!("{line} context")).starts());
    } else {
        println!("docker-buildx is not asked: it is not there");
    }
    machine.ends();

    // What went ahead is not sent again, and is part of the cache.
    kitchen.dockerfile("FROM busybox\nCOPY a /\nRUN cat /a > /b\nRUN cat /b > /c\n");
    kitchen.registry.forget_requests();
    let line = format!("--cache-to type=registry,ref={host}/c/one,mode=max");
    kitchen.build_on("other", &line).succeeds().says("exporting cache to registry");
    let other = kitchen.build_on("third", &format!("--cache-from {host}/c/one --output out")).succeeds();
    assert!(ran(&other).is_empty(), "{other:?}");
}

#[test]
fn the_image_does_not_wait_for_the_cache() {
    let Some(kitchen) = kitchen(if is_root() { Who::Root } else { Who::Single }) else { return };
    let host = kitchen.registry.host();
    // The cache's first blob never arrives.
    kitchen.registry.fault(Fault::on(Method::POST, "/v2/c/slow/blobs/uploads/", Action::Hang));
    let line = format!("--cache-to type=registry,ref={host}/c/slow,mode=max -t {host}/c/image:1 --push");
    let build = kitchen.build(&line).starts();
    eventually(|| kitchen.registry.manifest("c/image", "1").is_some());
    build.signal("INT");
    assert_ne!(build.ends_soon().code, Some(0));
    assert!(kitchen.registry.manifest("c/slow", "latest").is_none());
}

#[test]
fn files_of_a_client_do_not_wait_for_the_cache() {
    let Some(kitchen) = kitchen(if is_root() { Who::Root } else { Who::Single }) else { return };
    let host = kitchen.registry.host();
    let machine = Machine::new(&kitchen, "one");
    for (output, file) in [("type=oci,dest=image.tar", "image.tar"), ("type=local,dest=files", "files/c")] {
        let cache = format!("c/slow-{}", file.len());
        // The cache's first blob never arrives.
        kitchen.registry.fault(Fault::on(Method::POST, &format!("/v2/{cache}/blobs/uploads/"), Action::Hang));
        let line = format!("--export-cache type=registry,ref={host}/{cache},mode=max --output {output}");
        let build = machine.buildctl(&line).starts();
        let path = kitchen.world.path(file);
        eventually(|| match fs::read(&path) {
            Ok(bytes) if file.ends_with(".tar") => {
                let listed = kitchen.world.run("tar").args(["tf", file, "index.json"]).ends();
                listed.code == Some(0) && bytes.ends_with(&[0; 1024])
            }
            Ok(bytes) => bytes == b"one\nmade\n",
            Err(_) => false,
        });
        build.signal("INT");
        assert_ne!(build.ends_soon().code, Some(0), "{output}");
        assert!(kitchen.registry.manifest(&cache, "latest").is_none(), "{output}");
    }
    machine.ends();
}

#[test]
fn a_local_cache_that_is_not_given_any_more_is_no_error() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = kitchen(who) else { return };
    kitchen.build("--cache-to type=local,dest=left,mode=max").succeeds();
    let first = kitchen.build_on("other", "--cache-from type=local,src=left --output type=cacheonly").succeeds();
    is_all_cached(&first);
    let again = kitchen.build_on("other", "--output type=tar,dest=out.tar").succeeds();
    assert_eq!(ran(&again), ALL, "{again:?}");
    let said = "the local cache that these steps came from is not given any more: they run again";
    assert_eq!(again.stderr.matches(&format!(" WARN: {said}")).count(), 1, "{again:?}");
    assert!(!again.stderr.contains("ERROR") && !again.stderr.contains("------"), "{again:?}");
}

/// What BuildKit takes is taken: an image is made a cache once, caches in one directory are written one after the other. Two
/// of one name in a registry would overwrite each other.
#[test]
fn caches_may_be_named_twice_where_that_makes_sense() {
    let Some(kitchen) = kitchen(if is_root() { Who::Root } else { Who::Single }) else { return };
    let host = kitchen.registry.host();
    let machine = Machine::new(&kitchen, "one");
    let here = |line: &str| kitchen.build(&line.replace("CACHE", "--cache-to"));
    let remote = |line: &str| machine.buildctl(&line.replace("CACHE", "--export-cache"));
    for (name, build) in [("here", &here as &dyn Fn(&str) -> Invocation), ("remote", &remote)] {
        let image = format!("type=image,name={host}/c/{name}:1,push=true");
        build(&format!("CACHE type=inline CACHE type=inline,mode=max --output {image}")).succeeds();
        let line = format!("--cache-from {host}/c/{name}:1");
        let read = kitchen.build_on(&format!("inline-{name}"), &line).succeeds();
        assert!(ran(&read).is_empty(), "{read:?}");

        build(&format!("CACHE type=local,dest={name} CACHE type=local,dest={name},mode=max")).succeeds();
        let line = format!("--cache-from type=local,src={name}");
        is_all_cached(&kitchen.build_on(&format!("local-{name}"), &line).succeeds());

        let twice = format!("CACHE type=registry,ref={host}/c/{name} CACHE type=registry,ref={host}/c/{name},mode=max");
        let refused = build(&twice).fails();
        refused
            .says("duplicate cache exports [registry]")
            .hints(&format!("name each cache differently: two are to be `{host}/c/{name}`"));
        build("CACHE type=local,dest=x CACHE type=local,dest=x").fails().says("duplicate cache exports [local]");
    }
    machine.ends();
}
