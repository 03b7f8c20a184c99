//! Traces of builds, and `buildctl debug`.

use std::fs;

use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use proto::otlp;
use serde_json::{Deserializer, Value};
use session::local::LocalSession;

use crate::daemon::Served;
use crate::guest::{Guest, Most};
use crate::harness::is_root;
use crate::who::Who;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

#[test]
fn a_record_has_the_trace_of_its_build() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    let kitchen = &served.kitchen;
    kitchen.dockerfile("FROM busybox\nRUN true\nRUN exit 3\n");
    let guest = Guest::new(&kitchen.world.path("b.sock"));
    let context = kitchen.world.path("context");
    let session = LocalSession::new("traced").with_dir("context", &context).with_dir("dockerfile", &context);
    let joined = guest.joins(session, Most { read: usize::MAX, written: usize::MAX });
    let mut request = tonic::Request::new(wire::SolveRequest {
        r#ref: "traced".to_owned(),
        session: joined.id.clone(),
        frontend: "dockerfile.v0".to_owned(),
        ..wire::SolveRequest::default()
    });
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().unwrap());
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    let span = otlp::Span {
        trace_id: hex(TRACE),
        span_id: hex(CALLER),
        name: "of the client".to_owned(),
        attributes: vec![otlp::KeyValue::text("key", "value")],
        ..otlp::Span::default()
    };
    let scope = otlp::ScopeSpans { spans: vec![span], ..otlp::ScopeSpans::default() };
    let handed = otlp::ResourceSpans { scope_spans: vec![scope], ..otlp::ResourceSpans::default() };
    let handed = otlp::ExportTraceServiceRequest { resource_spans: vec![handed] }.encode_to_vec();
    let mut control = guest.control();
    let framed = [&[0][..], &u32::try_from(handed.len()).unwrap().to_be_bytes(), &handed].concat();
    guest.waits(async { control.solve(request).await }).expect_err("a step fails");
    // Of a trace that no build belongs to any more nothing is kept; it is taken all the same.
    assert_eq!(guest.calls(otlp::EXPORT, framed), ("0".to_owned(), String::new()));
    let listed = || served.buildctl("debug histories").succeeds().text();
    crate::harness::eventually(|| listed().contains("COMPLETE"));

    let text = served.buildctl("debug logs --trace traced").succeeds().text();
    let spans: Vec<Value> = Deserializer::from_str(&text).into_iter().map(Result::unwrap).collect();
    assert!(spans.iter().all(|span| span["SpanContext"]["TraceID"] == TRACE), "{text}");
    let find = |name: &str| spans.iter().find(|span| span["Name"].as_str().unwrap().ends_with(name));
    let solve = find("Control/Solve").unwrap();
    assert_eq!((&solve["Parent"]["SpanID"], &solve["Status"]["Code"]), (&CALLER.into(), &"Error".into()), "{text}");
    let step = find("RUN exit 3").unwrap();
    assert_eq!(
        (&step["Parent"]["SpanID"], &step["Status"]["Code"]),
        (&solve["SpanContext"]["SpanID"], &"Error".into())
    );
    assert_eq!(find("RUN true").unwrap()["Status"]["Code"], "Unset", "{text}");

    // The record can be kept and removed.
    served.buildctl("debug ctl --pin traced").succeeds();
    served.buildctl("prune-histories").succeeds();
    assert!(listed().contains("traced"));
    served.buildctl("debug ctl traced").fails().says("must specify one of --pin, --unpin, --delete");
    served.buildctl("debug ctl --delete traced").succeeds();
    assert!(!listed().contains("traced"));
    let workers = served.buildctl("debug workers --format json").succeeds().text();
    let worker: Value = serde_json::from_str(&workers).unwrap();
    let id = worker[0]["id"].as_str().unwrap();
    assert_eq!(served.buildctl(&format!("debug workers --filter id=={id} --format json")).succeeds().text(), workers);
    assert_eq!(served.buildctl("debug workers --filter id==other --format json").succeeds().text(), "[]\n");

    kitchen.dockerfile("FROM busybox\nRUN true\n");
    served.build("--debug-json-cache-metrics counts").succeeds();
    let counts = fs::read_to_string(kitchen.world.path("counts")).unwrap();
    let counts: Value = serde_json::from_str(counts.lines().last().unwrap()).unwrap();
    assert_eq!((&counts["user_total"], &counts["from"], &counts["miss"]), (&2.into(), &1.into(), &0.into()));
    drop(joined);
    drop(guest);
    // Files are read without a daemon; its metadata only when it has ended.
    let dir = kitchen.world.path("daemon").display().to_string();
    served.buildctl(&format!("debug dump-metadata --root {dir}")).fails().says("cannot read the metadata");
    let kitchen = served.ends();
    let program = kitchen.world.path("buildctl");
    let dump = kitchen.who.run(&kitchen.world, program.to_str().unwrap());
    let dump = dump.args(["debug", "dump-metadata", "--root", &dir]).succeeds().text();
    for bucket in ["snapshot", "blob"] {
        let rows = dump.split_once(&format!("bucket \"{bucket}\":\n")).map(|(_, rows)| rows);
        assert!(rows.is_some_and(|rows| rows.starts_with("  ")), "{bucket}: {dump}");
    }
}
