//! Equal work at the same time is done once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};

/// Futures under way, by key. A future lives as long as somebody waits for it: when the last waiter goes,
/// the work is dropped with it.
pub(crate) struct Flights<K, V: Clone>(Mutex<HashMap<K, WeakShared<BoxFuture<'static, V>>>>);

impl<K, V: Clone> Default for Flights<K, V> {
    fn default() -> Self {
        Flights(Mutex::new(HashMap::new()))
    }
}

impl<K: Eq + Hash, V: Clone> Flights<K, V> {
    /// Waits for the work that `key` stands for, and starts it if nobody has.
    pub(crate) fn join(&self, key: K, start: impl FnOnce() -> BoxFuture<'static, V>) -> Shared<BoxFuture<'static, V>> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = flights.get(&key).and_then(WeakShared::upgrade) {
            return running;
        }
        // Entries of ended work are swept when new work begins, so the map never outgrows what runs by much.
        if flights.len() >= 64 {
            flights.retain(|_, flight| flight.upgrade().is_some());
        }
        let flight = start().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key, weak);
        }
        flight
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn two_waiters_share_and_a_later_one_starts_again() {
        let flights = Flights::<u8, usize>::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let start = || {
            let runs = runs.clone();
            async move {
                tokio::task::yield_now().await;
                runs.fetch_add(1, Ordering::Relaxed)
            }
            .boxed()
        };
        let (a, b) = (flights.join(1, start), flights.join(1, start));
        assert_eq!((a.await, b.await), (0, 0));
        assert_eq!(flights.join(1, start).await, 1);
        drop(flights.join(2, start));
        assert_eq!(flights.join(2, start).await, 2, "dropped work did not run");
    }
}
