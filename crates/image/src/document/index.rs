//! Image indexes (OCI image-spec `image-index.md`, Docker manifest lists) and the choice of a platform.

use base::Platform;
use serde::{Deserialize, Serialize};

use super::{Annotations, Descriptor, Flavor, json, manifest, media_type, null_default};
use crate::Error;

const WHAT: &str = "image index";

/// Manifests by platform. Field order is that of Go's `ocispec.Index`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The type of this document; OCI leaves it optional.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// What kind of artifact this is, if it holds no images.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    /// The manifests, in the writer's order of preference.
    #[serde(default, deserialize_with = "null_default")]
    pub manifests: Vec<Descriptor>,
    /// The manifest that this index is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Notes about the index.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
}

impl Index {
    /// An index of these manifests.
    pub fn new(flavor: Flavor, manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: flavor.index().to_owned(),
            artifact_type: String::new(),
            manifests,
            subject: None,
            annotations: Annotations::new(),
        }
    }

    /// Parses and checks an index; `media_type` is what its descriptor or the registry called it.
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Index, Error> {
        if let Some(other) = media_type.filter(|t| !media_type::is_index(t)) {
            return Err(Error::document(WHAT, format!("`{other}` is no type of index")));
        }
        manifest::check_shape(WHAT, bytes, media_type)?;
        json::parse(WHAT, bytes)
    }

    /// The bytes that BuildKit writes for it.
    pub fn to_json(&self) -> Vec<u8> {
        json::indented(self)
    }

    /// The bytes of `index.json` in an archive: as containerd's exporter writes it, on one line.
    pub fn to_compact_json(&self) -> Vec<u8> {
        json::compact(self)
    }

    /// The images that run on `wanted`, best first; those without a platform come last. Attestations are no images.
    pub fn candidates(&self, wanted: &Platform) -> Vec<&Descriptor> {
        let mut found: Vec<(u32, &Descriptor)> = self
            .images()
            .filter_map(|manifest| match &manifest.platform {
                Some(platform) => Some((platform.distance_from(wanted)?, manifest)),
                None => Some((u32::MAX, manifest)),
            })
            .collect();
        // Stable: of equally good ones the writer's first wins.
        found.sort_by_key(|(distance, _)| *distance);
        found.into_iter().map(|(_, manifest)| manifest).collect()
    }

    /// The best image for `wanted`, or an error that lists the platforms that there are.
    pub fn choose(&self, wanted: &Platform) -> Result<&Descriptor, Error> {
        self.candidates(wanted).first().copied().ok_or_else(|| {
            let mut available: Vec<String> =
                self.images().filter_map(|m| m.platform.as_ref()).map(Platform::to_string).collect();
            available.dedup();
            Error::NoPlatform { wanted: wanted.to_string(), available: available.join(", ") }
        })
    }

    fn images(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().filter(|m| {
            let known = media_type::is_manifest(&m.media_type) || media_type::is_index(&m.media_type);
            known && !m.is_attestation()
        })
    }
}
