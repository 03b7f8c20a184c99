//! What people meet who use the program for the first time: help, typos, and what is found out before a build, not after it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::harness::{is_root, path};
use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

#[test]
fn help_is_a_command_and_typos_are_understood() {
    let Some(kitchen) = Kitchen::new(if is_root() { Who::Root } else { Who::Single }) else { return };
    let run = |line: &str| kitchen.who.hullworks(&kitchen.world).args(line.split_whitespace());
    assert!(run("help").succeeds().text().contains("\nCommands:\n"));
    assert!(run("help build").succeeds().text().contains("--build-context"));
    assert!(run("buildctl help prune").succeeds().text().contains("--keep-duration"));
    run("biuld .").fails().says("unrecognized subcommand `biuld`").hints("did you mean `build`?");
    let unknown = run("buildctl prun").ends();
    assert_eq!(unknown.code, Some(3), "{unknown:?}");
    unknown.says("`prun`").hints("did you mean `prune`?");
    run("nothing-like-it").fails().hints("--help lists the commands");
    kitchen.dockerfile("FROM scratch\n");
    for line in ["build context -o type=local,dst=out", "build context -o dst=out"] {
        run(line).fails().says("unknown key `dst`, did you mean dest=out?");
    }
}

#[test]
fn a_variable_for_clients_of_a_daemon_is_told_to_mean_nothing() {
    let Some(kitchen) = Kitchen::new(if is_root() { Who::Root } else { Who::Single }) else { return };
    kitchen.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    let build = || kitchen.build("-o out");
    assert!(!build().succeeds().stderr.contains("BUILDKIT_HOST"));
    build().env("BUILDKIT_HOST", "tcp://nowhere.example:1").succeeds().says(
        "BUILDKIT_HOST is not used here: hullworks works without a daemon; `hullworks buildctl` asks the one at \
         tcp://nowhere.example:1",
    );
}

#[test]
fn outputs_are_looked_at_before_the_build() {
    let Some(kitchen) = Kitchen::new(Who::Single) else { return };
    let (who, world) = (kitchen.who, &kitchen.world);
    kitchen.dockerfile("FROM busybox\nRUN echo ran\n");
    world.write("locked/image.tar", "");
    who.own(world, "locked");
    let mode = |name: &str, mode| fs::set_permissions(world.path(name), fs::Permissions::from_mode(mode)).unwrap();
    mode("locked/image.tar", 0o444);
    mode("locked", 0o555);
    for (output, where_to) in [
        ("type=oci,dest=locked/image.tar", "locked/image.tar"),
        ("type=oci,dest=locked/new.tar", "locked"),
        ("type=local,dest=locked", "locked"),
        ("type=local,dest=locked/a/b", "locked"),
    ] {
        let failed = kitchen.build(&format!("-o {output}")).fails();
        assert!(
            failed.stderr.contains("cannot write to `")
                && failed.stderr.contains(&format!("{where_to}`: permission denied")),
            "{failed:?}"
        );
        assert!(!failed.stderr.contains("#1 "), "nothing was built: {failed:?}");
        let frontend = "build --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
        let failed = who.daemonless(world).args(frontend.split_whitespace()).args(["--output", output]).fails();
        failed.says("permission denied");
    }
    mode("locked", 0o755);
    for (one, two) in
        [("type=local,dest=out", "type=local,dest=./out"), ("type=oci,dest=x.tar", "type=docker,dest=x.tar")]
    {
        kitchen.build(&format!("-o {one} -o {two}")).fails().says("two outputs go to `");
    }
    // What is no file takes all that it gets.
    kitchen.build("-o type=oci,dest=/dev/null -o type=tar,dest=/dev/null").succeeds();
}

#[test]
fn who_has_one_id_is_told_why() {
    let Some(kitchen) = Kitchen::new(Who::Single) else { return };
    kitchen.dockerfile("FROM busybox\nRUN true\n");
    let ended = kitchen.build("").succeeds();
    ended.says("warning: steps run with one user id, as root only: ");
    kitchen.dockerfile("FROM busybox\nRUN busybox chown 7 /bin\n");
    let failed = kitchen.build("").fails();
    assert!(failed.stderr.contains("hint: steps have one id here: a range "), "{failed:?}");
    kitchen.dockerfile("FROM busybox\nRUN true\n");
    assert_eq!(ended.stderr.matches("one user id").count(), 1, "{ended:?}");
    assert!(!kitchen.build("--progress=quiet -o type=oci,dest=x.tar").succeeds().stderr.contains("one user id"));
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile("FROM busybox\nRUN true\n");
    assert!(!kitchen.build("").succeeds().stderr.contains("one user id"));
}

/// No program, one that refuses, no range.
#[test]
fn what_a_user_lacks_for_more_ids_is_named() {
    needs!(root);
    let Some(kitchen) = Kitchen::new(Who::Ranges) else { return };
    kitchen.dockerfile("FROM busybox\nRUN true\n");
    let world = &kitchen.world;
    let build = |path: &OsStr| {
        let line = ["build", "--progress=plain", "--config=buildkitd.toml", "--root=state", "context"];
        let mut path_is = OsString::from("PATH=");
        path_is.push(path);
        kitchen.who.run(world, "env").arg(path_is).arg(world.path("hullworks")).args(line).succeeds()
    };
    let says = |path: &OsStr, why: &str| {
        build(path).says(&format!("warning: steps run with one user id, as root only: {why}"));
    };
    assert!(!build(&path()).stderr.contains("one user id"));
    says("/nowhere".as_ref(), "cannot run `newgidmap`: ");
    let refusing = world.write("refusing/newgidmap", "#!/bin/sh\necho not today >&2\nexit 1\n");
    fs::set_permissions(&refusing, fs::Permissions::from_mode(0o755)).unwrap();
    says(refusing.parent().unwrap().as_os_str(), "`newgidmap` failed: not today\n");
    world.write("etc/subuid", "somebody-else:200000:65536\n");
    says(&path(), "`/etc/subgid` has no range for us and `/etc/subuid` has no range for us\n");
}

#[test]
fn programs_of_other_platforms_are_told_apart() {
    let Some(kitchen) = Kitchen::new(if is_root() { Who::Root } else { Who::Single }) else { return };
    let (here, other) = match std::env::consts::ARCH {
        "aarch64" => ("linux/arm64", "linux/amd64"),
        _ => ("linux/amd64", "linux/arm64"),
    };
    kitchen.file("bare", "\u{7f}ELF, but no program");
    kitchen.dockerfile("FROM scratch\nCOPY --chmod=755 bare /\nRUN [\"/bare\"]\n");
    let failed = kitchen.build("").fails();
    failed.says("   3 | >>> RUN [\"/bare\"]\n").says("exec /bare: exec format error");
    // As BuildKit's runtime ends.
    failed.says("process \"/bare\" did not complete successfully: exit code: 1\n").hints(&format!(
        "the program is for another platform than {here}, or a script without a `#!` line: see what the image's base is \
         (`FROM --platform`)"
    ));
    kitchen.build(&format!("--platform {other}")).fails().hints(&format!(
        "the step is for {other} and this machine is {here}: register an emulator in binfmt_misc (the packages \
         qemu-user-static and binfmt-support do), or build on a machine of that platform"
    ));
    // What a program says of something else.
    kitchen.dockerfile("FROM busybox\nRUN echo 'plugin: Exec format error' >&2; exit 1\n");
    let failed = kitchen.build("").fails();
    assert!(!failed.stderr.contains("for another platform"), "{failed:?}");
}

#[test]
fn a_system_is_not_laid_out_over() {
    let Some(kitchen) = Kitchen::new(if is_root() { Who::Root } else { Who::Single }) else { return };
    let install = |dir: &str| kitchen.who.hullworks(&kitchen.world).args(["install", dir]);
    install("tree").succeeds();
    install("tree").succeeds();
    kitchen.world.write("system/etc/passwd", "root:x:0:0:ann:/root:/bin/sh\n");
    kitchen.who.own(&kitchen.world, "system");
    let refused = install("system").fails();
    refused.says("`system/etc/passwd` is that of another system");
    refused.hints(
        "name an empty directory; a system gets the program alone: copy it to /usr/local/bin, and link buildkitd, buildctl and \
         buildctl-daemonless.sh to it there",
    );
    let passwd = fs::read_to_string(kitchen.world.path("system/etc/passwd")).unwrap();
    assert_eq!((passwd.as_str(), kitchen.world.path("system/usr").exists()), ("root:x:0:0:ann:/root:/bin/sh\n", false));
}

#[test]
fn paths_that_are_not_in_the_context_are_guessed_or_explained() {
    let Some(kitchen) = Kitchen::new(if is_root() { Who::Root } else { Who::Single }) else { return };
    kitchen.file("src/main.c", "int main;");
    kitchen.file("npmrc", "");
    for (copy, missing, hint) in [
        ("COPY scr/main.c /", "/scr/main.c", "did you mean `src/main.c`?"),
        ("COPY src/mian.c /", "/src/mian.c", "did you mean `src/main.c`?"),
        (
            "COPY ../fu/npmrc /",
            "/fu/npmrc",
            "`../fu/npmrc` is outside of the context: only what is in it can be copied",
        ),
    ] {
        kitchen.dockerfile(&format!("FROM scratch\n{copy}\n"));
        kitchen.build("").fails().says(&format!("\"{missing}\": not found")).hints(hint);
    }
    // What is excluded is not proposed, nor what is nothing like it.
    kitchen.file(".dockerignore", "src\n");
    kitchen.dockerfile("FROM scratch\nCOPY scr/main.c /\n");
    assert!(!kitchen.build("").fails().stderr.contains("did you mean"));
}
