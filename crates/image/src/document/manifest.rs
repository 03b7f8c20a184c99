//! Image manifests (OCI image-spec `manifest.md`, Docker schema 2).

use serde::{Deserialize, Serialize};

use super::{Annotations, Descriptor, Flavor, Index, json, media_type, null_default, null_if_empty};
use crate::Error;

const WHAT: &str = "image manifest";

/// A config and its layers. Field order is that of Go's `ocispec.Manifest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The type of this document; OCI leaves it optional.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// What kind of artifact this is, if it is no image.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    /// The image config.
    pub config: Descriptor,
    /// The layers, base first.
    #[serde(default, deserialize_with = "null_default", serialize_with = "null_if_empty")]
    pub layers: Vec<Descriptor>,
    /// The manifest that this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Notes about the image.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
}

/// Fields that tell manifests and indexes apart whatever type they claim (CVE-2021-41190).
#[derive(Deserialize)]
struct Shape {
    #[serde(default, rename = "schemaVersion")]
    schema_version: Option<u32>,
    #[serde(default, rename = "mediaType")]
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// Checks that `bytes` are the kind of document that `media_type` says.
pub(super) fn check_shape(what: &'static str, bytes: &[u8], expected: Option<&str>) -> Result<(), Error> {
    let shape: Shape = json::parse(what, bytes)?;
    let fail = |reason: String| Err(Error::document(what, reason));
    let stated = shape.media_type.as_deref().filter(|t| !t.is_empty());
    match (stated, expected) {
        (Some(stated), Some(expected)) if stated != expected => {
            return fail(format!("it calls itself `{stated}` but was referred to as `{expected}`"));
        }
        _ => {}
    }
    match shape.schema_version {
        Some(2) => {}
        Some(1) => return fail("Docker schema 1 is not supported".to_owned()),
        Some(other) => return fail(format!("schemaVersion is {other}, expected 2")),
        None => return fail("schemaVersion is missing".to_owned()),
    }
    let (is_manifest, is_index) = (shape.config.is_some() || shape.layers.is_some(), shape.manifests.is_some());
    match (is_manifest, is_index) {
        (true, true) => fail("it has the fields of both a manifest and an index".to_owned()),
        (true, false) if what != WHAT => fail("it has the fields of a manifest".to_owned()),
        (false, true) if what == WHAT => fail("it has the fields of an index".to_owned()),
        _ => Ok(()),
    }
}

impl Manifest {
    /// A manifest of an image; layer descriptors lose what only builders use.
    pub fn new(flavor: Flavor, config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: flavor.manifest().to_owned(),
            artifact_type: String::new(),
            config,
            layers: layers.into_iter().map(|layer| layer.for_manifest(flavor)).collect(),
            subject: None,
            annotations: Annotations::new(),
        }
    }

    /// Parses and checks a manifest; `media_type` is what its descriptor or the registry called it.
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Manifest, Error> {
        if let Some(other) = media_type.filter(|t| !media_type::is_manifest(t)) {
            let reason = match other {
                media_type::DOCKER_MANIFEST_V1 => "Docker schema 1 is not supported".to_owned(),
                other => format!("`{other}` is no type of manifest"),
            };
            return Err(Error::document(WHAT, reason));
        }
        check_shape(WHAT, bytes, media_type)?;
        json::parse(WHAT, bytes)
    }

    /// The bytes that BuildKit writes for it.
    pub fn to_json(&self) -> Vec<u8> {
        json::indented(self)
    }

    /// Its own type, also where the document leaves it out.
    pub fn own_media_type(&self) -> &str {
        if self.media_type.is_empty() { media_type::OCI_MANIFEST } else { &self.media_type }
    }

    /// Config and layers, the order in which upstream walks them.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// What a manifest or an index refers to; nothing for other blobs.
pub fn children(descriptor: &Descriptor, bytes: &[u8]) -> Result<Vec<Descriptor>, Error> {
    match descriptor.media_type.as_str() {
        t if media_type::is_manifest(t) => Ok(Manifest::parse(bytes, Some(t))?.blobs().cloned().collect()),
        t if media_type::is_index(t) => Ok(Index::parse(bytes, Some(t))?.manifests),
        _ => Ok(Vec::new()),
    }
}
