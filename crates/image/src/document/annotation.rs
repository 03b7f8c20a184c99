//! Keys of annotations that we read or write.

/// When the image was built.
pub const CREATED: &str = "org.opencontainers.image.created";
/// The tag of a manifest in `index.json`.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The full name of a manifest in `index.json`, as containerd and Docker read it.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// The manifest that this one refers to, in `index.json`.
pub const MANIFEST_SUBJECT: &str = "io.containerd.manifest.subject";
/// When the tree of a layer was made, in caches; never exported otherwise.
pub const CREATED_AT: &str = "buildkit/createdat";
/// What made a layer; never exported.
pub const DESCRIPTION: &str = "buildkit/description";
/// The diff id of a layer; never exported.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// The seconds since 1970 that no time in a layer is later than, where it was rewritten for that.
pub const REWRITTEN_TIMESTAMP: &str = "buildkit/rewritten-timestamp";
/// `attestation-manifest` on manifests that hold attestations.
pub const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// The value of [`REFERENCE_TYPE`].
pub const REFERENCE_TYPE_ATTESTATION: &str = "attestation-manifest";
/// The digest of the manifest that the attestations are about.
pub const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
/// The digest of the base image's manifest.
pub const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";
/// The name of the base image.
pub const BASE_NAME: &str = "org.opencontainers.image.base.name";

/// Whether it is for builders only and stays out of manifests.
pub fn is_internal(key: &str) -> bool {
    matches!(key, UNCOMPRESSED | CREATED_AT | DESCRIPTION) || key.starts_with("containerd.io/distribution.source.")
}
