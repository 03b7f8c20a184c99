//! `moby.buildkit.v1.types.BuildkitVersion` with field 4, which the crate with the other messages does not have yet, and the
//! answers that carry it.

use bollard_buildkit_proto::moby::buildkit::v1::types::{BuildkitVersion, WorkerRecord};
use prost::DecodeError;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{self, DecodeContext, WireType};

/// The method that answers [`Info`].
pub const INFO: &str = "/moby.buildkit.v1.Control/Info";
/// The method that answers [`Workers`].
pub const LIST_WORKERS: &str = "/moby.buildkit.v1.Control/ListWorkers";

const VERSION: u32 = 5;

/// Who builds.
#[derive(Clone, PartialEq, Message)]
pub struct Version {
    /// Where its source is.
    #[prost(string, tag = "1")]
    pub package: String,
    /// The release.
    #[prost(string, tag = "2")]
    pub version: String,
    /// The commit.
    #[prost(string, tag = "3")]
    pub revision: String,
    /// The release of the Dockerfile frontend that is built in.
    #[prost(string, tag = "4")]
    pub dockerfile: String,
}

impl From<Version> for BuildkitVersion {
    fn from(version: Version) -> BuildkitVersion {
        let Version { package, version, revision, .. } = version;
        BuildkitVersion { package, version, revision }
    }
}

/// Answers a question for the version.
#[derive(Clone, PartialEq, Message)]
pub struct Info {
    /// The version.
    #[prost(message, optional, tag = "1")]
    pub version: Option<Version>,
}

/// Answers a question for the workers.
#[derive(Clone, PartialEq, Message)]
pub struct Workers {
    /// They.
    #[prost(message, repeated, tag = "1")]
    pub workers: Vec<Worker>,
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Worker {
    /// What the crate knows of it. Its version is beside it.
    pub record: WorkerRecord,
    /// Its version.
    pub version: Version,
}

impl From<Worker> for WorkerRecord {
    fn from(worker: Worker) -> WorkerRecord {
        WorkerRecord { buildkit_version: Some(worker.version.into()), ..worker.record }
    }
}

impl Message for Worker {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.record.encode_raw(buf);
        encoding::message::encode(VERSION, &self.version, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            VERSION => encoding::message::merge(wire_type, &mut self.version, buf, context),
            _ => self.record.merge_field(tag, wire_type, buf, context),
        }
    }

    fn encoded_len(&self) -> usize {
        self.record.encoded_len() + encoding::message::encoded_len(VERSION, &self.version)
    }

    fn clear(&mut self) {
        *self = Worker::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_worker_has_all_fields() {
        let known = BuildkitVersion { package: "p".into(), version: "v".into(), revision: "r".into() };
        let record = WorkerRecord { id: "w".into(), buildkit_version: Some(known), ..Default::default() };
        let mut worker = Worker::decode(record.encode_to_vec().as_slice()).expect("read");
        assert_eq!(WorkerRecord::from(worker.clone()), record);
        worker.version.dockerfile = "1.2".into();
        let workers = Workers { workers: vec![worker] };
        let bytes = workers.encode_to_vec();
        assert!(bytes.ends_with(&[0x22, 3, b'1', b'.', b'2']), "field 4 of the version: {bytes:?}");
        assert_eq!(Workers::decode(bytes.as_slice()).expect("read"), workers);
    }
}
