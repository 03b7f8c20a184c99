//! Counts calls, and how long they take, for Prometheus.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::metrics::Metrics;

/// Wraps services; each call is counted when its answer has ended.
#[derive(Clone)]
pub(crate) struct Counting(pub(crate) Arc<Metrics>);

impl<S> tower::Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, metrics: self.0.clone() }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub(crate) struct Counted<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> tower::Service<http::Request<Body>> for Counted<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().trim_start_matches('/').to_owned();
        let call = Call { metrics: self.metrics.clone(), method, began: Instant::now(), code: None };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut call = call;
            let (head, body) = answer.await?.into_parts();
            // What fails at once says so in the head.
            call.code = Status::from_header_map(&head.headers).map(|status| status.code());
            Ok(http::Response::from_parts(head, Body::new(Answer { body, call })))
        })
    }
}

/// A call under way.
struct Call {
    metrics: Arc<Metrics>,
    method: String,
    began: Instant,
    code: Option<Code>,
}

impl Drop for Call {
    fn drop(&mut self) {
        // A client that does not wait for the end wants it no more.
        let code = self.code.unwrap_or(Code::Cancelled);
        // Names that nobody serves would be as many as clients like.
        if code != Code::Unimplemented {
            self.metrics.called(&self.method, code, self.began.elapsed());
        }
    }
}

struct Answer {
    body: Body,
    call: Call,
}

impl http_body::Body for Answer {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.code = Status::from_header_map(trailers).map(|status| status.code());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
