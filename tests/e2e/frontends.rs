//! What clients and frontends say to each other beside a build: agents, questions, inputs, containers.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::buildx::{Docker, NEWEST, OLDER};
use crate::daemon::Served;
use crate::definitions::field;
use crate::harness::{Invocation, Running, eventually, is_root};
use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

pub fn anyone() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

/// `docker buildx`, with a builder `b` that is the daemon.
pub fn buildx(served: &Served, args: &str) -> Invocation {
    let kitchen = &served.kitchen;
    let docker = kitchen.world.path("docker");
    let socket = kitchen.world.path("b.sock");
    let run = |args: &str| {
        let run = kitchen.who.run(&kitchen.world, "docker-buildx").env("DOCKER_CONFIG", &docker);
        run.env("BUILDX_EXPERIMENTAL", "1").args(args.split_whitespace())
    };
    if !docker.exists() {
        run(&format!("create --name b --driver remote unix://{}", socket.display())).succeeds();
    }
    run(args)
}

/// Puts a program of this machine with its libraries into the context, below `root`.
pub fn pack(kitchen: &Kitchen, program: &str) {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain([program]) {
        let to = kitchen.world.path(format!("context/root{file}"));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    kitchen.who.own(&kitchen.world, "context");
}

/// Whether any file below a directory holds this text.
pub fn anywhere(dir: &Path, text: &str) -> Option<std::path::PathBuf> {
    let found = Command::new("grep").args(["-rlaF", "--", text]).arg(dir).output().unwrap();
    String::from_utf8_lossy(&found.stdout).lines().next().map(Into::into)
}

#[test]
fn a_step_uses_keys_and_never_sees_them() {
    needs!(tool "ssh-keygen");
    needs!(tool "ssh-agent");
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    pack(kitchen, "/usr/bin/ssh-add");
    let key = kitchen.world.path("key");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "e2e", "-f"]).arg(&key).status();
    assert!(made.unwrap().success());
    kitchen.who.own(&kitchen.world, "key");
    let read = |name: &str| fs::read_to_string(kitchen.world.path(name)).unwrap();
    let (public, private) = (read("key.pub"), read("key").lines().nth(2).unwrap().to_owned());
    kitchen.dockerfile(
        "FROM busybox\nCOPY root /\n\
         RUN --mount=type=ssh,required=true,mode=0600 /usr/bin/ssh-add -L > /keys; stat -c %a:%F $SSH_AUTH_SOCK > /about\n\
         RUN --mount=type=ssh,id=other test ! -e /run/buildkit/ssh_agent.0\n\
         RUN --mount=type=ssh,target=/agent,required=true SSH_AUTH_SOCK=/agent /usr/bin/ssh-add -D || echo refused > /x\n",
    );
    let check = |what: &str| {
        let out = |name: &str| read(&format!("{what}/{name}"));
        assert_eq!(out("keys"), public, "{what}");
        assert_eq!((out("about").as_str(), out("x").as_str()), ("600:socket\n", "refused\n"), "{what}");
        fs::remove_dir_all(kitchen.world.path(what)).unwrap();
    };
    served.build("--ssh default=key --output type=local,dest=one").succeeds();
    check("one");
    kitchen.build("--ssh default=key -o type=local,dest=two").succeeds();
    check("two");
    served
        .build("--no-cache")
        .fails()
        .says("no SSH key \"default\" forwarded from the client")
        .hints("lend an agent with `--ssh default`, or a key with `--ssh default=<file>`");

    // An agent, by our client and docker's.
    let socket = kitchen.world.path("agent.sock");
    let agent = kitchen.who.run(&kitchen.world, "ssh-agent").args(["-D", "-a", socket.to_str().unwrap()]).starts();
    eventually(|| socket.exists());
    let add = kitchen.who.run(&kitchen.world, "ssh-add").env("SSH_AUTH_SOCK", &socket).arg("key");
    add.succeeds();
    let line = "--no-cache --ssh default --output type=local,dest=three";
    served.build(line).env("SSH_AUTH_SOCK", &socket).succeeds();
    check("three");
    if crate::harness::has_tool("docker-buildx") {
        let line = "build --builder b --progress=plain --no-cache --ssh default -o type=local,dest=four context";
        buildx(&served, line).env("SSH_AUTH_SOCK", &socket).succeeds();
        check("four");
    }
    agent.signal("TERM");
    drop(agent.ends());
    for state in ["daemon", "state"] {
        assert_eq!(anywhere(&kitchen.world.path(state), &private), None, "the private key is in {state}");
    }
    served.ends();
}

#[test]
fn a_dockerfile_is_asked_in_the_place_of_a_build() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    let asked_of = String::from(
        "# WORD is said\nARG WORD=hello\n# first says it\nFROM busybox AS first\nARG WORD\n\
         RUN --mount=type=secret,id=s,required=true --mount=type=ssh exit 1\nFROM first\nmaintainer me\n",
    );
    kitchen.dockerfile(&asked_of);
    let asked = |request: &str| {
        let ended = served.build(&format!("--opt requestid={request}")).succeeds();
        ended.text()
    };
    assert_eq!(asked("frontend.targets"), "TARGET    DESCRIPTION\nfirst     says it\n(default) \n");
    let outline = "BUILD ARG   VALUE   DESCRIPTION\nWORD        hello   is said\n\n\
                   SECRET   REQUIRED\ns        true\n\nSSH       REQUIRED\ndefault   \n\n";
    assert_eq!(asked("frontend.outline"), outline);
    // What the checks find is told beside it.
    let told = served.build("--progress=rawjson --opt requestid=frontend.outline").succeeds();
    let found: Vec<String> = told
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .flat_map(|line| line["warnings"].as_array().cloned().unwrap_or_default())
        .map(|warning| warning["short"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(found.len(), 2, "{found:?}");
    let checked = asked("frontend.lint");
    assert!(checked.starts_with("\nWARNING: MaintainerDeprecated - https://"), "{checked}");
    assert!(checked.contains("Dockerfile:8\n") && checked.contains("   8 | >>> maintainer me\n"), "{checked}");
    assert!(asked("frontend.subrequests.describe").starts_with("NAME                 VERSION DESCRIPTION\noutline "));
    // Stages that nobody needs are looked at, too; as they stand, without what a base triggers in them.
    kitchen.dockerfile(
        "FROM scratch AS base\nONBUILD WORKDIR x\nFROM base AS unused\nLABEL a b\nFROM scratch\nLABEL a=b\n",
    );
    let checked = asked("frontend.lint");
    assert!(checked.contains("LegacyKeyValueFormat") && !checked.contains("WorkdirRelativePath"), "{checked}");
    served.build("--opt requestid=frontend.bogus").fails().says("unsupported request frontend.bogus");
    served.build("--opt frontend.caps=bogus").fails().says("unsupported frontend capability bogus");

    // The same without a daemon.
    kitchen.dockerfile(&asked_of);
    let ended = kitchen.build("--call=outline").succeeds();
    assert_eq!(ended.text(), outline);
    // The instruction's case is one more.
    let checked = kitchen.build("--check").fails();
    checked.says("error: 2 warnings have been found");
    assert!(checked.text().starts_with("Check complete, 2 warnings have been found!\n\nWARNING: "), "{checked:?}");
    let json = kitchen.build("--call=targets,format=json").succeeds();
    assert!(json.text().contains("\"description\": \"says it\""), "{json:?}");
    if crate::harness::has_tool("docker-buildx") {
        let call = |call: &str| buildx(&served, &format!("build --builder b --progress=plain --call={call} context"));
        let ended = call("outline").succeeds();
        assert!(ended.text().contains("BUILD ARG") && ended.stderr.contains("MaintainerDeprecated"), "{ended:?}");
        assert!(call("targets").succeeds().text().contains("says it"));
        assert!(call("check").fails().text().contains("Check complete, 2 warnings have been found!"));
        kitchen.dockerfile("FROM busybox\nRUN exit 1\n");
        assert!(call("check").succeeds().text().contains("Check complete, no warnings found."));
    }
    served.ends();
}

/// Clients name the image that has the newest syntax; it is not fetched, the built-in frontend has that.
#[test]
fn the_image_of_the_dockerfile_frontend_is_built_in() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    kitchen.dockerfile("# syntax=docker/dockerfile:1.9\nFROM busybox\nRUN echo hi > /f\n");
    let gateway = |source: &str, more: &str| {
        let line = "build --progress=plain --frontend=gateway.v0 --local=context=context --local=dockerfile=context";
        served.buildctl(&format!("{line} --opt source={source} {more}"))
    };
    for source in
        ["dockerfile.v0", "docker/dockerfile", "docker.io/docker/dockerfile:1", "docker/dockerfile-upstream:master"]
    {
        gateway(source, "--output type=local,dest=out").succeeds();
        assert_eq!(fs::read_to_string(kitchen.world.path("out/f")).unwrap(), "hi\n", "{source}");
        fs::remove_dir_all(kitchen.world.path("out")).unwrap();
        let replaced = format!("--opt context:{source}=docker-image://docker.io/library/busybox");
        gateway(source, &replaced).fails().says("frontend `gateway.v0` is not supported yet");
    }
    gateway("docker.io/other/dockerfile", "").fails().says("frontend `gateway.v0` is not supported yet");
    for client in [NEWEST, OLDER] {
        if !crate::harness::has_tool(client) {
            continue;
        }
        let served = Served::new(anyone(), "").expect("there was one");
        served.kitchen.dockerfile("FROM busybox\nRUN echo hi > /f\n");
        let docker = Docker::of(served, client);
        let build = |syntax: &str| {
            docker.build(&format!("--build-arg BUILDKIT_SYNTAX={syntax} -o type=local,dest=out context"))
        };
        build("docker/dockerfile:1").succeeds();
        assert_eq!(docker.read("out/f"), "hi\n");
        build("docker.io/other/dockerfile").fails().says("is not supported yet");
        docker.served.ends();
    }
    served.ends();
}

#[test]
fn a_target_of_bake_is_the_context_of_another() {
    needs!(tool "docker-buildx");
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    kitchen.file("base/Dockerfile", "FROM busybox\nENV WORD=base\nWORKDIR /w\nRUN echo made > a\n");
    kitchen.file("app/Dockerfile", "FROM x AS b\nRUN echo $WORD > b; pwd >> b\nFROM scratch\nCOPY --from=b /w /\n");
    let file = "target \"default\" {\n context = \"context/app\"\n contexts = { x = \"target:base\" }\n \
                output = [\"type=local,dest=out\"]\n}\ntarget \"base\" { context = \"context/base\" }\n";
    kitchen.world.write("docker-bake.hcl", file);
    buildx(&served, "bake --builder b --progress=plain --allow=fs=*").succeeds();
    let read = |name: &str| fs::read_to_string(kitchen.world.path(name)).unwrap();
    assert_eq!((read("out/a"), read("out/b")), ("made\n".into(), "base\n/w\n".into()));
    served.ends();
}

/// Builds that have the result of another one for their context may be the first to want it made; the secret is that one's.
#[test]
fn what_targets_of_bake_share_is_made_with_the_secrets_of_its_own() {
    needs!(tool "docker-buildx");
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    kitchen.file(
        "app/Dockerfile",
        "FROM busybox\nARG N\nRUN --mount=type=secret,id=sec cat /run/secrets/sec > /app; echo $N\n",
    );
    kitchen.file("linked/Dockerfile", "FROM scratch\nCOPY --from=app /app /app\n");
    let linked = "context = \"context/linked\"\n contexts = { app = \"target:app\" }\n secret = [\"id=sec,env=OTHER\"]";
    let file = format!(
        "variable \"N\" {{}}\ntarget \"app\" {{\n context = \"context/app\"\n args = {{ N = N }}\n \
         secret = [\"id=sec,env=SEC\"]\n output = [\"type=cacheonly\"]\n}}\n\
         target \"one\" {{\n {linked}\n output = [\"type=local,dest=out\"]\n}}\n\
         target \"two\" {{\n {linked}\n output = [\"type=cacheonly\"]\n}}\n"
    );
    kitchen.world.write("docker-bake.hcl", file);
    for n in 0..8 {
        let bake = buildx(&served, "bake --builder b --progress=plain --allow=fs=* app two one");
        bake.env("N", n.to_string()).env("SEC", format!("secret {n}")).env("OTHER", "another").succeeds();
        assert_eq!(fs::read_to_string(kitchen.world.path("out/app")).unwrap(), format!("secret {n}"));
    }
    served.ends();
}

#[test]
fn a_definition_comes_on_standard_input() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let definition = definition(&["/bin/sh", "-c", "echo piped > /piped"]);
    let line = "build --progress=plain --output type=local,dest=out";
    served.buildctl(line).stdin(definition.clone()).succeeds();
    assert_eq!(fs::read_to_string(served.kitchen.world.path("out/piped")).unwrap(), "piped\n");
    served.buildctl(line).stdin("no definition").fails().says("standard input is no LLB definition");
    let refused = served.buildctl(&format!("{line} --opt attest:sbom=")).stdin(definition).fails();
    refused.says("option `attest:sbom` is not supported yet");
    served.ends();
}

/// LLB that runs a command on busybox, as bytes: a client of its own would write it so.
pub fn definition(args: &[&str]) -> Vec<u8> {
    let digest = |op: &[u8]| base::Digest::of(op).to_string();
    let platform = field(10, [field(1, std::env::consts::ARCH.replace("x86_64", "amd64")), field(2, "linux")].concat());
    let image = [field(3, field(1, "docker-image://docker.io/library/busybox:latest")), platform.clone()].concat();
    let args: Vec<u8> = args.iter().flat_map(|arg| field(1, arg)).collect();
    let exec = [field(1, [args, field(3, "/")].concat()), field(2, field(3, "/"))].concat();
    let run = [field(1, field(1, digest(&image))), field(2, exec), platform].concat();
    let end = field(1, field(1, digest(&run)));
    [image, run, end].iter().flat_map(|op| field(1, op)).collect()
}

#[test]
fn docker_debugs_in_a_container_and_leaves_nothing() {
    needs!(tool "docker-buildx");
    needs!(tool "script");
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    let marker = format!("{}", 100_000 + std::process::id());
    kitchen.dockerfile(&format!(
        "FROM busybox\nRUN echo made > /f\n\
         RUN printf '#!/bin/sh\\ncat /f; test -t 0 && echo on a terminal; exit 7\\n' > /s && chmod +x /s\n\
         RUN printf '#!/bin/sh\\nsleep {marker} & echo begun; sleep {marker}\\n' > /l && chmod +x /l\n"
    ));
    buildx(&served, "inspect b").succeeds();
    // Its monitor wants a terminal.
    let debug = |program: &str| {
        let line = format!(
            "exec script -qec 'docker-buildx debug --builder b --on=always --invoke {program} build --progress=plain \
             context' /dev/null >&2"
        );
        let run = kitchen.who.run(&kitchen.world, "sh").args(["-c", &line]);
        run.env("DOCKER_CONFIG", kitchen.world.path("docker")).env("BUILDX_EXPERIMENTAL", "1").starts()
    };
    let client = debug("/s");
    let said = |said: &str| said.lines().any(|line| line.trim() == "on a terminal") && said.contains("exit code: 7");
    client.waits_until("the exit code", said);
    let config = kitchen.world.path("docker");
    vanish(client, &config);
    // A client that vanishes takes its containers with it.
    let client = debug("/l");
    client.waits_until("the beginning", |said| said.lines().any(|line| line.trim() == "begun"));
    // It says so before its programs have begun.
    eventually(|| runs(&marker));
    vanish(client, &config);
    eventually(|| !runs(&marker));
    served.ends();
}

/// Where a step failed, the container stands on what the step left; and that goes with the client.
#[test]
fn docker_debugs_what_a_failed_step_left() {
    needs!(tool "docker-buildx");
    needs!(tool "script");
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    kitchen.dockerfile(
        "FROM busybox\nRUN printf '#!/bin/sh\\ncat /left; exit 7\\n' > /s && chmod +x /s\n\
         RUN echo seen-$((40 + 2)) > /left; exit 3\n",
    );
    buildx(&served, "inspect b").succeeds();
    let kept = |what: &str| served.buildctl("du --verbose").succeeds().text().matches(what).count();
    let line = "exec script -qec 'docker-buildx debug --builder b --on=error --invoke /s build --progress=plain context' \
                /dev/null >&2";
    let run = kitchen.who.run(&kitchen.world, "sh").args(["-c", line]);
    let client = run.env("DOCKER_CONFIG", kitchen.world.path("docker")).env("BUILDX_EXPERIMENTAL", "1").starts();
    client.waits_until("the exit code", |said| said.contains("seen-42") && said.contains("exit code: 7"));
    assert_eq!(kept("seen-$"), 1);
    vanish(client, &kitchen.world.path("docker"));
    eventually(|| kept("seen-$") == 0);
    served.ends();
}

/// Kills docker's client, which outlives the `script` that gave it a terminal.
fn vanish(client: Running, config: &Path) {
    let mark = format!("DOCKER_CONFIG={}", config.display());
    let is_its = |pid: &Path| {
        let environ = fs::read(pid.join("environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(|pid| is_its(pid));
    for pid in processes {
        // Some end by themselves when another does.
        let _ = Command::new("kill").args(["-s", "KILL"]).arg(pid.file_name().unwrap()).status();
    }
    drop(client.ends());
}

/// Whether a process sleeps so long.
fn runs(seconds: &str) -> bool {
    let wanted = format!("sleep\0{seconds}\0");
    let lines =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line) == wanted)
}
