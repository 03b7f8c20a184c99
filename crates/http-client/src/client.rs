//! Pools of connections, and sending a request through one: redirects, idle watch, retries.
//!
//! reqwest carries the connections (pool, proxies, TLS). Redirects and idle timeouts are ours: its redirects cannot
//! open a body again, and its read timeout also runs while a large upload is still being sent.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use http::{Method, StatusCode, header};
use url::Url;

use crate::error::authority;
use crate::identity::TlsIdentity;
use crate::proxy::Rules;
use crate::request::{Body, Redirects, Request};
use crate::retry::{Retry, Retrying, Verdict, is_transient_status, retry};
use crate::{Error, Proxies, Response, USER_AGENT};

/// Redirects in a row before a server counts as going in circles.
const MAX_REDIRECTS: usize = 10;

/// How pools behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Proxies.
    pub proxies: Proxies,
    /// How long silence is borne.
    pub timeouts: Timeouts,
    /// How often idempotent requests are tried.
    pub retry: Retry,
    /// Versions of HTTP.
    pub protocol: Protocol,
    /// `User-Agent`.
    pub user_agent: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            proxies: Proxies::default(),
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            protocol: Protocol::Http1,
            user_agent: USER_AGENT.to_owned(),
        }
    }
}

/// How long silence is borne.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection stands, TLS included.
    pub connect: Duration,
    /// Between two moves of a transfer: bytes sent, the head of the answer, bytes received.
    pub idle: Duration,
    /// From the last byte of a large body to the answer: registries copy the blob to its place meanwhile.
    pub commit: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { connect: Duration::from_secs(30), idle: Duration::from_secs(60), commit: Duration::from_secs(600) }
    }
}

/// Versions of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// One connection per transfer. Faster for a few large blobs than streams that share one connection and its
    /// flow-control window, which is why BuildKit does it too.
    Http1,
    /// HTTP/2 where the server offers it: many small requests.
    Negotiate,
}

/// The pools of a process, one per TLS identity, made when first used.
#[derive(Clone)]
pub struct Pools(Arc<Inner>);

struct Inner {
    settings: Settings,
    clients: Mutex<HashMap<TlsIdentity, Client>>,
}

impl Pools {
    /// No pool yet.
    pub fn new(settings: Settings) -> Pools {
        Pools(Arc::new(Inner { settings, clients: Mutex::default() }))
    }

    /// The settings all pools share.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The pool of this identity. Reads certificate files the first time.
    pub fn client(&self, identity: &TlsIdentity) -> Result<Client, Error> {
        let mut clients = self.0.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(identity) {
            return Ok(client.clone());
        }
        let client = Client::new(&self.0.settings, identity)?;
        clients.insert(identity.clone(), client.clone());
        Ok(client)
    }
}

/// One pool. Clones share it.
#[derive(Clone)]
pub struct Client {
    inner: reqwest::Client,
    proxies: Arc<Rules>,
    timeouts: Timeouts,
    retry: Retry,
}

impl Client {
    fn new(settings: &Settings, identity: &TlsIdentity) -> Result<Client, Error> {
        let proxies = Arc::new(settings.proxies.compile()?);
        let rules = proxies.clone();
        let mut builder = reqwest::Client::builder()
            .use_preconfigured_tls(identity.client_config()?)
            .no_proxy()
            .proxy(reqwest::Proxy::custom(move |url| rules.for_url(url).cloned()))
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(&settings.user_agent)
            .connect_timeout(settings.timeouts.connect)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(60))
            .pool_idle_timeout(Duration::from_secs(90))
            .pool_max_idle_per_host(8);
        builder = match settings.protocol {
            Protocol::Http1 => builder.http1_only(),
            // Windows that a fast link does not fill between two reads.
            Protocol::Negotiate => {
                builder.http2_initial_stream_window_size(2 << 20).http2_initial_connection_window_size(8 << 20)
            }
        };
        let inner = builder.build().map_err(|error| Error::Setup(error.to_string()))?;
        Ok(Client { inner, proxies, timeouts: settings.timeouts, retry: settings.retry.clone() })
    }

    /// How often idempotent requests are tried.
    pub fn retry_policy(&self) -> &Retry {
        &self.retry
    }

    /// Sends a request, again where that is allowed and promising, and follows redirects.
    ///
    /// The last answer is returned whatever its status; an error means that none came.
    pub async fn send(&self, request: &Request) -> Result<Response, Error> {
        let policy = match &request.retry {
            Some(policy) => policy,
            None if request.method == Method::POST || request.method == Method::PATCH => &Retry::NEVER,
            None => &self.retry,
        };
        let notify = |retrying: &Retrying| {
            // The path may be what a build was told by an argument, and the log has no values of those.
            let (method, host) = (&request.method, authority(&request.url));
            tracing::debug!(%method, host, attempt = retrying.attempt, "retry");
            if let Some(notify) = &request.notify {
                notify(retrying);
            }
        };
        retry(policy, notify, |_| async { self.attempt(request).await }).await
    }

    async fn attempt(&self, request: &Request) -> Verdict<Result<Response, Error>> {
        match self.follow(request).await {
            Ok(response) if is_transient_status(response.status()) => {
                let host = authority(response.url());
                let cause = format!("`{host}` answered {}", response.status());
                Verdict::Again { after: response.retry_after(), cause, last: Ok(response) }
            }
            Err(error) if error.is_transient() => {
                Verdict::Again { cause: error.to_string(), last: Err(error), after: None }
            }
            result => Verdict::Done(result),
        }
    }

    async fn follow(&self, request: &Request) -> Result<Response, Error> {
        let mut request = std::borrow::Cow::Borrowed(request);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(&request).await?;
            if request.redirects == Redirects::Keep || !is_redirect(response.status()) {
                return Ok(response);
            }
            let Some(location) = response.header(header::LOCATION) else { return Ok(response) };
            let target = redirect_target(&request.url, location)?;
            if request.redirects == Redirects::Home && !is_same_server(&request.url, &target) {
                let there = target.origin().ascii_serialization();
                return Err(Error::Redirect {
                    url: base::redact_url(request.url.as_str()),
                    reason: format!("it redirects to `{there}`, where the login must not go"),
                });
            }
            redirect(request.to_mut(), response.status(), target);
        }
        Err(Error::Redirect {
            url: base::redact_url(request.url.as_str()),
            reason: format!("more than {MAX_REDIRECTS} redirects"),
        })
    }

    async fn send_once(&self, request: &Request) -> Result<Response, Error> {
        let mut builder = self.inner.request(request.method.clone(), request.url.clone());
        builder = builder.headers(request.headers.clone());
        let sent = Arc::new(Sent::default());
        let mut has_body = false;
        match &request.body {
            Body::Empty if request.method == Method::PUT || request.method == Method::POST => {
                // Some registries refuse a PUT or POST without a length (411).
                builder = builder.header(header::CONTENT_LENGTH, 0);
            }
            Body::Empty => {}
            Body::Bytes(bytes) => builder = builder.body(bytes.clone()),
            Body::Stream { length, open } => {
                has_body = true;
                builder = builder.header(header::CONTENT_LENGTH, *length);
                builder = builder.body(reqwest::Body::wrap_stream(watched(open(), *length, sent.clone())));
            }
        }
        let answer = builder.send();
        let result = self.wait(answer, request, has_body, &sent).await;
        match (sent.take_error(), &result) {
            (Some(error), _) => Err(Error::Source(error)),
            (None, Ok(inner)) if inner.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                match self.proxies.for_url(&request.url) {
                    Some(proxy) => Err(Error::proxy_login(&request.url, proxy)),
                    None => result.map(|inner| Response::new(inner, self.timeouts.idle)),
                }
            }
            (None, _) => result.map(|inner| Response::new(inner, self.timeouts.idle)),
        }
    }

    /// Waits for the head of the answer for as long as the body moves.
    async fn wait(
        &self,
        answer: impl Future<Output = reqwest::Result<reqwest::Response>>,
        request: &Request,
        has_body: bool,
        sent: &Sent,
    ) -> Result<reqwest::Response, Error> {
        let mut answer = std::pin::pin!(answer);
        let mut seen = 0;
        loop {
            let limit = match has_body && sent.is_complete() {
                true => self.timeouts.commit,
                // The connection may first have to be made.
                false => self.timeouts.idle + self.timeouts.connect,
            };
            match tokio::time::timeout(limit, &mut answer).await {
                Ok(result) => {
                    let proxy = self.proxies.for_url(&request.url);
                    return result.map_err(|error| Error::from_reqwest(&error, &request.url, proxy));
                }
                Err(_) if sent.count() != seen => seen = sent.count(),
                Err(_) => {
                    let url = base::redact_url(request.url.as_str());
                    return Err(Error::Timeout { url, what: "answer", seconds: limit.as_secs() });
                }
            }
        }
    }
}

/// What is known of a body on its way out.
#[derive(Default)]
struct Sent {
    /// Chunks handed to the connection, the end of the body included.
    moves: AtomicU64,
    complete: std::sync::atomic::AtomicBool,
    error: Mutex<Option<io::Error>>,
}

impl Sent {
    fn count(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    fn take_error(&self) -> Option<io::Error> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn fail(&self, error: io::Error) -> io::Error {
        let text = error.to_string();
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        io::Error::other(text)
    }
}

/// Passes a body on, counts its moves, holds it to its length and keeps its own failure apart from the network's.
fn watched(
    stream: crate::BodyStream,
    length: u64,
    sent: Arc<Sent>,
) -> impl futures_util::Stream<Item = io::Result<bytes::Bytes>> + Send {
    let state = (stream, length, sent, false);
    futures_util::stream::unfold(state, |(mut stream, left, sent, ended)| async move {
        if ended {
            return None;
        }
        sent.moves.fetch_add(1, Ordering::Relaxed);
        match stream.next().await {
            Some(Ok(chunk)) => match left.checked_sub(chunk.len() as u64) {
                Some(left) => {
                    // The connection stops asking once it has all the bytes it announced.
                    sent.complete.store(left == 0, Ordering::Relaxed);
                    Some((Ok(chunk), (stream, left, sent, false)))
                }
                None => {
                    let error = sent.fail(io::Error::other("it holds more bytes than it should"));
                    Some((Err(error), (stream, 0, sent, true)))
                }
            },
            Some(Err(error)) => Some((Err(sent.fail(error)), (stream, left, sent, true))),
            None if left > 0 => {
                let text = format!("it ends {left} bytes early");
                let error = sent.fail(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                Some((Err(error), (stream, left, sent, true)))
            }
            None => {
                sent.complete.store(true, Ordering::Relaxed);
                None
            }
        }
    })
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn redirect_target(from: &Url, location: &str) -> Result<Url, Error> {
    let fail = |reason: String| Error::Redirect { url: base::redact_url(from.as_str()), reason };
    let shown = base::redact_url(location);
    let target = from.join(location).map_err(|error| fail(format!("bad redirect to `{shown}`: {error}")))?;
    match target.scheme() {
        "http" | "https" => Ok(target),
        scheme => Err(fail(format!("redirect to `{scheme}` is not allowed"))),
    }
}

/// Whether secrets for the server of one URL may go to another URL: the same origin, or the same server with TLS now.
pub fn is_same_server(from: &Url, to: &Url) -> bool {
    let has_same_port = from.port_or_known_default() == to.port_or_known_default();
    let is_same_origin = from.scheme() == to.scheme() && has_same_port;
    let is_upgraded = from.scheme() == "http" && to.scheme() == "https" && (has_same_port || from.port() == to.port());
    from.host_str() == to.host_str() && (is_same_origin || is_upgraded)
}

/// Points a request at its new place (RFC 9110 §15.4; Fetch's rule for credentials).
fn redirect(request: &mut Request, status: StatusCode, target: Url) {
    let to_get = match status.as_u16() {
        303 => request.method != Method::HEAD,
        301 | 302 => request.method == Method::POST,
        _ => false,
    };
    if to_get {
        request.method = Method::GET;
        request.body = Body::Empty;
        request.headers.remove(header::CONTENT_TYPE);
    }
    if !is_same_server(&request.url, &target) {
        request.headers.remove(header::AUTHORIZATION);
        request.headers.remove(header::COOKIE);
    }
    request.url = target;
}
