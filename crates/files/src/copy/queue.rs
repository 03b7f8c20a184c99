//! Batches of files on their way to the threads that copy them.
//!
//! The thread that walks the source fills the queue and works itself whenever enough is waiting, so the queue stays
//! short. Threads start when there is work for them.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};

/// How much may wait.
const WAITING: usize = 32;

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    waiting: VecDeque<(usize, T)>,
    next: usize,
    closed: bool,
    failure: Option<(usize, crate::Error)>,
}

/// Says by its end that no more will be pushed.
pub(super) struct Filling<'a, T>(&'a Queue<T>);

impl<T> Drop for Filling<'_, T> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl<T> Queue<T> {
    pub(super) fn new() -> Queue<T> {
        let state = State { waiting: VecDeque::new(), next: 0, closed: false, failure: None };
        Queue { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds work; tells how much waits now.
    pub(super) fn push(&self, work: T) -> usize {
        let mut state = self.lock();
        let index = state.next;
        state.next += 1;
        state.waiting.push_back((index, work));
        self.changed.notify_one();
        state.waiting.len()
    }

    /// Whether the thread that pushes should rather work itself.
    pub(super) fn is_full(&self) -> bool {
        self.lock().waiting.len() >= WAITING
    }

    /// Work comes until this is dropped, be it in a panic: nobody waits for ever.
    pub(super) fn filling(&self) -> Filling<'_, T> {
        Filling(self)
    }

    /// Whether work has failed, so that more is of no use.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().failure.is_some()
    }

    /// Takes work if some waits.
    pub(super) fn try_pop(&self) -> Option<(usize, T)> {
        self.lock().waiting.pop_front()
    }

    /// Waits for work; none when there will be no more.
    pub(super) fn pop(&self) -> Option<(usize, T)> {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.waiting.pop_front() {
                return Some(work);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Reports a failure; of several, that of the earliest work is kept. What waits is dropped.
    pub(super) fn fail(&self, index: usize, error: crate::Error) {
        let mut state = self.lock();
        if state.failure.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
            state.failure = Some((index, error));
        }
        state.waiting.clear();
    }

    /// The failure, if there was one.
    pub(super) fn into_result(self) -> Result<(), crate::Error> {
        let state = self.state.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.failure.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
