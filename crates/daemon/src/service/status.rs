//! Progress events as `StatusResponse`.

use base::progress::{Event, Log, Status, Vertex, Warning};
use jiff::Timestamp;
use proto::moby::buildkit::v1 as wire;
use proto::{pb, protobuf};

/// About so many bytes of output go into one message.
const LOG_CHUNK: usize = 1 << 20;

/// Events in as few messages as sensible, in order.
pub fn responses(events: &[Event]) -> Vec<wire::StatusResponse> {
    let mut responses = Vec::new();
    let mut response = wire::StatusResponse::default();
    let mut size = 0;
    for event in events {
        match event {
            Event::Vertex(vertex) => response.vertexes.push(self::vertex(vertex)),
            Event::Status(status) => response.statuses.push(self::status(status)),
            Event::Log(log) => {
                size += log.bytes.len();
                response.logs.push(self::log(log));
            }
            Event::Warning(warning) => response.warnings.push(self::warning(warning)),
        }
        if size > LOG_CHUNK {
            size = 0;
            responses.push(std::mem::take(&mut response));
        }
    }
    responses.push(response);
    responses
}

/// A point in time.
pub fn time(at: Timestamp) -> protobuf::Timestamp {
    // Before 1970 seconds are negative, nanoseconds never are.
    let nanos = at.as_nanosecond();
    protobuf::Timestamp {
        seconds: nanos.div_euclid(1_000_000_000) as i64,
        nanos: nanos.rem_euclid(1_000_000_000) as i32,
    }
}

fn vertex(vertex: &Vertex) -> wire::Vertex {
    wire::Vertex {
        digest: vertex.digest.to_string(),
        inputs: vertex.inputs.iter().map(ToString::to_string).collect(),
        name: vertex.name.clone(),
        cached: vertex.cached,
        started: vertex.started.map(time),
        completed: vertex.completed.map(time),
        error: vertex.error.clone().unwrap_or_default(),
        progress_group: vertex.group.as_ref().map(|group| pb::ProgressGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            weak: group.weak,
        }),
    }
}

fn status(status: &Status) -> wire::VertexStatus {
    wire::VertexStatus {
        id: status.id.clone(),
        vertex: status.vertex.to_string(),
        name: status.id.clone(),
        current: i64::try_from(status.current).unwrap_or(i64::MAX),
        total: i64::try_from(status.total).unwrap_or(i64::MAX),
        timestamp: Some(time(status.timestamp)),
        started: status.started.map(time),
        completed: status.completed.map(time),
    }
}

fn log(log: &Log) -> wire::VertexLog {
    wire::VertexLog {
        vertex: log.vertex.to_string(),
        timestamp: Some(time(log.timestamp)),
        stream: log.stream as i64,
        msg: log.bytes.clone(),
    }
}

fn warning(warning: &Warning) -> wire::VertexWarning {
    let position = |(line, character): (u32, u32)| pb::Position { line: line as i32, character: character as i32 };
    wire::VertexWarning {
        vertex: warning.vertex.to_string(),
        level: warning.level,
        short: warning.short.clone().into_bytes(),
        detail: warning.detail.iter().map(|line| line.clone().into_bytes()).collect(),
        url: warning.url.clone().unwrap_or_default(),
        info: warning.file.as_ref().map(|file| pb::SourceInfo {
            filename: file.name.clone(),
            data: file.data.clone(),
            language: file.language.clone(),
            ..pb::SourceInfo::default()
        }),
        ranges: warning
            .spans
            .iter()
            .map(|span| pb::Range { start: Some(position(span.start)), end: Some(position(span.end)) })
            .collect(),
    }
}
