//! Limits of steps in the metadata of their ops, which the crate with the other messages does not have yet. Here they are an
//! entry among the texts that nobody parses, where they stay with the op wherever it goes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::{DecodeError, Message};

use crate::pb::{Definition, OpMetadata};

const ENTRY: &str = "hullworks.linux-resources";

/// `pb.LinuxResources`. What is zero, or empty, is not limited.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LinuxResources {
    /// Bytes of memory.
    #[prost(int64, tag = "1")]
    pub memory: i64,
    /// Bytes of memory and swap together; -1 is no limit.
    #[prost(int64, tag = "2")]
    pub memory_swap: i64,
    /// Weight against others.
    #[prost(uint64, tag = "3")]
    pub cpu_shares: u64,
    /// The period in microseconds.
    #[prost(uint64, tag = "4")]
    pub cpu_period: u64,
    /// Microseconds of processor time in a period.
    #[prost(int64, tag = "5")]
    pub cpu_quota: i64,
    /// Processors: `0-3,7`.
    #[prost(string, tag = "6")]
    pub cpuset_cpus: String,
    /// Memory nodes.
    #[prost(string, tag = "7")]
    pub cpuset_mems: String,
}

/// The part of `pb.Definition` that matters here.
#[derive(Clone, PartialEq, Message)]
struct Limited {
    #[prost(btree_map = "string, message", tag = "2")]
    metadata: std::collections::BTreeMap<String, LimitedOp>,
}

#[derive(Clone, PartialEq, Message)]
struct LimitedOp {
    #[prost(message, optional, tag = "7")]
    resources: Option<LinuxResources>,
}

impl LinuxResources {
    /// Those of an op.
    pub fn of(metadata: &OpMetadata) -> Option<LinuxResources> {
        let bytes = STANDARD.decode(metadata.description.get(ENTRY)?).ok()?;
        LinuxResources::decode(bytes.as_slice()).ok()
    }

    /// Gives them to an op.
    pub fn set(&self, metadata: &mut OpMetadata) {
        metadata.description.insert(ENTRY.to_owned(), STANDARD.encode(self.encode_to_vec()));
    }

    /// Whether a text of an op is this entry, which is for no reader.
    pub fn is_entry(key: &str) -> bool {
        key == ENTRY
    }
}

/// Reads a definition with the limits of its steps.
pub fn read_definition(bytes: &[u8]) -> Result<Definition, DecodeError> {
    let mut definition = Definition::decode(bytes)?;
    for (digest, op) in Limited::decode(bytes)?.metadata {
        if let (Some(resources), Some(metadata)) = (op.resources, definition.metadata.get_mut(&digest)) {
            resources.set(metadata);
        }
    }
    Ok(definition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_the_wire_stay_with_their_op() {
        let resources = LinuxResources { memory: 1 << 26, memory_swap: -1, ..LinuxResources::default() };
        let limited = Limited { metadata: [("a".to_owned(), LimitedOp { resources: Some(resources.clone()) })].into() };
        let plain = Definition {
            def: vec![vec![1]],
            metadata: [("b".to_owned(), OpMetadata { ignore_cache: true, ..OpMetadata::default() })].into(),
            ..Definition::default()
        };
        let bytes = [limited.encode_to_vec(), plain.encode_to_vec()].concat();
        let read = read_definition(&bytes).expect("read");
        assert_eq!(read.def, [[1]]);
        assert_eq!(LinuxResources::of(&read.metadata["a"]), Some(resources.clone()));
        assert_eq!(LinuxResources::of(&read.metadata["b"]), None);
        // It has been carried on by somebody who knows nothing of it.
        let again = read_definition(&read.encode_to_vec()).expect("read");
        assert_eq!(LinuxResources::of(&again.metadata["a"]), Some(resources));
    }
}
