//! What a command line lays over a Dockerfile: labels, and contexts by name.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::{Value, json};
use testkit::Registry;
use testkit::image::{File, TestImage, tar};

use crate::kitchen::{Kitchen, ran};
use crate::who::Who;

/// The labels of the image that a build makes.
fn labels(kitchen: &Kitchen, args: &str) -> Value {
    let name = format!("{}/labels:1", kitchen.registry.host());
    kitchen.build(&format!("--push -t {name} {args}")).succeeds();
    let (_, manifest) = kitchen.registry.manifest("labels", "1").unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let digest = manifest["config"]["digest"].as_str().unwrap().parse().unwrap();
    let config: Value = serde_json::from_slice(&kitchen.registry.blob("labels", &digest).unwrap()).unwrap();
    config["config"]["Labels"].clone()
}

#[test]
fn labels_of_the_command_line_go_before_those_of_the_dockerfile() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile("FROM busybox AS one\nLABEL from.one=1\nFROM one AS two\nLABEL both=file own=file\nRUN true\n");
    assert_eq!(labels(&kitchen, ""), json!({"from.one": "1", "both": "file", "own": "file"}));
    let given = labels(&kitchen, "--label both=flag --label new=a=b,c --label empty= --label=bare");
    let expected = json!({"from.one": "1", "both": "flag", "own": "file", "new": "a=b,c", "empty": "", "bare": ""});
    assert_eq!(given, expected);
    assert_eq!(labels(&kitchen, "--target one --label=x=y"), json!({"from.one": "1", "x": "y"}));
    kitchen.dockerfile("FROM busybox\n");
    assert_eq!(labels(&kitchen, "--label a=b"), json!({"a": "b"}));
    // A label is no reason to run anything again.
    kitchen.dockerfile("FROM busybox\nRUN echo > /x\n");
    assert_eq!(ran(&kitchen.build("--label a=1").succeeds()), ["RUN echo > /x"]);
    assert_eq!(ran(&kitchen.build("--label a=2").succeeds()), [""; 0]);
    kitchen.build("--label =x").fails().says("the name is missing");
}

#[test]
fn a_directory_is_a_context_by_its_name() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let (world, path) = (&kitchen.world, |name: &str| kitchen.world.path(name));
        kitchen.file("from-main", "main");
        for (name, content) in [("lib/d/f", "lib"), ("lib/skipped", ""), ("lib/.dockerignore", "skipped\n")] {
            world.write(name, content);
        }
        who.own(world, "lib");
        // New name; by --from of COPY and of a mount.
        kitchen.dockerfile(
            "FROM busybox AS made\nRUN --mount=type=bind,from=lib,target=/lib cat /lib/d/f > /mounted\n\
             FROM scratch\nCOPY --from=lib . /all/\nCOPY --from=lib /d/f /\n\
             COPY from-main /main\nCOPY --from=made /mounted /\n",
        );
        kitchen.build("--build-context lib=lib --output out").succeeds();
        for (file, content) in [("all/d/f", "lib"), ("f", "lib"), ("main", "main"), ("mounted", "lib")] {
            assert_eq!(fs::read_to_string(path("out").join(file)).unwrap(), content, "{who:?}: {file}");
        }
        assert!(!path("out/all/skipped").exists(), "its own .dockerignore counts");
        // What is read of it counts for the cache, as of the main context.
        kitchen.dockerfile("FROM busybox\nCOPY --from=lib /d/f /\nRUN cat /f\n");
        let all = ["COPY --from=lib /d/f /", "RUN cat /f"];
        for (file, content, runs) in [("d/f", "lib", true), ("other", "", false), ("d/f", "new", true)] {
            world.write(&format!("lib/{file}"), content);
            who.own(world, "lib");
            let ended = kitchen.build("--build-context lib=lib").succeeds();
            let steps: Vec<String> = ran(&ended).into_iter().filter(|step| !step.starts_with("load ")).collect();
            assert_eq!(steps, if runs { &all[..] } else { &[] }, "{who:?}, {file}: {ended:?}");
        }

        // In the place of a stage, which is not built then, and of an image.
        kitchen.dockerfile(
            "FROM busybox AS stage\nRUN echo never-built; false\n\
             FROM image.example/nowhere/base AS by-image\n\
             FROM scratch\nCOPY --from=stage /d/f /stage\nCOPY --from=by-image /d/f /image\n\
             COPY --from=image.example/nowhere/other:v1 /d/f /other\n",
        );
        let contexts = "--build-context stage=lib --build-context image.example/nowhere/base=lib \
                        --build-context image.example/nowhere/other:v1=lib";
        kitchen.build(&format!("{contexts} --output replaced")).succeeds();
        for file in ["stage", "image", "other"] {
            assert_eq!(fs::read_to_string(path("replaced").join(file)).unwrap(), "new", "{who:?}: {file}");
        }
        kitchen.build("--build-context stage=nowhere").fails().says("nowhere");
    }
}

#[test]
fn a_directory_that_is_a_base_is_a_layer_of_its_own() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.world.write("lib/f", "lib");
    kitchen.file("own", "own");
    kitchen.dockerfile("FROM lib\nCOPY own /d\nCOPY own /e\n");
    let name = format!("{}/based:1", kitchen.registry.host());
    kitchen.build(&format!("--push -t {name} --build-context lib=lib")).succeeds();
    let (_, manifest) = kitchen.registry.manifest("based", "1").unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 3, "{manifest}");
    kitchen.dockerfile("FROM lib\nCOPY --from=lib f /g\n");
    kitchen.build("--build-context lib=lib --output out").succeeds();
    for name in ["out/f", "out/g", "lib/f"] {
        assert_eq!(fs::read_to_string(kitchen.world.path(name)).unwrap(), "lib", "{name}");
    }
    assert!(!kitchen.world.path("lib/g").exists());
}

#[test]
fn an_image_is_a_context_by_a_name() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let other = Registry::start();
    let note = File { path: "note", mode: 0o644, data: b"other".to_vec(), link: None };
    let image = TestImage::of_layers(vec![TestImage::busybox().unwrap().layers[0].clone(), tar(&[note])]);
    let digest = image.put(&other, "team/app", "v1");
    let host = other.host();
    kitchen.dockerfile(
        "FROM busybox AS stage\nRUN false\n\
         FROM image.example/nowhere/base\nRUN cp /note /ran\nCOPY --from=stage /note /stage\nCOPY --from=new /note /new\n",
    );
    for reference in [format!("{host}/team/app:v1"), format!("{host}/team/app@{digest}")] {
        let context = |name: &str| format!("--build-context {name}=docker-image://{reference} ");
        let contexts = ["image.example/nowhere/base", "stage", "new"].map(context).concat();
        kitchen.build(&format!("{contexts} --output out")).succeeds();
        for file in ["ran", "stage", "new", "note"] {
            assert_eq!(fs::read_to_string(kitchen.world.path("out").join(file)).unwrap(), "other", "{file}");
        }
        fs::remove_dir_all(kitchen.world.path("out")).unwrap();
    }
    // Its config counts as that of a base.
    kitchen.dockerfile("FROM base\nRUN test \"$(cat /note)\" = other && test -n \"$PATH\"\n");
    kitchen.build(&format!("--build-context base=docker-image://{host}/team/app:v1")).succeeds();
    let gone = format!("--build-context base=docker-image://{host}/team/app:gone");
    kitchen.build(&gone).fails().says("   1 | >>> FROM base\n").says("registry answered 404");
    kitchen.build("--build-context base=docker-image://A:b:c").fails().says("A:b:c");
}

/// As with docker: an archive, compressed or not, is the context, and a Dockerfile alone has none.
#[test]
fn standard_input_is_a_context_or_a_dockerfile() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        kitchen.file("d/f", "content");
        kitchen.file("skipped", "");
        kitchen.file(".dockerignore", "skipped\n");
        kitchen.dockerfile("FROM scratch\nCOPY . /\n");
        kitchen.file("other", "FROM scratch\nCOPY d/f /g\n");
        let packed = |flag: &str| {
            let tar = kitchen.world.run("tar").args(["--create", flag, "--directory=context", "."]);
            tar.succeeds().stdout
        };
        let builds = |args: &str, input: Vec<u8>| {
            let line = ["build", "--progress=plain", "--config=buildkitd.toml", "--root=state", "-"];
            who.hullworks(&kitchen.world).args(line).args(args.split_whitespace()).stdin(input)
        };
        for (at, flag) in ["--format=gnu", "--format=pax", "--gzip", "--zstd"].into_iter().enumerate() {
            builds(&format!("--output out{at}"), packed(flag)).succeeds();
            let out = kitchen.world.path(format!("out{at}"));
            assert_eq!(fs::read_to_string(out.join("d/f")).unwrap(), "content", "{flag}");
            assert!(out.join("Dockerfile").exists() && !out.join("skipped").exists(), "{flag}");
        }
        builds("--file other --output named", packed("--gzip")).succeeds();
        assert_eq!(fs::read_to_string(kitchen.world.path("named/g")).unwrap(), "content");
        builds("--file none", packed("--gzip")).fails().says("none");
        builds("--output alone", b"FROM busybox AS b\nRUN echo hi > /h\nFROM scratch\nCOPY --from=b /h /\n".to_vec())
            .succeeds();
        assert_eq!(fs::read_to_string(kitchen.world.path("alone/h")).unwrap(), "hi\n");
        let missing = builds("", b"FROM scratch\nCOPY f /\n".to_vec()).fails();
        missing.hints("with `-` there is no context: COPY and ADD find only what other stages and images have");
        builds("--file other", b"FROM scratch\n".to_vec()).fails().says("two Dockerfiles");
        let mut cut = packed("--gzip");
        cut.truncate(100);
        builds("", cut).fails().says("cannot unpack the context on standard input");
        // What leads out of the archive leads nowhere.
        let script = "mkdir -p evil && ln -s /etc evil/out && tar cf evil.tar evil && echo x > passwd-of-evil && \
                      tar --append --file=evil.tar --transform=s,passwd-of-evil,evil/out/hullworks-was-here, passwd-of-evil";
        kitchen.world.run("sh").args(["-c", script]).succeeds();
        builds("", fs::read(kitchen.world.path("evil.tar")).unwrap()).fails();
        assert!(!Path::new("/etc/hullworks-was-here").exists());
    }
}

#[test]
fn a_state_directory_in_the_context_is_left_out() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        kitchen.file("a", "one");
        kitchen.dockerfile("FROM busybox\nCOPY . /all/\nRUN ls -A /all > /names\n");
        let names = || fs::read_to_string(kitchen.world.path("out/names")).unwrap();
        let said = "the state directory `.st/hullworks` is left out of the context: put it into .dockerignore";
        let first = kitchen.build_on("context/.st", "--output out").succeeds();
        assert_eq!(first.stderr.matches(&format!(" WARN: {said}")).count(), 1, "{who:?}: {first:?}");
        assert!(names().lines().all(|name| [".st", "Dockerfile", "a"].contains(&name)), "{who:?}: {}", names());
        let all = fs::read_dir(kitchen.world.path("out/all/.st")).into_iter().flatten();
        assert_eq!(all.count(), 0, "{who:?}: nothing of the state");
        // Nor does what changes there run steps again.
        assert_eq!(ran(&kitchen.build_on("context/.st", "").succeeds()), [""; 0], "{who:?}");
        kitchen.file(".dockerignore", ".st\n");
        let ignored = kitchen.build_on("context/.st", "").succeeds();
        assert!(!ignored.stderr.contains("is left out"), "{who:?}: {ignored:?}");
    }
}

/// Under another path than the context has it, and under a name that is no text.
#[test]
fn a_state_directory_in_the_context_is_left_out_by_what_it_is() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        kitchen.file("a", "one");
        kitchen.dockerfile("FROM scratch\nCOPY . /all/\n");
        let state = Path::new("context").join(OsStr::from_bytes(b"not\xfftext"));
        let build = || {
            let line = ["build", "--progress=plain", "--config=buildkitd.toml", "--output=out", "context", "--root"];
            who.hullworks(&kitchen.world).args(line).arg(&state).succeeds()
        };
        build().says("the state directory `not\u{fffd}text/hullworks` is left out of the context");
        let all = kitchen.world.path("out/all");
        assert!(all.join("a").exists() && !all.join(OsStr::from_bytes(b"not\xfftext/hullworks")).exists());
        fs::remove_dir_all(kitchen.world.path("out")).unwrap();
        assert_eq!(ran(&build()), [""; 0], "{who:?}: what changes there is no reason to copy again");
    }

    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    if let Err(why) = Who::Ranges.is_here() {
        return testkit::need::report_skip(&why);
    }
    kitchen.file("mounted/nothing", "");
    kitchen
        .dockerfile("FROM busybox\nCOPY . /all/\nRUN test -e /all/mounted && ! find /all -name hullworks | grep .\n");
    let build = || {
        let script = "mkdir -p elsewhere; mount --bind elsewhere context/mounted && exec \"$@\"";
        let line = "build --progress=plain --config=buildkitd.toml --root elsewhere context";
        let mounts = ["--mount", "--propagation", "private", "sh", "-c", script, "sh", "./hullworks"];
        kitchen.world.run("unshare").args(mounts).args(line.split(' '))
    };
    build().succeeds().says("the state directory `mounted/hullworks` is left out of the context");
    assert_eq!(ran(&build().succeeds()), [""; 0]);
    kitchen.file(".dockerignore", "mounted/hullworks\n");
    let ignored = build().succeeds();
    assert!(!ignored.stderr.contains("is left out"), "{ignored:?}");
}
