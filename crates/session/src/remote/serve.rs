//! The client's end of the [`tunnel`](super::tunnel): BuildKit's session services, answered by a [`Session`](crate::Session).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base::{Cancel, Fault, Kind};
use bytes::Bytes;
use files::receive::{Attributes, Receiver, Sent};
use files::walk::{Filter, reset_owner, walk_each};
use futures_util::{Stream, StreamExt as _, stream};
use proto::fsutil::Packet;
use proto::health::health_server::{Health, HealthServer};
use proto::health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};
use proto::moby::buildkit::secrets::v1::secrets_server::{Secrets, SecretsServer};
use proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use proto::moby::buildkit::v1::BytesMessage;
use proto::moby::filesync::v1::auth_server::AuthServer;
use rustix::fs::{Mode, OFlags};
use sys::path::{Links, Root};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, StreamingService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::send::Files;
use super::serve_auth::{Logins, Tokens};
use super::service::{Calls, Service};
use super::{
    CONNECTION_WINDOW, MAX_FRAME, MAX_MESSAGE, Offer, STREAM_WINDOW, Transfer, batch, frames, output, ssh, sync,
    tokens, tunnel,
};
use crate::others::{make_output_dir, remove_others};
use crate::{LocalDir, Output, SharedSession};

/// Of every client.
const METHODS: [&str; 12] = [
    sync::METHOD,
    output::METHOD,
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    ssh::CHECK,
    ssh::FORWARD,
    "/grpc.health.v1.Health/Check",
    proto::content::INFO,
    proto::content::READ,
    proto::content::WRITE,
    proto::exporter::FIND,
    proto::exporter::FINALIZE,
];
/// Only of a client that fetches tokens.
const OF_TOKENS: [&str; 3] = [tokens::FETCH, tokens::AUTHORITY, tokens::VERIFY];
/// Packets on their way.
const QUEUE: usize = 16;

/// Where a session is asked for.
pub const SESSION: &str = "/moby.buildkit.v1.Control/Session";

/// What a client of this kind answers, for its `Session` call.
pub fn methods(tokens: bool) -> impl Iterator<Item = &'static str> {
    METHODS.into_iter().chain(OF_TOKENS.into_iter().filter(move |_| tokens))
}

/// Offers a session to a daemon and answers its questions until it hangs up. `metadata` says who we are. Without `tokens`
/// it is the daemon that fetches them, by our credentials.
pub async fn serve(
    channel: Channel,
    metadata: MetadataMap,
    session: SharedSession,
    tokens: Option<Arc<dyn Tokens>>,
) -> Result<(), Status> {
    let (answered, answer) = tokio::sync::oneshot::channel();
    let incoming = stream::once(answer).filter_map(async |body| body.ok()).flat_map(frames::carried);
    let (outgoing, answering) = serve_over(Box::pin(incoming), session, tokens);
    let response = call(channel, metadata, frames::body(ReceiverStream::new(outgoing))).await?;
    // Its other end lives in the tunnel.
    let _ = answered.send(response);
    answering.await;
    Ok(())
}

/// Answers the questions that come in, whoever brings them: `incoming` is what messages carry. What is to be sent are whole
/// messages, as gRPC frames them.
pub fn serve_over<S>(
    incoming: S,
    session: SharedSession,
    tokens: Option<Arc<dyn Tokens>>,
) -> (mpsc::Receiver<Bytes>, impl Future<Output = ()>)
where
    S: Stream<Item = Result<Bytes, Status>> + Send + Unpin + 'static,
{
    let (tunnel, outgoing) = tunnel::tunnel(incoming);
    (outgoing, answer_over(tunnel, session, tokens))
}

async fn call(mut channel: Channel, metadata: MetadataMap, body: Body) -> Result<Body, Status> {
    let failed = |error: tonic::transport::Error| Status::unavailable(error.to_string());
    let mut request = http::Request::new(body);
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static(SESSION);
    *request.headers_mut() = metadata.into_headers();
    for (name, value) in [(http::header::TE, "trailers"), (http::header::CONTENT_TYPE, "application/grpc")] {
        request.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    std::future::poll_fn(|cx| tower::Service::poll_ready(&mut channel, cx)).await.map_err(failed)?;
    let response = tower::Service::call(&mut channel, request).await.map_err(failed)?;
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != tonic::Code::Ok => Err(status),
        _ if response.status() != http::StatusCode::OK => Err(Status::unavailable(response.status().to_string())),
        _ => Ok(response.into_body()),
    }
}

/// Answers questions that come over a tunnel, until it ends.
async fn answer_over<S>(tunnel: tunnel::Tunnel<S>, session: SharedSession, tokens: Option<Arc<dyn Tokens>>)
where
    S: Stream<Item = Result<Bytes, Status>> + Send + Unpin + 'static,
{
    let router = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        // Patterns and paths of a context come as headers.
        .http2_max_header_list_size(MAX_MESSAGE as u32)
        .add_service(Service(Syncing(session.clone())))
        .add_service(Service(Sending(session.clone())))
        .add_service(Service(super::serve_content::Content(session.clone())))
        .add_service(Service(super::exporter::Exporters(session.clone())))
        .add_service(AuthServer::new(Logins { session: session.clone(), tokens }))
        .add_service(SecretsServer::new(Answers(session.clone())))
        .add_service(ssh::service(session.clone()))
        .add_service(HealthServer::new(Answers(session)));
    // One connection; it stays open until its other end closes it.
    let connection = stream::iter([Ok::<_, io::Error>(Connection(tunnel))]).chain(stream::pending());
    let (closed, ended) = tokio::sync::oneshot::channel::<()>();
    let connection = Until { stream: Box::pin(connection), _closed: closed };
    // How it ended concerns those who asked.
    let _ = router.serve_with_incoming_shutdown(connection, async { drop(ended.await) }).await;
}

/// Keeps a sender as long as the stream lives.
struct Until<S> {
    stream: Pin<Box<S>>,
    _closed: tokio::sync::oneshot::Sender<()>,
}

impl<S: Stream> Stream for Until<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

struct Connection<S>(tunnel::Tunnel<S>);

impl<S> tonic::transport::server::Connected for Connection<S> {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl<S: Stream<Item = Result<Bytes, Status>> + Unpin> tokio::io::AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: Unpin> tokio::io::AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Questions with one answer.
struct Answers(SharedSession);

pub(super) fn refused(fault: Fault) -> Status {
    match fault.find::<io::Error>().is_some_and(is_full) {
        true => Status::resource_exhausted(fault.cause()),
        false => Status::unknown(fault.cause()),
    }
}

/// Of our own disk, which the other end tells from other failures.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[tonic::async_trait]
impl Secrets for Answers {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = &request.get_ref().id;
        match self.0.secret(id).await.map_err(refused)? {
            Some(secret) => Ok(Response::new(GetSecretResponse { data: secret.expose().to_vec() })),
            None => Err(Status::not_found(format!("no secret `{id}`"))),
        }
    }
}

#[tonic::async_trait]
impl Health for Answers {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = proto::health::health_check_response::ServingStatus::Serving.into();
        Ok(Response::new(HealthCheckResponse { status }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Ok(Response::new(HealthListResponse::default()))
    }

    type WatchStream = tokio_stream::Pending<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::pending()))
    }
}

/// `FileSync`, whose packets are our own.
#[derive(Clone)]
struct Syncing(SharedSession);

impl Calls for Syncing {
    const NAME: &'static str = "moby.filesync.v1.FileSync";

    async fn call(self, request: http::Request<Body>) -> http::Response<Body> {
        if request.uri().path() != sync::METHOD {
            return Status::unimplemented("no such method").into_http();
        }
        let codec = tonic_prost::ProstCodec::<Packet, Packet>::default();
        let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE);
        grpc.streaming(SyncCall(self.0), request).await
    }
}

/// `FileSend`, likewise.
#[derive(Clone)]
struct Sending(SharedSession);

impl Calls for Sending {
    const NAME: &'static str = "moby.filesync.v1.FileSend";

    async fn call(self, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path() {
            output::METHOD => self.take_result(request).await,
            _ => Status::unimplemented("no such method").into_http(),
        }
    }
}

impl Sending {
    /// One method, two kinds of messages: which, the output of that number says.
    async fn take_result(self, request: http::Request<Body>) -> http::Response<Body> {
        let index = request.headers().get("buildkit-attachable-exporter-id");
        let index = index.and_then(|id| id.to_str().ok()?.parse().ok()).unwrap_or(0);
        match self.0.output(index).await {
            Err(fault) => refused(fault).into_http(),
            // A daemon that sends one platform after the other would have each remove the one before.
            Ok(Output::Mirror(_)) if !request.headers().contains_key(output::ALL_AT_ONCE) => {
                Status::failed_precondition("mode=delete wants a newer daemon, which sends all platforms at once")
                    .into_http()
            }
            Ok(output @ (Output::Directory(_) | Output::Mirror(_))) => {
                let codec = tonic_prost::ProstCodec::<Packet, Packet>::default();
                let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE);
                grpc.streaming(TreeCall(output), request).await
            }
            Ok(output) => {
                let codec = tonic_prost::ProstCodec::<BytesMessage, BytesMessage>::default();
                let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE);
                grpc.streaming(StreamCall(output), request).await
            }
        }
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Reply<T> = Pin<Box<dyn Future<Output = Result<Response<Replies<T>>, Status>> + Send>>;

/// Sends a directory.
struct SyncCall(SharedSession);

impl StreamingService<Packet> for SyncCall {
    type Response = Packet;
    type ResponseStream = Replies<Packet>;
    type Future = Reply<Packet>;

    fn call(&mut self, request: Request<Streaming<Packet>>) -> Reply<Packet> {
        let session = self.0.clone();
        Box::pin(async move {
            let (metadata, _, packets) = request.into_parts();
            let values = |key: &str| decode(&metadata, key);
            let name = values("dir-name").pop().unwrap_or_default();
            let filter = Filter {
                include: values("include-patterns"),
                exclude: values("exclude-patterns"),
                follow: values("followpaths"),
                hidden: None,
            };
            let path = match session.local(&name).await.map_err(refused)? {
                Some(LocalDir::InPlace(path)) => path,
                _ => return Err(Status::not_found(format!("no access allowed to dir \"{name}\""))),
            };
            let (batches, replies) = batch::channel();
            let (offer, cancel) = (offer(packets, batches.clone()), Cancel::new());
            tokio::task::spawn_blocking(move || {
                let root = Root::open(&path);
                let root = root.map_err(|e| Fault::because(Kind::User, format!("cannot open `{}`", path.display()), e));
                let sent = root.and_then(|root| {
                    let dir = Directory { root, filter, cancel: cancel.clone() };
                    offer.send(&dir, &cancel, &mut |_| ())
                });
                if let Err(fault) = sent {
                    // The call ends with it; whoever hung up does not hear it.
                    let _ = batches.blocking_send(Err(refused(fault)));
                }
            });
            Ok(Response::new(Box::pin(batch::packets(replies)) as Replies<Packet>))
        })
    }
}

/// The daemon's requests and our packets, as [`Offer`] wants them.
fn offer(mut incoming: Streaming<Packet>, packets: batch::Sender) -> Offer {
    let (asked, requests) = mpsc::channel(QUEUE);
    let call = tokio::spawn(async move {
        while let Some(packet) = incoming.message().await.transpose() {
            let packet = packet.map_err(|status| Fault::new(Kind::Remote, status.message()));
            let ends = packet.is_err();
            if asked.send(packet).await.is_err() || ends {
                return;
            }
        }
    });
    Offer { requests, packets, call: call.abort_handle() }
}

/// A directory of the user.
pub(super) struct Directory {
    pub(super) root: Root,
    pub(super) filter: Filter,
    pub(super) cancel: Cancel,
}

impl Files for Directory {
    fn list(&self, visit: &mut dyn FnMut(Sent) -> Result<(), Fault>) -> Result<(), Fault> {
        let mut inodes: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        let mut attributes = Attributes::new(&self.root);
        let mut refusal = None;
        let listed = walk_each(&self.root, &self.filter, &mut reset_owner, &self.cancel, &mut |entry| {
            let path = entry.path.as_os_str().as_bytes();
            let has_names = entry.stat.nlink > 1 && entry.stat.kind == files::Kind::File;
            let inode = (entry.stat.dev, entry.stat.ino);
            let first = inodes.get(&inode).filter(|_| has_names);
            let mut file = Sent::of(&entry, first.map(Vec::as_slice));
            if has_names && first.is_none() {
                inodes.insert(inode, path.to_vec());
            }
            file.xattrs = attributes.of(&entry.path)?;
            visit(file).map_err(|fault| {
                refusal = Some(fault);
                files::Error::Cancelled(base::Cancelled)
            })
        });
        match (listed, refusal) {
            (_, Some(fault)) => Err(fault),
            (listed, None) => listed
                .map_err(|e| Fault::because(Kind::User, format!("cannot read `{}`", self.root.path().display()), e)),
        }
    }

    fn open(&self, path: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let path = std::ffi::OsStr::from_bytes(path);
        self.root.open_at(path, flags, Mode::empty(), Links::Refuse).map(File::from)
    }
}

/// Takes a tree into a directory.
struct TreeCall(Output);

impl StreamingService<Packet> for TreeCall {
    type Response = Packet;
    type ResponseStream = Replies<Packet>;
    type Future = Reply<Packet>;

    fn call(&mut self, request: Request<Streaming<Packet>>) -> Reply<Packet> {
        let (dir, is_mirror) = match &self.0 {
            Output::Directory(dir) => (dir.clone(), false),
            Output::Mirror(dir) => (dir.clone(), true),
            _ => return Box::pin(async { Err(Status::internal("no directory is meant")) }),
        };
        Box::pin(async move {
            let (batches, incoming) = batch::channel();
            tokio::spawn(batch::receive(request.into_inner(), batches));
            let (outgoing, replies) = mpsc::unbounded_channel();
            let (ended, end) = tokio::sync::oneshot::channel();
            tokio::task::spawn_blocking(move || {
                let transfer = Transfer::new(dir.display().to_string(), incoming, outgoing).without_limit();
                let _ = ended.send(take_tree(&dir, is_mirror, transfer));
            });
            let end = async move {
                match end.await {
                    Ok(Err(fault)) => Some(Err(refused(fault))),
                    _ => None,
                }
            };
            let end = stream::once(end).filter_map(async |end| end);
            let replies = UnboundedReceiverStream::new(replies).map(|reply| Ok(reply.into())).chain(end);
            Ok(Response::new(Box::pin(replies) as Replies<Packet>))
        })
    }
}

fn take_tree(dir: &std::path::Path, is_mirror: bool, mut transfer: Transfer) -> Result<(), Fault> {
    let failed =
        |error: io::Error| Fault::because(Kind::Environment, format!("cannot write to `{}`", dir.display()), error);
    let made = make_output_dir(dir).map_err(failed)?;
    let root = Root::open(dir).map_err(failed)?;
    let mut receiver = Receiver::beside(&root);
    let received = transfer.receive(&Cancel::new(), &mut |_| (), &mut receiver);
    let settled = received.and_then(|()| {
        let taken = receiver.finish();
        let taken =
            taken.map_err(|e| Fault::because(Kind::Environment, format!("cannot write to `{}`", dir.display()), e))?;
        match is_mirror {
            true => remove_others(dir, &taken.into_entries().map(|entry| entry.path).collect()).map_err(failed),
            false => Ok(()),
        }
    });
    if settled.is_err() {
        made.discard();
    }
    // The daemon's build ends with this, and we may with it: nothing is left to be done then.
    transfer.end(settled)
}

/// Takes one stream into a file or to standard output.
struct StreamCall(Output);

impl StreamingService<BytesMessage> for StreamCall {
    type Response = BytesMessage;
    type ResponseStream = Replies<BytesMessage>;
    type Future = Reply<BytesMessage>;

    fn call(&mut self, request: Request<Streaming<BytesMessage>>) -> Reply<BytesMessage> {
        let output = self.0.clone();
        Box::pin(async move {
            let mut messages = request.into_inner();
            let (queue, mut incoming) = mpsc::channel::<Vec<u8>>(QUEUE);
            let writing = tokio::task::spawn_blocking(move || -> io::Result<()> {
                match output {
                    Output::Stdout => {
                        let mut stdout = io::stdout().lock();
                        while let Some(bytes) = incoming.blocking_recv() {
                            stdout.write_all(&bytes)?;
                        }
                        stdout.flush()
                    }
                    Output::File(path) => {
                        let mut file = File::options().write(true).create(true).truncate(true).open(path)?;
                        while let Some(bytes) = incoming.blocking_recv() {
                            file.write_all(&bytes)?;
                        }
                        Ok(())
                    }
                    _ => Err(io::Error::new(io::ErrorKind::NotFound, "nothing says where the result goes")),
                }
            });
            let received = async {
                while let Some(message) = messages.message().await? {
                    if queue.send(message.data).await.is_err() {
                        break;
                    }
                }
                Ok::<_, Status>(())
            };
            let received = received.await;
            drop(queue);
            let written = writing.await.map_err(|error| Status::internal(error.to_string()))?;
            written.map_err(|error| refused(Fault::because(Kind::Environment, "cannot write the result", error)))?;
            received?;
            Ok(Response::new(Box::pin(tokio_stream::empty()) as Replies<BytesMessage>))
        })
    }
}

/// The values of a key, some of which headers cannot hold as they are.
fn decode(metadata: &MetadataMap, key: &str) -> Vec<String> {
    let values = metadata.get_all(key).iter().filter_map(|value| value.to_str().ok());
    let encoded = metadata.get(format!("{key}-encoded")).is_some_and(|mark| mark == "1" || mark == "true");
    values.map(|value| if encoded { query_unescape(value) } else { value.to_owned() }).collect()
}

/// Go's `url.QueryUnescape`; what is malformed stays.
fn query_unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let hex = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (byte, hex) {
            (b'+', _) => bytes.push(b' '),
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_carry_any_text() {
        for text in ["plain", "a b+c%d", "größe\n", "~x_y-z.é"] {
            let mut metadata = MetadataMap::new();
            super::super::encode(&mut metadata, "followpaths", &[text.to_owned(), "x".to_owned()]);
            assert_eq!(decode(&metadata, "followpaths"), [text, "x"]);
        }
    }
}
