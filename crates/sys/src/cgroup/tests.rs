#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests; a skip says why")]

use super::group::weight;
use super::mounts::{Hierarchies, Hierarchy};
use super::*;

fn at(top: &str, own: &str) -> Option<Hierarchy> {
    Some(Hierarchy { top: top.into(), own: own.into() })
}

#[test]
fn our_groups_are_found_in_every_layout() {
    const V2: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate";
    const POD: &str = "30 24 0:26 /kubepods/pod1/c1 /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw";
    const V1: &str = "30 24 0:26 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n\
                      31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
    for (cgroup, mountinfo, unified, devices) in [
        ("0::/a/b", V2, at("/sys/fs/cgroup", "/sys/fs/cgroup/a/b"), None),
        ("0::/", V2, at("/sys/fs/cgroup", "/sys/fs/cgroup"), None),
        ("0::/../x", V2, None, None),
        ("0::/kubepods/pod1/c1", POD, at("/sys/fs/cgroup", "/sys/fs/cgroup"), None),
        ("0::/kubepods/pod1/c1/d", POD, at("/sys/fs/cgroup", "/sys/fs/cgroup/d"), None),
        ("0::/kubepods/pod1/c10", POD, None, None),
        ("0::/", POD, at("/sys/fs/cgroup", "/sys/fs/cgroup"), None),
        (
            "5:devices:/x\n4:cpu,cpuacct:/\n1:name=systemd:/\n0::/",
            V1,
            at("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified"),
            at("/sys/fs/cgroup/devices", "/sys/fs/cgroup/devices/x"),
        ),
        ("", "", None, None),
    ] {
        let found = Hierarchies::parse(cgroup, mountinfo);
        assert_eq!((found.unified, found.devices), (unified, devices), "{cgroup}");
    }
    let found = Hierarchies::parse("4:cpu,cpuacct:/", V1);
    let names: Vec<_> = found.controllers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["cpu", "cpuacct"]);
}

#[test]
fn shares_become_weights() {
    for (shares, expected) in [(2, 1), (1024, 39), (262_144, 10_000), (1, 1), (1 << 40, 10_000), (0, 0)] {
        assert_eq!(weight(shares), expected, "{shares}");
    }
}

#[test]
fn oom_kills_are_counted() {
    assert_eq!(oom_kills_in("low 0\noom 3\noom_kill 2\noom_group_kill 1\n"), 2);
    assert_eq!(oom_kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 5"), 5);
    assert_eq!(oom_kills_in(""), 0);
}

#[test]
fn privileged_groups_limit_rule_and_vanish() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let groups = Groups::open().unwrap();
    if !groups.rules_devices() {
        eprintln!("skipped: no writable cgroup");
        return;
    }
    for file in groups.shared().iter().chain(&groups.outside()) {
        assert!(file.exists(), "{file:?}");
    }
    let limits = Limits { memory: Some(64 << 20), pids: Some(50), ..Limits::default() };
    if let Some(missing) = groups.missing_for(&limits) {
        eprintln!("skipped: no controller {missing}");
        return;
    }
    let group = groups.create("t1", None, Devices::Ruled, &limits).unwrap();
    let procs = group.procs();
    assert!(procs.iter().all(|file| file.exists()) && !procs.is_empty());
    let mut sleeper = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    for file in &procs {
        fs::write(file, sleeper.id().to_string()).unwrap();
    }
    assert_eq!(group.oom_kills(), 0);
    group.kill();
    assert!(!sleeper.wait().unwrap().success());
    drop(group);
    assert!(procs.iter().all(|file| !file.exists()));
    // Without device rules it is one in every hierarchy that can be written, and takes along what was made below.
    let group = groups.create("t2", None, Devices::All, &Limits::default()).unwrap();
    let dirs: Vec<_> = group.procs().iter().map(|file| file.parent().unwrap().to_owned()).collect();
    assert!(
        !dirs.is_empty() && dirs.iter().all(|dir| dir.ends_with(format!("{}-insecure/t2", groups.name))),
        "{dirs:?}"
    );
    dirs.iter().for_each(|dir| fs::create_dir_all(dir.join("below/it")).unwrap());
    let freeze = || {
        let sleeper = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        for dir in dirs.iter().map(|dir| dir.join("below/it")) {
            // A new group of processors has none.
            let joined = fs::write(dir.join("cgroup.procs"), sleeper.id().to_string());
            assert!(joined.is_ok() || dir.join("cpuset.cpus").exists(), "{dir:?}: {joined:?}");
            if dir.join("freezer.state").exists() {
                fs::write(dir.join("freezer.state"), "FROZEN").unwrap();
            }
        }
        sleeper
    };
    // Whoever is killed while it is frozen ends.
    let mut sleeper = freeze();
    sleeper.kill().unwrap();
    group.freezer().iter().for_each(Freezer::free_the_killed);
    sleeper.wait().unwrap();
    let mut sleeper = freeze();
    group.kill();
    sleeper.wait().unwrap();
    drop(group);
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
    // Another opening has groups of its own.
    let other = Groups::open().unwrap();
    let shared = groups.shared();
    drop(groups);
    assert!(shared.iter().all(|file| !file.exists()));
    assert!(other.shared().iter().all(|file| file.exists()));
}

#[test]
fn privileged_groups_of_the_dead_go_and_those_of_other_process_namespaces_stay() {
    let open = || rustix::process::geteuid().is_root().then(|| Groups::open().ok()).flatten();
    let Some(groups) = open().filter(Groups::rules_devices) else {
        eprintln!("skipped: needs root and a writable cgroup");
        return;
    };
    // No process of this machine can have the id.
    let dir = groups.device_hierarchy().unwrap().join("hullworks-4194305");
    fs::create_dir(&dir).unwrap();
    let held = fs::File::open(&dir).unwrap();
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    drop(open());
    assert!(dir.exists(), "it was taken from who holds it");
    drop(held);
    drop(open());
    assert!(!dir.exists());
    assert!(groups.shared().iter().all(|file| file.exists()));
}

#[test]
fn names_say_whose_groups_are() {
    for (name, expected) in [
        ("hullworks-12", Some(("12", "hullworks-12"))),
        ("hullworks-12-3", Some(("12", "hullworks-12-3"))),
        ("hullworks-12-3-main", Some(("12", "hullworks-12-3"))),
        ("hullworks-12-insecure", Some(("12", "hullworks-12"))),
        ("hullworks-", None),
        ("hullworks-mine", None),
        ("hullworks-12-mine", None),
        ("step-1-2", None),
    ] {
        assert_eq!(owner(name), expected, "{name}");
    }
}

#[test]
fn parents_stay_inside_their_hierarchy() {
    let hierarchy = at("/top", "/top/own").unwrap();
    for (parent, expected) in
        [("/a/b/", "/top/a/b"), ("a", "/top/a"), ("../../x", "/top/x"), ("a/../../b", "/top/b"), ("/", "/top")]
    {
        assert_eq!(below(parent)(&hierarchy), Path::new(expected), "{parent}");
    }
}

#[test]
fn parents_are_kept_until_they_were_looked_at() {
    let dir = std::env::temp_dir().join(format!("hw-parents-{}", std::process::id()));
    let (parents, used) = Parents::read(dir.clone());
    assert_eq!(used, [""; 0]);
    for parent in ["/a", "b c/./d", "x/../a/"] {
        parents.add(&parents::normal(parent).unwrap());
    }
    let (_, used) = Parents::read(dir.clone());
    assert_eq!(used, ["/a", "/b c/d"]);
    assert_eq!(Parents::read(dir.clone()).1, [""; 0]);
    fs::remove_file(dir).unwrap();
    let (part, long) = ("a".repeat(300), "a/".repeat(600));
    for absurd in ["two\nlines", "a\0", &part, &long] {
        assert_eq!(parents::normal(absurd).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{absurd:?}");
    }
}

#[test]
fn privileged_groups_of_the_dead_go_from_parents_too() {
    let Some(groups) = root_groups() else { return };
    let parent = format!("hw-parent-{}", std::process::id());
    let step = groups.create("t1", Some(&parent), Devices::Ruled, &Limits::default()).unwrap();
    let tops: Vec<PathBuf> = groups.own.all().map(|hierarchy| hierarchy.top.join(&parent)).collect();
    for top in &tops {
        for name in ["hullworks-4194305", "hullworks-mine", "step-1-1"] {
            let _ = fs::create_dir(top.join(name));
        }
    }
    // Nothing says whose this is.
    let unmarked = groups.own.controllers.first().map(|(_, hierarchy)| hierarchy.top.join(&parent));
    let unmarked = unmarked.filter(|top| top.exists()).map(|top| top.join("hullworks-4194304"));
    unmarked.iter().for_each(|dir| fs::create_dir(dir).unwrap());
    let file = std::env::temp_dir().join(format!("hw-used-{}", std::process::id()));
    fs::write(&file, format!("{parent}\n")).unwrap();
    // Nobody holds it, but a process has its id: it stays, and is looked at again.
    let alive = groups.marking().unwrap().top.join(&parent).join("hullworks-1");
    fs::create_dir(&alive).unwrap();
    Groups::open().unwrap().remember_parents(file.clone());
    fs::remove_dir(&alive).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("/{parent}\n"));
    fs::remove_file(file).unwrap();
    assert!(step.procs().iter().all(|file| file.exists()), "a group in use was taken");
    for top in tops.iter().filter(|top| top.exists()) {
        assert!(!top.join("hullworks-4194305").exists(), "{top:?}");
        for foreign in ["hullworks-mine", "step-1-1"] {
            fs::remove_dir(top.join(foreign)).unwrap();
        }
    }
    unmarked.iter().for_each(|dir| fs::remove_dir(dir).unwrap());
    // Where all may be written all have the step.
    assert_eq!(step.procs().len() + step.left_out().len(), tops.len());
    // What was made for steps goes with the last of them.
    let other = groups.create("t2", Some(&format!("{parent}/deeper")), Devices::Ruled, &Limits::default()).unwrap();
    drop(step);
    assert!(other.procs().iter().all(|file| file.exists()));
    drop(other);
    assert!(tops.iter().all(|top| !top.exists()), "{tops:?}");
    // A name that is refused makes nothing.
    assert!(groups.create("t3", Some(&"a/".repeat(600)), Devices::Ruled, &Limits::default()).is_err());
}

fn root_groups() -> Option<Groups> {
    let open = || rustix::process::geteuid().is_root().then(|| Groups::open().ok()).flatten();
    let groups = open().filter(Groups::rules_devices);
    if groups.is_none() {
        eprintln!("skipped: needs root and a writable cgroup");
    }
    groups
}

#[test]
fn privileged_device_program_is_accepted() {
    let found = Hierarchies::of_this_process().unwrap();
    let (true, Some(unified)) = (rustix::process::geteuid().is_root(), found.unified) else {
        eprintln!("skipped: needs root and a cgroup2 mount");
        return;
    };
    let dir = unified.own.join(format!("hw-devices-test-{}", std::process::id()));
    if let Err(error) = fs::create_dir(&dir) {
        eprintln!("skipped: {error}");
        return;
    }
    // A device that may be read only: whether there is one behind it does not matter for what is allowed.
    let also = DeviceRule { block: true, number: (7, 1), read: true, write: false };
    let ruled = devices::rule_version2(&dir, &[also]);
    let run = |script: &str| {
        let join = format!("echo $$ > {}/cgroup.procs && {script}", dir.display());
        std::process::Command::new("sh").args(["-c", &join]).output().unwrap().status.success()
    };
    let node = std::env::temp_dir().join(format!("hw-node-{}", std::process::id()));
    let node = node.display();
    let null = run("echo > /dev/null && head -c1 /dev/zero >/dev/null");
    // Loop devices are block devices everywhere; whether one is attached does not matter for the refusal.
    let made = run(&format!("mknod {node} b 7 0"));
    let opened = run(&format!("head -c0 {node}"));
    let _ = fs::remove_file(node.to_string());
    // What is refused is refused as not permitted; what may be opened fails for want of a device at most.
    run(&format!("mknod {node} b 7 1"));
    let read = run(&format!("LC_ALL=C; {{ true < {node}; }} 2>&1 | {{ ! grep -q 'not permitted'; }}"));
    let written = run(&format!("LC_ALL=C; {{ true <> {node}; }} 2>&1 | {{ ! grep -q 'not permitted'; }}"));
    let _ = fs::remove_file(node.to_string());
    fs::remove_dir(&dir).unwrap();
    ruled.unwrap();
    assert!(null && made && !opened, "null {null}, made {made}, opened {opened}");
    assert!(read && !written, "read {read}, written {written}");
}

#[test]
fn privileged_devices_are_allowed_to_one_group() {
    let Some(groups) = root_groups() else { return };
    let also = [DeviceRule { block: true, number: (7, 1), read: true, write: false }];
    let group = groups.create("t1", None, Devices::Also(&also), &Limits::default()).unwrap();
    let shared: Vec<_> = groups.shared();
    let node = std::env::temp_dir().join(format!("hw-node-{}-own", std::process::id()));
    let node = node.display();
    let is_permitted = |procs: &[PathBuf], script: &str| {
        let join: String = procs.iter().map(|file| format!("echo $$ > {} && ", file.display())).collect();
        let script = format!("{join} {{ {{ {script}; }} 2>&1 | {{ ! grep -q 'not permitted'; }} }}");
        std::process::Command::new("sh").args(["-c", &script]).env("LC_ALL", "C").output().unwrap().status.success()
    };
    assert!(is_permitted(&group.procs(), &format!("mknod {node} b 7 1")));
    let opened = |procs: &[PathBuf], how: &str| is_permitted(procs, &format!("true {how} {node}"));
    let (read, written) = (opened(&group.procs(), "<"), opened(&group.procs(), "<>"));
    let others = opened(&shared, "<");
    let null = is_permitted(&group.procs(), "echo > /dev/null");
    let _ = fs::remove_file(node.to_string());
    assert!(read && !written && !others && null, "read {read}, written {written}, others {others}, null {null}");
}
