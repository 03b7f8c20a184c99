//! The state of a build as displays need it: items in the order of their start, each a vertex or a group of
//! vertices that is shown as one.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use base::Digest;
use base::progress::{CANCELLED, Event, Log, Status, Vertex, Warning};
use jiff::Timestamp;

use super::log_window::LogWindow;
use super::seconds;
use crate::fault::FailedStep;

/// How much of the end of a step's log is kept for when it fails.
const TAIL_LINES: usize = 10;
/// How much of the end of each of these lines: a line may never end.
const TAIL_LINE_BYTES: usize = 4096;

/// Everything known.
#[derive(Default)]
pub(super) struct Trace {
    /// When the first vertex started.
    pub started: Option<Timestamp>,
    /// In the order in which they became visible.
    pub items: Vec<Item>,
    /// Where an announced vertex is shown.
    places: HashMap<Digest, usize>,
    groups: HashMap<String, usize>,
    /// Vertices that were announced outside of groups, started or not.
    announced: HashSet<Digest>,
    /// Indices of items in the order in which they became visible.
    pub visible: Vec<usize>,
    /// Every warning.
    pub warnings: Vec<Warning>,
    /// Warnings and output of vertices that nobody has announced yet.
    orphans: Vec<Event>,
}

/// One line of the display.
#[derive(Default)]
pub(super) struct Item {
    pub name: String,
    /// Start -> end; a vertex may run more than once.
    pub runs: BTreeMap<Timestamp, Option<Timestamp>>,
    pub cached: bool,
    pub error: Option<String>,
    pub statuses: Vec<StatusState>,
    pub warnings: Vec<Warning>,
    /// Output that nobody printed yet.
    pub pending_log: Vec<LogPiece>,
    /// The last line so far does not end in a newline.
    open_line: bool,
    tail: VecDeque<TailLine>,
    pub window: LogWindow,
    /// Something changed since a line display printed this item.
    pub changed: bool,
    /// Since when changes wait to be printed.
    pub waiting_since: Option<Timestamp>,
    /// Members of a group by digest.
    members: BTreeMap<Digest, Vertex>,
    visible: bool,
}

/// A sub-task.
pub(super) struct StatusState {
    pub status: Status,
    /// It moved since a line display printed it.
    pub moved: bool,
    /// What was printed last, and when.
    pub printed: Option<(u64, Timestamp)>,
}

/// Output of one moment.
pub(super) struct LogPiece {
    /// Seconds since the step began.
    pub at: f64,
    pub bytes: Vec<u8>,
    /// It goes on in the line of the piece before.
    pub continues: bool,
}

/// One of the last lines of output.
struct TailLine {
    /// Seconds since the step began.
    at: f64,
    /// Without the newline.
    text: Vec<u8>,
    /// Its beginning is gone.
    cut: bool,
}

impl Item {
    /// When it last began.
    pub fn last_start(&self) -> Option<Timestamp> {
        self.runs.keys().next_back().copied()
    }

    pub fn is_started(&self) -> bool {
        !self.runs.is_empty()
    }

    /// It ran and no run is open.
    pub fn is_completed(&self) -> bool {
        self.is_started() && self.runs.values().all(Option::is_some)
    }

    /// When the last run ended; none while one is open.
    pub fn ended(&self) -> Option<Timestamp> {
        self.runs.values().copied().collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// Time spent, overlaps counted once; an open run lasts until `now`.
    pub fn spent(&self, now: Timestamp) -> f64 {
        let mut total = 0.0;
        let mut covered: Option<Timestamp> = None;
        for (start, end) in &self.runs {
            let end = end.unwrap_or(now);
            let from = covered.map_or(*start, |covered| covered.max(*start));
            total += seconds(from, end);
            covered = Some(covered.map_or(end, |covered| covered.max(end)));
        }
        total
    }

    pub fn is_cancelled(&self) -> bool {
        self.error.as_deref().is_some_and(|e| e.ends_with(CANCELLED) || e.ends_with("cancelled"))
    }

    fn touch(&mut self, now: Timestamp) {
        self.changed = true;
        self.waiting_since.get_or_insert(now);
    }

    fn add_log(&mut self, log: &Log) {
        if log.bytes.is_empty() {
            return;
        }
        self.window.write(&log.bytes);
        let at = self.last_start().map_or(0.0, |start| seconds(start, log.timestamp));
        match self.pending_log.last_mut() {
            // What cannot be told apart by its time needs no piece of its own: some write byte by byte.
            Some(last) if log_time(last.at) == log_time(at) => last.bytes.extend_from_slice(&log.bytes),
            _ => self.pending_log.push(LogPiece { at, bytes: log.bytes.clone(), continues: self.open_line }),
        }
        self.add_tail(at, &log.bytes);
    }

    /// Output that nobody printed yet.
    pub fn pending_bytes(&self) -> usize {
        self.pending_log.iter().map(|piece| piece.bytes.len()).sum()
    }

    fn add_tail(&mut self, at: f64, bytes: &[u8]) {
        let last = last_lines(bytes, TAIL_LINES);
        // Lines in between make the open one an old one.
        let mut goes_on = self.open_line && last.len() == bytes.len();
        for line in last.split_inclusive(|b| *b == b'\n') {
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            match self.tail.back_mut() {
                Some(last) if std::mem::take(&mut goes_on) => last.add(text),
                _ => {
                    let mut new = TailLine { at, text: Vec::new(), cut: false };
                    new.add(text);
                    self.tail.push_back(new);
                }
            }
            self.open_line = text.len() == line.len();
        }
        let gone = self.tail.len().saturating_sub(TAIL_LINES);
        self.tail.drain(..gone);
    }
}

impl TailLine {
    fn add(&mut self, text: &[u8]) {
        let text = if text.len() > TAIL_LINE_BYTES {
            self.text.clear();
            self.cut = true;
            &text[text.len() - TAIL_LINE_BYTES..]
        } else {
            text
        };
        self.text.extend_from_slice(text);
        // Not at every byte.
        if self.text.len() > 2 * TAIL_LINE_BYTES {
            self.text.drain(..self.text.len() - TAIL_LINE_BYTES);
            self.cut = true;
        }
    }

    fn print(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(log_time(self.at).as_bytes());
        out.extend_from_slice(if self.cut { b" [..]" } else { b" " });
        out.extend_from_slice(&self.text);
        out.push(b'\n');
    }
}

/// The end of `bytes`, from the beginning of the last so many lines.
fn last_lines(bytes: &[u8], count: usize) -> &[u8] {
    let inner = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let newlines = inner.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    newlines.map(|(at, _)| &bytes[at + 1..]).nth(count - 1).unwrap_or(bytes)
}

/// The time in front of a line of output: three digits are shown while they fit.
pub(super) fn log_time(at: f64) -> String {
    match at {
        _ if at < 10.0 => format!("{at:.3}"),
        _ if at < 100.0 => format!("{at:.2}"),
        _ => format!("{at:.1}"),
    }
}

impl Trace {
    pub fn update(&mut self, events: &[Event], now: Timestamp) {
        for event in events {
            match event {
                Event::Vertex(vertex) => self.vertex(vertex, now),
                Event::Status(status) => self.status(status, now),
                Event::Log(log) if self.places.contains_key(&log.vertex) => {
                    self.with_item(&log.vertex, now, |item| item.add_log(log));
                }
                Event::Warning(warning) => {
                    self.warnings.push(warning.clone());
                    self.warn(warning, now);
                }
                Event::Log(_) => self.orphans.push(event.clone()),
            }
        }
    }

    /// The build ended. What still runs by then was given up: nobody waited for its end.
    pub fn end(&mut self, now: Timestamp) {
        for index in &self.visible {
            let item = &mut self.items[*index];
            if item.is_started() && !item.is_completed() {
                item.runs.values_mut().for_each(|end| _ = end.get_or_insert(now));
                item.error = Some(CANCELLED.to_owned());
                item.touch(now);
            }
        }
        self.adopt_the_rest(now);
    }

    fn warn(&mut self, warning: &Warning, now: Timestamp) {
        if self.places.contains_key(&warning.vertex) {
            self.with_item(&warning.vertex, now, |item| item.warnings.push(warning.clone()));
        } else {
            self.orphans.push(Event::Warning(warning.clone()));
        }
    }

    /// Takes what came before its vertex was announced.
    fn adopt(&mut self, digest: Digest, now: Timestamp) {
        if self.orphans.is_empty() {
            return;
        }
        let is_mine = |event: &Event| match event {
            Event::Log(log) => log.vertex == digest,
            Event::Warning(warning) => warning.vertex == digest,
            Event::Vertex(_) | Event::Status(_) => false,
        };
        let (mine, others) = std::mem::take(&mut self.orphans).into_iter().partition(is_mine);
        self.orphans = others;
        self.with_orphans(&digest, mine, now);
    }

    fn with_orphans(&mut self, digest: &Digest, orphans: Vec<Event>, now: Timestamp) {
        self.with_item(digest, now, |item| {
            for event in orphans {
                match event {
                    Event::Log(log) => item.add_log(&log),
                    Event::Warning(warning) => item.warnings.push(warning),
                    Event::Vertex(_) | Event::Status(_) => {}
                }
            }
        });
    }

    /// Shows what belongs to no vertex as one of its own.
    fn adopt_the_rest(&mut self, now: Timestamp) {
        let orphans = std::mem::take(&mut self.orphans);
        if orphans.is_empty() {
            return;
        }
        let label = base::report::Label::phase(super::NO_STEP);
        self.vertex(&Vertex { started: Some(now), completed: Some(now), ..label.vertex() }, now);
        self.with_orphans(&label.digest, orphans, now);
    }

    /// Visible items and how many of them are done, over all that was announced.
    pub fn counts(&self) -> (usize, usize) {
        let groups = self.groups.values().filter(|index| self.items[**index].visible).count();
        let done = self.visible.iter().filter(|index| self.items[**index].is_completed()).count();
        (done, self.announced.len() + groups)
    }

    /// The steps that failed, with their last output.
    pub fn failed_steps(&self) -> Vec<FailedStep> {
        let failed = self.visible.iter().map(|index| &self.items[*index]);
        failed
            .filter(|item| item.error.is_some() && !item.is_cancelled())
            .map(|item| {
                let mut tail = Vec::new();
                item.tail.iter().for_each(|line| line.print(&mut tail));
                FailedStep { name: item.name.clone(), tail }
            })
            .collect()
    }

    fn with_item(&mut self, digest: &Digest, now: Timestamp, change: impl FnOnce(&mut Item)) {
        if let Some(index) = self.places.get(digest) {
            let item = &mut self.items[*index];
            change(item);
            item.touch(now);
        }
    }

    fn vertex(&mut self, vertex: &Vertex, now: Timestamp) {
        if self.started.is_none() {
            self.started = vertex.started;
        }
        let index = match (&vertex.group, self.places.get(&vertex.digest)) {
            (Some(group), _) => {
                let index = *self.groups.entry(group.id.clone()).or_insert_with(|| {
                    self.items.push(Item { name: group.name.clone(), ..Item::default() });
                    self.items.len() - 1
                });
                self.items[index].members.insert(vertex.digest, vertex.clone());
                index
            }
            (None, Some(index)) => *index,
            (None, None) => {
                self.announced.insert(vertex.digest);
                self.items.push(Item::default());
                self.items.len() - 1
            }
        };
        let new = self.places.insert(vertex.digest, index).is_none();
        let item = &mut self.items[index];
        let before = item.state();
        let shown = match vertex.group {
            Some(_) => item.take_group(),
            None => item.take_vertex(vertex),
        };
        // Builds that share a vertex announce it again and again.
        if item.is_started() && item.state() != before {
            item.touch(now);
        }
        if shown && !item.visible {
            item.visible = true;
            self.visible.push(index);
        }
        if new {
            self.adopt(vertex.digest, now);
        }
    }

    fn status(&mut self, status: &Status, now: Timestamp) {
        self.with_item(&status.vertex, now, |item| {
            match item.statuses.iter_mut().find(|known| known.status.id == status.id) {
                Some(known) => {
                    known.status = status.clone();
                    known.moved = true;
                }
                None => item.statuses.push(StatusState { status: status.clone(), moved: true, printed: None }),
            }
        });
    }
}

impl Item {
    /// What a line display has to tell about its vertex.
    fn state(&self) -> (String, BTreeMap<Timestamp, Option<Timestamp>>, bool, Option<String>) {
        (self.name.clone(), self.runs.clone(), self.cached, self.error.clone())
    }

    /// Takes the state of its vertex; answers whether it has started.
    fn take_vertex(&mut self, vertex: &Vertex) -> bool {
        // A second announcement of a vertex that runs must not reset it.
        if vertex.started.is_some() || !self.is_started() {
            self.name.clone_from(&vertex.name);
            self.cached = vertex.cached;
            self.error.clone_from(&vertex.error);
        }
        if let Some(started) = vertex.started {
            self.runs.insert(started, vertex.completed);
        }
        self.is_started()
    }

    /// Sums up its members; answers whether a member that matters has started or one has failed.
    fn take_group(&mut self) -> bool {
        let members = self.members.values();
        self.runs = members.clone().filter_map(|v| Some((v.started?, v.completed))).collect();
        self.cached = members.clone().all(|v| v.cached);
        self.error = members.clone().find_map(|v| v.error.clone());
        let weak = |v: &Vertex| v.group.as_ref().is_some_and(|group| group.weak);
        self.error.is_some() || self.members.values().any(|v| v.started.is_some() && !weak(v))
    }
}
