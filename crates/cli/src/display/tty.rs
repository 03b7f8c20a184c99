//! A live frame on a terminal, in BuildKit's manner.
//!
//! ```text
//! [+] Building 3.2s (5/9)
//!  => [internal] load build definition from Dockerfile          0.0s
//!  => => transferring dockerfile: 32B                           0.0s
//!  => [2/4] RUN make                                            2.9s
//!  => => # cc -c main.c
//! ```
//!
//! Drawing goes back to the first line of the frame, writes each line and erases to its end, then erases what is
//! left below. The cursor is hidden only while a frame is written, so that it is there whenever we are killed.

use std::fmt::Write as _;
use std::io::Write;

use base::progress::Event;
use jiff::Timestamp;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::colors::Colors;
use super::plain::amount;
use super::trace::{Item, Trace};
use super::{Reader, seconds};
use crate::environment::Environment;
use crate::fault::{FailedStep, print_warnings};

/// Lines of a step's output that are shown, unless `BUILDKIT_TTY_LOG_LINES` says otherwise.
const LOG_LINES: usize = 6;

/// The display.
pub(super) struct Tty {
    trace: Trace,
    out: Box<dyn Write + Send>,
    colors: Colors,
    log_lines: usize,
    summary: bool,
    size: fn() -> Size,
    /// Widths of the lines of the frame on the screen.
    drawn: Vec<usize>,
}

/// Size of the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub columns: usize,
    pub rows: usize,
}

impl Size {
    /// Of the terminal that standard error is.
    fn of_stderr() -> Size {
        match rustix::termios::tcgetwinsize(std::io::stderr()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
            }
            _ => Size { columns: 80, rows: 10 },
        }
    }
}

/// One line of the frame.
struct Line {
    text: String,
    color: Paint,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Paint {
    Plain,
    Faint,
    Done,
    Cancelled,
    Failed,
}

impl Tty {
    pub fn new(out: Box<dyn Write + Send>, environment: &Environment) -> Tty {
        let lines = environment.get("BUILDKIT_TTY_LOG_LINES").and_then(|text| text.parse().ok()).filter(|n| *n > 0);
        Tty {
            trace: Trace::default(),
            out,
            colors: Colors::choose(environment),
            log_lines: lines.unwrap_or(LOG_LINES),
            summary: false,
            size: Size::of_stderr,
            drawn: Vec::new(),
        }
    }

    /// Sums up the warnings at the end.
    pub fn with_summary(self, summary: bool) -> Tty {
        Tty { summary, ..self }
    }

    #[cfg(test)]
    pub fn with_size(mut self, size: fn() -> Size) -> Tty {
        self.size = size;
        self
    }

    fn draw(&mut self, now: Timestamp, last: bool) -> std::io::Result<()> {
        let size = (self.size)();
        let lines = frame(&self.trace, now, size, self.log_lines, last);
        let mut text = String::from("\x1b[?25l");
        // A line that was wider than the terminal is now takes several rows.
        let rows: usize = self.drawn.iter().map(|width| width.max(&1).div_ceil(size.columns.max(1))).sum();
        if rows > 0 {
            let _ = write!(text, "\x1b[{rows}A\r");
        }
        for line in &lines {
            text.push_str(&self.painted(line));
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J\x1b[?25h");
        self.drawn = lines.iter().map(|line| line.text.width()).collect();
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    fn painted(&self, line: &Line) -> String {
        let parameters = match line.color {
            Paint::Plain => "",
            Paint::Faint if self.colors.faint => "2",
            Paint::Faint => "",
            Paint::Done => &self.colors.run,
            Paint::Cancelled => &self.colors.cancel,
            Paint::Failed => &self.colors.error,
        };
        Colors::paint(parameters, &line.text)
    }
}

impl Reader for Tty {
    fn update(&mut self, events: &[Event], now: Timestamp) {
        self.trace.update(events, now);
        // Only line displays print these.
        self.trace.items.iter_mut().for_each(|item| item.pending_log.clear());
    }

    fn refresh(&mut self, now: Timestamp) {
        let _ = self.draw(now, false);
    }

    fn finish(&mut self, now: Timestamp) -> Vec<FailedStep> {
        self.trace.end(now);
        let _ = self.draw(now, true);
        if self.summary {
            let _ = print_warnings(&mut self.out, &self.trace.warnings).and_then(|()| self.out.flush());
        }
        self.trace.failed_steps()
    }
}

/// A block of lines that are shown or hidden together with their item.
struct Block {
    lines: Vec<Line>,
    running: bool,
    /// Index of the item, for its output.
    item: usize,
}

/// The lines of a frame. The last one shows everything; the others what fits.
fn frame(trace: &Trace, now: Timestamp, size: Size, log_lines: usize, last: bool) -> Vec<Line> {
    let width = size.columns.saturating_sub(1).max(20);
    let mut blocks: Vec<Block> =
        trace.visible.iter().map(|index| block(&trace.items[*index], *index, now, width)).collect();
    if !last {
        let room = size.rows.saturating_sub(2);
        fit(&mut blocks, room);
        add_output(trace, &mut blocks, room, log_lines, width);
    }
    let mut lines = vec![Line { text: header(trace, now, width, last), color: Paint::Plain }];
    lines.extend(blocks.into_iter().flat_map(|block| block.lines));
    lines
}

fn header(trace: &Trace, now: Timestamp, width: usize, last: bool) -> String {
    let (done, all) = trace.counts();
    let spent = trace.started.map_or(0.0, |start| seconds(start, now));
    let state = if last && done > 0 && done == all { " FINISHED" } else { "" };
    cut(&format!("[+] Building {spent:.1}s ({done}/{all}){state}"), width)
}

fn block(item: &Item, index: usize, now: Timestamp, width: usize) -> Block {
    let running = !item.is_completed();
    let color = match (&item.error, running) {
        (Some(_), _) if item.is_cancelled() => Paint::Cancelled,
        (Some(_), _) => Paint::Failed,
        (None, true) => Paint::Plain,
        (None, false) => Paint::Done,
    };
    let state = match color {
        Paint::Cancelled => "CANCELED ",
        Paint::Failed => "ERROR ",
        _ if item.cached => "CACHED ",
        _ => "",
    };
    let name = format!("{state}{}", item.name.replace(['\t', '\n', '\r'], " "));
    let mut lines = vec![Line { text: row(&name, "", item.spent(now), width), color }];
    for state in &item.statuses {
        let status = &state.status;
        let amount = amount(status.current, status.total).unwrap_or_default();
        // What a step left open ended with it.
        let end = status.completed.or(item.ended()).unwrap_or(now);
        let spent = status.started.map_or(0.0, |start| seconds(start, end));
        let color = if status.completed.is_some() { Paint::Done } else { Paint::Plain };
        lines.push(Line { text: row(&format!("=> {}", status.id), &amount, spent, width), color });
    }
    for warning in &item.warnings {
        lines.push(Line { text: cut(&format!(" => WARN: {}", warning.short), width), color: Paint::Cancelled });
    }
    Block { lines, running, item: index }
}

/// ` => name amount      1.2s`, the name cut so that the rest fits.
fn row(name: &str, amount: &str, spent: f64, width: usize) -> String {
    let spent = if spent < 0.05 { 0.0 } else { spent };
    let timer = format!("{spent:.1}s");
    let room = width.saturating_sub(4 + timer.len() + 1);
    let amount = if amount.is_empty() || room < amount.len() + 21 { String::new() } else { format!(" {amount}") };
    let left = format!(" => {}{amount}", cut(name, room.saturating_sub(amount.len())));
    let padding = width.saturating_sub(left.width() + timer.len()).max(1);
    format!("{left}{}{timer}", " ".repeat(padding))
}

/// Drops lines from the top until the rest fits: finished blocks go first, running ones lose their sub-tasks.
fn fit(blocks: &mut Vec<Block>, room: usize) {
    let mut excess = blocks.iter().map(|block| block.lines.len()).sum::<usize>().saturating_sub(room);
    for running in [false, true] {
        for block in blocks.iter_mut().filter(|block| block.running == running) {
            let keep = usize::from(running);
            let dropped = excess.min(block.lines.len().saturating_sub(keep));
            block.lines.drain(keep..keep + dropped);
            excess -= dropped;
        }
    }
    blocks.retain(|block| !block.lines.is_empty());
    // More steps run than the terminal has lines: the newest stay.
    let gone = blocks.len().saturating_sub(room.max(1));
    blocks.drain(..gone.min(if excess > 0 { gone } else { 0 }));
}

/// Gives the room that is left to the output of running steps, the most talkative first.
fn add_output(trace: &Trace, blocks: &mut [Block], room: usize, log_lines: usize, width: usize) {
    let used: usize = blocks.iter().map(|block| block.lines.len()).sum();
    let mut free = room.saturating_sub(used);
    let mut talkers: Vec<&mut Block> =
        blocks.iter_mut().filter(|block| block.running && trace.items[block.item].window.bytes > 0).collect();
    talkers.sort_by_key(|block| std::cmp::Reverse(trace.items[block.item].window.bytes));
    for block in talkers {
        let lines = trace.items[block.item].window.last(log_lines.min(free));
        free -= lines.len();
        let output =
            lines.iter().map(|line| Line { text: cut(&format!(" => => # {line}"), width), color: Paint::Faint });
        block.lines.extend(output);
    }
}

/// As much of `text` as fits into `width` columns.
fn cut(text: &str, width: usize) -> String {
    let mut used = 0;
    text.chars()
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= width
        })
        .collect()
}
