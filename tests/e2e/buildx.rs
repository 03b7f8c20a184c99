//! docker's clients as users have them: the newest that Debian packages, and the one of a suite two years older.

use std::fs;
use std::path::PathBuf;

use crate::daemon::Served;
use crate::harness::{Ended, Invocation, is_root, or_skip, tools};
use crate::who::Who;

/// The newest here, which has commands that the older one has not.
pub const NEWEST: &str = "docker-buildx";
pub const OLDER: &str = "docker-buildx-trixie";

/// A client, and a daemon that is its builder `b`.
pub struct Docker {
    pub served: Served,
    client: &'static str,
}

impl Docker {
    /// None, with the reason told, where that cannot be.
    pub fn new(client: &'static str, flags: &str) -> Option<Docker> {
        or_skip(tools(&[client]))?;
        let served = Served::new(if is_root() { Who::Root } else { Who::Single }, flags)?;
        Some(Docker::of(served, client))
    }

    /// The client of a daemon that is there.
    pub fn of(served: Served, client: &'static str) -> Docker {
        let docker = Docker { served, client };
        let socket = docker.path("b.sock");
        docker.run(&format!("create --name b --driver remote unix://{}", socket.display())).succeeds();
        docker
    }

    pub fn is_newest(&self) -> bool {
        self.client == NEWEST
    }

    /// Starts it with these words.
    pub fn run(&self, line: &str) -> Invocation {
        let kitchen = &self.served.kitchen;
        let run = kitchen.who.run(&kitchen.world, self.client).env("DOCKER_CONFIG", self.path("docker"));
        run.args(line.split_whitespace())
    }

    /// Builds.
    pub fn build(&self, args: &str) -> Invocation {
        self.run(&format!("--builder b build --progress=plain {args}"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.served.kitchen.world.path(name)
    }

    pub fn read(&self, name: &str) -> String {
        read(&self.served, name)
    }
}

/// Does the same with each client that is here, and a daemon of its own.
pub fn with_each_client(test: impl Fn(&Docker)) {
    for client in [NEWEST, OLDER] {
        if let Some(docker) = Docker::new(client, "") {
            test(&docker);
            docker.served.ends();
        }
    }
}

fn read(served: &Served, name: &str) -> String {
    fs::read_to_string(served.kitchen.world.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The main commands, once with each client.
fn works(client: &str) {
    if or_skip(tools(&[client])).is_none() {
        return;
    }
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    let kitchen = &served.kitchen;
    let host = kitchen.registry.host();
    let run = |line: &str| -> Ended {
        let docker = kitchen.world.path("docker");
        let run = kitchen.who.run(&kitchen.world, client).env("DOCKER_CONFIG", docker).args(line.split_whitespace());
        let ended = run.succeeds();
        // Go's HTTP/2 says so when a session ends in the middle of something.
        assert!(!ended.stderr.contains("http2:"), "{ended:?}");
        ended
    };
    let build = |args: &str| run(&format!("--builder b build --progress=plain {args}"));

    let socket = format!("unix://{}", kitchen.world.path("b.sock").display());
    run(&format!("create --name b --driver remote {socket}"));
    assert!(run("inspect b --bootstrap").text().contains("Platforms:"));

    kitchen.file("a", "one");
    kitchen.world.write("other/n", "named");
    kitchen.world.write("secret", "hush");
    kitchen.who.own(&kitchen.world, "other");
    kitchen.dockerfile(
        "FROM busybox\nCOPY a /\nCOPY --from=other n /\nARG WORD\n\
         RUN --mount=type=secret,id=s echo $WORD $(cat /run/secrets/s | wc -c) > /word\n",
    );
    let args = "--build-arg WORD=two --secret id=s,src=secret --build-context other=other context";
    build(&format!("{args} -t {host}/x/y:1 --push --metadata-file meta.json"));
    assert!(read(&served, "meta.json").contains("containerimage.digest"));
    build(&format!("{args} -o type=local,dest=out")).says("CACHED");
    if client == NEWEST {
        // Scripts tell a full disk from a build that is wrong by the code that they know from BuildKit.
        let full = kitchen.who.run(&kitchen.world, client).env("DOCKER_CONFIG", kitchen.world.path("docker"));
        let line = format!("--builder b build --progress=plain {args} -o type=tar,dest=/dev/full");
        let full = full.args(line.split_whitespace()).ends();
        assert_eq!(full.code, Some(102), "{full:?}");
        full.says("ResourceExhausted").says("no space left on device");
    }
    assert_eq!(["a", "n", "word"].map(|name| read(&served, &format!("out/{name}"))), ["one", "named", "two 4\n"]);
    for kind in ["tar", "oci", "docker"] {
        build(&format!("{args} -o type={kind},dest={kind}.tar"));
        let bytes = fs::read(kitchen.world.path(format!("{kind}.tar"))).unwrap();
        assert_eq!(&bytes[257..262], b"ustar", "{kind}");
    }
    build(&format!("{args} -o type=oci,tar=false,dest=layout"));
    assert!(read(&served, "layout/index.json").contains("sha256:"));

    let cached =
        build(&format!("{args} --cache-to type=registry,ref={host}/c:1,mode=max --cache-to type=local,dest=c"));
    cached.says("exporting cache");
    run("prune --builder b --force --all");
    build(&format!("{args} --cache-from type=registry,ref={host}/c:1 -o type=cacheonly")).says("CACHED");
    run("prune --builder b --force --all");
    build(&format!("{args} --cache-from type=local,src=c -o type=cacheonly")).says("CACHED");

    kitchen.dockerfile("FROM scratch\nCOPY a /\n");
    build(&format!(
        "--platform linux/amd64,linux/arm64 --provenance=false --annotation index:kind=both -t {host}/x/p:1 --push context"
    ));
    run(&format!("imagetools create -t {host}/x/p:2 {host}/x/p:1"));
    let index = run(&format!("imagetools inspect --raw {host}/x/p:2")).text();
    assert!(["arm64", "amd64", "\"kind\": \"both\""].iter().all(|text| index.contains(text)), "{index}");

    kitchen.world.write(
        "bake.hcl",
        "target \"default\" {\n  context = \"context\"\n  output = [\"type=local,dest=baked\"]\n}\n",
    );
    run("bake --builder b -f bake.hcl --progress=plain");
    assert_eq!(read(&served, "baked/a"), "one");
    assert!(run("du --builder b").text().contains("Total:"));
    run("prune --builder b --force --all");
    served.ends();
}

#[test]
fn the_newest_client_works() {
    works(NEWEST);
}

#[test]
fn an_older_client_works() {
    works(OLDER);
}
