//! Answers for programs: JSON as Go writes BuildKit's structs, empty fields left out.

use base::SourceSpan;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llb::pb;
use serde_json::{Map, Value};

/// Indented, and escaped as Go does it: these characters stand in strings only.
pub(super) fn pretty(value: &Value) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", char as u32)),
            char => out.push(char),
        }
    }
    out
}

/// The fields that have a value.
pub(super) fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(fields.collect::<Map<_, _>>())
}

pub(super) fn text(text: &str) -> Option<Value> {
    (!text.is_empty()).then(|| text.into())
}

pub(super) fn flag(flag: bool) -> Option<Value> {
    flag.then_some(Value::Bool(true))
}

pub(super) fn list(values: impl Iterator<Item = Value>) -> Option<Value> {
    let values: Vec<Value> = values.collect();
    (!values.is_empty()).then_some(Value::Array(values))
}

pub(super) fn bytes(bytes: &[u8]) -> Value {
    STANDARD.encode(bytes).into()
}

fn number(number: u32) -> Option<Value> {
    (number != 0).then(|| number.into())
}

/// `pb.Location` in the one source: a range for each line.
pub(super) fn location(spans: &[SourceSpan]) -> Value {
    let lines = crate::lower::line_spans(spans);
    let position = |(line, character)| object([("line", number(line)), ("character", number(character))]);
    let range = |span: &SourceSpan| object([("start", Some(position(span.start))), ("end", Some(position(span.end)))]);
    object([("ranges", list(lines.iter().map(range)))])
}

/// `pb.SourceInfo`.
pub(super) fn source(info: &pb::SourceInfo) -> Value {
    object([
        ("filename", text(&info.filename)),
        ("data", (!info.data.is_empty()).then(|| bytes(&info.data))),
        ("definition", info.definition.as_ref().map(definition)),
        ("language", text(&info.language)),
    ])
}

fn definition(definition: &pb::Definition) -> Value {
    let metadata = definition.metadata.iter().map(|(digest, metadata)| (digest.clone(), op_metadata(metadata)));
    let metadata: Map<String, Value> = metadata.collect();
    object([
        ("def", list(definition.def.iter().map(|op| bytes(op)))),
        ("metadata", (!metadata.is_empty()).then_some(Value::Object(metadata))),
    ])
}

fn op_metadata(metadata: &pb::OpMetadata) -> Value {
    let description = metadata.description.iter().map(|(key, value)| (key.clone(), value.as_str().into()));
    let description: Map<String, Value> = description.collect();
    let caps = metadata.caps.iter().map(|(cap, needed)| (cap.clone(), Value::Bool(*needed)));
    let caps: Map<String, Value> = caps.collect();
    object([
        ("ignore_cache", flag(metadata.ignore_cache)),
        ("description", (!description.is_empty()).then_some(Value::Object(description))),
        ("caps", (!caps.is_empty()).then_some(Value::Object(caps))),
    ])
}
