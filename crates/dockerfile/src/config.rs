//! Image configurations: Docker's, a superset of OCI's.
//!
//! Fields, their order and what is left out when empty are those of upstream's types, since the configuration's
//! digest is the image's identity. Fields that upstream does not know are dropped there and here.

use std::collections::BTreeMap;

use base::Platform;
use serde::{Deserialize, Deserializer, Serialize};

/// An image configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "time")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub author: String,
    /// GOARCH.
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    /// GOOS.
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    /// Version of the operating system.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub os_version: String,
    /// Features of the operating system.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub os_features: Vec<String>,
    /// Variant of the processor.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub variant: String,
    /// Layers.
    #[serde(default, deserialize_with = "or_default")]
    pub rootfs: RootFs,
    /// How it came about.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub history: Vec<History>,
    /// How it runs.
    #[serde(default, deserialize_with = "or_default")]
    pub config: RunConfig,
}

/// The layers of an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default, deserialize_with = "or_default")]
    pub kind: String,
    /// Digests of the uncompressed layers.
    #[serde(default)]
    pub diff_ids: Option<Vec<String>>,
}

/// One line of an image's history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "time")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub created_by: String,
    /// Who.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub author: String,
    /// By what.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub comment: String,
    /// It changed no file.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "or_default")]
    pub empty_layer: bool,
}

/// How containers of an image run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// User and group.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub user: String,
    /// Ports, `80/tcp`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// Environment, `KEY=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The program.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments, or program and arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Volumes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, Empty>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub working_dir: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that stops it.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub stop_signal: String,
    /// Matters on Windows only, and is set by `CMD` for old readers.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "or_default")]
    pub args_escaped: bool,
    /// How to see whether it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions for images made from this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub on_build: Vec<String>,
    /// The shell of shell forms.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub shell: Vec<String>,
}

/// A health check. Times are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// Kind and command.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub test: Vec<String>,
    /// Between checks.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    pub interval: i64,
    /// For one check.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    pub timeout: i64,
    /// Failures before this do not count.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    pub start_period: i64,
    /// Between checks during the start period.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    pub start_interval: i64,
    /// Failures in a row that mean unhealthy.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    pub retries: i64,
}

/// `{}`, the value of a set's members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

impl ImageConfig {
    /// The configuration of the empty image.
    pub fn empty(platform: &Platform) -> ImageConfig {
        let mut image = ImageConfig {
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids: None },
            config: RunConfig {
                working_dir: "/".to_owned(),
                env: vec![format!("PATH={DEFAULT_PATH}")],
                ..RunConfig::default()
            },
            ..ImageConfig::default()
        };
        image.set_platform(platform.clone());
        image
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

    /// Sets what it runs on.
    pub fn set_platform(&mut self, platform: Platform) {
        self.architecture = platform.architecture;
        self.os = platform.os;
        self.os_version = platform.os_version;
        self.os_features = platform.os_features;
        self.variant = platform.variant;
    }

    /// Whether it has files: images of the old schema name no layers, but have a history.
    pub fn has_layers(&self) -> bool {
        self.rootfs.diff_ids.as_ref().is_some_and(|ids| !ids.is_empty()) || self.history.iter().any(|h| !h.empty_layer)
    }

    /// As JSON.
    pub fn to_json(&self) -> Vec<u8> {
        crate::gotext::json(self)
    }
}

/// `PATH` where an image sets none.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `null` is the default, as in Go.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A time in the one spelling that Go writes.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.map(|text| {
        let zone = text.rfind(['Z', '+', '-']).filter(|at| *at > 10).unwrap_or(text.len());
        let (time, zone) = text.split_at(zone);
        let time = if time.contains('.') { time.trim_end_matches('0').trim_end_matches('.') } else { time };
        format!("{time}{}", if matches!(zone, "+00:00" | "-00:00") { "Z" } else { zone })
    }))
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_times_are_read_as_go_reads_them() {
        let json = r#"{"created":"2020-01-02T03:04:05.100000000Z","architecture":"amd64","os":"linux","config":{"Env":null,
            "Cmd":["sh"],"Labels":null,"OnBuild":null,"Volumes":{"/x":{}},"Hostname":"dropped"},"rootfs":{"type":"layers",
            "diff_ids":["sha256:00"]},"history":[{"created":"2020-01-02T03:04:05+00:00","created_by":"a < b"}]}"#;
        let image: ImageConfig = serde_json::from_str(json).expect("valid");
        let out = r#"{"created":"2020-01-02T03:04:05.1Z","architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:00"]},"history":[{"created":"2020-01-02T03:04:05Z","created_by":"a \u003c b"}],"config":{"Cmd":["sh"],"Volumes":{"/x":{}}}}"#;
        assert_eq!(String::from_utf8(image.to_json()).expect("JSON is text"), out);
        assert!(image.has_layers());
    }
}
