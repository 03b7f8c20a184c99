//! Who may connect to a daemon, and how: certificates, and sockets that a supervisor opened.

use std::fs;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use testkit::certificates::{Authority, Signed};
use testkit::{free_port, scratch};

use crate::daemon::Served;
use crate::harness::{Ended, Invocation, has_tool, is_root};
use crate::who::Who;

/// A daemon that asks clients for certificates.
struct Guarded {
    served: Served,
    authority: Authority,
    dir: TempDir,
    address: String,
}

fn put(dir: &Path, name: &str, signed: &Signed) {
    fs::write(dir.join(format!("{name}.pem")), signed.certificate()).unwrap();
    fs::write(dir.join(format!("{name}.key")), signed.key()).unwrap();
}

impl Guarded {
    fn new() -> Option<Guarded> {
        let dir = scratch("e2e-certificates");
        let at = dir.path();
        let authority = Authority::new("of the daemon");
        put(at, "daemon", &authority.server());
        put(at, "client", &authority.client());
        fs::write(at.join("ca.pem"), authority.certificate()).unwrap();
        let address = format!("tcp://127.0.0.1:{}", free_port());
        let at = at.display();
        let flags =
            format!("--addr {address} --tlscert {at}/daemon.pem --tlskey {at}/daemon.key --tlscacert {at}/ca.pem");
        let served = Served::new(if is_root() { Who::Root } else { Who::Single }, &flags)?;
        Some(Guarded { served, authority, dir, address })
    }

    /// Our client, as who it says to be, asked of whom it trusts.
    fn buildctl(&self, client: &str, ca: &str) -> Invocation {
        let (world, dir) = (&self.served.kitchen.world, self.dir.path().display());
        let program = world.path("buildctl");
        let invocation = self.served.kitchen.who.run(world, program.to_str().unwrap()).args(["--addr", &self.address]);
        let invocation = invocation.args([format!("--tlscacert={dir}/{ca}.pem")]);
        match client {
            "" => invocation,
            name => invocation.args([format!("--tlscert={dir}/{name}.pem"), format!("--tlskey={dir}/{name}.key")]),
        }
    }

    fn asks(&self, client: &str, ca: &str) -> Ended {
        self.buildctl(client, ca).args(["debug", "workers"]).ends()
    }
}

#[test]
fn a_daemon_with_an_authority_talks_to_its_clients_only() {
    let Some(guarded) = Guarded::new() else { return };
    let dir = guarded.dir.path();
    let stranger = Authority::new("of somebody else");
    put(dir, "stranger", &stranger.client());
    put(dir, "expired", &guarded.authority.expired_client());
    put(dir, "version1", &guarded.authority.client().in_version_1(&guarded.authority));
    put(dir, "version1-stranger", &stranger.client().in_version_1(&stranger));
    fs::write(dir.join("strangers.pem"), stranger.certificate()).unwrap();

    for client in ["client", "version1"] {
        let good = guarded.asks(client, "ca");
        assert_eq!(good.code, Some(0), "{good:?}");
    }
    for client in ["", "stranger", "version1-stranger", "expired"] {
        let refused = guarded.asks(client, "ca");
        assert_eq!(refused.code, Some(1), "`{client}` was let in: {refused:?}");
        assert!(!refused.text().contains("PLATFORMS"), "{refused:?}");
        refused.says(&format!("error: no buildkitd answers at `{}`: ", guarded.address));
        match client {
            "" => refused.hints("it may ask for a client certificate: give --tlscert and --tlskey"),
            _ => refused.hints("it may not accept this client certificate: its log says so"),
        };
        guarded.served.daemon.waits_until("who it was", |said| {
            said.lines().any(|line| line.contains("TLS handshake failed") && line.contains("peer=\"127.0.0.1:"))
        });
    }
    // A probe that hangs up without a word is nobody.
    let probe = TcpStream::connect(guarded.address.strip_prefix("tcp://").unwrap()).unwrap().local_addr().unwrap();
    assert_eq!(guarded.asks("client", "ca").code, Some(0));
    assert!(!guarded.served.daemon.said().contains(&probe.to_string()));
    // A client that is shown the wrong certificate says so.
    let deceived = guarded.asks("client", "strangers");
    assert_eq!(deceived.code, Some(1), "{deceived:?}");
    deceived.says("certificate");
    // Of a key that is another certificate's, both files are named.
    fs::copy(dir.join("client.pem"), dir.join("mixed.pem")).unwrap();
    fs::copy(dir.join("stranger.key"), dir.join("mixed.key")).unwrap();
    let shown = dir.display();
    let foreign = format!("cannot use `{shown}/mixed.pem`: the key `{shown}/mixed.key` is another certificate's");
    guarded.asks("mixed", "ca").says(&foreign);
    // And who talks in the clear gets nothing.
    let world = &guarded.served.kitchen.world;
    let plain = guarded.served.kitchen.who.run(world, world.path("buildctl").to_str().unwrap());
    let plain = plain.args(["--addr", &guarded.address, "debug", "workers"]).ends();
    assert_eq!(plain.code, Some(1), "{plain:?}");
    plain.says(&format!("error: no buildkitd answers at `{}`: ", guarded.address));
    plain.hints("if it speaks TLS, give --tlscacert, and --tlscert and --tlskey where it asks for a certificate");

    // `--tlsdir` is the three in one, by upstream's names.
    let names = [("ca.pem", "ca.pem"), ("client.pem", "cert.pem"), ("client.key", "key.pem")];
    fs::create_dir(dir.join("client")).unwrap();
    for (from, to) in names {
        fs::copy(dir.join(from), dir.join("client").join(to)).unwrap();
    }
    let client = guarded.served.kitchen.who.run(world, world.path("buildctl").to_str().unwrap());
    let tlsdir = dir.join("client");
    client.args(["--addr", &guarded.address]).arg("--tlsdir").arg(&tlsdir).args(["debug", "workers"]).succeeds();
    // What it lacks is missed, and nothing is said in plain text instead.
    for (lacks, named) in [("key.pem", "key.pem nor tls.key"), ("ca.pem", "ca.pem nor ca.crt")] {
        let other = dir.join(format!("without-{lacks}"));
        fs::create_dir(&other).unwrap();
        for (_, name) in names.iter().filter(|(_, name)| *name != lacks) {
            fs::copy(tlsdir.join(name), other.join(name)).unwrap();
        }
        let client = guarded.served.kitchen.who.run(world, world.path("buildctl").to_str().unwrap());
        let client = client.args(["--addr", &guarded.address]).arg("--tlsdir").arg(&other);
        client.args(["debug", "workers"]).fails().says(&format!("has neither {named}"));
    }

    if has_tool("docker-buildx") {
        let kitchen = &guarded.served.kitchen;
        kitchen.dockerfile("FROM busybox\nRUN echo hi > /hi\n");
        let buildx = |args: &str| {
            let docker = kitchen.world.path("docker");
            kitchen.who.run(&kitchen.world, "docker-buildx").env("DOCKER_CONFIG", docker).args(args.split_whitespace())
        };
        let files = format!("cacert={0}/ca.pem,cert={0}/cert.pem,key={0}/key.pem", tlsdir.display());
        buildx(&format!("create --name b --driver remote --driver-opt {files} {}", guarded.address)).succeeds();
        buildx("--builder b build --progress=plain -o type=local,dest=out context").succeeds();
        assert_eq!(fs::read_to_string(kitchen.world.path("out/hi")).unwrap(), "hi\n");
    }
    guarded.served.ends();
}

#[test]
fn a_daemon_that_asks_for_no_certificates_says_who_may_build() {
    let dir = scratch("e2e-certificates");
    let at = dir.path();
    let authority = Authority::new("of the daemon");
    put(at, "daemon", &authority.server());
    fs::write(at.join("ca.pem"), authority.certificate()).unwrap();
    let at = at.display();
    let address = format!("tcp://127.0.0.1:{}", free_port());
    let flags = format!("--addr {address} --tlscert {at}/daemon.pem --tlskey {at}/daemon.key");
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, &flags) else { return };
    served
        .daemon
        .waits_until("that it warns", |said| said.contains(&format!("anybody who reaches {address} can build")));
    // So it is.
    let world = &served.kitchen.world;
    let client = served.kitchen.who.run(world, world.path("buildctl").to_str().unwrap());
    client.args(["--addr", &address, &format!("--tlscacert={at}/ca.pem"), "debug", "workers"]).succeeds();
    served.ends();
}

#[test]
fn certificates_are_renewed_while_builds_run() {
    let Some(guarded) = Guarded::new() else { return };
    let (kitchen, dir) = (&guarded.served.kitchen, guarded.dir.path());
    kitchen.dockerfile("FROM busybox\nRUN echo begun; sleep 2; echo ended > /e\n");
    let line = "build --progress=plain --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context \
                --output=type=local,dest=out";
    let build = guarded.buildctl("client", "ca").args(line.split_whitespace()).starts();
    build.waits_for("begun");
    let next = Authority::new("of the next year");
    put(dir, "next", &next.client());
    fs::write(dir.join("next-ca.pem"), next.certificate()).unwrap();
    // The key does not fit for a moment: the old ones are used until it does.
    let renewed = next.server();
    fs::write(dir.join("daemon.pem"), renewed.certificate()).unwrap();
    assert_eq!(guarded.asks("client", "ca").code, Some(0));
    fs::write(dir.join("daemon.key"), renewed.key()).unwrap();
    fs::write(dir.join("ca.pem"), next.certificate()).unwrap();
    let new = guarded.asks("next", "next-ca");
    assert_eq!(new.code, Some(0), "{new:?}");
    assert_eq!(guarded.asks("client", "next-ca").code, Some(1), "a client of the old authority was let in");
    let ended = build.ends();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read_to_string(kitchen.world.path("out/e")).unwrap(), "ended\n");
    guarded.served.ends();
}

#[test]
fn a_socket_may_come_from_a_supervisor() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    let world = &served.kitchen.world;
    let path = world.path("given.sock");
    let socket = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", "LISTEN_FDS=1 exec \"$@\" 3<&0 < /dev/null", "sh"]).arg(world.path("buildkitd"));
    command.args(["--root", "given", "--config", "buildkitd.toml", "--addr", "fd://"]).current_dir(world.path(""));
    let mut daemon = command.stdin(Stdio::from(socket)).stderr(Stdio::null()).spawn().unwrap();
    let asks = || {
        let client = world.run(world.path("buildctl")).args(["--addr", &format!("unix://{}", path.display())]);
        client.args(["debug", "workers"]).ends()
    };
    let answered = asks();
    assert!(Command::new("kill").arg(daemon.id().to_string()).status().unwrap().success());
    let status = daemon.wait().unwrap();
    assert_eq!((answered.code, status.code()), (Some(0), Some(0)), "{answered:?}");
    served.ends();
}

/// A name that the certificate has, whatever the address says.
#[test]
fn a_client_may_name_its_server() {
    let Some(guarded) = Guarded::new() else { return };
    let asks = |name: &str| {
        guarded.buildctl("client", "ca").args([&format!("--tlsservername={name}"), "debug", "workers"]).ends()
    };
    assert_eq!(asks("localhost").code, Some(0));
    let other = asks("builder.example");
    assert_eq!(other.code, Some(1), "{other:?}");
    other.says("certificate").says("builder.example");
    guarded.served.ends();
}
