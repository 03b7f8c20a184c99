//! Source policies: by a daemon and without one, by our clients and docker's.

use std::fs;

use testkit::image::{File, TestImage, tar};

use crate::daemon::Served;
use crate::harness::{Ended, Invocation, has_tool, is_root};
use crate::kitchen::Kitchen;
use crate::who::Who;

/// Another image with busybox in it, and a file that says so.
fn put_other(kitchen: &Kitchen) {
    let note = tar(&[File { path: "other", mode: 0o644, data: b"other".to_vec(), link: None }]);
    let image = TestImage::of_layers(vec![TestImage::busybox().unwrap().layers[0].clone(), note]);
    image.put(&kitchen.registry, "library/other", "1");
}

const RULES: [(&str, &str); 4] = [
    (
        "convert",
        r#"{"action": "CONVERT", "selector": {"identifier": "docker-image://docker.io/library/busy*:latest"},
            "updates": {"identifier": "docker-image://docker.io/library/other:1"}}"#,
    ),
    ("deny", r#"{"action": "DENY", "selector": {"identifier": "docker-image://*"}}"#),
    (
        "loop",
        r#"{"action": "CONVERT", "selector": {"identifier": "busybox(.*)$", "match_type": "REGEX"},
            "updates": {"identifier": "busybox-$1"}}"#,
    ),
    ("typo", r#"{"action": "DENY", "selector": {"identifer": "docker-image://*"}}"#),
];

#[test]
fn policies_say_which_sources_are_used() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(served) = Served::new(who, "") else { return };
    let kitchen = &served.kitchen;
    put_other(kitchen);
    kitchen.dockerfile("FROM busybox AS base\nFROM base\nRUN cat /other > /seen\n");
    for (name, rule) in RULES {
        kitchen.world.write(&format!("{name}.json"), format!(r#"{{"version": 1, "rules": [{rule}]}}"#));
    }
    let many = [r#"{"action": "ALLOW", "selector": {"identifier": "x"}}"#; 1001].join(", ");
    kitchen.world.write("many.json", format!(r#"{{"version": 1, "rules": [{many}]}}"#));
    let frontend = "build --progress=plain --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
    let variable = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";
    let buildx = || who.run(&kitchen.world, "docker-buildx").env("DOCKER_CONFIG", kitchen.world.path("docker"));
    let has_buildx = has_tool("docker-buildx");
    if has_buildx {
        let socket = format!("unix://{}", kitchen.world.path("b.sock").display());
        buildx().args(["create", "--name", "b", "--driver", "remote", &socket]).succeeds();
    } else {
        println!("docker-buildx is not asked: it is not there");
    }
    type Client<'a> = (&'a str, Box<dyn Fn(&str) -> Invocation + 'a>);
    let mut clients: Vec<Client<'_>> = vec![
        (
            "buildctl",
            Box::new(|policy| served.build(&format!("--source-policy-file {policy} --output type=local,dest=out"))),
        ),
        (
            "buildctl-daemonless.sh",
            Box::new(|policy| {
                let program = kitchen.world.path("buildctl-daemonless.sh");
                let line = format!("{frontend} --source-policy-file {policy} --output type=local,dest=out");
                let run = who.run(&kitchen.world, program.to_str().unwrap());
                run.env("BUILDKITD_FLAGS", "--config buildkitd.toml --root state").args(line.split_whitespace())
            }),
        ),
        ("hullworks build", Box::new(|policy| kitchen.build("--output type=local,dest=out").env(variable, policy))),
    ];
    if has_buildx {
        let line = "--builder b build --progress=plain -o type=local,dest=out context";
        clients
            .push(("docker-buildx", Box::new(|policy| buildx().env(variable, policy).args(line.split_whitespace()))));
    }
    for (client, run) in &clients {
        println!("{client}");
        let fails = |policy: &str| -> Ended { run(policy).fails() };
        let _ = fs::remove_dir_all(kitchen.world.path("out"));
        run("convert.json").succeeds();
        assert_eq!(fs::read_to_string(kitchen.world.path("out/seen")).unwrap(), "other", "{client}");
        let denied = fails("deny.json");
        denied.says("denied by policy").says("docker-image://docker.io/library/busybox:latest");
        denied.says("cannot resolve `busybox`: could not resolve image due to policy");
        denied.says("hint: the rule that denies it is for `");
        fails("loop.json").says("too many");
        fails("many.json").says("source policies have 1001 rules: at most 1000 are taken");
        if *client != "docker-buildx" {
            fails("typo.json").says("unknown field `identifer`");
            fails("missing.json").says("missing.json");
        }
    }
    drop(clients);
    served.ends();
}
