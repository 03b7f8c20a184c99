//! What goes when the volume is full, and what does not.

#![expect(clippy::print_stderr, reason = "a test that is skipped says why")]

use std::io;
use std::path::Path;

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

/// A room for which what is free on the volume of these tests is no news.
fn room(store: &Store) -> Room {
    Room { was_told: true, ..store.room() }
}

/// Unmounts it, whatever becomes of the test.
struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
        if !std::thread::panicking() {
            unmounted.expect("unmounted");
        }
    }
}

/// A store on a volume of its own, if this process may mount one.
fn on_small_volume(options: &std::ffi::CStr, test: impl FnOnce(&Store, &Path)) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let mounted = rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), Some(options));
    if let Err(error) = mounted {
        eprintln!("skipped: cannot mount a small tmpfs: {error}");
        return;
    }
    let mounted = Mounted(dir);
    let store = open_with(&mounted.0.path().join("store"), Driver::Copy);
    test(&store, mounted.0.path());
}

#[test]
fn what_found_no_room_is_tried_again_once_something_went() {
    let (_dir, store) = copy_store();
    let (held, free) = (sized(&store, 64), sized(&store, 64).id());
    let mut tries = 0;
    let done = room(&store).tries(Need::Anew(0), || {
        tries += 1;
        if is_there(&store, &free) { Err(full()) } else { Ok(tries) }
    });
    assert_eq!(done.expect("it found room"), 2);
    assert!(is_there(&store, &held.id()), "it is in use");
    // Now there is nothing that could go, and the first answer is the last, for whoever asked for it too.
    let failed = room(&store).tries(Need::Anew(0), || {
        room(&store).tries(Need::Anew(0), || {
            tries += 1;
            Err::<(), _>(full())
        })
    });
    let failed = failed.expect_err("full");
    assert!(failed.is_no_space() && !wants_room(&failed), "{failed:?}");
    assert_eq!(tries, 3);
    let passed_on = Error::Layer(image::Error::Io(io::Error::new(io::ErrorKind::StorageFull, failed)));
    assert!(passed_on.is_no_space() && !wants_room(&passed_on), "{passed_on:?}");
    let other = store.with_room(0, || Err::<(), _>(Error::Missing(free)));
    assert!(other.expect_err("gone").is_miss(), "other failures are nobody's room");
}

#[test]
fn what_is_free_is_tried_once() {
    let (_dir, store) = copy_store();
    let mut one = store.room();
    let old = sized(&store, 64).id();
    assert_eq!(one.make(Need::More(1)), Some(Made::default()));
    assert!(is_there(&store, &old));
    // A quota is full where the volume is not.
    assert_eq!(one.make(Need::More(1)).expect("made").records, 1);
}

#[test]
fn those_who_meet_a_full_volume_at_once_share_what_goes() {
    let (_dir, store) = copy_store();
    let (mut one, mut two) = (room(&store), room(&store));
    drop(sized(&store, 64));
    assert_eq!(one.make(Need::Anew(0)).expect("made").records, 1);
    let next = sized(&store, 64).id();
    assert_eq!(two.make(Need::Anew(0)), Some(Made::default()), "it tries with what the other one got");
    assert!(is_there(&store, &next));
    assert_eq!(two.make(Need::Anew(0)).expect("made").records, 1, "that was not enough");
    assert!(!is_there(&store, &next));
    // What a rule of cleaning takes is room as well.
    let mut three = room(&store);
    drop(sized(&store, 64));
    assert_eq!(store.prune(&PruneOptions::default()).expect("pruned").len(), 1);
    assert_eq!(three.make(Need::Anew(0)), Some(Made::default()));
    assert_eq!(three.make(Need::Anew(0)), None, "and then there is nothing");
}

#[test]
fn who_comes_too_late_each_time_makes_room_in_the_end() {
    let (_dir, store) = copy_store();
    let mut late = room(&store);
    for _ in 0..MOST_SHARED {
        drop(sized(&store, 4));
        assert_eq!(room(&store).make(Need::Anew(0)).expect("made").records, 1);
        assert_eq!(late.make(Need::Anew(0)), Some(Made::default()));
    }
    drop(sized(&store, 4));
    assert_eq!(room(&store).make(Need::Anew(0)).expect("made").records, 1);
    drop(sized(&store, 4));
    assert_eq!(late.make(Need::Anew(0)).expect("made").records, 1);
}

#[test]
fn many_who_meet_a_full_volume_at_once_all_find_room() {
    let (_dir, store) = copy_store();
    let ids: Vec<SnapshotId> = (0..24).map(|_| sized(&store, 4).id()).collect();
    std::thread::scope(|scope| {
        for id in &ids {
            let (store, mine) = (&store, room(&store));
            scope.spawn(move || {
                let done = mine.tries(Need::Anew(0), || if is_there(store, id) { Err(full()) } else { Ok(()) });
                done.expect("room is made");
            });
        }
    });
}

#[test]
fn what_went_before_a_removal_failed_is_room() {
    let (_dir, store) = copy_store();
    let (oldest, next) = (sized(&store, 64).id(), store.content().put(b"blob").expect("stored"));
    // A directory under the name of a blob cannot be removed as one, where it cannot be moved.
    let trash = crate::snapshot::tree::trash_dir(&store.inner);
    std::fs::rename(&trash, trash.with_extension("aside")).expect("moved");
    let path = store.content().path(&next);
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("made");
    let mut removed = Vec::new();
    store.remove_unused(0, |_| false, &mut removed).expect_err("a directory");
    assert_eq!(removed.iter().map(|record| record.id.clone()).collect::<Vec<_>>(), [oldest.to_string()]);
    let last = sized(&store, 64).id();
    // The row of the blob is gone, and it is in nobody's way.
    assert_eq!(room(&store).make(Need::Anew(0)).expect("made").records, 1);
    assert!(!is_there(&store, &last));
}

#[test]
fn no_more_goes_than_is_wanted_and_nothing_where_all_is_not_enough() {
    let (_dir, store) = copy_store();
    let held = sized(&store, 256);
    let free: Vec<SnapshotId> = (0..4).map(|_| sized(&store, 64).id()).collect();
    let remove = |wanted, needed| {
        let mut removed = Vec::new();
        store.remove_unused(needed, |went| went >= wanted, &mut removed).expect("removed");
        removed
    };
    assert_eq!(remove(64 << 10, 300 << 10), []);
    let removed = remove(64 << 10, 0);
    assert_eq!(removed.iter().map(|record| record.id.clone()).collect::<Vec<_>>(), [free[0].to_string()], "the oldest");
    assert_eq!(remove(u64::MAX, 0).len(), 3);
    assert!(is_there(&store, &held.id()));
}

#[test]
fn one_action_is_not_tried_for_ever() {
    let (_dir, store) = copy_store();
    let mut tries = 0;
    let failed = room(&store).tries(Need::Anew(0), || {
        tries += 1;
        drop(sized(&store, 64));
        Err::<(), _>(full())
    });
    assert!(failed.expect_err("full").is_no_space());
    assert_eq!(tries, MOST_ROUNDS + 1);
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
        std::fs::write(root.join("filler"), vec![0; usize::try_from(free - (512 << 10)).expect("small")])
            .expect("it fits");
        assert_eq!(store.keep_room().map(|made| made.records), Some(1));
        assert!(!is_there(store, &old) && is_there(store, &new));
        // Nothing goes for what cannot be reached.
        let held = store.snapshots().hold(&new);
        let tiny = sized(store, 8).id();
        let free = store.free_space().expect("known");
        std::fs::write(root.join("more"), vec![0; usize::try_from(free - (64 << 10)).expect("small")])
            .expect("it fits");
        assert_eq!(store.keep_room(), None);
        assert!(held.is_some() && is_there(store, &tiny));
    });
}

#[test]
fn privileged_a_step_that_found_no_room_gets_as_much_once_more() {
    on_small_volume(c"size=24m", |store, root| {
        let held = sized(store, 1024);
        let old: Vec<SnapshotId> = (0..4).map(|_| sized(store, 2048).id()).collect();
        let mut room = store.room();
        let had = store.free_space().expect("known");
        // The step writes all that there is.
        std::fs::write(root.join("step"), vec![0; usize::try_from(had).expect("small")]).expect("it fits");
        let made = room.make_again(3 << 20).expect("made");
        assert!(made.records == 2 && made.bytes >= 3 << 20, "{made:?}");
        assert!(!is_there(store, &old[1]) && is_there(store, &old[2]) && is_there(store, &held.id()));
        // What others made meanwhile is enough, where it is still there.
        let mut other = store.room();
        store.room().make_again(1 << 20).expect("made");
        assert_eq!(other.make_again(1 << 20), Some(Made::default()));
        // Less than it had is better than nothing, and nothing is not.
        assert!(room.make_again(64 << 20).is_some_and(|made| made.records > 0));
        assert_eq!(room.make_again(64 << 20), None);
        assert!(is_there(store, &held.id()));
    });
}

#[test]
fn privileged_where_no_inode_is_free_some_become_so() {
    on_small_volume(c"size=64m,nr_inodes=2000", |store, root| {
        let many = |count: usize| {
            step(store, &std::env::temp_dir(), None, |root| {
                (0..count).for_each(|n| std::fs::write(root.join(n.to_string()), []).expect("written"));
            })
        };
        let old: Vec<SnapshotId> = (0..6).map(|_| many(20).id()).collect();
        let filler = root.join("filler");
        std::fs::create_dir(&filler).expect("made");
        (0..).take_while(|n: &usize| File::create(filler.join(n.to_string())).is_ok()).for_each(drop);
        let blob = store.content().put(b"small").expect("room is made");
        assert!(store.content().has(&blob));
        // A part of 64 of all of them.
        assert!(!is_there(store, &old[1]) && is_there(store, &old[5]), "{old:?}");
    });
}
