//! A question to a frontend of a daemon, in the place of a build: its answer is metadata, which only whoever drives a build
//! gets to see.

use std::collections::BTreeMap;

use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::control_client::ControlClient;
use proto::moby::buildkit::v1::frontend as gateway;
use proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use proto::rpc;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::address::LARGEST;

/// Begins a build whose frontend we are, has the daemon's frontend answer, and returns that.
pub(super) async fn ask(
    mut control: ControlClient<Channel>,
    channel: Channel,
    mut message: Request<wire::SolveRequest>,
    answer: &mut BTreeMap<String, Vec<u8>>,
) -> Result<Response<wire::SolveResponse>, Status> {
    let begun = message.get_mut();
    let mut options = begun.frontend_attrs.clone();
    let caps = options.entry("frontend.caps".to_owned()).or_default();
    if caps.is_empty() {
        "moby.buildkit.frontend.subrequests".clone_into(caps);
    }
    let question = gateway::SolveRequest {
        frontend: std::mem::take(&mut begun.frontend),
        frontend_opt: options,
        frontend_inputs: begun.frontend_inputs.clone(),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..gateway::SolveRequest::default()
    };
    let mut metadata = MetadataMap::new();
    let reference = begun.r#ref.parse().map_err(|_| Status::internal("a reference that is no header"))?;
    metadata.insert("buildkit-controlapi-buildid", reference);
    let request = |message| Request::from_parts(metadata.clone(), Default::default(), message);
    let mut bridge =
        LlbBridgeClient::new(channel).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
    let asking = async {
        let answered = bridge.solve(request(question)).await;
        let returned = match &answered {
            Ok(response) => gateway::ReturnRequest { result: response.get_ref().result.clone(), error: None },
            Err(status) => {
                let (code, message) = (status.code() as i32, status.message().to_owned());
                gateway::ReturnRequest { result: None, error: Some(rpc::Status { code, message, details: Vec::new() }) }
            }
        };
        let metadata = metadata.clone();
        bridge.r#return(Request::from_parts(metadata, Default::default(), returned)).await?;
        Ok::<_, Status>(answered?.into_inner().result.unwrap_or_default().metadata)
    };
    let (solved, answered) = tokio::join!(control.solve(message), asking);
    match (solved, answered) {
        // There never was a build to ask in.
        (Err(status), Err(other)) if other.code() == Code::NotFound => Err(status),
        // What the frontend says counts more than that the build failed by it.
        (_, Err(status)) => Err(status),
        (solved, Ok(answered)) => {
            answer.extend(answered);
            solved
        }
    }
}
