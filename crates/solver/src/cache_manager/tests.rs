//! The scenarios of upstream's `solver/cache_test.go`, and what a batch costs.

use std::sync::Mutex;

use base::Digest;

use super::*;
use crate::cache_store::{Backlink, MemoryStore};
use crate::{KeyDigest, ResultId};

fn digest(text: &str) -> KeyDigest {
    Digest::of(text).into()
}

fn root(text: &str) -> Arc<CacheKey> {
    Arc::new(CacheKey::root(digest(text), 0))
}

fn dep(key: &Arc<CacheKey>, selector: Option<&str>) -> Dep {
    Dep { key: key.clone(), selector: selector.map(Digest::of) }
}

fn with(op: &str, output: i32, deps: Vec<Vec<Dep>>) -> Arc<CacheKey> {
    Arc::new(CacheKey::with_deps(digest(op), output, deps))
}

fn put(store: &dyn CacheStore, key: &Arc<CacheKey>, result: &str) {
    let result = CacheResult { id: result.into(), created_at: 1 };
    save(store, &[Save { key: key.clone(), result: Some(result), also: Vec::new() }]).expect("in memory");
}

fn lookups(op: &str, output: u32, question: Question) -> Lookup {
    Lookup { sources: Arc::new([SourceId::LOCAL]), digest: digest(op), output, question }
}

fn of_input(index: u32, keys: Vec<Dep>) -> Question {
    Question::Inputs(vec![InputKeys { index, keys, also: Vec::new() }])
}

fn find(store: &Arc<MemoryStore>, op: &str, output: u32, question: Question) -> Vec<Found> {
    let sources: [(SourceId, Arc<dyn CacheStore>); 1] = [(SourceId::LOCAL, store.clone())];
    let (mut answers, failure) = lookup(sources.as_slice(), &[lookups(op, output, question)]);
    assert!(failure.is_none());
    answers.remove(0).found
}

/// The results that can be loaded, and whether any key was found at all.
fn results(found: &[Found]) -> Option<Vec<String>> {
    let mut results: Vec<String> = found.iter().flat_map(|f| &f.records).map(|r| r.result.id.to_string()).collect();
    results.sort();
    (!found.is_empty()).then_some(results)
}

fn some(results: &[&str]) -> Option<Vec<String>> {
    Some(results.iter().map(|result| (*result).to_owned()).collect())
}

/// Upstream: TestInMemoryCache.
#[test]
fn keys_are_found_from_their_inputs() {
    let store = Arc::new(MemoryStore::new());
    let (foo, bar) = (root("foo"), root("bar"));
    put(&*store, &foo, "result0");
    put(&*store, &bar, "result1");
    let baz = with("baz", 1, vec![vec![dep(&foo, None)], vec![dep(&bar, None)]]);
    put(&*store, &baz, "result2");
    let foo_of = |input| of_input(input, vec![dep(&foo, None)]);
    let bar_of = |input| of_input(input, vec![dep(&bar, None)]);
    let cases = [
        ("foo", 0, Question::Root, some(&["result0"])),
        ("bar", 0, Question::Root, some(&["result1"])),
        ("baz", 0, Question::Root, None),
        ("baz", 0, foo_of(0), None),
        ("baz", 1, foo_of(1), None),
        ("baz", 1, foo_of(0), some(&["result2"])),
        ("baz", 1, bar_of(1), some(&["result2"])),
    ];
    for (op, output, question, expected) in cases {
        let text = format!("{op}@{output} {question:?}");
        assert_eq!(results(&find(&store, op, output, question)), expected, "{text}");
    }
    let ids = |question| find(&store, "baz", 1, question).remove(0).id;
    assert_eq!(ids(foo_of(0)), ids(bar_of(1)));

    // A key that is reached by fewer inputs is the same one.
    put(&*store, &with("baz", 1, vec![vec![dep(&foo, None)]]), "result3");
    assert_eq!(results(&find(&store, "baz", 1, foo_of(0))), some(&["result2", "result3"]));

    // foo, bar and baz all lead to bax.
    let bax = with("bax", 0, vec![vec![dep(&foo, None), dep(&baz, None)], vec![dep(&bar, None)]]);
    put(&*store, &bax, "result4");
    for question in [foo_of(0), bar_of(1), of_input(0, vec![dep(&baz, None)])] {
        assert_eq!(results(&find(&store, "bax", 0, question)), some(&["result4"]));
    }
}

/// Upstream: TestInMemoryCacheSelector, TestInMemoryCacheSelectorNested.
#[test]
fn selectors_must_agree_and_content_has_none() {
    let store = Arc::new(MemoryStore::new());
    let (foo, second) = (root("foo"), root("second"));
    put(&*store, &foo, "result0");
    put(&*store, &with("bar", 0, vec![vec![dep(&foo, Some("sel0")), dep(&second, None)]]), "result1");
    let cases = [
        (dep(&foo, None), None),
        (dep(&foo, Some("sel-invalid")), None),
        (dep(&foo, Some("sel0")), some(&["result1"])),
        (dep(&second, None), some(&["result1"])),
        (dep(&second, Some("sel0")), None),
    ];
    for (key, expected) in cases {
        let text = format!("{key:?}");
        assert_eq!(results(&find(&store, "bar", 0, of_input(0, vec![key]))), expected, "{text}");
    }
}

/// Upstream: TestInMemoryCacheReleaseParent, TestInMemoryCacheRestoreOfflineDeletion.
#[test]
fn a_key_without_results_still_leads_on() {
    let store = Arc::new(MemoryStore::new());
    let foo = root("foo");
    put(&*store, &foo, "result0");
    put(&*store, &with("bar", 0, vec![vec![dep(&foo, None)]]), "result1");
    let release = |result: &str| store.write(&[Change::Release(ResultId::from(result))]).expect("in memory");
    release("result0");
    assert_eq!(results(&find(&store, "foo", 0, Question::Root)), some(&[]));
    assert_eq!(results(&find(&store, "bar", 0, of_input(0, vec![dep(&root("foo"), None)]))), some(&["result1"]));
    release("result1");
    assert_eq!(results(&find(&store, "foo", 0, Question::Root)), None);
}

/// Upstream: TestCarryOverFromSublink.
#[test]
fn what_one_key_of_an_input_finds_the_others_find_too() {
    let store = Arc::new(MemoryStore::new());
    let (foo, bar, content) = (root("foo"), root("bar"), Arc::new(CacheKey::content(Digest::of("content0"))));
    put(&*store, &foo, "resultFoo");
    put(&*store, &bar, "resultBar");
    put(&*store, &with("res", 0, vec![vec![dep(&foo, Some("sel0")), dep(&content, None)]]), "result0");
    let bar_alone = || of_input(0, vec![dep(&root("bar"), Some("sel0"))]);
    assert_eq!(results(&find(&store, "res", 0, bar_alone())), None);
    let both = of_input(0, vec![dep(&bar, Some("sel0")), dep(&content, None)]);
    assert_eq!(results(&find(&store, "res", 0, both)), some(&["result0"]));
    assert_eq!(results(&find(&store, "res", 0, bar_alone())), some(&["result0"]));
}

#[test]
fn keys_to_link_only_find_nothing_but_are_linked() {
    let store = Arc::new(MemoryStore::new());
    let (old, new, content) = (root("old"), root("new"), Arc::new(CacheKey::content(Digest::of("c"))));
    put(&*store, &with("op", 0, vec![vec![dep(&old, None)]]), "stale");
    put(&*store, &with("op", 0, vec![vec![dep(&content, None)]]), "good");
    let question = Question::Inputs(vec![InputKeys {
        index: 0,
        keys: vec![dep(&content, None)],
        also: vec![dep(&old, None), dep(&new, None)],
    }]);
    assert_eq!(results(&find(&store, "op", 0, question)), some(&["good"]));
    assert_eq!(results(&find(&store, "op", 0, of_input(0, vec![dep(&new, None)]))), some(&["good"]));
}

/// Of all that one input leads to, only what the others lead to as well is found and linked.
#[test]
fn inputs_meet() {
    let store = Arc::new(MemoryStore::new());
    let base = root("base");
    for n in 0..50 {
        let source = root(&format!("source{n}"));
        put(&*store, &with("copy", 0, vec![vec![dep(&base, None)], vec![dep(&source, None)]]), &format!("result{n}"));
    }
    let inputs = |second: &str| {
        let keys = |index, keys| InputKeys { index, keys, also: Vec::new() };
        vec![keys(0, vec![dep(&base, None), dep(&root("base2"), None)]), keys(1, vec![dep(&root(second), None)])]
    };
    assert_eq!(results(&find(&store, "copy", 0, Question::Inputs(inputs("source7")))), some(&["result7"]));
    assert_eq!(results(&find(&store, "copy", 0, Question::Inputs(inputs("unknown")))), None);
    // Whether an input leads anywhere at all is cheaper to ask.
    let sources: [(SourceId, Arc<dyn CacheStore>); 1] = [(SourceId::LOCAL, store.clone())];
    let mut both = inputs("unknown").into_iter().map(|input| lookups("copy", 0, Question::Input(input)));
    let both: Vec<Lookup> = both.by_ref().collect();
    let (answers, _) = lookup(sources.as_slice(), &both);
    assert_eq!(answers.iter().map(|answer| answer.matched[0]).collect::<Vec<_>>(), [true, false]);
    assert!(answers.iter().all(|answer| answer.found.is_empty()));
    // The second key of the base was linked to the one that was found, not to all fifty.
    let link = Link { input: 0, output: 0, digest: digest("copy"), selector: None };
    assert_eq!(store.targets(&[(root("base2").root_id(), link)]).expect("in memory")[0].len(), 1);
}

/// A store that counts calls and may fail.
struct Counting {
    inner: MemoryStore,
    calls: Mutex<Vec<&'static str>>,
    fails: bool,
}

impl Counting {
    fn new() -> Counting {
        Counting { inner: MemoryStore::new(), calls: Mutex::default(), fails: false }
    }

    fn called(&self, name: &'static str) -> Result<&MemoryStore, StoreError> {
        self.calls.lock().expect("not poisoned").push(name);
        if self.fails { Err(StoreError::new("disk on fire")) } else { Ok(&self.inner) }
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.calls.lock().expect("not poisoned"))
    }
}

impl CacheStore for Counting {
    fn exist(&self, keys: &[KeyId]) -> Result<Vec<bool>, StoreError> {
        self.called("exist")?.exist(keys)
    }

    fn results(&self, keys: &[KeyId]) -> Result<Vec<Vec<CacheResult>>, StoreError> {
        self.called("results")?.results(keys)
    }

    fn targets(&self, from: &[(KeyId, Link)]) -> Result<Vec<Vec<KeyId>>, StoreError> {
        self.called("targets")?.targets(from)
    }

    // `meet` is the trait's own, by `targets`.

    fn has_links(&self, rows: &[LinkRow]) -> Result<Vec<bool>, StoreError> {
        self.called("has_links")?.has_links(rows)
    }

    fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.called("write")?.write(changes)
    }

    fn backlinks(&self, keys: &[KeyId]) -> Result<Vec<Vec<Backlink>>, StoreError> {
        self.called("backlinks")?.backlinks(keys)
    }

    fn keys_of_result(&self, result: &ResultId) -> Result<Vec<KeyId>, StoreError> {
        self.called("keys_of_result")?.keys_of_result(result)
    }

    fn keys(&self) -> Result<Vec<KeyId>, StoreError> {
        self.called("keys")?.keys()
    }
}

#[test]
fn a_batch_costs_a_few_calls_whatever_its_length() {
    let store = Arc::new(Counting::new());
    let sources: [(SourceId, Arc<dyn CacheStore>); 1] = [(SourceId::LOCAL, store.clone())];
    let keys: Vec<Arc<CacheKey>> = (0..100).map(|n| root(&n.to_string())).collect();
    let saves = keys.iter().map(|key| Save {
        key: with("op", 0, vec![vec![dep(key, None)]]),
        result: Some(CacheResult { id: "r".into(), created_at: 1 }),
        also: Vec::new(),
    });
    let saves: Vec<Save> = saves.collect();
    save(&*store, &saves).expect("in memory");
    let meets = |call: &&&str| **call == "targets";
    assert_eq!(store.take().iter().filter(|call| !meets(call)).count(), 2, "has_links, write");
    let mut questions: Vec<Lookup> =
        keys.iter().map(|key| lookups("op", 0, of_input(0, vec![dep(key, None)]))).collect();
    questions.extend((0..100).map(|n| lookups(&n.to_string(), 0, Question::Root)));
    let (answers, failure) = lookup(sources.as_slice(), &questions);
    assert!(failure.is_none());
    assert!(answers.iter().all(|answer| answer.found.len() == 1));
    assert_eq!(store.take(), ["exist", "targets", "results"]);
    let (answers, _) = lookup(sources.as_slice(), &[lookups("unknown", 0, Question::Root)]);
    assert_eq!((answers, store.take()), (vec![Answer::default()], vec!["exist"]));
}

#[test]
fn a_failing_source_finds_nothing_and_others_do() {
    let good = Arc::new(MemoryStore::new());
    put(&*good, &root("foo"), "result0");
    let bad = Arc::new(Counting { fails: true, ..Counting::new() });
    let sources: [(SourceId, Arc<dyn CacheStore>); 2] = [(SourceId::LOCAL, bad.clone()), (SourceId(1), good)];
    let mut question = lookups("foo", 0, Question::Root);
    question.sources = Arc::new([SourceId::LOCAL, SourceId(5), SourceId(1)]);
    let (answers, failure) = lookup(sources.as_slice(), &[question]);
    assert_eq!(results(&answers[0].found), some(&["result0"]));
    assert_eq!(answers[0].found[0].sources, [SourceId(1)]);
    assert_eq!(failure.map(|error| error.to_string()).as_deref(), Some("the cache store failed"));
    let result = CacheResult { id: "r".into(), created_at: 1 };
    let key = with("op", 0, vec![vec![dep(&root("foo"), None)]]);
    assert!(save(&*bad, &[Save { key, result: Some(result), also: Vec::new() }]).is_err());
}

/// The store's shortcut says what the trait's own way says.
#[test]
fn the_memory_store_meets_like_any_store() {
    let store = Counting::new();
    let link = |input: u32| Link { input, output: 0, digest: digest("op"), selector: None };
    let mut changes = Vec::new();
    for n in 0..60_u32 {
        // Three keys for each of two inputs, leading to overlapping sets.
        let from = KeyId::from(format!("from{}", n % 3));
        let to = KeyId::from(format!("to{}", (n * 7) % 13));
        changes.push(Change::Link(LinkRow { from, link: link(n % 2), to }));
    }
    store.write(&changes).expect("in memory");
    for mask in 0..64 {
        for only_matched in [false, true] {
            let key = |input: u32, n: u32| (KeyId::from(format!("from{n}")), link(input));
            let keys =
                |input: u32| (0..3).filter(|n| mask >> (input * 3 + n) & 1 == 1).map(|n| key(input, n)).collect();
            let inputs = Inputs { links: vec![keys(0), keys(1)], only_matched };
            let sorted = |mut meetings: Vec<Meeting>| {
                meetings[0].keys.sort();
                meetings
            };
            let own = sorted(store.inner.meet(std::slice::from_ref(&inputs)).expect("in memory"));
            assert_eq!(sorted(store.meet(&[inputs]).expect("in memory")), own, "{mask}");
        }
    }
}

#[test]
fn ids_are_found_by_inputs_or_made_once() {
    let store = MemoryStore::new();
    let base = root("base");
    let first = with("op", 0, vec![vec![dep(&base, None)]]);
    put(&store, &first, "r");
    let id = key_id(SourceId::LOCAL, &store, &first).expect("in memory");
    let again = with("op", 0, vec![vec![dep(&root("base"), None)]]);
    assert_eq!(key_id(SourceId::LOCAL, &store, &again).expect("in memory"), id);
    let other = with("op2", 0, vec![vec![dep(&base, None)]]);
    let made = key_id(SourceId::LOCAL, &store, &other).expect("in memory");
    assert_eq!(made.as_str().len(), 25);
    put(&store, &other, "r2");
    let link = Link { input: 0, output: 0, digest: digest("op2"), selector: None };
    assert_eq!(store.targets(&[(base.root_id(), link)]).expect("in memory"), [vec![made]]);
}
