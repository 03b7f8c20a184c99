//! The tables answer as the solver's store in memory does, whatever is written.

use base::Digest;
use proptest::prelude::*;
use solver::{CacheResult, CacheStore, Change, KeyDigest, KeyId, Link, LinkRow, MemoryStore, ResultId};

use crate::tests::{copy_store, open_with, step};
use crate::*;

fn key(n: u8) -> KeyId {
    match n % 3 {
        0 => KeyId::from(Digest::of([n])),
        1 => KeyId::from(format!("key{n}")),
        _ => KeyId::from(format!("random:{}", Digest::of([n]).hex())),
    }
}

fn link(n: u8) -> Link {
    let digest = Digest::of([n % 4]);
    Link {
        input: u32::from(n % 2),
        output: i32::from(n % 3) - 1,
        digest: if n.is_multiple_of(5) { KeyDigest::Random(digest) } else { KeyDigest::Stable(digest) },
        selector: (n % 7 < 3).then(|| Digest::of([n % 2, 9])),
    }
}

fn change() -> impl Strategy<Value = Change> {
    let result = |n: u8| ResultId::from(format!("r{}", n % 5));
    prop_oneof![
        (0..12u8, any::<u8>(), 0..3i64).prop_map(move |(k, r, created_at)| Change::Result {
            key: key(k),
            result: CacheResult { id: result(r), created_at }
        }),
        (0..12u8, any::<u8>(), 0..12u8).prop_map(|(from, l, to)| Change::Link(LinkRow {
            from: key(from),
            link: link(l),
            to: key(to)
        })),
        any::<u8>().prop_map(move |r| Change::Release(result(r))),
    ]
}

fn sorted<T: Ord>(mut all: Vec<Vec<T>>) -> Vec<Vec<T>> {
    all.iter_mut().for_each(|one| one.sort());
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables_answer_as_memory_does(batches in prop::collection::vec(prop::collection::vec(change(), 1..12), 1..8)) {
        let (_dir, store) = copy_store();
        let (tables, memory) = (store.cache_keys(), MemoryStore::new());
        let all: Vec<KeyId> = (0..12).map(key).collect();
        for batch in batches {
            tables.write(&batch).expect("written");
            memory.write(&batch).expect("written");
            prop_assert_eq!(tables.exist(&all).expect("read"), memory.exist(&all).expect("read"));
            prop_assert_eq!(sorted(tables.results(&all).expect("read")), sorted(memory.results(&all).expect("read")));
            let asked: Vec<(KeyId, Link)> = (0..=255).map(|n| (key(n % 12), link(n))).collect();
            prop_assert_eq!(sorted(tables.targets(&asked).expect("read")), sorted(memory.targets(&asked).expect("read")));
            let rows: Vec<LinkRow> = (0..=255u8).map(|n| LinkRow { from: key(n % 12), link: link(n), to: key(n % 11) }).collect();
            prop_assert_eq!(tables.has_links(&rows).expect("read"), memory.has_links(&rows).expect("read"));
            prop_assert_eq!(sorted(tables.backlinks(&all).expect("read")), sorted(memory.backlinks(&all).expect("read")));
            prop_assert_eq!(sorted(vec![tables.keys().expect("read")]), sorted(vec![memory.keys().expect("read")]));
            for n in 0..5 {
                let result = ResultId::from(format!("r{n}"));
                let (a, b) = (tables.keys_of_result(&result).expect("read"), memory.keys_of_result(&result).expect("read"));
                prop_assert_eq!(sorted(vec![a]), sorted(vec![b]));
            }
        }
    }
}

#[test]
fn results_go_with_their_snapshots() {
    let (dir, store) = copy_store();
    let hold = step(&store, dir.path(), None, |_| ());
    let id = hold.id();
    let keys = store.cache_keys();
    let (input, output, other) = (key(0), key(1), key(2));
    let result = |name: String| CacheResult { id: ResultId::from(name), created_at: 1 };
    keys.write(&[
        Change::Link(LinkRow { from: input.clone(), link: link(1), to: output.clone() }),
        Change::Result { key: output.clone(), result: result(format!("{id}:0")) },
        Change::Result { key: other.clone(), result: result("something else".to_owned()) },
    ])
    .expect("written");
    assert_eq!(keys.exist(&[input.clone(), output.clone(), other.clone()]).expect("read"), [true; 3]);
    drop((hold, keys));
    drop(store);
    let store = open_with(dir.path(), Driver::Copy);
    let keys = store.cache_keys();
    assert_eq!(keys.results(std::slice::from_ref(&output)).expect("read")[0].len(), 1, "it survived");
    assert!(store.snapshots().remove(&id).expect("asked"));
    assert_eq!(keys.exist(&[input, output, other]).expect("read"), [false, false, true]);
}
