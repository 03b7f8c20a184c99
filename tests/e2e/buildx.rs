//! `docker buildx` with a daemon of ours: the flags that people use, and what comes out.

use std::fs;

use base::Digest;
use serde_json::Value;
use testkit::free_port;
use testkit::image::{TestImage, tar};

use crate::daemon::Served;
use crate::harness::{Ended, Invocation, is_root};
use crate::needs;
use crate::who::Who;

/// A daemon, and a builder `b` that is it.
struct Buildx {
    served: Served,
}

impl Buildx {
    fn new(flags: &str) -> Option<Buildx> {
        Buildx::at(flags, |served| format!("unix://{}", served.kitchen.world.path("b.sock").display()))
    }

    fn at(flags: &str, address: impl Fn(&Served) -> String) -> Option<Buildx> {
        let served = Served::new(if is_root() { Who::Root } else { Who::Single }, flags)?;
        let address = address(&served);
        let buildx = Buildx { served };
        buildx.run(&format!("create --name b --driver remote {address}")).succeeds();
        Some(buildx)
    }

    fn run(&self, args: &str) -> Invocation {
        let kitchen = &self.served.kitchen;
        let client = kitchen.who.run(&kitchen.world, "docker-buildx");
        client.env("DOCKER_CONFIG", kitchen.world.path("docker")).args(args.split_whitespace())
    }

    fn build(&self, args: &str) -> Invocation {
        self.run(&format!("--builder b build --progress=plain {args}"))
    }

    fn host(&self) -> String {
        self.served.kitchen.registry.host()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.served.kitchen.world.path(name)).unwrap()
    }

    /// What is in an archive, by name.
    fn listed(&self, archive: &str) -> Vec<String> {
        let listed = self.served.kitchen.world.run("tar").args(["tf", archive]).succeeds().text();
        listed.lines().map(str::to_owned).collect()
    }

    /// The manifest or index that a tag means.
    fn pushed(&self, repository: &str, reference: &str) -> Value {
        let found = self.served.kitchen.registry.manifest(repository, reference);
        serde_json::from_slice(&found.unwrap_or_else(|| panic!("no {repository}:{reference}")).1).unwrap()
    }
}

#[test]
fn annotations_go_where_they_are_told_to() {
    needs!(tool "docker-buildx");
    let Some(buildx) = Buildx::new("") else { return };
    let host = buildx.host();
    buildx.served.kitchen.dockerfile("FROM busybox\nRUN echo > /new\n");
    let line = format!("--annotation a=b --annotation manifest:c=d --provenance=false -t {host}/x/plain:1 --push");
    buildx.build(&format!("{line} context")).succeeds();
    let manifest = buildx.pushed("x/plain", "1");
    assert_eq!(
        (&manifest["annotations"]["a"], &manifest["annotations"]["c"]),
        (&"b".into(), &"d".into()),
        "{manifest}"
    );
    let native = if std::env::consts::ARCH == "aarch64" { "linux/arm64" } else { "linux/amd64" };
    let line = format!(
        "--annotation index:i=1 --annotation manifest:m=2 --annotation manifest-descriptor:d=3 \
         --output type=image,name={host}/x/index:1,push=true,oci-mediatypes=true --platform {native},linux/s390x"
    );
    buildx.served.kitchen.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    buildx.build(&format!("{line} context")).succeeds();
    let index = buildx.pushed("x/index", "1");
    assert_eq!(index["annotations"]["i"], "1", "{index}");
    let entries = index["manifests"].as_array().unwrap();
    let images: Vec<&Value> = entries.iter().filter(|entry| entry["platform"]["os"] == "linux").collect();
    assert_eq!(images.len(), 2, "{index}");
    for entry in images {
        assert_eq!(entry["annotations"]["d"], "3", "{index}");
        let manifest = buildx.pushed("x/index", entry["digest"].as_str().unwrap());
        assert_eq!(manifest["annotations"]["m"], "2", "{manifest}");
    }
    buildx.served.ends();
}

#[test]
fn several_platforms_are_one_index_that_imagetools_read() {
    needs!(tool "docker-buildx");
    let Some(buildx) = Buildx::new("") else { return };
    let host = buildx.host();
    buildx.served.kitchen.dockerfile("FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /arch\n");
    for arch in ["amd64", "arm64", "s390x"] {
        buildx.served.kitchen.file(arch, arch);
    }
    let line =
        format!("--platform linux/amd64,linux/arm64,linux/s390x -t {host}/x/all:1 --push --metadata-file meta.json");
    buildx.build(&format!("{line} context")).succeeds();
    let shown = buildx.run(&format!("imagetools inspect {host}/x/all:1")).succeeds().text();
    for arch in ["amd64", "arm64", "s390x"] {
        assert!(shown.lines().any(|line| line.trim().ends_with(&format!("linux/{arch}"))), "{arch}: {shown}");
    }
    let meta: Value = serde_json::from_str(&buildx.read("meta.json")).unwrap();
    let digest = meta["containerimage.digest"].as_str().unwrap();
    assert!(shown.contains(digest), "{digest}: {shown}");
    let format = "{{json .Image}}";
    let images = buildx.run("imagetools inspect").arg(format!("{host}/x/all:1")).args(["--format", format]).succeeds();
    let images: Value = serde_json::from_str(&images.text()).unwrap();
    assert_eq!(images["linux/s390x"]["architecture"], "s390x", "{images}");
    // A second tag of the same, made of it.
    buildx.run(&format!("imagetools create -t {host}/x/all:2 {host}/x/all:1")).succeeds();
    let manifest = |tag: &str| buildx.served.kitchen.registry.manifest("x/all", tag).unwrap().1;
    assert_eq!(Digest::of(manifest("1")).to_string(), digest);
    assert_eq!(manifest("2"), manifest("1"));
    // Into directories of their own.
    buildx.build("--platform linux/amd64,linux/s390x -o type=local,dest=out context").succeeds();
    for arch in ["amd64", "s390x"] {
        assert_eq!(buildx.read(&format!("out/linux_{arch}/arch")), arch);
    }
    buildx.served.ends();
}

#[test]
fn outputs_of_buildx_are_what_they_say() {
    needs!(tool "docker-buildx");
    let Some(buildx) = Buildx::new("") else { return };
    let (kitchen, host) = (&buildx.served.kitchen, buildx.host());
    kitchen.dockerfile("FROM busybox\nRUN echo new > /new\n");
    buildx.build("-o type=tar,dest=x.tar context").succeeds();
    assert!(buildx.listed("x.tar").iter().any(|name| name == "new"));
    let standard = buildx.build("-o - context").succeeds();
    assert_eq!(standard.stdout.len() as u64, fs::metadata(kitchen.world.path("x.tar")).unwrap().len());
    buildx.build("-t some/name:tag -o type=docker,dest=docker.tar context").succeeds();
    let listed = buildx.listed("docker.tar");
    assert!(listed.iter().any(|name| name == "manifest.json"), "{listed:?}");
    let manifest = kitchen.world.run("tar").args(["xOf", "docker.tar", "manifest.json"]).succeeds().text();
    assert!(manifest.contains("some/name:tag"), "{manifest}");
    buildx.build("-o type=oci,dest=oci.tar context").succeeds();
    assert!(buildx.listed("oci.tar").iter().any(|name| name == "oci-layout"));
    buildx.build("-o type=oci,dest=layout,tar=false context").succeeds();
    assert!(kitchen.world.path("layout/index.json").exists());

    buildx.build(&format!("-o type=registry,name={host}/x/registry:1 context")).succeeds();
    assert!(kitchen.registry.manifest("x/registry", "1").is_some());
    // By digest: no tag is made.
    let line = format!("-o type=image,name={host}/x/digest,push-by-digest=true,name-canonical=true,push=true");
    buildx.build(&format!("{line} --metadata-file meta.json context")).succeeds();
    let meta: Value = serde_json::from_str(&buildx.read("meta.json")).unwrap();
    let digest = meta["containerimage.digest"].as_str().unwrap();
    assert!(kitchen.registry.manifest("x/digest", digest).is_some(), "{meta}");
    assert!(kitchen.registry.manifest("x/digest", "latest").is_none());
    // Nothing but the cache; an id for who asks for one.
    buildx.build("-o type=cacheonly context").succeeds();
    buildx.build(&format!("-q --push -t {host}/x/quiet:1 --iidfile iid context")).succeeds();
    assert!(buildx.read("iid").starts_with("sha256:"), "{}", buildx.read("iid"));
    buildx.served.ends();
}

/// Standard input as context, whole and compressed, and as Dockerfile.
#[test]
fn contexts_of_buildx_come_from_everywhere() {
    needs!(tool "docker-buildx");
    let Some(buildx) = Buildx::new("") else { return };
    let (kitchen, host) = (&buildx.served.kitchen, buildx.host());
    let file =
        |path, data: &str| testkit::image::File { path, mode: 0o644, data: data.as_bytes().to_vec(), link: None };
    let archive = tar(&[file("Dockerfile", "FROM busybox\nCOPY a /\nRUN cat /a > /b\n"), file("a", "of the archive")]);
    kitchen.world.write("context.tar", &archive);
    kitchen.world.run("gzip").args(["--keep", "context.tar"]).succeeds();
    for name in ["context.tar", "context.tar.gz"] {
        let bytes = fs::read(kitchen.world.path(name)).unwrap();
        buildx.build(&format!("-o type=local,dest=of-{name} -")).stdin(bytes).succeeds();
        assert_eq!(buildx.read(&format!("of-{name}/b")), "of the archive");
    }
    buildx.build("-o type=local,dest=none -").stdin("FROM busybox\nRUN echo no context > /b\n").succeeds();
    assert_eq!(buildx.read("none/b"), "no context\n");
    kitchen.file("a", "of the directory");
    kitchen.dockerfile("FROM scratch\n");
    buildx.build("-o type=local,dest=both -f - context").stdin("FROM busybox\nCOPY a /b\n").succeeds();
    assert_eq!(buildx.read("both/b"), "of the directory");

    // Named ones: a directory, an image, a layout.
    TestImage::busybox().unwrap().put(&kitchen.registry, "team/other", "v1");
    kitchen.world.write("more/file", "of another directory");
    kitchen.who.own(&kitchen.world, "more");
    TestImage::busybox().unwrap().write_layout(&kitchen.world.path("layout"), "v1").unwrap();
    kitchen.who.own(&kitchen.world, "layout");
    kitchen.dockerfile(
        "FROM nowhere\nCOPY --from=dir file /file\nRUN echo ran > /ran\nFROM lay\nCOPY --from=0 /file /ran /\n",
    );
    let contexts = format!(
        "--build-context dir=more --build-context nowhere=docker-image://{host}/team/other:v1 \
         --build-context lay=oci-layout://layout:v1"
    );
    buildx.build(&format!("{contexts} -o type=local,dest=named context")).succeeds();
    assert_eq!((buildx.read("named/file"), buildx.read("named/ran")), ("of another directory".into(), "ran\n".into()));
    buildx.served.ends();
}

#[test]
fn secrets_and_progress_of_buildx() {
    needs!(tool "docker-buildx");
    let Some(buildx) = Buildx::new("") else { return };
    let kitchen = &buildx.served.kitchen;
    kitchen.world.write("secret", "hush");
    kitchen.who.own(&kitchen.world, "secret");
    kitchen.dockerfile(
        "FROM busybox\nRUN --mount=type=secret,id=file --mount=type=secret,id=VAR,env=VAR \
         test \"$(cat /run/secrets/file)-$VAR\" = hush-louder && echo told-$((40 + 2))\n",
    );
    let secrets = "--secret id=file,src=secret --secret id=VAR,env=VAR";
    buildx.build(&format!("{secrets} context")).env("VAR", "louder").succeeds().says("told-42");
    buildx.build("--no-cache context").env("VAR", "louder").fails();

    let raw = buildx.run(&format!("--builder b build --progress=rawjson --no-cache {secrets} context"));
    let raw = raw.env("VAR", "louder").succeeds();
    let events: Vec<Value> = raw.stderr.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let all =
        |key: &'static str| events.iter().flat_map(move |event| event[key].as_array().cloned().unwrap_or_default());
    let step = all("vertexes").find(|vertex| vertex["name"].as_str().is_some_and(|name| name.contains("RUN ")));
    let digest = step.unwrap_or_else(|| panic!("{events:?}"))["digest"].clone();
    let ended = all("vertexes").any(|vertex| vertex["digest"] == digest && vertex["completed"].is_string());
    assert!(ended, "{events:?}");
    let said = all("logs").filter(|log| log["vertex"] == digest).filter_map(|log| {
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, log["data"].as_str()?).ok()
    });
    assert!(String::from_utf8(said.collect::<Vec<_>>().concat()).unwrap().contains("told-42"), "{events:?}");
    assert!(!raw.stderr.contains("louder"), "{raw:?}");
    buildx.served.ends();
}

#[test]
fn buildx_talks_plain_tcp_and_cleans_up() {
    needs!(tool "docker-buildx");
    let address = format!("tcp://127.0.0.1:{}", free_port());
    let Some(buildx) = Buildx::at(&format!("--addr {address}"), |_| address.clone()) else { return };
    let kitchen = &buildx.served.kitchen;
    kitchen.file("a", "one");
    kitchen.dockerfile("FROM busybox\nCOPY a /\nRUN --mount=type=cache,target=/c echo > /c/x; echo > /new\n");
    buildx.build("-o type=local,dest=out context").succeeds();
    assert!(kitchen.world.path("out/new").exists());
    let listed = |args: &str| -> Vec<String> {
        let text = buildx.run(&format!("du --builder b --verbose {args}")).succeeds().text();
        text.lines().filter_map(|line| line.strip_prefix("Type:")).map(|kind| kind.trim().to_owned()).collect()
    };
    let all = listed("");
    for kind in ["exec.cachemount", "source.local", "regular"] {
        assert!(all.iter().any(|found| found == kind), "{kind}: {all:?}");
    }
    assert_eq!(listed("--filter type=exec.cachemount"), ["exec.cachemount"]);
    let prune = |args: &str| -> Ended { buildx.run(&format!("prune --builder b --force {args}")).succeeds() };
    prune("--filter type=exec.cachemount");
    let left = listed("");
    assert!(!left.iter().any(|found| found == "exec.cachemount") && left.len() == all.len() - 1, "{left:?}");
    prune("--filter until=24h");
    assert_eq!(listed("").len(), left.len(), "nothing is so old");
    prune("--all");
    assert!(listed("").is_empty());
    buildx.served.ends();
}
