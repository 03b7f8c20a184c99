//! Upstream's status messages as JSON, one batch per line: what `buildx --progress=rawjson` and
//! `buildctl --trace` write, for programs.

use std::collections::BTreeMap;
use std::io::Write;

use base::progress::{Event, Log, ProgressGroup, Status, Stream, Vertex, Warning};
use base::report::Label;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use proto::{Message as _, pb};
use serde_json::{Map, Value, json};

use super::{Notice, Reader};
use crate::fault::FailedStep;

/// The display.
pub(super) struct RawJson {
    out: Box<dyn Write + Send>,
}

impl RawJson {
    pub fn new(out: Box<dyn Write + Send>) -> RawJson {
        RawJson { out }
    }
}

impl Reader for RawJson {
    fn update(&mut self, events: &[Event], _: Timestamp) {
        write(&mut self.out, events);
    }

    fn refresh(&mut self, _: Timestamp) {}

    fn finish(&mut self, _: Timestamp) -> Vec<FailedStep> {
        Vec::new()
    }
}

/// Writes a message outside of a display. Upstream's messages have no place for one but a vertex.
pub(super) fn tell(out: &mut dyn Write, notice: &Notice, now: Timestamp) {
    let name = match notice {
        Notice::Warning(_) => super::NO_STEP.to_owned(),
        Notice::Waiting(text) => format!("waiting: {text}"),
    };
    let label = Label::phase(name);
    let mut events = vec![Event::Vertex(Vertex { started: Some(now), completed: Some(now), ..label.vertex() })];
    if let Notice::Warning(text) = notice {
        events.push(Event::Warning(Warning {
            vertex: label.digest,
            level: 1,
            short: text.clone(),
            detail: Vec::new(),
            url: None,
            file: None,
            spans: Vec::new(),
        }));
    }
    write(out, &events);
}

/// Writes events as one line.
fn write(out: &mut dyn Write, events: &[Event]) {
    let mut message = Map::new();
    for event in events {
        let (list, value) = match event {
            Event::Vertex(vertex) => ("vertexes", vertex_json(vertex)),
            Event::Status(status) => ("statuses", status_json(status)),
            Event::Log(log) => ("logs", log_json(log)),
            Event::Warning(warning) => ("warnings", warning_json(warning)),
        };
        let list = message.entry(list).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(list) = list {
            list.push(value);
        }
    }
    // A closed pipe ends the display, not the build.
    let _ = writeln!(out, "{}", Value::Object(message)).and_then(|()| out.flush());
}

/// An object without the fields that are null, empty, zero or false, as Go's `omitempty`. Messages that are there stay, however
/// little is in them; maps and lists do not.
fn object(fields: Vec<(&str, Value)>) -> Value {
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    };
    fields.into_iter().filter(|(_, value)| !empty(value)).map(|(key, value)| (key.to_owned(), value)).collect()
}

fn time(at: Option<Timestamp>) -> Value {
    at.map_or(Value::Null, |at| Value::String(at.to_string()))
}

fn group_json(id: &str, name: &str, weak: bool) -> Value {
    object(vec![("id", json!(id)), ("name", json!(name)), ("weak", json!(weak))])
}

fn vertex_json(vertex: &Vertex) -> Value {
    let group = |group: &ProgressGroup| group_json(&group.id, &group.name, group.weak);
    object(vec![
        ("digest", json!(vertex.digest)),
        ("inputs", json!(vertex.inputs)),
        ("name", json!(vertex.name)),
        ("started", time(vertex.started)),
        ("completed", time(vertex.completed)),
        ("cached", json!(vertex.cached)),
        ("error", json!(vertex.error)),
        ("progressGroup", vertex.group.as_ref().map_or(Value::Null, group)),
    ])
}

fn status_json(status: &Status) -> Value {
    let Value::Object(rest) = object(vec![
        ("started", time(status.started)),
        ("completed", time(status.completed)),
        ("total", json!(status.total)),
    ]) else {
        return Value::Null;
    };
    let mut out = Map::new();
    out.insert("id".into(), json!(status.id));
    out.insert("vertex".into(), json!(status.vertex));
    if !status.name.is_empty() {
        out.insert("name".into(), json!(status.name));
    }
    out.insert("current".into(), json!(status.current));
    out.insert("timestamp".into(), time(Some(status.timestamp)));
    out.extend(rest);
    Value::Object(out)
}

fn log_json(log: &Log) -> Value {
    let stream = match log.stream {
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    };
    json!({
        "vertex": log.vertex,
        "stream": stream,
        "data": STANDARD.encode(&log.bytes),
        "timestamp": log.timestamp.to_string(),
    })
}

fn warning_json(warning: &Warning) -> Value {
    let bytes = |text: &String| Value::String(STANDARD.encode(text));
    let ranges = warning.spans.iter().map(|span| json!({ "start": position(span.start), "end": position(span.end) }));
    let file = warning.file.as_ref().map_or(Value::Null, |file| {
        let definition = (!file.definition.is_empty()).then(|| pb::Definition::decode(file.definition.as_slice()));
        file_json(&file.name, &file.data, &file.language, definition.and_then(Result::ok).as_ref())
    });
    object(vec![
        ("vertex", json!(warning.vertex)),
        ("level", json!(warning.level)),
        ("short", bytes(&warning.short)),
        ("detail", warning.detail.iter().map(bytes).collect()),
        ("url", json!(warning.url)),
        ("sourceInfo", file),
        ("range", ranges.collect()),
    ])
}

fn position((line, character): (u32, u32)) -> Value {
    object(vec![("line", json!(line)), ("character", json!(character))])
}

fn file_json(name: &str, data: &[u8], language: &str, definition: Option<&pb::Definition>) -> Value {
    object(vec![
        ("filename", json!(name)),
        ("data", Value::String(STANDARD.encode(data))),
        ("definition", definition.map_or(Value::Null, definition_json)),
        ("language", json!(language)),
    ])
}

/// The LLB that a file was read by.
fn definition_json(definition: &pb::Definition) -> Value {
    object(vec![
        ("def", definition.def.iter().map(|op| STANDARD.encode(op)).collect()),
        ("metadata", map(&definition.metadata, metadata_json)),
        ("Source", definition.source.as_ref().map_or(Value::Null, source_json)),
    ])
}

fn metadata_json(metadata: &pb::OpMetadata) -> Value {
    let exported = |cache: &pb::ExportCache| object(vec![("Value", json!(cache.value))]);
    let group = |group: &pb::ProgressGroup| group_json(&group.id, &group.name, group.weak);
    object(vec![
        ("ignore_cache", json!(metadata.ignore_cache)),
        ("description", map(&metadata.description, |text| json!(text))),
        ("export_cache", metadata.export_cache.as_ref().map_or(Value::Null, exported)),
        ("caps", map(&metadata.caps, |needed| json!(needed))),
        ("progress_group", metadata.progress_group.as_ref().map_or(Value::Null, group)),
    ])
}

fn source_json(source: &pb::Source) -> Value {
    let range = |range: &pb::Range| {
        let at = |at: Option<pb::Position>| {
            at.map_or(Value::Null, |at| position((at.line.max(0) as u32, at.character.max(0) as u32)))
        };
        object(vec![("start", at(range.start)), ("end", at(range.end))])
    };
    let location = |location: &pb::Location| {
        let ranges = location.ranges.iter().map(range).collect();
        object(vec![("sourceIndex", json!(location.source_index)), ("ranges", ranges)])
    };
    let locations = |found: &pb::Locations| object(vec![("locations", found.locations.iter().map(location).collect())]);
    let info = |info: &pb::SourceInfo| file_json(&info.filename, &info.data, &info.language, info.definition.as_ref());
    object(vec![("locations", map(&source.locations, locations)), ("infos", source.infos.iter().map(info).collect())])
}

/// A map, its keys in order as Go writes them; none that is empty.
fn map<'a, T: 'a>(entries: impl IntoIterator<Item = (&'a String, &'a T)>, value: impl Fn(&T) -> Value) -> Value {
    let sorted: BTreeMap<_, _> = entries.into_iter().map(|(key, entry)| (key, value(entry))).collect();
    let empty = sorted.is_empty();
    let object = sorted.into_iter().map(|(key, value)| (key.clone(), value)).collect();
    if empty { Value::Null } else { Value::Object(object) }
}
