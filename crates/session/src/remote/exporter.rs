//! `Exporter`: outputs that a client names when the result is there. Both ends.

use std::collections::BTreeMap;

use base::Fault;
use proto::exporter::{
    ExporterRequest, FINALIZE, FIND, FinalizeExportRequest, FinalizeExportResponse, FindExportersRequest,
    FindExportersResponse, SERVICE,
};
use tonic::body::Body;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::server::Grpc;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use super::serve::refused;
use super::service::Calls;
use super::{MAX_MESSAGE, RemoteSession};
use crate::{LateExport, SharedSession};

/// Asks a client; one that does not answer such questions has no wishes.
pub(super) async fn find(
    session: &RemoteSession,
    about: BTreeMap<String, Vec<u8>>,
    refs: Vec<String>,
) -> Result<Vec<LateExport>, Fault> {
    let request = FindExportersRequest { metadata: about.into_iter().collect(), refs };
    let answer: Option<FindExportersResponse> = ask(session, "cannot ask for further outputs", FIND, request).await?;
    let exports = answer.unwrap_or_default().exporters.into_iter();
    Ok(exports.map(|export| LateExport { kind: export.r#type, attrs: export.attrs.into_iter().collect() }).collect())
}

/// Tells it what the outputs came to.
pub(super) async fn finalize(session: &RemoteSession, response: &BTreeMap<String, String>) -> Result<(), Fault> {
    let request = FinalizeExportRequest { exporter_response: response.clone().into_iter().collect() };
    let doing = "the client does not accept the outputs";
    ask::<_, FinalizeExportResponse>(session, doing, FINALIZE, request).await.map(drop)
}

/// None where the client does not answer that question.
async fn ask<Question, Answer>(
    session: &RemoteSession,
    doing: &str,
    method: &'static str,
    question: Question,
) -> Result<Option<Answer>, Fault>
where
    Question: proto::Message + Send + Sync + 'static,
    Answer: proto::Message + Default + Send + Sync + 'static,
{
    if !session.supports(method) {
        return Ok(None);
    }
    let mut grpc = tonic::client::Grpc::new(session.channel()).max_decoding_message_size(MAX_MESSAGE);
    let call = async {
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<Question, Answer>::default();
        match grpc.unary(Request::new(question), PathAndQuery::from_static(method), codec).await {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => Ok(None),
            Err(status) => Err(status),
        }
    };
    session.ask(doing, call).await
}

/// Answers for a session.
#[derive(Clone)]
pub(super) struct Exporters(pub(super) SharedSession);

impl Calls for Exporters {
    const NAME: &'static str = SERVICE;

    async fn call(self, request: http::Request<Body>) -> http::Response<Body> {
        let session = self.0;
        match request.uri().path() {
            FIND => {
                let codec = ProstCodec::<FindExportersResponse, FindExportersRequest>::default();
                let call = tower::service_fn(move |request| found(session.clone(), request));
                Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE).unary(call, request).await
            }
            FINALIZE => {
                let codec = ProstCodec::<FinalizeExportResponse, FinalizeExportRequest>::default();
                let call = tower::service_fn(move |request| finalized(session.clone(), request));
                Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE).unary(call, request).await
            }
            _ => Status::unimplemented("no such method").into_http(),
        }
    }
}

async fn found(
    session: SharedSession,
    request: Request<FindExportersRequest>,
) -> Result<Response<FindExportersResponse>, Status> {
    let FindExportersRequest { metadata, refs } = request.into_inner();
    let exports = session.late_exports(metadata.into_iter().collect(), refs).await.map_err(refused)?;
    let exporters = exports
        .into_iter()
        .map(|export| ExporterRequest { r#type: export.kind, attrs: export.attrs.into_iter().collect() })
        .collect();
    Ok(Response::new(FindExportersResponse { exporters }))
}

async fn finalized(
    session: SharedSession,
    request: Request<FinalizeExportRequest>,
) -> Result<Response<FinalizeExportResponse>, Status> {
    let response = request.into_inner().exporter_response.into_iter().collect();
    session.exported(&response).await.map_err(refused)?;
    Ok(Response::new(FinalizeExportResponse {}))
}
