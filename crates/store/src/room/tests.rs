//! What goes when the volume is full, and what does not.

#![expect(clippy::print_stderr, reason = "a test that is skipped says why")]

use std::path::Path;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::tests::{copy_store, open_with, step};
use crate::{Driver, Error, Hold, PruneOptions, SnapshotId};

/// A step of so many KiB.
fn sized(store: &Store, kib: usize) -> Hold {
    step(store, &std::env::temp_dir(), None, |root| {
        std::fs::write(root.join("data"), vec![1; kib << 10]).expect("written")
    })
}

fn full() -> Error {
    Error::io("write", "/x", io::Error::from(io::ErrorKind::StorageFull))
}

fn is_there(store: &Store, id: &SnapshotId) -> bool {
    store.snapshots().info(id).is_some()
}

/// A store on a volume of its own, if this process may mount one.
fn on_small_volume(size: &std::ffi::CStr, test: impl FnOnce(&Store, &Path)) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let mounted = rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), Some(size));
    if let Err(error) = mounted {
        eprintln!("skipped: cannot mount a small tmpfs: {error}");
        return;
    }
    let store = open_with(&dir.path().join("store"), Driver::Copy);
    test(&store, dir.path());
    drop(store);
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).expect("unmounted");
}

#[test]
fn what_found_no_room_is_tried_again_once_something_went() {
    let (_dir, store) = copy_store();
    let (held, free) = (sized(&store, 64), sized(&store, 64).id());
    let mut tries = 0;
    let done = store.with_room(0, || {
        tries += 1;
        if is_there(&store, &free) { Err(full()) } else { Ok(tries) }
    });
    assert_eq!(done.expect("it found room"), 2);
    assert!(is_there(&store, &held.id()), "it is in use");
    // Now there is nothing that could go, and the first answer is the last.
    let failed = store.with_room(0, || {
        tries += 1;
        Err::<(), _>(full())
    });
    assert!(failed.expect_err("full").is_no_space());
    assert_eq!(tries, 3);
    let other = store.with_room(0, || Err::<(), _>(Error::Missing(free)));
    assert!(other.expect_err("gone").is_miss(), "other failures are nobody's room");
}

#[test]
fn those_who_meet_a_full_volume_at_once_share_what_goes() {
    let (_dir, store) = copy_store();
    let (mut one, mut two) = (store.room(), store.room());
    drop(sized(&store, 64));
    assert_eq!(one.make(Need::Anew(0)).expect("made").records, 1);
    let next = sized(&store, 64).id();
    assert_eq!(two.make(Need::Anew(0)), Some(Made::default()), "it tries with what the other one got");
    assert!(is_there(&store, &next));
    assert_eq!(two.make(Need::Anew(0)).expect("made").records, 1, "that was not enough");
    assert!(!is_there(&store, &next));
    // What a rule of cleaning takes is room as well.
    let mut three = store.room();
    drop(sized(&store, 64));
    assert_eq!(store.prune(&PruneOptions::default()).expect("pruned").len(), 1);
    assert_eq!(three.make(Need::Anew(0)), Some(Made::default()));
    assert_eq!(three.make(Need::Anew(0)), None, "and then there is nothing");
}

#[test]
fn no_more_goes_than_is_wanted_and_nothing_where_all_is_not_enough() {
    let (_dir, store) = copy_store();
    let held = sized(&store, 256);
    let free: Vec<SnapshotId> = (0..4).map(|_| sized(&store, 64).id()).collect();
    assert_eq!(store.remove_unused(64 << 10, 300 << 10).expect("counted"), []);
    let removed = store.remove_unused(64 << 10, 0).expect("removed");
    assert_eq!(removed.iter().map(|record| record.id.clone()).collect::<Vec<_>>(), [free[0].to_string()], "the oldest");
    assert_eq!(store.remove_unused(u64::MAX, 0).expect("removed").len(), 3);
    assert!(is_there(&store, &held.id()));
}

#[test]
fn one_action_is_not_tried_for_ever() {
    let (_dir, store) = copy_store();
    let tries = AtomicUsize::new(0);
    let failed = store.with_room(0, || {
        tries.fetch_add(1, Ordering::Relaxed);
        drop(sized(&store, 64));
        Err::<(), _>(full())
    });
    assert!(failed.expect_err("full").is_no_space());
    assert_eq!(tries.into_inner(), MOST_TRIES + 1);
}

#[test]
fn privileged_blobs_and_records_find_room_on_a_full_volume() {
    on_small_volume(c"size=24m", |store, root| {
        let base = sized(store, 1024);
        let old: Vec<SnapshotId> = (0..3).map(|_| sized(store, 4096).id()).collect();
        // A blob that comes in pieces goes on where it was.
        let bytes = vec![7; 8 << 20];
        let mut writer =
            store.content().writer(Some(base::Digest::of(&bytes)), Some(bytes.len() as u64)).expect("begun");
        bytes.chunks(64 << 10).for_each(|piece| writer.append(piece).expect("room is made"));
        writer.finish().expect("it is whole");
        assert!(!is_there(store, &old[0]), "the oldest went");
        assert!(is_there(store, &old[2]) && is_there(store, &base.id()), "what need not go stays");

        // To the last block: whatever is written next, records included, has room all the same.
        let mut filler = File::create(root.join("filler")).expect("created");
        let piece = [0; 4096];
        while io::Write::write_all(&mut filler, &piece).is_ok() {}
        let next = step(store, &std::env::temp_dir(), None, |_| ());
        let blob = store.content().put(vec![3; 512 << 10]).expect("room is made");
        assert!(is_there(store, &next.id()) && store.content().has(&blob));
        assert!(is_there(store, &base.id()));

        // What can never fit says so, and costs nothing.
        let left = store.disk_usage().expect("counted").len();
        let error = store.content().put(vec![1; 32 << 20]).expect_err("it does not fit");
        assert!(error.is_no_space(), "{error:?}");
        assert_eq!(store.disk_usage().expect("counted").len(), left);
    });
}

#[test]
fn privileged_a_step_finds_room_before_it_begins() {
    on_small_volume(c"size=24m", |store, root| {
        let old = sized(store, 2048).id();
        let new = sized(store, 2048).id();
        assert_eq!(store.keep_room(), None, "there is enough");
        let free = store.free_space().expect("known");
        std::fs::write(root.join("filler"), vec![0; usize::try_from(free - (1 << 20)).expect("small")])
            .expect("it fits");
        assert_eq!(store.keep_room().map(|made| made.records), Some(1));
        assert!(!is_there(store, &old) && is_there(store, &new));
    });
}
