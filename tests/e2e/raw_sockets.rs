//! Sockets of the client that a step gets as they are.

use std::fs;
use std::process::Command;

use crate::daemon::Served;
use crate::frontends::{anyone, pack};
use crate::harness::eventually;
use crate::needs;

/// An agent that is lent answers what builds need; one behind `raw=true` whatever a step says to it.
#[test]
fn a_raw_socket_passes_everything_on() {
    needs!(tool "ssh-keygen");
    needs!(tool "ssh-agent");
    let Some(served) = Served::new(anyone(), "") else { return };
    let kitchen = &served.kitchen;
    pack(kitchen, "/usr/bin/ssh-add");
    let key = kitchen.world.path("key");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "e2e", "-f"]).arg(&key).status();
    assert!(made.unwrap().success());
    kitchen.who.own(&kitchen.world, "key");
    let socket = kitchen.world.path("agent.sock");
    let agent = kitchen.who.run(&kitchen.world, "ssh-agent").args(["-D", "-a", socket.to_str().unwrap()]).starts();
    eventually(|| socket.exists());
    let ssh_add = |arg: &str| kitchen.who.run(&kitchen.world, "ssh-add").env("SSH_AUTH_SOCK", &socket).arg(arg).ends();
    kitchen.dockerfile(
        "FROM busybox\nCOPY root /\n\
         RUN --mount=type=ssh,id=s,required=true /usr/bin/ssh-add -L > /keys && /usr/bin/ssh-add -D && echo > /emptied || true\n",
    );
    let build = |raw: &str, out: &str| {
        let lent = format!("--ssh s={}{raw}", socket.display());
        let daemon = served.build(&format!("--no-cache {lent} --output type=local,dest={out}-daemon"));
        let alone = kitchen.build(&format!("--no-cache {lent} -o type=local,dest={out}-alone"));
        [("daemon", daemon), ("alone", alone)].map(|(who, build)| {
            assert_eq!(ssh_add("key").code, Some(0));
            build.succeeds();
            let dir = kitchen.world.path(format!("{out}-{who}"));
            assert!(fs::read_to_string(dir.join("keys")).unwrap().contains("e2e"), "{who}{raw}");
            (dir.join("emptied").exists(), ssh_add("-L").code)
        })
    };
    assert_eq!(build("", "lent"), [(false, Some(0)); 2]);
    assert_eq!(build(",raw=true", "raw"), [(true, Some(1)); 2]);
    let file = kitchen.world.path("key").display().to_string();
    served.build(&format!("--ssh s={file},raw=true")).fails().says("is no socket: raw=true takes one");
    agent.signal("TERM");
    drop(agent.ends());
    served.ends();
}
