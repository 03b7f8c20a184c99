//! `moby.exporter.v1.Exporter`: outputs of a build that its client names when the result is there. The crate with the other
//! messages does not have these.

use std::collections::HashMap;

/// The service.
pub const SERVICE: &str = "moby.exporter.v1.Exporter";
/// Unary: [`FindExportersRequest`] to [`FindExportersResponse`].
pub const FIND: &str = "/moby.exporter.v1.Exporter/FindExporters";
/// Unary: [`FinalizeExportRequest`] to [`FinalizeExportResponse`].
pub const FINALIZE: &str = "/moby.exporter.v1.Exporter/FinalizeExport";

/// Asks what is to become of a result.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FindExportersRequest {
    /// The frontend's words about the result.
    #[prost(map = "string, bytes", tag = "1")]
    pub metadata: HashMap<String, Vec<u8>>,
    /// Its trees, as the client may ask the gateway for them.
    #[prost(string, repeated, tag = "2")]
    pub refs: Vec<String>,
}

/// Answers [`FindExportersRequest`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct FindExportersResponse {
    /// Outputs beside those of the request.
    #[prost(message, repeated, tag = "1")]
    pub exporters: Vec<ExporterRequest>,
}

/// One output.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExporterRequest {
    /// `image`, `oci`, ..
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// Its attributes.
    #[prost(map = "string, string", tag = "2")]
    pub attrs: HashMap<String, String>,
}

/// Tells that all outputs are written.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FinalizeExportRequest {
    /// What the answer to the build is going to say.
    #[prost(map = "string, string", tag = "1")]
    pub exporter_response: HashMap<String, String>,
}

/// Answers [`FinalizeExportRequest`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct FinalizeExportResponse {}
