//! How much of a step's output people get to see.
//!
//! A step may print without end. Upstream's rules hold: each stream shows so much per second and so much in all
//! ([`LogLimits`]), what is cut is announced once, and a step that fails shows its last output after all
//! ([`StepLog::held`]), since that is what says why.

use std::collections::VecDeque;
use std::time::Duration;

use base::progress::Stream;

/// How much of a stream of a step's output is shown. None is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes in all. Without this limit there is none per second either, as upstream.
    pub size: Option<u64>,
    /// Bytes per second, on the average since the step began.
    pub speed: Option<u64>,
}

impl Default for LogLimits {
    /// Upstream's: 2 MiB and 200 KiB/s.
    fn default() -> Self {
        LogLimits { size: Some(2 << 20), speed: Some(200 << 10) }
    }
}

/// How much of the output after a cut is kept for a failure.
const HELD_BYTES: usize = 256 << 10;
/// Held pieces are joined up to this size, so that a step that writes single bytes does not cost more than them.
const PIECE_BYTES: usize = 16 << 10;

/// The output of one step on its way to the displays. Knows no clock: it is told how long the step has run.
pub(crate) struct StepLog {
    limits: LogLimits,
    stdout: Shown,
    stderr: Shown,
    /// Everything since the cut, of both streams: what one says at last may be about the other.
    held: VecDeque<(Stream, Vec<u8>)>,
    held_bytes: usize,
}

/// One stream.
#[derive(Default)]
struct Shown {
    /// Bytes that it wrote, shown or not.
    written: u64,
    clipping: bool,
}

impl StepLog {
    pub(crate) fn new(limits: LogLimits) -> StepLog {
        let (stdout, stderr) = Default::default();
        StepLog { limits, stdout, stderr, held: VecDeque::new(), held_bytes: 0 }
    }

    /// Takes output; hands on what is to be shown of it.
    pub(crate) fn push(&mut self, stream: Stream, bytes: &[u8], elapsed: Duration, show: &mut dyn FnMut(&[u8])) {
        let limits = self.limits;
        let shown = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let (room, limit) = limits.room(shown.written, elapsed);
        shown.written += bytes.len() as u64;
        let fits = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
        let cut = fits < bytes.len();
        match (cut, shown.clipping && fits == 0) {
            // Most of what a flood writes.
            (true, true) => {}
            (true, false) => show(&[&bytes[..fits], limit.message().as_bytes()].concat()),
            (false, _) => show(bytes),
        }
        shown.clipping = cut;
        if self.stdout.clipping || self.stderr.clipping {
            self.hold(stream, bytes);
        } else if self.held_bytes > 0 {
            // It became quiet: what it says now is its last output, and is shown.
            self.held.clear();
            self.held_bytes = 0;
        }
    }

    /// The last output, where something was cut. Errors come last, as upstream: which of two pipes was read first says
    /// nothing about what was written last.
    pub(crate) fn held(&mut self) -> impl Iterator<Item = (Stream, Vec<u8>)> + '_ {
        self.held_bytes = 0;
        self.held.make_contiguous().sort_by_key(|(stream, _)| *stream == Stream::Stderr);
        self.held.drain(..)
    }

    fn hold(&mut self, stream: Stream, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(HELD_BYTES)..];
        self.held_bytes += bytes.len();
        match self.held.back_mut() {
            Some((last, piece)) if *last == stream && piece.len() + bytes.len() <= PIECE_BYTES => {
                piece.extend_from_slice(bytes);
            }
            _ => self.held.push_back((stream, bytes.to_vec())),
        }
        while self.held_bytes > HELD_BYTES
            && let Some((_, first)) = self.held.front_mut()
        {
            let excess = (self.held_bytes - HELD_BYTES).min(first.len());
            first.drain(..excess);
            self.held_bytes -= excess;
            if first.is_empty() {
                self.held.pop_front();
            }
        }
    }
}

/// The limit that decides at a time.
#[derive(Clone, Copy)]
enum Limit {
    None,
    Size(u64),
    Speed(u64),
}

impl LogLimits {
    /// How many bytes may follow on those that were written.
    fn room(self, written: u64, elapsed: Duration) -> (u64, Limit) {
        let Some(size) = self.size else { return (u64::MAX, Limit::None) };
        // Each second has its share from its beginning.
        let seconds = elapsed.as_secs() + u64::from(elapsed.subsec_nanos() > 0 || elapsed.is_zero());
        let allowed = self.speed.map(|speed| (speed, speed.saturating_mul(seconds)));
        match allowed {
            Some((speed, allowed)) if allowed <= size => (allowed.saturating_sub(written), Limit::Speed(speed)),
            _ => (size.saturating_sub(written), Limit::Size(size)),
        }
    }
}

impl Limit {
    /// Upstream's words, which people and tools know.
    fn message(self) -> String {
        let limit = match self {
            Limit::None => return String::new(),
            Limit::Size(size) => binary(size),
            Limit::Speed(speed) => format!("{}/s", binary(speed)),
        };
        format!("\n[output clipped, log limit {limit} reached]\n")
    }
}

/// `2MiB`, `200KiB`, `1.5KiB`, `100B`.
fn binary(bytes: u64) -> String {
    let power = (bytes.max(1).ilog2() / 10).min(4);
    let unit = ["B", "KiB", "MiB", "GiB", "TiB"][power as usize];
    format!("{}{unit}", bytes as f64 / (1u64 << (10 * power)) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LogLimits = LogLimits { size: Some(1000), speed: Some(100) };

    /// What is shown of pieces of stdout, each at a time in milliseconds.
    fn shown(limits: LogLimits, pieces: &[(u64, &str)]) -> (String, StepLog) {
        let mut log = StepLog::new(limits);
        let mut shown = Vec::new();
        for (millis, piece) in pieces {
            let elapsed = Duration::from_millis(*millis);
            log.push(Stream::Stdout, piece.as_bytes(), elapsed, &mut |bytes| shown.extend_from_slice(bytes));
        }
        (String::from_utf8(shown).expect("text"), log)
    }

    fn held(mut log: StepLog) -> String {
        log.held().map(|(_, bytes)| String::from_utf8(bytes).expect("text")).collect()
    }

    #[test]
    fn what_is_too_fast_is_cut_once_and_goes_on_when_it_slows_down() {
        let long = "x".repeat(90);
        let (text, log) = shown(LIMITS, &[(10, &long), (20, &long), (30, "lost"), (2500, "late\n")]);
        let cut = format!("{long}{}\n[output clipped, log limit 100B/s reached]\nlate\n", "x".repeat(10));
        assert_eq!(text, cut);
        assert_eq!(held(log), "", "all that is last was shown");
    }

    #[test]
    fn what_is_too_much_is_cut_for_good() {
        let limits = LogLimits { speed: None, ..LIMITS };
        let long = "x".repeat(999);
        let (text, log) = shown(limits, &[(10, &long), (20, "ab"), (60_000, "never"), (61_000, " shown")]);
        assert_eq!(text, format!("{long}a\n[output clipped, log limit 1000B reached]\n"));
        assert_eq!(held(log), "abnever shown");
        // Time makes room up to the size only.
        let (text, _) = shown(LIMITS, &[(100_000, &long), (110_000, "ab")]);
        assert!(text.ends_with("xa\n[output clipped, log limit 1000B reached]\n"), "{text}");
    }

    #[test]
    fn without_a_size_there_is_no_limit() {
        let long = "x".repeat(5000);
        for speed in [None, Some(1)] {
            assert_eq!(shown(LogLimits { size: None, speed }, &[(1, &long), (2, &long)]).0.len(), 10_000);
        }
    }

    #[test]
    fn a_failure_finds_the_last_output_of_both_streams() {
        let mut log = StepLog::new(LogLimits { size: Some(0), speed: None });
        let now = Duration::from_secs(1);
        for n in 0..100_000 {
            log.push(Stream::Stdout, format!("{n}\n").as_bytes(), now, &mut |_| {});
        }
        log.push(Stream::Stderr, b"broken\n", now, &mut |_| {});
        log.push(Stream::Stdout, b"99999\n", now, &mut |_| {});
        let pieces: Vec<(Stream, Vec<u8>)> = log.held().collect();
        assert_eq!(pieces.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), HELD_BYTES);
        assert!(pieces.len() < 40, "{}", pieces.len());
        let [.., (Stream::Stdout, out), (Stream::Stderr, err)] = &pieces[..] else { panic!("{}", pieces.len()) };
        assert!(out.ends_with(b"99999\n") && err == b"broken\n");
        log.push(Stream::Stdout, &vec![b'y'; 3 * HELD_BYTES], now, &mut |_| {});
        assert_eq!(held(log).len(), HELD_BYTES);
    }

    #[test]
    fn sizes_are_upstreams() {
        for (bytes, text) in [(2 << 20, "2MiB"), (200 << 10, "200KiB"), (1536, "1.5KiB"), (100, "100B"), (0, "0B")] {
            assert_eq!(binary(bytes), text);
        }
    }
}
