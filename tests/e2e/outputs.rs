//! Where results go, judged by the programs that others read them with.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use hyper::Method;
use serde_json::Value;
use testkit::DockerRegistry;
use testkit::image::{TestImage, noise};

use crate::daemon::Served;
use crate::harness::{World, eventually, has_tool, is_root};
use crate::kitchen::{Kitchen, steps};
use crate::needs;
use crate::who::Who;

/// Files of several kinds, owners and modes; removals over the base.
const DOCKERFILE: &str = "FROM busybox\nRUN mkdir -p /o/d && echo 1 > /o/d/f && ln /o/d/f /o/hard && ln -s d /o/soft \
    && chown -R 3:4 /o/d && chmod 4750 /o/d/f && busybox mkfifo /o/pipe && touch /gone\n\
    RUN rm /gone && rm -r /root && mkdir -m 700 /root && touch -d @1000000000 /old\n\
    COPY --chown=1:2 --chmod=640 a /owned/a\nENV K=v\nCMD [\"sh\"]\n";

fn prepared() -> Option<Kitchen> {
    let kitchen = Kitchen::new(Who::Root)?;
    kitchen.dockerfile(DOCKERFILE);
    kitchen.file("a", "a\n");
    Some(kitchen)
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// What GNU tar lists of an archive, sorted.
fn listing(world: &World, tar: &str) -> Vec<String> {
    let args = ["--list", "--verbose", "--numeric-owner", "--full-time", "--utc", "--file", tar];
    let text = world.run("tar").env("LC_ALL", "C").args(args).succeeds().text();
    let mut lines: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ./", " ")).collect();
    lines.retain(|line| !line.ends_with(' '));
    // Which of two hard links is the file is up to the archive.
    lines.retain(|line| !line.contains("o/hard") && !line.contains("o/d/f"));
    lines.sort();
    lines
}

#[test]
fn privileged_other_tools_unpack_the_same_tree() {
    needs!(root);
    needs!(tool "skopeo");
    needs!(tool "umoci");
    let Some(kitchen) = prepared() else { return };
    let world = &kitchen.world;
    kitchen.build("--output type=tar,dest=tree.tar").succeeds();
    let expected = listing(world, "tree.tar");
    assert!(expected.iter().any(|line| line.starts_with("-rw-r----- 1/2 2 ")), "{expected:#?}");
    for (n, (transport, output)) in [
        ("oci-archive", "type=oci"),
        ("oci-archive", "type=oci,compression=zstd"),
        ("oci-archive", "type=oci,compression=zstd,compression-level=19,force-compression=true"),
        ("oci-archive", "type=oci,compression=uncompressed,force-compression=true"),
        ("oci-archive", "type=oci,compression=gzip,compression-level=9,force-compression=true"),
        ("oci-archive", "type=oci,oci-mediatypes=false"),
        ("docker-archive", "type=docker,name=some/name:tag"),
        ("docker-archive", "type=docker,name=some/name:tag,compression=uncompressed"),
    ]
    .into_iter()
    .enumerate()
    {
        kitchen.build(&format!("--output {output},dest=image{n}.tar")).succeeds();
        let image = format!("{transport}:image{n}.tar");
        let config = world.run("skopeo").args(["inspect", "--config", &image]).succeeds().text();
        assert!(config.contains("\"K=v\""), "{output}: {config}");
        let (layout, bundle) = (format!("oci:layout{n}:x"), format!("bundle{n}"));
        // What skopeo copies it also verifies.
        world.run("skopeo").args(["copy", "--dest-compress-format=gzip", &image, &layout]).succeeds();
        let layout = format!("layout{n}:x");
        // Debian's umoci reads no zstd; skopeo made it gzip.
        world.run("umoci").args(["unpack", "--image", &layout, &bundle]).succeeds();
        let pack = ["--create", "--file", "again.tar", "--directory", &format!("{bundle}/rootfs"), "."];
        world.run("tar").args(pack).succeeds();
        assert_eq!(listing(world, "again.tar"), expected, "{output}");
    }
}

#[test]
fn layers_have_the_compression_that_is_asked_for() {
    let Some(kitchen) = prepared() else { return };
    // A state each: what is compressed already stays so unless it is forced, as upstream.
    for (n, (attributes, ours, base)) in [
        ("", "tar+gzip", "tar"),
        (",compression=zstd", "tar+zstd", "tar"),
        (",compression=zstd,force-compression=true", "tar+zstd", "tar+zstd"),
        (",compression=uncompressed", "tar", "tar"),
        (",compression=gzip,force-compression=true", "tar+gzip", "tar+gzip"),
    ]
    .into_iter()
    .enumerate()
    {
        kitchen
            .build_on(&format!("state{n}"), &format!("--output type=oci,tar=false,dest=layout{attributes}"))
            .succeeds();
        let path = |digest: &Value| kitchen.world.path("layout/blobs").join(digest.as_str().unwrap().replace(':', "/"));
        let index = json(&fs::read(kitchen.world.path("layout/index.json")).unwrap());
        let manifest = json(&fs::read(path(&index["manifests"][0]["digest"])).unwrap());
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 4, "{manifest:#}");
        for (n, layer) in layers.iter().enumerate() {
            let kind = if n == 0 { base } else { ours };
            assert_eq!(layer["mediaType"], format!("application/vnd.oci.image.layer.v1.{kind}"), "{attributes}, {n}");
            let head: [u8; 4] = fs::read(path(&layer["digest"])).unwrap()[..4].try_into().unwrap();
            let is = match head {
                [0x1f, 0x8b, ..] => "tar+gzip",
                [0x28, 0xb5, 0x2f, 0xfd] => "tar+zstd",
                _ => "tar",
            };
            assert_eq!(is, kind, "{attributes}, {n}");
        }
        fs::remove_dir_all(kitchen.world.path("layout")).unwrap();
    }
    // Docker's documents have a type for zstd, too.
    let line = "--output type=oci,tar=false,dest=layout,compression=zstd,force-compression=true,oci-mediatypes=false";
    kitchen.build(line).succeeds();
    let index = json(&fs::read(kitchen.world.path("layout/index.json")).unwrap());
    let digest = index["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
    let manifest = json(&fs::read(kitchen.world.path("layout/blobs").join(digest)).unwrap());
    for layer in manifest["layers"].as_array().unwrap() {
        assert_eq!(layer["mediaType"], "application/vnd.docker.image.rootfs.diff.tar.zstd");
    }
}

/// Where one asks for it, also where there is one.
#[test]
fn a_platform_has_a_directory_of_its_own() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    let kitchen = &served.kitchen;
    kitchen.file("f", "content");
    kitchen.dockerfile("FROM scratch\nCOPY f /f\n");
    let own = base::Platform::host().to_string().replace('/', "_");
    served.build("--output type=local,dest=out,platform-split=true").succeeds();
    kitchen.build("--output type=local,dest=here,platform-split=true").succeeds();
    for out in ["out", "here"] {
        let path = kitchen.world.path(out);
        assert_eq!(fs::read_to_string(path.join(&own).join("f")).unwrap(), "content");
        assert_eq!(fs::read_dir(path).unwrap().count(), 1);
    }
    served.ends();
}

#[test]
fn an_image_is_pushed_under_its_names() {
    needs!(tool "docker-registry");
    needs!(tool "skopeo");
    let Some(kitchen) = prepared() else { return };
    let registry = DockerRegistry::start().unwrap();
    let host = registry.host();
    let line = format!("--push -t {host}/a/b:1 -t {host}/c:2 --metadata-file meta.json --iidfile iid");
    kitchen.build(&line).succeeds().says("pushing manifest for");
    let meta = json(&fs::read(kitchen.world.path("meta.json")).unwrap());
    let digest = meta["containerimage.digest"].as_str().unwrap();
    assert_eq!(meta["image.name"], format!("{host}/a/b:1,{host}/c:2"));
    for name in ["a/b:1", "c:2"] {
        let image = format!("docker://{host}/{name}");
        let inspect = ["inspect", "--no-tags", "--tls-verify=false", &image];
        assert_eq!(json(&kitchen.world.run("skopeo").args(inspect).succeeds().stdout)["Digest"], digest);
    }
    if has_tool("crane") {
        // It reads compressed layers only, and that of the base is none.
        let image = format!("{host}/crane");
        kitchen.build(&format!("--output type=image,name={image},push=true,force-compression=true")).succeeds();
        kitchen.world.run("crane").args(["validate", "--insecure", "--remote", &image]).succeeds();
    } else {
        testkit::need::report_skip("another tool's opinion: it wants `crane`");
    }
    let iid = fs::read_to_string(kitchen.world.path("iid")).unwrap();
    assert!(iid == digest || Some(iid.as_str()) == meta["containerimage.config.digest"].as_str(), "{iid}: {meta:#}");

    let line =
        format!("--output type=image,name={host}/by-digest,push=true,push-by-digest=true --metadata-file meta.json");
    kitchen.build(&line).succeeds();
    let image = format!("docker://{host}/by-digest@{digest}");
    kitchen.world.run("skopeo").args(["inspect", "--no-tags", "--tls-verify=false", &image]).succeeds();
    let image = format!("docker://{host}/by-digest:latest");
    kitchen.world.run("skopeo").args(["inspect", "--no-tags", "--tls-verify=false", &image]).fails();
}

#[test]
fn layers_that_nobody_reads_are_mounted_and_not_downloaded() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let layers = (0..3).map(|seed| {
        testkit::image::tar(&[testkit::image::File {
            path: "f",
            mode: 0o644,
            data: noise(seed, 10_000).to_vec(),
            link: None,
        }])
    });
    TestImage::of_layers(layers.collect()).put(&kitchen.registry, "library/big", "latest");
    let host = kitchen.registry.host();
    kitchen.dockerfile(&format!("FROM {host}/library/big\nLABEL a=b\nCMD [\"x\"]\n"));
    kitchen.registry.forget_requests();
    kitchen.build(&format!("--push -t {host}/other/name:1")).succeeds();
    let requests = kitchen.registry.requests();
    let blobs = |method: Method, part: &str| {
        requests.iter().filter(|r| r.method == method && r.path.contains(part) && r.status < 300).count()
    };
    // One: the config of the base.
    assert_eq!(blobs(Method::GET, "/blobs/"), 1, "{requests:#?}");
    let mounts = requests.iter().filter(|r| r.query.contains("mount=") && r.status == 201).count();
    assert_eq!(mounts, 3, "{requests:#?}");
    assert_eq!(blobs(Method::PUT, "/blobs/uploads/"), 1, "only the config is sent: {requests:#?}");

    // Later in a new process, and when a step reads them after all.
    kitchen.dockerfile(&format!("FROM busybox\nCOPY --from={host}/other/name:1 /f /\n"));
    kitchen.build("--output out").succeeds();
    assert_eq!(fs::read(kitchen.world.path("out/f")).unwrap(), noise(2, 10_000));
}

#[test]
fn the_same_build_has_the_same_bytes() {
    let Some(kitchen) = prepared() else { return };
    let build = |state: &str, dest: &str| -> Vec<u8> {
        let args = format!("--output type=oci,rewrite-timestamp=true,dest={dest} --metadata-file {dest}.json");
        kitchen.build_on(state, &args).env("SOURCE_DATE_EPOCH", "1700000000").succeeds();
        fs::read(kitchen.world.path(dest)).unwrap()
    };
    let first = build("state1", "1.tar");
    kitchen.world.run("touch").args(["-d", "2031-01-01", "context/a"]).succeeds();
    assert!(first == build("state2", "2.tar"), "another state makes other bytes");
    assert!(first == build("state1", "3.tar"), "the cache makes other bytes");
}

#[test]
fn layers_with_rewritten_times_say_so() {
    let Some(kitchen) = prepared() else { return };
    let epoch = "1700000000";
    for (attributes, expected) in
        [("", serde_json::json!({"buildkit/rewritten-timestamp": epoch})), (",oci-mediatypes=false", Value::Null)]
    {
        let line = format!("--output type=oci,tar=false,dest=layout,rewrite-timestamp=true{attributes}");
        kitchen.build(&line).env("SOURCE_DATE_EPOCH", epoch).succeeds();
        let layout = kitchen.world.path("layout");
        let index = json(&fs::read(layout.join("index.json")).unwrap());
        let digest = index["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
        let manifest = json(&fs::read(layout.join("blobs").join(digest)).unwrap());
        let said: Vec<&Value> = manifest["layers"].as_array().unwrap().iter().map(|l| &l["annotations"]).collect();
        assert_eq!(said, [&Value::Null, &expected, &expected, &expected], "the base's stays: {manifest:#}");
        fs::remove_dir_all(layout).unwrap();
    }
}

/// What a linked copy makes is one layer, also where its files are below it already.
#[test]
fn the_layer_of_a_linked_copy_is_the_same_on_any_base() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        kitchen.file("f", "one");
        kitchen.file("g", "two");
        // A layer has no finer times.
        kitchen.world.run("touch").args(["-d", "2001-01-01", "context/f", "context/g"]).succeeds();
        let layer = |base: &str| {
            kitchen.dockerfile(&format!("FROM scratch\n{base}COPY --link f g /d/\n"));
            let line = "--output type=oci,tar=false,dest=layout,rewrite-timestamp=true";
            kitchen.build(line).env("SOURCE_DATE_EPOCH", "1700000000").succeeds();
            let layout = kitchen.world.path("layout");
            let index = json(&fs::read(layout.join("index.json")).unwrap());
            let digest = index["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
            let manifest = json(&fs::read(layout.join("blobs").join(digest)).unwrap());
            fs::remove_dir_all(layout).unwrap();
            manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap().to_owned()
        };
        // The one that stands on equal files first: nobody has made the layer by then.
        let on_equal = layer("COPY f /d/\n");
        assert_eq!(on_equal, layer("COPY g /x\n"), "{who:?}");
        assert_eq!(on_equal, layer(""), "{who:?}");
    }
}

#[test]
fn several_platforms_make_an_index() {
    needs!(tool "skopeo");
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile("FROM scratch\nARG TARGETARCH\nARG TARGETVARIANT\nCOPY a-$TARGETARCH$TARGETVARIANT /a\n");
    for name in ["a-amd64", "a-arm64", "a-armv7"] {
        kitchen.file(name, name);
    }
    kitchen.build("--platform linux/amd64,linux/arm64,linux/arm/v7 --output type=oci,dest=image.tar").succeeds();
    let inspect = ["inspect", "--raw", "oci-archive:image.tar"];
    let index = json(&kitchen.world.run("skopeo").args(inspect).succeeds().stdout);
    let platforms: Vec<String> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            format!(
                "{}{}",
                m["platform"]["architecture"].as_str().unwrap(),
                m["platform"]["variant"].as_str().unwrap_or_default()
            )
        })
        .collect();
    assert_eq!(platforms, ["amd64", "arm64", "armv7"]);
    kitchen.build("--platform linux/amd64,linux/arm64,linux/arm/v7 --output out").succeeds();
    for (dir, name) in [("linux_amd64", "a-amd64"), ("linux_arm64", "a-arm64"), ("linux_arm_v7", "a-armv7")] {
        assert_eq!(fs::read_to_string(kitchen.world.path("out").join(dir).join("a")).unwrap(), name);
    }
}

#[test]
fn standard_output_takes_one_archive() {
    let Some(kitchen) = prepared() else { return };
    for output in ["-", "type=tar,dest=-", "type=oci,dest=-", "type=docker,name=x,dest=-"] {
        let stdout = kitchen.build(&format!("--output {output}")).succeeds().stdout;
        kitchen.world.write("stdout.tar", &stdout);
        let list = kitchen.world.run("tar").args(["--list", "--file", "stdout.tar"]).succeeds().text();
        let wanted = if output.contains("oci") || output.contains("docker") { "index.json\n" } else { "owned/a\n" };
        assert!(list.contains(wanted), "{output}: {list}");
    }
}

#[test]
fn a_directory_gets_the_files_and_keeps_its_own() {
    let Some(kitchen) = prepared() else { return };
    kitchen.world.write("out/mine", "mine");
    kitchen.world.write("out/owned/a", "old");
    kitchen.build("--output type=local,dest=out").succeeds();
    let out = |name: &str| kitchen.world.path("out").join(name);
    assert_eq!(fs::read_to_string(out("mine")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(out("owned/a")).unwrap(), "a\n");
    assert_eq!(fs::read_link(out("o/soft")).unwrap(), PathBuf::from("d"));
}

#[test]
fn what_only_other_outputs_have_is_warned_of() {
    let Some(kitchen) = Kitchen::new(if is_root() { Who::Root } else { Who::Single }) else { return };
    kitchen.file("f", "content");
    kitchen.dockerfile("FROM scratch\nCOPY f /\n");
    let ended = kitchen
        .build("--output type=local,dest=out,push=false,name=x --cache-to type=local,dest=cache,ref=")
        .succeeds();
    ended.says("attribute `push` means nothing for output type=local");
    ended.says("attribute `name` means nothing for output type=local");
    ended.says("attribute `ref` of a cache export means nothing here");
    assert_eq!(fs::read_to_string(kitchen.world.path("out/f")).unwrap(), "content");
    kitchen.build("--output type=local,dest=out,colour=red").fails().says("attribute `colour` is not supported");
}

#[test]
fn answers_are_known_to_go_somewhere_before_the_build() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        kitchen.dockerfile("FROM busybox\nRUN echo 1 > /1\n");
        for (flag, path) in [("--iidfile", "nowhere/iid"), ("--metadata-file", "context")] {
            let ended = kitchen.build(&format!("{flag} {path}")).fails();
            ended.says(&format!("error: cannot write `{path}`: "));
            assert_eq!(steps(&ended).0, [""; 0], "{ended:?}");
        }
        // Nobody reads the pipe; the other answer comes before it.
        kitchen.world.run("mkfifo").args(["--mode=666", "pipe"]).succeeds();
        let running = kitchen.build("--metadata-file meta.json --iidfile pipe").starts();
        // It is there for a moment before the build, too, empty: that it can be written is tried.
        let meta = kitchen.world.path("meta.json");
        eventually(|| fs::metadata(&meta).is_ok_and(|meta| meta.len() > 0));
        running.signal("TERM");
        let ended = running.ends_soon();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        ended.says("error: cannot write `pipe`: build cancelled by SIGTERM\n");
        // Somebody does.
        let running = kitchen.build("--iidfile pipe").starts();
        let id = kitchen.world.run("cat").args(["pipe"]).succeeds().text();
        assert!(id.starts_with("sha256:"), "{id}");
        assert_eq!(running.ends().code, Some(0));
    }
}

/// A limit that ends programs without a word by default. Steps have it, and their signals, as the machine gives them.
#[test]
fn a_limit_for_the_size_of_files_is_an_error_with_its_place() {
    let Some(kitchen) = Kitchen::new(Who::Single) else { return };
    kitchen.dockerfile("FROM busybox\nRUN busybox dd if=/dev/urandom of=/big bs=1k count=8000 || echo ended by $?\n");
    kitchen.build("--output type=cacheonly").succeeds();
    let line = "build --progress=plain --config=buildkitd.toml --root state context --output type=oci,dest=image.tar";
    let script = "ulimit -f 2000; exec \"$0\" \"$@\"";
    let limited = kitchen.who.run(&kitchen.world, "sh").args(["-c", script]).arg(kitchen.world.program());
    let ended = limited.args(line.split_whitespace()).fails();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    ended.says("File too large");
    assert!(!kitchen.world.path("image.tar").exists());
}

/// As a container gets a file of the machine, and as a user gets one in a directory of somebody else.
#[test]
fn privileged_files_that_cannot_be_replaced_are_written_in_place() {
    needs!(root);
    const NAMES: [&str; 2] = ["image", "iid"];
    const MOUNTED: &str = "for name in image iid; do mount --bind theirs/$name theirs/$name || exit; done; exec \"$@\"";
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let world = &kitchen.world;
        kitchen.dockerfile("FROM busybox\nRUN echo 1 > /1\n");
        for name in NAMES {
            world.write(&format!("theirs/{name}"), noise(1, 8 << 20));
            kitchen.who.own(world, &format!("theirs/{name}"));
        }
        let inodes = || NAMES.map(|name| fs::metadata(world.path("theirs").join(name)).unwrap().ino());
        let before = inodes();
        let line = "build --progress=plain --config=buildkitd.toml --root state context \
            --output type=oci,dest=theirs/image --iidfile theirs/iid";
        let build = match who {
            Who::Root => {
                let program = world.program().to_str().unwrap();
                world.run("unshare").args(["--mount", "sh", "-c", MOUNTED, "sh", program])
            }
            _ => kitchen.who.hullworks(world),
        };
        build.args(line.split_whitespace()).succeeds();
        assert_eq!(inodes(), before);
        assert_eq!(fs::read_dir(world.path("theirs")).unwrap().count(), 2, "nothing is left beside them");
        world.run("tar").args(["--list", "--file", "theirs/image"]).succeeds();
        let image = fs::metadata(world.path("theirs/image")).unwrap().len();
        assert!(image % 512 == 0 && image < 8 << 20, "what was there before is at its end: {image}");
        assert_eq!(fs::read_to_string(world.path("theirs/iid")).unwrap().len(), "sha256:".len() + 64);
    }
}

#[test]
fn privileged_podman_loads_it() {
    needs!(root);
    needs!(tool "podman");
    let Some(kitchen) = prepared() else { return };
    for (n, output) in ["type=oci", "type=docker", "type=docker,compression=zstd"].into_iter().enumerate() {
        let name = format!("localhost/loaded:{n}");
        kitchen.build(&format!("--output {output},name={name},dest=image.tar")).succeeds();
        let podman = || {
            kitchen.world.run("podman").args(["--root", "podman", "--runroot", "podman-run", "--storage-driver=vfs"])
        };
        podman().args(["load", "--input", "image.tar"]).succeeds();
        let inspect = podman().args(["image", "inspect", "--format", "{{.Config.Cmd}}", &name]).succeeds();
        assert_eq!(inspect.text().trim(), "[sh]");
    }
    assert!(is_root());
}

#[test]
fn buildkits_users_write_it_like_this() {
    for who in [Who::Root, Who::Ranges, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let host = kitchen.registry.host();
        kitchen.file(
            "build/Containerfile",
            "FROM busybox AS base\nARG K\nRUN --mount=type=secret,id=token test \"$(cat /run/secrets/token)\" = t\n\
             RUN echo $K > /k\nFROM base AS app\nCOPY app /app\nRUN exit 1\n",
        );
        kitchen.file("app", "app");
        kitchen.world.write("token", "t");
        let line = format!(
            "build --frontend dockerfile.v0 --local context=context --local dockerfile=context/build --opt filename=Containerfile \
             --opt target=base --opt build-arg:K=V --secret id=token,src=token --progress=plain --metadata-file meta.json \
             --output type=image,\"name={host}/app:1,{host}/app:2\",push=true"
        );
        let build = who.daemonless(&kitchen.world).args(line.replace('"', "").split_whitespace().map(|word| {
            word.replace(&format!("name={host}/app:1,{host}/app:2"), &format!("\"name={host}/app:1,{host}/app:2\""))
        }));
        build.env("BUILDKITD_FLAGS", "--root=state --config=buildkitd.toml").succeeds();
        let meta = json(&fs::read(kitchen.world.path("meta.json")).unwrap());
        for tag in ["1", "2"] {
            let (_, manifest) = kitchen.registry.manifest("app", tag).unwrap();
            assert_eq!(testkit_digest(&manifest), meta["containerimage.digest"].as_str().unwrap());
        }
    }
}

/// The digest of bytes, by a program of the machine.
fn testkit_digest(bytes: &[u8]) -> String {
    let world = World::new();
    let sum = world.run("sha256sum").stdin(bytes).succeeds().text();
    format!("sha256:{}", sum.split(' ').next().unwrap())
}
