//! How our client finds a daemon: addresses that other programs carry out, variables, and how long it tries.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::daemon::Served;
use crate::harness::{Invocation, is_root};
use crate::who::Who;

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

/// `buildctl` at another address.
fn at(served: &Served, address: &str) -> Invocation {
    let world = &served.kitchen.world;
    served.kitchen.who.run(world, world.path("buildctl").to_str().unwrap()).args(["--addr", address])
}

/// Programs that run what they are told at once, here, and write down how they were called.
fn put_carriers(served: &Served) -> String {
    let world = &served.kitchen.world;
    let (buildctl, log) = (world.path("buildctl"), world.path("carried"));
    fs::write(&log, "").unwrap();
    served.kitchen.who.own(world, "carried");
    for name in ["ssh", "docker", "podman", "nerdctl", "kubectl"] {
        // `buildctl` is what the other side has: here, the words after it.
        let script = format!(
            "#!/bin/sh\necho \"{name} $*\" >> {}\nwhile [ \"$1\" != buildctl ]; do shift; done\nshift\nexec {} \"$@\"\n",
            log.display(),
            buildctl.display()
        );
        let path = world.write(&format!("carriers/{name}"), script);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:{}", world.path("carriers").display(), std::env::var("PATH").unwrap())
}

#[test]
fn a_daemon_is_reached_by_other_programs() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let path = put_carriers(&served);
    let world = &served.kitchen.world;
    let socket = world.path("b.sock").display().to_string();
    let host = format!("unix://{socket}");
    let carried = || fs::read_to_string(world.path("carried")).unwrap();
    // Where the address has no place for the socket, the other side knows it.
    for (address, called) in [
        (format!("ssh://me@host:22{socket}"), format!("ssh -l me -p 22 -- host buildctl --addr {host} dial-stdio")),
        ("ssh://host".to_owned(), "ssh -- host buildctl dial-stdio".to_owned()),
        ("docker-container://c".to_owned(), "docker exec -i c buildctl dial-stdio".to_owned()),
        ("docker-container://c?context=x".to_owned(), "docker --context x exec -i c buildctl dial-stdio".to_owned()),
        ("podman-container://c".to_owned(), "podman exec -i c buildctl dial-stdio".to_owned()),
        ("docker-container://c/path".to_owned(), "docker exec -i c buildctl dial-stdio".to_owned()),
        ("nerdctl-container://c".to_owned(), "nerdctl exec -i c buildctl dial-stdio".to_owned()),
        (
            "nerdctl-container://c?namespace=n".to_owned(),
            "nerdctl exec --namespace n -i c buildctl dial-stdio".to_owned(),
        ),
        (
            "kube-pod://p?context=x&namespace=n&container=c".to_owned(),
            "kubectl --context x --namespace n exec -i --container c p -- buildctl dial-stdio".to_owned(),
        ),
    ] {
        fs::write(world.path("carried"), "").unwrap();
        let variables = [format!("PATH={path}"), format!("BUILDKIT_HOST={host}")];
        let client = served.kitchen.who.run(world, "/usr/bin/env").args(variables).arg(world.path("buildctl"));
        let client = client.args(["--addr", &address, "debug", "workers"]);
        let ended = client.succeeds();
        assert!(ended.text().contains("PLATFORMS"), "{address}: {ended:?}");
        assert!(carried().lines().any(|line| line == called), "{address}: {}", carried());
    }
    // What would not be asked for is refused: another daemon than the one that was meant would build.
    fs::write(world.path("carried"), "").unwrap();
    for (address, option) in [
        ("nerdctl-container://c?namespce=n", "namespce"),
        ("podman-container://c?context=x", "context"),
        ("kube-pod://p?pod=x", "pod"),
    ] {
        at(&served, address)
            .env("PATH", &path)
            .args(["debug", "workers"])
            .fails()
            .says(&format!("no option `{option}`"));
    }
    assert_eq!(carried(), "");
    // A whole build, with its files.
    served.kitchen.file("a", vec![b'a'; 300_000]);
    served.kitchen.dockerfile("FROM busybox\nCOPY a /\nRUN cp /a /b\n");
    let client = served.kitchen.who.run(world, "/usr/bin/env").args([format!("PATH={path}")]);
    let client = client.arg(world.path("buildctl")).args(["--addr", &format!("ssh://host{socket}"), "build"]);
    let line =
        "--frontend=dockerfile.v0 --local=context=context --local=dockerfile=context --output=type=local,dest=out";
    client.args(line.split(' ')).succeeds();
    assert_eq!(fs::read(world.path("out/b")).unwrap().len(), 300_000);
    served.ends();
}

#[test]
fn an_address_may_come_from_a_variable() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let world = &served.kitchen.world;
    let client = || served.kitchen.who.run(world, world.path("buildctl").to_str().unwrap());
    let host = format!("unix://{}", world.path("b.sock").display());
    let ended = client().env("BUILDKIT_HOST", &host).args(["debug", "workers"]).succeeds();
    assert!(ended.text().contains("PLATFORMS"), "{ended:?}");
    // Addresses of sockets are written in more ways than one.
    for address in [host.replace("unix://", "unix:"), "unix:b.sock".to_owned(), host.replace("unix", "UNIX")] {
        at(&served, &address).args(["debug", "workers"]).succeeds();
    }
    // The flag counts more.
    let nowhere = format!("unix://{}", world.path("nowhere.sock").display());
    client().env("BUILDKIT_HOST", &nowhere).args(["--addr", &host, "debug", "workers"]).succeeds();
    let lost = client().env("BUILDKIT_HOST", &nowhere).args(["debug", "workers"]).fails();
    lost.says(&nowhere).hints("start buildkitd, or name another address by `--addr` or BUILDKIT_HOST");
    served.ends();
}

#[test]
fn a_client_may_wait_for_its_daemon() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let address = format!("unix://{}", served.kitchen.world.path("b.sock").display());
    let Served { kitchen, daemon } = served;
    daemon.signal("TERM");
    assert_eq!(daemon.ends_soon().code, Some(0));
    let client = || kitchen.who.run(&kitchen.world, kitchen.world.path("buildctl").to_str().unwrap());
    client().args(["--addr", &address, "debug", "workers"]).fails().says(&address);
    let log = ["--debug", "--log-format=json", "--wait", "--addr", &address, "debug", "workers"];
    let waits = client().args(log).starts();
    waits.waits_until("that it tries again", |said| said.contains("trying again"));
    let served = Served::again(kitchen, "");
    let ended = waits.ends_soon();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.text().contains("PLATFORMS"), "{ended:?}");
    // What is logged meanwhile is JSON, a line each.
    let line = ended.stderr.lines().find(|line| line.contains("trying again")).unwrap();
    let logged: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(logged["fields"]["message"], "trying again", "{line}");
    let unknown = at(&served, &address).args(["--log-format=xml", "debug", "workers"]).fails();
    unknown.says("`xml`").says("known are text and json");
    served.ends();
}

/// A server that takes connections and says nothing.
#[test]
fn a_client_gives_up_in_time() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", silent.local_addr().unwrap());
    let began = Instant::now();
    let ended = at(&served, &address).args(["--timeout", "1", "debug", "workers"]).starts().ends_soon();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    ended.says(&format!("error: no buildkitd answers at `{address}`: nothing is said"));
    assert!(began.elapsed() >= Duration::from_secs(1), "it waited");
    served.ends();
}

/// A server of another kind, such as the daemon's own port for probes.
#[test]
fn a_client_names_a_server_that_is_no_daemon() {
    let port = testkit::free_port();
    let Some(served) = Served::new(anybody(), &format!("--debugaddr 127.0.0.1:{port}")) else { return };
    let address = format!("tcp://127.0.0.1:{port}");
    for _ in 0..5 {
        let ended = at(&served, &address).args(["debug", "workers"]).fails();
        ended.says(&format!("error: no buildkitd answers at `{address}`: what listens there speaks HTTP/1"));
        ended.hints("another server listens there: name buildkitd's address by `--addr` or BUILDKIT_HOST");
    }
    served.ends();
}

/// The same at a socket of this machine, where a client asks without knocking.
#[test]
fn a_client_names_a_socket_that_is_no_daemon_s_or_not_for_it() {
    let Some(served) = Served::new(Who::Single, "") else { return };
    served.kitchen.dockerfile("FROM scratch\n");
    let listens = |name: &str, mode| {
        let path = served.kitchen.world.path(name);
        let listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (listener, format!("unix://{}", path.display()))
    };
    let (listener, address) = listens("web.sock", 0o777);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    for command in [&["debug", "workers"][..], &["build", "--frontend=dockerfile.v0", "--local=context=context"]] {
        let ended = at(&served, &address).args(command).fails();
        ended.says(&format!("no buildkitd answers at `{address}`: what listens there speaks HTTP/1"));
        ended.hints("another server listens there: name buildkitd's address by `--addr` or BUILDKIT_HOST");
    }
    let (_listener, address) = listens("shut.sock", 0);
    let ended = at(&served, &address).args(["debug", "workers"]).fails();
    ended.says(&format!("cannot reach the daemon at `{address}`: ")).says("Permission denied");
    ended.says("hint: this user may not use the socket: ");
    served.ends();
}

#[test]
fn dial_stdio_passes_a_connection_on() {
    let Some(served) = Served::new(anybody(), "") else { return };
    // What opens a connection is answered by the daemon's settings; then it is hung up on.
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let ended = served.buildctl("dial-stdio").stdin(PREFACE).starts().ends_soon();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.len() >= 9 && ended.stdout[3] == 4, "no settings: {ended:?}");
    let nowhere = format!("unix://{}", served.kitchen.world.path("nowhere").display());
    at(&served, &nowhere).arg("dial-stdio").fails().says(&nowhere);
    served.ends();
}
