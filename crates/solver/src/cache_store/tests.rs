use super::*;

fn link(op: &str) -> Link {
    Link { input: 0, output: 0, digest: Digest::of(op).into(), selector: None }
}

fn row(from: &str, op: &str, to: &str) -> LinkRow {
    LinkRow { from: from.into(), link: link(op), to: to.into() }
}

fn result(key: &str, id: &str, created_at: i64) -> Change {
    Change::Result { key: key.into(), result: CacheResult { id: id.into(), created_at } }
}

fn store(changes: &[Change]) -> MemoryStore {
    let store = MemoryStore::new();
    store.write(changes).expect("in memory");
    store
}

fn keys(store: &MemoryStore) -> Vec<String> {
    store.keys().expect("in memory").iter().map(KeyId::to_string).collect()
}

#[test]
fn many_questions_are_answered_in_order() {
    let store = store(&[
        Change::Link(row("a", "x", "b")),
        Change::Link(row("a", "x", "c")),
        Change::Link(row("a", "y", "d")),
        result("b", "r1", 1),
        result("b", "r2", 2),
        result("b", "r1", 3),
    ]);
    assert_eq!(store.exist(&["b".into(), "c".into(), "a".into()]).expect("ok"), [true, false, true]);
    let targets = store.targets(&[("z".into(), link("x")), ("a".into(), link("x"))]).expect("ok");
    assert_eq!(targets, [vec![], vec!["b".into(), "c".into()]]);
    let results = store.results(&["b".into(), "a".into()]).expect("ok");
    assert_eq!(results[0].iter().map(|r| (r.id.as_str(), r.created_at)).collect::<Vec<_>>(), [("r1", 3), ("r2", 2)]);
    assert!(results[1].is_empty());
    assert_eq!(store.has_links(&[row("a", "y", "b"), row("a", "y", "d")]).expect("ok"), [false, true]);
    assert_eq!(store.keys_of_result(&"r1".into()).expect("ok"), ["b".into()]);
    let back = store.backlinks(&["d".into(), "a".into()]).expect("ok");
    assert_eq!(back[0][0].record, root_id("y"));
    assert_eq!((back[0].len(), back[1].len()), (1, 0));
}

fn root_id(op: &str) -> KeyId {
    crate::root_key(Digest::of(op).into(), 0)
}

/// foo -> bar -> baz, where each has a result: what is left when results go, one by one.
#[test]
fn released_results_take_empty_branches_along() {
    let chain = [
        Change::Link(row("foo", "bar", "bar")),
        Change::Link(row("bar", "baz", "baz")),
        result("foo", "r-foo", 1),
        result("bar", "r-bar", 1),
        result("baz", "r-baz", 1),
    ];
    let cases: [(&[&str], &[&str]); 5] = [
        (&["r-foo"], &["bar", "baz", "foo"]),
        (&["r-bar"], &["bar", "baz", "foo"]),
        (&["r-baz"], &["bar", "foo"]),
        (&["r-bar", "r-foo", "r-baz"], &[]),
        (&["unknown"], &["bar", "baz", "foo"]),
    ];
    for (released, left) in cases {
        let store = store(&chain);
        let changes: Vec<Change> = released.iter().map(|id| Change::Release((*id).into())).collect();
        store.write(&changes).expect("in memory");
        assert_eq!(keys(&store), left, "{released:?}");
    }
}

#[test]
fn a_released_branch_leaves_no_rows_behind() {
    let store = store(&[
        Change::Link(row("a", "x", "b")),
        Change::Link(row("c", "x", "b")),
        result("b", "r", 1),
        result("c", "r", 1),
        Change::Release("r".into()),
    ]);
    let tables = store.read();
    assert!(tables.results.is_empty() && tables.by_result.is_empty());
    assert!(tables.links.is_empty() && tables.backlinks.is_empty());
}
