//! Spans on their way to a collector: OTLP over gRPC or HTTP, where OpenTelemetry's variables name one.

use std::time::Duration;

use base::Fault;
use proto::otlp::{EXPORT, ExportTraceServiceRequest, ExportTraceServiceResponse, ResourceSpans};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// Batches on their way. A collector that is slower loses some: no build waits for it.
const QUEUE: usize = 64;
/// How long a collector may take for a batch.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where spans are handed over.
pub(crate) struct Collector {
    batches: mpsc::Sender<Vec<ResourceSpans>>,
}

impl Collector {
    /// The collector that the variables name, if they do. `variable` looks one up.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Collector>, Fault> {
        let either = |name: &str| {
            variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
                .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        match variable("OTEL_TRACES_EXPORTER").as_deref() {
            None if either("ENDPOINT").is_none() => return Ok(None),
            Some("none") => return Ok(None),
            None | Some("otlp") => {}
            Some(other) => {
                return Err(Fault::user(format!("unsupported opentelemetry exporter {other}"))
                    .hint("OTEL_TRACES_EXPORTER can be otlp or none"));
            }
        }
        match either("PROTOCOL").as_deref() {
            None | Some("grpc") => {}
            Some(other) => {
                return Err(Fault::user(format!("unsupported otlp protocol {other}"))
                    .hint("OTEL_EXPORTER_OTLP_PROTOCOL can be grpc; http/protobuf is not supported yet"));
            }
        }
        let address = either("ENDPOINT").unwrap_or_else(|| "http://localhost:4317".to_owned());
        let address = if address.contains("://") { address } else { format!("http://{address}") };
        if !address.starts_with("http://") {
            return Err(Fault::user(format!("OTLP collector `{address}`: only http:// is supported yet")));
        }
        let endpoint = Endpoint::from_shared(address.clone())
            .map_err(|_| Fault::user(format!("bad address of an OTLP collector: `{address}`")))?;
        let channel = endpoint.timeout(TIMEOUT).connect_timeout(TIMEOUT).connect_lazy();
        let (batches, queue) = mpsc::channel(QUEUE);
        tokio::spawn(hand_over(channel, queue));
        Ok(Some(Collector { batches }))
    }

    /// Puts spans on their way.
    pub(crate) fn send(&self, spans: Vec<ResourceSpans>) {
        if self.batches.try_send(spans).is_err() {
            tracing::warn!("the trace collector is too slow: spans are lost");
        }
    }
}

async fn hand_over(channel: Channel, mut batches: mpsc::Receiver<Vec<ResourceSpans>>) {
    while let Some(resource_spans) = batches.recv().await {
        if let Err(status) = export(channel.clone(), ExportTraceServiceRequest { resource_spans }).await {
            tracing::warn!(%status, "the trace collector does not take spans");
        }
    }
}

async fn export(channel: Channel, request: ExportTraceServiceRequest) -> Result<(), tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<ExportTraceServiceRequest, ExportTraceServiceResponse>::default();
    let path = http::uri::PathAndQuery::from_static(EXPORT);
    client.unary(tonic::Request::new(request), path, codec).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn variables_name_the_collector() {
        let of = |variables: &[(&str, &str)]| {
            let find =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            Collector::of(find).map(|found| found.is_some()).map_err(|fault| fault.to_string())
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        assert_eq!(of(&[]), Ok(false));
        assert_eq!(of(&[endpoint]), Ok(true));
        assert_eq!(of(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Ok(false));
        assert_eq!(of(&[("OTEL_TRACES_EXPORTER", "otlp")]), Ok(true));
        for (refused, wanted) in [
            (
                &[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")][..],
                "unsupported otlp protocol http/protobuf",
            ),
            (&[("OTEL_TRACES_EXPORTER", "zipkin")], "unsupported opentelemetry exporter zipkin"),
            (&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://c")], "only http://"),
        ] {
            let error = of(refused).expect_err(wanted);
            assert!(error.contains(wanted), "{error}");
        }
    }
}
