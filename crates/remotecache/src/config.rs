//! `cacheconfig.v0` as bytes. Field names and order are those that BuildKit writes, and so are times.

use base::Digest;
use jiff::Timestamp;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The type of a cache config.
pub const MEDIA_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";

/// Why a cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no JSON of this kind.
    #[error("it is no cache config")]
    Json(#[from] serde_json::Error),
    /// A document around it is malformed.
    #[error(transparent)]
    Document(#[from] image::Error),
    /// It is of a later version, or no cache at all.
    #[error("it is neither a cache of the version that is known here nor an image: its config is of type `{0}`")]
    Stranger(String),
    /// It refers to something that it does not have, or leads round in circles.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// All that a cache knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheConfig {
    /// The layers that results consist of.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<CacheLayer>,
    /// The keys.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<CacheRecord>,
}

/// A layer on top of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheLayer {
    /// Its blob.
    pub blob: Digest,
    /// The place of the layer below in [`CacheConfig::layers`]; -1 where there is none. 0 is not written.
    #[serde(rename = "parent", default, skip_serializing_if = "is_zero")]
    pub parent: i64,
}

/// A key: what can be loaded for it, and how it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// Results: each a layer with all below it.
    #[serde(rename = "layers", default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<CacheResult>,
    /// Results whose layers are named one by one.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub chains: Vec<ChainedResult>,
    /// The op's digest and output in one. A text: what is no sha256 matches nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// For each input of the op the records that it is known by.
    #[serde(default, deserialize_with = "nulls_default", skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Vec<CacheInput>>,
}

/// A result that is a layer and all below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheResult {
    /// The place of the topmost layer in [`CacheConfig::layers`].
    pub layer: i64,
    /// When it was made.
    #[serde(rename = "createdAt", default)]
    pub created_at: Time,
}

/// A result as a list of layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainedResult {
    /// Places in [`CacheConfig::layers`], base first; whatever these stand on does not count.
    #[serde(default, deserialize_with = "null_default")]
    pub layers: Vec<i64>,
    /// When it was made.
    #[serde(rename = "createdAt", default)]
    pub created_at: Time,
}

/// A way from a record of an input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CacheInput {
    /// Which part of the input is read: a digest, or nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// The place of the input's record in [`CacheConfig::records`].
    pub link: i64,
}

/// A moment, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub i64);

/// Go's time that was never set.
const ZERO: &str = "0001-01-01T00:00:00Z";

impl Default for Time {
    fn default() -> Time {
        Time(i64::MIN)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match Timestamp::from_nanosecond(self.0.into()) {
            // The shortest fraction and `Z`, as Go writes it.
            Ok(time) if *self != Time::default() => serializer.collect_str(&time),
            _ => serializer.serialize_str(ZERO),
        }
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Said {
            Text(String),
            Other(IgnoredAny),
        }
        // What cannot be read, or told in nanoseconds, is no time. The result is as good without.
        let Said::Text(text) = Said::deserialize(deserializer)? else { return Ok(Time::default()) };
        let time = text.parse::<Timestamp>().ok().and_then(|time| i64::try_from(time.as_nanosecond()).ok());
        Ok(time.map_or_else(Time::default, Time))
    }
}

impl CacheConfig {
    /// Reads a config.
    pub fn parse(bytes: &[u8]) -> Result<CacheConfig, Error> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Reads the records that stand in an image's config.
    pub fn parse_records(bytes: &[u8]) -> Result<Vec<CacheRecord>, Error> {
        Ok(serde_json::from_slice::<Option<Vec<CacheRecord>>>(bytes)?.unwrap_or_default())
    }

    /// The bytes of the config.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers only")
    }

    /// The bytes of the records alone, for an image's config.
    pub fn records_to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.records).expect("texts and numbers only")
    }
}

/// What stands in somebody's document, for a message.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references over")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// Go writes an empty list as `null`.
fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn nulls_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<CacheInput>>, D::Error> {
    let lists: Option<Vec<Option<Vec<CacheInput>>>> = Option::deserialize(deserializer)?;
    Ok(lists.unwrap_or_default().into_iter().map(Option::unwrap_or_default).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        for text in ["2026-11-29T09:37:15.57297242Z", "2026-11-29T09:37:15Z", ZERO] {
            let time: Time = serde_json::from_str(&format!("\"{text}\"")).expect("a time");
            assert_eq!(serde_json::to_string(&time).expect("a text"), format!("\"{text}\""));
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [r#""9999-12-31T23:59:59Z""#, r#""2300-01-01T00:00:00Z""#, r#""soon""#, "null", "7", r#"{"a":[]}"#]
        {
            let record = format!(r#"{{"digest":"x","layers":[{{"layer":0,"createdAt":{text}}}]}}"#);
            let records = CacheConfig::parse_records(format!("[{record}]").as_bytes()).expect(text);
            assert_eq!(records[0].results[0].created_at, Time::default(), "{text}");
        }
    }

    #[test]
    fn what_go_leaves_out_is_read_back() {
        let text = r#"{"layers":[{"blob":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}],"records":[{"digest":"sha256:x","inputs":[null,[{"link":0}]]}]}"#;
        let config = CacheConfig::parse(text.as_bytes()).expect("good");
        assert_eq!(config.layers[0].parent, 0);
        assert_eq!(config.records[0].inputs.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(CacheConfig::parse(b"{\"layers\":null}").expect("good"), CacheConfig::default());
        assert!(CacheConfig::parse(b"<html>").is_err());
        assert_eq!(CacheConfig::parse_records(b"null").expect("good"), []);
    }
}
