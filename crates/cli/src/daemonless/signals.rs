//! Signals that end what this program does: the first one in order, the last one at once.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use base::{Fault, Kind};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Scratch;

/// The signal that ended what this program does, once there was one.
static SIGNAL: OnceLock<&str> = OnceLock::new();

/// What ended before its time, and the signal that it ended by.
pub fn cut_short(what: &str) -> Fault {
    match SIGNAL.get() {
        Some(signal) => Fault::new(Kind::Cancelled, format!("{what} by {signal}")),
        None => Fault::cancelled(),
    }
}

/// A token that the first SIGINT, SIGTERM or SIGHUP (the terminal is gone) cancels. The second ends the process at once;
/// what its steps leave behind dies with their namespaces.
pub fn cancelled_by_signals() -> Result<CancellationToken, Fault> {
    let [token] = cancelled_one_by_one()?;
    Ok(token)
}

/// Tokens that such signals cancel, one each; the signal after that ends the process.
pub fn cancelled_one_by_one<const N: usize>() -> Result<[CancellationToken; N], Fault> {
    let mut signals = Signals::new()?;
    let tokens: [CancellationToken; N] = std::array::from_fn(|_| CancellationToken::new());
    let cancel = tokens.clone();
    tokio::spawn(async move {
        for token in cancel {
            signals.another().await;
            token.cancel();
        }
        signals.another().await;
        tokio::select! {
            () = clean_up() => {}
            () = signals.another() => {}
        }
        std::process::exit(1);
    });
    Ok(tokens)
}

/// What is done before the process ends at once: no destructor runs then.
static LAST: Mutex<Vec<Box<dyn FnOnce() + Send>>> = Mutex::new(Vec::new());

/// How long that may take.
const LAST_MOMENTS: Duration = Duration::from_secs(2);

/// Has this done before the process ends at once, if there is time for it.
pub fn before_an_end_at_once(work: impl FnOnce() + Send + 'static) {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(work));
}

async fn clean_up() {
    let work = std::mem::take(&mut *LAST.lock().unwrap_or_else(PoisonError::into_inner));
    let work = tokio::task::spawn_blocking(|| work.into_iter().for_each(|work| work()));
    let scratch = tokio::task::spawn_blocking(Scratch::remove_all);
    // The kernel may not let go of a step. A directory takes as long as it has files.
    let _ = tokio::join!(tokio::time::timeout(LAST_MOMENTS, work), scratch);
}

/// Signals that come within this time are one: timeout(1) sends its own to the process and at once to its group as well.
const ONE_SIGNAL: Duration = Duration::from_millis(500);

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// None where it is ignored: under nohup(1) the build outlives its terminal.
    hangup: Option<Signal>,
    counted: Option<Instant>,
}

impl Signals {
    fn new() -> Result<Signals, Fault> {
        let failed = |error| Fault::because(Kind::Environment, "cannot handle signals", error);
        let hangup = (!is_ignored(SignalKind::hangup())).then(|| signal(SignalKind::hangup())).transpose();
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            hangup: hangup.map_err(failed)?,
            counted: None,
        })
    }

    /// Waits for a signal that is another one than the last that counted.
    async fn another(&mut self) {
        loop {
            let name = tokio::select! {
                _ = self.interrupt.recv() => "SIGINT",
                _ = self.terminate.recv() => "SIGTERM",
                () = next(&mut self.hangup) => "SIGHUP",
            };
            if is_another(&mut self.counted, Instant::now()) {
                tracing::info!("told to end by {name}");
                let _ = SIGNAL.set(name);
                return;
            }
        }
    }
}

/// Whether a signal is another one than the last that counted.
fn is_another(counted: &mut Option<Instant>, now: Instant) -> bool {
    if counted.is_some_and(|last| now.duration_since(last) < ONE_SIGNAL) {
        return false;
    }
    *counted = Some(now);
    true
}

/// The next signal of its kind; never, where it is ignored.
async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether whoever started us wants the signal to be ignored.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (kind.as_raw_value() - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_come_at_once_are_one() {
        let (mut counted, begin) = (None, Instant::now());
        for (millis, another) in [(0, true), (0, false), (499, false), (500, true), (900, false), (1001, true)] {
            assert_eq!(is_another(&mut counted, begin + Duration::from_millis(millis)), another, "{millis}");
        }
    }
}
