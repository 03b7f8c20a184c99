//! Threads that go on for a moment when nobody wants their work any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// Work on threads that ends soon when it is cancelled, but not at once: whoever closes waits for it, so that nothing
/// half done is left behind. A thread that is stuck in the kernel (a network file system that went away) has a name.
#[derive(Clone, Default)]
pub struct Unfinished {
    tracker: TaskTracker,
    names: Arc<Mutex<Names>>,
}

/// Of threads that run.
#[derive(Default)]
struct Names {
    next: u64,
    by_number: BTreeMap<u64, String>,
}

/// A name for as long as it is held.
struct Named {
    names: Arc<Mutex<Names>>,
    number: u64,
}

impl Unfinished {
    /// Starts a thread; `what` says what it does, as in `writing x`.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        what: impl Into<String>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let named = self.name(what.into());
        self.tracker.spawn_blocking(move || {
            let _named = named;
            work()
        })
    }

    fn name(&self, what: String) -> Named {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let number = names.next;
        names.next += 1;
        names.by_number.insert(number, what);
        Named { names: self.names.clone(), number }
    }

    /// Waits for the end of all, but not longer than this. Answers what still runs.
    pub async fn end(&self, most: Duration) -> Vec<String> {
        self.tracker.close();
        match tokio::time::timeout(most, self.tracker.wait()).await {
            Ok(()) => Vec::new(),
            Err(_) => self.names.lock().unwrap_or_else(PoisonError::into_inner).by_number.values().cloned().collect(),
        }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn what_does_not_end_is_named() {
        let unfinished = Unfinished::default();
        let (release, stuck) = channel::<()>();
        let quick = unfinished.spawn_blocking("quick", || 1);
        let slow = unfinished.spawn_blocking("slow", move || stuck.recv());
        assert_eq!(quick.await.expect("ends"), 1);
        assert_eq!(unfinished.end(Duration::ZERO).await, ["slow"]);
        drop(release);
        slow.await.expect("ends").expect_err("it was let go");
        assert_eq!(unfinished.end(Duration::MAX).await, [""; 0]);
    }
}
