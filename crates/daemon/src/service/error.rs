//! A fault as a gRPC status with BuildKit's typed details, from which stock clients print the Dockerfile's lines.
//!
//! Details are `Any` messages whose value is JSON, named `github.com/moby/buildkit/errdefs.Source+json` and the like.

use base::{Fault, Kind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::Message as _;
use proto::protobuf::Any;
use serde_json::{Value, json};
use tonic::{Code, Status};

/// The status that a client gets.
pub fn status(fault: &Fault) -> Status {
    let code = match fault.kind() {
        Kind::Cancelled => Code::Cancelled,
        Kind::Internal => Code::Internal,
        // BuildKit's own errors have no code, and clients put any other in front of the message.
        Kind::User | Kind::Environment | Kind::Remote => Code::Unknown,
    };
    let message = match fault.get_hint() {
        Some(hint) => format!("{}\nhint: {hint}", fault.cause()),
        None => fault.cause(),
    };
    let details = details(fault);
    let encoded = proto::rpc::Status { code: code as i32, message: message.clone(), details }.encode_to_vec();
    Status::with_details(code, message, encoded.into())
}

fn details(fault: &Fault) -> Vec<Any> {
    let mut details = Vec::new();
    let mut add = |kind: &str, value: Value| {
        let type_url = format!("github.com/moby/buildkit/{kind}+json");
        details.push(Any { type_url, value: value.to_string().into_bytes() });
    };
    for (file, spans) in fault.places() {
        let position = |(line, character): (u32, u32)| json!({ "line": line, "character": character });
        let ranges: Vec<Value> =
            spans.iter().map(|span| json!({ "start": position(span.start), "end": position(span.end) })).collect();
        let info = json!({
            "filename": file.name,
            "data": STANDARD.encode(&file.data),
            "language": file.language,
        });
        add("errdefs.Source", json!({ "info": info, "ranges": ranges }));
    }
    if let Some((digest, _)) = fault.get_vertex() {
        add("errdefs.Vertex", json!({ "digest": digest }));
    }
    if let Some(code) = fault.get_exit_code() {
        add("gatewayapi.ExitMessage", json!({ "Code": code }));
    }
    details
}
