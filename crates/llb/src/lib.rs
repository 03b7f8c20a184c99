//! LLB, the waist: a graph of marshalled ops addressed by digest.
//!
//! Everything above makes LLB, everything below solves it. [`pb`] are the wire messages; [`Graph`] is a
//! definition that was read, checked and put in order; [`build`] makes definitions, byte for byte as BuildKit's Go
//! client does. Digests are always taken over the bytes that were received, never over a re-encoding.
//! No I/O, no async.

pub mod build;
mod go_json;
mod graph;
pub mod json;
pub mod key;
mod passthrough;
pub mod path;
pub mod policy;
pub mod text;

pub use graph::{Edge, Error, Graph, Limits, Vertex, VertexId};
pub use passthrough::Passthrough;
pub use proto::{LinuxResources, pb, read_definition};

/// The bytes of a definition, for those who only carry it.
pub fn marshalled(definition: &pb::Definition) -> Vec<u8> {
    use proto::Message as _;
    definition.encode_to_vec()
}

/// The one source of a definition; none where it has several, or none.
pub fn only_source(definition: &pb::Definition) -> Result<Option<pb::SourceOp>, Error> {
    use proto::Message as _;
    let mut found = None;
    for (index, bytes) in definition.def.iter().enumerate() {
        let op = pb::Op::decode(bytes.as_slice()).map_err(|source| Error::Decode { index, source })?;
        let Some(pb::op::Op::Source(source)) = op.op else { continue };
        if found.replace(source).is_some() {
            return Ok(None);
        }
    }
    Ok(found)
}
