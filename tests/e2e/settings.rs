//! What a daemon is told by flags and `buildkitd.toml`, as its clients and the machine see it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::certificates::Authority;
use testkit::free_port;

use crate::buildx::{Docker, NEWEST};
use crate::daemon::Served;
use crate::harness::{Invocation, binary, eventually, has_tool, is_root};
use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

/// A daemon whose `buildkitd.toml` says this besides; `before` stands above all tables.
fn told(before: &str, tables: &str, flags: &str) -> Option<Served> {
    let kitchen = Kitchen::new(anybody())?;
    for name in ["buildkitd", "buildctl"] {
        symlink("hullworks", kitchen.world.path(name)).unwrap();
    }
    let common = fs::read_to_string(kitchen.world.path("buildkitd.toml")).unwrap();
    kitchen.world.write("buildkitd.toml", format!("{before}\n{common}\n{tables}\n"));
    Some(Served::again(kitchen, flags))
}

/// `buildctl` at another address.
fn at(served: &Served, address: &str) -> Invocation {
    let world = &served.kitchen.world;
    served.kitchen.who.run(world, world.path("buildctl").to_str().unwrap()).args(["--addr", address])
}

#[test]
fn labels_and_platforms_of_a_worker_are_seen() {
    let tables =
        "[worker.oci]\nplatforms = [\"linux/s390x\"]\n[worker.oci.labels]\nplace = \"of the file\"\nkept = \"yes\"\n";
    let flags = "--oci-worker-labels place=of-the-flag --oci-worker-labels a=b,c=d \
                 --oci-worker-platform linux/amd64 --oci-worker-platform linux/arm/v6";
    let Some(served) = told("", tables, flags) else { return };
    let text = served.buildctl("debug workers --format json").succeeds().text();
    let worker = &serde_json::from_str::<Value>(&text).unwrap()[0];
    let labels = ["place", "kept", "a"].map(|key| worker["labels"][key].as_str().unwrap().to_owned());
    assert_eq!(labels, ["of-the-flag", "yes", "b,c=d"], "{worker}");
    let platforms = worker["platforms"].as_array().unwrap().iter();
    let platforms: Vec<_> = platforms.map(|one| one["architecture"].as_str().unwrap()).collect();
    // Behind them stands what the machine runs beside.
    assert_eq!(platforms[..2], ["amd64", "arm"], "{worker}");
    assert!(!platforms[2..].contains(&"386"), "{worker}");
    assert_eq!(worker["platforms"][1]["variant"], "v6", "{worker}");
    let verbose = served.buildctl("debug workers --verbose").succeeds().text();
    assert!(verbose.contains("linux/amd64,linux/arm/v6") && verbose.contains("of-the-flag"), "{verbose}");
    let filtered = |filter: &str| served.buildctl(&format!("debug workers --filter {filter}")).succeeds().text();
    assert_eq!(filtered("labels.place==of-the-flag").lines().count(), 2);
    assert_eq!(filtered("labels.place==elsewhere").lines().count(), 1);
    if has_tool(NEWEST) {
        let docker = Docker::of(served, NEWEST);
        let shown = docker.run("inspect b --bootstrap").succeeds().text();
        let line = |start: &str| shown.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_default();
        assert!(line("Platforms:").contains(" linux/amd64, linux/arm/v6"), "{shown}");
        assert!(line("place:").ends_with("of-the-flag") && line("kept:").ends_with("yes"), "{shown}");
        docker.served.ends();
    } else {
        served.ends();
    }
}

#[test]
fn frontends_are_switched_off() {
    let Some(served) = told("", "[frontend.\"dockerfile.v0\"]\nenabled = false\n", "") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN true\n");
    served
        .build("")
        .fails()
        .says("frontend `dockerfile.v0` is switched off here")
        .hints("remove `enabled = false` under [frontend.\"dockerfile.v0\"] in buildkitd.toml");
    if has_tool(NEWEST) {
        let docker = Docker::of(served, NEWEST);
        docker.build("context").fails().says("frontend `dockerfile.v0` is switched off here");
        docker.served.ends();
    } else {
        served.ends();
    }
    // The other one is not there yet: refused by its name, and told where it is asked for.
    for (settings, is_wanted) in
        [("enabled = false", false), ("enabled = true", true), ("allowedRepositories = [\"docker.io/x/y\"]", true)]
    {
        let Some(served) = told("", &format!("[frontend.\"gateway.v0\"]\n{settings}\n"), "") else { return };
        served.kitchen.dockerfile("FROM busybox\nRUN true\n");
        let line = "build --frontend=gateway.v0 --opt source=docker.io/x/y --local context=context";
        served.buildctl(line).fails().says("frontend `gateway.v0`");
        served.build("").succeeds();
        let said = served.daemon.said();
        assert_eq!(said.contains("[frontend.\"gateway.v0\"] is not used yet"), is_wanted, "{settings}: {said}");
        served.ends();
    }
}

#[test]
fn rights_are_given_where_both_sides_say_so() {
    let build = |served: &Served, allow: &str| served.build(allow).ends();
    let Some(strict) = told("", "", "") else { return };
    strict.kitchen.dockerfile("FROM busybox\nRUN echo hi\n");
    for right in ["network.host", "security.insecure"] {
        let refused = build(&strict, &format!("--allow {right}"));
        assert_eq!(refused.code, Some(1), "{refused:?}");
        refused.says(&format!("entitlement {right} is not allowed by the builder")).hints(&format!(
            "start it with `--allow-insecure-entitlement {right}`, or list it in `insecure-entitlements`"
        ));
    }
    strict.ends();
    // One device is not all, which it is where none is named.
    let Some(served) = told("", "", "--allow-insecure-entitlement device=vendor.example/class=one") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN echo hi\n");
    assert_eq!(build(&served, "--allow device=vendor.example/class=one").code, Some(0));
    assert_eq!(build(&served, "--allow device=vendor.example/class=one,alias=two").code, Some(0));
    for right in ["device", "device=vendor.example/class=two"] {
        let refused = build(&served, &format!("--allow {right}"));
        assert_eq!(refused.code, Some(1), "{refused:?}");
        refused.says(&format!("entitlement {right} is not allowed by the builder"));
    }
    served.ends();
    for (before, flags) in [("insecure-entitlements = [\"device\"]", ""), ("", "--allow-insecure-entitlement device")] {
        let Some(generous) = told(before, "", flags) else { return };
        generous.kitchen.dockerfile("FROM busybox\nRUN echo hi\n");
        for right in ["device", "device=vendor.example/class=one", "device --allow device=vendor.example/class=one"] {
            let allowed = build(&generous, &format!("--allow {right}"));
            assert_eq!(allowed.code, Some(0), "{allowed:?}");
        }
        // It is no other right.
        assert_eq!(build(&generous, "--allow network.host").code, Some(1));
        if has_tool(NEWEST) {
            generous.kitchen.dockerfile("FROM busybox\nRUN echo hello\n");
            let docker = Docker::of(generous, NEWEST);
            docker.build("--allow device context").succeeds();
            docker.served.ends();
        } else {
            generous.ends();
        }
    }
    let Some(kitchen) = Kitchen::new(anybody()) else { return };
    symlink("hullworks", kitchen.world.path("buildkitd")).unwrap();
    let unknown = Served::daemon(&kitchen, "--allow-insecure-entitlement devices").fails();
    unknown.says("no entitlement named `devices`: there are network.host, security.insecure and device");
    // Of a device that cannot be read, nothing must be left over but an error: without it all devices would be allowed.
    kitchen.world.write("devices.toml", "insecure-entitlements = [\"device=vendor.example/class=one,later=1\"]\n");
    Served::daemon(&kitchen, "--config devices.toml").fails().says("unknown device config key \"later\"");
}

#[test]
fn keys_that_nobody_knows_are_named_and_the_daemon_starts() {
    let tables = "[worker.oci]\nmaxParallelism = 3\nnoise = 1\n[frontend.\"dockerfile.v0\"]\nnonsense = true\n\
                  [weather]\nsun = true\n[registry.\"a.example\"]\nmirror = [\"b.example\"]\n";
    let before = "bogus = 1\nTrace = false\ninsecure-entitlements = [\"network.host\", \"weather.control\"]";
    let Some(served) = told(before, tables, "") else { return };
    let said = served.daemon.said();
    for key in [
        "unknown key `bogus` is ignored",
        "unknown key `worker.oci.maxParallelism` is ignored; did you mean `worker.oci.max-parallelism`?",
        "unknown key `worker.oci.noise` is ignored",
        "unknown key `frontend.\"dockerfile.v0\".nonsense` is ignored",
        "unknown key `weather` is ignored",
        "insecure-entitlements: no entitlement named `weather.control`: there are network.host, security.insecure and device",
        "unknown key `registry.\"a.example\".mirror` is ignored; did you mean `registry.\"a.example\".mirrors`?",
    ] {
        assert!(said.contains(key), "`{key}` is not said: {said}");
    }
    assert_eq!(said.matches("unknown key").count(), 6, "{said}");
    served.kitchen.dockerfile("FROM busybox\nRUN echo hi\n");
    served.build("--allow network.host").succeeds();
    served.ends();
    // A flag that nobody knows is an error.
    let Some(kitchen) = Kitchen::new(anybody()) else { return };
    symlink("hullworks", kitchen.world.path("buildkitd")).unwrap();
    Served::daemon(&kitchen, "--oci-worker-labls a=b").fails().says("--oci-worker-labels");
    Served::daemon(&kitchen, "--oci-worker-labels a").fails().says("--oci-worker-labels");
    Served::daemon(&kitchen, "--oci-worker-platform nowhere/").fails().says("`nowhere/` is not a platform");
}

/// What an ordinary user wrote for builds is not passed over when it cannot be read.
#[test]
fn a_users_own_settings_must_be_readable() {
    let Some(kitchen) = Kitchen::new(Who::Single) else { return };
    kitchen.dockerfile("FROM busybox\n");
    let own = ".config/buildkit/buildkitd.toml";
    kitchen.world.write(own, fs::read(kitchen.world.path("buildkitd.toml")).unwrap());
    kitchen.who.own(&kitchen.world, ".config");
    let build = || kitchen.who.hullworks(&kitchen.world).args(["build", "--root", "state", "context"]);
    build().succeeds();
    fs::set_permissions(kitchen.world.path(own), fs::Permissions::from_mode(0o000)).unwrap();
    build().fails().says("buildkitd.toml`: Permission denied");
}

/// Only root gives files to others.
#[test]
fn a_socket_belongs_to_whom_the_settings_name() {
    needs!(root);
    let owner = |served: &Served| {
        let socket = fs::metadata(served.kitchen.world.path("b.sock")).unwrap();
        (socket.uid(), socket.gid(), socket.mode() & 0o777)
    };
    let dir = testkit::scratch("e2e-client");
    let client = dir.path().join("buildctl");
    fs::copy(binary(), &client).unwrap();
    let everybody_enters = |dir: &Path| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    everybody_enters(dir.path());
    let asks = |served: &Served, gid: u32| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=4242", &format!("--regid={gid}"), "--clear-groups", "--"]).arg(&client).current_dir("/");
        let address = format!("unix://{}", served.kitchen.world.path("b.sock").display());
        command.args(["--addr", &address, "debug", "info"]).output().unwrap().status.success()
    };
    for (grpc, flags, expected) in [
        ("", "", (0, 0, 0o660)),
        ("", "--group 4343", (0, 4343, 0o660)),
        ("", "--group nogroup", (0, 65534, 0o660)),
        ("[grpc]\nuid = 4242\ngid = 4343\n", "", (4242, 4343, 0o660)),
        // The flag counts more.
        ("[grpc]\nuid = 4241\ngid = 4343\n", "--group 4344", (4241, 4344, 0o660)),
    ] {
        let Some(served) = told("", grpc, flags) else { return };
        assert_eq!(owner(&served), expected, "{grpc} {flags}");
        everybody_enters(&served.kitchen.world.path("."));
        let may = |gid: u32| expected.0 == 4242 || expected.1 == gid;
        for gid in [4343, 4344, 1] {
            assert_eq!(asks(&served, gid), may(gid), "{grpc} {flags}: of group {gid}");
        }
        served.ends();
    }
    let Some(kitchen) = Kitchen::new(anybody()) else { return };
    symlink("hullworks", kitchen.world.path("buildkitd")).unwrap();
    Served::daemon(&kitchen, "--group no-such-group").fails().says("--group: there is no group `no-such-group`");
}

#[test]
fn a_daemon_listens_at_several_addresses_at_once() {
    let (port, other) = (free_port(), free_port());
    let flags = format!("--addr tcp://127.0.0.1:{port} --addr tcp://127.0.0.1:{other}");
    let Some(served) = told("[grpc]\naddress = [\"tcp://127.0.0.1:1\"]\n", "", &flags) else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN echo hi > /f\n");
    let line = "build --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
    for address in [port, other].map(|port| format!("tcp://127.0.0.1:{port}")) {
        at(&served, &address).args(line.split(' ')).succeeds();
    }
    served.build("").succeeds().says("CACHED");
    served.ends();
}

/// By `fd://`, several at once and one by its number, as systemd passes them on.
#[test]
fn sockets_of_a_supervisor_take_builds() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let world = &served.kitchen.world;
    served.kitchen.dockerfile("FROM busybox\nRUN echo hi > /f\n");
    for (address, answers) in [("fd://", [true, true]), ("fd://*", [true, true]), ("fd://4", [false, true])] {
        let paths = ["one.sock", "two.sock"].map(|name| world.path(name));
        let sockets = paths.each_ref().map(|path| {
            let _ = fs::remove_file(path);
            let socket = UnixListener::bind(path).unwrap();
            socket.set_nonblocking(false).unwrap();
            OwnedFd::from(socket)
        });
        let mut command = Command::new("sh");
        let script = "export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$@\" 3<&0 4<&1 < /dev/null > /dev/null";
        command.args(["-c", script, "sh"]).arg(world.path("buildkitd"));
        command.args(["--root", "given", "--config", "buildkitd.toml", "--addr", address]).current_dir(world.path(""));
        let [one, two] = sockets;
        let mut daemon =
            command.stdin(Stdio::from(one)).stdout(Stdio::from(two)).stderr(Stdio::null()).spawn().unwrap();
        // Who connects to a daemon that has died is told so: nobody else has its sockets.
        drop(command);
        let asks = |path: &Path, line: &str| {
            let address = format!("unix://{}", path.display());
            at(&served, &address).args(line.split(' ')).ends()
        };
        let build = "build --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
        // Who connects before the daemon is there waits for it; nobody hears at one that it was not to take.
        let ended: Vec<_> =
            paths.iter().zip(answers).filter(|(_, answers)| *answers).map(|(path, _)| asks(path, build)).collect();
        assert!(Command::new("kill").arg(daemon.id().to_string()).status().unwrap().success());
        let status = daemon.wait().unwrap();
        for ended in ended {
            assert_eq!(ended.code, Some(0), "{address}: {ended:?}");
        }
        assert_eq!(status.code(), Some(0), "{address}");
        // They are the supervisor's: whoever comes next finds them.
        assert!(paths.iter().all(|path| path.exists()), "{address}: a socket was removed");
    }
    let missing = served.kitchen.who.run(world, world.path("buildkitd").to_str().unwrap());
    missing.args(["--root", "given", "--addr", "fd://"]).fails().says("no socket was passed on (LISTEN_FDS)");
    served.ends();
}

#[test]
fn steps_find_names_as_the_settings_say() {
    let dns = "[dns]\nnameservers = [\"192.0.2.7\", \"192.0.2.8\"]\noptions = [\"edns0\", \"timeout:3\"]\n\
               searchDomains = [\"a.example\", \"b.example\"]\n";
    let Some(served) = told("", dns, "") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN cat /etc/resolv.conf > /r\n");
    served.build("--output type=local,dest=out").succeeds();
    let text = fs::read_to_string(served.kitchen.world.path("out/r")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    for line in
        ["nameserver 192.0.2.7", "nameserver 192.0.2.8", "options edns0 timeout:3", "search a.example b.example"]
    {
        assert!(lines.contains(&line), "`{line}`: {text}");
    }
    assert_eq!(text.matches("nameserver").count(), 2, "{text}");
    served.ends();
}

#[test]
fn snapshots_are_copies_where_the_flag_says_so_and_the_log_says_how_much() {
    let Some(kitchen) = Kitchen::new(anybody()) else { return };
    for name in ["buildkitd", "buildctl"] {
        symlink("hullworks", kitchen.world.path(name)).unwrap();
    }
    kitchen.dockerfile("FROM busybox\nRUN echo hi > /f && rm /bin/date\nRUN ! test -e /bin/date && cat /f > /g\n");
    let daemon = |kitchen: &Kitchen, level: &str| {
        Served::daemon(kitchen, "--oci-worker-snapshotter=native").env("BUILDKITD_LOG_LEVEL", level)
    };
    daemon(&kitchen, "loud").fails().says("invalid value `loud` for --log-level");
    let quiet = daemon(&kitchen, "error").starts();
    let served = Served { kitchen, daemon: quiet };
    eventually(|| served.buildctl("debug workers").ends().code == Some(0));
    served.daemon.signal("TERM");
    let (kitchen, ended) = (served.kitchen, served.daemon.ends_soon());
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let loud = daemon(&kitchen, "debug").starts();
    loud.waits_until("that it listens", |said| said.contains("listening"));
    let served = Served { kitchen, daemon: loud };
    let workers = served.buildctl("debug workers --verbose").succeeds().text();
    assert!(workers.lines().any(|line| line.ends_with("native") && line.contains("snapshotter")), "{workers}");
    served.build("--output type=local,dest=out").succeeds();
    assert_eq!(fs::read_to_string(served.kitchen.world.path("out/g")).unwrap(), "hi\n");
    assert!(!served.kitchen.world.path("out/bin/date").is_symlink());
    served.ends();
}

/// All keys that the page on BuildKit's file has, with files of this machine in the place of others'. What is not there is
/// warned of, also where it would confine steps more.
#[test]
fn a_daemon_starts_with_every_key_that_buildkit_has() {
    let dir = testkit::scratch("e2e-all-keys");
    let authority = Authority::new("of all keys");
    let server = authority.server();
    let put = |name: &str, text: String| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ca, cert, key) =
        (put("ca.pem", authority.certificate()), put("cert.pem", server.certificate()), put("key.pem", server.key()));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let gc = "gc = true\nreservedSpace = \"30%\"\nmaxUsedSpace = \"60%\"\nminFreeSpace = \"20GB\"\nmax-parallelism = 4\n\
              cniPoolSize = 16\n";
    let worker = |name: &str, own: &str| {
        format!(
            "[worker.{name}]\nenabled = true\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\n{own}{gc}\
             [worker.{name}.labels]\nfoo = \"bar\"\n\
             [[worker.{name}.gcpolicy]]\nreservedSpace = \"512MB\"\nmaxUsedSpace = \"1GB\"\nminFreeSpace = \"10GB\"\n\
             keepDuration = \"48h\"\nfilters = [\"type==source.local\", \"type==exec.cachemount\", \"type==source.git.checkout\"]\n\
             [[worker.{name}.gcpolicy]]\nall = true\nreservedSpace = 1024000000\n"
        )
    };
    let oci = "snapshotter = \"auto\"\nrootless = false\nnoProcessSandbox = false\nbinary = \"\"\n\
               apparmor-profile = \"builds\"\nproxySnapshotterPath = \"/run/snapshotter.sock\"\nselinux = true\n";
    let containerd = "address = \"/run/containerd/containerd.sock\"\nnamespace = \"buildkit\"\n\
                      defaultCgroupParent = \"buildkit\"\napparmor-profile = \"builds\"\n\
                      runtime = { name = \"io.containerd.runc.v2\", path = \"/x\", options = { BinaryName = \"runc\" } }\n";
    let before = "root = \"/nowhere\"\ninsecure-entitlements = [\"network.host\", \"security.insecure\", \"device\"]\n\
                  proxyNetwork = true\nprovenanceEnvDir = \"/etc/buildkit/provenance.d\"\n";
    let tables = format!(
        "[log]\nformat = \"text\"\nlevel = \"info\"\n\
         [dns]\nnameservers = [\"1.1.1.1\", \"8.8.8.8\"]\noptions = [\"edns0\"]\nsearchDomains = [\"example.com\"]\n\
         [grpc]\naddress = [\"tcp://127.0.0.1:1\"]\ndebugAddress = \"127.0.0.1:{}\"\n\
         [grpc.tls]\ncert = \"{cert}\"\nkey = \"{key}\"\nca = \"{ca}\"\n\
         [otel]\nsocketPath = \"/run/buildkit/otel-grpc.sock\"\n\
         [cdi]\ndisabled = true\nspecDirs = [\"/etc/cdi\"]\n\
         [history]\nmaxAge = 172800\nmaxEntries = 50\n{}{}\
         [registry.\"yourmirror.example:5000\"]\nhttp = true\nmirrors = [\"core.example/proxy.docker.io\"]\ninsecure = true\n\
         ca = [\"{ca}\"]\n[[registry.\"yourmirror.example:5000\".keypair]]\nkey = \"{key}\"\ncert = \"{cert}\"\n\
         [frontend.\"dockerfile.v0\"]\nenabled = true\n[frontend.\"gateway.v0\"]\nenabled = true\nallowedRepositories = []\n\
         [system]\nplatformsCacheMaxAge = \"1h\"\nmaxRegistryConcurrency = 4\n\
         [ghacache.sign]\ncmd = \"\"\n[ghacache.verify]\nrequired = false\n[ghacache.verify.policy]\n\
         timestampThreshold = 1\ntlogThreshold = 1\ncertificateIssuer = \"\"\nsubjectAlternativeName = \"\"\nbuildSignerURI = \"\"\n",
        free_port(),
        worker("oci", oci),
        worker("containerd", containerd),
    );
    let Some(served) = told(before, &tables, "--root daemon") else { return };
    let said = served.daemon.said();
    for warning in [
        "worker.oci.apparmor-profile is NOT HEEDED",
        "proxyNetwork is NOT HEEDED",
        "worker.oci.proxySnapshotterPath is not used",
        "worker.oci.selinux is not used",
        "worker.containerd is not used",
    ] {
        assert!(said.contains(warning), "`{warning}` is not said: {said}");
    }
    served.kitchen.dockerfile("FROM busybox\nRUN echo hi\n");
    served.build("").succeeds();
    served.ends();
}
