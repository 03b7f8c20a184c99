//! Writing to a build's event stream: vertices with a start and an end, and their sub-tasks.
//!
//! The one module of this crate that looks at the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Digest;
use crate::progress::{Event, Log, ProgressGroup, Room, Sink, Status, Stream, Vertex};
use jiff::Timestamp;

/// Several readers of one stream: a vertex that builds share reports to each of them.
#[derive(Clone, Default)]
pub struct Fanout(Vec<Arc<dyn Sink>>);

impl Fanout {
    /// Hands every event to each of `sinks`.
    pub fn new(sinks: Vec<Arc<dyn Sink>>) -> Fanout {
        Fanout(sinks)
    }
}

impl Sink for Fanout {
    fn emit(&self, event: Event) {
        if let Some((last, rest)) = self.0.split_last() {
            rest.iter().for_each(|sink| sink.emit(event.clone()));
            last.emit(event);
        }
    }

    fn room(&self) -> Room {
        match &self.0[..] {
            [one] => one.room(),
            all => {
                let all: Vec<Room> = all.iter().map(|sink| sink.room()).collect();
                Box::pin(async move {
                    for room in all {
                        room.await;
                    }
                })
            }
        }
    }
}

/// A vertex that has begun. Ends when told so; dropped without a word it ends as cancelled.
pub struct Running {
    sink: Arc<dyn Sink>,
    vertex: Vertex,
    ended: bool,
}

/// What a vertex is, before anything happened to it.
#[derive(Clone, Debug)]
pub struct Label {
    /// Its digest.
    pub digest: Digest,
    /// What people see.
    pub name: String,
    /// What it reads.
    pub inputs: Vec<Digest>,
    /// Shown as one with others.
    pub group: Option<ProgressGroup>,
}

impl Label {
    /// A phase that is no op: `exporting to image`. Each call makes a vertex of its own.
    pub fn phase(name: impl Into<String>) -> Label {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = name.into();
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let digest = Digest::of(format!("phase:{}:{}:{name}", std::process::id(), unique));
        Label { digest, name, inputs: Vec::new(), group: None }
    }

    /// The vertex, to which nothing happened yet.
    pub fn vertex(&self) -> Vertex {
        Vertex {
            digest: self.digest,
            inputs: self.inputs.clone(),
            name: self.name.clone(),
            started: None,
            completed: None,
            cached: false,
            error: None,
            group: self.group.clone(),
        }
    }
}

impl Running {
    /// Says that work on it begins.
    pub fn start(sink: Arc<dyn Sink>, label: &Label) -> Running {
        let mut vertex = label.vertex();
        vertex.started = Some(Timestamp::now());
        sink.emit(Event::Vertex(vertex.clone()));
        Running { sink, vertex, ended: false }
    }

    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.vertex.digest
    }

    /// For its sub-tasks.
    pub fn tasks(&self) -> Tasks {
        Tasks { sink: self.sink.clone(), vertex: self.vertex.digest }
    }

    /// Says how it ended, and hands the result on.
    pub fn end<T, E: std::fmt::Display>(mut self, result: Result<T, E>) -> Result<T, E> {
        self.finish(result.as_ref().err().map(ToString::to_string));
        result
    }

    fn finish(&mut self, error: Option<String>) {
        if !std::mem::replace(&mut self.ended, true) {
            self.vertex.completed = Some(Timestamp::now());
            self.vertex.error = error;
            self.sink.emit(Event::Vertex(self.vertex.clone()));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.finish(Some("cancelled".to_owned()));
    }
}

/// Sub-tasks and output of one vertex.
#[derive(Clone)]
pub struct Tasks {
    sink: Arc<dyn Sink>,
    vertex: Digest,
}

impl Tasks {
    /// Sub-tasks of `vertex`.
    pub fn new(sink: Arc<dyn Sink>, vertex: Digest) -> Tasks {
        Tasks { sink, vertex }
    }

    /// Begins a sub-task. `total` is 0 when unknown.
    pub fn start(&self, id: impl Into<String>, total: u64) -> Task {
        let now = Timestamp::now();
        let status = Status {
            vertex: self.vertex,
            id: id.into(),
            current: 0,
            total,
            timestamp: now,
            started: Some(now),
            completed: None,
        };
        self.sink.emit(Event::Status(status.clone()));
        Task { sink: self.sink.clone(), status, shown: now }
    }

    /// Ready when readers have room for more output.
    pub fn room(&self) -> Room {
        self.sink.room()
    }

    /// Output of a step.
    pub fn log(&self, stream: Stream, bytes: &[u8]) {
        let log = Log { vertex: self.vertex, stream, timestamp: Timestamp::now(), bytes: bytes.to_vec() };
        self.sink.emit(Event::Log(log));
    }
}

/// A sub-task under way; it ends when dropped.
pub struct Task {
    sink: Arc<dyn Sink>,
    status: Status,
    shown: Timestamp,
}

impl Task {
    /// Says how far it is. Readers hear of it at most ten times a second.
    pub fn at(&mut self, current: u64) {
        self.status.current = current;
        let now = Timestamp::now();
        if now.duration_since(self.shown).as_millis() >= 100 {
            self.shown = now;
            self.status.timestamp = now;
            self.sink.emit(Event::Status(self.status.clone()));
        }
    }

    /// Says how much there is in all.
    pub fn set_total(&mut self, total: u64) {
        self.status.total = total;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let now = Timestamp::now();
        self.status.timestamp = now;
        self.status.completed = Some(now);
        self.sink.emit(Event::Status(self.status.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_dropped_vertex_ends_as_cancelled_and_an_ended_one_once() {
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        let sink: Arc<dyn Sink> = Arc::new(move |e: Event| seen.lock().expect("not poisoned").push(e));
        drop(Running::start(sink.clone(), &Label::phase("a")));
        let done = Running::start(sink, &Label::phase("b"));
        drop(done.tasks().start("part", 3));
        done.end(Ok::<_, std::io::Error>(())).expect("was ok");
        let events = events.lock().expect("not poisoned");
        let ends: Vec<_> = events
            .iter()
            .filter_map(|e| match e {
                Event::Vertex(v) if v.completed.is_some() => Some((v.name.clone(), v.error.clone())),
                _ => None,
            })
            .collect();
        assert_eq!(ends, [("a".to_owned(), Some("cancelled".to_owned())), ("b".to_owned(), None)]);
        assert_eq!(events.iter().filter(|e| matches!(e, Event::Status(_))).count(), 2);
    }
}
