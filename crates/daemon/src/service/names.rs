//! What a client that drives a build calls its results.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Of so many failures, the latest, it is kept what the client can look into. A client may ask for the same again and
/// again, and each time gets trees of its own.
const MOST_FAILURES: usize = 32;

/// Results by their ids.
pub(super) struct Names<T>(Mutex<Inner<T>>);

struct Inner<T> {
    all: HashMap<String, T>,
    /// The ids of what each failure left, the oldest first.
    failures: VecDeque<Vec<String>>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Names(Mutex::new(Inner { all: HashMap::new(), failures: VecDeque::new() }))
    }
}

impl<T: Clone> Names<T> {
    /// Gives a result a name, for as long as the build lives.
    pub(super) fn add(&self, result: T) -> String {
        let id = session::random_id();
        self.with(|inner| inner.all.insert(id.clone(), result));
        id
    }

    /// Notes that these came with a failure: they go when there were many others.
    pub(super) fn came_with_failure(&self, ids: Vec<String>) {
        if ids.is_empty() {
            return;
        }
        // What is given up is dropped when nobody waits for the lock.
        let given_up = self.with(|inner| {
            inner.failures.push_back(ids);
            let most = inner.failures.len().saturating_sub(MOST_FAILURES);
            let oldest: Vec<String> = inner.failures.drain(..most).flatten().collect();
            oldest.iter().filter_map(|id| inner.all.remove(id)).collect::<Vec<T>>()
        });
        drop(given_up);
    }

    pub(super) fn find(&self, id: &str) -> Option<T> {
        self.with(|inner| inner.all.get(id).cloned())
    }

    fn with<R>(&self, work: impl FnOnce(&mut Inner<T>) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn of_many_failures_the_latest_can_be_looked_into() {
        let names = Names::default();
        let result = Arc::new(());
        let made = names.add(result.clone());
        let failures: Vec<[String; 2]> = (0..MOST_FAILURES + 3)
            .map(|_| {
                let left = [names.add(result.clone()), names.add(result.clone())];
                names.came_with_failure(left.to_vec());
                left
            })
            .collect();
        let is_known = |left: &[String; 2]| left.iter().all(|id| names.find(id).is_some());
        assert_eq!(failures.iter().map(is_known).filter(|known| *known).count(), MOST_FAILURES);
        assert!(!is_known(&failures[2]) && is_known(&failures[3]));
        assert!(names.find(&made).is_some(), "what was made stays");
        assert_eq!(Arc::strong_count(&result), 2 + 2 * MOST_FAILURES, "and nothing else does");
    }
}
