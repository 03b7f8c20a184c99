//! What stands around a cache config: a manifest or an index of its own, or the config of an image.

use std::collections::BTreeMap;

use base::Digest;
use base64::Engine as _;
use image::{Annotations, DateTime, Descriptor, Flavor, Index, Manifest, annotation, media_type};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::config::{CacheConfig, CacheLayer, Error, MEDIA_TYPE, shown};

/// What the types of cache configs of all versions begin with.
const ANY_VERSION: &str = "application/vnd.buildkit.cacheconfig.";

/// How a cache is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// As an image manifest, which all registries take; else as an index.
    pub image_manifest: bool,
    /// In OCI's types; else in Docker's.
    pub flavor: Flavor,
}

impl Default for Form {
    fn default() -> Form {
        Form { image_manifest: true, flavor: Flavor::Oci }
    }
}

/// What a name or digest of a cache refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// A cache.
    Cache {
        /// The config.
        config: Box<Descriptor>,
        /// The layers.
        layers: Vec<Descriptor>,
    },
    /// An image, whose config may have records.
    Image(Box<Manifest>),
    /// Several images, or none.
    Images(Vec<Descriptor>),
}

#[derive(Deserialize)]
struct Shape {
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
}

impl Document {
    /// Reads a manifest or index, whichever it looks like.
    pub fn parse(bytes: &[u8]) -> Result<Document, Error> {
        if bytes.len() > image::MAX_DOCUMENT {
            return Err(Error::Damaged("its manifest is larger than is allowed".to_owned()));
        }
        let shape: Shape = serde_json::from_slice(bytes)?;
        if shape.manifests.is_some() && shape.config.is_none() && shape.layers.is_none() {
            let (config, blobs): (Vec<_>, Vec<_>) =
                Index::parse(bytes, None)?.manifests.into_iter().partition(|blob| blob.media_type == MEDIA_TYPE);
            return Ok(match config.into_iter().next_back() {
                Some(config) => Document::Cache { config: Box::new(config), layers: blobs },
                None => match blobs.iter().find(|blob| blob.media_type.starts_with(ANY_VERSION)) {
                    Some(config) => return Err(Error::Stranger(shown(&config.media_type))),
                    None => Document::Images(blobs.into_iter().filter(|blob| !blob.is_attestation()).collect()),
                },
            });
        }
        let manifest = Manifest::parse(bytes, None)?;
        match manifest.config.media_type.as_str() {
            MEDIA_TYPE => Ok(Document::Cache { config: Box::new(manifest.config), layers: manifest.layers }),
            media_type::OCI_CONFIG | media_type::DOCKER_CONFIG => Ok(Document::Image(Box::new(manifest))),
            other => Err(Error::Stranger(shown(other))),
        }
    }
}

/// The document around a config, and its type. `layers` are those of the config, in its order.
pub fn around(form: Form, config: Descriptor, layers: &[Descriptor]) -> (Descriptor, Vec<u8>) {
    let converted = layers.iter().map(|layer| {
        let media_type = form.flavor.convert_layer(&layer.media_type).to_owned();
        Descriptor { media_type, ..layer.clone() }
    });
    let (media_type, bytes) = match form.image_manifest {
        true => {
            let manifest = Manifest {
                schema_version: 2,
                media_type: form.flavor.manifest().to_owned(),
                artifact_type: String::new(),
                config,
                layers: converted.collect(),
                subject: None,
                annotations: Annotations::new(),
            };
            (form.flavor.manifest(), serde_json::to_vec(&manifest))
        }
        false => {
            let index = Index::new(form.flavor, converted.chain([config]).collect());
            (form.flavor.index(), serde_json::to_vec(&index))
        }
    };
    let bytes = bytes.expect("texts and numbers only");
    (Descriptor::of(media_type, &bytes), bytes)
}

/// A cache in an image's config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineCache {
    /// Records and layers.
    pub config: CacheConfig,
    /// The layers with what the image's config says about them.
    pub layers: Vec<Descriptor>,
}

/// What a cache looks at in an image's config.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    rootfs: RootFs,
    #[serde(default, rename = "moby.buildkit.cache.v0")]
    cache: Option<String>,
    #[serde(default)]
    history: Option<Vec<History>>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize)]
struct History {
    created: Option<DateTime>,
    #[serde(default)]
    created_by: Option<String>,
    #[serde(default)]
    empty_layer: bool,
}

impl InlineCache {
    /// The cache in the config of an image; none if there is none.
    pub fn of_image(manifest: &Manifest, config: &[u8]) -> Result<Option<InlineCache>, Error> {
        let head: Head = serde_json::from_slice(config)?;
        let Some(cache) = head.cache.filter(|cache| !cache.is_empty()) else { return Ok(None) };
        let records = base64::engine::general_purpose::STANDARD.decode(cache);
        let records = records.map_err(|error| Error::Damaged(format!("its records are no base64: {error}")))?;
        let records = CacheConfig::parse_records(&records)?;
        let diff_ids = head.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() != manifest.layers.len() {
            let (layers, ids) = (manifest.layers.len(), diff_ids.len());
            return Err(Error::Damaged(format!("the image has {layers} layers, but its config {ids}")));
        }
        let mut history = head.history.unwrap_or_default().into_iter().filter(|entry| !entry.empty_layer);
        let layers = manifest.layers.iter().zip(&diff_ids).map(|(layer, diff_id)| {
            let mut layer = layer.clone().annotate(annotation::UNCOMPRESSED, diff_id.to_string());
            if let Some(entry) = history.next() {
                let about = [
                    (annotation::CREATED_AT, entry.created.map(|created| created.to_string())),
                    (annotation::DESCRIPTION, entry.created_by.filter(|text| !text.is_empty())),
                ];
                let about = about.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
                layer.annotations.extend(about.collect::<BTreeMap<_, _>>());
            }
            layer
        });
        let layers: Vec<Descriptor> = layers.collect();
        let stack = (-1..).zip(&layers).map(|(parent, layer)| CacheLayer { blob: layer.digest, parent });
        let config = CacheConfig { layers: stack.collect(), records };
        Ok(Some(InlineCache { config, layers }))
    }
}

/// Whether a descriptor leads to an image or to more of them.
pub fn is_image(descriptor: &Descriptor) -> bool {
    media_type::is_manifest(&descriptor.media_type) || media_type::is_index(&descriptor.media_type)
}
