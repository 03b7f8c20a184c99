//! What people see of a build: readers of the one event stream.
//!
//! [`Display::start`] puts the readers on a thread of their own, so that a slow terminal slows nothing but steps that
//! print more than [`queue`] holds; the build writes into [`Display::sink`]. [`Display::finish`] waits until everything
//! is printed.
//!
//! - [`plain`]: lines, one step at a time, for logs;
//! - [`tty`]: a frame that is drawn over and over;
//! - [`rawjson`]: upstream's status messages as JSON, for programs.

mod colors;
mod log_window;
mod plain;
mod queue;
mod rawjson;
mod trace;
mod tty;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base::progress::{Event, Sink};
use base::{Fault, Kind};
use jiff::Timestamp;
use queue::{Entrance, Exit, Message, queue, weight};

use crate::environment::Environment;
use crate::fault::{FailedStep, print_warning};

/// `--progress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Lines.
    Plain,
    /// A live frame.
    Tty,
    /// Nothing.
    Quiet,
    /// JSON.
    RawJson,
}

impl Mode {
    /// The mode for a `--progress` value. `auto` asks `BUILDKIT_PROGRESS`, then the terminal. A frame is only
    /// drawn on a terminal; anywhere else `tty` is `plain`.
    pub fn choose(value: &str, environment: &Environment) -> Result<Mode, Fault> {
        const VARIABLE: &str = "BUILDKIT_PROGRESS";
        let (from, value) = match (value, environment.get(VARIABLE)) {
            ("" | "auto", Some(value)) => (VARIABLE, value),
            ("", None) => ("--progress", "auto"),
            (value, _) => ("--progress", value),
        };
        match value {
            "auto" | "tty" if environment.stderr_is_terminal && environment.get("TERM") != Some("dumb") => {
                Ok(Mode::Tty)
            }
            "auto" | "tty" | "plain" => Ok(Mode::Plain),
            "quiet" | "none" => Ok(Mode::Quiet),
            "rawjson" => Ok(Mode::RawJson),
            _ => Err(crate::spec::invalid(from, value, "known are auto, plain, tty, quiet, none and rawjson")),
        }
    }
}

/// What is to be told while no display runs: before the build, or without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something that the user should know and that stops nothing.
    Warning(String),
    /// What we wait for.
    Waiting(String),
}

/// Who shows messages that belong to no step.
const NO_STEP: &str = "messages of no step";

/// Tells it in the form that the display has: programs read lines of JSON only.
pub fn tell(mode: Mode, out: &mut dyn Write, notice: &Notice) {
    match (mode, notice) {
        (Mode::RawJson, notice) => rawjson::tell(out, notice, Timestamp::now()),
        (_, Notice::Warning(text)) => print_warning(out, text),
        // As for warnings.
        (_, Notice::Waiting(text)) => _ = writeln!(out, "waiting: {text}"),
    }
}

/// One way to show events.
trait Reader: Send {
    /// Takes events in the order of their making. `now` is the reader's clock.
    fn update(&mut self, events: &[Event], now: Timestamp);

    /// Shows what is new. Called a few times per second while something happens or time passes.
    fn refresh(&mut self, now: Timestamp);

    /// The build ended: shows the rest and answers the steps that failed.
    fn finish(&mut self, now: Timestamp) -> Vec<FailedStep>;
}

/// Readers on their own thread.
pub struct Display {
    events: Arc<Entrance>,
    thread: JoinHandle<Vec<FailedStep>>,
}

/// Shortest time between two refreshes.
const REFRESH: Duration = Duration::from_millis(100);
/// Longest time between two refreshes.
const TICK: Duration = Duration::from_millis(150);
/// Output of this size is not kept until the next refresh is due.
const LOUD: usize = 1 << 20;

impl Display {
    /// Starts the reader for `mode` on `out`, and one that writes JSON to `trace` (`--trace`). `summary`: where people
    /// read, warnings are summed up at the end.
    pub fn start(
        mode: Mode,
        out: Box<dyn Write + Send>,
        trace: Option<Box<dyn Write + Send>>,
        summary: bool,
        env: &Environment,
    ) -> Result<Display, Fault> {
        let mut readers: Vec<Box<dyn Reader>> = Vec::new();
        match mode {
            Mode::Plain => readers.push(Box::new(plain::Plain::new(out, env).with_summary(summary))),
            Mode::Tty => readers.push(Box::new(tty::Tty::new(out, env).with_summary(summary))),
            Mode::RawJson => readers.push(Box::new(rawjson::RawJson::new(out))),
            Mode::Quiet => {}
        }
        readers.extend(trace.map(|file| Box::new(rawjson::RawJson::new(file)) as Box<dyn Reader>));
        let pace = env.get("TTY_DISPLAY_RATE").and_then(|text| text.parse().ok()).map(Duration::from_millis);
        let (entrance, exit) = queue();
        let thread = std::thread::Builder::new().name("display".to_owned());
        let thread = thread.spawn(move || run(&exit, &mut readers, pace));
        let thread =
            thread.map_err(|e| Fault::because(Kind::Environment, "cannot start a thread for the display", e))?;
        Ok(Display { events: Arc::new(entrance), thread })
    }

    /// Where the build writes its events.
    pub fn sink(&self) -> Arc<dyn Sink> {
        self.events.clone()
    }

    /// Shows everything that was emitted so far and stops. Answers the steps that failed with their last output.
    pub fn finish(self) -> Vec<FailedStep> {
        self.events.end();
        self.thread.join().unwrap_or_default()
    }
}

fn run(exit: &Exit, readers: &mut [Box<dyn Reader>], pace: Option<Duration>) -> Vec<FailedStep> {
    let (shortest, longest) = pace.map_or((REFRESH, TICK), |pace| (pace, pace.max(Duration::from_millis(1))));
    let mut refreshed: Option<Instant> = None;
    let mut dirty = false;
    let mut batch = Vec::new();
    let mut unshown = 0;
    loop {
        let due = match refreshed {
            Some(at) if dirty => shortest.saturating_sub(at.elapsed()),
            _ => longest,
        };
        let mut ended = false;
        let mut take = |message| match message {
            Message::Event(event) => batch.push(*event),
            Message::End => ended = true,
        };
        match exit.messages.recv_timeout(due) {
            Ok(message) => {
                take(message);
                exit.messages.try_iter().for_each(take);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => ended = true,
        }
        let now = Timestamp::now();
        if !batch.is_empty() {
            readers.iter_mut().for_each(|reader| reader.update(&batch, now));
            let weight = batch.iter().map(weight).sum();
            batch.clear();
            exit.taken(weight);
            unshown += weight;
            dirty = true;
        }
        if ended {
            return readers.iter_mut().flat_map(|reader| reader.finish(now)).collect();
        }
        if refreshed.is_none_or(|at| at.elapsed() >= shortest) || unshown >= LOUD {
            readers.iter_mut().for_each(|reader| reader.refresh(now));
            refreshed = Some(Instant::now());
            (dirty, unshown) = (false, 0);
        }
    }
}

/// Seconds between two times, never negative.
fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}
