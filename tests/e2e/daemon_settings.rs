//! What a daemon is told by its flags and `buildkitd.toml`: who may use its sockets, what it says of itself, what it refuses,
//! and when it cleans up.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::daemon::Served;
use crate::harness::{Invocation, USER, eventually, is_root};
use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

/// More for `buildkitd.toml`, which the daemon reads when it is started again.
fn again(served: Served, settings: &str) -> Served {
    let Served { kitchen, daemon } = served;
    daemon.signal("TERM");
    assert_eq!(daemon.ends_soon().code, Some(0));
    set(&kitchen, settings);
    Served::again(kitchen, "")
}

fn set(kitchen: &Kitchen, settings: &str) {
    let host = kitchen.registry.host();
    let common = format!("[registry.\"docker.io\"]\nmirrors = [\"{host}\"]\n[registry.\"{host}\"]\nhttp = true\n");
    kitchen.world.write("buildkitd.toml", format!("{settings}\n{common}"));
}

/// As somebody of a group who is not the owner.
fn as_member(served: &Served, group: u32) -> Invocation {
    let world = &served.kitchen.world;
    let who = ["--reuid=1234".to_owned(), format!("--regid={group}"), "--clear-groups".to_owned()];
    let client = world.run("setpriv").args(who).arg("--").arg(world.path("client"));
    client.args(["--addr", &format!("unix://{}", world.path("b.sock").display()), "debug", "workers"])
}

#[test]
fn a_socket_belongs_to_whom_the_settings_say() {
    needs!(root);
    let Some(served) = Served::new(Who::Root, &format!("--group {USER}")) else { return };
    let world = &served.kitchen.world;
    // Where others can start it.
    fs::create_dir(world.path("programs")).unwrap();
    fs::copy(crate::harness::binary(), world.path("programs/buildctl")).unwrap();
    std::os::unix::fs::symlink("programs/buildctl", world.path("client")).unwrap();
    world.run("chmod").args(["755", "."]).succeeds();
    let owner = |served: &Served| {
        let meta = fs::metadata(served.kitchen.world.path("b.sock")).unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o777)
    };
    assert_eq!(owner(&served), (0, USER, 0o660));
    let denied = |served: &Served, group: u32| {
        let ended = as_member(served, group).ends();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        ended.says("b.sock");
    };
    assert!(as_member(&served, USER).succeeds().text().contains("PLATFORMS"));
    denied(&served, USER + 1);

    let served = again(served, &format!("[grpc]\nuid = 1234\ngid = {}", USER + 1));
    assert_eq!(owner(&served), (1234, USER + 1, 0o660));
    // The owner, and the group.
    for group in [USER, USER + 1] {
        as_member(&served, group).succeeds();
    }
    // The flag counts more; names are those of /etc/group.
    let Served { kitchen, daemon } = served;
    daemon.signal("TERM");
    assert_eq!(daemon.ends_soon().code, Some(0));
    let named = Served::again(kitchen, "--group daemon");
    assert_eq!((owner(&named).0, owner(&named).1), (1234, 1));
    let Served { kitchen, daemon } = named;
    daemon.signal("TERM");
    assert_eq!(daemon.ends_soon().code, Some(0));
    Served::daemon(&kitchen, "--group nobodys-group").fails().says("--group: there is no group `nobodys-group`");
}

/// `systemd` passes several sockets on; each is named by its number, or all by a star.
#[test]
fn sockets_of_a_supervisor_are_chosen_by_number() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let world = &served.kitchen.world;
    for (address, answers) in [("fd://3", [true, false]), ("fd://4", [false, true]), ("fd://*", [true, true])] {
        let paths = ["first.sock", "second.sock"].map(|name| world.path(name));
        let [first, second] = paths.each_ref().map(|path| {
            let _ = fs::remove_file(path);
            OwnedFd::from(UnixListener::bind(path).unwrap())
        });
        let mut command = Command::new("sh");
        // The second comes as standard output.
        command.args(["-c", "LISTEN_FDS=2 exec \"$@\" 3<&0 4<&1 < /dev/null > /dev/null", "sh"]);
        command.arg(world.path("buildkitd")).args(["--root", "given", "--config", "buildkitd.toml", "--addr", address]);
        let command = command.current_dir(world.path("")).stderr(Stdio::null());
        let mut daemon = command.stdin(Stdio::from(first)).stdout(Stdio::from(second)).spawn().unwrap();
        let asks = |path: &std::path::Path| {
            let host = format!("unix://{}", path.display());
            world.run(world.path("buildctl")).args(["--addr", &host, "debug", "workers"]).starts()
        };
        let asked: Vec<_> = paths.iter().zip(answers).filter(|(_, answers)| *answers).collect();
        let answered: Vec<_> = asked.iter().map(|(path, _)| asks(path).ends_soon()).collect();
        // Whoever it does not listen for waits, and hears the end when the daemon has it no more.
        let waiting: Vec<_> =
            paths.iter().zip(answers).filter(|(_, answers)| !*answers).map(|(path, _)| asks(path)).collect();
        assert!(Command::new("kill").arg(daemon.id().to_string()).status().unwrap().success());
        let status = daemon.wait().unwrap();
        assert!(answered.iter().all(|ended| ended.code == Some(0)), "{address}: {answered:?}");
        assert_eq!(status.code(), Some(0), "{address}");
        for waits in waiting {
            assert_ne!(waits.ends_soon().code, Some(0), "{address}");
        }
    }
    let none = Served::daemon(&served.kitchen, "--addr fd://7").fails();
    none.says("cannot listen on `fd://7`").says("no socket was passed on");
    served.ends();
}

#[test]
fn a_worker_says_of_itself_what_it_was_told() {
    let native = if std::env::consts::ARCH == "aarch64" { "linux/arm64" } else { "linux/amd64" };
    let flags = format!("--oci-worker-labels color=red --oci-worker-labels shape=round --oci-worker-platform {native}");
    let Some(served) = Served::new(anybody(), &flags) else { return };
    let worker = |served: &Served| -> Value {
        let text = served.buildctl("debug workers --format json").succeeds().text();
        serde_json::from_str(&text).unwrap()
    };
    let told = worker(&served);
    assert_eq!((&told["labels"]["color"], &told["labels"]["shape"]), (&"red".into(), &"round".into()), "{told}");
    assert_eq!(told["platforms"].as_array().unwrap().len(), 1, "{told}");
    assert_eq!(told["platforms"][0]["architecture"], native.split('/').nth(1).unwrap());
    let filter = |served: &Served, filter: &str| {
        served.buildctl(&format!("debug workers --filter {filter} --format json")).succeeds().text()
    };
    assert!(!filter(&served, "labels.color==red").is_empty());
    assert!(filter(&served, "labels.color==blue").is_empty());

    let settings = format!("[worker.oci]\nplatforms = [\"{native}\"]\n[worker.oci.labels]\ncolor = \"blue\"");
    let served = again(served, &settings);
    let told_by_file = worker(&served);
    assert_eq!(told_by_file["labels"]["color"], "blue");
    assert_eq!(told_by_file["id"], told["id"], "a state keeps its id");
    served.ends();
}

#[test]
fn a_frontend_that_is_switched_off_is_refused() {
    let Some(served) = Served::new(anybody(), "") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN true\n");
    served.build("").succeeds();
    let served = again(served, "[frontend.\"dockerfile.v0\"]\nenabled = false");
    served.build("").fails().says("dockerfile.v0");
    // Definitions are still taken.
    assert!(served.buildctl("debug workers").succeeds().text().contains("PLATFORMS"));
    served.ends();
}

#[test]
fn devices_are_refused_by_name() {
    let Some(served) = Served::new(anybody(), "--allow-insecure-entitlement device") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN --device=vendor.example/class=name true\n");
    served.build("--allow device").fails().says("vendor.example/class=name");
    served.ends();
}

/// What other builds use stays, however little may be used.
#[test]
fn a_daemon_cleans_up_beside_running_builds() {
    for who in [Who::Root, Who::Single] {
        let Some(served) = Served::new(who, "") else { continue };
        let served = again(served, "[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = 1");
        let kitchen = &served.kitchen;
        kitchen.file("a", vec![b'a'; 100_000]);
        let mount = "--mount=type=cache,target=/c,id=here";
        kitchen.dockerfile(&format!(
            "FROM busybox\nCOPY a /\nRUN {mount} cp /a /b; echo begun; until test -e /c/go; do sleep 0.05; done; wc -c < /a > /n\n"
        ));
        let build = served.build("--output type=local,dest=out").starts();
        build.waits_for("begun");
        // One that ends meanwhile leaves nothing.
        kitchen.dockerfile("FROM busybox\nRUN echo gone > /gone\n");
        served.build("").succeeds();
        let listed = || served.buildctl("du --verbose").succeeds().text();
        eventually(|| !listed().contains("echo gone"));
        assert!(listed().contains("COPY a /"), "{who:?}: {}", listed());
        kitchen.dockerfile(&format!("FROM busybox\nRUN {mount} touch /c/go\n"));
        served.build("").succeeds();
        let ended = build.ends();
        assert_eq!(ended.code, Some(0), "{who:?}: {ended:?}");
        assert_eq!(fs::read_to_string(kitchen.world.path("out/n")).unwrap(), "100000\n");
        // And nothing of it, when it has ended.
        eventually(|| listed().contains("Total:\t\t0B") || listed().contains("Total:\t0B"));
        served.ends();
    }
}

/// A disk that has less free than is wanted: all that nobody uses goes.
#[test]
fn free_space_is_made_where_it_is_wanted() {
    for (free, stays) in [("1", true), ("\"100%\"", false)] {
        let Some(served) = Served::new(anybody(), "") else { return };
        let served = again(
            served,
            &format!("[[worker.oci.gcpolicy]]\nall = true\nminFreeSpace = {free}\nmaxUsedSpace = 1000000000"),
        );
        served.kitchen.dockerfile("FROM busybox\nRUN echo kept > /kept\n");
        served.build("").succeeds();
        let listed = || served.buildctl("du --verbose").succeeds().text();
        match stays {
            true => assert!(listed().contains("echo kept"), "{}", listed()),
            false => eventually(|| !listed().contains("echo kept")),
        }
        served.ends();
    }
}
