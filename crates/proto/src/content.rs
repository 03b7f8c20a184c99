//! `containerd.services.content.v1`: blobs by digest, as a client's session offers and takes them, and as a daemon's control
//! socket lists what it has. Written down, not generated: the crate that has all of containerd's messages builds a hundred
//! others with them.

use std::collections::HashMap;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bytes::Bytes;

/// The service.
pub const SERVICE: &str = "containerd.services.content.v1.Content";
/// Unary: [`InfoRequest`] to [`InfoResponse`].
pub const INFO: &str = "/containerd.services.content.v1.Content/Info";
/// [`ReadContentRequest`] to a stream of [`ReadContentResponse`].
pub const READ: &str = "/containerd.services.content.v1.Content/Read";
/// A stream of [`WriteContentRequest`], each answered by a [`WriteContentResponse`].
pub const WRITE: &str = "/containerd.services.content.v1.Content/Write";
/// [`ListContentRequest`] to a stream of [`ListContentResponse`].
pub const LIST: &str = "/containerd.services.content.v1.Content/List";
/// Unary: [`StatusRequest`] to a status of one writing.
pub const STATUS: &str = "/containerd.services.content.v1.Content/Status";
/// Unary: [`ListStatusesRequest`] to [`ListStatusesResponse`].
pub const LIST_STATUSES: &str = "/containerd.services.content.v1.Content/ListStatuses";
/// Metadata that says which of a client's stores is meant.
pub const STORE: &str = "buildkit-attachable-store-id";

/// A blob.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Info {
    /// Its digest.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// Its bytes.
    #[prost(int64, tag = "2")]
    pub size: i64,
    /// When it was complete.
    #[prost(message, optional, tag = "3")]
    pub created_at: Option<Timestamp>,
    /// When what is noted about it changed last.
    #[prost(message, optional, tag = "4")]
    pub updated_at: Option<Timestamp>,
    /// What is noted about it.
    #[prost(map = "string, string", tag = "5")]
    pub labels: HashMap<String, String>,
}

/// Asks whether a blob is there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// Answers [`InfoRequest`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoResponse {
    /// The blob.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// Asks for bytes of a blob.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadContentRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// From where on.
    #[prost(int64, tag = "2")]
    pub offset: i64,
    /// How many; 0 for all that follow.
    #[prost(int64, tag = "3")]
    pub size: i64,
}

/// Some bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadContentResponse {
    /// Where they stand.
    #[prost(int64, tag = "1")]
    pub offset: i64,
    /// They.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
}

/// What a message of a writer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WriteAction {
    /// Asks how much is there already.
    Stat = 0,
    /// Brings bytes.
    Write = 1,
    /// All bytes are there.
    Commit = 2,
}

/// One message of a writer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteContentRequest {
    /// What it is for.
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    /// The name of the writing, in the first message.
    #[prost(string, tag = "2")]
    pub r#ref: String,
    /// The size of the whole, once it is known.
    #[prost(int64, tag = "3")]
    pub total: i64,
    /// The digest of the whole, once it is known.
    #[prost(string, tag = "4")]
    pub expected: String,
    /// Where the data stand.
    #[prost(int64, tag = "5")]
    pub offset: i64,
    /// Bytes.
    #[prost(bytes = "bytes", tag = "6")]
    pub data: Bytes,
    /// What is to be noted about the blob.
    #[prost(map = "string, string", tag = "7")]
    pub labels: HashMap<String, String>,
}

/// Answers a message of a writer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteContentResponse {
    /// Which kind of message.
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    /// How many bytes are there.
    #[prost(int64, tag = "4")]
    pub offset: i64,
    /// The size of the whole.
    #[prost(int64, tag = "5")]
    pub total: i64,
    /// The digest of the whole, once it is there.
    #[prost(string, tag = "6")]
    pub digest: String,
}

/// Asks what is there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListContentRequest {
    /// Only what one of these matches, in containerd's language; everything if there are none.
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// Some of what is there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListContentResponse {
    /// Blobs.
    #[prost(message, repeated, tag = "1")]
    pub info: Vec<Info>,
}

/// Asks how a writing goes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusRequest {
    /// Its name.
    #[prost(string, tag = "1")]
    pub r#ref: String,
}

/// Asks how all writings go.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListStatusesRequest {
    /// As of [`ListContentRequest`].
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// A writing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteStatus {
    /// When it began.
    #[prost(message, optional, tag = "1")]
    pub started_at: Option<Timestamp>,
    /// When bytes came last.
    #[prost(message, optional, tag = "2")]
    pub updated_at: Option<Timestamp>,
    /// Its name.
    #[prost(string, tag = "3")]
    pub r#ref: String,
    /// How many bytes are there.
    #[prost(int64, tag = "4")]
    pub offset: i64,
    /// How many there will be; 0 where that is not known.
    #[prost(int64, tag = "5")]
    pub total: i64,
    /// The digest of the whole, where it is known.
    #[prost(string, tag = "6")]
    pub expected: String,
}

/// Answers [`ListStatusesRequest`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListStatusesResponse {
    /// The writings.
    #[prost(message, repeated, tag = "1")]
    pub statuses: Vec<WriteStatus>,
}
