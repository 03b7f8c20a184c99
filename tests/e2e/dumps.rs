//! LLB as bytes: shown, and built; and sockets of clients that are no agents.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::Value;

use crate::daemon::Served;
use crate::frontends::{anyone, definition, pack};
use crate::harness::{World, eventually};
use crate::needs;

#[test]
fn a_definition_is_shown_as_it_is_built() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let world = &served.kitchen.world;
    let llb = definition(&["/bin/sh", "-c", "echo piped > /piped"]);
    world.write("llb", &llb);
    // Nobody is asked for it.
    let alone = World::new();
    symlink(world.path("hullworks"), alone.path("buildctl")).unwrap();
    let dump = |args: &str| {
        let client = alone.run(alone.path("buildctl")).args(["--addr=unix:///nowhere", "debug", "dump-llb"]);
        client.args(args.split_whitespace())
    };
    let file = world.path("llb").display().to_string();
    let text = dump("").stdin(llb.clone()).succeeds().text();
    for other in [dump(&file), dump("-").stdin(llb.clone())] {
        assert_eq!(other.succeeds().text(), text);
    }
    let ops: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [image, run, end] = ops.as_slice() else { panic!("{text}") };
    assert_eq!(image["Op"]["Op"]["source"]["identifier"], "docker-image://docker.io/library/busybox:latest", "{text}");
    assert_eq!(run["Op"]["Op"]["exec"]["meta"]["args"][2], "echo piped > /piped", "{text}");
    assert_eq!(run["Op"]["inputs"][0]["digest"], image["Digest"], "{text}");
    assert_eq!(end["Op"]["inputs"][0]["digest"], run["Digest"], "{text}");
    let dot = dump(&format!("--dot {file}")).succeeds().text();
    assert!(dot.starts_with("digraph {\n") && dot.ends_with("}\n"), "{dot}");
    let [image, run] = [image, run].map(|op| op["Digest"].as_str().unwrap());
    for line in [
        format!("  \"{image}\" [label=\"docker-image://docker.io/library/busybox:latest\" shape=\"ellipse\"];"),
        format!("  \"{image}\" -> \"{run}\" [label=\"\"];"),
    ] {
        assert!(dot.lines().any(|known| known == line), "{line}: {dot}");
    }
    dump("").stdin("no definition").fails().says("standard input is no LLB definition");
    dump("nowhere").fails().says("cannot read `nowhere`");

    // The daemon knows its steps by the same digests.
    let ended = served.buildctl("build --progress=rawjson --output type=local,dest=out").stdin(llb).succeeds();
    for digest in [image, run] {
        assert!(ended.stderr.contains(&format!("\"digest\":\"{digest}\"")), "{digest}: {ended:?}");
    }
    assert_eq!(fs::read_to_string(world.path("out/piped")).unwrap(), "piped\n");
    served.ends();
}

/// An agent may be read only, and a raw socket is passed on as it is: there a step removes keys.
#[test]
fn a_raw_socket_is_passed_on_as_it_is() {
    needs!(tool "ssh-keygen");
    needs!(tool "ssh-agent");
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    let world = &kitchen.world;
    pack(kitchen, "/usr/bin/ssh-add");
    kitchen.who.run(world, "ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", "key"]).succeeds();
    let socket = world.path("agent.sock");
    let agent = kitchen.who.run(world, "ssh-agent").args(["-D", "-a", socket.to_str().unwrap()]).starts();
    eventually(|| socket.exists());
    let add = |args: &str| kitchen.who.run(world, "ssh-add").env("SSH_AUTH_SOCK", &socket).arg(args);
    kitchen.dockerfile("FROM busybox\nCOPY root /\nRUN --mount=type=ssh,id=raw,required=true /usr/bin/ssh-add -D\n");
    let at = socket.display();
    for raw in ["", ",raw=false"] {
        add("key").succeeds();
        served.build(&format!("--no-cache --ssh raw={at}{raw}")).fails().says("exit code: 1");
        add("-l").succeeds();
    }
    served.build(&format!("--no-cache --ssh raw={at},raw=true")).succeeds();
    let listed = add("-l").ends();
    assert!(listed.code == Some(1) && listed.text().contains("no identities"), "{listed:?}");
    add("key").succeeds();
    kitchen.build(&format!("--no-cache --ssh raw={at},raw=true")).succeeds();
    assert_eq!(add("-l").ends().code, Some(1), "without a daemon");
    for (ssh, why) in [
        (format!("raw={at},key,raw=true"), "raw=true takes exactly one socket"),
        ("raw=raw=true".to_owned(), "raw=true takes exactly one socket"),
        (format!("raw={at},raw=perhaps"), "raw=perhaps is neither true nor false"),
    ] {
        served.build(&format!("--ssh {ssh}")).fails().says(why);
    }
    agent.signal("TERM");
    drop(agent.ends());
    served.ends();
}
