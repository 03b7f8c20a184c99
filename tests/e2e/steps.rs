//! What people see of steps: their output, their failures, and what a signal does to them.

use std::fs;
use std::time::{Duration, Instant};

use crate::daemon::Served;
use crate::harness::{World, is_root};
use crate::needs;
use crate::who::Who;

/// A context with a shell: Debian's static busybox.
fn with_shell(world: &World, instructions: &str) {
    fs::create_dir_all(world.path("context/bin")).unwrap();
    for name in ["sh", "sleep", "cat", "wc", "yes", "head", "tr"] {
        fs::copy("/bin/busybox", world.path("context/bin").join(name)).unwrap();
    }
    world.write("context/Dockerfile", format!("FROM scratch\nCOPY bin /bin/\n{instructions}"));
}

#[test]
fn output_is_shown_with_its_time() {
    needs!(tool "busybox");
    let world = World::new();
    with_shell(&world, "RUN echo one; echo two >&2\n");
    let ended = world.build().arg("context").succeeds();
    for line in ["one", "two"] {
        let shown = ended.stderr.lines().any(|l| l.starts_with("#") && l.ends_with(&format!(" {line}")));
        assert!(shown, "{ended:?}");
    }
    ended.says("DONE");
}

#[test]
fn a_failure_shows_place_output_and_cause() {
    needs!(tool "busybox");
    let world = World::new();
    with_shell(&world, "RUN echo before; exit 42\nRUN echo never\n");
    let ended = world.build().arg("context").fails();
    ended.says("before\n------\nDockerfile:3\n--------------------\n");
    ended.says("   3 | >>> RUN echo before; exit 42\n");
    ended.says("error: failed to solve: process \"/bin/sh -c echo before; exit 42\" did not complete successfully: exit code: 42\n");
    assert!(!ended.stderr.contains("never\n") || !ended.stderr.contains("0 never"), "{ended:?}");
    // The last line says it all, whatever the command looks like.
    with_shell(&world, "RUN <<EOF\necho \"$HOME\"\nexit 4\nEOF\n");
    let ended = world.build().arg("context").fails();
    let cause = r#"process "/bin/sh -c echo \"$HOME\"\nexit 4\n" did not complete successfully: exit code: 4"#;
    ended.says(&format!("error: failed to solve: {cause}\n"));
}

#[test]
fn secrets_reach_the_step_and_nothing_else() {
    needs!(tool "busybox");
    let world = World::new();
    let secret = "hunter2-secret";
    world.write("token", secret);
    with_shell(&world, "RUN --mount=type=secret,id=t,required=true wc -c < /run/secrets/t > /length\n");
    let ended = world.build().args(["--secret", "id=t,src=token", "--output", "out", "context"]).succeeds();
    assert_eq!(fs::read_to_string(world.path("out/length")).unwrap().trim(), secret.len().to_string());
    assert!(!ended.stderr.contains(secret), "{ended:?}");
    let found =
        world.run("grep").args(["--recursive", "--binary", "--files-with-matches", secret, "out", "state"]).ends();
    assert!(found.code == Some(1), "the secret lies in {}", found.text());
    world.build().args(["--no-cache", "context"]).fails().says("error: failed to solve: ");
}

#[test]
fn the_first_signal_ends_the_build_and_its_steps() {
    needs!(tool "busybox");
    let world = World::new();
    // An argument that no other process has.
    let mark = format!("{}.25", 1000 + std::process::id());
    with_shell(&world, &format!("RUN echo started; exec sleep {mark}\n"));
    for signal in ["INT", "TERM"] {
        let running = world.build().arg("context").starts();
        running.waits_for("started");
        running.signal(signal);
        let began = Instant::now();
        let ended = running.ends();
        assert!(ended.code == Some(1), "{ended:?}");
        ended.says("error: failed to solve: ");
        assert!(began.elapsed() < Duration::from_secs(60), "it slept to its end");
        assert!(!is_running(&mark), "the step goes on after SIG{signal}");
    }
}

/// More than the builder itself needs, and much less than what the steps print.
const MEMORY: u64 = 150 << 20;

#[test]
fn a_flood_of_output_is_clipped_and_costs_no_memory() {
    needs!(tool "busybox");
    let world = World::new();
    // Lines; one line that never ends; and a step that fails behind a flood.
    for (flood, line) in [
        ("yes | head -n 10000000", "y"),
        ("head -c 100000000 /dev/zero | tr '\\0' x", "x"),
        ("yes | head -n 3000000; echo why >&2; exit 3", "y"),
    ] {
        with_shell(&world, &format!("RUN {flood}\n"));
        let (ended, peak) = world.build().args(["--no-cache", "context"]).starts().ends_with_peak();
        let fails = flood.ends_with("exit 3");
        assert!(ended.code == Some(i32::from(fails)), "{:?}: {}", ended.code, end(&ended.stderr));
        assert!(peak > 0 && peak < MEMORY, "{flood}: {peak} bytes of memory");
        let shown = ended.stderr.matches(line).count();
        assert!((100_000..8 << 20).contains(&shown), "{flood}: {shown}");
        let cut = ended.stderr.matches("[output clipped, log limit ").count();
        assert!(cut > 0, "{}", end(&ended.stderr));
        if fails {
            let said = end(&ended.stderr);
            assert!(said.contains(" why\n------\nDockerfile:3\n"), "the last output is not shown: {said}");
        }
    }
}

#[test]
fn output_without_a_limit_is_shown_whole_and_costs_no_memory() {
    needs!(tool "busybox");
    let world = World::new();
    // Two steps at once, so that one waits for the other.
    let step = "RUN yes QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ | head -n 1000000";
    with_shell(&world, &format!("{step}\nFROM scratch\nCOPY bin /bin/\n{step}; :\nCOPY --from=0 /bin/sh /x\n"));
    let build = world.build().env("BUILDKIT_STEP_LOG_MAX_SIZE", "-1").arg("context");
    let (ended, peak) = build.starts().ends_with_peak();
    assert!(ended.code == Some(0), "{}", end(&ended.stderr));
    assert!(peak > 0 && peak < MEMORY, "{peak} bytes of memory");
    // Where the display turned to the other step in the middle of a line, it is in two pieces.
    let output = ended.stderr.lines().filter(|line| !line.contains("yes"));
    let shown: usize = output.map(|line| line.bytes().filter(|byte| *byte == b'Q').count()).sum();
    assert_eq!(shown, 31 * 2_000_000);
}

/// The end of a text that is too long to be shown.
fn end(text: &str) -> &str {
    let from = text.len().saturating_sub(2000);
    text.get(from..).unwrap_or(text)
}

#[test]
fn what_one_stage_made_another_copies() {
    needs!(tool "busybox");
    let world = World::new();
    // Large files take other ways than small ones.
    let stages = "RUN echo made > /small; cat /bin/sh > /large\nFROM scratch\nCOPY --from=0 /small /large /copied/\n";
    with_shell(&world, stages);
    world.build().args(["--output", "out", "context"]).succeeds();
    assert_eq!(fs::read_to_string(world.path("out/copied/small")).unwrap(), "made\n");
    assert!(fs::read(world.path("out/copied/large")).unwrap() == fs::read("/bin/busybox").unwrap());
    // Another process, another mount: the stage is the same.
    world.write("context/Dockerfile", format!("FROM scratch\nCOPY bin /bin/\n{stages}COPY --from=0 /large /again\n"));
    world.build().args(["--output", "out", "context"]).succeeds().says("CACHED");
    assert!(fs::read(world.path("out/again")).unwrap() == fs::read("/bin/busybox").unwrap());
}

/// Whether some process has this argument.
fn is_running(argument: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    })
}

/// What build arguments and options of the frontend say of steps.
#[test]
fn options_of_the_frontend_reach_the_steps() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(served) = Served::new(who, "") else { return };
    let kitchen = &served.kitchen;
    let made = |name: &str| fs::read_to_string(kitchen.world.path("out").join(name)).unwrap();
    kitchen.dockerfile(
        "FROM busybox AS b\nARG N\nRUN --mount=type=cache,target=/c echo $N >> /c/l && cat /c/l > /l\n\
         RUN cat /proc/sys/kernel/hostname > /h; cat /etc/hosts > /hosts; cat /proc/mounts > /mounts; ls /sys/class/net > /net\n\
         FROM scratch\nCOPY --from=b /l /h /hosts /mounts /net /\n",
    );
    let line = "--opt build-arg:BUILDKIT_SANDBOX_HOSTNAME=box --opt add-hosts=db=192.0.2.9,six=2001:db8::1 \
                --opt shm-size=1048576 --opt force-network-mode=none --output type=local,dest=out";
    served.build(&format!("{line} --opt build-arg:N=1")).succeeds();
    let hosts = made("hosts");
    for line in ["192.0.2.9\tdb", "2001:db8::1\tsix"] {
        assert!(hosts.lines().any(|have| have == line), "`{line}`: {hosts}");
    }
    assert_eq!(made("h"), "box\n");
    assert_eq!(made("net"), "lo\n");
    let mounts = made("mounts");
    let shm = mounts.lines().find(|line| line.contains(" /dev/shm ")).unwrap();
    assert!(shm.contains("size=1024k"), "{shm}");
    // The cache mounts of one namespace are not those of another.
    let builds = |n: u32, namespace: &str| {
        let namespace = format!("--opt build-arg:BUILDKIT_CACHE_MOUNT_NS={namespace}");
        served.build(&format!("{namespace} --opt build-arg:N={n} --output type=local,dest=out")).succeeds();
        made("l").replace('\n', " ")
    };
    assert_eq!([builds(2, ""), builds(3, "a"), builds(4, "b"), builds(5, "a")], ["1 2 ", "3 ", "4 ", "3 5 "]);
    // One platform, and an index all the same.
    served.build("--opt build-arg:BUILDKIT_MULTI_PLATFORM=1 --output type=local,dest=split").succeeds();
    let own = base::Platform::host().to_string().replace('/', "_");
    assert!(kitchen.world.path("split").join(own).join("l").exists());
    // What only contexts from elsewhere have.
    let subdir = served.build("--opt contextsubdir=sub --output type=local,dest=sub").succeeds();
    subdir.says("option `contextsubdir` has no effect: it is for contexts from git or a URL, and this one is local");
    assert!(kitchen.world.path("sub/l").exists());
    served.ends();
}
