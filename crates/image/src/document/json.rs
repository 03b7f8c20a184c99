//! JSON with the bytes that Go's `encoding/json` writes, since digests are taken over them.
//!
//! Differences to plain serde_json: `<`, `>`, `&`, U+2028 and U+2029 are written as `\u….`; the indented form has
//! two spaces. Maps must be sorted (`BTreeMap`), structs carry Go's field order.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};
use serde_json::value::RawValue;

use crate::Error;

/// A JSON object whose values keep the bytes that they came with.
pub(super) type RawObject = BTreeMap<String, Box<RawValue>>;

/// Largest manifest, index or config that we take; registries refuse manifests beyond 4 MiB.
pub const MAX_DOCUMENT: usize = 8 << 20;

/// Parses one document of the kind `what`.
pub(crate) fn parse<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(Error::TooLarge { what: what.to_owned(), limit: MAX_DOCUMENT as u64 });
    }
    serde_json::from_slice(bytes).map_err(|source| Error::Json { what, source })
}

/// As `json.Marshal`.
pub(crate) fn compact<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    write(value, CompactFormatter)
}

/// As `json.MarshalIndent(value, "", "  ")`.
pub(super) fn indented<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    write(value, PrettyFormatter::with_indent(b"  "))
}

fn write<T: Serialize + ?Sized>(value: &T, formatter: impl Formatter) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, GoEscapes(formatter));
    value.serialize(&mut serializer).expect("documents have string keys and vectors do not fail to grow");
    out
}

/// A raw value as Go's `json.Compact` with HTML escapes: no space between tokens, numbers and order as they were.
pub(super) fn compact_raw(raw: &str) -> Box<RawValue> {
    let mut out = String::with_capacity(raw.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in raw.chars() {
        match c {
            _ if !in_string && matches!(c, ' ' | '\t' | '\n' | '\r') => continue,
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&escape(c)),
            c => out.push(c),
        }
        in_string ^= c == '"' && !escaped;
        escaped = in_string && c == '\\' && !escaped;
    }
    RawValue::from_string(out).expect("compacting keeps JSON valid")
}

/// A value as raw JSON in Go's form.
pub(super) fn raw<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    let text = String::from_utf8(compact(value)).expect("serde_json writes UTF-8");
    RawValue::from_string(text).expect("serde_json writes JSON")
}

fn escape(c: char) -> String {
    format!("\\u{:04x}", c as u32)
}

struct GoEscapes<F>(F);

impl<F: Formatter> Formatter for GoEscapes<F> {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let c = rest[at..].chars().next().expect("found above");
            writer.write_all(escape(c).as_bytes())?;
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn end_object_key<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_key(writer)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}
