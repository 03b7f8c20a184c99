//! A client's own span: what the daemon tells of its build belongs to it.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::otlp::{ExportTraceServiceRequest, KeyValue, Resource, ResourceSpans, ScopeSpans, Span, SpanStatus};
use tonic::transport::Channel;

use super::export::{Collector, export};
use super::spans::{ERROR, nanos};
use super::{random, traceparent};

/// How long whoever takes the span may take for it: nobody waits for a collector that is not there.
const PATIENCE: Duration = Duration::from_secs(2);

/// A span that has begun.
pub struct Caller {
    id: [u8; 16],
    /// Whoever called us.
    parent: Option<[u8; 8]>,
    span: [u8; 8],
    began: jiff::Timestamp,
}

impl Caller {
    /// Begins a trace, or goes on with the one that `TRACEPARENT` names.
    pub fn begin(parent: Option<&str>) -> Caller {
        let (id, parent) = match parent.and_then(traceparent) {
            Some((id, parent)) => (id, Some(parent)),
            None => (random(), None),
        };
        Caller { id, parent, span: random(), began: jiff::Timestamp::now() }
    }

    /// The value of the header `traceparent`.
    pub fn header(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("00-{}-{}-01", hex(&self.id), hex(&self.span))
    }

    /// Ends it, and hands it to the daemon, where there is one, and to the collector that OpenTelemetry's variables name,
    /// if they do. Why that collector did not get it, where it did not.
    pub async fn end(
        self,
        name: &str,
        error: Option<String>,
        daemon: Option<Channel>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(), String> {
        let span = Span {
            trace_id: self.id.to_vec(),
            span_id: self.span.to_vec(),
            parent_span_id: self.parent.map(Vec::from).unwrap_or_default(),
            flags: 1,
            name: name.to_owned(),
            kind: 1,
            start_time_unix_nano: nanos(self.began),
            end_time_unix_nano: nanos(jiff::Timestamp::now()),
            status: error.map(|message| SpanStatus { message, code: ERROR }),
            ..Span::default()
        };
        let spans = ResourceSpans {
            resource: Some(Resource { attributes: vec![KeyValue::text("service.name", "buildctl")] }),
            scope_spans: vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        };
        let to_daemon = async {
            let Some(daemon) = daemon else { return };
            let request = ExportTraceServiceRequest { resource_spans: vec![spans.clone()] };
            match tokio::time::timeout(PATIENCE, export(&daemon, &BTreeMap::new(), request)).await {
                Ok(Ok(())) => {}
                Ok(Err(status)) => tracing::debug!(%status, "the daemon does not take the trace"),
                Err(_) => tracing::debug!("the daemon does not take the trace in time"),
            }
        };
        let to_collector = async {
            let collector = Collector::named(&variable).map_err(|why| format!("traces go to no collector: {why}"))?;
            let Some(collector) = collector else { return Ok(()) };
            collector.send(vec![spans.clone()]);
            let handed = collector.finish(PATIENCE).await;
            handed.map_err(|why| format!("the trace collector does not take spans: {why}"))
        };
        tokio::join!(to_daemon, to_collector).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_goes_on_with_a_trace_or_begins_one() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let caller = Caller::begin(Some(parent));
        let (id, span) = traceparent(&caller.header()).expect("a header");
        assert_eq!((id, Some(span)), (traceparent(parent).expect("a header").0, Some(caller.span)));
        assert_eq!(caller.parent, traceparent(parent).map(|(_, span)| span));
        assert_ne!(caller.span, caller.parent.expect("a parent"));
        let (one, other) = (Caller::begin(None), Caller::begin(Some("nonsense")));
        assert!(one.parent.is_none() && other.parent.is_none() && one.id != other.id);
        assert!(traceparent(&one.header()).is_some());
    }
}
