//! Lines for logs, in BuildKit's manner: one step at a time, `#N` in front of each line.
//!
//! Steps run side by side but are printed one after another: the current one keeps the floor until it ends, or
//! until another has waited too long ([`PATIENCE`]); steps that have ended are printed at once, since theirs is a
//! short block.

use std::io::{BufWriter, Write};

use base::ByteSize;
use base::progress::Event;
use jiff::Timestamp;

use super::trace::{Item, LogPiece, StatusState, Trace, log_time};
use super::{Reader, seconds};
use crate::environment::Environment;
use crate::fault::{FailedStep, print_warnings};

/// How long others wait for a current step that has nothing to say.
const PATIENCE: f64 = 5.0;
/// How long others wait for a current step that talks.
const GREAT_PATIENCE: f64 = 10.0;
/// Output of this size does not wait for the floor.
const LOUD: usize = 1 << 20;
/// Lines are written together, in pieces of this size.
const BUFFER: usize = 64 << 10;
/// A sub-task is printed again when it moved this far ..
const PROGRESS_STEP: f64 = 0.05;
/// .. or after this many seconds.
const PROGRESS_SECONDS: f64 = 5.0;

/// The display.
pub(super) struct Plain {
    trace: Trace,
    printer: Printer,
    summary: bool,
}

struct Printer {
    out: BufWriter<Box<dyn Write + Send>>,
    /// The item that has the floor, until it ends.
    current: Option<usize>,
    /// The cursor is in the middle of a line of the current item.
    mid_line: bool,
    /// Item -> its number, in the order of printing.
    numbers: Vec<usize>,
    printed_any: bool,
    shorten_names: bool,
}

impl Plain {
    pub fn new(out: Box<dyn Write + Send>, environment: &Environment) -> Plain {
        let printer = Printer {
            out: BufWriter::with_capacity(BUFFER, out),
            current: None,
            mid_line: false,
            numbers: Vec::new(),
            printed_any: false,
            shorten_names: environment.get("PROGRESS_NO_TRUNC") == Some("0"),
        };
        Plain { trace: Trace::default(), printer, summary: false }
    }

    /// Sums up the warnings at the end.
    pub fn with_summary(self, summary: bool) -> Plain {
        Plain { summary, ..self }
    }

    fn print(&mut self, now: Timestamp) -> std::io::Result<()> {
        let (trace, printer) = (&mut self.trace, &mut self.printer);
        let mut ended: Vec<usize> = changed(trace).filter(|index| trace.items[*index].is_completed()).collect();
        // The current one first, then in the order in which they ended.
        ended.sort_by_key(|index| (Some(*index) != printer.current, trace.items[*index].ended()));
        for index in ended {
            printer.item(&mut trace.items[index], index)?;
        }
        if let Some(index) = printer.current.filter(|index| trace.items[*index].changed) {
            printer.item(&mut trace.items[index], index)?;
        }
        if let Some(index) = printer.next(trace, now) {
            printer.item(&mut trace.items[index], index)?;
        }
        printer.out.flush()
    }
}

fn changed(trace: &Trace) -> impl Iterator<Item = usize> + Clone + '_ {
    trace.visible.iter().copied().filter(|index| trace.items[*index].changed)
}

impl Reader for Plain {
    fn update(&mut self, events: &[Event], now: Timestamp) {
        self.trace.update(events, now);
    }

    fn refresh(&mut self, now: Timestamp) {
        // Nobody reads any more: the build goes on without a display.
        let _ = self.print(now);
    }

    fn finish(&mut self, now: Timestamp) -> Vec<FailedStep> {
        self.trace.end(now);
        self.refresh(now);
        for index in changed(&self.trace).collect::<Vec<_>>() {
            let _ = self.printer.item(&mut self.trace.items[index], index);
        }
        let _ = self.printer.end_line();
        if self.summary {
            let _ = print_warnings(&mut self.printer.out, &self.trace.warnings);
        }
        let _ = self.printer.out.flush();
        self.trace.failed_steps()
    }
}

impl Printer {
    /// The item that gets the floor now: the one that waits longest, when the floor is free or has been held too
    /// long.
    fn next(&self, trace: &Trace, now: Timestamp) -> Option<usize> {
        let waiting = changed(trace).filter(|index| Some(*index) != self.current);
        if let Some(loud) = waiting.clone().find(|index| trace.items[*index].pending_bytes() >= LOUD) {
            return Some(loud);
        }
        let (since, index) = waiting.filter_map(|index| Some((trace.items[index].waiting_since?, index))).min()?;
        let waited = seconds(since, now);
        let current = self.current.map(|index| &trace.items[index]);
        let talks = current.is_some_and(|item| item.waiting_since.is_some_and(|since| seconds(since, now) < PATIENCE));
        match current {
            None => Some(index),
            Some(_) if waited >= GREAT_PATIENCE => Some(index),
            Some(_) if waited >= PATIENCE && !talks => Some(index),
            Some(_) => None,
        }
    }

    /// Prints everything that is new about one item.
    fn item(&mut self, item: &mut Item, index: usize) -> std::io::Result<()> {
        let number = self.number(index);
        if self.current != Some(index) {
            self.begin(item, index, number)?;
        }
        if item.statuses.iter().any(|state| state.moved) || !item.warnings.is_empty() {
            self.statuses(item, number)?;
        }
        for piece in std::mem::take(&mut item.pending_log) {
            self.log(&piece, number)?;
        }
        item.changed = false;
        item.waiting_since = None;
        if item.is_completed() { self.end(item, number) } else { Ok(()) }
    }

    fn number(&mut self, index: usize) -> usize {
        match self.numbers.iter().position(|known| *known == index) {
            Some(at) => at + 1,
            None => {
                self.numbers.push(index);
                self.numbers.len()
            }
        }
    }

    fn begin(&mut self, item: &Item, index: usize, number: usize) -> std::io::Result<()> {
        if let Some(old) = self.current.take() {
            self.end_line()?;
            let old = self.number(old);
            writeln!(self.out, "#{old} ...")?;
        }
        if std::mem::replace(&mut self.printed_any, true) {
            writeln!(self.out)?;
        }
        self.current = Some(index);
        match item.name.char_indices().nth(72) {
            Some((cut, _)) if self.shorten_names => writeln!(self.out, "#{number} {}...", &item.name[..cut]),
            _ => writeln!(self.out, "#{number} {}", item.name),
        }
    }

    fn statuses(&mut self, item: &mut Item, number: usize) -> std::io::Result<()> {
        for state in &mut item.statuses {
            if std::mem::take(&mut state.moved) && is_worth_a_line(state) {
                self.end_line()?;
                state.printed = Some((state.status.current, state.status.timestamp));
                writeln!(self.out, "#{number} {}", status_line(state))?;
            }
        }
        for warning in item.warnings.drain(..) {
            self.end_line()?;
            writeln!(self.out, "#{number} WARN: {}", warning.short)?;
        }
        Ok(())
    }

    fn log(&mut self, piece: &LogPiece, number: usize) -> std::io::Result<()> {
        let mut goes_on = self.mid_line && piece.continues;
        let begin = format!("#{number} {} ", log_time(piece.at));
        for line in piece.bytes.split_inclusive(|byte| *byte == b'\n') {
            if !std::mem::take(&mut goes_on) {
                self.end_line()?;
                self.out.write_all(begin.as_bytes())?;
            }
            self.out.write_all(line)?;
            self.mid_line = !line.ends_with(b"\n");
        }
        Ok(())
    }

    fn end_line(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.mid_line) { writeln!(self.out) } else { Ok(()) }
    }

    fn end(&mut self, item: &Item, number: usize) -> std::io::Result<()> {
        self.end_line()?;
        self.current = None;
        match &item.error {
            Some(_) if item.is_cancelled() => writeln!(self.out, "#{number} CANCELED"),
            Some(error) => writeln!(self.out, "#{number} ERROR: {error}"),
            None if item.cached => writeln!(self.out, "#{number} CACHED"),
            // Every run has ended, so that the clock does not matter.
            None => writeln!(self.out, "#{number} DONE {:.1}s", item.spent(Timestamp::UNIX_EPOCH)),
        }
    }
}

fn is_worth_a_line(state: &StatusState) -> bool {
    let Some((current, at)) = state.printed else { return true };
    let status = &state.status;
    let moved = status.current.saturating_sub(current) as f64 / status.total.max(1) as f64;
    let far = status.total > 0 && moved >= PROGRESS_STEP;
    status.completed.is_some() || far || seconds(at, status.timestamp) >= PROGRESS_SECONDS
}

fn status_line(state: &StatusState) -> String {
    let status = &state.status;
    let mut line = status.id.clone();
    if let Some(amount) = amount(status.current, status.total) {
        line.push(' ');
        line.push_str(&amount);
    }
    let end = status.completed.unwrap_or(status.timestamp);
    if let Some(spent) = status.started.map(|start| seconds(start, end)).filter(|spent| *spent > 0.01) {
        line.push_str(&format!(" {spent:.1}s"));
    }
    if status.completed.is_some() {
        line.push_str(" done");
    }
    line
}

/// `1.50MB / 3.00MB`, `1.50MB`, or nothing.
pub(super) fn amount(current: u64, total: u64) -> Option<String> {
    match (current, total) {
        (0, 0) => None,
        (current, 0) => Some(ByteSize(current).to_string()),
        (current, total) => Some(format!("{} / {}", ByteSize(current), ByteSize(total))),
    }
}
