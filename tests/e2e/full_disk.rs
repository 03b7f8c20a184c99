//! A disk that is full: what no build uses goes, and what does not fit even then says so, and what to try. The state lies on
//! a small file system of its own, in an image file that is mounted for each command in a mount namespace of the command:
//! what happens to a test cannot leave it mounted.

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;

use testkit::image::{File, TestImage, noise, tar};

use crate::daemon::Served;
use crate::frontends::buildx;
use crate::harness::{Ended, Invocation, or_skip, tools};
use crate::kitchen::{Kitchen, ran, steps};
use crate::needs;
use crate::who::Who;

/// Mounts it and becomes the arguments.
const MOUNT: &str = "set -e\nmount -o loop disk.img disk\nexec \"$@\"";
/// Bytes of the disk.
const SIZE: u64 = 40 << 20;
/// What does not fit.
const LARGE: usize = 48 << 20;

const PRUNE: &str = "free space on the volume of the state directory, or run `hullworks prune --root disk/state`";
const PRUNE_BY_CLIENT: &str = "free space on the volume of the state directory, or run `buildctl prune`";
const FULL: &str =
    "the volume of the state directory is full: free space there, or run `hullworks prune --root disk/state`";
const OUTPUT: &str = "free space there, or write elsewhere; if the state directory lies there, try ";

/// See above.
struct Disk(Kitchen);

impl Disk {
    fn new() -> Option<Disk> {
        or_skip(tools(&["mkfs.ext4", "unshare"]))?;
        let kitchen = Kitchen::new(Who::Root)?;
        let world = &kitchen.world;
        fs::create_dir(world.path("disk")).unwrap();
        fs::File::create(world.path("disk.img")).unwrap().set_len(SIZE).unwrap();
        world.run("mkfs.ext4").args(["-q", "-F", "-m", "0", "-O", "^has_journal", "disk.img"]).succeeds();
        let disk = Disk(kitchen);
        let mounted = disk.run(&["true"]).ends();
        let can_mount = if mounted.code == Some(0) { Ok(disk) } else { Err(mounted.stderr) };
        or_skip(can_mount.map_err(|said| format!("it wants loop devices: {}", said.trim())))
    }

    /// A program in the world, with the disk at `disk`.
    fn run(&self, words: &[&str]) -> Invocation {
        let unshare =
            self.0.world.run("unshare").args(["--mount", "--propagation", "private", "sh", "-c", MOUNT, "sh"]);
        unshare.args(words)
    }

    fn sh(&self, script: &str) -> String {
        self.run(&["sh", "-ec", script]).succeeds().text()
    }

    /// A command on the state.
    fn hullworks(&self, line: &str) -> Ended {
        let program = self.0.world.path("hullworks");
        let words: Vec<&str> = [program.to_str().unwrap()].into_iter().chain(line.split(' ')).collect();
        self.run(&words).args(["--root", "disk/state"]).ends()
    }

    fn build(&self, args: &str) -> Ended {
        let line = format!("build --progress=plain --config=buildkitd.toml context {args}");
        self.hullworks(line.trim())
    }

    /// Builds what fills the disk; it must fail and leave the disk as it was.
    fn fills(&self, dockerfile: &str, line: usize, words: &str, hint: &str) {
        self.0.dockerfile(dockerfile);
        let before = self.free();
        let ended = self.build("");
        assert!(ended.code == Some(1), "{ended:?}");
        ended.says(&format!(" {line:3} | >>> ")).says(words).says("No space left on device").hints(hint);
        // The log of the database grows, and so may what was finished before.
        assert!(self.free() + (2 << 20) > before, "{} of {before} bytes are free: {ended:?}", self.free());
        self.0.dockerfile("FROM busybox\nRUN echo 1 > /1\n");
        let again = self.build("");
        // It was in use, or nothing went for what could not fit anyway.
        assert!(again.code == Some(0) && ran(&again).is_empty(), "{again:?}");
    }

    /// Leaves so many bytes free, for whoever comes next.
    fn leaves(&self, bytes: u64) {
        let script = format!(
            "rm -f disk/filler; size=$(($(stat -f -c '%a * %S' disk) - {bytes})); \
             if [ $size -gt 0 ]; then fallocate -l $size disk/filler; fi"
        );
        self.sh(&script);
    }

    /// Builds results of six megabytes that no later build needs, the oldest first.
    fn has_old_results(&self, count: u64) {
        self.sh("rm -f disk/filler");
        for n in 0..count {
            let ended = self.builds_old(n);
            assert!(ended.code == Some(0) && ran(&ended).len() == 1, "{ended:?}");
        }
    }

    fn builds_old(&self, n: u64) -> Ended {
        self.0.file("old", noise(n, 6 << 20));
        self.0.dockerfile(&format!("# {n}\nFROM busybox\nCOPY old /\n"));
        let ended = self.build("");
        fs::remove_file(self.0.world.path("context/old")).unwrap();
        ended
    }

    /// A daemon with its state on the disk.
    fn serves(self) -> Served {
        let world = &self.0.world;
        for name in ["buildkitd", "buildctl"] {
            symlink("hullworks", world.path(name)).unwrap();
        }
        let (program, socket) = (world.path("buildkitd"), format!("unix://{}", world.path("b.sock").display()));
        let words =
            [program.to_str().unwrap(), "--config", "buildkitd.toml", "--root", "disk/state", "--addr", &socket];
        let daemon = self.run(&words).starts();
        daemon.waits_until("that it listens", |said| said.contains("listening"));
        Served { kitchen: self.0, daemon }
    }

    fn free(&self) -> u64 {
        let text = self.sh("stat --file-system --format '%a %S' disk");
        text.split_whitespace().map(|word| word.parse::<u64>().unwrap()).product()
    }
}

#[test]
fn privileged_what_fills_the_disk_says_so_and_leaves_room() {
    needs!(root);
    let Some(disk) = Disk::new() else { return };
    let kitchen = &disk.0;
    kitchen.dockerfile("FROM busybox\nRUN echo 1 > /1\n");
    let first = disk.build("");
    assert!(first.code == Some(0), "{first:?}");

    let write = "FROM busybox\nRUN echo 1 > /1\nRUN busybox yes > /large\n";
    disk.fills(write, 3, "did not complete successfully: exit code: 1", FULL);
    kitchen.file("large", vec![b'x'; LARGE]);
    let copy = "FROM busybox\nRUN echo 1 > /1\nCOPY large /\n";
    disk.fills(copy, 3, "error: failed to solve: failed to change files: cannot copy `/large`: ", PRUNE);
    fs::remove_file(kitchen.world.path("context/large")).unwrap();
    let layer = tar(&[File { path: "large", mode: 0o644, data: vec![b'x'; LARGE], link: None }]);
    TestImage::of_layers(vec![layer]).put(&kitchen.registry, "large", "1");
    let pull = format!("# large\nFROM {}/large:1\nCOPY Dockerfile /\n", kitchen.registry.host());
    disk.fills(&pull, 2, "error: failed to solve: cannot ", PRUNE);
}

#[test]
fn privileged_what_finds_the_disk_full_has_old_results_go() {
    needs!(root);
    let Some(disk) = Disk::new() else { return };
    let kitchen = &disk.0;
    disk.has_old_results(3);
    let passes = |what: &str, args: &str| {
        let ended = disk.build(args);
        assert!(ended.code == Some(0), "{what}: {ended:?}");
        ended
    };
    let told = ": removed what no build uses (records: ";

    // The oldest of three make room for what is copied.
    disk.leaves(3 << 20);
    kitchen.file("new", noise(10, 8 << 20));
    kitchen.dockerfile("FROM busybox\nCOPY new /\n");
    passes("COPY", "--output type=local,dest=out").says(told);
    assert!(fs::read(kitchen.world.path("out/new")).unwrap() == noise(10, 8 << 20));
    fs::remove_file(kitchen.world.path("context/new")).unwrap();
    let newest = disk.builds_old(2);
    assert!(newest.code == Some(0) && ran(&newest).is_empty(), "more went than had to: {newest:?}");

    // A layer is downloaded once, whatever happens to what it is unpacked to.
    disk.hullworks("prune --all");
    disk.has_old_results(3);
    disk.leaves(3 << 20);
    let layer = tar(&[File { path: "pulled", mode: 0o644, data: noise(11, 5 << 20).to_vec(), link: None }]);
    let blob = format!("/v2/pulled/blobs/{}", base::Digest::of(&layer));
    TestImage::of_layers(vec![layer]).put(&kitchen.registry, "pulled", "1");
    kitchen.dockerfile(&format!("FROM {}/pulled:1\nCOPY Dockerfile /\n", kitchen.registry.host()));
    passes("pull", "--output type=local,dest=out");
    let fetched = kitchen.registry.requests().into_iter().filter(|one| one.method == "GET" && one.path == blob).count();
    assert_eq!(fetched, 1);
    assert!(fs::read(kitchen.world.path("out/pulled")).unwrap() == noise(11, 5 << 20));

    // A step has some room when it begins,
    disk.hullworks("prune --all");
    disk.has_old_results(3);
    kitchen.dockerfile("FROM busybox\nRUN echo 1 > /1\n");
    assert_eq!(disk.build("").code, Some(0));
    disk.leaves(1 << 20);
    kitchen.dockerfile("FROM busybox\nRUN echo 1 > /1\nRUN head -c 4000000 /dev/zero > /zeros\n");
    passes("RUN", "").says(told);

    // and runs once more where that was not enough. What it writes the second time is all that is kept.
    disk.hullworks("prune --all");
    disk.has_old_results(3);
    kitchen.dockerfile("FROM busybox\nRUN echo 1 > /1\n");
    assert_eq!(disk.build("").code, Some(0));
    disk.leaves(6 << 20);
    let write = "echo begin; date +%s%N >> /begun; busybox dd if=/dev/zero of=/zeros bs=1M count=9";
    kitchen.dockerfile(&format!("FROM busybox\nRUN echo 1 > /1\nRUN {write}\n"));
    let ended = passes("RUN", "--output type=local,dest=again");
    ended.says(told).says("the step found the volume of the state directory full: it runs once more\n");
    assert_eq!(ended.stderr.matches(" begin\n").count(), 2, "{ended:?}");
    let begun = fs::read_to_string(kitchen.world.path("again/begun")).unwrap();
    assert_eq!(begun.lines().count(), 1, "{begun}");
    assert_eq!(fs::metadata(kitchen.world.path("again/zeros")).unwrap().len(), 9 << 20);
    let newest = disk.builds_old(2);
    assert!(newest.code == Some(0) && ran(&newest).is_empty(), "more went than had to: {newest:?}");

    // The blob of a layer, for an output that lies elsewhere.
    disk.hullworks("prune --all");
    disk.has_old_results(3);
    disk.leaves(3 << 20);
    passes_export(&disk);
}

/// The newest of the old results becomes an image.
fn passes_export(disk: &Disk) {
    let kitchen = &disk.0;
    kitchen.file("old", noise(2, 6 << 20));
    kitchen.dockerfile("# 2\nFROM busybox\nCOPY old /\n");
    let ended = disk.build("--output type=oci,dest=image.tar");
    assert!(ended.code == Some(0) && ran(&ended).is_empty(), "{ended:?}");
    kitchen.world.run("tar").args(["tf", "image.tar", "index.json"]).succeeds();
    // The others have gone for it.
    let oldest = disk.builds_old(0);
    assert_eq!(ran(&oldest).len(), 1, "{oldest:?}");
}

#[test]
fn privileged_an_output_that_fills_another_volume_costs_no_result() {
    needs!(root);
    let Some(disk) = Disk::new() else { return };
    let kitchen = &disk.0;
    kitchen.file("noise", noise(7, 7 << 20));
    kitchen.dockerfile("FROM busybox\nCOPY noise /\n");
    kitchen.build("").succeeds();
    kitchen.dockerfile("FROM busybox\nCOPY noise /\nRUN echo old > /old\n");
    kitchen.build("--output type=image,name=x").succeeds();
    disk.leaves(2 << 20);
    kitchen.dockerfile("FROM busybox\nCOPY noise /\n");
    let records = || kitchen.hullworks("du").succeeds().text();
    let before = records();
    for output in ["oci,dest=disk/out.tar", "local,dest=disk/out", "tar,dest=disk/out.tar"] {
        let line =
            format!("build --progress=plain --config=buildkitd.toml --root state context --output type={output}");
        let program = kitchen.world.path("hullworks");
        let words: Vec<&str> = [program.to_str().unwrap()].into_iter().chain(line.split(' ')).collect();
        let ended = disk.run(&words).ends();
        assert!(ended.code == Some(1), "{ended:?}");
        ended.says("No space left on device").hints(&format!("{OUTPUT}`hullworks prune --root state`"));
        disk.sh("rm -rf disk/out disk/out.tar");
    }
    let after = records();
    let names = before.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| !name.ends_with(':')) {
        assert!(after.contains(name), "{name} is gone: {before} became {after}");
    }
}

#[test]
fn privileged_what_builds_use_stays_when_another_fills_the_disk() {
    needs!(root);
    let Some(disk) = Disk::new() else { return };
    disk.has_old_results(2);
    disk.leaves(10 << 20);
    let served = disk.serves();
    let kitchen = &served.kitchen;

    // One build has made what it needs later, and waits.
    let gate = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = gate.local_addr().unwrap().port();
    kitchen.file("kept", noise(20, 3 << 20));
    kitchen.dockerfile(&format!(
        "FROM busybox AS made\nCOPY kept /\nRUN echo \"stage-\"done\nFROM busybox\nRUN busybox nc 127.0.0.1 {port} || true\nCOPY --from=made /kept /\n"
    ));
    let waiting = served.build("--output type=local,dest=waited").starts();
    let held: TcpStream = gate.accept().unwrap().0;
    waiting.waits_until("that the other stage is done", |said| said.contains(" stage-done\n"));

    // Another one meets a full disk: the old results go, what the first one made does not.
    kitchen.world.write("other/new", noise(21, 4 << 20));
    kitchen.world.write("other/Dockerfile", "FROM busybox\nCOPY new /\nCOPY new /again\n");
    let line = "build --progress=plain --frontend=dockerfile.v0 --local=context=other --local=dockerfile=other";
    served.buildctl(&format!("{line} --output type=local,dest=others")).succeeds();
    served.daemon.waits_until("that results went", |said| said.contains("removed what no build uses"));

    drop(held);
    let ended = waiting.ends();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stderr.matches(" stage-done\n").count(), 1, "{ended:?}");
    let read = |name: &str| {
        let mut bytes = Vec::new();
        fs::File::open(kitchen.world.path(name)).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert!(read("waited/kept") == noise(20, 3 << 20));
    assert!(read("others/again") == noise(21, 4 << 20));
    served.daemon.signal("TERM");
    let ended = served.daemon.ends_soon();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn privileged_clients_that_drive_a_build_find_room_too() {
    needs!(root);
    needs!(tool "docker-buildx");
    let Some(disk) = Disk::new() else { return };
    disk.has_old_results(3);
    disk.leaves(3 << 20);
    let served = disk.serves();
    let kitchen = &served.kitchen;
    // Such a client may look at what failed: that must not take the room which the next try needs.
    kitchen.file("new", noise(10, 7 << 20));
    kitchen.dockerfile("FROM busybox\nCOPY new /\n");
    let line = "--builder b build --progress=plain";
    buildx(&served, &format!("{line} -o type=local,dest=out context")).succeeds();
    assert!(fs::read(kitchen.world.path("out/new")).unwrap() == noise(10, 7 << 20));
    served.daemon.waits_until("that results went", |said| said.contains("removed what no build uses"));

    // What a client has only once is not asked for again, and what lacked is said.
    let dockerfile = b"FROM busybox\nCOPY large /\n".to_vec();
    let archive = tar(&[
        File { path: "Dockerfile", mode: 0o644, data: dockerfile, link: None },
        File { path: "large", mode: 0o644, data: vec![b'x'; LARGE], link: None },
    ]);
    let ended = buildx(&served, &format!("{line} -")).stdin(archive.to_vec()).ends();
    // By the code scripts tell a full disk from a build that is wrong. It comes by way of the client, who drives the build.
    assert_eq!(ended.code, Some(102), "{ended:?}");
    ended.says("No space left on device").says(PRUNE_BY_CLIENT);
    assert!(!ended.stderr.contains("no http response"), "{ended:?}");
    served.ends();
}

/// A record is small, and to forget one is a write.
#[test]
fn privileged_records_of_builds_go_where_the_disk_is_full() {
    needs!(root);
    let Some(disk) = Disk::new() else { return };
    let place = disk.0.world.path("disk");
    let served = disk.serves();
    let kitchen = &served.kitchen;
    for n in 0..3 {
        kitchen.dockerfile(&format!("FROM busybox\nRUN echo {n} > /n\n"));
        served.build(&format!("--ref-file ref{n}")).succeeds();
    }
    // The daemon has its own mount of it.
    let place = format!("/proc/{}/root{}", served.daemon.id(), place.display());
    let fill = |name: &str| {
        let script =
            format!("cat /dev/zero > {place}/{name} || dd if=/dev/zero of={place}/crumbs-{name} bs=1024 || true");
        kitchen.world.run("sh").args(["-c", &format!("{{ {script}; }} 2> /dev/null")]).succeeds();
    };
    fill("filler");
    let reference = fs::read_to_string(kitchen.world.path("ref0")).unwrap();
    served.buildctl(&format!("debug ctl --pin {reference}")).ends();
    served.buildctl(&format!("debug ctl --delete {reference}")).succeeds();
    fill("more");
    assert_eq!(served.buildctl("prune-histories").succeeds().text().lines().count(), 3);
    assert_eq!(served.buildctl("debug histories").succeeds().text().lines().count(), 1);
    served.ends();
}

#[test]
fn privileged_an_output_that_finds_no_room_leaves_nothing_under_its_name() {
    needs!(root);
    let Some(disk) = Disk::new() else { return };
    let kitchen = &disk.0;
    // What the image has goes once to the state and once to the output: there is room for one.
    kitchen.file("noise", testkit::image::noise(7, 5 << 20));
    kitchen.dockerfile("FROM busybox\nCOPY noise /\n");
    let first = disk.build("");
    assert!(first.code == Some(0), "{first:?}");
    kitchen.file("Dockerfile.alone", "FROM scratch\nCOPY noise /\n");
    let alone = disk.build("--file context/Dockerfile.alone");
    assert!(alone.code == Some(0), "{alone:?}");
    let made = disk.build("--output type=image,name=x");
    assert!(made.code == Some(0), "{made:?}");
    disk.sh("truncate -s 0 disk/filler; fallocate -l $(($(stat -f -c '%a * %S' disk) - 4000000)) disk/filler");
    let hint = format!("{OUTPUT}`hullworks prune --root disk/state`");
    for output in ["oci", "docker", "tar"] {
        let ended = disk.build(&format!("--output type={output},dest=disk/out.tar"));
        assert!(ended.code == Some(1), "{ended:?}");
        ended.says("error: failed to solve: cannot write to `disk/out.tar`: No space left on device").hints(&hint);
        assert_eq!(disk.sh("ls disk"), "filler\nlost+found\nstate\n");
    }
    for output in ["type=local", "type=oci,tar=false"] {
        let ended = disk.build(&format!("--output {output},dest=disk/out"));
        assert!(ended.code == Some(1), "{ended:?}");
        ended.says("error: failed to solve: cannot write to `disk/out`: ").says("No space left on device").hints(&hint);
        // What is there is whole.
        let noise = kitchen.world.path("context/noise");
        let sizes = disk.sh("find disk/out -type f -size +4M");
        assert_eq!(sizes, "", "{}", noise.display());
        disk.sh("rm -r disk/out");
    }
    // The only file does not fit: no directory is left of it, but those that were there.
    disk.sh("mkdir disk/there");
    let ended = disk.build("--file context/Dockerfile.alone --output type=local,dest=disk/there/a/b");
    assert!(ended.code == Some(1), "{ended:?}");
    ended.says("error: failed to solve: cannot write to `disk/there/a/b`: ").hints(&hint);
    assert_eq!(disk.sh("find disk/there"), "disk/there\n");
    disk.sh("rm -r disk/filler disk/there");
    let ended = disk.build("--output type=oci,dest=disk/out.tar");
    assert!(ended.code == Some(0) && ran(&ended).is_empty(), "{ended:?}");
    disk.sh("tar tf disk/out.tar index.json");
}

#[test]
fn privileged_a_disk_that_is_full_to_the_last_block_can_be_pruned() {
    needs!(root);
    let Some(disk) = Disk::new() else { return };
    let kitchen = &disk.0;
    let steps_of = |n: usize| (0..n).map(|n| format!("RUN echo {n} > /{n}\n")).collect::<String>();
    kitchen.dockerfile(&format!("FROM busybox\n{}", steps_of(5)));
    let first = disk.build("");
    assert!(first.code == Some(0), "{first:?}");
    let fill = || {
        // What the file system sets aside comes back when it is unmounted.
        let last = (0..20).find(|n| {
            // A block at a time in the end, or the last ones are left.
            let fill = format!("cat /dev/zero > disk/filler{n} || dd if=/dev/zero of=disk/crumbs{n} bs=1024 || true");
            disk.sh(&format!("{{ {fill}; }} 2> /dev/null"));
            disk.free() == 0
        });
        assert!(last.is_some(), "{} bytes are free", disk.free());
    };
    fill();

    // What is kept back is enough to build what is small, on what is there.
    kitchen.dockerfile(&format!("FROM busybox\n{}", steps_of(6)));
    let small = disk.build("");
    assert!(small.code == Some(0) && ran(&small).len() == 1, "{small:?}");
    fill();
    kitchen.file("large", vec![b'x'; 6 << 20]);
    kitchen.dockerfile(&format!("FROM busybox\n{}COPY large /\n", steps_of(6)));
    let full = disk.build("");
    assert!(full.code == Some(1), "{full:?}");
    full.hints(PRUNE);
    kitchen.dockerfile(&format!("FROM busybox\n{}", steps_of(6)));
    let du = disk.hullworks("du");
    assert!(du.code == Some(0) && du.text().lines().count() > 5, "{du:?}");
    // Looking takes nothing of what tidying up needs, however full the disk is by then.
    let reserve: u64 = disk.sh("stat --format %b disk/state/hullworks/reserve").trim().parse().unwrap();
    assert!(reserve * 512 >= 2 << 20, "{reserve} blocks");
    disk.sh("cat /dev/zero 2> /dev/null > disk/filler-after-du || true");
    let prune = disk.hullworks("prune --all");
    assert!(prune.code == Some(0), "{prune:?}");
    assert!(disk.hullworks("du").text().contains("Total:\t\t0B"));
    let again = disk.build("");
    assert!(again.code == Some(0) && ran(&again).len() == 6, "{again:?}");

    // It found the cache of before: the disk says nothing about how snapshots are kept.
    let cached = disk.build("");
    assert_eq!(steps(&cached).1.len(), 6, "{cached:?}");
}
