//! Taking a definition in that somebody else made: its ops keep their bytes and digests.

use std::collections::{BTreeMap, HashMap};

use base::{Digest, Platform};
use prost::Message as _;

use super::{Builder, Constraints, Error, Index, Op, Output, Place, State};
use crate::pb;

/// An op whose bytes are fixed.
#[derive(Debug)]
pub(super) struct RawNode {
    pub bytes: Vec<u8>,
    pub inputs: Vec<Output>,
    pub metadata: pb::OpMetadata,
}

impl Builder {
    /// Takes a definition in. An empty one is the empty file system.
    pub fn import(&mut self, definition: &pb::Definition) -> Result<State, Error> {
        let bad = |what: String| Error::Import(what);
        if definition.def.is_empty() {
            return Ok(State::scratch());
        }
        let mut ops: HashMap<String, (&Vec<u8>, pb::Op)> = HashMap::new();
        let mut last = None;
        for bytes in &definition.def {
            let op = pb::Op::decode(bytes.as_slice()).map_err(|e| bad(e.to_string()))?;
            let digest = Digest::of(bytes).to_string();
            last = Some(op.clone());
            ops.insert(digest, (bytes, op));
        }
        let last = last.filter(|op| op.op.is_none() && op.inputs.len() == 1);
        let head = last.ok_or_else(|| bad("it does not end in one output".to_owned()))?.inputs[0].clone();
        let mut placed: BTreeMap<String, u32> = BTreeMap::new();
        let mut stack = vec![head.digest.clone()];
        // A digest cannot contain itself, so that this ends: what is not in the definition is refused.
        while let Some(digest) = stack.last().cloned() {
            if placed.contains_key(&digest) {
                stack.pop();
                continue;
            }
            let (bytes, op) = ops.get(&digest).ok_or_else(|| bad(format!("{digest} is missing")))?;
            let before = stack.len();
            stack.extend(op.inputs.iter().filter(|i| !placed.contains_key(&i.digest)).map(|i| i.digest.clone()));
            if stack.len() > before {
                continue;
            }
            stack.pop();
            let inputs = op.inputs.iter().map(|input| place(placed[&input.digest], input.index)).collect();
            let metadata = definition.metadata.get(&digest).cloned().unwrap_or_default();
            let node = self.nodes.len() as u32;
            self.push(Op::Raw(Box::new(RawNode { bytes: (*bytes).clone(), inputs, metadata })), Constraints::default());
            placed.insert(digest, node);
        }
        let platform = ops[&head.digest].1.platform.as_ref().map(|p| Platform {
            architecture: p.architecture.clone(),
            os: p.os.clone(),
            os_version: p.os_version.clone(),
            os_features: p.os_features.clone(),
            variant: p.variant.clone(),
        });
        Ok(State::new(Some(place(placed[&head.digest], head.index)), platform.as_ref()))
    }
}

fn place(node: u32, index: i64) -> Output {
    Output(Place::Op { node, index: Index::Fixed(index) })
}
