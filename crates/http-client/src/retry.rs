//! Trying again: how often, how long between, and what a server may say about it.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

/// How often to try and how long to wait between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries in all; 1 never repeats.
    pub attempts: u32,
    /// The wait before the second try. Doubles with each one.
    pub first_delay: Duration,
    /// No wait grows beyond this.
    pub longest_delay: Duration,
    /// A server that asks (`Retry-After`) for more than this gets no further try: the user waits elsewhere.
    pub longest_retry_after: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            attempts: 5,
            first_delay: Duration::from_millis(500),
            longest_delay: Duration::from_secs(8),
            longest_retry_after: Duration::from_secs(60),
        }
    }
}

impl Retry {
    /// One try and no more.
    pub const NEVER: Retry = Retry {
        attempts: 1,
        first_delay: Duration::ZERO,
        longest_delay: Duration::ZERO,
        longest_retry_after: Duration::ZERO,
    };

    /// One more try after a moment: for what one would rather do without than wait for.
    pub const ONCE_MORE: Retry = Retry {
        attempts: 2,
        first_delay: Duration::from_millis(250),
        longest_delay: Duration::from_millis(250),
        longest_retry_after: Duration::from_secs(1),
    };

    /// The wait after the try number `attempt` (from 1), before jitter.
    pub fn delay(&self, attempt: u32) -> Duration {
        let doubled = 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first_delay.saturating_mul(doubled).min(self.longest_delay)
    }
}

/// A try failed and another follows; for progress displays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retrying {
    /// The try that failed, from 1.
    pub attempt: u32,
    /// Tries in all.
    pub attempts: u32,
    /// Wait before the next one.
    pub delay: Duration,
    /// Why it failed; free of secrets.
    pub cause: String,
}

impl fmt::Display for Retrying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Retrying { attempt, attempts, delay, cause } = self;
        write!(f, "{cause}; trying again in {:.1} s ({attempt}/{attempts})", delay.as_secs_f64())
    }
}

/// What one try says about itself.
pub enum Verdict<T> {
    /// This is the answer, good or bad.
    Done(T),
    /// Worth another try; `last` is the answer if there is none.
    Again {
        /// The answer when no try is left.
        last: T,
        /// Why, for [`Retrying`].
        cause: String,
        /// What the server asked for.
        after: Option<Duration>,
    },
}

/// Tries until `op` is done or `policy` is used up. `op` gets the number of the try, from 1.
pub async fn retry<T, Op, Fut>(policy: &Retry, mut notify: impl FnMut(&Retrying), mut op: Op) -> T
where
    Op: FnMut(u32) -> Fut,
    Fut: Future<Output = Verdict<T>>,
{
    let mut attempt = 1;
    loop {
        let (last, cause, after) = match op(attempt).await {
            Verdict::Done(value) => return value,
            Verdict::Again { last, cause, after } => (last, cause, after),
        };
        if attempt >= policy.attempts || after.is_some_and(|wait| wait > policy.longest_retry_after) {
            return last;
        }
        drop(last);
        let delay = after.unwrap_or_else(|| jitter(policy.delay(attempt)));
        notify(&Retrying { attempt, attempts: policy.attempts, delay, cause });
        tokio::time::sleep(delay).await;
        attempt += 1;
    }
}

/// Between half and all of `delay`, so that many clients do not come back at once.
fn jitter(delay: Duration) -> Duration {
    // RandomState is seeded by the system: random enough to spread clients, without a crate.
    let random = RandomState::new().build_hasher().finish() as u32;
    delay.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// Statuses that say "not now": RFC 9110 timeouts, overload and gateways, and 500, which registries use for all of them.
pub(crate) fn is_transient_status(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// `Retry-After` (RFC 9110 §10.2.3): seconds, or a date, which is read against the server's own clock.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let parse = |text: &str| jiff::fmt::rfc2822::parse(text).ok().map(|zoned| zoned.timestamp());
    let until = parse(text)?;
    let now =
        headers.get(header::DATE).and_then(|date| parse(date.to_str().ok()?)).unwrap_or_else(jiff::Timestamp::now);
    Some(Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO))
}
