//! The store as a whole: opening, kills, two processes, full disks.

#![expect(clippy::print_stderr, reason = "a test that is skipped says why")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base::Digest;
use solver::{CacheResult, CacheStore, Change, KeyId, ResultId};
use sys::mount::{FsView, Mounted};

use crate::*;

/// A store in a scratch directory with the copy driver, which needs no rights.
pub(crate) fn copy_store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let store = open_with(dir.path(), Driver::Copy);
    (dir, store)
}

pub(crate) fn open_with(dir: &Path, driver: Driver) -> Store {
    let options =
        OpenOptions { driver, lock_wait: Duration::from_secs(5), sync_on_close: false, ..OpenOptions::default() };
    Store::open(dir, options).expect("the store opens")
}

/// Both drivers, as far as this process may use them.
pub(crate) fn each_driver(test: impl Fn(&Path, Store)) {
    for driver in [Driver::Copy, Driver::Overlay] {
        if driver == Driver::Overlay && !can_mount() {
            eprintln!("skipped for the overlay driver: this process may not mount");
            continue;
        }
        let dir = tempfile::tempdir().expect("a scratch directory");
        let scratch = dir.path().join("scratch");
        std::fs::create_dir(&scratch).expect("a directory");
        test(&scratch, open_with(&dir.path().join("store"), driver));
    }
}

pub(crate) fn can_mount() -> bool {
    rustix::process::geteuid().is_root() && {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let options = OpenOptions { driver: Driver::Overlay, ..OpenOptions::default() };
        Store::open(dir.path(), options).is_ok()
    }
}

/// Runs `work` on the tree of a view.
pub(crate) fn inside<T>(view: &FsView, scratch: &Path, work: impl FnOnce(&Path) -> T) -> T {
    let mounted = Mounted::new(view, scratch).expect("the view can be mounted");
    let value = work(mounted.path());
    mounted.unmount().expect("nobody uses the mount");
    value
}

/// Commits one more step.
pub(crate) fn step(store: &Store, scratch: &Path, parent: Option<&Hold>, work: impl FnOnce(&Path)) -> Hold {
    let parent = parent.map(Hold::id);
    let active = store.snapshots().prepare(parent.as_ref(), PrepareOptions::default()).expect("prepare");
    inside(&active.view().expect("a view"), scratch, work);
    store.snapshots().commit(active, CommitOptions::default()).expect("commit")
}

fn write(path: PathBuf, text: &str) {
    std::fs::write(path, text).expect("a file is written");
}

#[test]
fn privileged_steps_build_on_each_other_and_survive() {
    each_driver(|scratch, store| {
        let base = step(&store, scratch, None, |root| {
            write(root.join("a"), "one");
            write(root.join("b"), "two");
        });
        let top = step(&store, scratch, Some(&base), |root| {
            assert_eq!(std::fs::read_to_string(root.join("a")).expect("from below"), "one");
            std::fs::remove_file(root.join("a")).expect("removed");
            write(root.join("c"), "three");
        });
        let (dir, driver, ids) = (store.dir().to_owned(), store.driver().driver, (base.id(), top.id()));
        drop((base, top, store));

        let store = open_with(&dir, driver);
        let view = store.snapshots().view(&ids.1).expect("it survived");
        let mut names: Vec<String> = inside(&view, scratch, |root| {
            let entries = std::fs::read_dir(root).expect("a tree");
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
        });
        names.sort();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(store.snapshots().chain(&ids.1).expect("known"), [ids.1, ids.0]);
    });
}

#[test]
fn a_dropped_tree_is_removed() {
    let (dir, store) = copy_store();
    let active = store.snapshots().prepare(None, PrepareOptions::default()).expect("prepare");
    let path = active.dir();
    write(path.join("file"), "x");
    drop(active);
    assert!(!path.exists());
    drop(store);
    let left = std::fs::read_dir(dir.path().join("snapshots/1/trash")).expect("trash").count();
    assert_eq!(left, 0, "closing waits for removals");
}

#[test]
fn a_second_process_is_told_who_holds_the_store() {
    let (dir, store) = copy_store();
    let options = OpenOptions { driver: Driver::Copy, lock_wait: Duration::from_millis(50), ..OpenOptions::default() };
    let error = Store::open(dir.path(), options.clone()).expect_err("it is in use");
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    drop(store);
    Store::open(dir.path(), options).expect("free again");
}

#[test]
fn a_later_format_is_refused() {
    let (dir, store) = copy_store();
    drop(store);
    let db = rusqlite::Connection::open(dir.path().join("metadata.db")).expect("the database");
    db.pragma_update(None, "user_version", 999).expect("written");
    drop(db);
    let error = Store::open(dir.path(), OpenOptions::default()).expect_err("too new");
    assert!(matches!(error, Error::Format { found: 999, .. }), "{error}");
}

#[test]
fn a_damaged_database_is_a_miss() {
    let (dir, store) = copy_store();
    let hold = step(&store, dir.path(), None, |root| write(root.join("a"), "x"));
    let digest = store.content().put("blob").expect("stored");
    let id = hold.id();
    drop((hold, store));
    let path = dir.path().join("metadata.db");
    let _ = std::fs::remove_file(dir.path().join("metadata.db-wal"));
    std::fs::write(&path, vec![7; 8192]).expect("damaged");
    let store = open_with(dir.path(), Driver::Copy);
    assert!(store.damage().is_some(), "whoever opens it can tell");
    assert!(store.snapshots().hold(&id).is_none());
    assert!(!dir.path().join("snapshots/1").join(id.to_string()).exists(), "its tree has no record any more");
    assert_eq!(
        store.content().read(&digest).expect("readable").as_deref(),
        Some(&b"blob"[..]),
        "blobs prove themselves"
    );
    step(&store, dir.path(), None, |root| write(root.join("a"), "x"));
}

type Damage = (&'static str, fn(&Path));

/// What can happen to the database's files. After none of it a build may fail.
const DAMAGES: [Damage; 10] = [
    ("gone", |db| std::fs::remove_file(db).expect("removed")),
    ("empty", |db| cut(db, 0)),
    ("half", |db| cut(db, std::fs::metadata(db).expect("a size").len() / 2)),
    ("cut within a page", |db| cut(db, 5000)),
    ("all garbage", |db| overwrite(db, 0, usize::MAX)),
    ("garbage in the header", |db| overwrite(db, 16, 84)),
    ("garbage behind the header", |db| overwrite(db, 100, 4000)),
    ("garbage in the pages", |db| overwrite(db, 4096, usize::MAX)),
    ("a log that is cut", |db| {
        let log = log_of(db);
        cut(&log, std::fs::metadata(&log).expect("a size").len() / 2);
    }),
    ("a log of garbage", |db| overwrite(&log_of(db), 0, usize::MAX)),
];

fn log_of(db: &Path) -> PathBuf {
    db.with_extension("db-wal")
}

fn cut(file: &Path, len: u64) {
    std::fs::File::options().write(true).open(file).and_then(|file| file.set_len(len)).expect("cut");
}

/// Puts bytes that nobody wrote in place of `count` bytes, or of those that there are.
fn overwrite(file: &Path, at: usize, count: usize) {
    let mut bytes = std::fs::read(file).expect("readable");
    let end = at.saturating_add(count).min(bytes.len());
    bytes[at..end].iter_mut().enumerate().for_each(|(n, byte)| *byte = (n * 37 + 11) as u8);
    std::fs::write(file, bytes).expect("overwritten");
}

const RECORDS: u8 = 24;

/// A store in which something of everything is on record, part of it in the log only.
fn full_store(dir: &Path) -> Store {
    let store = open_with(dir, Driver::Copy);
    let mut parent: Option<Hold> = None;
    for n in 0..RECORDS {
        let hold = step(&store, dir, parent.as_ref(), |root| write(root.join(format!("f{n}")), &n.to_string()));
        let digest = store.content().put(format!("blob {n}")).expect("stored");
        store.content().attach(&digest, &hold.id()).expect("attached");
        store.kv("digests").put_with(hold.id().to_string(), [n; 200], &hold.id()).expect("put");
        let result = CacheResult { id: ResultId::from(hold.id().to_string()), created_at: n.into() };
        let key = KeyId::from(Digest::of([n]));
        store.cache_keys().write(&[Change::Result { key, result }]).expect("written");
        parent = (n % 10 != 9).then_some(hold);
        if n == RECORDS / 2 {
            store.inner.db.checkpoint().expect("synced");
        }
    }
    store
}

/// Builds on: what is on record is there, and all that a build does works.
fn build_on(store: &Store, dir: &Path, what: &str) {
    for record in store.disk_usage().unwrap_or_else(|error| panic!("{what}: {error:?}")) {
        if let Ok(id) = record.id.parse::<SnapshotId>() {
            let hold = store.snapshots().hold(&id).unwrap_or_else(|| panic!("{what}: {id} is on record"));
            assert!(store.snapshots().layer_dirs(&hold.id()).is_ok_and(|dirs| dirs[0].is_dir()), "{what}");
        }
    }
    for n in 0..RECORDS {
        let key = KeyId::from(Digest::of([n]));
        let results = store.cache_keys().results(&[key]).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        for result in &results[0] {
            let id: SnapshotId = result.id.as_str().parse().expect("an id");
            let hold = store.snapshots().hold(&id).unwrap_or_else(|| panic!("{what}: a result is there"));
            let file = store.snapshots().layer_dirs(&hold.id()).expect("filled")[0].join(format!("f{n}"));
            assert_eq!(std::fs::read_to_string(file).expect("readable"), n.to_string(), "{what}: another result");
        }
        let digest = store.content().put(format!("blob {n}")).expect("stored");
        assert!(store.content().read(&digest).expect("readable").is_some(), "{what}");
    }
    let below = step(store, dir, None, |root| write(root.join("a"), "x"));
    let hold = step(store, dir, Some(&below), |root| write(root.join("b"), "x"));
    let digest = store.content().put("layer").expect("stored");
    let layer =
        LayerRecord { digest, size: 5, diff_id: digest, media_type: "x".into(), annotations: Default::default() };
    store.snapshots().set_layer(&hold.id(), "raw", layer).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    store.kv("other").put("key", "value").unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let result = CacheResult { id: ResultId::from(hold.id().to_string()), created_at: 1 };
    let key = KeyId::from(Digest::of("built on"));
    let written = store.cache_keys().write(&[Change::Result { key: key.clone(), result }]);
    written.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert!(!store.cache_keys().results(&[key]).expect("readable")[0].is_empty(), "{what}: it is remembered");
    store.prune(&PruneOptions { max_used_space: 1 << 30, ..PruneOptions::default() }).expect("pruned");
}

#[test]
fn damage_of_the_database_is_a_miss_at_the_next_start() {
    for (what, damage) in DAMAGES {
        for crashed in [false, true] {
            let dir = tempfile::tempdir().expect("a scratch directory");
            drop(full_store(dir.path()));
            damage(&dir.path().join("metadata.db"));
            if crashed {
                crash(dir.path());
            }
            let store = open_with(dir.path(), Driver::Copy);
            build_on(&store, dir.path(), what);
            drop(store);
            let store = open_with(dir.path(), Driver::Copy);
            let key = KeyId::from(Digest::of("built on"));
            assert!(!store.cache_keys().results(&[key]).expect("readable")[0].is_empty(), "{what}: and stays so");
        }
    }
}

#[test]
fn damage_of_the_database_is_a_miss_while_it_is_open() {
    for (what, damage) in DAMAGES {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let store = full_store(dir.path());
        let last = step(&store, dir.path(), None, |root| write(root.join("a"), "x")).id();
        damage(&dir.path().join("metadata.db"));
        build_on(&store, dir.path(), what);
        drop(store);
        let store = open_with(dir.path(), Driver::Copy);
        build_on(&store, dir.path(), what);
        let next = step(&store, dir.path(), None, |root| write(root.join("a"), "x")).id();
        assert!(next > last, "{what}: ids are not given out again");
    }
}

#[test]
fn a_blob_that_somebody_wrote_to_is_a_miss() {
    let (dir, store) = copy_store();
    let content = store.content();
    let blobs = ["whole", "cut", "longer", "other", "touched"].map(|text| content.put(text).expect("stored"));
    let paths = blobs.map(|digest| content.path(&digest));
    drop((content, store));
    let later = std::time::SystemTime::now() + Duration::from_secs(60);
    cut(&paths[1], 1);
    std::fs::write(&paths[2], "longer still").expect("written");
    for (path, text) in [(&paths[3], "OTHER"), (&paths[4], "touched")] {
        std::fs::write(path, text).expect("written");
        std::fs::File::options().write(true).open(path).and_then(|file| file.set_modified(later)).expect("a time");
    }
    let store = open_with(dir.path(), Driver::Copy);
    let there = blobs.map(|digest| store.content().has(&digest));
    assert_eq!(there, [true, false, false, false, true]);
    // What is read whole is looked at whole.
    std::fs::write(&paths[0], "WHOLE").expect("written");
    assert_eq!(store.content().read(&blobs[0]).expect("readable"), None);
    assert!(!store.content().has(&blobs[0]));
    assert_eq!(store.content().put("whole").expect("stored again"), blobs[0]);
    assert!(store.content().read(&blobs[0]).expect("readable").is_some());
}

#[test]
fn another_identity_never_sees_snapshots() {
    let (dir, store) = copy_store();
    let hold = step(&store, dir.path(), None, |root| write(root.join("a"), "x"));
    let id = hold.id();
    let key = KeyId::from(Digest::of("key"));
    let result = CacheResult { id: ResultId::from(id.to_string()), created_at: 1 };
    store.cache_keys().write(&[Change::Result { key: key.clone(), result }]).expect("written");
    drop((hold, store));
    let options = OpenOptions { driver: Driver::Copy, identity: "0:1000:1".to_owned(), ..OpenOptions::default() };
    let other = Store::open(dir.path(), options).expect("opens");
    assert!(other.snapshots().hold(&id).is_none());
    assert_eq!(other.cache_keys().results(std::slice::from_ref(&key)).expect("read"), [vec![]]);
    drop(other);
    let store = open_with(dir.path(), Driver::Copy);
    assert!(store.snapshots().hold(&id).is_some());
    assert_eq!(store.cache_keys().results(&[key]).expect("read")[0].len(), 1);
}

/// Pretends that the machine crashed since the store was closed.
fn crash(dir: &Path) {
    write(dir.join("boot"), "another boot");
}

#[test]
fn after_a_machine_crash_only_synced_data_is_trusted() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let options = OpenOptions { driver: Driver::Copy, sync_on_close: false, ..OpenOptions::default() };
    let store = Store::open(dir.path(), options.clone()).expect("opens");
    let safe = step(&store, dir.path(), None, |root| write(root.join("a"), "safe"));
    store.sync().expect("synced");
    let lost = step(&store, dir.path(), Some(&safe), |root| write(root.join("b"), "lost"));
    let content = store.content();
    let (good, bad) = (content.put("good").expect("stored"), content.put("bad").expect("stored"));
    let (safe_id, lost_id, bad_path) = (safe.id(), lost.id(), content.path(&bad));
    drop((safe, lost, content, store));
    std::fs::write(bad_path, "").expect("cut, as a file system does");
    crash(dir.path());
    let store = Store::open(dir.path(), options.clone()).expect("opens");
    assert!(store.snapshots().hold(&safe_id).is_some());
    assert!(store.snapshots().hold(&lost_id).is_none());
    assert!(store.content().has(&good));
    assert!(!store.content().has(&bad));
    drop(store);
    crash(dir.path());
    let store = Store::open(dir.path(), options).expect("opens");
    assert!(store.snapshots().hold(&safe_id).is_some(), "what was verified once stays");
}

#[test]
fn missing_data_is_a_miss() {
    let (dir, store) = copy_store();
    let base = step(&store, dir.path(), None, |root| write(root.join("a"), "x"));
    let top = step(&store, dir.path(), Some(&base), |root| write(root.join("b"), "x"));
    let (base_id, top_id) = (base.id(), top.id());
    drop((base, top, store));
    std::fs::remove_dir_all(dir.path().join("snapshots/1").join(base_id.to_string())).expect("removed");
    let store = open_with(dir.path(), Driver::Copy);
    assert!(store.snapshots().hold(&base_id).is_none());
    assert!(store.snapshots().hold(&top_id).is_none(), "nor what stands on it");
}

#[test]
fn ids_are_never_given_out_twice() {
    let (dir, store) = copy_store();
    let hold = step(&store, dir.path(), None, |root| write(root.join("a"), "x"));
    let id = hold.id();
    drop(hold);
    assert!(store.snapshots().remove(&id).expect("removed"));
    drop(store);
    let store = open_with(dir.path(), Driver::Copy);
    assert!(step(&store, dir.path(), None, |_| ()).id() > id);
}

const CHILD: &str = "HULLWORKS_TEST_KILLED_CHILD";

/// Not a test of its own: what the killed process does, see below.
#[test]
fn killed_child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let store = open_with(Path::new(&dir), Driver::Copy);
    let mut parent: Option<Hold> = None;
    let keys = store.cache_keys();
    for n in 0.. {
        let text = format!("{n}-{}", std::process::id()).repeat(100);
        let digest = store.content().put(&text).expect("stored");
        let hold = step(&store, Path::new(&dir), parent.as_ref(), |root| {
            write(root.join(format!("f{}", n % 7)), &text);
            write(root.join("digest"), &Digest::of(&text).to_string());
            write(root.join("name"), &format!("f{}", n % 7));
        });
        let layer = LayerRecord {
            digest,
            size: text.len() as u64,
            diff_id: digest,
            media_type: "x".into(),
            annotations: Default::default(),
        };
        store.snapshots().set_layer(&hold.id(), "raw", layer).expect("recorded");
        let result = CacheResult { id: ResultId::from(hold.id().to_string()), created_at: n };
        keys.write(&[Change::Result { key: KeyId::from(digest), result }]).expect("written");
        parent = if n % 5 == 4 { None } else { Some(hold) };
        if n % 11 == 10 {
            store.prune(&PruneOptions { max_used_space: 40_000, ..PruneOptions::default() }).expect("pruned");
        }
    }
}

/// After any kill every surviving record is usable.
fn check_all(store: &Store) {
    let keys = store.cache_keys();
    for key in keys.keys().expect("readable") {
        for result in keys.results(std::slice::from_ref(&key)).expect("readable").remove(0) {
            let id: SnapshotId = result.id.as_str().parse().expect("an id");
            let hold = store.snapshots().hold(&id).expect("what a key leads to is there");
            let FsView::Dir { path, .. } = store.snapshots().view(&hold.id()).expect("a view") else {
                panic!("copy driver")
            };
            let name = std::fs::read_to_string(path.join("name")).expect("whole");
            let data = std::fs::read(path.join(name)).expect("whole");
            assert_eq!(std::fs::read_to_string(path.join("digest")).expect("whole"), Digest::of(&data).to_string());
            for layer in store.snapshots().layers(&id).expect("readable").values() {
                let blob = store.content().read(&layer.digest).expect("readable").expect("a layer's blob is there");
                assert_eq!(Digest::of(blob), layer.digest);
            }
        }
    }
}

fn spawn_child(dir: &Path) -> Child {
    let program = std::env::current_exe().expect("this test");
    let mut command = Command::new(program);
    command.args(["--exact", "tests::killed_child", "--nocapture"]).env(CHILD, dir);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a child")
}

#[test]
fn a_kill_at_any_moment_leaves_only_usable_records() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let mut seen = 0;
    for round in 0..25 {
        let mut child = spawn_child(dir.path());
        // Different moments of opening, writing and pruning; no outcome depends on which.
        std::thread::sleep(Duration::from_millis(15 + round * 23 % 170));
        child.kill().expect("killed");
        child.wait().expect("gone");
        let store = open_with(dir.path(), Driver::Copy);
        check_all(&store);
        seen += store.snapshots().0.inner.snapshots.table().records.len();
        drop(store);
        let snapshots = dir.path().join("snapshots/1");
        let left = std::fs::read_dir(&snapshots).expect("a directory").count();
        let store = open_with(dir.path(), Driver::Copy);
        let records = store.snapshots().0.inner.snapshots.table().records.len();
        assert_eq!(left, records + 2, "only trees with a record, `identity` and `trash`");
    }
    assert!(seen > 0, "the child got to commit something");
}

#[test]
fn privileged_a_full_disk_is_said_to_be_full() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let mounted =
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), Some(c"size=4m"));
    if let Err(error) = mounted {
        eprintln!("skipped: cannot mount a small tmpfs: {error}");
        return;
    }
    let store = open_with(&dir.path().join("store"), Driver::Copy);
    let kept = store.content().put(vec![1; 1 << 20]).expect("it fits");
    let error = store.content().put(vec![2; 8 << 20]).expect_err("it does not fit");
    assert!(error.is_no_space(), "{error:?}");
    assert!(store.content().has(&kept));
    let hold = step(&store, dir.path(), None, |root| write(root.join("a"), "x"));
    assert!(store.snapshots().hold(&hold.id()).is_some(), "the store goes on");
    let ingest = std::fs::read_dir(store.dir().join("content/ingest")).expect("a directory").count();
    assert_eq!(ingest, 0, "nothing is left of the blob that did not fit");
    drop((hold, store));
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).expect("unmounted");
}

#[test]
fn trees_that_forbid_it_are_removed_all_the_same() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let deep = dir.path().join("x/closed/inner");
    std::fs::create_dir_all(&deep).expect("directories");
    write(deep.join("file"), "x");
    std::fs::set_permissions(&deep, std::fs::Permissions::from_mode(0o000)).expect("closed");
    std::fs::set_permissions(dir.path().join("x/closed"), std::fs::Permissions::from_mode(0o500)).expect("closed");
    crate::snapshot::tree::remove_tree(&dir.path().join("x")).expect("removed");
    assert!(!dir.path().join("x").exists());
}

#[test]
fn keys_and_values_live_as_long_as_their_snapshot() {
    let (dir, store) = copy_store();
    let kv = store.kv("hash");
    kv.put("a", "1").expect("put");
    let hold = step(&store, dir.path(), None, |_| ());
    kv.put_with("b", "2", &hold.id()).expect("put");
    assert_eq!(kv.scan("").expect("read").len(), 2);
    assert_eq!(store.kv("other").get("a").expect("read"), None);
    let id = hold.id();
    assert!(!store.snapshots().remove(&id).expect("asked"), "it is held");
    drop(hold);
    assert!(store.snapshots().remove(&id).expect("asked"));
    assert_eq!(kv.get("b").expect("read"), None);
    assert_eq!(kv.get("a").expect("read").as_deref(), Some(&b"1"[..]));
    assert!(matches!(kv.put_with("c", "3", &id), Err(Error::Missing(_))));
    kv.delete("a").expect("deleted");
    assert_eq!(kv.get("a").expect("read"), None);
}

#[test]
fn a_long_log_is_gone_when_the_store_closes() {
    let (dir, store) = copy_store();
    let log = dir.path().join("metadata.db-wal");
    let kv = store.kv("large");
    for n in 0..8_u8 {
        kv.put([n], vec![n; 1 << 20]).expect("put");
    }
    assert!(log.metadata().expect("a log").len() > 8 << 20);
    assert_eq!(kv.get([1]).expect("read").map(|value| value.len()), Some(1 << 20), "a reader is there");
    drop(kv);
    drop(store);
    assert_eq!(log.metadata().expect("a log").len(), 0);
    let store = open_with(dir.path(), Driver::Copy);
    assert_eq!(store.kv("large").get([7]).expect("read"), Some(vec![7; 1 << 20]));
}

#[test]
fn a_log_that_has_grown_shrinks_again() {
    let (dir, store) = copy_store();
    let log = dir.path().join("metadata.db-wal");
    let kv = store.kv("large");
    kv.put("a", vec![1; 24 << 20]).expect("put");
    assert!(log.metadata().expect("a log").len() > 24 << 20);
    store.inner.db.checkpoint().expect("brought into the file");
    kv.put("b", "2").expect("put");
    assert_eq!(log.metadata().expect("a log").len(), 16 << 20);
    assert_eq!(kv.get("a").expect("read").map(|value| value.len()), Some(24 << 20));
}

#[test]
fn what_is_too_large_is_removed_unread() {
    let (_dir, store) = copy_store();
    let (kv, other) = (store.kv("a"), store.kv("b"));
    for (key, value) in [("k", "v"), ("key", "v"), ("l", "val")] {
        kv.put(key, value).expect("put");
        other.put(key, value).expect("put");
    }
    assert_eq!(kv.delete_larger(2, 2).expect("deleted"), 2);
    assert_eq!(kv.scan("").expect("read"), [(b"k".to_vec(), b"v".to_vec())]);
    assert_eq!(other.scan("").expect("read").len(), 3);
}

#[test]
fn a_full_disk_is_seen_through_other_errors() {
    use std::io;
    let full = || io::Error::from(io::ErrorKind::StorageFull);
    let inner = files::untar::Error::Write { doing: "write", path: "f".to_owned(), source: full() };
    let fault = base::Fault::because(base::Kind::Environment, "cannot write", full());
    for (error, expected) in [
        (full(), true),
        (io::ErrorKind::QuotaExceeded.into(), true),
        (io::Error::other(full()), true),
        (io::Error::other(inner), true),
        (io::Error::other(image::Error::Io(full())), true),
        (io::Error::other(Error::Layer(image::Error::Io(full()))), true),
        (io::Error::other(fault.context("so")), true),
        (io::Error::other("full"), false),
        (io::ErrorKind::NotFound.into(), false),
    ] {
        assert_eq!(is_full(&error), expected, "{error:?}");
    }
}
