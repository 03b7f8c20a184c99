//! Traces on their way to a collector: by gRPC and by HTTP, with TLS and without, from a daemon, from its clients and from
//! builds without one.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use proto::Message as _;
use proto::otlp::{EXPORT, ExportTraceServiceRequest, KeyValue, SERVICE, Span, Value};
use session::remote::service::{Calls, Service};
use testkit::{TlsFront, free_port};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;

use crate::daemon::Served;
use crate::frontends::anyone;
use crate::harness::{Invocation, eventually};
use crate::kitchen::Kitchen;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// What was handed over: where, with which headers, and what.
#[derive(Clone)]
struct Batch {
    path: String,
    headers: BTreeMap<String, String>,
    /// What is said of the program.
    program: BTreeMap<String, String>,
    spans: Vec<Span>,
}

#[derive(Clone, Default)]
struct Batches(Arc<Mutex<Vec<Batch>>>);

impl Batches {
    fn add(&self, path: &str, headers: BTreeMap<String, String>, message: &[u8]) {
        let request = ExportTraceServiceRequest::decode(message).unwrap();
        let resources = request.resource_spans.iter().filter_map(|spans| spans.resource.as_ref());
        let text = |pair: &KeyValue| match &pair.value.as_ref()?.value {
            Some(Value::Text(text)) => Some((pair.key.clone(), text.clone())),
            _ => None,
        };
        let program = resources.flat_map(|resource| &resource.attributes).filter_map(text).collect();
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        let spans = scopes.flat_map(|scope| scope.spans).collect();
        self.0.lock().unwrap().push(Batch { path: path.to_owned(), headers, program, spans });
    }

    fn take(&self) -> Vec<Batch> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// A collector that speaks gRPC.
struct ByGrpc {
    address: SocketAddr,
    batches: Batches,
    runtime: Option<Runtime>,
}

impl ByGrpc {
    fn start() -> ByGrpc {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let (address, batches) = (listener.local_addr().unwrap(), Batches::default());
        let router = tonic::transport::Server::builder().add_service(Service(batches.clone()));
        runtime.spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        ByGrpc { address, batches, runtime: Some(runtime) }
    }
}

impl Drop for ByGrpc {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Calls for Batches {
    const NAME: &'static str = SERVICE;

    async fn call(self, request: http::Request<Body>) -> http::Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap_or_default().to_owned())
        };
        self.add(head.uri.path(), head.headers.iter().map(text).collect(), &body[5..]);
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
        let body = StreamBody::new(tokio_stream::iter(frames.map(Ok::<_, std::convert::Infallible>)));
        http::Response::builder().header("content-type", "application/grpc").body(Body::new(body)).unwrap()
    }
}

/// A collector that speaks HTTP, a request per connection. It ends with the test's process.
fn by_http() -> (SocketAddr, Batches) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, batches) = (listener.local_addr().unwrap(), Batches::default());
    let taken = batches.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who only looks whether there is a server says nothing.
            let _ = answer(&stream, &taken);
        }
    });
    (address, batches)
}

fn answer(mut stream: &TcpStream, batches: &Batches) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let Some(first) = lines.first() else { return Ok(()) };
    assert!(first.starts_with("POST "), "{first}");
    let path = first.split(' ').nth(1).unwrap();
    let headers: BTreeMap<String, String> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    reader.read_exact(&mut body)?;
    batches.add(path, headers, &body);
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One build's spans: the step's below the whole's.
fn check(batches: &[Batch], whole: &str, error: bool) {
    let names: Vec<&str> = batches.iter().flat_map(|batch| &batch.spans).map(|span| span.name.as_str()).collect();
    let has_it = |batch: &&Batch| batch.spans.iter().any(|span| span.name == whole);
    let batch = batches.iter().find(has_it).unwrap_or_else(|| panic!("{whole}: {names:?}"));
    let root = batch.spans.iter().find(|span| span.name == whole).unwrap();
    let step = batch.spans.iter().find(|span| span.name.contains("RUN echo hi")).unwrap_or_else(|| panic!("{names:?}"));
    assert_eq!((&step.parent_span_id, &step.trace_id), (&root.span_id, &root.trace_id));
    assert_eq!(root.status.as_ref().is_some_and(|status| status.code == 2), error, "{:?}", root.status);
    assert_eq!(batch.headers.get("key").map(String::as_str), Some("a secret"), "{:?}", batch.headers);
}

type Variables = Vec<(&'static str, String)>;

fn with(invocation: Invocation, variables: &Variables) -> Invocation {
    variables.iter().fold(invocation, |invocation, (name, value)| invocation.env(name, value))
}

fn variables(protocol: &str, endpoint: &str, more: &[(&'static str, &str)]) -> Variables {
    let mut variables = vec![
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.to_owned()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "key=a%20secret".to_owned()),
    ];
    variables.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    variables
}

#[test]
fn builds_without_a_daemon_are_traced() {
    let Some(kitchen) = Kitchen::new(anyone()) else { return };
    let (grpc, (http, by_http)) = (ByGrpc::start(), by_http());
    kitchen.dockerfile("FROM busybox\nRUN echo hi\n");
    let post = variables(
        "http/protobuf",
        &format!("http://{http}"),
        &[("TRACEPARENT", &format!("00-{TRACE}-b7ad6b7169203331-01"))],
    );
    with(kitchen.build(""), &post).succeeds();
    let batches = by_http.take();
    check(&batches, "build", false);
    assert_eq!(batches[0].path, "/v1/traces");
    assert_eq!(batches[0].headers["content-type"], "application/x-protobuf");
    let root = &batches[0].spans[0];
    assert_eq!((hex(&root.trace_id), hex(&root.parent_span_id)), (TRACE.to_owned(), "b7ad6b7169203331".to_owned()));

    kitchen.dockerfile("FROM busybox\nRUN echo hi && exit 3\n");
    let call = variables("grpc", &format!("http://{}", grpc.address), &[]);
    let line = "build --frontend=dockerfile.v0 --local=context=context --local=dockerfile=context";
    let daemonless =
        kitchen.who.daemonless(&kitchen.world).env("BUILDKITD_FLAGS", "--config buildkitd.toml --root state");
    with(daemonless.args(line.split_whitespace()), &call).fails().says("exit code: 3");
    let batches = grpc.batches.take();
    check(&batches, "build", true);
    assert_eq!(batches[0].path, EXPORT);

    // What is said of the program, and of which builds there are traces.
    kitchen.dockerfile("FROM busybox\nRUN echo hi\n");
    let more = |name, value| variables("http/protobuf", &format!("http://{http}"), &[(name, value)]);
    with(kitchen.build(""), &more("OTEL_RESOURCE_ATTRIBUTES", "team=a%2Cb"))
        .env("OTEL_SERVICE_NAME", "ours")
        .succeeds();
    let program = &by_http.take()[0].program;
    let said = ["team", "service.name", "telemetry.sdk.language"].map(|name| program[name].as_str());
    assert_eq!(said, ["a,b", "ours", "rust"], "{program:?}");
    with(kitchen.build(""), &more("OTEL_TRACES_SAMPLER", "always_off")).succeeds();
    let not_ours = format!("00-{TRACE}-b7ad6b7169203331-00");
    with(kitchen.build(""), &more("TRACEPARENT", &not_ours)).succeeds();
    assert!(by_http.take().is_empty());

    // Where nobody is, or nobody can be, the build is what it was.
    kitchen.dockerfile("FROM busybox\nRUN true\n");
    let nobody = format!("http://127.0.0.1:{}", free_port());
    for protocol in ["grpc", "http/protobuf"] {
        let ended = with(kitchen.build(""), &variables(protocol, &nobody, &[])).succeeds();
        ended.says("warning: the trace collector does not take spans: ");
        assert!(!ended.stderr.contains("a secret"), "{ended:?}");
    }
    let ended = with(kitchen.build(""), &variables("http/json", &nobody, &[])).succeeds();
    ended.says("warning: traces go to no collector: OTEL_EXPORTER_OTLP_PROTOCOL=http/json is not supported yet");
    // One that takes connections and says nothing is not waited for.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let late = variables("http/protobuf", &silent, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "50")]);
    with(kitchen.build(""), &late).succeeds().says("it did not answer within 50 ms");
}

/// The variables are the client's only.
#[test]
fn a_client_hands_its_own_spans_to_its_collector() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let (grpc, (http, by_http)) = (ByGrpc::start(), by_http());
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    for (protocol, server, batches) in [("grpc", grpc.address, &grpc.batches), ("http/protobuf", http, &by_http)] {
        let own = variables(protocol, &format!("http://{server}"), &[("TRACEPARENT", &parent)]);
        let spans = || batches.take().into_iter().flat_map(|batch| batch.spans).collect::<Vec<_>>();
        served.kitchen.dockerfile("FROM busybox\nRUN echo hi\n");
        with(served.build(""), &own).succeeds();
        with(served.buildctl("du"), &own).succeeds();
        with(served.buildctl("debug workers"), &own).succeeds();
        served.kitchen.dockerfile("FROM busybox\nRUN echo hi && exit 3\n");
        with(served.build(""), &own).fails();
        with(served.build("--local=more=nowhere"), &own).fails();
        let spans = spans();
        let told: Vec<_> = spans.iter().map(|span| (&*span.name, span.status.is_some())).collect();
        let build = "build";
        assert_eq!(told, [(build, false), ("du", false), ("debug", false), (build, true), (build, true)]);
        for span in &spans {
            let ids = (hex(&span.trace_id), hex(&span.parent_span_id));
            assert_eq!(ids, (TRACE.to_owned(), "b7ad6b7169203331".to_owned()));
        }
    }
    // Where nobody is, commands do what they do.
    let nobody = variables("grpc", &format!("http://127.0.0.1:{}", free_port()), &[]);
    let ended = with(served.buildctl("du"), &nobody).succeeds();
    ended.says("warning: the trace collector does not take spans: ");
    assert!(ended.text().contains("Total:"), "{ended:?}");
    served.ends();
}

#[test]
fn a_daemon_hands_traces_to_a_collector_behind_tls() {
    let grpc = ByGrpc::start();
    let (http, by_http) = by_http();
    for (protocol, server, batches) in [("grpc", grpc.address, &grpc.batches), ("http/protobuf", http, &by_http)] {
        let Some(kitchen) = Kitchen::new(anyone()) else { return };
        for name in ["buildkitd", "buildctl"] {
            std::os::unix::fs::symlink("hullworks", kitchen.world.path(name)).unwrap();
        }
        let front = TlsFront::start(server, true);
        // Whoever builds can read them.
        for name in ["ca.crt", "client.cert", "client.key"] {
            kitchen.world.write(name, std::fs::read(front.certificate_dir().join(name)).unwrap());
        }
        let file = |name: &str| kitchen.world.path(name).display().to_string();
        let (ca, cert, key) = (file("ca.crt"), file("client.cert"), file("client.key"));
        let more = [
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.as_str()),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", &cert),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", &key),
        ];
        let endpoint = format!("https://localhost:{}", front.address().port());
        let daemon = with(Served::daemon(&kitchen, ""), &variables(protocol, &endpoint, &more)).starts();
        daemon.waits_until("that it listens", |said| said.contains("listening"));
        let served = Served { kitchen, daemon };
        served.kitchen.dockerfile("FROM busybox\nRUN echo hi\n");
        served.build("").succeeds();
        // The client's own span comes by the daemon, in a batch of its own.
        let solve = "moby.buildkit.v1.Control/Solve";
        eventually(|| {
            let batches = batches.0.lock().unwrap();
            batches.iter().flat_map(|batch| &batch.spans).any(|span| span.name == solve)
        });
        check(&batches.take(), solve, false);
        // The last build's arrive, although the daemon ends at once.
        served.kitchen.dockerfile("FROM busybox\nRUN echo hi && false\n");
        served.build("").fails();
        served.ends();
        check(&batches.take(), solve, true);
    }
}
