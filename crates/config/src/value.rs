//! The forms that values have: booleans, numbers, sizes, durations, lists, maps.
//!
//! Sizes and durations read as upstream reads them: `"512MB"` in `buildkitd.toml` is 512 × 1024², because
//! docker's `units.RAMInBytes` reads it; durations are Go's (`"48h"`, `"1h30m"`) or a number of seconds.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use crate::section::{Bad, Declared, Key, Place, Unknown, join};

/// An amount of disk space: bytes, or a share of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskSpace {
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the disk that holds the root directory.
    Percent(u64),
}

impl Default for DiskSpace {
    fn default() -> Self {
        DiskSpace::Bytes(0)
    }
}

impl DiskSpace {
    /// Nothing was said.
    pub fn is_unset(&self) -> bool {
        matches!(self, DiskSpace::Bytes(0) | DiskSpace::Percent(0))
    }

    /// Bytes on a disk of `total` bytes. A share is rounded up to whole gigabytes as upstream does; of a disk
    /// of unknown size it is 2 GB.
    pub fn on(&self, total: u64) -> u64 {
        const GIB: u64 = 1 << 30;
        const GB: u64 = 1_000_000_000;
        match *self {
            DiskSpace::Bytes(bytes) => bytes,
            DiskSpace::Percent(0) => 0,
            DiskSpace::Percent(_) if total == 0 => 2 * GB,
            DiskSpace::Percent(percent) => {
                let share = (u128::from(total) * u128::from(percent) / 100) as u64;
                (share / GIB + 1) * GB
            }
        }
    }
}

impl fmt::Display for DiskSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskSpace::Bytes(bytes) => write!(f, "{}", base::ByteSize(*bytes)),
            DiskSpace::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// The text is not of the form that the key wants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ValueError {
    text: String,
    expected: &'static str,
}

impl ValueError {
    /// What the text is not: `a size: expected ..`.
    pub fn expected(&self) -> &'static str {
        self.expected
    }
}

impl std::str::FromStr for DiskSpace {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.strip_suffix('%') {
            Some(percent) => match percent.trim().parse() {
                Ok(percent @ 0..=100) => Ok(DiskSpace::Percent(percent)),
                _ => Err(ValueError { text: text.to_owned(), expected: "a percentage between 0% and 100%" }),
            },
            None => parse_bytes(text).map(DiskSpace::Bytes),
        }
    }
}

/// Reads a size as docker reads memory and disk sizes: units are binary, `512MB` is 512 × 1024².
pub fn parse_bytes(text: &str) -> Result<u64, ValueError> {
    let err = || ValueError {
        text: text.to_owned(),
        expected: "a size: expected bytes or a number with a unit, such as 512MB",
    };
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.trim_start();
    let exponent = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" if matches!(unit, "" | "b") => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(err()),
    };
    if unit.len() > 3 || unit.ends_with("bb") {
        return Err(err());
    }
    let factor = 1u64 << (10 * exponent);
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(err);
    }
    let bytes = number.parse::<f64>().map_err(|_| err())? * factor as f64;
    if bytes.is_finite() && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(err()) }
}

/// Reads a Go duration: `300ms`, `1.5h`, `2h45m`, and `0` without a unit.
pub fn parse_duration(text: &str) -> Result<Duration, ValueError> {
    let err =
        || ValueError { text: text.to_owned(), expected: "a duration: expected a form such as 90s, 48h or 1h30m" };
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(err());
    }
    let mut seconds = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(err)?;
        let number: f64 = rest[..digits].parse().map_err(|_| err())?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(err()),
        };
        rest = &rest[unit_end..];
        seconds += number * unit;
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| err())
}

/// Reads a boolean as Go's `strconv.ParseBool` does.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A duration in the file: Go's form, or a number of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub Duration);

impl Key for bool {
    fn apply(&mut self, place: &Place<'_>, _: &mut Vec<Unknown>) -> Result<(), Bad> {
        *self = place.value.as_bool().ok_or_else(|| place.expected("true or false"))?;
        Ok(())
    }

    fn form() -> String {
        "true or false".to_owned()
    }
}

/// A whole number from 0 up.
impl Key for u32 {
    fn apply(&mut self, place: &Place<'_>, _: &mut Vec<Unknown>) -> Result<(), Bad> {
        let wanted = "a whole number from 0 up";
        let number = place.value.as_integer().ok_or_else(|| place.expected(wanted))?;
        *self = u32::from_str_radix(number.as_str(), number.radix())
            .map_err(|_| place.bad(format!("expected {wanted}, found {number}")))?;
        Ok(())
    }

    fn form() -> String {
        "a number".to_owned()
    }
}

impl Key for String {
    fn apply(&mut self, place: &Place<'_>, _: &mut Vec<Unknown>) -> Result<(), Bad> {
        place.value.as_str().ok_or_else(|| place.expected("a string"))?.clone_into(self);
        Ok(())
    }

    fn form() -> String {
        "a string".to_owned()
    }
}

impl Key for PathBuf {
    fn apply(&mut self, place: &Place<'_>, _: &mut Vec<Unknown>) -> Result<(), Bad> {
        *self = PathBuf::from(place.value.as_str().ok_or_else(|| place.expected("a path"))?);
        Ok(())
    }

    fn form() -> String {
        "a path".to_owned()
    }
}

impl Key for DiskSpace {
    fn apply(&mut self, place: &Place<'_>, _: &mut Vec<Unknown>) -> Result<(), Bad> {
        let wanted = "bytes, a size such as \"512MB\" or a percentage such as \"10%\"";
        *self = match place.value {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix())
                .map(DiskSpace::Bytes)
                .map_err(|_| place.bad(format!("expected {wanted}, found {number}")))?,
            DeValue::String(text) if text.is_empty() => DiskSpace::default(),
            DeValue::String(text) => text.parse().map_err(|error: ValueError| place.bad(error.to_string()))?,
            _ => return Err(place.expected(wanted)),
        };
        Ok(())
    }

    fn form() -> String {
        "bytes, `\"512MB\"` (1 MB is 1024² here) or `\"10%\"` of the disk".to_owned()
    }
}

impl Key for Seconds {
    fn apply(&mut self, place: &Place<'_>, _: &mut Vec<Unknown>) -> Result<(), Bad> {
        let wanted = "a number of seconds or a duration such as \"48h\"";
        let seconds = |text: &str, radix| {
            u64::from_str_radix(text, radix)
                .map(Duration::from_secs)
                .map_err(|_| place.bad(format!("expected {wanted}, found {text}")))
        };
        self.0 = match place.value {
            DeValue::Integer(number) => seconds(number.as_str(), number.radix())?,
            DeValue::String(text) if text.is_empty() => Duration::ZERO,
            DeValue::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => seconds(text, 10)?,
            DeValue::String(text) => parse_duration(text).map_err(|error| place.bad(error.to_string()))?,
            _ => return Err(place.expected(wanted)),
        };
        Ok(())
    }

    fn form() -> String {
        "seconds or a duration such as `\"48h\"`".to_owned()
    }
}

/// Anything, for tables that another program defines.
impl Key for Option<toml::Value> {
    fn apply(&mut self, place: &Place<'_>, _: &mut Vec<Unknown>) -> Result<(), Bad> {
        *self = Some(owned(place.value).map_err(|message| place.bad(message))?);
        Ok(())
    }

    fn form() -> String {
        "anything".to_owned()
    }
}

fn owned(value: &DeValue<'_>) -> Result<toml::Value, String> {
    Ok(match value {
        DeValue::String(text) => toml::Value::String(text.clone().into_owned()),
        DeValue::Integer(number) => toml::Value::Integer(
            i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| format!("number {number} is too large"))?,
        ),
        DeValue::Float(number) => {
            toml::Value::Float(number.as_str().parse().map_err(|_| format!("`{}` is not a number", number.as_str()))?)
        }
        DeValue::Boolean(boolean) => toml::Value::Boolean(*boolean),
        DeValue::Datetime(date) => toml::Value::Datetime(*date),
        DeValue::Array(array) => {
            toml::Value::Array(array.iter().map(|item| owned(item.get_ref())).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => toml::Value::Table(
            table
                .iter()
                .map(|(key, value)| Ok((key.get_ref().clone().into_owned(), owned(value.get_ref())?)))
                .collect::<Result<_, String>>()?,
        ),
    })
}

macro_rules! optional {
    ($($ty:ty),*) => {$(
        impl Key for Option<$ty> {
            fn apply(&mut self, place: &Place<'_>, unknown: &mut Vec<Unknown>) -> Result<(), Bad> {
                self.get_or_insert_default().apply(place, unknown)
            }

            fn form() -> String {
                <$ty as Key>::form()
            }

            fn below(prefix: &str, out: &mut Vec<Declared>) {
                <$ty as Key>::below(prefix, out);
            }
        }
    )*};
}
optional!(bool, u32, String, PathBuf, DiskSpace, Seconds);
pub(crate) use optional;

impl<T: Key + Default> Key for Vec<T> {
    fn apply(&mut self, place: &Place<'_>, unknown: &mut Vec<Unknown>) -> Result<(), Bad> {
        let array = place.value.as_array().ok_or_else(|| place.expected(&format!("a list of {}", T::form())))?;
        self.clear();
        for (index, item) in array.iter().enumerate() {
            let path = format!("{}[{index}]", place.path);
            let mut value = T::default();
            value.apply(&Place { path, value: item.get_ref(), span: item.span() }, unknown)?;
            self.push(value);
        }
        Ok(())
    }

    fn form() -> String {
        let of = T::form();
        if of.is_empty() { String::new() } else { format!("a list of {}s", of.trim_start_matches("a ")) }
    }

    fn below(prefix: &str, out: &mut Vec<Declared>) {
        T::below(&format!("{prefix}[]"), out);
    }
}

impl<T: Key + Default> Key for BTreeMap<String, T> {
    fn apply(&mut self, place: &Place<'_>, unknown: &mut Vec<Unknown>) -> Result<(), Bad> {
        let table = place.value.as_table().ok_or_else(|| place.expected("a table"))?;
        for (key, item) in table {
            let place = Place { path: join(&place.path, key.get_ref()), value: item.get_ref(), span: item.span() };
            self.entry(key.get_ref().clone().into_owned()).or_default().apply(&place, unknown)?;
        }
        Ok(())
    }

    fn form() -> String {
        let of = T::form();
        if of.is_empty() { String::new() } else { format!("a table of {}s", of.trim_start_matches("a ")) }
    }

    fn below(prefix: &str, out: &mut Vec<Declared>) {
        T::below(&format!("{prefix}.\"*\""), out);
    }
}
