//! Descriptors: what a blob is, its digest and its size.

use std::collections::BTreeMap;

use base::{Digest, Platform};
use serde::{Deserialize, Serialize};

use super::media_type;

/// Keys and values beside a document; sorted as Go writes them.
pub type Annotations = BTreeMap<String, String>;

/// Points to a blob (OCI image-spec `descriptor.md`). Field order is that of Go's `ocispec.Descriptor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// The sha256 of its bytes.
    pub digest: Digest,
    /// The number of its bytes.
    pub size: u64,
    /// Where else it can be had.
    #[serde(default, deserialize_with = "super::null_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Notes about it.
    #[serde(default, deserialize_with = "super::null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Annotations,
    /// The bytes themselves in base64, for tiny blobs. Whoever uses it checks the digest.
    #[serde(default, deserialize_with = "super::null_default", skip_serializing_if = "String::is_empty")]
    pub data: String,
    /// What a manifest's image runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// What kind of artifact a manifest holds.
    #[serde(default, deserialize_with = "super::null_default", skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
}

impl Descriptor {
    /// A plain descriptor.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: Annotations::new(),
            data: String::new(),
            platform: None,
            artifact_type: String::new(),
        }
    }

    /// The descriptor of these bytes.
    pub fn of(media_type: impl Into<String>, bytes: &[u8]) -> Descriptor {
        Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// With one more annotation.
    #[must_use]
    pub fn annotate(mut self, key: &str, value: impl Into<String>) -> Descriptor {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// The name of its blob in an OCI layout: `blobs/sha256/<hex>`.
    pub fn blob_path(&self) -> String {
        format!("blobs/sha256/{}", self.digest.hex())
    }

    /// Whether it is an attestation that BuildKit put beside an image, not an image.
    pub fn is_attestation(&self) -> bool {
        self.annotations.contains_key(super::annotation::REFERENCE_TYPE)
            || self.platform.as_ref().is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
    }

    /// The diff id that the annotation of a layer states.
    pub fn diff_id(&self) -> Option<Digest> {
        self.annotations.get(super::annotation::UNCOMPRESSED)?.parse().ok()
    }

    /// As it goes into a manifest: annotations that only builders use dropped, all of them for Docker's types.
    #[must_use]
    pub fn for_manifest(mut self, flavor: media_type::Flavor) -> Descriptor {
        self.media_type = flavor.convert_layer(&self.media_type).to_owned();
        match flavor {
            media_type::Flavor::Docker => self.annotations.clear(),
            media_type::Flavor::Oci => self.annotations.retain(|key, _| !super::annotation::is_internal(key)),
        }
        self
    }
}
