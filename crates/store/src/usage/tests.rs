//! What is counted, what goes, and in which order.

use std::time::Duration;

use base::Digest;

use super::*;
use crate::tests::{copy_store, step};
use crate::{CacheMountRequest, CommitOptions, Hold, LayerRecord, PrepareOptions, Sharing};

fn ids(records: &[UsageRecord]) -> Vec<String> {
    records.iter().map(|record| record.id.clone()).collect()
}

/// A step of so many KiB.
fn sized(store: &Store, parent: Option<&Hold>, kib: usize) -> Hold {
    let scratch = std::env::temp_dir();
    step(store, &scratch, parent, |root| std::fs::write(root.join("data"), vec![1; kib << 10]).expect("written"))
}

#[test]
fn usage_counts_blocks_blobs_and_users() {
    let (_dir, store) = copy_store();
    let base = sized(&store, None, 100);
    let top = sized(&store, Some(&base), 10);
    let digest = store.content().put(vec![7; 5000]).expect("stored");
    let layer =
        LayerRecord { digest, size: 5000, diff_id: digest, media_type: "x".into(), annotations: Default::default() };
    store.snapshots().set_layer(&base.id(), "gzip", layer).expect("recorded");
    let loose = store.content().put("a manifest").expect("stored");
    let (base_id, top_id) = (base.id().to_string(), top.id().to_string());
    drop(base);
    let usage = store.disk_usage().expect("counted");
    assert_eq!(ids(&usage), [base_id.clone(), top_id.clone(), loose.to_string()]);
    assert!(usage[0].size >= 105_000 && usage[0].size < 130_000, "{}", usage[0].size);
    assert!(usage[0].in_use, "what stands on it is held");
    assert_eq!(usage[1].parents, [base_id]);
    assert_eq!((usage[2].record_type, usage[2].size), (RecordKind::Internal, 10));
    drop(top);
    assert!(store.disk_usage().expect("counted").iter().all(|record| !record.in_use));
}

#[test]
fn prune_takes_what_nobody_uses_and_its_blobs() {
    let (_dir, store) = copy_store();
    let base = sized(&store, None, 1);
    let top = sized(&store, Some(&base), 1);
    let other = sized(&store, None, 1);
    let digest = store.content().put("layer").expect("stored");
    let layer =
        LayerRecord { digest, size: 5, diff_id: digest, media_type: "x".into(), annotations: Default::default() };
    store.snapshots().set_layer(&top.id(), "gzip", layer.clone()).expect("recorded");
    let shared = store.content().put("shared").expect("stored");
    for hold in [&top, &other] {
        store
            .snapshots()
            .set_layer(&hold.id(), "zstd", LayerRecord { digest: shared, ..layer.clone() })
            .expect("recorded");
    }
    let (base_id, top_id) = (base.id(), top.id());
    drop((base, top));
    let removed = store.prune(&PruneOptions::default()).expect("pruned");
    assert_eq!(ids(&removed), [top_id.to_string(), base_id.to_string()], "what stands on others first");
    assert!(store.snapshots().info(&other.id()).is_some(), "it is held");
    assert!(!store.content().has(&digest));
    assert!(store.content().has(&shared), "another snapshot has it");
    assert!(!store.dir().join("snapshots/1").join(base_id.to_string()).exists());
    assert_eq!(
        std::fs::read_dir(store.dir().join("snapshots/1/trash")).expect("trash").count(),
        0,
        "space is free on return"
    );
}

#[test]
fn kinds_ages_and_filters_decide() {
    let (_dir, store) = copy_store();
    let make = |kind, description: &str| {
        let options = PrepareOptions { kind, description: description.to_owned(), created_at: None };
        let active = store.snapshots().prepare(None, options).expect("prepared");
        store.snapshots().commit(active, CommitOptions::default()).expect("committed").id().to_string()
    };
    let regular = make(RecordKind::Regular, "[1/2] RUN make");
    let internal = make(RecordKind::Internal, "mount");
    let local = make(RecordKind::LocalSource, "local source for context");
    let request = CacheMountRequest {
        id: "/root/.cache".into(),
        from: None,
        kind: RecordKind::CacheMount,
        sharing: Sharing::Shared,
        description: "cached mount".into(),
    };
    let mount = store.snapshots().cache_mount(&request, || ()).expect("asked").expect("free").id().to_string();
    let prune = |options: PruneOptions| ids(&store.prune(&options).expect("pruned"));
    let filter = |filters: &[&str]| PruneOptions {
        filters: filters.iter().map(|f| (*f).to_owned()).collect(),
        ..PruneOptions::default()
    };
    assert_eq!(prune(filter(&["id==nothing"])), [""; 0]);
    assert_eq!(
        prune(PruneOptions { keep_duration: Duration::from_secs(3600), ..filter(&["type==exec.cachemount"]) }),
        [""; 0]
    );
    assert_eq!(prune(filter(&["type==exec.cachemount,mutable"])), [mount]);
    assert_eq!(prune(filter(&["description~=^local", "type==frontend"])), [local]);
    assert_eq!(prune(PruneOptions::default()), [regular]);
    assert_eq!(prune(PruneOptions { all: true, ..PruneOptions::default() }), [internal]);
}

#[test]
fn with_a_bound_the_least_used_go_first() {
    let (_dir, store) = copy_store();
    let holds: Vec<Hold> = (0..4).map(|_| sized(&store, None, 64)).collect();
    let names: Vec<String> = holds.iter().map(|hold| hold.id().to_string()).collect();
    // 1 is used often, 3 once and last, 0 and 2 never.
    for n in [1, 1, 1, 3] {
        store.snapshots().hold(&holds[n].id()).expect("there");
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(holds);
    let total: u64 = store.disk_usage().expect("counted").iter().map(|record| record.size).sum();
    let options = PruneOptions { max_used_space: total * 5 / 8, ..PruneOptions::default() };
    assert_eq!(ids(&store.prune(&options).expect("pruned")), [names[0].clone(), names[2].clone()]);
    let reserved = PruneOptions { reserved_space: total, ..PruneOptions::default() };
    assert_eq!(store.prune(&reserved).expect("pruned"), [], "the reserve stays");
    let free = PruneOptions { min_free_space: 1, ..PruneOptions::default() };
    assert_eq!(store.prune(&free).expect("pruned"), [], "enough is free");
    let scarce = PruneOptions { min_free_space: u64::MAX, ..PruneOptions::default() };
    assert_eq!(store.prune(&scarce).expect("pruned").len(), 2, "never enough is free");
}

#[test]
fn filters_are_read_as_containerd_reads_them() {
    let record = UsageRecord {
        id: "12".into(),
        mutable: true,
        in_use: false,
        size: 1,
        parents: vec!["1".into(), "2".into()],
        created_at: SystemTime::UNIX_EPOCH,
        last_used_at: None,
        usage_count: 0,
        description: "a, \"b\" c".into(),
        record_type: RecordKind::CacheMount,
        shared: false,
    };
    for (filter, matches) in [
        ("id==12", true),
        ("id!=12", false),
        ("id~=^1", true),
        ("id~=/^2/", false),
        ("mutable", true),
        ("immutable", false),
        ("inuse", false),
        // Flags have no value.
        ("mutable==true", false),
        ("mutable!=true", true),
        ("mutable~=t", false),
        ("immutable!=true", true),
        ("private==true", false),
        ("parents!=x", true),
        ("shared~=^$", true),
        ("", true),
        (" mutable", true),
        ("\"mutable\"", true),
        ("mutable.x", true),
        ("type == exec.cachemount", true),
        ("private,mutable,type==exec.cachemount", true),
        ("parents==1;2", true),
        (r#"description=="a, \"b\" c""#, true),
        ("description~=|b|,shared", false),
    ] {
        let parsed: UsageFilter = filter.parse().unwrap_or_else(|e| panic!("{filter}: {e}"));
        assert_eq!(parsed.matches(&record), matches, "{filter}");
    }
    for (filter, why) in [
        (
            "size>1",
            "unknown field `size`: known are id, type, description, mutable, immutable, inuse, shared, private and parents",
        ),
        ("id=1", "expected ==, != or ~= at `=1`"),
        ("id 1", "expected ==, != or ~= at `1`"),
        ("id==", "expected a value at its end, or before a comma"),
        ("id==1 2", "expected `,` before ` 2`"),
        ("id~=.*", "expected a value or one in quotes at `.*`"),
        ("id==\"x", "the closing `\"` is missing"),
        (
            "mutable,",
            "expected a field at ``: known are id, type, description, mutable, immutable, inuse, shared, private and parents",
        ),
    ] {
        let error = filter.parse::<UsageFilter>().expect_err(filter);
        assert_eq!(error.to_string(), format!("filter `{filter}`: {why}"));
    }
    assert!("id~=(".parse::<UsageFilter>().is_err());
}

#[test]
fn gc_removes_blobs_of_nobody_after_a_day() {
    let (_dir, store) = copy_store();
    let old = store.content().put("old").expect("stored");
    let read = store.content().put("read").expect("stored");
    let new = store.content().put("new").expect("stored");
    let ago = now() - 2 * 24 * 3600 * 1_000_000_000;
    store
        .inner
        .db
        .write("write to", |db| {
            for digest in [&old, &read] {
                db.execute("UPDATE blob SET last_used = ?2 WHERE digest = ?1", (digest.as_bytes(), ago))?;
            }
            Ok(())
        })
        .expect("aged");
    store.content().read(&read).expect("readable");
    store.gc(&[]).expect("collected");
    let left = [old, read, new].map(|digest: Digest| store.content().has(&digest));
    assert_eq!(left, [false, true, true]);
}
