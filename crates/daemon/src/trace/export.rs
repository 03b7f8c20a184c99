//! Spans on their way to a collector: OTLP over gRPC without TLS, where OpenTelemetry's variables name one.
//!
//! Such variables are often set for all programs of a machine. Those that cannot be followed are warned of, and the
//! daemon goes on without a collector.

use std::time::Duration;

use proto::otlp::{EXPORT, ExportTraceServiceRequest, ExportTraceServiceResponse, ResourceSpans};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// Batches on their way. A collector that is slower loses some: no build waits for it.
const QUEUE: usize = 16;
/// How long a collector may take for a batch.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Ends of variables that change nothing.
const IGNORED: [&str; 4] = ["HEADERS", "TIMEOUT", "COMPRESSION", "CERTIFICATE"];

/// Where spans are handed over.
pub(crate) struct Collector {
    batches: mpsc::Sender<Vec<ResourceSpans>>,
}

impl Collector {
    /// The collector that the variables name, if they do. `variable` looks one up.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Collector> {
        let channel = collector(&variable)?;
        for name in IGNORED {
            if let Some((name, _)) = either(&variable, name) {
                tracing::warn!("{name} is not supported yet and ignored");
            }
        }
        let (batches, queue) = mpsc::channel(QUEUE);
        tokio::spawn(hand_over(channel, queue));
        Some(Collector { batches })
    }

    /// Puts spans on their way.
    pub(crate) fn send(&self, spans: Vec<ResourceSpans>) {
        if self.batches.try_send(spans).is_err() {
            tracing::warn!("the trace collector is too slow: spans are lost");
        }
    }
}

/// The way to the collector that the variables name, if they do.
pub(super) fn collector(variable: &impl Fn(&str) -> Option<String>) -> Option<Channel> {
    let found = endpoint(variable).inspect_err(|why| tracing::warn!("traces go to no collector: {why}"));
    Some(found.ok().flatten()?.timeout(TIMEOUT).connect_timeout(TIMEOUT).connect_lazy())
}

/// The variable for traces, or else that for all signals: its name and value.
fn either(variable: &impl Fn(&str) -> Option<String>, name: &str) -> Option<(String, String)> {
    let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")];
    names.into_iter().find_map(|name| variable(&name).map(|value| (name, value)))
}

/// Where the collector is, or why what is asked for cannot be had.
fn endpoint(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Endpoint>, String> {
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let given = either(variable, "ENDPOINT");
    match variable("OTEL_TRACES_EXPORTER").as_deref() {
        None if given.is_none() => return Ok(None),
        Some("none") => return Ok(None),
        None | Some("otlp") => {}
        Some(other) => return Err(format!("OTEL_TRACES_EXPORTER={other} is neither otlp nor none")),
    }
    if let Some((name, value)) = either(variable, "PROTOCOL").filter(|(_, value)| value != "grpc") {
        return Err(format!("{name}={value} is not supported yet, grpc is"));
    }
    let (name, address) =
        given.unwrap_or_else(|| ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), "http://localhost:4317".to_owned()));
    let address = if address.contains("://") { address } else { format!("http://{address}") };
    let shown = base::redact_url(&address);
    if !address.starts_with("http://") {
        return Err(format!("{name}={shown}: only http:// is supported yet"));
    }
    Endpoint::from_shared(address).map(Some).map_err(|_| format!("{name}={shown} is no address"))
}

async fn hand_over(channel: Channel, mut batches: mpsc::Receiver<Vec<ResourceSpans>>) {
    while let Some(resource_spans) = batches.recv().await {
        if let Err(status) = export(channel.clone(), ExportTraceServiceRequest { resource_spans }).await {
            tracing::warn!(%status, "the trace collector does not take spans");
        }
    }
}

pub(super) async fn export(channel: Channel, request: ExportTraceServiceRequest) -> Result<(), tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<ExportTraceServiceRequest, ExportTraceServiceResponse>::default();
    let path = http::uri::PathAndQuery::from_static(EXPORT);
    client.unary(tonic::Request::new(request), path, codec).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_name_the_collector() {
        let of = |variables: &[(&str, &str)]| {
            let find =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            super::endpoint(&find).map(|found| found.is_some())
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        assert_eq!(of(&[]), Ok(false));
        assert_eq!(of(&[endpoint]), Ok(true));
        assert_eq!(of(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Ok(false));
        assert_eq!(of(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), Ok(false));
        assert_eq!(of(&[("OTEL_TRACES_EXPORTER", "otlp")]), Ok(true));
        for (variables, wanted) in [
            (
                &[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")][..],
                "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf is not supported",
            ),
            (&[("OTEL_TRACES_EXPORTER", "zipkin")], "OTEL_TRACES_EXPORTER=zipkin"),
            (
                &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://u:p4ss@c")],
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://xxxxx@c: only http://",
            ),
        ] {
            let why = of(variables).expect_err(wanted);
            assert!(why.contains(wanted), "{why}");
            let find =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            assert!(Collector::of(find).is_none(), "the daemon goes on");
        }
    }
}
