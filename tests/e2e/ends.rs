//! Every build ends: however many stages it has, whatever it waits for when it is told to stop.

use std::fs;
use std::time::{Duration, Instant};

use hyper::Method;
use testkit::Fault;
use testkit::registry::Action;

use crate::harness::memory;
use crate::kitchen::Kitchen;
use crate::who::Who;

/// Many stages begin at once on a fresh state, several of them equal, and look up the same users and groups.
#[test]
fn builds_of_many_stages_with_names_of_users_end() {
    let Some(kitchen) = Kitchen::below(Who::Root, &memory()) else { return };
    let users = "RUN printf 'bob:x:1000:1000::/:/bin/sh\\nalice:x:1001:1002::/:/bin/sh\\n' >> /etc/passwd && \
                 printf 'staff:x:50:\\n' >> /etc/group";
    let stage = |n: usize| {
        let (file, same) = (n % 4, n % 3);
        format!(
            "FROM busybox AS s{n}\n{users}; echo {same} > /same\nCOPY --chown=bob:staff f0 /a\n\
             COPY --chown=alice f{file} /b{same}\nRUN stat -c '%u %g' /a /b{same} > /owners\n"
        )
    };
    let copies = |n| format!("COPY --from=s{n} /owners /{n}\nCOPY --from=s{n} --chown=0:0 /a /a{n}\n");
    let stages: String = (0..12).map(stage).collect();
    kitchen.dockerfile(&format!("{stages}FROM scratch\n{}", (0..12).map(copies).collect::<String>()));
    (0..4).for_each(|n| kitchen.file(&format!("f{n}"), "the same"));
    for round in 0..3 {
        // Beside each other, so that none has the machine for itself.
        let states = (0..4).map(|n| format!("state{round}-{n}"));
        let builds: Vec<_> =
            states.map(|state| (kitchen.build_on(&state, &format!("--output out-{state}")).starts(), state)).collect();
        for (build, state) in builds {
            let ended = build.ends_soon();
            assert_eq!(ended.code, Some(0), "{ended:?}");
            for n in 0..12 {
                let owners = fs::read_to_string(kitchen.world.path(format!("out-{state}/{n}"))).unwrap();
                assert_eq!(owners, "1000 50\n1001 1002\n", "{ended:?}");
            }
            fs::remove_dir_all(kitchen.world.path(state)).unwrap();
        }
    }
}

/// The moment does not matter: what is waited for is given up.
#[test]
fn a_build_that_waits_for_a_registry_or_a_secret_stops_when_it_is_told_to() {
    for who in [Who::Root, Who::Single] {
        let slowly = || Action::Drip(1, Duration::from_secs(1));
        // Of two blobs the second one is the layer.
        let waits = [
            ("a manifest", Fault::on(Method::GET, "/manifests/", Action::Hang), "/manifests/", 1, ""),
            ("a config", Fault::on(Method::GET, "/blobs/", Action::Hang), "/blobs/", 1, ""),
            ("the start of a layer", Fault::on(Method::GET, "/blobs/", Action::Hang).after(1), "/blobs/", 2, ""),
            ("all of a layer", Fault::on(Method::GET, "/blobs/", slowly()).after(1), "/blobs/", 2, ""),
            ("an upload", Fault::on(Method::POST, "/uploads/", Action::Hang), "/uploads/", 1, "push"),
            ("a secret", Fault::on(Method::GET, "/nothing/", Action::Hang), "/blobs/", 2, "secret"),
        ];
        for (what, fault, path, requests, extra) in waits {
            let Some(kitchen) = Kitchen::below(who, &memory()) else { continue };
            let secret = if extra == "secret" { "--mount=type=secret,id=s " } else { "" };
            kitchen.dockerfile(&format!("FROM busybox\nRUN {secret}true\n"));
            let args = match extra {
                "push" => format!("--output type=image,name={}/new,push=true", kitchen.registry.host()),
                "secret" => "--secret id=s,src=context/pipe".to_owned(),
                _ => String::new(),
            };
            kitchen.file("pipe", "");
            fs::remove_file(kitchen.world.path("context/pipe")).unwrap();
            kitchen.world.run("mkfifo").arg("context/pipe").succeeds();
            who.own(&kitchen.world, "context");
            kitchen.registry.fault(fault);
            let running = kitchen.build(&args).starts();
            let began = Instant::now();
            while kitchen.registry.requests().iter().filter(|seen| seen.path.contains(path)).count() < requests {
                assert!(began.elapsed() < Duration::from_secs(60), "{who:?}: {what} was never asked for");
                std::thread::sleep(Duration::from_millis(1));
            }
            if extra == "secret" {
                running.waits_for("RUN --mount=type=secret,id=s true");
            }
            // As timeout(1) does: to the process, and at once to its group. It is one signal.
            running.signal("INT");
            running.signal("INT");
            let ended = running.ends_soon();
            assert_eq!(ended.code, Some(1), "{who:?}: {what}: {ended:?}");
            ended.says("build cancelled by SIGINT");
            let left = |name: &str| {
                let entries = fs::read_dir(kitchen.world.path("state/hullworks").join(name)).into_iter().flatten();
                let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                names.filter(|name| name.starts_with('t') && name != "trash").collect::<Vec<_>>()
            };
            assert_eq!((left("content/ingest"), left("snapshots/1")), (vec![], vec![]), "{who:?}: {what}");
        }
    }
}
