//! Devices of the machine for steps (Container Device Interface), as daemons and builds without one give them.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::Value;

use crate::daemon::Served;
use crate::harness::{Invocation, is_root};
use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

/// A variable, a device and a mount; `DIR` is the world's.
const SPEC: &str = r#"cdiVersion: "0.6.0"
kind: "vendor.example/device"
containerEdits:
  env:
  - COMMON=yes
devices:
- name: one
  annotations:
    org.mobyproject.buildkit.device.class: gadget
  containerEdits:
    env:
    - ONE=injected
    deviceNodes:
    - path: /dev/vendor/zero
      hostPath: /dev/zero
    mounts:
    - hostPath: DIR/library
      containerPath: /opt/library
      options: [ro, nosuid, nodev, bind]
- name: two
  containerEdits:
    env: ["TWO=injected"]
- name: free
  annotations:
    org.mobyproject.buildkit.device.autoallow: true
  containerEdits:
    env: ["FREE=injected"]
- name: hooked
  containerEdits:
    hooks:
    - hookName: createContainer
      path: /usr/bin/hook
"#;

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

/// A kitchen with specifications in the directory `cdi`.
fn kitchen(who: Who) -> Option<Kitchen> {
    let kitchen = Kitchen::new(who)?;
    for name in ["buildkitd", "buildctl"] {
        symlink("hullworks", kitchen.world.path(name)).unwrap();
    }
    kitchen.world.write("library/version", "7\n");
    describe(
        &kitchen,
        "one.yaml",
        &SPEC.replace("DIR", kitchen.world.path("").to_str().unwrap().trim_end_matches('/')),
    );
    Some(kitchen)
}

fn describe(kitchen: &Kitchen, name: &str, text: &str) {
    kitchen.world.write(&format!("cdi/{name}"), text);
    kitchen.who.own(&kitchen.world, "cdi");
    kitchen.who.own(&kitchen.world, "library");
}

/// A daemon that reads them.
pub fn served(who: Who, flags: &str) -> Option<Served> {
    let kitchen = kitchen(who)?;
    let dir = kitchen.world.path("cdi");
    Some(Served::again(kitchen, &format!("--cdi-spec-dir {} {flags}", dir.display())))
}

fn run(kitchen: &Kitchen, line: &str) {
    kitchen.dockerfile(&format!("# syntax=docker/dockerfile:1-labs\nFROM busybox\nRUN {line}\n"));
}

const ALL_OF_ONE: &str = "test \"$ONE$COMMON\" = injectedyes && head -c3 /dev/vendor/zero | wc -c \
     && cat /opt/library/version && ! touch /opt/library/x";

fn devices_are_given(who: Who) {
    let Some(served) = served(who, "") else { return };
    let kitchen = &served.kitchen;
    let refused =
        |device: &str| format!("device vendor.example/device={device} is requested by the build but not allowed");
    run(kitchen, &format!("--device=vendor.example/device=one {ALL_OF_ONE}"));
    let one = refused("one");
    served
        .build("")
        .fails()
        .says(&one)
        .says("   3 | >>> RUN --device")
        .hints("allow it with `--allow device=vendor.example/device=one`");
    served.build("--allow device=vendor.example/device=two").fails().says(&one);
    for allow in ["device", "device=vendor.example/device=one", "device=vendor.example/device=*", "device=gadget"] {
        let built = served.build(&format!("--no-cache --allow {allow}")).succeeds();
        assert!(built.stderr.contains(" 3\n") && built.stderr.contains(" 7\n"), "{built:?}");
    }
    // It is the same step, and nothing of the device is in what it made.
    let again = served.build("--allow device=gadget --output type=local,dest=out").succeeds();
    assert!(again.stderr.contains("CACHED"), "{again:?}");
    assert!(!kitchen.world.path("out/opt").exists() && !kitchen.world.path("out/dev/vendor").exists());
    // By class, by a name of the client's, all of them, one that needs no right, and those that one can do without.
    let hook =
        "device vendor.example/device=hooked asks for `hooks` (createContainer /usr/bin/hook), which is not supported";
    for (line, allow, said) in [
        ("--device=gadget echo \"is $ONE\"", "--allow device=vendor.example/device=one", Ok("is injected")),
        ("--device=mine echo \"is $TWO\"", "--allow device=vendor.example/device=two,alias=mine", Ok("is injected")),
        ("--device=vendor.example/device=free,required echo \"is $FREE\"", "", Ok("is injected")),
        ("--device=vendor.example/none echo \"is $ONE.\"", "", Ok("is .")),
        ("--device=vendor.example/device echo \"is $FREE$ONE\"", "", Ok("is injected")),
        (
            "--device=vendor.example/none,required true",
            "",
            Err("required device \"vendor.example/none\" is not registered"),
        ),
        ("--device=vendor.example/device=hooked true", "--allow device", Err(hook)),
        (
            "--device=vendor.example/device=* true",
            "",
            Err("devices vendor.example/device=hooked, vendor.example/device=one"),
        ),
    ] {
        run(kitchen, line);
        match said {
            Ok(said) => drop(served.build(allow).succeeds().says(said)),
            Err(said) => drop(served.build(allow).fails().says(said)),
        }
    }
    changed_while_it_runs(&served);
    served.ends();
}

/// Specifications are read anew; what is wrong in them is said and no more.
fn changed_while_it_runs(served: &Served) {
    let kitchen = &served.kitchen;
    describe(kitchen, "bad.yaml", "cdiVersion: [");
    describe(
        kitchen,
        "new.json",
        r#"{"cdiVersion": "0.3.0", "kind": "new.example/device", "devices": [{"name": "a", "containerEdits": {"env": ["NEW=1"]}}]}"#,
    );
    run(kitchen, "--device=new.example/device=a,required echo \"is $NEW\"");
    served.build("--allow device=new.example/device=a").succeeds().says("is 1");
    served.daemon.waits_until("which file is wrong", |said| said.contains("cdi/bad.yaml"));
    let workers = served.buildctl("debug workers --format json").succeeds().text();
    let workers: Value = serde_json::from_str(&workers).unwrap();
    let devices = workers[0]["cdiDevices"].as_array().unwrap();
    let shown: Vec<_> = devices.iter().map(|one| (one["name"].as_str().unwrap(), one["autoAllow"] == true)).collect();
    let names = ["free", "hooked", "one", "two"].map(|name| format!("vendor.example/device={name}"));
    let mut expected = vec![("new.example/device=a", false)];
    expected.extend(names.iter().map(|name| (name.as_str(), name.ends_with("free"))));
    assert_eq!(shown, expected);
}

#[test]
fn privileged_devices_are_given_where_daemon_and_client_agree() {
    devices_are_given(Who::Root);
}

#[test]
fn devices_are_given_by_a_daemon_of_a_user_with_one_id() {
    devices_are_given(Who::Single);
}

#[test]
fn devices_that_only_root_can_make_are_refused_to_others() {
    let Some(served) = served(Who::Single, "") else { return };
    describe(
        &served.kitchen,
        "made.yaml",
        "cdiVersion: 0.7.0\nkind: made.example/x\ndevices:\n\
         - name: node\n  containerEdits:\n    deviceNodes: [{path: /dev/made, type: c, major: 1, minor: 5}]\n\
         - name: group\n  containerEdits: {additionalGids: [44]}\n",
    );
    for (name, said) in [
        ("node", "cannot make the device `/dev/made`: only root can, and the host has no `/dev/made`"),
        ("group", "a device asks for the group 44, which does not exist here: it is not mapped"),
    ] {
        run(&served.kitchen, &format!("--device=made.example/x={name} true"));
        served.build("--allow device").fails().says(said);
    }
    served.ends();
}

#[test]
fn privileged_devices_can_be_made_and_opened() {
    let Some(served) = served(Who::Root, "") else { return };
    describe(
        &served.kitchen,
        "made.yaml",
        "cdiVersion: 0.7.0\nkind: made.example/x\ncontainerEdits: {additionalGids: [44]}\ndevices:\n\
         - name: node\n  containerEdits:\n    deviceNodes:\n    - {path: /dev/made, type: c, major: 10, minor: 229, fileMode: 0640, gid: 44}\n",
    );
    // The machine's own is closed to steps, whoever makes its node.
    let open = if fs::File::open("/dev/fuse").is_ok() { "true < /dev/made && ! true < /dev/other" } else { "true" };
    run(
        &served.kitchen,
        &format!(
            "--device=made.example/x=node id -G | grep -w 44 && stat -c '%t:%T %a %g' /dev/made && \
             mknod /dev/other c 10 237 && {open}"
        ),
    );
    served.build("--allow device").succeeds().says("a:e5 640 44");
    served.ends();
}

#[test]
fn devices_can_be_turned_off() {
    let off = "devices are turned off here (`[cdi] disabled` in buildkitd.toml, `--cdi-disabled`)";
    let Some(served) = served(anybody(), "--cdi-disabled") else { return };
    run(&served.kitchen, "--device=vendor.example/device=free echo \"is $FREE.\"");
    served.build("--allow device").fails().says("entitlement device is not allowed by the builder");
    served.build("").succeeds().says("is .");
    run(&served.kitchen, "--device=vendor.example/device=free,required true");
    served.build("").fails().says("is not registered").hints(off);
    assert!(!served.buildctl("debug workers --verbose").succeeds().text().contains("Devices:"));
    let kitchen = served.ends();
    // By the file; and there, devices that all may have.
    let common = fs::read_to_string(kitchen.world.path("buildkitd.toml")).unwrap();
    let dir = kitchen.world.path("cdi");
    for (disabled, allowed) in [(true, false), (false, true)] {
        let table = format!(
            "[cdi]\ndisabled = {disabled}\nspecDirs = [{dir:?}]\nautoAllowed = [\"vendor.example/device=two\"]\n"
        );
        kitchen.world.write("buildkitd.toml", format!("{common}\n{table}"));
        let daemonless = kitchen.build("");
        run(&kitchen, "--device=vendor.example/device=two,required echo \"is $TWO\"");
        match allowed {
            true => drop(daemonless.succeeds().says("is injected")),
            false => drop(daemonless.fails().says("is not registered").hints(off)),
        }
    }
}

#[test]
fn buildkit_s_client_sees_and_gets_devices() {
    needs!(tool "upstream-buildctl");
    let Some(served) = served(anybody(), "") else { return };
    let theirs = |args: &str| -> Invocation {
        let world = &served.kitchen.world;
        let socket = format!("unix://{}", world.path("b.sock").display());
        let client = served.kitchen.who.run(world, "upstream-buildctl");
        client.env("DOCKER_CONFIG", world.path("docker")).args(["--addr", &socket]).args(args.split_whitespace())
    };
    for form in ["--verbose", "--format json"] {
        let args = format!("debug workers {form}");
        let (ours, upstream) = (served.buildctl(&args).succeeds().text(), theirs(&args).succeeds().text());
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&ours), words(&upstream));
    }
    run(&served.kitchen, &format!("--device=vendor.example/device=one {ALL_OF_ONE}"));
    let line = "build --progress=plain --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
    theirs(line).fails().says("device vendor.example/device=one is requested by the build but not allowed");
    theirs(&format!("{line} --allow device=vendor.example/device=one")).succeeds().says(" 7\n");
    served.ends();
}
