//! Control groups: the parent that steps are put below, limits of steps, what a step sees of them, and what a killed builder
//! leaves of them. Root's affair; where a machine has no such group, or not ours to make, a test is skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::{Ended, Invocation, eventually, or_skip};
use crate::kitchen::{Kitchen, ran};
use crate::who::Who;

const TOP: &str = "/sys/fs/cgroup";
const LIMIT: &str = "67108864";
/// Shows version 2 only, and runs the arguments.
const VERSION2: &str = "umount --recursive /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"";

/// Mount points of version 1's hierarchies.
fn version1() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    mounts.filter(|fields| fields[2] == "cgroup").map(|fields| PathBuf::from(fields[1])).collect()
}

/// A parent for steps with a memory limit, in the hierarchy that has memory. It goes with all that is in it, everywhere.
pub struct Parent {
    name: String,
}

impl Parent {
    /// None, with the reason told, where a machine has no such groups.
    pub fn new(purpose: &str) -> Option<Parent> {
        let name = format!("e2e-{purpose}-{}", std::process::id());
        let (dir, file) = match Path::new(TOP).join("memory").is_dir() {
            true => (Path::new(TOP).join("memory").join(&name), "memory.limit_in_bytes"),
            false => (Path::new(TOP).join(&name), "memory.max"),
        };
        let limited = fs::create_dir_all(&dir).and_then(|()| {
            if file == "memory.max" {
                fs::write(Path::new(TOP).join("cgroup.subtree_control"), "+memory")?;
            }
            fs::write(dir.join(file), LIMIT)
        });
        let parent = Parent { name };
        or_skip(limited.map_err(|error| format!("it wants cgroups that limit memory: {error}")))?;
        Some(parent)
    }

    fn dirs(&self) -> Vec<PathBuf> {
        let tops = version1().into_iter().chain([TOP.into(), Path::new(TOP).join("unified")]);
        tops.map(|top| top.join(&self.name)).filter(|dir| dir.is_dir()).collect()
    }

    /// The groups of steps in it.
    fn steps(&self) -> Vec<PathBuf> {
        let entries = self.dirs().into_iter().flat_map(|dir| fs::read_dir(dir).unwrap());
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for dir in self.steps().into_iter().chain(self.dirs()) {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// A build by `buildctl` with options of the frontend.
fn build(kitchen: &Kitchen, options: &[&str]) -> Invocation {
    let line = "build --progress=plain --frontend dockerfile.v0 --local context=context --local dockerfile=context";
    let run = kitchen.who.daemonless(&kitchen.world).env("BUILDKITD_FLAGS", "--config buildkitd.toml --root state");
    let options = options.iter().flat_map(|option| ["--opt", *option]);
    run.args(line.split(' ')).args(options)
}

#[test]
fn a_parent_has_its_steps_in_every_hierarchy_and_its_limits_hold() {
    let (Some(kitchen), Some(parent)) = (Kitchen::new(Who::Root), Parent::new("parent")) else { return };
    let option = format!("cgroup-parent=/{}", parent.name);
    kitchen.dockerfile("FROM busybox\nRUN sed 's/^/group /' /proc/self/cgroup\n");
    let ended = build(&kitchen, &[&option]).succeeds();
    let groups: Vec<&str> = ended.stderr.lines().filter_map(|line| line.split_once("group ")).map(|it| it.1).collect();
    let below = format!("/{}/hullworks-", parent.name);
    let inside =
        groups.iter().filter(|line| line.split(':').nth(2).is_some_and(|path| path.starts_with(&below))).count();
    assert!(inside >= version1().len(), "{inside} of {}: {ended:?}", version1().len());
    assert!(parent.steps().is_empty(), "groups of steps are left: {:?}", parent.steps());
    kitchen.dockerfile("FROM busybox\nRUN tail /dev/zero\n");
    build(&kitchen, &[&option]).fails().says("exit code: 137: out of memory, limit 67.11MB");
    // Nor does a name lead out of the hierarchies.
    kitchen.dockerfile("FROM busybox\nRUN echo fine\n");
    build(&kitchen, &[&format!("cgroup-parent=../../../..{}/{}", kitchen.world.path("").display(), parent.name)])
        .succeeds();
    assert!(!kitchen.world.path(&parent.name).exists(), "the parent is a directory of the machine");
    for top in version1().into_iter().chain([TOP.into(), Path::new(TOP).join("unified")]) {
        let mut dir = top.join(kitchen.world.path("").strip_prefix("/").unwrap()).join(&parent.name);
        while dir != top {
            let _ = fs::remove_dir(&dir);
            dir.pop();
        }
    }
}

#[test]
fn groups_that_a_killed_builder_left_below_a_parent_go_at_the_next_start() {
    let (Some(kitchen), Some(parent)) = (Kitchen::new(Who::Root), Parent::new("killed")) else { return };
    let option = format!("cgroup-parent=/{}", parent.name);
    let foreign = parent.dirs()[0].join("somebody-elses");
    fs::create_dir(&foreign).unwrap();
    kitchen.dockerfile("FROM busybox\nRUN echo started; sleep 1000\n");
    let running = kitchen.build(&format!("--cgroup-parent /{}", parent.name)).starts();
    running.waits_for("started");
    running.kill_after(Duration::ZERO).unwrap();
    assert!(parent.steps().len() > 1, "a killed builder leaves nothing to remove");
    // The kernel may still be letting go of its last process.
    eventually(|| {
        kitchen.dockerfile("FROM busybox\nRUN echo fine\n");
        kitchen.build("").succeeds();
        parent.steps() == [foreign.clone()]
    });
    build(&kitchen, &[&option]).succeeds();
    assert_eq!(parent.steps(), [foreign]);
}

#[test]
fn a_step_sees_its_groups_and_cannot_change_them() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let hierarchies = version1();
    if hierarchies.is_empty() {
        kitchen.dockerfile("FROM busybox\nRUN cat /sys/fs/cgroup/cgroup.controllers && ! mkdir /sys/fs/cgroup/mine\n");
        return drop(kitchen.build("").succeeds());
    }
    // What stands beside its own groups is not to be found from inside, where the builder's own is the top.
    let foreign = format!("e2e-foreign-{}", std::process::id());
    let made: Vec<PathBuf> = hierarchies.iter().map(|top| top.join(&foreign)).collect();
    made.iter().for_each(|dir| fs::create_dir(dir).unwrap());
    let hidden = format!("! find {TOP} -name {foreign} -o -name 'hullworks-*' | grep .");
    let checks = hierarchies.iter().map(|top| {
        let top = Path::new(TOP).join(top.file_name().unwrap());
        let top = top.display();
        format!("grep -q $$ {top}/cgroup.procs && ! mkdir {top}/mine && grep -q ' {top} ro,' /proc/self/mountinfo")
    });
    let checks: Vec<String> = checks.collect();
    let parent = format!("e2e-seen-{}", std::process::id());
    let ended = [("", &[][..]), (&checks.join(" && "), &["--cgroup-parent", &parent])].map(|(checks, options)| {
        let checks = if checks.is_empty() { "true" } else { checks };
        kitchen.dockerfile(&format!("FROM busybox\nRUN {checks} && {hidden} && echo seen\n"));
        kitchen.build("").args(options).ends()
    });
    made.into_iter().chain(hierarchies.iter().map(|top| top.join(&parent))).for_each(|dir| drop(fs::remove_dir(dir)));
    for ended in ended {
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn limits_of_steps_hold_and_are_no_part_of_the_cache_key() {
    let (Some(kitchen), Some(_parent)) = (Kitchen::new(Who::Root), Parent::new("limits")) else { return };
    let file = match Path::new(TOP).join("memory").is_dir() {
        true => "memory/memory.limit_in_bytes",
        false => "memory.max",
    };
    kitchen.dockerfile(&format!("FROM busybox\nRUN grep -x {LIMIT} {TOP}/{file}\n"));
    let limit = format!("memory={LIMIT}");
    assert_eq!(ran(&build(&kitchen, &[&limit]).succeeds()).len(), 1);
    for same in [&["memory=33554432"][..], &["cpushares=512"], &[]] {
        assert_eq!(ran(&build(&kitchen, same).succeeds()), [""; 0], "{same:?} is part of the key");
    }
    kitchen.dockerfile("FROM busybox\nRUN tail /dev/zero\n");
    build(&kitchen, &[&limit]).fails().says("exit code: 137: out of memory, limit 67.11MB");
    build(&kitchen, &["memory=64m"]).fails().says("memory").says("`64m` is not a number of bytes above 0");
    build(&kitchen, &["cpusetcpus=3-1"]).fails().says("cpusetcpus");
    // By docker's flags.
    let all = "--cpu-shares 512 --cpu-period 100000 --cpu-quota 50000 --cpuset-cpus 0 --cpuset-mems 0 --memory-swap -1";
    let ended = kitchen.build(&format!("--memory 64m {all}")).fails();
    ended.says("exit code: 137: out of memory, limit 67.11MB");
    assert!(!ended.stderr.contains("has no effect"), "{ended:?}");
    kitchen.build("--memory lots").fails().says("--memory").says("`lots`");
    kitchen.build("--cpuset-cpus 3-1").fails().says("invalid value `3-1` for --cpuset-cpus");
    kitchen.dockerfile("FROM busybox\nRUN echo free\n");
    let ended = kitchen.build("--cpu-quota -1").succeeds();
    assert!(!ended.stderr.contains("without the limits"), "{ended:?}");
}

#[test]
fn limits_that_a_user_cannot_set_are_warned_of_once() {
    let Some(kitchen) = Kitchen::new(Who::Single) else { return };
    let warning = "warning: steps run without the limits that they ask for: control groups belong to root";
    let warnings = |ended: Ended| ended.stderr.lines().filter(|line| line.contains(warning)).count();
    kitchen.dockerfile("FROM busybox\nRUN echo one\nRUN echo two\n");
    assert_eq!(warnings(kitchen.build("-m 512m --cpu-quota -1").succeeds()), 1);
    assert_eq!(warnings(kitchen.build("--no-cache --cpu-quota -1").succeeds()), 0);
    // Whatever was told to another build.
    assert_eq!(warnings(kitchen.build("--no-cache -m 512m").succeeds()), 1);
}

#[test]
fn a_parent_frees_no_step_of_the_device_rules() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let own = |line: &str| {
        let version2 = ["--mount", "sh", "-c", VERSION2, "sh", "./hullworks"];
        kitchen.world.run("unshare").args(version2).args(line.split(' '))
    };
    let line = "build --progress=plain --config=buildkitd.toml --root state --no-cache context";
    // The number of a loop device: a kind that every machine has.
    kitchen.dockerfile("FROM busybox\nRUN mknod /disk b 7 0 && head -c 0 /dev/null && ! head -c 0 /disk\n");
    let parent = format!("e2e-devices-{}", std::process::id());
    kitchen.build(&format!("--no-cache --cgroup-parent {parent}")).succeeds();
    let ended = own(&format!("{line} --cgroup-parent {parent}")).ends();
    for top in version1().into_iter().chain([TOP.into(), Path::new(TOP).join("unified")]) {
        let _ = fs::remove_dir(top.join(&parent));
    }
    if ended.stderr.contains("mount: ") {
        return testkit::need::report_skip(&format!("it wants cgroups of version 2: {}", ended.stderr));
    }
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
