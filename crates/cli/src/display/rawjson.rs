//! Upstream's status messages as JSON, one batch per line: what `buildx --progress=rawjson` and
//! `buildctl --trace` write, for programs.

use std::io::Write;

use base::progress::{Event, Log, ProgressGroup, Status, Stream, Vertex, Warning};
use base::report::Label;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
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

/// An object without the fields that are null, empty, zero or false, as Go's `omitempty`.
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

fn vertex_json(vertex: &Vertex) -> Value {
    let group = |group: &ProgressGroup| {
        object(vec![("id", json!(group.id)), ("name", json!(group.name)), ("weak", json!(group.weak))])
    };
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
    let position = |(line, character): (u32, u32)| object(vec![("line", json!(line)), ("character", json!(character))]);
    let ranges = warning.spans.iter().map(|span| json!({ "start": position(span.start), "end": position(span.end) }));
    let file = warning.file.as_ref().map_or(Value::Null, |file| {
        object(vec![
            ("filename", json!(file.name)),
            ("data", Value::String(STANDARD.encode(&file.data))),
            ("language", json!(file.language)),
        ])
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
