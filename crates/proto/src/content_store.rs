//! The rest of `containerd.services.content.v1` ([`content`](crate::content) has the other half): what is asked of a store
//! that lists what it has, as a daemon's control socket offers it. Written down, not generated: the crate that has all of
//! containerd's messages builds a hundred others with them.

use std::collections::HashMap;

use bollard_buildkit_proto::google::protobuf::Timestamp;

/// [`ListContentRequest`] to a stream of [`ListContentResponse`].
pub const LIST: &str = "/containerd.services.content.v1.Content/List";
/// Unary: [`StatusRequest`] to a status of one writing.
pub const STATUS: &str = "/containerd.services.content.v1.Content/Status";
/// Unary: [`ListStatusesRequest`] to [`ListStatusesResponse`].
pub const LIST_STATUSES: &str = "/containerd.services.content.v1.Content/ListStatuses";

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

/// Answers a question about one blob.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoResponse {
    /// The blob.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
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
