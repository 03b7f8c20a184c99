//! Records: kept, replaced, deleted, gone when they are old.

use base::progress::{Event, Log, Sink as _, Stream, Vertex, Warning};
use base::{Fault, SourceSpan};
use engine::SolveResponse;
use store::{Driver, OpenOptions, PruneOptions};

use super::*;
use crate::builds::{Build, Builds};
use crate::metrics::Metrics;

fn store(dir: &std::path::Path) -> Store {
    let options = OpenOptions { driver: Driver::Copy, ..OpenOptions::default() };
    Store::open(dir, options).expect("opens")
}

fn opened(store: &Store, keep: Keep) -> Arc<History> {
    Arc::new(History::open(store, keep).expect("opens"))
}

fn trace() -> crate::trace::Trace {
    Arc::new(crate::trace::Traces::default()).begin(&tonic::metadata::MetadataMap::new())
}

fn request(reference: &str) -> wire::SolveRequest {
    wire::SolveRequest {
        r#ref: reference.to_owned(),
        frontend_attrs: [
            ("target".to_owned(), "x".to_owned()),
            ("context".to_owned(), "https://me:hush@host/r.git#main".to_owned()),
        ]
        .into(),
        exporters: vec![wire::Exporter { r#type: "image".to_owned(), ..Default::default() }],
        ..wire::SolveRequest::default()
    }
}

/// A build that told something.
fn told() -> Arc<Build> {
    let running = Arc::new(Builds::default()).begin("any").expect("is new");
    let at = jiff::Timestamp::from_second(1).expect("a time");
    let vertex = |name: &str, cached, completed| Vertex {
        digest: Digest::of(name),
        inputs: Vec::new(),
        name: name.to_owned(),
        started: Some(at),
        completed,
        cached,
        error: None,
        group: None,
    };
    let build = running.build.clone();
    for (name, cached, completed) in
        [("a", true, Some(at)), ("b", false, None), ("b", false, Some(at)), ("c", false, None)]
    {
        build.emit(Event::Vertex(vertex(name, cached, completed)));
    }
    build.emit(Event::Log(Log {
        vertex: Digest::of("b"),
        stream: Stream::Stdout,
        timestamp: at,
        bytes: b"hi\n".to_vec(),
    }));
    build.emit(Event::Warning(Warning {
        vertex: Digest::of("b"),
        level: 1,
        short: "w".to_owned(),
        detail: Vec::new(),
        url: None,
        file: None,
        spans: vec![SourceSpan::lines(1, 1)],
    }));
    build
}

async fn recorded(history: &Arc<History>, reference: &str, solved: Result<SolveResponse, Fault>) {
    let recording = Recording::begin(history, &Arc::new(Metrics::default()), &request(reference));
    recording.complete(told(), trace(), &solved).await;
}

fn refs(history: &Arc<History>) -> Vec<String> {
    let ended = history.ended("", &[], None).expect("listed");
    ended.into_iter().filter_map(|event| Some(event.record?.r#ref)).collect()
}

/// What a listener hears, until nothing more is there.
fn heard(listening: &mut Listening) -> Vec<(i32, String)> {
    let events = std::iter::from_fn(|| listening.events.try_recv().ok());
    events.filter_map(|event| Some((event.r#type, event.record.as_ref()?.r#ref.clone()))).collect()
}

#[tokio::test]
async fn records_outlive_the_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let store_ = store(dir.path());
    let history = opened(&store_, Keep::default());
    let mut listening = history.listen("").expect("listens");
    let config = store_.content().put("{}").expect("stored");
    let manifest = format!(r#"{{"config":{{"digest":"{config}"}},"layers":[]}}"#);
    let manifest = store_.content().put(&manifest).expect("stored");
    use base64::Engine as _;
    let descriptor = format!(r#"{{"mediaType":"m","digest":"{manifest}","size":3,"annotations":{{"k":"v"}}}}"#);
    let descriptor = base64::engine::general_purpose::STANDARD.encode(descriptor);
    let solved = SolveResponse {
        descriptors: vec![None, Some(descriptor)],
        metadata: [("refs.platforms".to_owned(), b"{}".to_vec())].into(),
        exporter_response: [("image.name".to_owned(), "n".to_owned())].into(),
        ..SolveResponse::default()
    };
    recorded(&history, "one", Ok(solved)).await;
    recorded(&history, "two", Err(Fault::user("no such thing").exit_code(3))).await;
    let happened = heard(&mut listening);
    assert_eq!(happened, [(0, "one".into()), (1, "one".into()), (0, "two".into()), (1, "two".into())]);
    drop((listening, history, store_));

    let store = store(dir.path());
    let history = opened(&store, Keep::default());
    assert_eq!(refs(&history), ["one", "two"]);
    let one = history.get("one").expect("read").expect("is there");
    assert_eq!((one.num_total_steps, one.num_cached_steps, one.num_completed_steps, one.num_warnings), (3, 1, 2, 1));
    assert_eq!(one.frontend_attrs["context"], "https://xxxxx@host/r.git#main");
    let said = |key: &str| one.exporter_response.get(key).map(String::as_str);
    assert_eq!((said("refs.platforms"), said("image.name"), one.generation), (Some("{}"), Some("n"), 1));
    let result = one.result.clone().expect("a result");
    assert_eq!(result.results[&1].annotations["k"], "v");
    assert_eq!(result.result_deprecated.as_ref(), result.results.get(&1));
    let (sender, mut messages) = tokio::sync::mpsc::channel(100);
    let (content, log) = (history.content().clone(), one.logs.clone().expect("a log"));
    let replayed = tokio::task::spawn_blocking(move || replay(&content, &log, &sender)).await;
    replayed.expect("did not panic").expect("read");
    let message = messages.recv().await.expect("a message").expect("is whole");
    assert_eq!((message.vertexes.len(), message.logs[0].msg.as_slice()), (4, &b"hi\n"[..]));

    let two = history.get("two").expect("read").expect("is there");
    let error = two.error.expect("an error");
    assert_eq!((error.message.as_str(), error.details.len()), ("no such thing", 0));
    let full = two.external_error.expect("all of it").digest.parse().expect("a digest");
    let full = store.content().read(&full).expect("read").expect("is there");
    let details = proto::rpc::Status::decode(full.as_slice()).expect("decodes").details;
    let kinds: Vec<&str> = details.iter().filter_map(|detail| detail.type_url.rsplit('/').next()).collect();
    assert_eq!(kinds, ["stack.Stack+json", "gatewayapi.ExitMessage+json"]);

    // Nothing of them is cache as long as they are there; nothing is left when they and the cache are gone.
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    assert_eq!(store.prune(&all).expect("pruned"), []);
    assert!(store.content().has(&config) && store.content().has(&manifest));
    for reference in ["one", "two"] {
        history.delete(reference).expect("deleted");
    }
    assert!(matches!(history.delete("one"), Err(Error::Missing(_))));
    assert!(store.disk_usage().expect("counted").iter().all(|record| !record.in_use));
    assert_eq!(store.prune(&all).expect("pruned").len(), 2);
    assert_eq!(store.content().list().expect("listed"), []);
}

#[tokio::test]
async fn what_somebody_listens_to_is_deleted_later() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path());
    let history = opened(&store, Keep::default());
    for reference in ["a", "b"] {
        recorded(&history, reference, Ok(SolveResponse::default())).await;
    }
    let mut all = history.listen("").expect("listens");
    let listening = history.listen("a").expect("listens");
    history.delete("a").expect("noted");
    assert_eq!(refs(&history), ["b"]);
    assert!(history.listen("a").is_err());
    assert!(history.get("a").expect("read").is_some());
    drop(listening);
    let deleted = all.events.recv().await.expect("an event");
    assert_eq!((deleted.r#type, deleted.record.as_ref().map(|record| record.r#ref.as_str())), (2, Some("a")));
    assert!(history.get("a").expect("read").is_none());

    // A build under way, too: there never is a record.
    let recording = Recording::begin(&history, &Arc::new(Metrics::default()), &request("c"));
    assert_eq!(history.listen("").expect("listens").active.len(), 1);
    history.delete("c").expect("noted");
    recording.complete(told(), trace(), &Ok(SolveResponse::default())).await;
    assert_eq!(refs(&history), ["b"]);
    // One whose recording breaks off is not under way for ever.
    drop(Recording::begin(&history, &Arc::new(Metrics::default()), &request("d")));
    assert_eq!(history.listen("").expect("listens").active, []);
    let heard_of =
        |which: &str, events: &[i32]| events.iter().map(|event| (*event, which.to_owned())).collect::<Vec<_>>();
    assert_eq!(heard(&mut all), [heard_of("c", &[0, 1, 2]), heard_of("d", &[0, 2])].concat());
    // Who listens to just that one hears that it has ended.
    let recording = Recording::begin(&history, &Arc::new(Metrics::default()), &request("e"));
    let mut listening = history.listen("e").expect("listens");
    history.delete("e").expect("noted");
    recording.complete(told(), trace(), &Ok(SolveResponse::default())).await;
    assert_eq!(heard(&mut listening), heard_of("e", &[1]));
}

#[tokio::test]
async fn old_records_go_unless_they_are_few_or_pinned() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path());
    let history = opened(&store, Keep { age: Duration::from_secs(3600), entries: 1, ..Keep::default() });
    for reference in ["a", "b", "c", "d"] {
        recorded(&history, reference, Ok(SolveResponse::default())).await;
    }
    history.pin("a", true).expect("pinned");
    assert!(matches!(history.pin("x", true), Err(Error::Missing(_))));
    assert_eq!(history.get("a").expect("read").map(|record| (record.pinned, record.generation)), Some((true, 2)));
    history.delete_old().expect("deleted");
    assert_eq!(refs(&history), ["a", "b", "c", "d"], "they are young");
    for (age, reference) in [(7200, "a"), (7200, "b"), (7000, "c"), (5000, "d")] {
        let mut record = history.get(reference).expect("read").expect("is there");
        let completed = record.completed_at.as_mut().expect("it completed");
        completed.seconds -= age;
        history.records.put(reference, record.encode_to_vec()).expect("written");
    }
    history.delete_old().expect("deleted");
    assert_eq!(refs(&history), ["a", "d"], "one that is not pinned may stay");
}

#[tokio::test]
async fn the_oldest_go_when_records_take_up_too_much() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path());
    let keep = Keep { bytes: 8 << 10, ..Keep::default() };
    let mut history = opened(&store, keep);
    for round in 0..20 {
        if round == 10 {
            history = opened(&store, keep);
        }
        recorded(&history, &format!("r{round:02}"), Ok(SolveResponse::default())).await;
        if round == 0 {
            history.pin("r00", true).expect("pinned");
        }
    }
    let left = refs(&history);
    assert!((3..12).contains(&left.len()), "{left:?}");
    assert_eq!((&left[0][..], &left[left.len() - 1][..]), ("r00", "r19"), "the pinned one and the last");
    let records = history.finished().expect("read");
    let bytes: u64 = records.iter().map(bounds::size).sum();
    assert!(bytes <= 8 << 10, "{bytes}");
    assert_eq!(history.state().bytes, bytes);
    for reference in left {
        history.delete(&reference).expect("deleted");
    }
    assert_eq!((history.state().bytes, store.content().leases("")), (0, Vec::new()));
}

#[tokio::test]
async fn what_is_larger_than_a_record_may_be_is_never_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path());
    let history = opened(&store, Keep::default());
    let mut asked = request("a");
    asked.frontend_attrs.insert("large".to_owned(), "x".repeat(15 << 20));
    let recording = Recording::begin(&history, &Arc::new(Metrics::default()), &asked);
    assert!(history.listen("").expect("listens").active[0].encoded_len() < 10_000);
    recording.complete(told(), trace(), &Err(Fault::user("y".repeat(15 << 20)))).await;
    let bytes = history.records.get("a").expect("read").expect("is kept");
    assert!(bytes.len() < 100_000);
    // As an earlier release left them.
    let long = "r".repeat(1 << 20);
    history.records.put(&long, &bytes).expect("written");
    history.records.put("b", vec![0; 1 << 20]).expect("written");
    store.content().lease(&lease(&long), &[]).expect("leased");
    let history = opened(&store, Keep::default());
    assert_eq!((refs(&history), store.content().leases("").len()), (vec!["a".to_owned()], 1));
}

#[tokio::test]
async fn records_without_logs_and_leases_without_records_are_dropped() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path());
    let history = opened(&store, Keep::default());
    recorded(&history, "a", Ok(SolveResponse::default())).await;
    let log = history.get("a").expect("read").and_then(|record| record.logs).expect("a log");
    let blob = store.content().put("left").expect("stored");
    store.content().lease("history/gone", &[blob]).expect("leased");
    std::fs::remove_file(store.content().path(&log.digest.parse().expect("a digest"))).expect("removed");
    history.records.put("b", "no record").expect("written");
    let history = opened(&store, Keep::default());
    assert_eq!((refs(&history), store.content().leases("")), (Vec::<String>::new(), Vec::new()));
}
