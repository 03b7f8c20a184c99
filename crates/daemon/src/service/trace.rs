//! `opentelemetry.proto.collector.trace.v1.TraceService`: spans that clients hand over.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use proto::otlp::{EXPORT, ExportTraceServiceRequest, ExportTraceServiceResponse, SERVICE};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::Shared;

/// The service.
#[derive(Clone)]
pub(crate) struct TraceService(pub(crate) Arc<Shared>);

impl NamedService for TraceService {
    const NAME: &'static str = SERVICE;
}

impl tower::Service<http::Request<Body>> for TraceService {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, std::convert::Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let traces = self.0.traces.clone();
        Box::pin(async move {
            if request.uri().path() != EXPORT {
                return Ok(Status::unimplemented("there is only Export").into_http());
            }
            let codec = ProstCodec::<ExportTraceServiceResponse, ExportTraceServiceRequest>::default();
            let call = tower::service_fn(move |request: Request<ExportTraceServiceRequest>| {
                traces.take(request.into_inner().resource_spans);
                async { Ok(Response::new(ExportTraceServiceResponse {})) }
            });
            Ok(Grpc::new(codec).unary(call, request).await)
        })
    }
}
