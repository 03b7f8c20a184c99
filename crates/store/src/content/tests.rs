//! Blobs: verified, resumed, shared, never partial.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base::{Cancel, Digest};

use crate::tests::{copy_store, open_with};
use crate::*;

#[test]
fn wrong_bytes_get_no_name() {
    let (_dir, store) = copy_store();
    let content = store.content();
    let digest = Digest::of("right");
    let mut writer = content.writer(Some(digest), None).expect("a writer");
    writer.append(b"wrong").expect("written");
    let error = writer.finish().expect_err("not that blob");
    assert_eq!(error.to_string(), format!("blob has digest {}, not {digest}", Digest::of("wrong")));
    let mut writer = content.writer(Some(digest), Some(5)).expect("a writer");
    assert!(matches!(writer.append(b"right and more"), Err(Error::SizeMismatch { expected: 5, actual: 14 })));
    drop(writer);
    let mut writer = content.writer(Some(digest), Some(5)).expect("a writer");
    writer.append(b"rig").expect("written");
    assert!(matches!(writer.finish(), Err(Error::SizeMismatch { expected: 5, actual: 3 })));
    assert!(!content.has(&digest));
    assert_eq!(std::fs::read_dir(store.dir().join("content/ingest")).expect("a directory").count(), 0);
}

#[test]
fn a_download_goes_on_where_it_ended_also_in_the_next_process() {
    let (dir, store) = copy_store();
    let digest = Digest::of("hello world");
    let mut writer = store.content().resume(&digest, Some(11)).expect("a writer");
    assert_eq!(writer.offset(), 0);
    writer.write_all(b"hello ").expect("written");
    drop(writer);
    drop(store);
    let store = open_with(dir.path(), Driver::Copy);
    let content = store.content();
    let mut writer = content.resume(&digest, Some(11)).expect("a writer");
    assert_eq!(writer.offset(), 6);
    let beside = content.resume(&digest, Some(11)).expect("a second writer");
    assert_eq!(beside.offset(), 0, "the part is taken");
    drop(beside);
    writer.append(b"world").expect("written");
    assert_eq!(writer.finish().expect("right").size, 11);
    assert_eq!(content.read(&digest).expect("readable").as_deref(), Some(&b"hello world"[..]));
    assert_eq!(content.resume(&Digest::of("x"), None).expect("a writer").offset(), 0);
}

#[test]
fn a_part_of_other_bytes_is_not_kept() {
    let (_dir, store) = copy_store();
    let content = store.content();
    let digest = Digest::of("hello");
    let mut writer = content.resume(&digest, Some(5)).expect("a writer");
    writer.append(b"jello").expect("written");
    assert!(matches!(writer.finish(), Err(Error::DigestMismatch { .. })));
    let mut writer = content.resume(&digest, Some(5)).expect("a writer");
    assert_eq!(writer.offset(), 0, "else it could never be had again");
    writer.append(b"hel").expect("written");
    writer.restart().expect("emptied");
    writer.append(b"hello").expect("written");
    writer.finish().expect("right");
}

#[test]
fn one_brings_and_the_others_wait() {
    let (_dir, store) = copy_store();
    let content = store.content();
    let digest = Digest::of("blob");
    let Claim::Mine(guard) = content.claim(&digest, || ()) else { panic!("nobody brings it yet") };
    let woken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&woken);
    let wake = move || _ = count.fetch_add(1, Ordering::SeqCst);
    assert!(matches!(content.claim(&digest, wake), Claim::Busy));
    let waiting = {
        let content = content.clone();
        std::thread::spawn(move || matches!(content.claim_wait(&digest, &Cancel::new()), Ok(Claim::Present(_))))
    };
    assert_eq!(woken.load(Ordering::SeqCst), 0);
    content.put("blob").expect("stored");
    drop(guard);
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    assert!(waiting.join().expect("the thread"), "it finds the blob");
    assert!(matches!(content.claim(&digest, || ()), Claim::Present(info) if info.size == 4));

    // Who gives up leaves it to the next.
    let other = Digest::of("other");
    let Claim::Mine(guard) = content.claim(&other, || ()) else { panic!("nobody brings it yet") };
    drop(guard);
    assert!(matches!(content.claim_wait(&other, &Cancel::new()), Ok(Claim::Mine(_))));
    let Claim::Mine(_guard) = content.claim(&other, || ()) else { panic!("given back") };
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(matches!(content.claim_wait(&other, &cancel), Err(Error::Cancelled(_))));
}

#[test]
fn labels_and_holds() {
    let (dir, store) = copy_store();
    let content = store.content();
    let digest = content.put("blob").expect("stored");
    content.set_label(&digest, "containerd.io/distribution.source.docker.io", "library/a,library/b").expect("set");
    let hold = content.hold(&digest);
    let second = hold.clone();
    drop(hold);
    assert!(!content.delete(&digest).expect("asked"), "it is held");
    drop(second);
    drop((content, store));
    let store = open_with(dir.path(), Driver::Copy);
    let content = store.content();
    let labels = content.labels(&digest).expect("readable");
    assert_eq!(labels["containerd.io/distribution.source.docker.io"], "library/a,library/b");
    assert!(content.delete(&digest).expect("asked"));
    assert!(content.info(&digest).expect("readable").is_none());
    assert!(!content.delete(&digest).expect("asked"));
}

#[test]
fn files_and_rows_agree_after_a_kill() {
    let (dir, store) = copy_store();
    let content = store.content();
    let lost = content.put("lost").expect("stored");
    let path = content.path(&lost);
    let unnoted = Digest::of("renamed, then killed");
    std::fs::write(content.path(&unnoted), "renamed, then killed").expect("written");
    std::fs::write(store.dir().join("content/ingest/t9"), "rest").expect("written");
    std::fs::write(store.dir().join("content/blobs/sha256/nonsense"), "rest").expect("written");
    drop((content, store));
    std::fs::remove_file(path).expect("removed");
    let store = open_with(dir.path(), Driver::Copy);
    let content = store.content();
    assert!(content.info(&lost).expect("readable").is_none());
    assert_eq!(content.info(&unnoted).expect("readable").expect("there").size, 20);
    assert!(!dir.path().join("content/ingest/t9").exists());
    assert!(!dir.path().join("content/blobs/sha256/nonsense").exists());
}

#[test]
fn a_lease_outlives_the_process_and_keeps_blobs_out_of_the_cache() {
    let (dir, store) = copy_store();
    let content = store.content();
    let log = content.put("log").expect("stored");
    let shared = content.put("shared").expect("stored");
    content.lease("history/a", &[log, shared]).expect("leased");
    content.lease("history/b", &[shared, Digest::of("not there")]).expect("leased");
    drop((content, store));
    let store = open_with(dir.path(), Driver::Copy);
    let content = store.content();
    assert_eq!(content.leases("history/"), ["history/a", "history/b"]);
    assert_eq!(store.disk_usage().expect("counted"), []);
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    assert_eq!(store.prune(&all).expect("pruned"), []);
    assert!(!content.delete(&log).expect("asked"), "it is kept");
    assert_eq!(content.list().expect("listed").len(), 2);

    assert_eq!(content.release("history/a").expect("released"), [log]);
    assert!(content.delete(&log).expect("asked"));
    assert_eq!(store.prune(&all).expect("pruned"), [], "another lease keeps it");
    // A lease that is replaced keeps only what is new.
    content.lease("history/b", &[]).expect("leased");
    assert_eq!(store.prune(&all).expect("pruned").len(), 1);
    assert_eq!(content.list().expect("listed"), []);
    assert_eq!(content.release("nobody's").expect("no error"), []);
}

#[test]
fn nobody_waits_for_the_space_of_a_removed_blob() {
    let (_dir, store) = copy_store();
    let content = store.content();
    let digest = content.put("large").expect("stored");
    // The disk is slow: nothing that was discarded goes yet.
    let slow = locked(&store.inner.work.removing);
    assert!(content.delete(&digest).expect("deleted"));
    assert!(!content.has(&digest));
    let trash = || std::fs::read_dir(crate::snapshot::tree::trash_dir(&store.inner)).expect("there").count();
    assert_eq!(trash(), 1);
    drop(slow);
    store.prune(&PruneOptions::default()).expect("pruned");
    assert_eq!(trash(), 0);
}

#[test]
fn a_blob_goes_where_there_is_no_room_for_its_new_name() {
    let (_dir, store) = copy_store();
    let digest = store.content().put("blob").expect("stored");
    // The next name in the trash is taken.
    std::fs::create_dir_all(crate::snapshot::tree::trash_dir(&store.inner).join("0/in-the-way")).expect("made");
    assert!(store.content().delete(&digest).expect("deleted"));
    assert!(!store.content().has(&digest));
}
