//! Spans on their way to a collector: OTLP over gRPC or HTTP, where OpenTelemetry's variables name one.
//!
//! Such variables are often set for all programs of a machine. Those that cannot be followed are warned of, and the
//! daemon goes on without a collector. No build waits for one that is slow.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http_client::{KeyPair, Pools, TlsIdentity, Url};
use proto::Message as _;
use proto::otlp::{EXPORT, ExportTraceServiceRequest, ExportTraceServiceResponse, ResourceSpans};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::connect;

/// Batches on their way. A collector that is slower loses some: no build waits for it.
const QUEUE: usize = 16;
/// How long a collector may take for a batch, unless a variable says so.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Where spans are posted below an address for all signals.
const PATH: &str = "v1/traces";

/// Where spans are handed over.
pub(crate) struct Collector {
    batches: Mutex<Option<mpsc::Sender<Vec<ResourceSpans>>>>,
    handing: Mutex<Option<JoinHandle<Result<(), String>>>>,
}

impl Collector {
    /// The collector that the variables name, if they do. `variable` looks one up. What is wrong with them is logged.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Collector> {
        let named = Collector::named(&variable);
        named.inspect_err(|why| tracing::warn!("traces go to no collector: {why}")).ok().flatten()
    }

    /// The same, with what is wrong as the answer.
    pub(crate) fn named(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Collector>, String> {
        let Some(way) = Way::of(variable)? else { return Ok(None) };
        if let Some((name, value)) = either(variable, "COMPRESSION").filter(|(_, value)| value != "none") {
            tracing::warn!("{name}={value} is not supported yet and ignored: spans are sent as they are");
        }
        let (batches, queue) = mpsc::channel(QUEUE);
        let handing = Mutex::new(Some(tokio::spawn(hand_over(way, queue))));
        Ok(Some(Collector { batches: Mutex::new(Some(batches)), handing }))
    }

    /// Puts spans on their way.
    pub(crate) fn send(&self, spans: Vec<ResourceSpans>) {
        let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        if batches.as_ref().is_some_and(|batches| batches.try_send(spans).is_err()) {
            tracing::warn!("the trace collector is too slow: spans are lost");
        }
    }

    /// Waits until all that was sent has arrived, for so long at most. Why something did not, where that is so.
    pub(crate) async fn finish(&self, most: Duration) -> Result<(), String> {
        drop(self.batches.lock().unwrap_or_else(PoisonError::into_inner).take());
        let handing = self.handing.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(handing) = handing else { return Ok(()) };
        let stop = handing.abort_handle();
        match tokio::time::timeout(most, handing).await {
            Ok(handed) => handed.unwrap_or_else(|error| Err(error.to_string())),
            Err(_) => {
                stop.abort();
                Err(format!("it did not answer within {} s", most.as_secs()))
            }
        }
    }
}

/// The variable for traces, or else that for all signals: its name and value.
fn either(variable: &impl Fn(&str) -> Option<String>, name: &str) -> Option<(String, String)> {
    let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")];
    names.into_iter().find_map(|name| variable(&name).map(|value| (name, value)))
}

/// How spans get to the collector.
struct Way {
    address: Url,
    timeout: Duration,
    headers: BTreeMap<String, String>,
    sender: Sender,
}

enum Sender {
    Grpc(Channel),
    Http(http_client::Client),
}

impl Way {
    /// Where the collector is, or why what is asked for cannot be had.
    fn of(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Way>, String> {
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
        let is_grpc = match either(variable, "PROTOCOL") {
            None => true,
            Some((_, protocol)) if protocol == "grpc" => true,
            Some((_, protocol)) if protocol == "http/protobuf" => false,
            Some((name, value)) => {
                return Err(format!("{name}={value} is not supported yet, grpc and http/protobuf are"));
            }
        };
        let port = if is_grpc { 4317 } else { 4318 };
        let (name, text) =
            given.unwrap_or_else(|| ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("http://localhost:{port}")));
        let text = if text.contains("://") { text } else { format!("http://{text}") };
        let shown = format!("{name}={}", base::redact_url(&text));
        let mut address = text.parse::<Url>().map_err(|_| format!("{shown} is no address"))?;
        if !matches!(address.scheme(), "http" | "https") {
            return Err(format!("{shown}: only http:// and https:// are known"));
        }
        if !is_grpc && !name.contains("TRACES") {
            let path = format!("{}/{PATH}", address.path().trim_end_matches('/'));
            address.set_path(&path);
        }
        let timeout = match either(variable, "TIMEOUT") {
            None => TIMEOUT,
            Some((name, text)) => {
                let millis = text.trim().parse().map_err(|_| format!("{name}={text} is no number of milliseconds"))?;
                Duration::from_millis(millis)
            }
        };
        let headers = either(variable, "HEADERS").map(|(name, text)| headers(&name, &text)).transpose()?;
        let identity = identity(variable)?;
        let unusable = |error: http_client::Error| format!("{shown}: {error}");
        let sender = match is_grpc {
            true => {
                let endpoint =
                    Endpoint::from_shared(address.to_string()).map_err(|_| format!("{shown} is no address"))?;
                Sender::Grpc(connect::lazily(endpoint.connect_timeout(timeout), &address, &identity).map_err(unusable)?)
            }
            false => Sender::Http(Pools::new(http_client::Settings::default()).client(&identity).map_err(unusable)?),
        };
        Ok(Some(Way { address, timeout, headers: headers.unwrap_or_default(), sender }))
    }

    async fn export(&self, resource_spans: Vec<ResourceSpans>) -> Result<(), String> {
        let request = ExportTraceServiceRequest { resource_spans };
        let exported = async {
            match &self.sender {
                Sender::Grpc(channel) => {
                    export(channel, &self.headers, request).await.map_err(|status| status.to_string())
                }
                Sender::Http(client) => self.post(client, &request).await,
            }
        };
        let late = |_| Err(format!("it did not answer within {} ms", self.timeout.as_millis()));
        tokio::time::timeout(self.timeout, exported).await.unwrap_or_else(late)
    }

    async fn post(&self, client: &http_client::Client, request: &ExportTraceServiceRequest) -> Result<(), String> {
        let mut post = http_client::Request::new(http_client::Method::POST, self.address.clone())
            .body(http_client::Body::Bytes(request.encode_to_vec().into()))
            .header(http_client::header::CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &self.headers {
            if let Ok(name) = name.parse() {
                post = post.header(name, value);
            }
        }
        let answer = client.send(&post).await.map_err(|error| error.to_string())?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("it answered {status}")),
        }
    }
}

/// Hands spans to whoever takes them by gRPC.
pub(super) async fn export(
    channel: &Channel,
    headers: &BTreeMap<String, String>,
    request: ExportTraceServiceRequest,
) -> Result<(), tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(unreachable)?;
    let mut request = tonic::Request::new(request);
    for (name, value) in headers {
        // They were looked at when they were read.
        if let (Ok(name), Ok(value)) = (name.parse::<AsciiMetadataKey>(), value.parse::<AsciiMetadataValue>()) {
            request.metadata_mut().insert(name, value);
        }
    }
    let codec = ProstCodec::<ExportTraceServiceRequest, ExportTraceServiceResponse>::default();
    let path = http::uri::PathAndQuery::from_static(EXPORT);
    client.unary(request, path, codec).await.map(drop)
}

fn unreachable(error: tonic::transport::Error) -> tonic::Status {
    tonic::Status::unavailable(base::Fault::because(base::Kind::Remote, "no connection", error).cause())
}

/// Whom we trust, and who we are.
fn identity(variable: &impl Fn(&str) -> Option<String>) -> Result<TlsIdentity, String> {
    let file = |name| either(variable, name).map(|(_, path)| PathBuf::from(path));
    let keypairs = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
        (Some(certificate), Some(key)) => vec![KeyPair { certificate, key }],
        (None, None) => Vec::new(),
        _ => return Err("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY come together".to_owned()),
    };
    Ok(TlsIdentity { extra_roots: file("CERTIFICATE").into_iter().collect(), keypairs, ..TlsIdentity::default() })
}

/// `key=value,key=value`; values are written as in addresses. They may be secrets, and are not shown.
fn headers(variable: &str, text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut headers = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let bad = || format!("{variable}: expected name=value pairs of HTTP headers");
        let (name, value) = pair.split_once('=').ok_or_else(bad)?;
        let value = unescaped(value.trim());
        let name = name.trim().to_ascii_lowercase();
        if name.parse::<AsciiMetadataKey>().is_err() || value.parse::<AsciiMetadataValue>().is_err() {
            return Err(bad());
        }
        headers.insert(name, value);
    }
    Ok(headers)
}

/// Bytes that stand as `%xx`.
pub(super) fn unescaped(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(&part.as_bytes()[2..]);
            }
            None => {
                bytes.push(b'%');
                bytes.extend(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Hands over what comes. The last failure is the answer.
async fn hand_over(way: Way, mut batches: mpsc::Receiver<Vec<ResourceSpans>>) -> Result<(), String> {
    let mut result = Ok(());
    while let Some(spans) = batches.recv().await {
        result = way.export(spans).await;
        if let Err(why) = &result {
            tracing::warn!("the trace collector does not take spans: {why}");
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables = [(&'static str, &'static str)];

    fn way(variables: &Variables) -> Result<Option<String>, String> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let way = super::Way::of(&find)?;
        Ok(way.map(|way| {
            let kind = if matches!(way.sender, Sender::Grpc(_)) { "grpc" } else { "http" };
            let headers: Vec<String> = way.headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{kind} {} {} {}", way.address, way.timeout.as_millis(), headers.join(" "))
        }))
    }

    #[tokio::test]
    async fn variables_name_the_collector() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        for (variables, wanted) in [
            (&[][..], None),
            (&[endpoint], Some("grpc http://c:4317/ 10000 ")),
            (&[endpoint, ("OTEL_TRACES_EXPORTER", "none")], None),
            (&[endpoint, ("OTEL_SDK_DISABLED", "true")], None),
            (&[("OTEL_TRACES_EXPORTER", "otlp")], Some("grpc http://localhost:4317/ 10000 ")),
            (&[("OTEL_TRACES_EXPORTER", "otlp"), http], Some("http http://localhost:4318/v1/traces 10000 ")),
            (
                &[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c/below/"), http],
                Some("http https://c/below/v1/traces 10000 "),
            ),
            (&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://c/here"), http], Some("http https://c/here 10000 ")),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c")], Some("grpc https://c/ 10000 ")),
            (
                &[
                    endpoint,
                    ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
                    ("OTEL_EXPORTER_OTLP_HEADERS", "a=1, Key=b%20c%3d%"),
                    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
                ],
                Some("http http://c:4317/v1/traces 250 a=1 key=b c=%"),
            ),
        ] {
            assert_eq!(way(variables), Ok(wanted.map(str::to_owned)), "{variables:?}");
        }
        for (variables, wanted) in [
            (
                &[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")][..],
                "OTEL_EXPORTER_OTLP_PROTOCOL=http/json is not",
            ),
            (&[("OTEL_TRACES_EXPORTER", "zipkin")], "OTEL_TRACES_EXPORTER=zipkin"),
            (
                &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://u:p4ss@c")],
                "TRACES_ENDPOINT=ftp://xxxxx@c: only http://",
            ),
            (&[endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "secret")], "OTEL_EXPORTER_OTLP_HEADERS: expected name=value"),
            (&[endpoint, ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")], "is no number of milliseconds"),
            (&[endpoint, http, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such.pem")], "/no/such.pem"),
            (&[endpoint, ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k")], "come together"),
        ] {
            let why = way(variables).expect_err(wanted);
            assert!(why.contains(wanted), "{why}");
            let find =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            assert!(Collector::of(find).is_none(), "the daemon goes on");
        }
    }
}
