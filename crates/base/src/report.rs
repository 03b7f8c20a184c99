//! Writing to a build's event stream: vertices with a start and an end, and their sub-tasks.
//!
//! The one module of this crate that looks at the clock.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::progress::{CANCELLED, Event, Log, ProgressGroup, Room, Sink, Status, Stream, Vertex};
use crate::{Digest, Platform};
use jiff::Timestamp;

/// What is kept of a vertex's output for builds that come late; more than people scroll back.
const PAST_BYTES: usize = 512 << 10;
/// What late builds see of output that was not kept.
const LEFT_OUT: &[u8] = b"[earlier output is left out]\n";

/// A vertex that builds share: all of them hear of it, each by the name that the vertex has there. Who comes late hears
/// from the beginning.
#[derive(Default)]
pub struct Relay(Mutex<Shared>);

#[derive(Default)]
struct Shared {
    listeners: Vec<(Arc<dyn Sink>, Digest)>,
    past: VecDeque<Event>,
    /// Bytes of output in `past`.
    held: usize,
    left_out: bool,
}

impl Relay {
    /// Has a build hear of the vertex, by this name. It is told what happened so far, unless it hears of it already.
    pub fn join(&self, sink: &Arc<dyn Sink>, name: Digest) {
        let mut shared = self.lock();
        if shared.listeners.iter().any(|(known, _)| is_same(known, sink)) {
            return;
        }
        if shared.left_out {
            Tasks::new(sink.clone(), name).log(Stream::Stdout, LEFT_OUT);
        }
        shared.past.iter().for_each(|event| sink.emit(named(event.clone(), name)));
        shared.listeners.push((sink.clone(), name));
    }

    /// Whether a build hears of it.
    pub fn has(&self, sink: &Arc<dyn Sink>) -> bool {
        self.lock().listeners.iter().any(|(known, _)| is_same(known, sink))
    }

    /// A build need hear no more. Returns whether anybody still listens.
    pub fn leave(&self, sink: &Arc<dyn Sink>) -> bool {
        let mut shared = self.lock();
        shared.listeners.retain(|(known, _)| !is_same(known, sink));
        !shared.listeners.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Relay {
    fn emit(&self, event: Event) {
        // Under the lock, so that who joins meanwhile gets each event once and in order.
        let mut shared = self.lock();
        shared.listeners.iter().for_each(|(sink, name)| sink.emit(named(event.clone(), *name)));
        shared.remember(event);
    }

    fn room(&self) -> Room {
        let rooms: Vec<Room> = self.lock().listeners.iter().map(|(sink, _)| sink.room()).collect();
        Box::pin(async move {
            for room in rooms {
                room.await;
            }
        })
    }
}

impl Shared {
    /// Of a sub-task the last state is enough, of output the end.
    fn remember(&mut self, event: Event) {
        if let Event::Status(new) = &event {
            let known = self.past.iter_mut().rev().find(|past| matches!(past, Event::Status(old) if old.id == new.id));
            if let Some(known) = known {
                return *known = event;
            }
        }
        self.held += output_len(&event);
        self.past.push_back(event);
        while self.held > PAST_BYTES {
            let Some(at) = self.past.iter().position(|event| output_len(event) > 0) else { break };
            self.held -= self.past.remove(at).as_ref().map_or(0, output_len);
            self.left_out = true;
        }
    }
}

/// What an event takes up beside its bytes: some programs write one byte at a time.
const EVENT_BYTES: usize = 256;

/// What a piece of output takes up; what is no output counts nothing.
fn output_len(event: &Event) -> usize {
    match event {
        Event::Log(log) => log.bytes.len() + EVENT_BYTES,
        _ => 0,
    }
}

/// Whether these are one build's.
fn is_same(one: &Arc<dyn Sink>, two: &Arc<dyn Sink>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(two))
}

/// An event of the vertex by another name.
fn named(mut event: Event, name: Digest) -> Event {
    match &mut event {
        Event::Vertex(vertex) => vertex.digest = name,
        Event::Status(status) => status.vertex = name,
        Event::Log(log) => log.vertex = name,
        Event::Warning(warning) => warning.vertex = name,
    }
    event
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

    /// A question about an image, which is no op: `load metadata for ..`. Whoever asks the same in a build, for another
    /// platform of the result too, is shown the same vertex; it has BuildKit's digest, which joins the two as they are.
    pub fn question(name: impl Into<String>, identifier: &str, platform: &Platform) -> Label {
        let digest = Digest::of(format!("{identifier}{platform}"));
        Label { digest, name: name.into(), inputs: Vec::new(), group: None }
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
        self.finish(Some(CANCELLED.to_owned()));
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
        let (now, id) = (Timestamp::now(), id.into());
        let status = Status {
            vertex: self.vertex,
            name: action(&id).to_owned(),
            id,
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

/// What is being done in a sub-task, where BuildKit has a word for it.
fn action(id: &str) -> &'static str {
    const ACTIONS: [(&str, &str); 3] =
        [("transferring", "transferring"), ("extracting", "extracting"), ("copying files", "transferring")];
    let is_it = |begin: &str| id.strip_prefix(begin).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    ACTIONS.iter().find(|(begin, _)| is_it(begin)).map_or("", |(_, action)| action)
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

    /// For what somebody else reads.
    pub fn of_reading(self) -> Reading {
        Reading(Arc::new(Mutex::new(self)))
    }
}

/// A sub-task that is as far as what somebody read.
pub struct Reading(Arc<Mutex<Task>>);

impl Reading {
    /// What is to be read.
    pub fn count<R: Read>(&self, from: R) -> Counted<R> {
        Counted { from, read: 0, task: self.0.clone() }
    }

    /// Ends it: all is where it was to go, whether or not it had to be read for that.
    pub fn all(self) {
        let mut task = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        task.status.current = task.status.total;
    }
}

/// A reader whose bytes are [counted](Reading::count).
pub struct Counted<R> {
    from: R,
    read: u64,
    task: Arc<Mutex<Task>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buf)?;
        self.read += read as u64;
        self.task.lock().unwrap_or_else(PoisonError::into_inner).at(self.read);
        Ok(read)
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
    use super::*;

    fn collector() -> (Arc<dyn Sink>, Arc<Mutex<Vec<Event>>>) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        (Arc::new(move |e: Event| seen.lock().expect("not poisoned").push(e)), events)
    }

    fn outputs(events: &Mutex<Vec<Event>>) -> Vec<(Digest, String)> {
        let events = events.lock().expect("not poisoned");
        let text = |event: &Event| match event {
            Event::Log(log) => Some((log.vertex, String::from_utf8_lossy(&log.bytes).into_owned())),
            _ => None,
        };
        events.iter().filter_map(text).collect()
    }

    #[test]
    fn who_joins_late_hears_from_the_beginning_and_by_its_own_name() {
        let [vertex, other] = ["vertex", "other"].map(Digest::of);
        let (early, late) = (collector(), collector());
        let relay = Arc::new(Relay::default());
        relay.join(&early.0, vertex);
        let tasks = Tasks::new(relay.clone(), vertex);
        tasks.log(Stream::Stdout, b"one");
        drop(tasks.start("part", 1));
        relay.join(&late.0, other);
        relay.join(&late.0, other);
        tasks.log(Stream::Stdout, b"two");
        let both = |name| ["one", "two"].map(|text| (name, text.to_owned()));
        assert_eq!(outputs(&early.1), both(vertex));
        assert_eq!(outputs(&late.1), both(other));
        // The sub-task had ended: its last state is all that there is to say.
        let states = |events: &Mutex<Vec<Event>>| {
            events.lock().expect("not poisoned").iter().filter(|event| matches!(event, Event::Status(_))).count()
        };
        assert_eq!((states(&early.1), states(&late.1)), (2, 1));
        assert!(relay.leave(&early.0));
        tasks.log(Stream::Stdout, b"three");
        assert_eq!((outputs(&early.1).len(), outputs(&late.1).len()), (2, 3));
        assert!(!relay.leave(&late.0));
    }

    #[test]
    fn of_endless_output_the_end_is_kept() {
        let name = Digest::of("vertex");
        let relay = Arc::new(Relay::default());
        let tasks = Tasks::new(relay.clone(), name);
        let lines = PAST_BYTES / (1000 + EVENT_BYTES) + 10;
        (0..lines).for_each(|line| tasks.log(Stream::Stdout, format!("{line:0>1000}").as_bytes()));
        let (late, events) = collector();
        relay.join(&late, name);
        let outputs = outputs(&events);
        assert_eq!(outputs[0].1.as_bytes(), LEFT_OUT);
        assert_eq!(outputs.last().map(|(_, text)| text.trim_start_matches('0').parse()), Some(Ok(lines - 1)));
        assert!(outputs.iter().map(|(_, text)| text.len()).sum::<usize>() <= PAST_BYTES + LEFT_OUT.len());
    }

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
        assert_eq!(ends, [("a".to_owned(), Some(CANCELLED.to_owned())), ("b".to_owned(), None)]);
        assert_eq!(events.iter().filter(|e| matches!(e, Event::Status(_))).count(), 2);
    }
}
