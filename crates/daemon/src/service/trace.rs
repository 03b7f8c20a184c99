//! `opentelemetry.proto.collector.trace.v1.TraceService`: spans that clients hand over.

use std::sync::Arc;

use proto::otlp::{EXPORT, ExportTraceServiceRequest, ExportTraceServiceResponse, SERVICE};
use session::remote::service::Calls;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::Shared;

/// The service.
#[derive(Clone)]
pub(crate) struct TraceService(pub(crate) Arc<Shared>);

impl Calls for TraceService {
    const NAME: &'static str = SERVICE;

    async fn call(self, request: http::Request<Body>) -> http::Response<Body> {
        let traces = self.0.traces.clone();
        if request.uri().path() != EXPORT {
            return Status::unimplemented("there is only Export").into_http();
        }
        let codec = ProstCodec::<ExportTraceServiceResponse, ExportTraceServiceRequest>::default();
        let call = tower::service_fn(move |request: Request<ExportTraceServiceRequest>| {
            traces.take(request.into_inner().resource_spans);
            async { Ok(Response::new(ExportTraceServiceResponse {})) }
        });
        Grpc::new(codec).unary(call, request).await
    }
}
