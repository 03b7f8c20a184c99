//! `grpc.health.v1.Health`: what probes ask, and clients before they trust a connection.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use proto::health::health_check_response::ServingStatus;
use proto::health::health_server;
use proto::health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};
use tonic::{Request, Response, Status};

use crate::Shared;

pub(crate) struct Health(pub(crate) Arc<Shared>);

impl Health {
    fn answer(&self, service: &str) -> Result<HealthCheckResponse, Status> {
        if !matches!(service, "" | "moby.buildkit.v1.Control") {
            return Err(Status::not_found(format!("no service `{service}`")));
        }
        let status = if self.0.draining.is_cancelled() { ServingStatus::NotServing } else { ServingStatus::Serving };
        Ok(HealthCheckResponse { status: status.into() })
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.answer(&request.get_ref().service).map(Response::new)
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses = [(String::new(), self.answer("")?)].into();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        use futures_util::StreamExt as _;
        let first = self.answer(&request.get_ref().service)?;
        let draining = self.0.draining.clone();
        let last = async move {
            draining.cancelled().await;
            Ok(HealthCheckResponse { status: ServingStatus::NotServing.into() })
        };
        let stream = futures_util::stream::iter([Ok(first)]).chain(futures_util::stream::once(last));
        Ok(Response::new(Box::pin(stream)))
    }
}
