//! Spans of what is told of a build: one for the whole, one for each vertex that began and ended.

use std::collections::BTreeMap;

use base::Digest;
use base::progress::Event;
use proto::otlp::{KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span, SpanStatus};

pub(super) const ERROR: i32 = 2;

/// Spans under way.
pub(super) struct Spans {
    trace: [u8; 16],
    /// The span of the whole.
    whole: [u8; 8],
    begun: BTreeMap<Digest, Span>,
    done: Vec<Span>,
}

impl Spans {
    pub(super) fn new(trace: [u8; 16], whole: [u8; 8]) -> Spans {
        Spans { trace, whole, begun: BTreeMap::new(), done: Vec::new() }
    }

    /// Takes what is told.
    pub(super) fn take(&mut self, event: &Event) {
        let Event::Vertex(vertex) = event else { return };
        let Some(started) = vertex.started else { return };
        let (trace, whole) = (self.trace, self.whole);
        let span = self.begun.entry(vertex.digest).or_insert_with(|| Span {
            parent_span_id: whole.to_vec(),
            start_time_unix_nano: nanos(started),
            attributes: vec![KeyValue::text("vertex", vertex.digest.to_string())],
            ..span(trace, super::random())
        });
        let Some(completed) = vertex.completed else { return };
        span.name = if vertex.cached { format!("load cache: {}", vertex.name) } else { vertex.name.clone() };
        span.end_time_unix_nano = nanos(completed);
        span.status = vertex.error.as_ref().map(|error| failed(error));
        self.done.extend(self.begun.remove(&vertex.digest));
    }

    /// All of them, behind that of the whole.
    pub(super) fn end(self, whole: Whole<'_>) -> ResourceSpans {
        let mut spans = vec![Span {
            name: whole.name.to_owned(),
            kind: whole.kind,
            parent_span_id: whole.parent.map(Vec::from).unwrap_or_default(),
            start_time_unix_nano: nanos(whole.began),
            end_time_unix_nano: nanos(jiff::Timestamp::now()),
            attributes: whole.attributes,
            status: whole.error.map(failed),
            ..span(self.trace, self.whole)
        }];
        spans.extend(self.done);
        ResourceSpans {
            resource: Some(whole.resource),
            scope_spans: vec![ScopeSpans {
                scope: Some(Scope { name: "hullworks".to_owned(), version: String::new() }),
                spans,
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }
    }
}

/// What is said of a build as a whole.
pub(super) struct Whole<'a> {
    pub(super) resource: Resource,
    pub(super) name: &'a str,
    pub(super) kind: i32,
    pub(super) parent: Option<[u8; 8]>,
    pub(super) began: jiff::Timestamp,
    pub(super) attributes: Vec<KeyValue>,
    pub(super) error: Option<&'a str>,
}

fn span(trace: [u8; 16], id: [u8; 8]) -> Span {
    Span { trace_id: trace.to_vec(), span_id: id.to_vec(), flags: 1, kind: 1, ..Span::default() }
}

fn failed(error: &str) -> SpanStatus {
    SpanStatus { message: error.to_owned(), code: ERROR }
}

pub(super) fn nanos(at: jiff::Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or(0)
}
