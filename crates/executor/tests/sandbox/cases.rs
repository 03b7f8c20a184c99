//! How steps begin, end and are kept in.

use std::time::{Duration, Instant};

use executor::{CancellationToken, Error, ExtraHost, Network, Security, Step, Ulimit};

use crate::bed::{Bed, descendants};
use crate::{Outcome, Skip, Test};

pub const ALL: &[(&str, Test)] = &[
    ("exit_codes_and_signals_are_told", exit_codes),
    ("programs_that_cannot_run_are_named", missing_programs),
    ("output_arrives_whole_and_apart", output),
    ("stdin_is_empty", stdin),
    ("daemons_die_with_the_step", stragglers),
    ("a_cancelled_step_leaves_nothing", cancel),
    ("a_dropped_step_leaves_nothing", dropped),
    ("a_cancelled_start_never_runs", cancelled_before),
    ("many_steps_run_at_once", many),
    ("init_is_started_again_when_it_dies", init_dies),
    ("a_dead_init_takes_its_steps_along", init_death_kills),
    ("the_step_is_process_one", process_one),
    ("sandboxed_steps_have_few_capabilities", capabilities),
    ("insecure_steps_have_all_capabilities", insecure),
    ("privileged_insecure_steps_have_groups_of_their_own", own_groups),
    ("the_filter_refuses_what_it_should", filter),
    ("kernel_files_are_hidden", masked),
    ("names_are_set", names),
    ("a_network_of_its_own_has_only_loopback", network),
    ("users_are_looked_up_in_the_root", users),
    ("environment_and_directory", environment),
    ("ulimits_apply", ulimits),
    ("descriptors_do_not_leak", descriptors),
    ("devices_are_there", devices),
    ("privileged_devices_of_the_machine_stay_closed", device_rules),
    ("privileged_set_uid_programs_work", set_uid),
    ("our_program_cannot_be_written", program_is_safe),
];

fn exit_codes(bed: &Bed) -> Outcome {
    for (script, code, signal) in [
        ("exit 0", 0, None),
        ("exit 3", 3, None),
        ("exit 255", 255, None),
        ("sh -c 'kill -9 $$'; exit $?", 137, None),
        ("sh -c 'kill -15 $$'; exit $?", 143, None),
    ] {
        let ran = bed.run(bed.script("a", script)).unwrap();
        assert_eq!((ran.exit.code, ran.exit.signal), (code, signal), "{script}: {ran:?}");
    }
    Ok(())
}

fn missing_programs(bed: &Bed) -> Outcome {
    let mut table = Vec::new();
    for (args, text) in [
        (vec!["nope"], "exec: \"nope\": executable file not found in $PATH\n"),
        (vec!["/nope"], "exec: \"/nope\": stat /nope: no such file or directory\n"),
        (vec!["/etc/passwd"], "exec: \"/etc/passwd\": permission denied\n"),
        (vec!["/etc"], "exec: \"/etc\": is a directory\n"),
    ] {
        let ran = bed.run(Step::new(bed.root("a"), args.clone())).unwrap();
        table.push((args, ran.exit.code == 1 && ran.stderr == text, ran));
    }
    let wrong: Vec<_> = table.iter().filter(|(_, right, _)| !right).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    // A script without an interpreter line, and one whose interpreter is missing.
    let ran = bed.run(bed.script("a", "echo x > /x; chmod +x /x; exec /x")).unwrap();
    assert_eq!((ran.exit.code, ran.exit.started), (127, true), "{ran:?}");
    let scripts = bed.dir("scripts");
    for (name, text) in [("bare", "true\n"), ("lost", "#!/no/such/shell\n")] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(scripts.join(name), text).unwrap();
        std::fs::set_permissions(scripts.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (name, text) in
        [("/m/bare", "exec /m/bare: exec format error\n"), ("/m/lost", "exec /m/lost: no such file or directory\n")]
    {
        let mut step = Step::new(bed.root("a"), [name]);
        step.mounts.push(crate::mounts::directory("/m", &scripts));
        let ran = bed.run(step).unwrap();
        assert_eq!((ran.exit.code, ran.exit.started, ran.stderr.as_str()), (1, false, text));
    }
    Ok(())
}

fn output(bed: &Bed) -> Outcome {
    let ran = bed.run(bed.script("a", "for i in $(seq 20000); do echo $i; done; echo oops >&2; printf end")).unwrap();
    let mut expected: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    expected.push_str("end");
    assert_eq!(ran.stdout, expected);
    assert_eq!(ran.stderr, "oops\n");
    Ok(())
}

fn stdin(bed: &Bed) -> Outcome {
    assert_eq!(bed.say(bed.script("a", "wc -c; readlink /proc/self/fd/0")), "0\n/dev/null\n");
    Ok(())
}

fn stragglers(bed: &Bed) -> Outcome {
    let began = Instant::now();
    let script = "setsid sh -c 'setsid sleep 600 & setsid sleep 600 &' ; (sleep 600 &) ; echo done";
    assert_eq!(bed.say(bed.script("a", script)), "done\n");
    assert!(began.elapsed() < Duration::from_secs(60), "it waited for a straggler");
    Ok(())
}

fn cancel(bed: &Bed) -> Outcome {
    let token = CancellationToken::new();
    let later = token.clone();
    let waiter = bed.runtime.spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        later.cancel();
    });
    let script = "trap '' TERM INT; setsid sh -c 'trap \"\" TERM; setsid sleep 600 & sleep 600' & sleep 600; true";
    let result = bed.run_with(bed.script("a", script), token);
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    bed.runtime.block_on(waiter).unwrap();
    Ok(())
}

fn dropped(bed: &Bed) -> Outcome {
    let step = bed.script("a", "setsid sleep 600 & sleep 600");
    let cancelled = bed.runtime.block_on(async {
        let run = bed.executor.run(step, executor::StepIo::discard(), CancellationToken::new());
        tokio::time::timeout(Duration::from_millis(100), run).await
    });
    assert!(cancelled.is_err());
    // Its end is in the background; the common look around waits for it.
    let patience = Instant::now() + Duration::from_secs(5);
    while descendants().len() > 1 {
        assert!(Instant::now() < patience, "{:?}", descendants());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn cancelled_before(bed: &Bed) -> Outcome {
    let token = CancellationToken::new();
    token.cancel();
    let result = bed.run_with(bed.script("a", "touch /ran"), token);
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(!bed.upper("a").join("ran").exists());
    Ok(())
}

fn many(bed: &Bed) -> Outcome {
    let steps: Vec<_> = (0..20)
        .map(|n| {
            let step = bed.script(&format!("many{n}"), &format!("echo {n} > /n; sleep 0.05; exit {n}"));
            let executor = bed.executor.clone();
            bed.runtime
                .spawn(async move { executor.run(step, executor::StepIo::discard(), CancellationToken::new()).await })
        })
        .collect();
    for (n, step) in steps.into_iter().enumerate() {
        assert_eq!(bed.runtime.block_on(step).unwrap().unwrap().code, n as i32);
        assert_eq!(std::fs::read_to_string(bed.upper(&format!("many{n}")).join("n")).unwrap(), format!("{n}\n"));
    }
    Ok(())
}

/// The process id of init, our only child.
fn init() -> i32 {
    let own = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    let known = |pid: i32| children.is_empty() || children.split_whitespace().any(|child| child == pid.to_string());
    descendants().into_iter().find(|(pid, _)| known(*pid)).expect("init").0
}

/// Kills init and waits until it no longer takes requests.
fn kill_init() {
    let init = init();
    rustix::process::kill_process(rustix::process::Pid::from_raw(init).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let dead = || std::fs::read_to_string(format!("/proc/{init}/stat")).map_or(true, |stat| stat.contains(") Z "));
    while !dead() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn init_dies(bed: &Bed) -> Outcome {
    kill_init();
    assert_eq!(bed.say(bed.script("a", "echo again")), "again\n");
    Ok(())
}

fn init_death_kills(bed: &Bed) -> Outcome {
    let killer = bed.runtime.spawn(async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        kill_init();
    });
    let result = bed.run(bed.script("a", "setsid sleep 600 & sleep 600"));
    assert!(matches!(result, Err(Error::Helper(_))), "{result:?}");
    bed.runtime.block_on(killer).unwrap();
    // The next one gets a new init.
    assert_eq!(bed.say(bed.script("a", "echo again")), "again\n");
    Ok(())
}

fn process_one(bed: &Bed) -> Outcome {
    let said = bed.say(bed.script("a", "echo $$; cat /proc/self/stat | head -c 2; echo; readlink /proc/self | wc -l"));
    assert!(said.starts_with("1\n"), "{said}");
    Ok(())
}

fn status(bed: &Bed, step: Step) -> String {
    bed.say(step)
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap_or_default();
    line.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

fn capabilities(bed: &Bed) -> Outcome {
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let said = status(bed, Step::new(bed.root("a"), ["cat", "/proc/self/status"]));
    for (name, expected) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", "00000000a80425fb"),
        ("CapEff", "00000000a80425fb"),
        ("CapBnd", "00000000a80425fb"),
        ("CapAmb", "0000000000000000"),
        // Set-uid programs work, unless somebody took that from us already.
        ("NoNewPrivs", &field(&own, "NoNewPrivs")),
        ("Seccomp", "2"),
        ("SigBlk", "0000000000000000"),
        ("SigIgn", "0000000000000000"),
    ] {
        assert_eq!(field(&said, name), expected, "{name}");
    }
    if !bed.single_id() {
        let mut step = bed.script("a", "cat /proc/self/status");
        step.user = "ann".to_owned();
        let said = status(bed, step);
        assert_eq!(
            (field(&said, "CapEff").as_str(), field(&said, "CapPrm").as_str()),
            ("0000000000000000", "0000000000000000")
        );
        assert_eq!(field(&said, "CapBnd"), "00000000a80425fb");
    }
    Ok(())
}

fn insecure(bed: &Bed) -> Outcome {
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let mut step =
        bed.script("a", "cat /proc/self/status; mount -t tmpfs x /tmp && echo mounted; ls /proc/sys/kernel >/dev/null");
    step.security = Security::Insecure;
    let said = status(bed, step);
    assert_eq!(field(&said, "CapEff"), field(&own, "CapEff"), "{said}");
    assert_eq!(field(&said, "Seccomp"), field(&own, "Seccomp"));
    assert!(said.contains("mounted"), "{said}");
    if !bed.single_id() {
        let mut step = bed.script("a", "cat /proc/self/status");
        step.security = Security::Insecure;
        step.user = "ann".to_owned();
        assert_eq!(field(&status(bed, step), "CapEff"), field(&own, "CapEff"));
    }
    Ok(())
}

fn own_groups(bed: &Bed) -> Outcome {
    let groups = sys::cgroup::Groups::open().map_err(|error| Skip(error.to_string()))?;
    if !groups.rules_devices() {
        return Err(Skip("no writable control group".to_owned()));
    }
    let name = format!("below-{}", std::process::id());
    let script = format!(
        "cd /sys/fs/cgroup; for group in . memory cpuset pids freezer; do \
           if [ -e $group/cgroup.procs ] && mkdir $group/{name}; then \
             echo made; sleep 600 & echo $! > $group/{name}/cgroup.procs; \
           fi; \
         done 2>/dev/null; \
         if [ -d freezer/{name} ]; then echo FROZEN > freezer/{name}/freezer.state && echo frozen; fi 2>/dev/null; true"
    );
    let mut step = bed.script("a", &script);
    step.security = Security::Insecure;
    let ran = bed.run(step).unwrap();
    assert!(ran.stdout.contains("made"), "{ran:?}");
    // It ended with a process that was frozen.
    assert!(ran.stdout.contains("frozen") || !std::path::Path::new("/sys/fs/cgroup/freezer").exists(), "{ran:?}");
    // All of it is gone with the step.
    let find = std::process::Command::new("find").args(["/sys/fs/cgroup", "-name", &name]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&find.stdout), "");
    let ran = bed.run(bed.script("a", &script)).unwrap();
    assert!(!ran.stdout.contains("made"), "{ran:?}");
    Ok(())
}

fn filter(bed: &Bed) -> Outcome {
    let said = bed.say(bed.script(
        "a",
        "mount -t tmpfs x /tmp 2>&1; umount /proc 2>&1; hostname other 2>&1; chroot / /bin/echo chroot works; true",
    ));
    assert!(said.contains("chroot works"), "{said}");
    assert_eq!(said.matches("ermi").count(), 3, "{said}");
    Ok(())
}

fn masked(bed: &Bed) -> Outcome {
    let exists = |path: &&&str| std::path::Path::new(path).exists();
    let files = ["/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug"];
    for file in files.iter().filter(exists) {
        assert_eq!(bed.say(bed.script("a", &format!("wc -c < {file}"))), "0\n", "{file}");
    }
    let dirs = ["/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"];
    for dir in dirs.iter().filter(exists) {
        assert_eq!(bed.say(bed.script("a", &format!("[ ! -e {dir} ] || ls -A {dir}"))), "", "{dir}");
    }
    for file in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/mm/ksm/run"].iter().filter(exists)
    {
        let ran = bed.run(bed.script("a", &format!("[ -e {file} ] && echo x > {file}"))).unwrap();
        let refused = ran.stderr.contains("Read-only file system") || !bed.privileged() && file.starts_with("/sys");
        assert!(refused && ran.exit.code != 0, "{file}: {ran:?}");
    }
    Ok(())
}

fn names(bed: &Bed) -> Outcome {
    let script = "hostname; cat /etc/hosts; cat /etc/resolv.conf; { echo x > /etc/hosts; } 2>&1; true";
    let said = bed.say(bed.script("a", script));
    assert!(said.starts_with("buildkitsandbox\n127.0.0.1\tlocalhost buildkitsandbox\n::1\t"), "{said}");
    assert!(said.contains("nameserver ") && said.contains("Read-only"), "{said}");
    let mut step = bed.script("a", script);
    step.hostname = Some("box".to_owned());
    step.extra_hosts = vec![ExtraHost { host: "db".to_owned(), ip: "10.1.2.3".parse().unwrap() }];
    let said = bed.say(step);
    assert!(said.starts_with("box\n127.0.0.1\tlocalhost box\n") && said.contains("10.1.2.3\tdb\n"), "{said}");
    // Neither file is in the layer.
    assert!(!bed.upper("a").join("etc/hosts").exists() && !bed.upper("a").join("etc/resolv.conf").exists());
    Ok(())
}

fn network(bed: &Bed) -> Outcome {
    let mut step = bed.script("a", "grep -c : /proc/net/dev; ip addr show lo");
    step.network = Network::None;
    let said = bed.say(step);
    assert!(said.starts_with("1\n") && said.contains("LOOPBACK,UP") && said.contains("127.0.0.1/8"), "{said}");
    let own = std::fs::read_to_string("/proc/net/dev").unwrap();
    let said = bed.say(bed.script("a", "cat /proc/net/dev | wc -l"));
    assert_eq!(said.trim(), own.lines().count().to_string());
    Ok(())
}

fn users(bed: &Bed) -> Outcome {
    for (user, expected) in [("", "uid=0(root) gid=0(root)"), ("root:root", "uid=0(root) gid=0(root)")] {
        let mut step = bed.script("a", "id");
        step.user = user.to_owned();
        let said = bed.say(step);
        assert!(said.starts_with(expected), "{user}: {said}");
    }
    let named = |user: &str| {
        let mut step = bed.script("a", "id -u; id -g; id -G; echo $HOME; echo > /dev/stdout; pwd");
        step.user = user.to_owned();
        step.cwd = "/work/deep".to_owned();
        bed.run(step)
    };
    if bed.single_id() {
        let error = named("ann").unwrap_err().to_string();
        assert!(error.starts_with("user 1000:1000 does not exist here: only id 0 is mapped"), "{error}");
    } else {
        for (user, expected) in [
            ("ann", "1000\n1000\n1000 10\n/home/ann\n\n/work/deep\n"),
            ("1000:10", "1000\n10\n10\n/home/ann\n\n/work/deep\n"),
            ("4242", "4242\n0\n0\n/\n\n/work/deep\n"),
        ] {
            let ran = named(user).unwrap();
            assert_eq!(ran.stdout, expected, "{user}: {ran:?}");
        }
        // The missing directory was made for the user.
        use std::os::unix::fs::MetadataExt;
        let made = std::fs::metadata(bed.upper("a").join("work/deep")).unwrap();
        assert_eq!((made.uid(), made.mode() & 0o7777), (4242, 0o755));
    }
    for (user, expected) in [
        ("eve", "unable to find user eve: no matching entries in passwd file"),
        ("root:eve", "unable to find group eve: no matching entries in group file"),
    ] {
        let error = named(user).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)) && error.to_string() == expected, "{error}");
    }
    Ok(())
}

fn environment(bed: &Bed) -> Outcome {
    let mut step = Step::new(bed.root("a"), ["env"]);
    step.env = vec!["A=1".to_owned(), "B=x y".to_owned(), "A=2".to_owned()];
    let said = bed.say(step);
    assert_eq!(said, format!("B=x y\nA=2\nPATH={}\nHOME=/root\n", executor::DEFAULT_PATH));
    let mut step = Step::new(bed.root("a"), ["sh", "-c", "umask; pwd"]);
    step.cwd = "/new/dir".to_owned();
    assert_eq!(bed.say(step), "0022\n/new/dir\n");
    let mut step = Step::new(bed.root("a"), ["pwd"]);
    step.cwd = "/etc/passwd".to_owned();
    let error = bed.run(step).unwrap_err().to_string();
    assert!(error.contains("working directory `/etc/passwd`"), "{error}");
    Ok(())
}

fn ulimits(bed: &Bed) -> Outcome {
    let mut step = bed.script("a", "ulimit -n; ulimit -Hn");
    step.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 100, hard: 200 }];
    assert_eq!(bed.say(step), "100\n200\n");
    let mut step = bed.script("a", "true");
    step.ulimits = vec![Ulimit { name: "bogus".to_owned(), soft: 1, hard: 1 }];
    assert_eq!(bed.run(step).unwrap_err().to_string(), "unknown ulimit `bogus`");
    Ok(())
}

fn descriptors(bed: &Bed) -> Outcome {
    // One more is the listing's own.
    let said = bed
        .say(bed.script("a", "ls /proc/self/fd; env | grep -v -e ^PATH -e ^HOME -e ^PWD -e ^SHLVL -e ^OLDPWD; true"));
    assert_eq!(said, "0\n1\n2\n3\n", "{said}");
    Ok(())
}

fn devices(bed: &Bed) -> Outcome {
    let said = bed.say(bed.script(
        "a",
        "head -c3 /dev/zero | wc -c; head -c3 /dev/urandom | wc -c; echo x > /dev/null; \
         for f in fd stdin stdout stderr ptmx; do readlink /dev/$f; done; ls -d /dev/pts/ptmx /dev/shm /dev/mqueue; \
         stat -c %a /dev/null /dev/shm; { echo x > /dev/full; } 2>&1; true",
    ));
    assert!(
        said.starts_with(
            "3\n3\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n\
             /dev/mqueue\n/dev/pts/ptmx\n/dev/shm\n666\n1777\n"
        ) || said.contains("/dev/pts/ptmx\n/dev/shm\n/dev/mqueue\n666\n1777\n"),
        "{said}"
    );
    Ok(())
}

fn device_rules(bed: &Bed) -> Outcome {
    use std::os::unix::fs::MetadataExt;
    let disk = std::fs::metadata("/").unwrap().dev();
    // The disk, kmsg, fuse: the first that the machine lets root open.
    let candidates = [('b', rustix::fs::major(disk), rustix::fs::minor(disk)), ('c', 1, 11), ('c', 10, 229)];
    let node = bed.dir("nodes").join("n");
    let opens = |kind: &char, major: &u32, minor: &u32| {
        let _ = std::fs::remove_file(&node);
        let made = std::process::Command::new("mknod")
            .arg(&node)
            .args([kind.to_string(), major.to_string(), minor.to_string()])
            .status();
        made.is_ok_and(|status| status.success()) && std::fs::File::open(&node).is_ok()
    };
    let Some((kind, major, minor)) = candidates.iter().find(|(kind, major, minor)| opens(kind, major, minor)) else {
        return Err(Skip("the machine opens no device that steps must not".to_owned()));
    };
    // A failed redirection ends the shell, so it comes last.
    let script = format!(
        "mknod /null c 1 3 && echo x > /null && echo null works; \
         mknod /n {kind} {major} {minor} && echo made; exec 3</n; echo opened"
    );
    let ran = bed.run(bed.script("a", &script)).unwrap();
    assert!(ran.stdout.contains("made\n") && !ran.stdout.contains("opened"), "{ran:?}");
    if !ran.stdout.contains("null works") {
        println!("  (no device rules here: nodes cannot be opened at all)");
    }
    let mut step = bed.script("a", &script);
    step.security = Security::Insecure;
    let ran = bed.run(step).unwrap();
    assert!(ran.stdout.contains("made\nopened\n"), "{ran:?}");
    Ok(())
}

fn set_uid(bed: &Bed) -> Outcome {
    let tools = bed.dir("tools");
    let script = "cp=/tools/busybox; cat /bin/busybox > $cp; chmod 4755 $cp";
    let mut step = bed.script("a", script);
    step.mounts.push(crate::mounts::directory("/tools", &tools));
    bed.say(step);
    // `su` wants to be root by its file, and says so where it is not; else it gets to ask for a password.
    let complaint = "must be suid to work properly";
    for (program, is_root) in [("/bin/busybox", false), ("/tools/busybox", true)] {
        let mut step = bed.script("a", &format!("{program} su root -c true 2>&1; true"));
        step.mounts.push(crate::mounts::directory("/tools", &tools));
        step.user = "ann".to_owned();
        let said = bed.say(step);
        assert_eq!(said.contains(complaint), !is_root, "{program}: {said}");
    }
    Ok(())
}

fn program_is_safe(bed: &Bed) -> Outcome {
    // A step's /proc shows no program but its own.
    let script = "for p in /proc/[0-9]*; do [ $(readlink $p/exe 2>/dev/null) = /bin/busybox ] || readlink $p/exe; done";
    assert_eq!(bed.say(bed.script("a", &format!("{script} 2>/dev/null; true"))), "");
    // And even who may look at init cannot write to what it runs: it is mounted read-only, or at least busy.
    let program = format!("/proc/{}/exe", init());
    let error = std::fs::OpenOptions::new().write(true).open(&program).unwrap_err();
    let known = [libc::EROFS, libc::ETXTBSY, libc::EACCES];
    assert!(known.contains(&error.raw_os_error().unwrap()), "{error}");
    Ok(())
}
