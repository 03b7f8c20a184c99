//! OCI and Docker documents: descriptors, manifests, indexes, configs.
//!
//! What we write has the bytes that BuildKit writes for the same image, so that digests agree: field order and escapes
//! of Go's JSON, manifests and indexes indented by two spaces, configs compact with sorted top-level keys. What we read
//! is bounded ([`MAX_DOCUMENT`]) and checked; documents that pass through keep their bytes.

pub mod annotation;
mod config;
mod descriptor;
mod history;
mod index;
mod json;
mod manifest;
pub mod media_type;
#[cfg(test)]
mod tests;
mod time;

pub use config::{ConfigPatch, DEFAULT_PATH, Healthcheck, ImageConfig, RootFs, RunConfig, patch_config};
pub use descriptor::{Annotations, Descriptor};
pub use history::{History, LayerMeta, history_of, normalize_history};
pub use index::Index;
pub use json::MAX_DOCUMENT;
pub use manifest::{Manifest, children};
pub use media_type::Flavor;
pub use time::{DateTime, DateTimeParseError};

pub(crate) use json::{compact, parse};

use serde::{Deserialize, Deserializer};

/// Reads `null` as the default, as Go does for absent and null fields alike.
fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Writes an empty list as `null`: what Go makes of a nil slice without `omitempty`.
fn null_if_empty<S: serde::Serializer, T: serde::Serialize>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    if list.is_empty() { serializer.serialize_none() } else { serializer.collect_seq(list) }
}
