//! BuildKit itself, as dockerd has it built in: our client with its daemon.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{Invocation, Running, or_skip, path, tools};
use crate::kitchen::Kitchen;
use crate::who::Who;

/// dockerd, and its BuildKit behind a socket.
struct Upstream {
    kitchen: Kitchen,
    dockerd: Running,
}

impl Upstream {
    /// None, with the reason told, where that cannot be.
    fn new() -> Option<Upstream> {
        or_skip(Who::Root.is_here())?;
        or_skip(tools(&["dockerd", "containerd", "runc", "docker-buildx", "unshare"]))?;
        let kitchen = Kitchen::new(Who::Root)?;
        symlink("hullworks", kitchen.world.path("buildctl")).unwrap();
        // What was fetched for the tests comes first here: the machine's own may be too old.
        let newer = std::env::var_os("HULLWORKS_TOOLS").map(std::path::PathBuf::from);
        let path = path();
        let dirs = newer.into_iter().chain(std::env::split_paths(&path)).chain(["/usr/sbin".into(), "/sbin".into()]);
        let dirs = std::env::join_paths(dirs).unwrap();
        // Images as containerd has them: only so does its BuildKit write archives and caches. Steps get no network that
        // would want the machine's own.
        let config = kitchen.world.write("dockerd.json", r#"{"features":{"containerd-snapshotter":true}}"#);
        let socket = format!("unix://{}", kitchen.world.path("docker.sock").display());
        // It mounts its own directories over themselves, here where nobody sees it.
        let dockerd = kitchen.world.run("unshare").args(["--mount", "--propagation", "private", "dockerd"]);
        let dockerd = dockerd.env("PATH", dirs).arg("--config-file").arg(config).args(["--host", &socket]);
        let dockerd = ["--data-root", "--exec-root", "--pidfile"]
            .into_iter()
            .fold(dockerd, |dockerd, flag| dockerd.arg(flag).arg(kitchen.world.path("docker").join(&flag[2..])));
        let dockerd = dockerd.args(["--storage-driver=native", "--exec-opt=native.cgroupdriver=cgroupfs"]);
        let dockerd =
            dockerd.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--userland-proxy=false"]);
        fs::create_dir(kitchen.world.path("docker")).unwrap();
        let dockerd = dockerd.starts();
        if !dockerd.says_or_ends(|said| said.contains("API listen on")) {
            let said = dockerd.said();
            return or_skip(Err(format!("dockerd does not start: {}", said.lines().last().unwrap_or_default())));
        }
        let upstream = Upstream { kitchen, dockerd };
        upstream.listens(&socket);
        Some(upstream)
    }

    /// Passes connections on, by docker's own client.
    fn listens(&self, docker: &str) {
        let world = &self.kitchen.world;
        let listener = UnixListener::bind(world.path("upstream.sock")).unwrap();
        let (docker, config) = (docker.to_owned(), world.path("docker/client"));
        // It waits for another connection as long as the tests run.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let mut dial = Command::new("docker-buildx");
                dial.args(["dial-stdio", "--progress=quiet"]).env("PATH", path()).stderr(Stdio::null());
                dial.env("DOCKER_HOST", &docker).env("DOCKER_CONFIG", &config);
                dial.stdin(std::os::fd::OwnedFd::from(stream.try_clone().unwrap()));
                let mut dial = dial.stdout(std::os::fd::OwnedFd::from(stream)).spawn().unwrap();
                std::thread::spawn(move || dial.wait());
            }
        });
    }

    /// Our client, with its daemon.
    fn buildctl(&self, args: &str) -> Invocation {
        let socket = format!("unix://{}", self.kitchen.world.path("upstream.sock").display());
        let client = self.kitchen.world.run(self.kitchen.world.path("buildctl"));
        client.args(["--addr", &socket]).args(args.split_whitespace())
    }

    fn build(&self, args: &str) -> Invocation {
        let line = "build --progress=plain --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
        self.buildctl(&format!("{line} {args}"))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.kitchen.world.path(name)).unwrap()
    }

    fn ends(self) {
        self.dockerd.signal("TERM");
        let ended = self.dockerd.ends_soon();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn our_client_builds_by_buildkit_s_daemon() {
    let Some(upstream) = Upstream::new() else { return };
    let kitchen = &upstream.kitchen;
    let busybox = format!("{}/library/busybox", kitchen.registry.host());
    kitchen.file("a", "one");
    kitchen.file("d/b", "two");
    kitchen.file(".dockerignore", "c*\n");
    kitchen.file("c", "not this");
    kitchen.file("secret", "hush");
    kitchen.dockerfile(&format!(
        "FROM {busybox}\nCOPY . /x/\nRUN --network=none --mount=type=secret,id=s \
         test \"$(cat /run/secrets/s)\" = hush && ls /x > /ls\n"
    ));
    let secret = "--secret id=s,src=context/secret";
    upstream.build(&format!("{secret} --output type=local,dest=out")).succeeds().says("transferring context:");
    let read = |name: &str| upstream.read(name);
    assert_eq!(
        (read("out/x/a"), read("out/x/d/b"), read("out/ls")),
        ("one".into(), "two".into(), "Dockerfile\na\nd\nsecret\n".into())
    );
    // Of a context that it knows, only what changed.
    kitchen.file("d/b", "three");
    fs::remove_file(kitchen.world.path("context/a")).unwrap();
    let line = format!("{secret} --output type=local,dest=out --metadata-file meta.json");
    upstream.build(&line).succeeds();
    assert_eq!((read("out/x/d/b"), read("out/ls")), ("three".into(), "Dockerfile\nd\nsecret\n".into()));
    assert!(read("meta.json").contains("buildx.build.ref") || read("meta.json").starts_with('{'));

    let archives = format!("{secret} --output type=oci,dest=x.tar --output type=tar,dest=y.tar");
    upstream.build(&archives).succeeds().says("CACHED");
    let listed = |archive: &str| kitchen.world.run("tar").args(["tf", archive]).succeeds().text();
    let oci = listed("x.tar");
    assert!(oci.contains("index.json") && oci.contains("blobs/sha256/"), "{oci}");
    assert!(listed("y.tar").lines().any(|line| line == "ls"));

    // Its errors show lines of our files.
    kitchen.dockerfile(&format!("FROM {busybox}\nRUN --network=none echo oops && exit 7\n"));
    let failed = upstream.build("").fails();
    failed.says("   2 | >>> RUN --network=none echo oops && exit 7").says("exit code: 7");
    kitchen.dockerfile(&format!("FROM {busybox}\nCOPY nothing /\n"));
    upstream.build("").fails().says("\"/nothing\": not found");

    // What it keeps is known to our other commands.
    let workers: Value =
        serde_json::from_str(&upstream.buildctl("debug workers --format json").succeeds().text()).unwrap();
    let worker = if workers.is_array() { &workers[0] } else { &workers };
    assert!(!worker["platforms"].as_array().unwrap().is_empty(), "{workers}");
    assert!(upstream.buildctl("debug info").succeeds().text().contains("BuildKit: "));
    let records = upstream.buildctl("debug histories").succeeds().text();
    assert!(records.lines().count() >= 5, "{records}");
    assert!(!upstream.buildctl("du").succeeds().text().contains("Total:\t\t0B"));
    upstream.buildctl("prune --all").succeeds();
    assert!(upstream.buildctl("du").succeeds().text().contains("Total:\t\t0B"));
    upstream.ends();
}

/// Steps write what no other run of them writes: what is the same afterwards came out of the cache.
#[test]
fn caches_pass_between_buildkit_and_us() {
    let Some(upstream) = Upstream::new() else { return };
    let kitchen = &upstream.kitchen;
    let host = kitchen.registry.host();
    kitchen.file("a", "one");
    let unique = "RUN --network=none cat /proc/sys/kernel/random/uuid";
    let busybox = format!("FROM {host}/library/busybox");
    kitchen.dockerfile(&format!(
        "{busybox} AS maker\nCOPY a /\n{unique} > /b && cat /a >> /b\n{busybox}\nCOPY --from=maker /b /\n{unique} > /c\n"
    ));
    let made = |out: &str| [upstream.read(&format!("{out}/b")), upstream.read(&format!("{out}/c"))];
    let theirs = |args: &str| {
        upstream.buildctl("prune --all").succeeds();
        upstream.build(args).succeeds()
    };
    let kinds = [
        ("type=local,mode=max,dest=", "type=local,src="),
        ("type=registry,mode=max,ref=", "type=registry,ref="),
        ("type=registry,mode=min,compression=zstd,force-compression=true,ref=", "type=registry,ref="),
        ("type=registry,mode=max,image-manifest=false,ref=", "type=registry,ref="),
    ];
    for (at, (write, read)) in kinds.into_iter().enumerate() {
        let place = |maker: &str| match write.starts_with("type=local") {
            true => format!("cache-{maker}"),
            false => format!("{host}/cache/{maker}:{at}"),
        };
        let (write, read) = (|maker| format!("{write}{}", place(maker)), |maker| format!("{read}{}", place(maker)));
        let out = |who: &str| format!("{who}{at}");

        kitchen.build_on(&out("s"), &format!("--cache-to {} --output {}", write("us"), out("us"))).succeeds();
        theirs(&format!("--import-cache {} --output type=local,dest={}", read("us"), out("of-us")));
        assert_eq!(made(&out("of-us")), made(&out("us")), "{}", write("us"));

        theirs(&format!("--export-cache {} --output type=local,dest={}", write("them"), out("them")));
        kitchen.build_on(&out("t"), &format!("--cache-from {} --output {}", read("them"), out("of-them"))).succeeds();
        assert_eq!(made(&out("of-them")), made(&out("them")), "{}", write("them"));
        assert_ne!(made(&out("them")), made(&out("us")), "each made its own");
    }
    upstream.ends();
}
