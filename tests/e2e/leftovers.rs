//! What remains of a build that is told to stop: nothing. No process, no mount, no control group, no file beside the state
//! or the output; and the next build goes on.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::Digest;
use hyper::Method;
use testkit::image::{File, TestImage, noise, tar};
use testkit::registry::{Action, Fault};
use testkit::tar::{Archive, inflating};

use crate::harness::{Ended, Invocation, Running, USER, eventually, is_root};
use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

/// Ctrl-C, an ordinary end, a terminal that is gone.
const SIGNALS: [&str; 3] = ["INT", "TERM", "HUP"];

/// Processes that mind no signal, one of them a child of nobody.
const STUBBORN: &str = "RUN trap '' INT TERM HUP; (trap '' INT TERM HUP; exec sleep 1000) & \
    busybox setsid sh -c 'trap \"\" INT TERM HUP; sleep 1000 & sleep 1000 & exit'; echo started; sleep 1000; echo\n";

/// A kitchen whose steps can be told from those of other tests.
struct Scene {
    kitchen: Kitchen,
    /// A variable of every step.
    mark: String,
    /// What lies beside the state.
    beside: BTreeSet<PathBuf>,
}

impl Scene {
    fn new(who: Who) -> Option<Scene> {
        let kitchen = Kitchen::new(who)?;
        let mark = format!("E2E_MARK=of-{who:?}-{}", kitchen.world.path(".").display());
        let mut scene = Scene { kitchen, mark, beside: BTreeSet::new() };
        scene.dockerfile("RUN true\n");
        scene.kitchen.build("").succeeds();
        scene.beside = scene.listing();
        Some(scene)
    }

    fn dockerfile(&self, instructions: &str) {
        self.kitchen.dockerfile(&format!("FROM busybox\nENV {}\n{instructions}", self.mark));
    }

    fn starts(&self, args: &str) -> Running {
        self.kitchen.build(args).leads_a_job().starts()
    }

    /// What lies in the world, besides the state's own files and the context.
    fn listing(&self) -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(self.kitchen.world.path(".")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into()).collect()
    }

    /// Signals as a terminal does, waits for the end and looks for what remains.
    fn stop(&self, running: Running, signal: &str) -> Ended {
        let id = running.id();
        running.signal_job(signal);
        let ended = running.ends_soon();
        self.check(id, &format!("{signal}: {ended:?}"));
        ended
    }

    /// The same for a build that cannot be done by then.
    fn stop_in_time(&self, running: Running, signal: &str) {
        let ended = self.stop(running, signal);
        assert!(ended.code == Some(1), "{ended:?}");
        ended.says(&format!("error: failed to solve: build cancelled by SIG{signal}\n"));
    }

    /// Fails where anything remains of the build that was process `id`.
    fn check(&self, id: u32, what: &str) {
        assert_eq!(processes_with(&self.mark), [""; 0], "{what}");
        assert_eq!(groups_of(id), Vec::<PathBuf>::new(), "{what}");
        let world = self.kitchen.world.path("");
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mounts: Vec<&str> = mounts.lines().filter(|line| line.contains(world.to_str().unwrap())).collect();
        assert_eq!(mounts, [""; 0], "{what}");
        let state = self.kitchen.world.path("state/hullworks");
        let mut waste = Vec::new();
        find(&state, &mut |path| {
            let above = path.parent().and_then(|dir| dir.file_name()?.to_str()).unwrap_or_default();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Half a blob, a view of a snapshot, a work directory, half a layer.
            let temporary = name.starts_with(['w', 't']) && name[1..].parse::<u64>().is_ok();
            if ["ingest", "mounts", "trash"].contains(&above) || temporary {
                waste.push(path.to_owned());
            }
        });
        assert!(waste.is_empty(), "{waste:?}: {what}");
        assert_eq!(self.listing(), self.beside, "{what}");
    }

    /// The next build finds all in order.
    fn goes_on(&self) {
        self.kitchen.registry.behave();
        self.dockerfile("RUN echo fine\n");
        self.kitchen.build("--no-cache --output type=tar,dest=/dev/null").succeeds();
    }
}

/// Processes that have the text among their arguments or variables.
fn processes_with(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let has = |bytes: Vec<u8>| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        let own = entry.file_name().to_str() == Some(&std::process::id().to_string());
        if !own && (has(read("cmdline")) || has(read("environ"))) {
            let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            found.push(format!("{}: {line}", entry.file_name().display()));
        }
    }
    found
}

/// The control groups of process `id`.
fn groups_of(id: u32) -> Vec<PathBuf> {
    let mut groups = Vec::new();
    let name = format!("hullworks-{id}");
    find(Path::new("/sys/fs/cgroup"), &mut |path| {
        let found = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        if found == name || found.starts_with(&format!("{name}-")) {
            groups.push(path.to_owned());
        }
    });
    groups
}

/// Calls `see` with all that lies below, but not with what lies in snapshots.
fn find(dir: &Path, see: &mut impl FnMut(&Path)) {
    let in_snapshots = |dir: &Path| dir.parent().is_some_and(|above| above.ends_with("snapshots"));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        see(&entry.path());
        let is_tree = in_snapshots(dir) && entry.file_name() != "trash";
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_tree {
            find(&entry.path(), see);
        }
    }
}

/// Whether some process has the file open.
fn is_open(file: &Path) -> bool {
    let file = fs::canonicalize(file).unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let open = processes.flat_map(|process| fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten());
    open.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == file))
}

#[test]
fn privileged_nothing_remains_of_what_root_stopped() {
    check(Who::Root);
}

#[test]
fn nothing_remains_of_what_a_user_with_ranges_stopped() {
    check(Who::Ranges);
}

#[test]
fn nothing_remains_of_what_a_user_with_one_id_stopped() {
    check(Who::Single);
}

fn check(who: Who) {
    let Some(scene) = Scene::new(who) else { return };
    // Another one each time.
    let mut signals = SIGNALS.into_iter().cycle().skip(who as usize);
    let mut signal = || signals.next().unwrap();

    scene.dockerfile(STUBBORN);
    for signal in SIGNALS {
        let running = scene.starts("");
        running.waits_for("started");
        assert!(processes_with(&scene.mark).len() >= 4);
        scene.stop_in_time(running, signal);
    }
    scene.goes_on();
    pulls(&scene, &mut signal);
    scene.goes_on();
    copies(&scene, &mut signal);
    scene.goes_on();
    exports(&scene, &mut signal);
    scene.goes_on();
}

fn pulls(scene: &Scene, signal: &mut impl FnMut() -> &'static str) {
    let Scene { kitchen, mark, .. } = scene;
    let layer = tar(&[File { path: "large", mode: 0o644, data: noise(1, 1 << 20).to_vec(), link: None }]);
    TestImage::of_layers(vec![layer.clone()]).put(&kitchen.registry, "large", "1");
    let blob = format!("/blobs/{}", Digest::of(&layer));
    let host = kitchen.registry.host();
    kitchen.dockerfile(&format!("FROM {host}/large:1\nENV {mark}\nCOPY Dockerfile /\n"));
    // Nothing comes, or it comes slowly: for a minute.
    for (method, path, action, said) in [
        (Method::HEAD, "/large/manifests/", Action::Hang, "load metadata for"),
        (Method::GET, &blob, Action::Hang, "FROM "),
        (Method::GET, &blob, Action::Drip(1000, Duration::from_millis(60)), "extracting sha256:"),
    ] {
        kitchen.registry.behave();
        kitchen.registry.forget_requests();
        kitchen.registry.fault(Fault::on(method.clone(), path, action));
        let running = scene.starts("--pull");
        eventually(|| kitchen.registry.count(&method, path) > 0);
        running.waits_until(said, |text| text.contains(said));
        scene.stop_in_time(running, signal());
    }
}

fn copies(scene: &Scene, signal: &mut impl FnMut() -> &'static str) {
    let kitchen = &scene.kitchen;
    // It costs nothing to make and takes a minute to read.
    kitchen.file("large/file", "");
    let large = kitchen.world.path("context/large/file");
    fs::File::options().write(true).open(&large).unwrap().set_len(64 << 30).unwrap();
    scene.dockerfile("COPY large /large\n");
    let running = scene.starts("");
    eventually(|| is_open(&large));
    scene.stop_in_time(running, signal());
    fs::remove_file(&large).unwrap();

    // A tree may be copied before the signal is there.
    for n in 0..2000 {
        kitchen.world.write(&format!("context/large/{}/{n}", n % 20), "x");
    }
    kitchen.who.own(&kitchen.world, "context");
    let running = scene.starts("");
    running.waits_until("COPY", |text| text.contains("] COPY large /large"));
    let ended = scene.stop(running, signal());
    assert!(matches!(ended.code, Some(0 | 1)), "{ended:?}");
}

fn exports(scene: &Scene, signal: &mut impl FnMut() -> &'static str) {
    let kitchen = &scene.kitchen;
    let host = kitchen.registry.host();
    // As above: a minute to read, but whoever writes it writes much, so the end must come soon.
    scene.dockerfile("RUN busybox truncate -s 64G /large\n");
    for (args, said) in [
        ("--output type=oci,dest=image.tar".to_owned(), "exporting layers"),
        (format!("--push -t {host}/out:1"), "exporting layers"),
        ("--output type=tar,dest=tree.tar".to_owned(), "sending tarball"),
    ] {
        let running = scene.starts(&args);
        running.waits_until(said, |text| text.contains(said));
        scene.stop_in_time(running, signal());
    }
    // What is in a directory of the user's stays there.
    let running = scene.starts("--output type=local,dest=context/out");
    running.waits_until("copying files", |text| text.contains("copying files"));
    scene.stop_in_time(running, signal());
    assert!(!kitchen.world.path("context/out/large").exists(), "half a file");

    // Nobody reads, nobody answers.
    let running = kitchen.build("--output type=tar,dest=-").leads_a_job().unread().starts();
    running.waits_until("sending tarball", |text| text.contains("sending tarball"));
    scene.stop_in_time(running, signal());
    scene.dockerfile("RUN echo x > /x\n");
    for path in ["/out/blobs/", "/out/manifests/"] {
        kitchen.registry.behave();
        kitchen.registry.forget_requests();
        kitchen.registry.fault(Fault::on(Method::PUT, path, Action::Hang));
        let running = scene.starts(&format!("--push -t {host}/out:1"));
        eventually(|| kitchen.registry.count(&Method::PUT, path) > 0);
        scene.stop_in_time(running, signal());
    }
}

#[test]
fn a_layer_that_inflates_behind_its_end_is_left_when_it_is_told_to() {
    for who in [Who::Root, Who::Single] {
        let Some(scene) = Scene::new(who) else { continue };
        let kitchen = &scene.kitchen;
        // Longer than anybody waits; digests cover it, though no entry is there any more.
        let layer = inflating(&Archive::new().file("f", "").end(), 280 << 30);
        TestImage::of_layers(vec![layer]).put(&kitchen.registry, "inflating", "1");
        kitchen.dockerfile(&format!("FROM {}/inflating:1\nCOPY Dockerfile /\n", kitchen.registry.host()));
        for signal in SIGNALS {
            let running = scene.starts("");
            running.waits_until("extracting", |text| text.contains("extracting sha256:"));
            scene.stop_in_time(running, signal);
        }
        scene.goes_on();
    }
}

#[test]
fn a_terminal_that_vanishes_ends_the_build() {
    needs!(tool "script");
    for who in [Who::Root, Who::Single] {
        let Some(scene) = Scene::new(who) else { continue };
        let world = &scene.kitchen.world;
        let program = world.path("hullworks");
        let user = format!("setpriv --reuid={USER} --regid={USER} --clear-groups -- ");
        let prefix = match who {
            Who::Root => String::new(),
            _ if is_root() => format!("{user}env PATH=/nowhere "),
            _ => "env PATH=/nowhere ".to_owned(),
        };
        let line = "build --progress=tty --config=buildkitd.toml --root state context";
        scene.dockerfile(STUBBORN);
        let command = format!("exec {prefix}{} {line}", program.display());
        let terminal = world.run("script").args(["--quiet", "--flush", "--command", &command, "/dev/null"]).starts();
        eventually(|| processes_with(&scene.mark).len() >= 4);
        let id = builder(&program);
        terminal.signal("KILL");
        eventually(|| fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default().is_empty());
        drop(terminal.ends());
        scene.check(id, "a terminal that vanished");
        scene.goes_on();
    }
}

/// The process that builds with this program.
fn builder(program: &Path) -> u32 {
    let start = format!("{}\0build\0", program.display());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut ids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let is_builder =
        |id: &u32| fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.starts_with(start.as_bytes()));
    ids.find(is_builder).unwrap()
}

/// A directory for what is only there while it is needed.
fn temporary(kitchen: &Kitchen) -> PathBuf {
    let dir = kitchen.world.path("tmp");
    fs::create_dir_all(&dir).unwrap();
    kitchen.who.own(&kitchen.world, "tmp");
    dir
}

/// `hullworks build -` by a shell that does this to its files first.
fn builds_standard_input(kitchen: &Kitchen, redirected: &str, args: &str) -> Invocation {
    let program = kitchen.world.path("hullworks");
    let line = ["build", "--progress=plain", "--config=buildkitd.toml", "--root=state"];
    let shell = kitchen.who.run(&kitchen.world, "sh").args(["-c", &format!("exec \"$@\" {redirected}"), "sh"]);
    shell.arg(program).args(line).args(args.split_whitespace()).arg("-").env("TMPDIR", temporary(kitchen))
}

#[test]
fn nothing_remains_of_an_archive_that_never_came_to_its_end() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        kitchen.file("large", noise(1, 100 << 10));
        kitchen.dockerfile("FROM scratch\nCOPY . /\n");
        let archive = kitchen.world.run("tar").args(["--create", "--directory=context", "Dockerfile", "large"]);
        let archive = archive.succeeds().stdout;
        kitchen.world.run("mkfifo").arg("pipe").succeeds();
        kitchen.who.own(&kitchen.world, "pipe");
        // It stays open.
        let mut pipe = fs::File::options().read(true).write(true).open(kitchen.world.path("pipe")).unwrap();
        let tmp = temporary(&kitchen);
        let entries = || fs::read_dir(&tmp).unwrap().map(|entry| entry.unwrap().path());
        for signal in SIGNALS {
            let running = builds_standard_input(&kitchen, "< pipe", "").starts();
            pipe.write_all(&archive[..40_000]).unwrap();
            eventually(|| entries().any(|dir| dir.join("Dockerfile").exists()));
            running.signal(signal);
            let ended = running.ends_soon();
            assert_eq!(ended.code, Some(1), "{who:?}: {ended:?}");
            ended.says(&format!("error: failed to solve: build cancelled by SIG{signal}\n"));
            assert_eq!(entries().count(), 0, "{who:?}: {ended:?}");
            // Nor is anybody left who reads on.
            let mut rest = vec![0; 40_000];
            let there = usize::try_from(rustix::io::ioctl_fionread(&pipe).unwrap()).unwrap();
            pipe.read_exact(&mut rest[..there]).unwrap();
        }
    }
}

/// Nobody reads what the build says, so that it cannot end in order.
#[test]
fn nothing_remains_of_what_a_second_signal_ended() {
    for (who, limits) in [(Who::Root, "--memory=64m"), (Who::Root, ""), (Who::Single, "")] {
        let Some(scene) = Scene::new(who) else { continue };
        let kitchen = &scene.kitchen;
        let tmp = temporary(kitchen);
        scene.dockerfile("RUN yes\n");
        let archive = kitchen.world.run("tar").args(["--create", "--directory=context", "."]).succeeds().stdout;
        let running = builds_standard_input(kitchen, "2>&1", limits).stdin(archive).unread().starts();
        let id = running.id();
        eventually(|| running.is_stuck() && !processes_with(&scene.mark).is_empty());
        assert!(fs::read_dir(&tmp).unwrap().count() > 0 && (who != Who::Root || !groups_of(id).is_empty()));
        let ended = ends_by_signals(running);
        assert_eq!(ended.code, Some(1), "{who:?}: {ended:?}");
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0, "{who:?}");
        assert_eq!(groups_of(id), Vec::<PathBuf>::new(), "{who:?}");
        eventually(|| processes_with(&scene.mark).is_empty());
        scene.goes_on();
    }
}

/// Tells it to end until it does. Those that come soon after another are no other signals.
fn ends_by_signals(running: Running) -> Ended {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (id, over) = (running.id().to_string(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = Command::new("kill").args(["-s", "TERM", &id]).stderr(Stdio::null()).status();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        running.ends_soon()
    })
}
