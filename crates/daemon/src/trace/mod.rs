//! Traces of builds: a span for the call, one for each vertex, and what clients hand over of their own.
//!
//! Spans are made of what was told of a build, once it has ended. A client's `traceparent` makes them part of its trace.
//! They are kept with the build's record, and go to a collector where one is configured ([`export`]).

mod alone;
pub(crate) mod caller;
mod connect;
pub(crate) mod export;
pub(crate) mod given;
mod spans;
mod stub;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::Digest;
use proto::otlp::{KeyValue, ResourceSpans};
use tonic::metadata::MetadataMap;

use crate::builds::Build;
pub use alone::TracedBuild;
use export::Collector;
use given::Given;
use spans::{Spans, Whole};

/// What the blob of a trace is.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.buildkit.otlp.json.v0";
/// Spans that clients may hand over for one trace; what is more is passed on to the collector and not kept.
const MOST_SPANS: usize = 10_000;
/// What spans of clients may take up in all.
const MOST_BYTES: usize = 32 << 20;
/// How long the end waits for a collector.
const PATIENCE: Duration = Duration::from_secs(3);
/// Events that are read at once.
const SOME: usize = 4096;

/// Traces under way.
#[derive(Default)]
pub(crate) struct Traces {
    /// What clients handed over for builds that run, by trace.
    running: Mutex<HashMap<[u8; 16], Handed>>,
    collector: Option<Collector>,
    given: Given,
}

/// What clients handed over for a trace.
#[derive(Default)]
struct Handed {
    /// How many builds belong to it.
    builds: usize,
    count: usize,
    /// What they take up.
    bytes: usize,
    spans: Vec<ResourceSpans>,
}

/// The trace of one build.
pub(crate) struct Trace {
    traces: Arc<Traces>,
    id: [u8; 16],
    /// The caller's span, if there is one.
    parent: Option<[u8; 8]>,
    span: [u8; 8],
    began: jiff::Timestamp,
    /// It goes to the collector.
    sampled: bool,
}

impl Traces {
    /// Traces that go to a collector, too.
    pub(crate) fn of(collector: Option<Collector>, given: Given) -> Traces {
        Traces { collector, given, ..Traces::default() }
    }

    /// Begins the trace of a build, or goes on with the client's.
    pub(crate) fn begin(self: &Arc<Self>, metadata: &MetadataMap) -> Trace {
        let given = metadata.get("traceparent").and_then(|value| traceparent(value.to_str().ok()?));
        let id = given.as_ref().map_or_else(random, |given| given.trace);
        let sampled = self.given.samples(&id, given.as_ref().map(|given| given.sampled));
        let parent = given.map(|given| given.span);
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.entry(id).or_default().builds += 1;
        drop(running);
        Trace { traces: self.clone(), id, parent, span: random(), began: jiff::Timestamp::now(), sampled }
    }

    /// Takes a client's spans: those of builds that run are kept with them, all go to the collector.
    pub(crate) fn take(&self, handed: Vec<ResourceSpans>) {
        {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let mut held: usize = running.values().map(|kept| kept.bytes).sum();
            for mut resource in handed.clone() {
                let spans = || resource.scope_spans.iter().flat_map(|scope| &scope.spans);
                let Some(id) = spans().find_map(|span| <[u8; 16]>::try_from(&span.trace_id[..]).ok()) else { continue };
                let Some(kept) = running.get_mut(&id) else { continue };
                let count = spans().count();
                let bytes = proto::Message::encoded_len(&resource);
                if kept.count + count <= MOST_SPANS && held + bytes <= MOST_BYTES {
                    kept.count += count;
                    kept.bytes += bytes;
                    held += bytes;
                    resource.scope_spans.iter_mut().for_each(|scope| scope.spans.retain(|span| span.trace_id == id));
                    kept.spans.push(resource);
                }
            }
        }
        if let Some(collector) = &self.collector {
            collector.send(handed);
        }
    }

    /// Waits a moment for what is on its way to the collector.
    pub(crate) async fn finish(&self) {
        if let Some(collector) = &self.collector {
            // What fails has been logged.
            let _ = collector.finish(PATIENCE).await;
        }
    }
}

impl Trace {
    /// The trace of a build that has ended, as its record keeps it; it is on its way to the collector, too.
    pub(crate) fn end(self, build: &Build, error: Option<&str>) -> Vec<u8> {
        let mut spans = Spans::new(self.id, self.span);
        let mut from = 0;
        loop {
            let told = build.told(from, SOME);
            if told.is_empty() {
                break;
            }
            from += told.len();
            told.iter().for_each(|event| spans.take(event));
        }
        let own = spans.end(Whole {
            resource: self.traces.given.resource("buildkitd"),
            name: "moby.buildkit.v1.Control/Solve",
            kind: 2,
            parent: self.parent,
            began: self.began,
            attributes: vec![
                KeyValue::text("rpc.system", "grpc"),
                KeyValue::text("rpc.service", "moby.buildkit.v1.Control"),
                KeyValue::text("rpc.method", "Solve"),
            ],
            error,
        });
        if let Some(collector) = self.traces.collector.as_ref().filter(|_| self.sampled) {
            collector.send(vec![own.clone()]);
        }
        let running = self.traces.running.lock().unwrap_or_else(PoisonError::into_inner);
        let handed = running.get(&self.id).map(|handed| handed.spans.clone()).unwrap_or_default();
        drop(running);
        stub::json(&[vec![own], handed].concat())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let mut running = self.traces.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handed) = running.get_mut(&self.id) {
            handed.builds -= 1;
            if handed.builds == 0 {
                running.remove(&self.id);
            }
        }
    }
}

/// Ids need only differ from others.
fn random<const N: usize>() -> [u8; N] {
    let digest = Digest::of(session::random_id());
    let mut id = [0; N];
    id.copy_from_slice(&digest.as_bytes()[..N]);
    id
}

/// Where a trace comes from.
#[derive(Debug, PartialEq)]
struct Parent {
    trace: [u8; 16],
    span: [u8; 8],
    /// Whether it is handed over there.
    sampled: bool,
}

/// W3C's Trace Context: version, trace, span, flags.
fn traceparent(text: &str) -> Option<Parent> {
    fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
        if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; N];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
        }
        Some(bytes).filter(|bytes| bytes.iter().any(|byte| *byte != 0))
    }
    let mut parts = text.split('-');
    let version = parts.next()?;
    let (trace, span) = (bytes(parts.next()?)?, bytes(parts.next()?)?);
    let flags = parts.next().and_then(|flags| u8::from_str_radix(flags, 16).ok()).unwrap_or(1);
    let sampled = flags & 1 != 0;
    (version.len() == 2 && version != "ff").then_some(Parent { trace, span, sampled })
}

#[cfg(test)]
mod tests {
    use proto::otlp::{ScopeSpans, Span};

    use super::*;

    #[test]
    fn what_clients_hand_over_is_kept_with_their_build() {
        let traces = Arc::new(Traces::default());
        let mut metadata = MetadataMap::new();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        metadata.insert("traceparent", parent.parse().expect("a value"));
        let trace = traces.begin(&metadata);
        let handed = |trace_id: &[u8], name: &str| {
            let span = Span { trace_id: trace_id.to_vec(), name: name.to_owned(), ..Span::default() };
            let scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
            ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() }
        };
        let id = trace.id;
        traces.take(vec![handed(&id, "of this client"), handed(&[7; 16], "of another")]);
        traces.take((0..MOST_SPANS).map(|_| handed(&id, "more")).collect());
        let running = Arc::new(crate::builds::Builds::default()).begin("b").expect("a build");
        let text = String::from_utf8(trace.end(&running.build, Some("oops"))).expect("JSON");
        assert!(text.contains("of this client") && !text.contains("of another"), "{text}");
        assert_eq!(text.matches("\"Name\": \"more\"").count(), MOST_SPANS - 1);
        assert!(text.contains("\"Description\": \"oops\""));
        assert!(traces.running.lock().unwrap_or_else(PoisonError::into_inner).is_empty(), "it has ended");
    }

    #[test]
    fn callers_spans_are_read() {
        let (id, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let read = traceparent(&format!("00-{id}-{span}-01")).expect("a trace");
        assert_eq!((read.trace[0], read.span[7], read.sampled), (0x0a, 0x31, true));
        assert!(!traceparent(&format!("00-{id}-{span}-00")).expect("a trace").sampled);
        let zeros = "0".repeat(32);
        for bad in [
            String::new(),
            format!("00-{zeros}-{span}-01"),
            format!("ff-{id}-{span}-01"),
            format!("00-{id}"),
            format!("00-{id}-+7ad6b716920333é-01"),
            format!("00-{id}-+7ad6b7169203331-01"),
        ] {
            assert_eq!(traceparent(&bad), None, "{bad}");
        }
    }
}
