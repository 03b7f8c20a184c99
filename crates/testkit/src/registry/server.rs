//! The wire: a thread with a runtime of its own, one task per connection, faults applied on the way out.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::api::{Ask, Reply, Route, State};
use super::body::Stream;
use super::{Action, Auth, Builder, Recorded, Registry, Shared, auth, lock, tls};
use crate::scratch;

/// The server's thread; stops when dropped.
#[derive(Debug)]
pub(super) struct Running {
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server shows in the test's output already.
            let _ = thread.join();
        }
    }
}

pub(super) fn start(options: Builder) -> Registry {
    let certificates = options.tls.then(|| scratch("registry-tls"));
    let acceptor = certificates
        .as_ref()
        .map(|dir| TlsAcceptor::from(tls::make(dir.path(), options.client_certificates, options.self_signed)));
    let scheme = if options.tls { "https" } else { "http" };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port can be bound");
    listener.set_nonblocking(true).expect("a socket can be made non-blocking");
    let address = listener.local_addr().expect("a bound socket has an address");
    let shared = Arc::new(Shared {
        options,
        base: format!("{scheme}://{address}"),
        state: Mutex::new(State::default()),
        tokens: Mutex::default(),
        faults: Mutex::default(),
        log: Mutex::default(),
    });
    let (stop, stopped) = oneshot::channel();
    let (ready, started) = mpsc::channel();
    let server = shared.clone();
    let thread = std::thread::Builder::new().name("test-registry".to_owned()).spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).expect("the socket is a listener");
            ready.send(()).expect("the starter waits");
            tokio::select! {
                _ = stopped => {}
                () = accept(listener, acceptor, server) => {}
            }
        });
        // Hanging requests end with the runtime.
        runtime.shutdown_background();
    });
    let thread = thread.expect("a thread can be started");
    started.recv().expect("the server starts");
    Registry { shared, address, scheme, certificates, _server: Running { stop: Some(stop), thread: Some(thread) } }
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        // Small answers must not wait for more (the client is on this machine).
        let _ = socket.set_nodelay(true);
        let (shared, acceptor) = (shared.clone(), acceptor.clone());
        tokio::spawn(async move {
            match acceptor {
                // A client that does not shake hands is a test of its own.
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(socket).await {
                        serve(stream, shared).await;
                    }
                }
                None => serve(socket, shared).await,
            }
        });
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = service_fn(move |request| handle(shared.clone(), request));
    // Cut connections end in errors here; they are the point.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Stream>> {
    let (head, body) = request.into_parts();
    let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
    let entry = {
        let mut log = lock(&shared.log);
        log.push(Recorded {
            method: head.method.clone(),
            path: path.clone(),
            query: query.clone(),
            headers: head.headers.clone(),
            status: 0,
        });
        log.len() - 1
    };
    let action = lock(&shared.faults).iter_mut().find_map(|fault| fault.strike(&head.method, &path));
    match &action {
        Some(Action::Hang) => std::future::pending().await,
        Some(Action::Disconnect) => return Err(io::Error::other("disconnected on request")),
        Some(Action::CutUpload(after)) => {
            read_body(body, *after).await?;
            return Err(io::Error::other("upload cut on request"));
        }
        Some(Action::RevokeTokens) => lock(&shared.tokens).revoke(),
        _ => {}
    }
    let answered_by_fault = action.as_ref().and_then(|action| fixed_answer(action, &path));
    let reply = match answered_by_fault {
        Some(reply) => reply,
        None => {
            let body = read_body(body, u64::MAX).await?;
            let mut headers = head.headers;
            if let Some(Action::IgnoreRange) = action {
                headers.remove(header::RANGE);
            }
            let ask =
                Ask { method: &head.method, query: &query, headers: &headers, body: &body, route: Route::of(&path) };
            truth(&shared, &path, &ask)
        }
    };
    // A test may have cleared the log meanwhile.
    if let Some(entry) = lock(&shared.log).get_mut(entry) {
        entry.status = reply.status.as_u16();
    }
    Ok(send(&head.method, reply, action))
}

/// Answers that need no look at the request.
fn fixed_answer(action: &Action, path: &str) -> Option<Reply> {
    match action {
        Action::Answer { status, headers, body } => Some(Reply {
            status: StatusCode::from_u16(*status).expect("tests use real statuses"),
            headers: headers.clone(),
            body: Bytes::from(body.clone()),
        }),
        Action::Redirect(to) => {
            let location = format!("{to}{path}?signature=secret-signature");
            Some(Reply::empty(StatusCode::TEMPORARY_REDIRECT).with("location", location))
        }
        _ => None,
    }
}

fn truth(shared: &Shared, path: &str, ask: &Ask<'_>) -> Reply {
    if let (Auth::Token(auth), "/token") = (&shared.options.auth, path) {
        let (status, body) = auth::token_server(shared, auth, ask.method, ask.query, ask.headers, ask.body);
        return Reply { body: body.into(), ..Reply::empty(status).with("content-type", "application/json") };
    }
    // Requests with a signature are those of a redirected blob: the signature is the login.
    if !ask.query.contains("signature=")
        && let Err(challenge) = auth::check(shared, ask.headers, &ask.route.needs(ask.method, ask.query))
    {
        return Reply::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required")
            .with("www-authenticate", challenge);
    }
    lock(&shared.state).answer(&shared.options, &shared.base, ask)
}

/// At most `limit` bytes of a body, as they come.
async fn read_body(mut body: Incoming, limit: u64) -> io::Result<Bytes> {
    let mut read = BytesMut::new();
    while (read.len() as u64) < limit {
        let Some(frame) = body.frame().await else { break };
        if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
            read.extend_from_slice(&data);
        }
    }
    Ok(read.freeze())
}

fn send(method: &Method, reply: Reply, action: Option<Action>) -> Response<Stream> {
    let Reply { status, headers, mut body } = reply;
    let mut length = Some(body.len() as u64);
    let stream = match action {
        Some(Action::WrongBytes) => {
            body = body.iter().map(|byte| byte ^ 0x55).collect();
            Stream::whole(body)
        }
        Some(Action::WrongLength(more)) => {
            let wanted = body.len().saturating_add_signed(more as isize);
            let mut longer = BytesMut::from(body);
            longer.resize(wanted, b'x');
            length = Some(wanted as u64);
            Stream::whole(longer.freeze())
        }
        Some(Action::Cut(after)) => Stream::cut(&body, after),
        Some(Action::EndEarly(after)) => {
            length = None;
            Stream::whole(body.slice(..body.len().min(after as usize)))
        }
        Some(Action::Drip(piece, pause)) => Stream::drip(body, piece, pause),
        _ if *method == Method::HEAD => Stream::whole(Bytes::new()),
        _ => Stream::whole(body),
    };
    debug_assert!(!stream.is_end_stream(), "hyper must not learn the true length");
    let mut response = Response::new(stream);
    *response.status_mut() = status;
    if let Some(length) = length.filter(|_| status != StatusCode::NO_CONTENT) {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    for (name, value) in headers {
        let value = HeaderValue::from_str(&value).expect("headers of the test registry are text");
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
    response
}
