//! Cleaning beside builds: what a build has made or found stays, whatever was decided before it did.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base::Digest;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Metadata, Subscriber};

use super::*;
use crate::tests::{copy_store, step};
use crate::{Hold, LazyLayer, PrepareOptions};

const ALL: PruneOptions = PruneOptions {
    all: true,
    keep_duration: Duration::ZERO,
    reserved_space: 0,
    max_used_space: 0,
    min_free_space: 0,
    filters: Vec::new(),
};

fn small(store: &Store) -> Hold {
    step(store, &std::env::temp_dir(), None, |_| ())
}

/// A layer that is in no snapshot yet.
fn lazy(blob: Digest) -> LazyLayer {
    LazyLayer {
        digest: blob,
        size: 5,
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        diff_id: blob,
        chain_id: blob,
        sources: Vec::new(),
        urls: Vec::new(),
        annotations: Default::default(),
        from_cache: false,
    }
}

#[test]
fn a_blob_that_got_a_snapshot_since_it_was_counted_stays() {
    let (_dir, store) = copy_store();
    let (made, pulled) = (store.content().put("made").expect("stored"), store.content().put("pulled").expect("stored"));
    let counted = store.disk_usage().expect("counted");
    assert_eq!(counted.len(), 2);
    let layer = small(&store);
    store.content().attach(&made, &layer.id()).expect("attached");
    let image = store.snapshots().register_lazy(None, lazy(pulled), PrepareOptions::default()).expect("registered");
    let mut removed = Vec::new();
    store.remove_until(None, counted, &ALL, &[], Why::Room, &mut removed).expect("nothing to remove");
    assert_eq!(removed, []);
    assert_eq!([made, pulled].map(|blob| store.content().has(&blob)), [true, true]);
    drop((layer, image));
    assert_eq!(store.prune(&ALL).expect("pruned").len(), 2);
    assert_eq!([made, pulled].map(|blob| store.content().has(&blob)), [false, false]);
}

/// Does something whenever this is logged.
struct Meanwhile<F>(&'static str, F);

/// Whether it is the message of an event.
struct Says(&'static str, bool);

impl Visit for Says {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.1 |= field.name() == "message" && format!("{value:?}") == self.0;
    }
}

impl<F: Fn() + 'static> Subscriber for Meanwhile<F> {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut says = Says(self.0, false);
        event.record(&mut says);
        if says.1 {
            (self.1)();
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn a_blob_that_is_found_while_its_snapshot_goes_stays() {
    let (_dir, store) = copy_store();
    let blob = store.content().put("layer").expect("stored");
    let old = small(&store);
    store.content().attach(&blob, &old.id()).expect("attached");
    drop(old);
    // The tree cannot be thrown away, which is said when the records have gone, and the blob has not.
    std::fs::create_dir_all(store.dir().join("snapshots/1/trash/0/in-the-way")).expect("made");
    let found = Arc::new(Mutex::new(Vec::new()));
    let find = {
        let (store, found) = (store.clone(), found.clone());
        move || {
            assert!(store.content().has(&blob));
            let new = small(&store);
            store.content().attach(&blob, &new.id()).expect("attached");
            locked(&found).push(new);
        }
    };
    tracing::subscriber::with_default(Meanwhile("data could not be discarded", find), || {
        store.prune(&ALL).expect("pruned")
    });
    assert_eq!(locked(&found).len(), 1);
    assert!(store.content().has(&blob));
}

#[test]
fn what_is_made_again_while_it_goes_is_there() {
    const ROUNDS: usize = 300;
    let (_dir, store) = copy_store();
    let (is_done, lost) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each time the snapshot before this one is about to go, and the blob with it.
            for _ in 0..ROUNDS {
                let layer = small(&store);
                let blob = Digest::of("layer");
                let hold = store.content().hold(&blob);
                store.content().put("layer").expect("stored");
                store.content().attach(&blob, &layer.id()).expect("attached");
                drop(hold);
                let is_there = (0..20).all(|_| {
                    std::thread::yield_now();
                    store.content().has(&blob)
                });
                lost.fetch_add(usize::from(!is_there), Ordering::Relaxed);
            }
            is_done.store(true, Ordering::Release);
        });
        while !is_done.load(Ordering::Acquire) {
            store.prune(&ALL).expect("pruned");
        }
    });
    assert_eq!(lost.into_inner(), 0, "of {ROUNDS}");
}

#[test]
fn one_blob_that_stays_keeps_no_other() {
    let (_dir, store) = copy_store();
    let [stuck, free] = ["stuck", "free"].map(|text| store.content().put(text).expect("stored"));
    let layer = small(&store);
    for blob in [&stuck, &free] {
        store.content().attach(blob, &layer.id()).expect("attached");
    }
    let id = layer.id().to_string();
    drop(layer);
    let sql = |sql: &str| store.inner.db.write("write to", |db| db.execute_batch(sql)).expect("written");
    // They are tried in the order of their digests.
    let first = stuck.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    sql(&format!(
        "CREATE TRIGGER stay BEFORE DELETE ON blob WHEN old.digest = x'{first}' BEGIN SELECT RAISE(ABORT, 'no'); END"
    ));
    let mut removed = Vec::new();
    store.prune_into(&ALL, &mut removed).expect_err("one stays");
    assert_eq!(removed.iter().map(|record| &record.id).collect::<Vec<_>>(), [&id]);
    assert_eq!([stuck, free].map(|blob| store.content().has(&blob)), [true, false]);
    // It was cleaned up as after a success.
    assert_eq!(std::fs::read_dir(tree::trash_dir(&store.inner)).expect("there").count(), 0);
    sql("DROP TRIGGER stay");
    let removed = store.prune(&ALL).expect("pruned");
    assert_eq!(removed.iter().map(|record| record.id.clone()).collect::<Vec<_>>(), [stuck.to_string()]);
}

#[test]
fn a_blob_is_not_kept_by_what_a_lazy_layer_unpacks_to() {
    let (_dir, store) = copy_store();
    let [packed, unpacked, chain] =
        ["packed", "unpacked", "chain"].map(|text| store.content().put(text).expect("stored"));
    let layer = LazyLayer { diff_id: unpacked, chain_id: chain, ..lazy(packed) };
    let _image = store.snapshots().register_lazy(None, layer, PrepareOptions::default()).expect("registered");
    let gone = [packed, unpacked, chain].map(|blob| store.content().delete(&blob).expect("asked"));
    assert_eq!(gone, [false, true, true]);
    for text in ["unpacked", "chain"] {
        store.content().put(text).expect("stored");
    }
    assert_eq!(maintenance::remove_orphan_blobs(&store.inner, i64::MAX).expect("removed"), 13);
    assert!(store.content().has(&packed));
}
