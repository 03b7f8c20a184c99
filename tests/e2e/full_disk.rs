//! A disk that is full: what it says, what to try, and that trying it helps. The state lies on a small file system of its
//! own, in an image file that is mounted for each command in a mount namespace of the command: what happens to a test
//! cannot leave it mounted.

use std::fs;

use testkit::image::{File, TestImage, tar};

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

const PRUNE: &str = "free space on the volume of the state directory, or run `hullworks prune`";
const FULL: &str = "the volume of the state directory is full: free space there, or run `hullworks prune`";
const OUTPUT: &str = "free space there, or write elsewhere; if the state directory lies there, try `hullworks prune`";

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
        assert!(again.code == Some(0) && ran(&again).is_empty(), "{again:?}");
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
fn privileged_an_output_that_finds_no_room_leaves_nothing_under_its_name() {
    needs!(root);
    let Some(disk) = Disk::new() else { return };
    let kitchen = &disk.0;
    // What the image has goes once to the state and once to the output: there is room for one.
    kitchen.file("noise", testkit::image::noise(7, 7 << 20));
    kitchen.dockerfile("FROM busybox\nCOPY noise /\n");
    let first = disk.build("");
    assert!(first.code == Some(0), "{first:?}");
    let made = disk.build("--output type=image,name=x");
    assert!(made.code == Some(0), "{made:?}");
    disk.sh("truncate -s 0 disk/filler; fallocate -l $(($(stat -f -c '%a * %S' disk) - 6000000)) disk/filler");
    for output in ["oci", "docker", "tar"] {
        let ended = disk.build(&format!("--output type={output},dest=disk/out.tar"));
        assert!(ended.code == Some(1), "{ended:?}");
        ended.says("error: failed to solve: cannot write to `disk/out.tar`: No space left on device").hints(OUTPUT);
        assert_eq!(disk.sh("ls disk"), "filler\nlost+found\nstate\n");
    }
    for output in ["type=local", "type=oci,tar=false"] {
        let ended = disk.build(&format!("--output {output},dest=disk/out"));
        assert!(ended.code == Some(1), "{ended:?}");
        ended
            .says("error: failed to solve: cannot write to `disk/out`: ")
            .says("No space left on device")
            .hints(OUTPUT);
        // What is there is whole.
        let noise = kitchen.world.path("context/noise");
        let sizes = disk.sh("find disk/out -type f -size +4M");
        assert_eq!(sizes, "", "{}", noise.display());
        disk.sh("rm -r disk/out");
    }
    disk.sh("rm disk/filler");
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
    // What the file system sets aside comes back when it is unmounted.
    let last = (0..20).find(|n| {
        // A block at a time in the end, or the last ones are left.
        let fill = format!("cat /dev/zero > disk/filler{n} || dd if=/dev/zero of=disk/crumbs{n} bs=1024 || true");
        disk.sh(&format!("{{ {fill}; }} 2> /dev/null"));
        disk.free() == 0
    });
    assert!(last.is_some(), "{} bytes are free", disk.free());

    kitchen.dockerfile(&format!("FROM busybox\n{}", steps_of(6)));
    let full = disk.build("");
    assert!(full.code == Some(1), "{full:?}");
    full.hints(PRUNE);
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
