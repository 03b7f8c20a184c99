//! The image config (OCI image-spec `config.md` with Docker's extensions) and its last patch before export.

use std::collections::{BTreeMap, BTreeSet};

use base::{Digest, Platform};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::json::{self, RawObject};
use super::{DateTime, History, null_default, null_if_empty};
use crate::Error;

const WHAT: &str = "image config";

/// An image config as frontends make it. Field order is that of Go's `dockerspec.DockerOCIImage`.
///
/// Fields that it does not know are dropped, as upstream's frontend does. To pass a config through, keep its bytes and
/// use [`patch_config`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the image was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<DateTime>,
    /// Who made it (`MAINTAINER`).
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// GOARCH.
    #[serde(default, deserialize_with = "null_default")]
    pub architecture: String,
    /// GOOS.
    #[serde(default, deserialize_with = "null_default")]
    pub os: String,
    /// Version of the operating system (Windows).
    #[serde(
        rename = "os.version",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// Features of the operating system (Windows).
    #[serde(rename = "os.features", default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// Variant of the processor.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// The layers, not compressed.
    #[serde(default, deserialize_with = "null_default")]
    pub rootfs: RootFs,
    /// How it came to be.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// How to run it.
    #[serde(default, deserialize_with = "null_default")]
    pub config: RunConfig,
}

/// The layers of a config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`; absent in configs that were never exported.
    #[serde(rename = "type", default, deserialize_with = "null_default")]
    pub kind: String,
    /// sha256 of each layer's tar, base first.
    #[serde(default, deserialize_with = "null_default", serialize_with = "null_if_empty")]
    pub diff_ids: Vec<Digest>,
}

/// How to run an image. Field order is Go's: `ocispec.ImageConfig`, then Docker's extensions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// User or uid, with an optional group.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `80/tcp`, ..
    #[serde(with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// `KEY=value`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The command's beginning.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command's default end.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Directories that want a volume.
    #[serde(with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// Where the command starts.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Notes about the image.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What stops the command.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Windows: the command is one escaped line.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    /// How to see that it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions for whoever builds on it.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// The shell of shell-form instructions.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
}

/// `HEALTHCHECK`. Durations are nanoseconds, 0 inherits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", ..]` or `["CMD-SHELL", line]`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Between checks.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// After which a check has failed.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// During which failures do not count.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between checks during the start period.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make it unhealthy.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub retries: i64,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// Go's `map[string]struct{}`: a set written as an object of empty objects.
mod set {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::{Deserialize, Deserializer, Serializer, de::IgnoredAny};

    #[derive(serde::Serialize)]
    struct Nothing {}

    pub fn serialize<S: Serializer>(set: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(set.iter().map(|key| (key, Nothing {})))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
        let map: Option<BTreeMap<String, IgnoredAny>> = Option::deserialize(deserializer)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

impl ImageConfig {
    /// The config of an empty image for a platform, as upstream starts one.
    pub fn empty(platform: &Platform) -> ImageConfig {
        let mut config = ImageConfig {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            os_version: platform.os_version.clone(),
            os_features: platform.os_features.clone(),
            variant: platform.variant.clone(),
            ..ImageConfig::default()
        };
        config.rootfs.kind = "layers".to_owned();
        config.config.working_dir = "/".to_owned();
        if platform.os != "windows" {
            config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
        }
        config
    }

    /// Parses a config. Missing platform fields are the exporter's concern, not the reader's.
    pub fn parse(bytes: &[u8]) -> Result<ImageConfig, Error> {
        json::parse(WHAT, bytes)
    }

    /// The bytes that upstream's frontend makes of it.
    pub fn to_json(&self) -> Vec<u8> {
        json::compact(self)
    }

    /// What it runs on.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// `PATH` of images that set none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an exporter changes in a config.
#[derive(Clone, Debug, Default)]
pub struct ConfigPatch<'a> {
    /// The layers of the image, base first.
    pub diff_ids: &'a [Digest],
    /// The history, normalised.
    pub history: Vec<History>,
    /// `SOURCE_DATE_EPOCH`: no time in the config is later, those of the base image excepted.
    pub epoch: Option<Timestamp>,
    /// The history of the base image.
    pub base_history: &'a [History],
    /// Records of an inline cache.
    pub inline_cache: Option<&'a [u8]>,
}

/// Puts layers, history and times into a config; everything else passes through, unknown fields too.
///
/// The result has the bytes that BuildKit's exporter writes: top-level keys sorted, values as they were but for space.
pub fn patch_config(config: &[u8], patch: ConfigPatch<'_>) -> Result<Vec<u8>, Error> {
    let parsed: Head = json::parse(WHAT, config)?;
    let mut object: RawObject = json::parse(WHAT, config)?;
    for (field, value) in [("os", &parsed.os), ("architecture", &parsed.architecture)] {
        if value.is_empty() {
            return Err(Error::document(WHAT, format!("`{field}` is missing")));
        }
    }
    for value in object.values_mut() {
        *value = json::compact_raw(value.get());
    }
    let rootfs = RootFs { kind: "layers".to_owned(), diff_ids: patch.diff_ids.to_vec() };
    object.insert("rootfs".to_owned(), json::raw(&rootfs));

    let mut history = patch.history;
    if let Some(epoch) = patch.epoch {
        clamp_history(&mut history, patch.base_history, epoch);
    }
    let created = match (parsed.created, patch.epoch) {
        (Some(created), Some(epoch)) if created.instant() > epoch => Some(DateTime::from(epoch)),
        (Some(_), _) => None,
        (None, _) if object.contains_key("created") => None,
        (None, _) => {
            let last = history.iter().rev().find_map(|item| item.created.clone());
            if last.is_none() {
                object.insert("created".to_owned(), json::raw(&()));
            }
            last
        }
    };
    if let Some(created) = created {
        object.insert("created".to_owned(), json::raw(&created));
    }
    // Go keeps a list that was empty apart from one that was absent.
    let had_history = object.get("history").is_some_and(|history| history.get() != "null");
    let history = if history.is_empty() && !had_history { json::raw(&()) } else { json::raw(&history) };
    object.insert("history".to_owned(), history);
    if let Some(cache) = patch.inline_cache {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(cache);
        object.insert("moby.buildkit.cache.v0".to_owned(), json::raw(&text));
    }
    Ok(json::compact(&object))
}

/// What a patch looks at; the rest of a config may be anything.
#[derive(Deserialize)]
struct Head {
    #[serde(default, deserialize_with = "null_default")]
    architecture: String,
    #[serde(default, deserialize_with = "null_default")]
    os: String,
    created: Option<DateTime>,
}

fn clamp_history(history: &mut [History], base: &[History], epoch: Timestamp) {
    let inherited = history.iter().zip(base).take_while(|(item, base)| item == base).count();
    for item in &mut history[inherited..] {
        if item.created.as_ref().is_none_or(|created| created.instant() > epoch) {
            item.created = Some(DateTime::from(epoch));
        }
    }
}
