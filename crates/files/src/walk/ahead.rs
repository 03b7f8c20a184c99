//! Reading directories ahead of a walk, on a second thread.
//!
//! Most of a walk is the kernel's work: opening and listing directories, and a `stat` for each name. The walk itself stays
//! on one thread, which decides what is seen, in which order, and which failure ends it; it only names the directories
//! that it will enter. Here nothing is decided and nothing fails: what cannot be read is left to the walk, which tries
//! itself and says what is wrong.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use sys::path::lstat_at;

use super::{Found, open_dir_at, read_dir};

/// How many directories are read before the walk comes to them: each is an open descriptor.
const READY: usize = 16;
/// How many entries of a directory are asked for their `stat`, which bounds the memory of one that holds a million.
const STATS: usize = 1024;
/// With fewer directories to read, starting a thread takes longer than the walk.
pub(super) const WORTH_A_THREAD: usize = 4;

/// Directories that a walk will come to, between the walk and the thread that reads ahead.
pub(super) struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

/// Names a directory that was announced.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket(u64);

#[derive(Default)]
struct State {
    /// Not begun; what the walk comes to first is last.
    waiting: Vec<Announced>,
    /// What the thread is at.
    reading: Option<Ticket>,
    /// Read, with how deep it lies; none if that failed.
    ready: HashMap<Ticket, (usize, Option<ReadDir>)>,
    tickets: u64,
    closed: bool,
}

struct Announced {
    ticket: Ticket,
    parent: Arc<OwnedFd>,
    name: OsString,
    depth: usize,
}

/// A directory that has been read.
pub(super) struct ReadDir {
    pub(super) fd: OwnedFd,
    /// Sorted by name.
    pub(super) entries: Vec<Found>,
}

/// Says by its end that the walk is over, be it in a panic: the thread waits for no more.
pub(super) struct Walking<'a>(&'a Ahead);

impl Drop for Walking<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Ahead {
    pub(super) fn new() -> Ahead {
        Ahead { state: Mutex::default(), changed: Condvar::new() }
    }

    pub(super) fn walking(&self) -> Walking<'_> {
        Walking(self)
    }

    /// Says which of the names in `parent` are directories that the walk will enter, what it enters last first; tells how
    /// many wait now.
    pub(super) fn announce(
        &self,
        parent: &Arc<OwnedFd>,
        depth: usize,
        names: &mut [Found],
        entered: &[usize],
    ) -> usize {
        let mut state = self.lock();
        for at in entered {
            let ticket = Ticket(state.tickets);
            state.tickets += 1;
            names[*at].ticket = Some(ticket);
            let (parent, name) = (parent.clone(), names[*at].name.clone());
            state.waiting.push(Announced { ticket, parent, name, depth });
        }
        self.changed.notify_all();
        state.waiting.len()
    }

    /// A directory, now that the walk has come to it; none if the walk has to read it.
    pub(super) fn take(&self, ticket: Ticket) -> Option<ReadDir> {
        let mut state = self.lock();
        loop {
            if let Some((_, read)) = state.ready.remove(&ticket) {
                self.changed.notify_all();
                return read;
            }
            if state.reading != Some(ticket) {
                // It is the next one, so the search ends where it begins.
                if let Some(at) = state.waiting.iter().rposition(|waiting| waiting.ticket == ticket) {
                    state.waiting.remove(at);
                }
                return None;
            }
            // The thread is at it: rather than wait, read the one after.
            state = match state.next() {
                Some(announced) => {
                    drop(state);
                    let read = announced.read();
                    let mut state = self.lock();
                    state.ready.insert(announced.ticket, (announced.depth, read));
                    state
                }
                None => self.wait(state),
            };
        }
    }

    /// Forgets what lies deeper than `depth`: the walk has left it, and has not entered all that it had announced.
    pub(super) fn leave(&self, depth: usize) {
        let mut state = self.lock();
        while state.waiting.last().is_some_and(|waiting| waiting.depth > depth) {
            state.waiting.pop();
        }
        let ready = state.ready.len();
        state.ready.retain(|_, (at, _)| *at <= depth);
        if state.ready.len() < ready {
            self.changed.notify_all();
        }
    }

    /// What the thread does.
    pub(super) fn run(&self) {
        let mut state = self.lock();
        while !state.closed {
            state = match state.next() {
                Some(announced) => {
                    state.reading = Some(announced.ticket);
                    drop(state);
                    let read = announced.read();
                    let mut state = self.lock();
                    state.reading = None;
                    state.ready.insert(announced.ticket, (announced.depth, read));
                    self.changed.notify_all();
                    state
                }
                None => self.wait(state),
            };
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    /// The next directory to read, unless enough are ready.
    fn next(&mut self) -> Option<Announced> {
        if self.ready.len() < READY { self.waiting.pop() } else { None }
    }
}

impl Announced {
    fn read(&self) -> Option<ReadDir> {
        let fd = open_dir_at(&self.parent, &self.name).ok()?;
        let mut read = read_dir(fd, b"").ok()?;
        for entry in read.entries.iter_mut().take(STATS) {
            entry.stat = lstat_at(&read.fd, &entry.name).ok().map(Into::into);
        }
        Some(read)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use std::fs;

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn only_so_much_is_ready_at_once_and_what_fails_is_left_to_the_walk() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..READY + 9 {
            let dir = dir.path().join(format!("{number:02}"));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("file"), "content").unwrap();
        }
        let top = Arc::new(open_dir_at(CWD, dir.path().as_os_str()).unwrap());
        let mut names = read_dir(top.try_clone().unwrap(), b"").unwrap().entries;
        names.reverse();
        fs::remove_dir_all(dir.path().join("01")).unwrap();
        let ahead = Ahead::new();
        std::thread::scope(|scope| {
            let _walking = ahead.walking();
            scope.spawn(|| ahead.run());
            let wanted: Vec<usize> = (0..names.len()).collect();
            assert_eq!(ahead.announce(&top, 1, &mut names, &wanted), READY + 9);
            let full = |state: &mut State| state.ready.len() < READY || state.reading.is_some();
            let state = ahead.changed.wait_while(ahead.lock(), full).unwrap();
            assert_eq!((state.ready.len(), state.waiting.len()), (READY, 9));
            drop(state);
            let take = |name: &Found| ahead.take(name.ticket.unwrap());
            let first = take(&names.pop().unwrap()).unwrap();
            assert_eq!(first.entries.iter().map(|entry| entry.stat.unwrap().size).collect::<Vec<_>>(), [7]);
            assert!(take(&names.pop().unwrap()).is_none());
            ahead.leave(0);
            let state = ahead.changed.wait_while(ahead.lock(), |state| state.reading.is_some()).unwrap();
            assert!(state.waiting.is_empty() && state.ready.len() <= 1);
        });
    }
}
