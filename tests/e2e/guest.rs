//! Clients of a daemon that speak its protocol themselves, to do what no real client does.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::control_client::ControlClient;
use session::Session;
use session::remote::{MAX_MESSAGE, serve};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt as _;

/// A client, all of it: when this is dropped, so are its connections.
pub struct Guest {
    runtime: Option<Runtime>,
    pub channel: Channel,
}

/// How much a client reads and writes in its session before it does neither any more.
#[derive(Clone, Copy)]
pub struct Most {
    pub read: usize,
    pub written: usize,
}

impl Most {
    /// All that there is.
    pub const ALL: Most = Most { read: usize::MAX, written: usize::MAX };
}

/// How much of what a session sends is kept.
const KEPT: usize = 4 << 20;

/// A session that has such a limit, and when that was reached.
pub struct Limited {
    pub id: String,
    reached: watch::Receiver<bool>,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Guest {
    pub fn new(socket: &Path) -> Guest {
        let runtime = Runtime::new().unwrap();
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // Everything that the daemon takes is sent.
        let endpoint = Endpoint::from_static("http://localhost").http2_max_header_list_size(64 << 20);
        let channel = runtime.block_on(endpoint.connect_with_connector(connector)).unwrap();
        Guest { runtime: Some(runtime), channel }
    }

    pub fn waits<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(what)
    }

    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(64 << 20)
    }

    /// What a build of a definition or by a frontend ends with.
    pub fn solves(&self, request: wire::SolveRequest) -> Result<wire::SolveResponse, tonic::Status> {
        let request = wire::SolveRequest { r#ref: session::random_id(), ..request };
        self.waits(async { self.control().solve(request).await }).map(tonic::Response::into_inner)
    }

    /// Bytes as the body of a call; the code and the words that it is answered with.
    pub fn calls(&self, path: &str, body: Vec<u8>) -> (String, String) {
        let (code, words, _) = self.hears(path, body);
        (code, words)
    }

    /// The same with the body of the answer.
    pub fn hears(&self, path: &str, body: Vec<u8>) -> (String, String, Vec<u8>) {
        let request = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(tonic::body::Body::new(Full::new(bytes::Bytes::from(body))))
            .unwrap();
        self.waits(async {
            let response = match self.channel.clone().oneshot(request).await {
                Ok(response) => response,
                Err(error) => return ("connection".to_owned(), error.to_string(), Vec::new()),
            };
            let (head, body) = response.into_parts();
            let mut headers = head.headers;
            let mut bytes = Vec::new();
            if let Ok(collected) = body.collect().await {
                headers.extend(collected.trailers().cloned().unwrap_or_default());
                bytes = collected.to_bytes().into();
            }
            let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
            (text("grpc-status"), text("grpc-message"), bytes)
        })
    }

    /// Opens a session.
    pub fn joins(&self, session: impl Session + 'static, most: Most) -> Limited {
        let id = session.id().to_owned();
        let (tell, reached) = watch::channel(false);
        let (read, written) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let tell = Arc::new(tell);
        let sent = Arc::new(Mutex::new(Vec::new()));
        let kept = sent.clone();
        let (queue, messages) = mpsc::channel(1);
        let mut request = tonic::Request::new(ReceiverStream::new(messages));
        let metadata = request.metadata_mut();
        metadata.insert("x-docker-expose-session-uuid", id.parse().unwrap());
        // Who does not answer is soon found out.
        metadata.insert("x-buildkit-session-health-custom-timeout", "1000".parse().unwrap());
        for method in serve::methods(false) {
            metadata.append("x-docker-expose-session-grpc-method", tonic::metadata::MetadataValue::from_static(method));
        }
        let mut control = self.control();
        self.runtime.as_ref().unwrap().spawn(async move {
            let incoming = control.session(request).await.unwrap().into_inner();
            let stalled = tell.clone();
            let incoming = incoming
                .take_while(move |message| {
                    let size = message.as_ref().map_or(0, |message| message.data.len());
                    let within = read.fetch_add(size, Ordering::Relaxed) + size < most.read && !*stalled.borrow();
                    if !within {
                        stalled.send_replace(true);
                    }
                    within
                })
                .map(|message| message.map(|message| message.data.into()))
                .chain(tokio_stream::pending());
            let (mut outgoing, serving) = serve::serve_over(Box::pin(incoming), Arc::new(session), None);
            let pass_on = async {
                while let Some(framed) = outgoing.recv().await {
                    // Behind the length.
                    let message = wire::BytesMessage::decode(&framed[5..]).unwrap();
                    let size = message.data.len();
                    {
                        let mut kept = kept.lock().unwrap();
                        let room = KEPT - kept.len();
                        kept.extend_from_slice(&message.data[..size.min(room)]);
                    }
                    if written.fetch_add(size, Ordering::Relaxed) + size >= most.written || *tell.borrow() {
                        tell.send_replace(true);
                        std::future::pending::<()>().await;
                    }
                    if queue.send(message).await.is_err() {
                        return;
                    }
                }
            };
            tokio::join!(serving, pass_on);
        });
        Limited { id, reached, sent }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Limited {
    /// Waits until the client does no more.
    pub async fn reached(&mut self) {
        self.reached.wait_for(|reached| *reached).await.unwrap();
    }

    /// Takes what it sent since the last look, as far as that is kept.
    pub fn take_sent(&self) -> Vec<u8> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }
}
