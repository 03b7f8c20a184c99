//! Times in documents: an instant and the text that Go would write for it.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An RFC 3339 time that keeps its offset, written without trailing zeros of the fraction (Go's `RFC3339Nano`).
#[derive(Clone, Debug)]
pub struct DateTime {
    instant: Timestamp,
    text: String,
}

/// The text is no RFC 3339 time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an RFC 3339 time")]
pub struct DateTimeParseError(String);

impl DateTime {
    /// The instant.
    pub fn instant(&self) -> Timestamp {
        self.instant
    }

    /// Go's `time.RFC3339` in UTC: without a fraction.
    pub fn to_seconds_text(&self) -> String {
        jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%SZ", self.instant).expect("a timestamp has all these fields")
    }
}

impl From<Timestamp> for DateTime {
    fn from(instant: Timestamp) -> DateTime {
        // jiff prints the shortest fraction and `Z`, as Go does.
        DateTime { instant, text: instant.to_string() }
    }
}

/// Equal instants at equal offsets, as Go's `reflect.DeepEqual` after parsing.
impl PartialEq for DateTime {
    fn eq(&self, other: &DateTime) -> bool {
        self.text == other.text
    }
}

impl Eq for DateTime {}

impl FromStr for DateTime {
    type Err = DateTimeParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let err = || DateTimeParseError(text.to_owned());
        let bytes = text.as_bytes();
        // jiff takes more than RFC 3339 (no seconds, a space, `[zone]`): check the frame first.
        let digits = |range: std::ops::Range<usize>| bytes.get(range).is_some_and(|b| b.iter().all(u8::is_ascii_digit));
        let frame = digits(0..4) && digits(5..7) && digits(8..10) && digits(11..13) && digits(14..16) && digits(17..19);
        if !frame || bytes[4] != b'-' || bytes[7] != b'-' || bytes[10] != b'T' || bytes[13] != b':' || bytes[16] != b':'
        {
            return Err(err());
        }
        let zone = text[19..].find(['Z', '+', '-']).map(|at| at + 19).ok_or_else(err)?;
        let (head, offset) = text.split_at(zone);
        if offset != "Z" && (offset.len() != 6 || offset.as_bytes()[3] != b':') {
            return Err(err());
        }
        let instant: Timestamp = text.parse().map_err(|_| err())?;
        let head = if head.contains('.') { head.trim_end_matches('0').trim_end_matches('.') } else { head };
        let offset = if matches!(offset, "+00:00" | "-00:00") { "Z" } else { offset };
        Ok(DateTime { instant, text: format!("{head}{offset}") })
    }
}

impl fmt::Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for DateTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for DateTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
