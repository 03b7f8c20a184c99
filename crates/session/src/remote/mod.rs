//! A client at the other end of a connection, asked by gRPC over a [`tunnel`].
//!
//! `Control.Session` gives a tunnel ([`Sessions::serve`]); the client's metadata names the session and lists the methods that
//! it answers. What it does not list is not asked for: BuildKit's services `FileSync`, `FileSend`, `Auth`, `Secrets`, `SSH`,
//! `Upload`, `Exporter`, and containerd's `Content`.

mod batch;
mod chosen;
mod content;
mod exporter;
mod frames;
mod health;
mod nearby;
mod output;
mod send;
pub mod serve;
mod serve_auth;
mod serve_content;
pub mod service;
mod ssh;
mod sync;
mod tokens;
pub mod tunnel;
mod upload;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base::{Fault, Kind, Secret};
use bytes::Bytes;
use futures_util::Stream;
use hyper_util::rt::TokioIo;
use proto::moby::buildkit::secrets::v1::GetSecretRequest;
use proto::moby::buildkit::secrets::v1::secrets_client::SecretsClient;
use proto::moby::filesync::v1::CredentialsRequest;
use proto::moby::filesync::v1::auth_client::AuthClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

pub use nearby::Nearby;
pub use output::Offer;
pub use send::{Files, wire};
pub use serve_auth::Tokens;
pub use sync::{MemoryFiles, Transfer, sent};

use crate::{Credentials, LocalDir, Output, Session, SharedSession, Upload};

/// Messages of BuildKit are at most this large.
pub const MAX_MESSAGE: usize = 16 << 20;
/// What one call may send before its other end has read: enough for lines with some latency.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// What all calls of a connection may.
pub const CONNECTION_WINDOW: u32 = 4 << 20;
/// HTTP/2 frames that are taken. Each costs a turn of its own on both sides, and the default of 16 KiB makes many.
pub const MAX_FRAME: u32 = 256 << 10;
/// Packets of a transfer on their way inside of us.
const QUEUE: usize = 16;
/// How long the id of a session may be: BuildKit's have 25 characters.
const MAX_ID: usize = 256;
/// How long a build waits for its client's session to appear.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a client may take to find credentials: helpers ask people and clouds.
const AUTH_TIMEOUT: Duration = Duration::from_secs(60);

/// One client.
pub struct RemoteSession {
    id: String,
    shared_key: String,
    /// In lower case.
    methods: HashSet<String>,
    channel: Channel,
    closed: CancellationToken,
    /// Whether it ever answered anything.
    has_answered: AtomicBool,
}

/// The clients that are connected.
#[derive(Default)]
pub struct Sessions {
    known: Mutex<HashMap<String, Arc<RemoteSession>>>,
    changed: watch::Sender<()>,
}

impl Sessions {
    /// Takes a client's `Session` call, and answers it; the session ends when the client hangs up, when it does not answer
    /// any more, or when the answer is dropped.
    pub fn serve(self: &Arc<Self>, request: http::Request<Body>) -> Result<http::Response<Body>, Fault> {
        let (parts, incoming) = request.into_parts();
        let metadata = &MetadataMap::from_headers(parts.headers);
        let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let id = text("x-docker-expose-session-uuid");
        if id.is_empty() {
            return Err(Fault::user("a session without an id"));
        }
        if id.len() > MAX_ID {
            return Err(Fault::user(format!("the id of the session has {} bytes, and may have {MAX_ID}", id.len())));
        }
        let methods = metadata.get_all("x-docker-expose-session-grpc-method").iter();
        let methods = methods.filter_map(|value| value.to_str().ok()).map(str::to_ascii_lowercase).collect();
        let pace = health::Pace::asked(metadata);
        let closed = CancellationToken::new();
        let (channel, outgoing) = connect(frames::carried(incoming), closed.clone());
        let session = Arc::new(RemoteSession {
            id: id.clone(),
            shared_key: text("x-docker-expose-session-sharedkey"),
            methods,
            channel,
            closed: closed.clone(),
            has_answered: AtomicBool::new(false),
        });
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.get(&id).is_some_and(|known| !known.closed.is_cancelled()) {
                closed.cancel();
                return Err(Fault::user(format!("session {id} already exists")));
            }
            known.insert(id.clone(), session.clone());
        }
        tracing::debug!(session = id, methods = session.methods.len(), "a session opened");
        self.changed.send_replace(());
        let sessions = self.clone();
        let opened = Instant::now();
        tokio::spawn(async move {
            health::watch(&session, pace).await;
            tracing::debug!(session = id, ms = opened.elapsed().as_millis() as u64, "a session closed");
            let mut known = sessions.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.get(&id).is_some_and(|known| Arc::ptr_eq(known, &session)) {
                known.remove(&id);
            }
        });
        Ok(frames::answer(ReceiverStream::new(outgoing)))
    }

    /// Before a client with that id is told that its build has ended: waits until it has read what was sent to it.
    pub async fn settle(&self, id: &str) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        if let Some(session) = known {
            health::settle(&session).await;
        }
    }

    /// The same for a client that may be about to connect: it is waited for as long as it may take to read.
    pub async fn settle_new(&self, id: &str) {
        if !id.is_empty() && tokio::time::timeout(health::SETTLES_WITHIN, self.get(id)).await.is_ok() {
            self.settle(id).await;
        }
    }

    /// The client with that id; waits a moment for one that is about to connect.
    pub async fn get(&self, id: &str) -> Result<Arc<RemoteSession>, Fault> {
        // A prefix tells contexts apart that one client serves.
        let id = id.rsplit_once(':').map_or(id, |(_, id)| id);
        let mut changed = self.changed.subscribe();
        let find = async {
            loop {
                if let Some(found) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
                    return found.clone();
                }
                // The sender is ours.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(PATIENCE, find).await.map_err(|_| {
            Fault::new(Kind::Remote, format!("no active session for {id}"))
                .hint("the client that started the build is gone")
        })
    }
}

/// A channel over messages. When the connection ends, `closed` is cancelled; and the other way round.
///
/// HTTP/2 has an end of its own: a client that says goodbye is not read any more, though its messages may go on.
fn connect<S>(incoming: S, closed: CancellationToken) -> (Channel, mpsc::Receiver<Bytes>)
where
    S: Stream<Item = Result<Bytes, Status>> + Send + 'static,
{
    use futures_util::StreamExt as _;
    let (ends, breaks, left) = (closed.clone(), closed.clone(), closed.clone().drop_guard());
    let incoming = incoming
        .inspect(move |message| {
            let _goes_with_it = &left;
            // Nothing follows, and nobody may ask for what follows.
            if message.is_err() {
                breaks.cancel();
            }
        })
        .take_until(closed.clone().cancelled_owned())
        .chain(futures_util::stream::once(async move { ends.cancel() }).filter_map(async |()| None));
    let (tunnel, outgoing) = tunnel::tunnel(Box::pin(incoming));
    let mut tunnel = Some(tunnel);
    let connector = tower::service_fn(move |_: http::Uri| {
        // There is one connection; what is lost cannot be dialled again.
        let tunnel = tunnel.take().map(TokioIo::new);
        async move { tunnel.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    let endpoint = Endpoint::from_static("http://localhost")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_max_header_list_size(16 << 20)
        .connect_with_connector_lazy(connector);
    (endpoint, outgoing)
}

impl RemoteSession {
    /// Whether the client answers a method, such as `/moby.filesync.v1.FileSync/DiffCopy`.
    pub fn supports(&self, method: &str) -> bool {
        self.methods.contains(&method.to_ascii_lowercase())
    }

    /// How it is reached.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Cancelled when the client is gone.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// An answer of the client, or that it is gone.
    pub(crate) async fn ask<T>(&self, doing: &str, call: impl Future<Output = Result<T, Status>>) -> Result<T, Fault> {
        tokio::select! {
            answer = call => answer.map_err(|status| client_fault(doing, &status)),
            () = self.closed.cancelled() => Err(Fault::new(Kind::Cancelled, format!("{doing}: the client is gone"))),
        }
    }
}

/// What a client's refusal means.
fn client_fault(doing: &str, status: &Status) -> Fault {
    let kind = match status.code() {
        Code::Cancelled => Kind::Cancelled,
        Code::Unavailable => Kind::Remote,
        _ => Kind::User,
    };
    let message = status.message();
    let text = if message.is_empty() { status.code().to_string() } else { message.to_owned() };
    Fault::because(kind, doing, Said { code: status.code(), text })
}

/// A client's words.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Said {
    code: Code,
    text: String,
}

/// Whether somebody at the other end said that there is no more of something: room on a disk, mostly.
pub fn is_exhausted(fault: &Fault) -> bool {
    fault.find::<Said>().is_some_and(|said| said.code == Code::ResourceExhausted)
}

/// A fault of which somebody else told in these words.
pub fn told(kind: Kind, text: &str, code: Code) -> Fault {
    Fault::because(kind, text, Said { code, text: text.to_owned() })
}

/// A client as one build sees it, beside all others. Clones of the session share the connection.
pub struct Client(pub Arc<RemoteSession>, pub Arc<Sessions>);

#[async_trait]
impl Session for Client {
    fn id(&self) -> &str {
        &self.0.id
    }

    async fn local(&self, name: &str) -> Result<Option<LocalDir>, Fault> {
        if !self.0.supports(sync::METHOD) {
            return Ok(None);
        }
        let dir = sync::Dir { session: self.0.clone(), name: name.to_owned() };
        Ok(Some(LocalDir::Remote(Arc::new(dir))))
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, Fault> {
        if !self.0.supports("/moby.buildkit.secrets.v1.Secrets/GetSecret") {
            return Ok(None);
        }
        let mut secrets = SecretsClient::new(self.0.channel());
        let request = GetSecretRequest { id: id.to_owned(), ..GetSecretRequest::default() };
        let call = async {
            match secrets.get_secret(request).await {
                Ok(answer) => Ok(Some(Secret::new(answer.into_inner().data))),
                Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(None),
                Err(status) => Err(status),
            }
        };
        self.0.ask(&format!("cannot get secret `{id}`"), call).await
    }

    async fn agent(&self, id: &str) -> Result<Option<Arc<dyn crate::Agent>>, Fault> {
        ssh::find(&self.0, id).await
    }

    async fn credentials(&self, host: &str) -> Result<Option<Credentials>, Fault> {
        if !self.0.supports("/moby.filesync.v1.Auth/Credentials") {
            return Ok(None);
        }
        let mut auth = AuthClient::new(self.0.channel());
        let call = async {
            match tokens::in_time(auth.credentials(CredentialsRequest { host: host.to_owned() })).await {
                Ok(answer) => Ok(Some(answer)),
                Err(status) if status.code() == Code::Unimplemented => Ok(None),
                Err(status) => Err(status),
            }
        };
        let answer = self.0.ask(&format!("cannot get credentials for `{host}`"), call).await?;
        Ok(answer.and_then(|answer| match (answer.username.is_empty(), answer.secret.is_empty()) {
            (_, true) => None,
            (true, false) => Some(Credentials::Refresh(Secret::new(answer.secret))),
            (false, false) => {
                Some(Credentials::Basic { username: answer.username, password: Secret::new(answer.secret) })
            }
        }))
    }

    async fn token_authority(&self, host: &str) -> Result<Option<base::Digest>, Fault> {
        tokens::authority(&self.0, host).await
    }

    async fn fetch_token(&self, request: crate::TokenRequest) -> Result<crate::Token, Fault> {
        tokens::fetch(&self.0, request).await
    }

    async fn content(&self, name: &str) -> Result<Option<Arc<dyn crate::Blobs>>, Fault> {
        if !self.0.supports(proto::content::READ) {
            return Ok(None);
        }
        Ok(Some(Arc::new(content::Store { session: self.0.clone(), id: format!("oci:{name}") })))
    }

    async fn cache(&self, dir: &str) -> Result<Option<Arc<dyn crate::CacheDir>>, Fault> {
        if !self.0.supports(proto::content::READ) {
            return Ok(None);
        }
        Ok(Some(Arc::new(content::Store { session: self.0.clone(), id: format!("local:{dir}") })))
    }

    async fn export_store(&self) -> Result<Option<Arc<dyn crate::CacheDir>>, Fault> {
        if !self.0.supports(proto::content::WRITE) {
            return Ok(None);
        }
        Ok(Some(Arc::new(content::Store { session: self.0.clone(), id: content::EXPORT.to_owned() })))
    }

    async fn upload(&self, host: &str, path: &str) -> Result<Option<Upload>, Fault> {
        match self.0.supports(upload::METHOD) {
            true => upload::pull(&self.0, host, path).await.map(Some),
            false => Ok(None),
        }
    }

    async fn other(&self, id: &str) -> Option<SharedSession> {
        let other = self.1.get(id).await.ok()?;
        Some(Arc::new(Client(other, self.1.clone())))
    }

    async fn late_exports(
        &self,
        about: BTreeMap<String, Vec<u8>>,
        refs: Vec<String>,
    ) -> Result<Vec<crate::LateExport>, Fault> {
        exporter::find(&self.0, about, refs).await
    }

    async fn exported(&self, response: &BTreeMap<String, String>) -> Result<(), Fault> {
        exporter::finalize(&self.0, response).await
    }

    async fn output(&self, index: usize) -> Result<Output, Fault> {
        if !self.0.supports(output::METHOD) {
            return Ok(Output::None);
        }
        Ok(Output::Remote(Arc::new(output::Remote { session: self.0.clone(), index })))
    }
}

/// Metadata with values that headers cannot hold, as BuildKit's clients read it: escaped, and marked so.
fn encode(metadata: &mut MetadataMap, key: &'static str, values: &[String]) {
    let escape = values.iter().any(|value| !value.is_ascii() || value.bytes().any(|byte| byte < b' ' || byte == 0x7f));
    for value in values {
        let text = if escape { query_escape(value) } else { value.clone() };
        if let Ok(value) = text.parse() {
            metadata.append(key, value);
        }
    }
    if escape {
        let marked = tonic::metadata::MetadataKey::from_bytes(format!("{key}-encoded").as_bytes());
        if let Ok(key) = marked {
            metadata.insert(key, tonic::metadata::MetadataValue::from_static("1"));
        }
    }
}

/// Go's `url.QueryEscape`.
fn query_escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            b' ' => escaped.push('+'),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// The exporter's words, as metadata.
fn describe(metadata: &mut MetadataMap, about: &BTreeMap<String, String>) {
    for (key, value) in about {
        let key =
            tonic::metadata::MetadataKey::from_bytes(format!("exporter-md-{key}").to_ascii_lowercase().as_bytes());
        if let (Ok(key), Ok(value)) = (key, value.parse()) {
            metadata.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever waits for the client hears of it, though nobody asks it anything.
    #[tokio::test]
    async fn a_connection_that_breaks_has_ended() {
        for last in [Some(Err(Status::unavailable("reset"))), None] {
            let closed = CancellationToken::new();
            let (messages, incoming) = mpsc::channel(1);
            let (channel, _outgoing) = connect(ReceiverStream::new(incoming), closed.clone());
            // As the health check does: else nothing is read.
            let mut secrets = SecretsClient::new(channel);
            let asked = tokio::spawn(async move { secrets.get_secret(GetSecretRequest::default()).await });
            if let Some(last) = last {
                messages.send(last).await.expect("it is read");
                tokio::time::timeout(Duration::from_secs(60), closed.cancelled()).await.expect("noticed");
            }
            drop(messages);
            tokio::time::timeout(Duration::from_secs(60), closed.cancelled()).await.expect("noticed");
            asked.abort();
        }
    }

    /// Nor need its messages end.
    #[tokio::test]
    async fn a_connection_that_is_not_read_any_more_has_ended() {
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0].as_slice();
        let goodbye = [0, 0, 8, 7, 0, 0, 0, 0, 0].as_slice();
        for said in [[settings, goodbye, &[0; 8]].concat(), b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()] {
            let closed = CancellationToken::new();
            let (messages, incoming) = mpsc::channel(1);
            let (channel, _outgoing) = connect(ReceiverStream::new(incoming), closed.clone());
            let mut secrets = SecretsClient::new(channel.clone());
            let asked = tokio::spawn(async move { secrets.get_secret(GetSecretRequest::default()).await });
            messages.send(Ok(said.into())).await.expect("it is read");
            tokio::time::timeout(Duration::from_secs(60), closed.cancelled()).await.expect("noticed");
            assert!(asked.await.expect("it ends").is_err());
        }
    }
}
