//! Progress events as `StatusResponse`.

use base::progress::{Event, Log, ProgressGroup, Status, Stream, Vertex, Warning};
use jiff::Timestamp;
use proto::moby::buildkit::v1 as wire;
use proto::{pb, protobuf};

/// About so many bytes go into one message.
const CHUNK: usize = 1 << 20;
/// What an event has beside its output.
const SMALL: usize = 256;

/// Events in as few messages as sensible, in order.
pub fn responses(events: &[Event]) -> Vec<wire::StatusResponse> {
    let mut responses = Vec::new();
    let mut response = wire::StatusResponse::default();
    let mut size = 0;
    for event in events {
        size += SMALL;
        match event {
            Event::Vertex(vertex) => response.vertexes.push(self::vertex(vertex)),
            Event::Status(status) => response.statuses.push(self::status(status)),
            Event::Log(log) => {
                size += log.bytes.len();
                response.logs.push(self::log(log));
            }
            Event::Warning(warning) => response.warnings.push(self::warning(warning)),
        }
        if size > CHUNK {
            size = 0;
            responses.push(std::mem::take(&mut response));
        }
    }
    responses.push(response);
    responses
}

/// The other way round: what a daemon tells. What makes no sense is left out.
pub fn events(response: wire::StatusResponse) -> Vec<Event> {
    let mut events = Vec::new();
    for vertex in response.vertexes {
        let Ok(digest) = vertex.digest.parse() else { continue };
        events.push(Event::Vertex(Vertex {
            digest,
            inputs: vertex.inputs.iter().filter_map(|input| input.parse().ok()).collect(),
            name: vertex.name,
            started: vertex.started.map(timestamp),
            completed: vertex.completed.map(timestamp),
            cached: vertex.cached,
            error: Some(vertex.error).filter(|error| !error.is_empty()),
            group: vertex.progress_group.map(|group| ProgressGroup {
                id: group.id,
                name: group.name,
                weak: group.weak,
            }),
        }));
    }
    for status in response.statuses {
        let Ok(vertex) = status.vertex.parse() else { continue };
        events.push(Event::Status(Status {
            vertex,
            id: status.id,
            name: status.name,
            current: status.current.max(0) as u64,
            total: status.total.max(0) as u64,
            timestamp: status.timestamp.map(timestamp).unwrap_or_default(),
            started: status.started.map(timestamp),
            completed: status.completed.map(timestamp),
        }));
    }
    for log in response.logs {
        let Ok(vertex) = log.vertex.parse() else { continue };
        let stream = if log.stream == 2 { Stream::Stderr } else { Stream::Stdout };
        let timestamp = log.timestamp.map(timestamp).unwrap_or_default();
        events.push(Event::Log(Log { vertex, stream, timestamp, bytes: log.msg }));
    }
    for warning in response.warnings {
        let Ok(vertex) = warning.vertex.parse() else { continue };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        events.push(Event::Warning(Warning {
            vertex,
            level: warning.level,
            short: text(warning.short),
            detail: warning.detail.into_iter().map(text).collect(),
            url: Some(warning.url).filter(|url| !url.is_empty()),
            file: warning.info.map(|info| std::sync::Arc::new(super::error::source_file(info))),
            spans: warning.ranges.iter().map(super::error::span).collect(),
        }));
    }
    events
}

fn timestamp(time: protobuf::Timestamp) -> Timestamp {
    Timestamp::new(time.seconds, time.nanos).unwrap_or_default()
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
        name: status.name.clone(),
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
        info: warning.file.as_ref().map(|file| super::error::source_info(file)),
        ranges: warning
            .spans
            .iter()
            .map(|span| pb::Range { start: Some(position(span.start)), end: Some(position(span.end)) })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use base::{Digest, SourceFile, SourceSpan};

    use super::*;

    #[test]
    fn what_is_done_has_buildkits_word() {
        for (id, name) in [
            ("transferring context:", "transferring"),
            ("copying files linux/amd64", "transferring"),
            ("exporting layers", ""),
            ("transferringx", ""),
        ] {
            let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
            let seen = told.clone();
            let sink = std::sync::Arc::new(move |event: Event| seen.lock().expect("not poisoned").push(event));
            drop(base::report::Tasks::new(sink, Digest::of("v")).start(id, 0));
            let sent = responses(&told.lock().expect("not poisoned"));
            let names: Vec<_> =
                sent.iter().flat_map(|response| &response.statuses).map(|status| &status.name).collect();
            assert_eq!(names, [name, name], "{id}");
        }
    }

    #[test]
    fn events_survive_the_wire() {
        let at = Timestamp::new(-5, 0).expect("a time");
        let vertex = Digest::of("v");
        let group = Some(ProgressGroup { id: "g".into(), name: "G".into(), weak: true });
        let file = SourceFile { name: "f".into(), data: vec![0, 255], language: "l".into(), definition: Vec::new() };
        let events = vec![
            Event::Vertex(Vertex {
                digest: vertex,
                inputs: vec![Digest::of("i")],
                name: "n".into(),
                started: Some(at),
                completed: None,
                cached: true,
                error: Some("e".into()),
                group,
            }),
            Event::Status(Status {
                vertex,
                id: "s".into(),
                name: "n".into(),
                current: 1,
                total: 2,
                timestamp: at,
                started: Some(at),
                completed: Some(at),
            }),
            Event::Log(Log { vertex, stream: Stream::Stderr, timestamp: at, bytes: vec![255, 10] }),
            Event::Warning(Warning {
                vertex,
                level: 1,
                short: "w".into(),
                detail: vec!["d".into()],
                url: None,
                file: Some(std::sync::Arc::new(file)),
                spans: vec![SourceSpan::lines(2, 3)],
            }),
        ];
        let back: Vec<Event> = responses(&events).into_iter().flat_map(super::events).collect();
        assert_eq!(back, events);
    }
}
