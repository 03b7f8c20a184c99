//! gRPC services whose messages are written down by hand: what generated code does for the others.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::server::NamedService;

/// Answers the calls of one service.
pub trait Calls: Clone + Send + Sync + 'static {
    /// What the service is called, such as `moby.filesync.v1.FileSync`.
    const NAME: &'static str;

    /// Answers one call; its path names the method.
    fn call(self, request: http::Request<Body>) -> impl Future<Output = http::Response<Body>> + Send;
}

/// Makes a service of who answers its calls.
#[derive(Clone, Debug)]
pub struct Service<C>(pub C);

impl<C: Calls> NamedService for Service<C> {
    const NAME: &'static str = C::NAME;
}

impl<C: Calls> tower::Service<http::Request<Body>> for Service<C> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.clone().call(request);
        Box::pin(async move { Ok(answer.await) })
    }
}
