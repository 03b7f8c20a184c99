//! What a second build does again. Every build is a process of its own.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use crate::harness::{is_root, memory};
use crate::kitchen::{Kitchen, ran, steps};
use crate::who::Who;

const EVERYBODY: [Who; 3] = [Who::Root, Who::Ranges, Who::Single];

#[test]
fn only_what_changed_runs_again() {
    for who in EVERYBODY {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        kitchen.dockerfile("FROM busybox\nCOPY a d /x/\nRUN cat /x/a > /b\nCOPY c /c\nRUN cat /c > /d\n");
        for name in ["a", "d/1", "d/2", "c", "unrelated"] {
            kitchen.file(name, name);
        }
        let all = ["COPY a d /x/", "COPY c /c", "RUN cat /c > /d", "RUN cat /x/a > /b"];
        let path = |name: &str| kitchen.world.path("context").join(name);
        assert_eq!(ran(&kitchen.build("").succeeds()), all, "{who:?}: first");
        let check = |what: &str, expected: &[&str]| {
            let ended = kitchen.build("").succeeds();
            assert_eq!(ran(&ended), expected, "{who:?}: {what}: {ended:?}");
            assert_eq!(steps(&ended).1.len(), all.len() - expected.len(), "{who:?}: {what}: {ended:?}");
        };
        check("nothing changed", &[]);

        let file = fs::File::options().write(true).open(path("a")).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
        kitchen.file("d/1", "d/1");
        kitchen.file("unrelated", "changed");
        kitchen.file("new", "new");
        check("times and files that nobody reads", &[]);

        kitchen.file("c", "other");
        check("the last file", &["COPY c /c", "RUN cat /c > /d"]);
        kitchen.file("c", "c");
        check("and back", &[]);

        fs::set_permissions(path("d/2"), fs::Permissions::from_mode(0o755)).unwrap();
        check("a mode", &all);
        kitchen.file("d/3", "");
        check("a new file in a directory", &all);
        fs::remove_file(path("d/3")).unwrap();
        check("and gone", &[]);
        fs::rename(path("d/1"), path("d/one")).unwrap();
        check("a name", &all);

        kitchen.dockerfile("FROM busybox\nCOPY a d /x/\nRUN cat /x/a > /b\nCOPY c /c\nRUN cat /c > /e\nCMD x\n");
        check_changed(&kitchen, &["RUN cat /c > /e"]);
    }
}

fn check_changed(kitchen: &Kitchen, expected: &[&str]) {
    let ended = kitchen.build("").succeeds();
    assert_eq!(ran(&ended), expected, "{ended:?}");
}

/// Whichever step makes the place of a mount in the cache that they share, the others take it.
#[test]
fn steps_at_once_have_mounts_within_a_shared_cache() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    for round in 0..5 {
        let caches = format!("--mount=type=cache,id=a{round},target=/a --mount=type=cache,id=b{round},target=/a/b/c/d");
        let stage = |n: usize| format!("FROM busybox AS s{n}\nRUN {caches} echo {n} > /{n}\n");
        let stages: String = (0..12).map(stage).collect();
        let copies: String = (0..12).map(|n| format!("COPY --from=s{n} /{n} /\n")).collect();
        kitchen.dockerfile(&format!("{stages}FROM scratch\n{copies}"));
        kitchen.build("").succeeds();
    }
}

/// Of a process that has ended the next one knows what it read, also where nothing else had to be done.
#[test]
fn files_that_did_not_change_are_not_read_again() {
    for who in EVERYBODY {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        kitchen.dockerfile("FROM scratch\nCOPY a /\n");
        kitchen.file("a", "a");
        // The first may find the file too fresh to tell by its times whether it changes again.
        for _ in 0..2 {
            kitchen.build("").succeeds();
        }
        let path = kitchen.world.path("context").join("a");
        let watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::NONBLOCK).unwrap();
        rustix::fs::inotify::add_watch(&watch, &path, rustix::fs::inotify::WatchFlags::OPEN).unwrap();
        let was_opened = || rustix::io::read(&watch, &mut [0; 4096]).is_ok();
        let ended = kitchen.build("").succeeds();
        assert!(!was_opened(), "{who:?}: {ended:?}");
        fs::read(&path).unwrap();
        assert!(was_opened(), "{who:?}: the watch sees nothing");
    }
}

#[test]
fn a_step_with_the_same_input_content_is_cached_though_an_earlier_one_ran() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile("FROM busybox AS one\nARG V\nRUN echo $V > /v; echo same > /same\nFROM busybox\nCOPY --from=one /same /\nRUN cat /same\n");
    kitchen.build("--build-arg V=1").succeeds();
    let ended = kitchen.build("--build-arg V=2").succeeds();
    assert_eq!(ran(&ended), ["RUN echo 2 > /v; echo same > /same"], "{ended:?}");
}

#[test]
fn no_cache_is_for_all_or_for_stages() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile(
        "FROM busybox AS one\nRUN echo 1 > /1\nFROM busybox AS two\nRUN echo 2 > /2\nCOPY --from=one /1 /\n",
    );
    let all = ["COPY --from=one /1 /", "RUN echo 1 > /1", "RUN echo 2 > /2"];
    assert_eq!(ran(&kitchen.build("").succeeds()), all);
    assert_eq!(ran(&kitchen.build("").succeeds()), [""; 0]);
    assert_eq!(ran(&kitchen.build("--no-cache").succeeds()), all);
    let filtered = kitchen.build("--no-cache-filter two").succeeds();
    assert_eq!(ran(&filtered), ["COPY --from=one /1 /", "RUN echo 2 > /2"], "{filtered:?}");
    let filtered = kitchen.build("--no-cache-filter one").succeeds();
    assert_eq!(ran(&filtered), ["RUN echo 1 > /1"], "the content is the same: {filtered:?}");
    let mistyped = kitchen.build("--no-cache-filter three,TWO").succeeds();
    mistyped.says("warning: option `no-cache=three` has no effect: no stage has this name\n");
    assert!(!mistyped.text().contains("no-cache=TWO"), "{mistyped:?}");
}

#[test]
fn a_failed_build_keeps_what_it_finished() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile("FROM busybox\nRUN echo 1 > /1\nRUN cat /missing\n");
    kitchen.build("").fails().says("exit code: 1");
    kitchen.dockerfile("FROM busybox\nRUN echo 1 > /1\nRUN cat /1\n");
    assert_eq!(ran(&kitchen.build("").succeeds()), ["RUN cat /1"]);
}

#[test]
fn equal_steps_run_once() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let same = "RUN --mount=type=cache,target=/c echo x >> /c/count; sleep 0.3; cp /c/count /count\n";
    let stages: String = (0..4).map(|n| format!("FROM busybox AS s{n}\n{same}")).collect();
    kitchen.dockerfile(&format!(
        "{stages}FROM scratch\nCOPY --from=s0 /count /0\nCOPY --from=s1 /count /1\nCOPY --from=s3 /count /3\n"
    ));
    kitchen.build("--output out").succeeds();
    assert_eq!(fs::read_to_string(kitchen.world.path("out/3")).unwrap(), "x\n");
}

#[test]
fn steps_that_run_are_not_stopped_and_started_again() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    // Each stage ends at another time, and its COPY is the first of all that follow.
    let stage = |n| format!("FROM busybox AS s{n}\nRUN echo started; sleep 0.{n}; touch /ok\n");
    let copy = |n| format!("COPY --from=s{n} /ok /{n}\n");
    let stages: String = (1..6).map(stage).collect();
    kitchen.dockerfile(&format!("{stages}FROM scratch\n{}", (1..6).map(copy).collect::<String>()));
    let ended = kitchen.build("").succeeds();
    let starts = ended.stderr.lines().filter(|line| line.starts_with('#') && line.ends_with(" started")).count();
    assert_eq!(starts, 5, "{ended:?}");
}

#[test]
fn independent_stages_run_at_the_same_time_and_share_a_cache_mount() {
    for who in EVERYBODY {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        // Each waits for the other's file.
        let stage = |me: u8, other: u8| {
            format!(
                "FROM busybox AS s{me}\nRUN --mount=type=cache,target=/c touch /c/{me}; i=0; \
                 while ! test -e /c/{other}; do i=$((i+1)); test $i -lt 300 || exit 1; sleep 0.1; done; touch /ok{me}\n"
            )
        };
        let last = "FROM scratch\nCOPY --from=s1 /ok1 /\nCOPY --from=s2 /ok2 /\n";
        kitchen.dockerfile(&format!("{}{}{last}", stage(1, 2), stage(2, 1)));
        kitchen.build("").succeeds();
    }
}

#[test]
fn locked_cache_mounts_are_used_one_after_another_and_private_ones_not_together() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let stages = |sharing: &str, script: &str| -> String {
        let stage = |n| {
            format!(
                "FROM busybox AS s{n}\nRUN --mount=type=cache,id={sharing},target=/c,sharing={sharing} n={n}; {script}\n"
            )
        };
        let copies = |n| format!("COPY --from=s{n} /ok /{n}\n");
        format!("{}FROM scratch\n{}", (1..4).map(stage).collect::<String>(), (1..4).map(copies).collect::<String>())
    };
    kitchen.dockerfile(&stages(
        "locked",
        "mkdir /c/held || exit 1; sleep 0.3; rmdir /c/held; echo $n >> /c/all; cat /c/all > /ok",
    ));
    kitchen.build("--output locked").succeeds();
    let lines = |name: &str| fs::read_to_string(kitchen.world.path(name)).unwrap().lines().count();
    let mut seen = [lines("locked/1"), lines("locked/2"), lines("locked/3")];
    seen.sort();
    assert_eq!(seen, [1, 2, 3], "all used the same directory");

    kitchen.dockerfile(&stages("private", "mkdir /c/held || exit 1; sleep 1; rmdir /c/held; touch /ok"));
    kitchen.build("").succeeds();
}

#[test]
fn cache_mounts_stay_between_builds_and_prune_empties_them() {
    for who in EVERYBODY {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        kitchen.dockerfile("FROM busybox AS b\nARG N\nRUN --mount=type=cache,target=/c echo $N >> /c/l; cat /c/l > /l\nFROM scratch\nCOPY --from=b /l /\n");
        let lines = || fs::read_to_string(kitchen.world.path("out/l")).unwrap().replace('\n', " ");
        kitchen.build("--build-arg N=1 --output out").succeeds();
        kitchen.build("--build-arg N=2 --output out").succeeds();
        assert_eq!(lines(), "1 2 ", "{who:?}");
        kitchen.build("--build-arg N=2 --no-cache --output out").succeeds();
        assert_eq!(lines(), "2 ", "{who:?}: as BuildKit, whose steps without cache begin with empty mounts");
        kitchen.build("--build-arg N=4 --output out").succeeds();
        assert_eq!(lines(), "2 4 ", "{who:?}: the next build finds what that one left");
        let du = kitchen.hullworks("du").succeeds().text();
        assert!(du.lines().count() > 4, "{du}");
        kitchen.hullworks("prune --all").succeeds();
        assert!(kitchen.hullworks("du").succeeds().text().contains("Total:\t\t0B"));
        kitchen.build("--build-arg N=3 --output out").succeeds();
        assert_eq!(lines(), "3 ", "{who:?}");
    }
}

#[test]
fn the_cache_is_cleaned_as_buildkitd_toml_says() {
    for who in EVERYBODY {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let common = fs::read_to_string(kitchen.world.path("buildkitd.toml")).unwrap();
        let build = |settings: &str, n: usize| {
            kitchen.world.write("buildkitd.toml", format!("{common}{settings}"));
            kitchen.dockerfile(&format!("FROM busybox\nRUN --mount=type=cache,target=/c echo {n} >> /c/f\n"));
            kitchen.build("").succeeds();
            let du = kitchen.hullworks("du --verbose").succeeds().text();
            (du.matches("mount / from exec").count(), du.contains("exec.cachemount"))
        };
        let check = |settings: &str, n, expected: (usize, bool)| {
            assert_eq!(build(settings, n), expected, "{who:?}: {settings}");
        };
        check("[worker.oci]\ngc = false\nreservedSpace = 1\nmaxUsedSpace = 1\n", 1, (1, true));
        let policy = "[[worker.oci.gcpolicy]]\nfilters = [\"type==exec.cachemount\"]\nmaxUsedSpace = 1\n";
        check(policy, 2, (2, false));
        check("[[worker.oci.gcpolicy]]\nkeepDuration = \"1h\"\nmaxUsedSpace = 1\n", 3, (3, true));
        // No disk has that much: what is not reserved goes.
        let free = "[[worker.oci.gcpolicy]]\nall = true\nminFreeSpace = \"100%\"\n";
        check(&format!("{free}reservedSpace = \"100%\"\n"), 4, (4, true));
        check(&format!("{free}filters = [\"type==exec.cachemount\"]\n"), 5, (5, false));
        check("[worker.oci]\nreservedSpace = 1\nmaxUsedSpace = 1\n", 6, (0, false));
    }
}

/// What counts is what the disk gives, not how long files say they are.
#[test]
fn the_cache_is_bounded_by_what_it_takes_up() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let common = fs::read_to_string(kitchen.world.path("buildkitd.toml")).unwrap();
        let policy = "[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = \"32MB\"\n";
        kitchen.world.write("buildkitd.toml", format!("{common}{policy}"));
        let runs = |step: &str| {
            kitchen.dockerfile(&format!("FROM busybox\nRUN {step}\n"));
            ran(&kitchen.build("").succeeds())
        };
        let stored = || {
            let du = kitchen.hullworks("du --verbose").succeeds().text();
            du.matches("mount / from exec").count()
        };
        let sparse = "busybox truncate -s 64M /sparse";
        let real = |name: &str| format!("busybox dd if=/dev/zero of=/{name} bs=1M count=20");
        assert_eq!((runs(sparse).len(), stored()), (1, 1), "{who:?}");
        assert_eq!((runs(&real("one")).len(), stored()), (1, 2), "{who:?}: a hole takes up nothing");
        // Two real files are too much: what was used last stays.
        assert_eq!((runs(&real("two")).len(), stored()), (1, 1), "{who:?}");
        assert_eq!(runs(&real("two")), [""; 0], "{who:?}");
        assert_eq!(runs(&real("one")).len(), 1, "{who:?}");
    }
}

/// Names of images are known as long as the images.
#[test]
fn nothing_is_known_of_images_that_are_gone() {
    let Some(kitchen) = Kitchen::new(if is_root() { Who::Root } else { Who::Single }) else { return };
    let buildctl = kitchen.world.path("buildctl");
    std::os::unix::fs::symlink("hullworks", &buildctl).unwrap();
    let names = || {
        let dump = kitchen.who.run(&kitchen.world, buildctl.to_str().unwrap());
        let dump = dump.args(["debug", "dump-metadata", "--root", "state"]).succeeds().text();
        dump.lines().filter(|line| line.contains("image-names")).count()
    };
    kitchen.dockerfile("FROM busybox\nRUN true\n");
    kitchen.build("").succeeds();
    assert_eq!(names(), 2, "by its tag, and by its digest");
    kitchen.hullworks("prune --all").succeeds();
    assert_eq!(names(), 0);
}

/// Whatever the moment: a build of a directory that changes copies a file as it was at some time, or fails and says why; and
/// what it remembers, it remembers of the bytes that it copied.
#[test]
fn a_file_that_changes_meanwhile_is_copied_whole_or_not_at_all() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::below(who, &memory()) else { continue };
        kitchen.dockerfile("FROM scratch\nCOPY d /d\nCOPY d/f /f\n");
        kitchen.file("d/f", "");
        (0..50).for_each(|n| kitchen.file(&format!("d/other{n}"), "other"));
        let path = |name: &str| kitchen.world.path(name);
        // Lines of one letter, all of one length: contents that only their bytes and times tell apart.
        let content =
            |n: usize, lines: usize| (char::from(b'a' + (n % 6) as u8).to_string().repeat(9) + "\n").repeat(lines);
        let contents: Vec<String> = (0..6).flat_map(|n| [content(n, 1), content(n, 2)]).collect();
        let (stop, file) = (AtomicBool::new(false), path("context/d/f"));
        let (mut built, mut failed) = (0, 0);
        std::thread::scope(|scope| {
            let stopped = StopOnDrop(&stop);
            let writer = scope.spawn(|| {
                let next = path("context/d.next");
                for n in 0..usize::MAX {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // As editors do, then as loggers do.
                    fs::write(&next, content(n, 1)).unwrap();
                    fs::rename(&next, &file).unwrap();
                    let mut log = fs::OpenOptions::new().append(true).open(&file).unwrap();
                    log.write_all(content(n, 1).as_bytes()).unwrap();
                    std::thread::sleep(Duration::from_millis(if n % 8 == 0 { 40 } else { n as u64 % 5 }));
                }
            });
            for _ in 0..25 {
                let _ = fs::remove_dir_all(path("out"));
                let ended = kitchen.build("--output out").ends();
                if ended.code != Some(0) {
                    ended.says("changed while it was read").says("build again when it is at rest");
                    failed += 1;
                    continue;
                }
                built += 1;
                let texts = ["out/d/f", "out/f"].map(|name| fs::read_to_string(path(name)).unwrap());
                assert!(texts[0].is_empty() || contents.contains(&texts[0]), "{texts:?}\n{ended:?}");
                assert_eq!(texts[0], texts[1], "both are of one reading: {ended:?}");
            }
            drop(stopped);
            writer.join().unwrap();
        });
        println!("{who:?}: {built} built, {failed} failed");
        // At rest each content that may have been remembered comes back as itself.
        for text in &contents {
            fs::write(&file, text).unwrap();
            let ended = kitchen.build("--output out").succeeds();
            let texts = ["out/d/f", "out/f"].map(|name| fs::read_to_string(path(name)).unwrap());
            assert_eq!(texts, [text.as_str(); 2], "a record belongs to other bytes: {ended:?}");
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
