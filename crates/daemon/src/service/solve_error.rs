//! What an op that failed left, as BuildKit's `errdefs.Solve`: by the ids in it a client makes containers on that.

use base::Fault;
use engine::{Ref, Subject};
use proto::Message as _;
use serde_json::{Value, json};
use tonic::Status;

use super::error;

/// The status of a fault. `name` gives what was left an id for the client.
pub(super) fn status(fault: &Fault, name: impl Fn(Option<Ref>) -> String) -> Status {
    let Some(wreck) = engine::wreck(fault) else { return error::status(fault) };
    let Some(op) = proto::json::OP.json(&wreck.op().encode_to_vec()) else { return error::status(fault) };
    let ids = |trees: Vec<Option<Ref>>| -> Vec<String> { trees.into_iter().map(&name).collect() };
    let mut solve = json!({
        "inputIDs": ids(wreck.inputs()),
        "mountIDs": ids(wreck.mounts()),
        "op": op,
        "description": wreck.description(),
    });
    let index = |index: usize| -> Value { json!({ "index": index }) };
    match wreck.subject() {
        Subject::Op => {}
        Subject::FileAction(action) => solve["file"] = index(action),
        Subject::Content(input) => solve["cache"] = index(input),
    }
    error::status_with(fault, Some(error::detail("errdefs.Solve", &solve)))
}
