//! A client's own span: what the daemon tells of its build belongs to it.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::otlp::{ExportTraceServiceRequest, ResourceSpans, ScopeSpans, Span, SpanStatus};
use tonic::transport::Channel;

use super::export::{Collector, export};
use super::given::Given;
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
    given: Given,
    /// It is handed over, and so is what the daemon makes of it.
    sampled: bool,
}

impl Caller {
    /// Begins a trace, or goes on with the one that `TRACEPARENT` names.
    pub fn begin(variable: impl Fn(&str) -> Option<String>) -> Caller {
        let parent = variable("TRACEPARENT").and_then(|text| traceparent(&text));
        let id = parent.as_ref().map_or_else(random, |parent| parent.trace);
        let given = Given::of(&variable);
        let sampled = given.samples(&id, parent.as_ref().map(|parent| parent.sampled));
        let parent = parent.map(|parent| parent.span);
        Caller { id, parent, span: random(), began: jiff::Timestamp::now(), given, sampled }
    }

    /// The value of the header `traceparent`.
    pub fn header(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("00-{}-{}-{:02x}", hex(&self.id), hex(&self.span), u8::from(self.sampled))
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
        if !self.sampled {
            return Ok(());
        }
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
            resource: Some(self.given.resource("buildctl")),
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
        let begin = |parent: &str| Caller::begin(|name| (name == "TRACEPARENT").then(|| parent.to_owned()));
        let caller = begin(parent);
        let header = traceparent(&caller.header()).expect("a header");
        let parent = traceparent(parent).expect("a header");
        assert_eq!((header.trace, header.span, header.sampled), (parent.trace, caller.span, true));
        assert_eq!(caller.parent, Some(parent.span));
        assert_ne!(caller.span, parent.span);
        assert!(begin("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").header().ends_with("-00"));
        let (one, other) = (Caller::begin(|_| None), begin("nonsense"));
        assert!(one.parent.is_none() && other.parent.is_none() && one.id != other.id);
        assert!(traceparent(&one.header()).is_some());
    }
}
