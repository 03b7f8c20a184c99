//! Whether a client is still there: a connection may stay open whose other end answers nothing any more.

use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::health::HealthCheckRequest;
use proto::health::health_client::HealthClient;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::RemoteSession;

/// A client that knows its network sets a pace of its own, in milliseconds.
const CUSTOM: &str = "x-buildkit-session-health-custom-timeout";
/// No client is asked more often.
const FASTEST: Duration = Duration::from_secs(1);
/// Nor less often: what a client that is gone has keeps it until it is missed.
const SLOWEST: Duration = Duration::from_secs(60);

/// How a client is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// How often.
    interval: Duration,
    /// How long it may take to answer: a slow network full of our own data is no failure.
    timeout: Duration,
    /// So many failures in a row mean that it is not there.
    failures: u32,
}

impl Pace {
    /// BuildKit's pace, or the one that the client's metadata asks for.
    pub(super) fn asked(metadata: &MetadataMap) -> Pace {
        let custom = metadata.get(CUSTOM).and_then(|value| value.to_str().ok()?.parse().ok()).filter(|ms| *ms > 0);
        match custom {
            Some(ms) => {
                let pace = Duration::from_millis(ms).clamp(FASTEST, SLOWEST);
                Pace { interval: pace, timeout: pace, failures: 1 }
            }
            None => Pace { interval: Duration::from_secs(5), timeout: Duration::from_secs(15), failures: 2 },
        }
    }
}

/// How long the end of a build waits for a client to have read everything.
pub(super) const SETTLES_WITHIN: Duration = Duration::from_secs(1);

/// Waits until the client has read what was sent to it so far, as long as it is there: it answers in order. BuildKit's clients
/// misread what reaches a session that they close, and complain.
pub(super) async fn settle(session: &RemoteSession) {
    let ask = async {
        // What we say when a connection begins may come after the first question.
        while !session.has_answered.load(Ordering::Acquire) {
            if !is_answer(&HealthClient::new(session.channel.clone()).check(HealthCheckRequest::default()).await) {
                return;
            }
            session.has_answered.store(true, Ordering::Release);
        }
        let _ = HealthClient::new(session.channel.clone()).check(HealthCheckRequest::default()).await;
    };
    tokio::select! {
        () = session.closed.cancelled() => {}
        _ = tokio::time::timeout(SETTLES_WITHIN, ask) => {}
    }
}

/// The client is there, whatever it says.
fn is_answer<T>(answer: &Result<T, Status>) -> bool {
    answer.as_ref().map_or_else(|status| status.code() == Code::Unimplemented, |_| true)
}

/// Waits until the client is gone, and asks it now and then whether it is. Where it does not answer, the session is closed.
pub(super) async fn watch(session: &RemoteSession, pace: Pace) {
    let mut failures = 0;
    let mut last = Duration::ZERO;
    let mut health = HealthClient::new(session.channel.clone());
    // The first question comes at once: clients want to hear from us, and only a connection that is used is seen to end.
    for pause in std::iter::once(Duration::ZERO).chain(std::iter::repeat(pace.interval)) {
        tokio::select! {
            () = session.closed.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        // Where the last answer took long, so may this one.
        let timeout = pace.timeout.max(last.mul_f64(1.5));
        let asked = Instant::now();
        let check = tokio::time::timeout(timeout, health.check(HealthCheckRequest::default()));
        let answer = tokio::select! {
            () = session.closed.cancelled() => return,
            answer = check => answer,
        };
        last = asked.elapsed();
        if answer.is_ok_and(|answer| is_answer(&answer)) {
            session.has_answered.store(true, Ordering::Release);
            failures = 0;
        } else {
            failures += 1;
        }
        if failures >= pace.failures {
            tracing::warn!(session = session.id, "the client does not answer any more");
            session.closed.cancel();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_sets_its_own_pace() {
        let pace = |value: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(CUSTOM, value.parse().expect("a value"));
            Pace::asked(&metadata)
        };
        let same = |seconds| Duration::from_secs(seconds);
        assert_eq!(pace("2000"), Pace { interval: same(2), timeout: same(2), failures: 1 });
        assert_eq!(pace("1"), Pace { interval: FASTEST, timeout: FASTEST, failures: 1 });
        for unreadable in ["", "-1", "0", "soon"] {
            assert_eq!(pace(unreadable), Pace::asked(&MetadataMap::new()));
        }
    }
}
