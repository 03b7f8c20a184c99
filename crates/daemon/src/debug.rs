//! The debug address: plain HTTP for probes and for Prometheus.
//!
//! It answers from the start of the program on, while the state directory is still waited for: then the daemon is alive and
//! not ready. When it drains, it is not ready any more.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use futures_util::StreamExt as _;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use crate::builds::Builds;
use crate::listen::Listener;
use crate::metrics::{self, Metrics};

/// How long a client may take to say what it wants.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// What is told of the daemon.
#[derive(Default)]
pub struct Debug {
    pub(crate) metrics: Arc<Metrics>,
    daemon: OnceLock<Daemon>,
}

struct Daemon {
    builds: Arc<Builds>,
    draining: CancellationToken,
}

impl Debug {
    /// From now on the daemon takes builds.
    pub(crate) fn ready(&self, builds: &Arc<Builds>, draining: &CancellationToken) {
        // It is started once.
        let _ = self.daemon.set(Daemon { builds: builds.clone(), draining: draining.clone() });
    }

    /// Answers on a socket, until the program ends.
    pub async fn serve(self: Arc<Self>, listener: Listener) {
        tracing::info!(address = %listener.address(), "metrics and health are told");
        let mut connections = std::pin::pin!(listener.connections());
        while let Some(connection) = connections.next().await {
            let Ok(connection) = connection else { continue };
            let debug = self.clone();
            tokio::spawn(async move {
                let answering = service_fn(move |request: Request<Incoming>| {
                    let answer = debug.answer(request.method(), request.uri().path());
                    async move { Ok::<_, Infallible>(answer) }
                });
                let mut server = hyper::server::conn::http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                // Whoever hangs up gets no answer.
                let _ = server.serve_connection(TokioIo::new(connection), answering).await;
            });
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<String> {
        let plain = |status, text: &str| response(status, "text/plain; charset=utf-8", format!("{text}\n"));
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET");
            refused.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match path {
            "/metrics" => {
                let running = self.daemon.get().map_or(0, |daemon| daemon.builds.running());
                response(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.text(running))
            }
            "/healthz" => plain(StatusCode::OK, "ok"),
            "/readyz" => match self.daemon.get() {
                None => plain(StatusCode::SERVICE_UNAVAILABLE, "starting"),
                Some(daemon) if daemon.draining.is_cancelled() => plain(StatusCode::SERVICE_UNAVAILABLE, "draining"),
                Some(_) => plain(StatusCode::OK, "ok"),
            },
            _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz"),
        }
    }
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_comes_late_and_goes_early() {
        let debug = Debug::default();
        let status = |debug: &Debug, path: &str| debug.answer(&Method::GET, path).status().as_u16();
        assert_eq!((status(&debug, "/healthz"), status(&debug, "/readyz")), (200, 503));
        let draining = CancellationToken::new();
        debug.ready(&Arc::default(), &draining);
        assert_eq!((status(&debug, "/readyz"), status(&debug, "/metrics")), (200, 200));
        draining.cancel();
        assert_eq!((status(&debug, "/healthz"), status(&debug, "/readyz")), (200, 503));
        assert_eq!(status(&debug, "/debug/pprof/"), 404);
        assert_eq!(debug.answer(&Method::POST, "/healthz").status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
