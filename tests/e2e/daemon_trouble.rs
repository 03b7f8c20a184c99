//! A daemon among many clients, among hostile steps, and killed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::daemon::Served;
use crate::harness::{Ended, is_root, or_skip};
use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

#[test]
fn rights_are_given_where_daemon_and_client_agree() {
    let both = "--allow-insecure-entitlement network.host --allow-insecure-entitlement security.insecure";
    let asks = |served: &Served, line: &str, allow: &str| -> Ended {
        served.kitchen.dockerfile(&format!("FROM busybox\nRUN {line}\n"));
        served.build(allow).ends()
    };
    let cases = [
        ("network.host", "--network=host true"),
        ("security.insecure", "--security=insecure grep CapEff /proc/self/status"),
    ];
    let Some(strict) = Served::new(anybody(), "") else { return };
    for (right, line) in cases {
        let refused = asks(&strict, line, &format!("--allow {right}"));
        assert_eq!(refused.code, Some(1), "{right}: {refused:?}");
        refused.says(&format!("entitlement {right} is not allowed")).hints(&format!(
            "start it with `--allow-insecure-entitlement {right}`, or list it in `insecure-entitlements`"
        ));
        assert_eq!(asks(&strict, line, "").code, Some(1), "{right}: neither allows it");
    }
    strict.ends();

    let Some(generous) = Served::new(anybody(), both) else { return };
    for (right, line) in cases {
        let refused = asks(&generous, line, "");
        assert_eq!(refused.code, Some(1), "{right}: {refused:?}");
        refused.says(right).says("   2 | >>> RUN ");
        let other = cases.iter().map(|(name, _)| *name).find(|name| *name != right).unwrap();
        assert_eq!(asks(&generous, line, &format!("--allow {other}")).code, Some(1), "{right} by {other}");
        let allowed = asks(&generous, line, &format!("--allow {right}"));
        assert_eq!(allowed.code, Some(0), "{right}: {allowed:?}");
    }
    generous.ends();
}

#[test]
fn a_step_reaches_neither_the_daemon_nor_another_build() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let kitchen = &served.kitchen;
    kitchen.file("secret", "the-other-build's");
    kitchen.dockerfile("FROM busybox\nRUN --mount=type=secret,id=s,env=S echo begun; sleep 3\n");
    let other = served.build("--secret id=s,src=context/secret").starts();
    other.waits_for("begun");
    // Looks for it everywhere that it can: files, processes, their memory and environment.
    let world = kitchen.world.path("").display().to_string();
    let script = format!(
        "FROM busybox\nRUN <<EOF\nset -e\ntest ! -e {world}\nfor p in /proc/[0-9]*; do\n\
         if grep -q the-other-build $p/environ 2>/dev/null; then echo seen in $p; exit 1; fi\n\
         if tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q 'build[k]itd'; then echo daemon is $p; exit 1; fi\ndone\n\
         for m in $(cut -d' ' -f5 /proc/self/mountinfo); do test \"$m\" != /run/secrets/s; done\n\
         if find / -xdev -name '*.sock' 2>/dev/null | grep .; then exit 1; fi\n\
         if find / -name 'build[k]itd.toml' 2>/dev/null | grep .; then exit 1; fi\nEOF\n"
    );
    kitchen.dockerfile(&script);
    served.build("").succeeds();
    let ended = other.ends();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // What the step was given is in nothing that was kept.
    let kept = kitchen.world.run("grep").args(["-r", "-l", "-a", "the-other-build's", "daemon"]).ends();
    assert_eq!((kept.code, kept.text().as_str()), (Some(1), ""), "{kept:?}");
    served.ends();
}

/// Also who comes when the step runs already, and who has another vertex for the same work: each client reads the context
/// for itself, so that what stands on a COPY is another vertex for each.
#[test]
fn all_builds_that_share_a_step_see_what_it_says() {
    let Some(served) = Served::new(anybody(), "") else { return };
    let kitchen = &served.kitchen;
    kitchen.file("a", "one");
    // The id of a cache mount is nothing that a result depends on: what else is run must differ.
    for (n, (copy, code)) in [("", 7), ("COPY a /\n", 7), ("", 0), ("COPY a /\n", 0)].into_iter().enumerate() {
        let mount = format!("--mount=type=cache,target=/c,id=c{n}");
        let wait = "until test -e /c/go; do sleep 0.05; done";
        kitchen.dockerfile(&format!(
            "FROM busybox\n{copy}RUN {mount} echo begun; {wait}; echo reason; : {n}; exit {code}\n"
        ));
        let clients = [(); 2].map(|()| {
            let client = served.build("").starts();
            client.waits_for("begun");
            client
        });
        kitchen.dockerfile(&format!("FROM busybox\nRUN {mount} touch /c/go; : {n}\n"));
        served.build("").succeeds();
        for client in clients {
            let ended = client.ends();
            assert_eq!(ended.code, Some(i32::from(code != 0)), "{ended:?}");
            assert!(ended.stderr.lines().any(|line| line.ends_with(" reason")), "{ended:?}");
            assert!(!ended.stderr.contains("CANCELED"), "{ended:?}");
            if code != 0 {
                ended.says(&format!(" | >>> RUN {mount} echo begun"));
            }
        }
    }
    served.ends();
}

#[test]
fn a_hundred_builds_at_once_are_served() {
    let Some(served) = Served::new(anybody(), "") else { return };
    serves_a_hundred(&served);
    let status = fs::read_to_string(format!("/proc/{}/status", served.daemon.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak = peak.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10;
    assert!(peak < MEMORY, "{peak} bytes");
    served.ends();
}

/// What a daemon and the steps of a hundred builds at once get by with.
const MEMORY: u64 = 256 << 20;

#[test]
fn privileged_a_hundred_builds_at_once_fit_into_256_mebibytes() {
    needs!(root);
    let Some(group) = or_skip(MemoryGroup::new(MEMORY)) else { return };
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    for name in ["buildkitd", "buildctl"] {
        symlink("hullworks", kitchen.world.path(name)).unwrap();
    }
    let program = kitchen.world.path("buildkitd");
    let socket = format!("unix://{}", kitchen.world.path("b.sock").display());
    let daemon = kitchen.world.run("sh").args(["-c", "echo $$ > $0/cgroup.procs && exec \"$@\""]).arg(&group.0);
    let daemon = daemon.arg(program).args(["--config", "buildkitd.toml", "--root", "daemon", "--addr", &socket]);
    let daemon = daemon.starts();
    daemon.waits_until("that it listens", |said| said.contains("listening"));
    let served = Served { kitchen, daemon };
    serves_a_hundred(&served);
    // The page cache is reclaimed; nobody was killed for want of memory.
    assert_eq!(group.killed(), 0);
    served.ends();
}

/// A cgroup whose processes share so much memory, page cache included. It goes with what is left in it.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(bytes: u64) -> Result<MemoryGroup, String> {
        let (root, limit) = match Path::new("/sys/fs/cgroup/memory").is_dir() {
            true => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            false => ("/sys/fs/cgroup", "memory.max"),
        };
        let group = Path::new(root).join(format!("hullworks-e2e-hundred-{}", std::process::id()));
        let failed = |error| format!("it wants cgroups that limit memory: {error}");
        fs::create_dir(&group).map_err(failed)?;
        let group = MemoryGroup(group);
        fs::write(group.0.join(limit), bytes.to_string()).map_err(failed)?;
        Ok(group)
    }

    fn killed(&self) -> u64 {
        let told = ["memory.oom_control", "memory.events"].map(|name| fs::read_to_string(self.0.join(name)));
        let told = told.into_iter().find_map(Result::ok).unwrap();
        told.lines().find_map(|line| line.strip_prefix("oom_kill ")).map_or(0, |count| count.trim().parse().unwrap())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        fn remove(group: &Path) {
            for entry in fs::read_dir(group).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            let _ = fs::remove_dir(group);
        }
        remove(&self.0);
    }
}

fn serves_a_hundred(served: &Served) {
    const CLIENTS: usize = 100;
    served.kitchen.file("a", "one");
    // Ten kinds of build: of each, all clients' are the same work.
    served.kitchen.dockerfile(
        "FROM busybox\nCOPY a /\nARG N\nRUN read u < /proc/sys/kernel/random/uuid; echo run-$N-$u > /n; cat /n\n",
    );
    let clients: Vec<_> =
        (0..CLIENTS).map(|n| served.build(&format!("--opt build-arg:N={}", n % 10)).starts()).collect();
    let mut runs = std::collections::BTreeSet::new();
    for client in clients {
        let ended = client.ends();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let said = ended.stderr.lines().filter_map(|line| line.split_whitespace().last());
        runs.extend(said.filter(|word| word.starts_with("run-")).map(str::to_owned));
    }
    assert_eq!(runs.len(), 10, "{runs:?}");
}

/// Whatever it was doing, what it had finished is there when it is started again, and nothing is left mounted or running.
#[test]
fn a_killed_daemon_goes_on_where_it_was() {
    for who in [Who::Root, Who::Ranges, Who::Single] {
        let Some(served) = Served::new(who, "") else { continue };
        served.kitchen.file("a", vec![b'a'; 3_000_000]);
        served.kitchen.dockerfile("FROM busybox\nCOPY a /\nRUN echo first > /f\nRUN echo begun; sleep 1000\n");
        let client = served.build("").starts();
        client.waits_for("begun");
        let (kitchen, daemon) = (served.kitchen, served.daemon);
        let dir = kitchen.world.path("daemon");
        daemon.kill_after(std::time::Duration::ZERO).expect("it served");
        let ended = client.ends();
        assert_eq!(ended.code, Some(1), "{who:?}: {ended:?}");
        let socket = kitchen.world.path("b.sock");
        ended.says(&format!(
            "failed to solve: the connection to the daemon at `unix://{}` was lost: ",
            socket.display()
        ));
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(dir.to_str().unwrap()), "{mounts}");

        let served = Served::again(kitchen, "");
        served.kitchen.dockerfile("FROM busybox\nCOPY a /\nRUN echo first > /f\nRUN echo second > /g\n");
        // In the middle of an export, too.
        let client = served.build("--output type=oci,dest=x.tar").starts();
        client.waits_until("exporting", |said| said.contains("exporting layers"));
        let (kitchen, daemon) = (served.kitchen, served.daemon);
        daemon.kill_after(std::time::Duration::ZERO).expect("it served");
        drop(client.ends());

        let served = Served::again(kitchen, "");
        let ended = served.build("--output type=oci,dest=x.tar").succeeds();
        for step in ["COPY a /", "RUN echo first > /f", "RUN echo second > /g"] {
            let line = ended.stderr.lines().find(|line| line.ends_with(step)).unwrap_or_else(|| panic!("{ended:?}"));
            let number = line.split_whitespace().next().unwrap();
            assert!(ended.stderr.contains(&format!("\n{number} CACHED\n")), "{who:?}: {step}: {ended:?}");
        }
        served.build("--output type=local,dest=out").succeeds();
        assert_eq!(fs::read_to_string(served.kitchen.world.path("out/g")).unwrap(), "second\n");
        served.ends();
    }
}
