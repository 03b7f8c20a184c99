//! BuildKit's own `buildctl` with our daemon. Debian has none: whoever has one puts it as `upstream-buildctl` into PATH or
//! the directory of `HULLWORKS_TOOLS`.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::daemon::Served;
use crate::frontends::definition;
use crate::harness::{Invocation, eventually, is_root};
use crate::kitchen::ran;
use crate::needs;
use crate::who::Who;

/// BuildKit's client, with our daemon.
fn theirs(served: &Served, args: &str) -> Invocation {
    let world = &served.kitchen.world;
    let client = served.kitchen.who.run(world, "upstream-buildctl");
    let socket = format!("unix://{}", world.path("b.sock").display());
    client.env("DOCKER_CONFIG", world.path("docker")).args(["--addr", &socket]).args(args.split_whitespace())
}

/// A build by it.
pub fn builds(served: &Served, args: &str) -> Invocation {
    let line = "build --progress=plain --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
    theirs(served, &format!("{line} {args}"))
}

/// Which keys messages for programs have, as paths, each with what it holds. Maps from digests have any key.
pub fn keys(raw: &str) -> BTreeSet<String> {
    fn walk(path: &str, value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let key = if key.starts_with("sha256:") { "*" } else { key };
                    walk(&format!("{path}.{key}"), value, found);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| walk(path, value, found)),
            Value::Null => _ = found.insert(format!("{path}: null")),
            Value::Bool(_) => _ = found.insert(format!("{path}: flag")),
            Value::Number(_) => _ = found.insert(format!("{path}: number")),
            Value::String(_) => _ = found.insert(format!("{path}: text")),
        }
    }
    let mut found = BTreeSet::new();
    for line in raw.lines().filter(|line| line.starts_with('{')) {
        walk("", &serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")), &mut found);
    }
    found
}

/// What programs read has the same keys, whichever client writes it.
#[test]
fn our_client_tells_programs_all_that_buildkit_s_does() {
    needs!(tool "upstream-buildctl");
    let Some(served) = Served::new(anybody(), "") else { return };
    let kitchen = &served.kitchen;
    let told = |build: &dyn Fn(&str) -> Invocation| {
        served.buildctl("prune --all").succeeds();
        kitchen.file("f", "f");
        kitchen.dockerfile(
            "from busybox AS a\nCOPY f /f\nRUN echo out; echo err >&2\nFROM scratch\nCOPY --link --from=a /f /g\n",
        );
        let push = format!("--output type=image,name={}/told:1,push=true", kitchen.registry.host());
        let lines = ["--output type=local,dest=told", push.as_str()].map(|line| build(line).succeeds().stderr);
        kitchen.dockerfile("FROM busybox\nRUN exit 3\n");
        let failed = build("").fails().stderr;
        keys(&format!("{}\n{failed}", lines.join("\n")))
    };
    let line = "build --progress=rawjson --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
    let ours = told(&|args| served.buildctl(&format!("{line} {args}")));
    let theirs = told(&|args| theirs(&served, &format!("{line} {args}")));
    assert_eq!(ours, theirs);
    served.ends();
}

/// It closes its session when a build is refused, and complained of what reached it then.
#[test]
fn buildkit_s_client_takes_a_refusal_calmly() {
    needs!(tool "upstream-buildctl");
    let Some(served) = Served::new(anybody(), "") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN echo begun && sleep 1000\n");
    let client = served.build("").starts();
    client.waits_for("begun");
    served.daemon.signal("TERM");
    served.daemon.waits_until("no new builds", |said| said.contains("no new builds"));
    for _ in 0..20 {
        let refused = builds(&served, "").fails();
        refused.says("the daemon is about to end: try again");
        assert!(!refused.stderr.contains("server connection error"), "{refused:?}");
    }
    client.signal("INT");
    drop(client.ends());
    let daemon = served.daemon.ends_soon();
    assert_eq!(daemon.code, Some(0), "{daemon:?}");
}

/// What runs when a build is given up is told as given up, to whoever listens and in the record.
#[test]
fn a_step_of_a_build_that_is_cancelled_is_told_as_cancelled() {
    needs!(tool "upstream-buildctl");
    let Some(served) = Served::new(anybody(), "") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN echo begun && sleep 1000\n");
    for client in [builds(&served, ""), served.build("")] {
        let client = client.starts();
        client.waits_for("begun");
        client.signal("INT");
        let ended = client.ends_soon();
        let step =
            ended.stderr.lines().find(|line| line.contains("RUN echo begun")).and_then(|line| line.split(' ').next());
        ended.says(&format!("{} CANCELED\n", step.unwrap_or_else(|| panic!("{ended:?}"))));
    }
    served.ends();
}

/// Scripts take apart what is printed: whichever client it is, it prints the same.
#[test]
fn our_client_prints_what_buildkit_s_prints() {
    needs!(tool "upstream-buildctl");
    let Some(served) = Served::new(anybody(), "--oci-worker-labels a=b --oci-worker-labels place.of.it=here") else {
        return;
    };
    let kitchen = &served.kitchen;
    let both = |line: &str| {
        let (ours, theirs) = (served.buildctl(line).succeeds().text(), theirs(&served, line).succeeds().text());
        assert_eq!(ours.replace('\t', "→"), theirs.replace('\t', "→"), "{line}");
        ours
    };
    let all = [
        "debug workers",
        "debug workers -v",
        "debug info",
        "debug histories",
        "du",
        "du -v",
        "du --filter type==regular",
    ];
    for line in all {
        both(line);
    }
    kitchen.file("f", "some");
    kitchen.dockerfile("FROM busybox\nCOPY f /f\nRUN --mount=type=cache,target=/c echo said && echo x > /c/x\n");
    for _ in 0..3 {
        served.build("--no-cache --ref-file ref").succeeds();
    }
    let reference = fs::read_to_string(kitchen.world.path("ref")).unwrap();
    eventually(|| served.buildctl("debug histories").succeeds().text().matches("COMPLETE").count() >= 3);
    served.buildctl(&format!("debug ctl --pin {reference}")).succeeds();
    for line in all {
        both(line);
    }
    assert!(both("du -v").contains(" +0000 UTC\n"));
    assert!(both("debug histories").contains("\t*\n"));
    assert!(both(&format!("debug logs --progress=plain {reference}")).contains("said"));
    both(&format!("debug logs --trace {reference}"));
    let digest = served.buildctl("debug histories --format {{.Record.Logs.Digest}}").succeeds().text();
    both(&format!("debug get {}", digest.lines().next().unwrap()));
    both("prune --filter id==nothing");
    served.ends();
}

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

#[test]
fn buildkit_s_client_builds_by_our_daemon() {
    needs!(tool "upstream-buildctl");
    let Some(served) = Served::new(anybody(), "") else { return };
    let kitchen = &served.kitchen;
    let host = kitchen.registry.host();
    kitchen.file("a", "one");
    kitchen.file("d/b", "two");
    kitchen.file(".dockerignore", "c*\n");
    kitchen.file("c", "not this");
    kitchen.file("secret", "hush");
    kitchen.dockerfile(
        "FROM busybox\nCOPY . /x/\nARG WORD\n\
         RUN --mount=type=secret,id=s test \"$(cat /run/secrets/s)\" = hush && echo $WORD > /word && ls /x > /ls\n",
    );
    let args = "--secret id=s,src=context/secret --opt build-arg:WORD=said";
    let read = |name: &str| fs::read_to_string(kitchen.world.path(name)).unwrap();
    let line = format!("{args} --output type=local,dest=out --ref-file ref --trace trace.json");
    builds(&served, &line).succeeds().says("transferring context:");
    assert_eq!(
        ["out/x/a", "out/x/d/b", "out/word", "out/ls"].map(read),
        ["one", "two", "said\n", "Dockerfile\na\nd\nsecret\n"]
    );
    assert!(read("trace.json").lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert!(theirs(&served, "debug histories").succeeds().text().contains(&read("ref")));

    // Of a context that is known only what changed; all kinds of output, several at once.
    kitchen.file("d/b", "three");
    fs::remove_file(kitchen.world.path("context/a")).unwrap();
    builds(&served, &format!("{args} --output type=local,dest=out")).succeeds();
    assert_eq!((read("out/x/d/b"), read("out/ls")), ("three".into(), "Dockerfile\nd\nsecret\n".into()));
    let outputs = "--output type=oci,dest=x.tar --output type=tar,dest=y.tar --output type=docker,dest=z.tar";
    builds(&served, &format!("{args} {outputs}")).succeeds().says("CACHED");
    let listed = |archive: &str| kitchen.world.run("tar").args(["tf", archive]).succeeds().text();
    assert!(listed("x.tar").contains("index.json") && listed("z.tar").contains("manifest.json"));
    assert!(listed("y.tar").lines().any(|line| line == "ls"));
    builds(&served, &format!("{args} --output type=oci,tar=false,dest=layout")).succeeds();
    assert!(read("layout/index.json").contains("sha256:"));
    let line = format!("{args} --metadata-file meta.json --output type=image,name={host}/x/y:1,push=true");
    builds(&served, &line).succeeds().says("pushing manifest for");
    let (_, manifest) = kitchen.registry.manifest("x/y", "1").unwrap();
    let meta: Value = serde_json::from_str(&read("meta.json")).unwrap();
    assert_eq!(meta["containerimage.digest"], base::Digest::of(&manifest).to_string(), "{meta}");

    // Caches, there and back.
    let to = format!("--export-cache type=registry,ref={host}/c:1,mode=max --export-cache type=local,dest=cache");
    builds(&served, &format!("{args} {to}")).succeeds().says("exporting cache");
    for from in [format!("type=registry,ref={host}/c:1"), "type=local,src=cache".to_owned()] {
        theirs(&served, "prune --all").succeeds();
        builds(&served, &format!("{args} --import-cache {from}")).succeeds().says("CACHED");
    }
    let rules = r#"{"rules":[{"action":"DENY","selector":{"identifier":"docker-image://*busybox*"}}]}"#;
    kitchen.world.write("policy.json", rules);
    builds(&served, &format!("{args} --no-cache --source-policy-file policy.json")).fails().says("denied by policy");

    // Its errors show lines of our files, and with --debug where they were made.
    kitchen.dockerfile("FROM busybox\nRUN echo oops && exit 7\n");
    let failed = builds(&served, "").fails();
    failed.says("   2 | >>> RUN echo oops && exit 7").says("exit code: 7");
    theirs(&served, "--debug build --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context")
        .fails()
        .says("hullworks");
    kitchen.dockerfile("FROM busybox\nCOPY nothing /\n");
    builds(&served, "").fails().says("\"/nothing\": not found");
    builds(&served, "--allow network.host").fails().says("network.host");
    let raw = builds(&served, "").args(["--progress=rawjson"]).fails();
    assert!(raw.stderr.lines().next().is_some_and(|line| serde_json::from_str::<Value>(line).is_ok()), "{raw:?}");
    served.ends();
}

#[test]
fn buildkit_s_client_looks_after_our_daemon() {
    needs!(tool "upstream-buildctl");
    let Some(served) = Served::new(anybody(), "--oci-worker-labels place=here") else { return };
    let kitchen = &served.kitchen;
    let monitor = theirs(&served, "debug monitor").starts();
    // LLB comes on standard input, and is shown as ours shows it.
    let llb = definition(&["/bin/sh", "-c", "echo piped | tee /piped"]);
    let line = "build --progress=plain --output type=local,dest=out --ref-file ref";
    theirs(&served, line).stdin(llb.clone()).succeeds();
    assert_eq!(fs::read_to_string(kitchen.world.path("out/piped")).unwrap(), "piped\n");
    for flag in ["", "--dot"] {
        let dumps = |client: Invocation| client.stdin(llb.clone()).succeeds().text();
        let line = format!("debug dump-llb {flag}");
        assert_eq!(dumps(served.buildctl(&line)), dumps(theirs(&served, &line)), "{flag}");
    }

    let ask = |line: &str| theirs(&served, line).succeeds().text();
    assert!(ask("debug workers --verbose").contains("place:"), "labels");
    let json = |line: &str| -> Value {
        let text = theirs(&served, line).args(["--format", "{{json .}}"]).succeeds().text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let worker = json("debug workers");
    assert_eq!(worker[0]["labels"]["place"], "here", "{worker}");
    assert!(ask("debug info").contains("hullworks"));
    let reference = fs::read_to_string(kitchen.world.path("ref")).unwrap();
    eventually(|| ask("debug histories").contains("COMPLETE"));
    assert!(ask("debug histories").contains(&reference));
    let logs = theirs(&served, &format!("debug logs --progress=plain {reference}")).succeeds();
    assert!(format!("{}{}", logs.text(), logs.stderr).contains("piped"), "{logs:?}");
    let record = json("debug histories");
    let logs = record["record"]["logs"]["digest"].as_str().unwrap_or_else(|| panic!("{record}"));
    assert!(theirs(&served, &format!("debug get {logs}")).succeeds().stdout.windows(5).any(|bytes| bytes == b"piped"));
    ask(&format!("debug ctl --pin {reference}"));
    ask("prune-histories");
    assert!(ask("debug histories").contains(&reference), "a record that is pinned was removed");
    ask(&format!("debug ctl --unpin {reference}"));
    ask("prune-histories");
    assert!(!ask("debug histories").contains(&reference));
    monitor.prints("DELETED");

    let listed = ask("du --verbose");
    assert!(listed.contains("Type:") && listed.contains("Total:"), "{listed}");
    // The head of the table only.
    assert_eq!(ask("du --filter type==source.local").lines().count(), 1);
    assert!(ask("du --filter type==regular").lines().count() > 1);
    ask("prune --filter type==source.local");
    ask("prune --all");
    assert!(ask("du").contains("Total:\t\t0B"));
    // Connections are passed on.
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    assert!(theirs(&served, "dial-stdio").stdin(PREFACE).starts().ends_soon().stdout.len() >= 9);
    served.ends();
    drop(monitor.ends());
}

/// Its stores lock each blob while it is written, whatever the directory is called.
#[test]
fn buildkit_s_client_takes_two_caches_in_one_directory() {
    needs!(tool "upstream-buildctl");
    let Some(served) = Served::new(anybody(), "") else { return };
    served.kitchen.file("f", "content");
    served.kitchen.dockerfile("FROM busybox\nCOPY f /\nRUN cat /f > /g\n");
    for (n, other) in ["cache0", "./cache1"].into_iter().enumerate() {
        let line = format!("--export-cache type=local,dest=cache{n} --export-cache type=local,dest={other},mode=max");
        builds(&served, &line).succeeds();
        let line = format!("--cache-from type=local,src=cache{n}");
        let read = served.kitchen.build_on(&format!("state{n}"), &line).succeeds();
        assert!(ran(&read).is_empty(), "{read:?}");
    }
    served.ends();
}
