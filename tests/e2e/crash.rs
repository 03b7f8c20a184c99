//! `kill -9` at random moments: of a build, a push, a pull, a prune. Nothing of it stays but what it had finished, and the next
//! build succeeds with the image that a build without kills makes.
//!
//! Moments are spread evenly over the time that the work takes when nobody disturbs it. `HULLWORKS_CRASH_SEED` repeats a
//! run's choices, as far as the machine does.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use testkit::image::{File, TestImage, tar};

use crate::harness::{Ended, Invocation, memory};
use crate::kitchen::{Kitchen, ran};
use crate::who::Who;

/// Moments that a seed decides: splitmix64.
struct Chance(u64);

impl Chance {
    fn new() -> Chance {
        let seed = std::env::var("HULLWORKS_CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = || std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
        let seed = seed.unwrap_or_else(now);
        println!("HULLWORKS_CRASH_SEED={seed}");
        Chance(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A moment within `whole`.
    fn moment(&mut self, whole: Duration) -> Duration {
        whole.mul_f64((self.next() % 10_000) as f64 / 10_000.0)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }
}

/// What is built, again and again.
struct Bed {
    kitchen: Kitchen,
    /// In the environment of each step.
    mark: String,
    chance: Chance,
    /// Of builds that do not push: the whole archive.
    clean: Vec<u8>,
    clean_digest: String,
    /// How long a build takes on a fresh state.
    takes: Duration,
    states: usize,
    killed: Vec<u32>,
}

const DOCKERFILE: &str = "FROM base AS one
COPY one /work/one
RUN --mount=type=cache,target=/cache echo x >> /cache/log && cp /work/one /work/two && cat /work/base >> /work/two
FROM base AS two
ADD tree.tar /work/tree/
RUN cat /work/tree/1 /work/tree/d/2 > /work/joined && rm -r /work/tree/d
FROM base AS three
COPY --chown=nobody dir /work/dir/
RUN --mount=type=bind,source=dir,target=/in cp /in/1 /work/copied && ln /work/copied /work/linked && rm /work/base
FROM base
COPY --from=one /work/two /1/
COPY --from=two /work/ /2/
COPY --from=three /work /3/
RUN cat /1/two /2/joined /3/linked > /all
";

impl Bed {
    /// None, with the reason told, where it cannot be.
    fn new(who: Who) -> Option<Bed> {
        let kitchen = Kitchen::below(who, &memory())?;
        let mark = format!("HULLWORKS_CRASH_MARK={}-{who:?}", std::process::id());
        let base = format!("FROM busybox AS base\nENV {mark}\nRUN mkdir /work && echo base > /work/base\n");
        kitchen.dockerfile(&format!("{base}{DOCKERFILE}"));
        kitchen.file("one", "one");
        for n in 0..40 {
            kitchen.file(&format!("dir/{n}"), n.to_string().repeat(100));
        }
        let file = |path, data: &str| File { path, mode: 0o640, data: data.into(), link: None };
        let tree = [file("1", "1"), File { mode: 0o750, ..file("d/", "") }, file("d/2", "2")];
        kitchen.file("tree.tar", tar(&tree));
        let mut bed = Bed {
            kitchen,
            mark,
            chance: Chance::new(),
            clean: Vec::new(),
            clean_digest: String::new(),
            takes: Duration::ZERO,
            states: 0,
            killed: Vec::new(),
        };
        let began = Instant::now();
        bed.build("clean").succeeds();
        bed.takes = began.elapsed();
        (bed.clean, bed.clean_digest) = bed.take_image();
        Some(bed)
    }

    fn build(&self, state: &str) -> Invocation {
        let args = "--build-arg SOURCE_DATE_EPOCH=1000000000 --metadata-file metadata.json \
                    --output type=oci,dest=image.tar,rewrite-timestamp=true";
        self.kitchen.build_on(state, args)
    }

    /// The archive that was built, which is gone then, and the digest that was told.
    fn take_image(&self) -> (Vec<u8>, String) {
        let (archive, told) = (self.path("image.tar"), self.path("metadata.json"));
        let metadata: serde_json::Value = serde_json::from_slice(&fs::read(&told).unwrap()).unwrap();
        let image = (fs::read(&archive).unwrap(), metadata["containerimage.digest"].as_str().unwrap().to_owned());
        fs::remove_file(archive).unwrap();
        fs::remove_file(told).unwrap();
        image
    }

    fn path(&self, name: &str) -> PathBuf {
        self.kitchen.world.path(name)
    }

    /// The name of a state that nobody has used; the last one goes.
    fn fresh(&mut self) -> String {
        // Another user's ids are not ours to remove; then it stays as long as the world.
        let _ = fs::remove_dir_all(self.path(&format!("state{}", self.states)));
        self.states += 1;
        format!("state{}", self.states)
    }

    /// Whether it could be killed before its end; nothing of it is left then.
    fn kills(&mut self, command: Invocation, after: Duration) -> bool {
        let Some(id) = command.starts().kill_after(after) else { return false };
        self.killed.push(id);
        self.nothing_runs();
        true
    }

    /// Waits for the kernel to end what was killed.
    fn nothing_runs(&self) {
        let began = Instant::now();
        loop {
            let left = processes_with(&self.mark);
            if left.is_empty() {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "steps outlive their build: {left:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        let here = self.path(".").canonicalize().unwrap().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&here), "{mounts}");
    }

    /// Builds undisturbed: the image is the clean one, and what was on record as done is not done again.
    fn builds(&mut self, state: &str) {
        let recorded = self.recorded(state);
        let ended = self.build(state).succeeds();
        for step in ran(&ended) {
            let (recorded, step) = (recorded.iter(), without_options(&step));
            let known: Vec<&String> = recorded.filter(|done| done.ends_with(step)).collect();
            assert!(known.is_empty(), "`{step}` ran again: {known:?}\n{ended:?}");
        }
        self.is_clean(state, &ended);
    }

    fn is_clean(&mut self, state: &str, ended: &Ended) {
        let (image, digest) = self.take_image();
        assert_eq!(digest, self.clean_digest, "{ended:?}");
        assert!(image == self.clean, "other bytes under the same digest: {ended:?}");
        self.nothing_is_left(state);
    }

    /// What killed predecessors left was swept.
    fn nothing_is_left(&mut self, state: &str) {
        let names = |dir: PathBuf| -> Vec<String> {
            let entries = fs::read_dir(&dir).into_iter().flatten();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let place = |name: &str| self.path(state).join("hullworks").join(name);
        assert_eq!(names(place("mounts")), [""; 0]);
        assert_eq!(names(place("content/ingest")), [""; 0]);
        for snapshots in fs::read_dir(place("snapshots")).unwrap() {
            let snapshots = snapshots.unwrap().path();
            assert_eq!(names(snapshots.join("trash")), [""; 0]);
            let begun = names(snapshots).into_iter().filter(|name| name.starts_with(['t', 'w']) && name != "trash");
            assert_eq!(begun.collect::<Vec<_>>(), [""; 0]);
        }
        let partial = names(self.path(".")).into_iter().filter(|name| name.contains("partial"));
        assert_eq!(partial.collect::<Vec<_>>(), [""; 0]);
        let mut groups = vec![PathBuf::from("/sys/fs/cgroup")];
        let killed: BTreeSet<String> = self.killed.drain(..).map(|id| format!("hullworks-{id}")).collect();
        while let Some(group) = groups.pop() {
            let entries = fs::read_dir(group).into_iter().flatten().flatten();
            for below in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                let name = below.file_name().into_string().unwrap();
                let of = name.split('-').take(2).collect::<Vec<_>>().join("-");
                assert!(!killed.contains(&of), "a control group is left: {}", below.path().display());
                groups.push(below.path());
            }
        }
    }

    /// What the state has on record as done, by the descriptions of snapshots.
    fn recorded(&self, state: &str) -> BTreeSet<String> {
        let copy = tempfile::tempdir().unwrap();
        for name in ["metadata.db", "metadata.db-wal"] {
            let from = self.path(state).join("hullworks").join(name);
            if from.exists() {
                fs::copy(from, copy.path().join(name)).unwrap();
            }
        }
        let db = rusqlite::Connection::open(copy.path().join("metadata.db")).unwrap();
        let sql = "SELECT DISTINCT description FROM snapshot JOIN result ON snapshot = id";
        // Killed before there were tables.
        let Ok(mut query) = db.prepare(sql) else { return BTreeSet::new() };
        query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

/// The instruction as the description of its snapshot ends.
fn without_options(step: &str) -> &str {
    let Some(command) = step.strip_prefix("RUN ") else { return step };
    match command.split_once(' ') {
        Some((option, rest)) if option.starts_with("--mount") => rest,
        _ => command,
    }
}

/// The processes with this variable in their environment.
fn processes_with(variable: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |id: &u32| {
        let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|found| found == variable.as_bytes())
    };
    ids.filter(has).collect()
}

fn survives(who: Who, kills: usize) {
    let Some(mut bed) = Bed::new(who) else { return };
    let mut killed = 0;
    while killed < kills {
        let state = bed.fresh();
        loop {
            let moment = bed.chance.moment(bed.takes);
            if !bed.kills(bed.build(&state), moment) {
                // It was quicker.
                let (image, digest) = bed.take_image();
                assert!(image == bed.clean && digest == bed.clean_digest, "{who:?}: another image: {digest}");
                bed.nothing_is_left(&state);
                break;
            }
            killed += 1;
            if bed.chance.one_in(4) {
                bed.builds(&state);
                break;
            }
        }
    }
}

#[test]
fn a_build_of_root_survives_a_hundred_kills() {
    survives(Who::Root, 100);
}

#[test]
fn a_build_of_a_user_survives_kills() {
    survives(Who::Ranges, 12);
    survives(Who::Single, 12);
}

#[test]
fn a_prune_that_is_killed_leaves_a_state_to_build_on() {
    let Some(mut bed) = Bed::new(Who::Root) else { return };
    let prune = |bed: &Bed| {
        let words = ["prune", "--all", "--root", "clean"];
        Who::Root.hullworks(&bed.kitchen.world).args(words)
    };
    let began = Instant::now();
    prune(&bed).succeeds();
    let takes = began.elapsed();
    for _ in 0..8 {
        bed.builds("clean");
        let moment = bed.chance.moment(takes);
        bed.kills(prune(&bed), moment);
    }
    bed.builds("clean");
}

#[test]
fn a_push_that_is_killed_is_made_good_by_the_next() {
    let Some(mut bed) = Bed::new(Who::Root) else { return };
    let host = bed.kitchen.registry.host();
    let push = |bed: &Bed, round: usize| {
        let args = format!(
            "--build-arg SOURCE_DATE_EPOCH=1000000000 \
             --output type=image,name={host}/crash/{round}:latest,push=true,rewrite-timestamp=true"
        );
        bed.kitchen.build_on("clean", &args)
    };
    let began = Instant::now();
    push(&bed, 0).succeeds();
    let takes = began.elapsed();
    for round in 1..=12 {
        let moment = bed.chance.moment(takes);
        bed.kills(push(&bed, round), moment);
        if bed.chance.one_in(2) {
            let moment = bed.chance.moment(takes);
            bed.kills(push(&bed, round), moment);
        }
        push(&bed, round).succeeds();
        let repository = format!("crash/{round}");
        let (_, manifest) = bed.kitchen.registry.manifest(&repository, "latest").expect("it was pushed");
        let first = bed.kitchen.registry.manifest("crash/0", "latest").expect("it was pushed").1;
        assert_eq!(manifest, first);
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
            let digest = blob["digest"].as_str().unwrap().parse().unwrap();
            assert!(bed.kitchen.registry.blob(&repository, &digest).is_some(), "{blob}");
        }
    }
}

#[test]
fn a_pull_that_is_killed_goes_on() {
    for who in [Who::Root, Who::Single] {
        let Some(mut bed) = Bed::new(who) else { continue };
        let layer = |n: u8| {
            let names: Vec<String> = (0..150).map(|file| format!("l{}/f{file}", if n == 3 { 0 } else { n })).collect();
            let file = |name| File { path: name, mode: 0o644, data: vec![n; 4000], link: None };
            tar(&names.iter().map(|name| file(name.as_str())).collect::<Vec<_>>())
        };
        let mut image = TestImage::busybox().unwrap();
        image = TestImage::of_layers(image.layers.into_iter().chain((0..4).map(layer)).collect());
        image.put(&bed.kitchen.registry, "library/big", "latest");
        bed.kitchen.dockerfile("FROM big\nRUN cat /l0/f1 /l1/f1 /l2/f149 > /all\n");
        let began = Instant::now();
        bed.build("pulled").succeeds();
        let takes = began.elapsed();
        (bed.clean, bed.clean_digest) = bed.take_image();
        for _ in 0..8 {
            let state = bed.fresh();
            for _ in 0..2 {
                let moment = bed.chance.moment(takes);
                if !bed.kills(bed.build(&state), moment) {
                    bed.take_image();
                }
            }
            bed.builds(&state);
        }
    }
}

#[test]
fn steps_die_with_their_build_at_any_moment() {
    for (who, rounds) in [(Who::Root, 12), (Who::Ranges, 6), (Who::Single, 6)] {
        let Some(mut bed) = Bed::new(who) else { continue };
        let mark = &bed.mark;
        let stage = |n| format!("FROM busybox AS s{n}\nENV {mark}\nRUN exec sleep 100{n}\n");
        let copy = |n| format!("COPY --from=s{n} /work /\n");
        let stages: String = (0..6).map(stage).collect();
        bed.kitchen.dockerfile(&format!("{stages}FROM scratch\n{}", (0..6).map(copy).collect::<String>()));
        let began = Instant::now();
        let running = bed.build("clean").starts();
        while processes_with(&bed.mark).len() < 6 {
            assert!(began.elapsed() < Duration::from_secs(60), "{who:?}: the steps are not seen");
            std::thread::sleep(Duration::from_millis(1));
        }
        let takes = began.elapsed();
        assert!(running.kill_after(Duration::ZERO).is_some());
        bed.nothing_runs();
        for _ in 0..rounds {
            let moment = bed.chance.moment(takes);
            assert!(bed.kills(bed.build("clean"), moment), "it sleeps for long");
        }
    }
}
