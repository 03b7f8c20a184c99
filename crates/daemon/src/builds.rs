//! Builds under way, and what was told of them: whoever asks for the status of one gets all of it, from the start.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::Digest;
use base::progress::{CANCELLED, Event, Sink, Vertex};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::history::Counts;
use crate::service::gateway::ClientBuild;

/// How long a client may ask for the status of a build that has not begun.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long what was told of a build is kept after its end: its client may come late.
const AFTERLIFE: Duration = Duration::from_secs(10);

/// How many refused builds are remembered: their clients ask about them just then.
const MOST_REFUSED: usize = 1000;

/// The builds, by the reference that their clients chose.
#[derive(Default)]
pub(crate) struct Builds {
    known: Mutex<HashMap<String, Arc<Build>>>,
    changed: watch::Sender<()>,
    /// References of the last builds that were refused.
    refused: Mutex<VecDeque<String>>,
    /// Told when a build ends; remembers one end that nobody waited for.
    an_end: tokio::sync::Notify,
}

/// One build.
pub(crate) struct Build {
    told: Mutex<Told>,
    state: watch::Sender<State>,
    pub(crate) cancel: CancellationToken,
    /// It was cancelled because the daemon ends.
    cut_off: AtomicBool,
    /// What its client may ask, where the client is the frontend.
    client: watch::Sender<Option<Arc<ClientBuild>>>,
}

/// What was told of a build.
#[derive(Default)]
struct Told {
    events: Vec<Event>,
    /// Vertices that have begun and not ended, by where that was told.
    open: HashMap<Digest, usize>,
    /// Nothing follows.
    sealed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct State {
    told: usize,
    ended: bool,
}

/// A build that runs; it has ended when this is dropped.
pub(crate) struct Running {
    builds: Arc<Builds>,
    reference: String,
    pub(crate) build: Arc<Build>,
}

impl Builds {
    /// Begins a build; none if there is one of that name.
    pub(crate) fn begin(self: &Arc<Self>, reference: &str) -> Option<Running> {
        let build = Arc::new(Build {
            told: Mutex::default(),
            state: watch::Sender::default(),
            cancel: CancellationToken::new(),
            cut_off: AtomicBool::new(false),
            client: watch::Sender::default(),
        });
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.get(reference).is_some_and(|build| !build.has_ended()) {
                return None;
            }
            known.insert(reference.to_owned(), build.clone());
        }
        self.changed.send_replace(());
        Some(Running { builds: self.clone(), reference: reference.to_owned(), build })
    }

    /// No build of that name will begin: nobody waits for it any longer.
    pub(crate) fn refuse(&self, reference: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.truncate(MOST_REFUSED - 1);
        refused.push_front(reference.to_owned());
        drop(refused);
        self.changed.send_replace(());
    }

    fn is_refused(&self, reference: &str) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.iter().any(|name| name == reference)
    }

    /// The build of that name; waits a moment for one that is about to begin.
    pub(crate) async fn get(&self, reference: &str) -> Option<Arc<Build>> {
        let mut changed = self.changed.subscribe();
        let find = async {
            loop {
                if let Some(build) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(reference) {
                    return Some(build.clone());
                }
                if self.is_refused(reference) {
                    return None;
                }
                // The sender is ours.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(PATIENCE, find).await.ok().flatten()
    }

    /// The build of that name, if it runs just now.
    pub(crate) fn get_running(&self, reference: &str) -> Option<Arc<Build>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(reference).filter(|build| !build.has_ended()).cloned()
    }

    /// How many run.
    pub(crate) fn running(&self) -> usize {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().filter(|build| !build.has_ended()).count()
    }

    /// Waits until none runs.
    pub(crate) async fn idle(&self) {
        let mut changed = self.changed.subscribe();
        while self.running() > 0 {
            let _ = changed.changed().await;
        }
    }

    /// Waits until a build ends, or has ended since this was last asked.
    pub(crate) async fn ended(&self) {
        self.an_end.notified().await;
    }

    /// Cancels those that run, because the daemon ends.
    pub(crate) fn cancel_all(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for build in known.values().filter(|build| !build.cancel.is_cancelled()) {
            build.cut_off.store(true, Ordering::Relaxed);
            build.cancel.cancel();
        }
    }
}

impl Build {
    fn has_ended(&self) -> bool {
        self.state.borrow().ended
    }

    /// Whether it was cancelled because the daemon ends, and not by its client.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// How many steps there were so far.
    pub(crate) fn counts(&self) -> Counts {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts = Counts::default();
        counts.add(&told.events);
        counts
    }

    /// From now on the client may ask for what it needs; or, without one, no more.
    pub(crate) fn attach(&self, client: Option<Arc<ClientBuild>>) {
        self.client.send_replace(client);
    }

    /// What its client may ask; waits until the build has begun. None where the client is not the frontend.
    pub(crate) async fn client(&self) -> Option<Arc<ClientBuild>> {
        let (mut client, mut state) = (self.client.subscribe(), self.state.subscribe());
        let attached = client.wait_for(Option::is_some);
        tokio::select! {
            client = attached => client.ok()?.clone(),
            _ = state.wait_for(|state| state.ended) => None,
        }
    }

    /// Some of what was told, so far, after `from` events.
    pub(crate) fn told(&self, from: usize, most: usize) -> Vec<Event> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.events.iter().skip(from).take(most).cloned().collect()
    }

    /// What was told since `from` events; none when it has ended and all was told.
    pub(crate) async fn told_since(&self, from: usize) -> Option<Vec<Event>> {
        let mut state = self.state.subscribe();
        loop {
            let now = *state.borrow_and_update();
            if now.told > from {
                let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                return Some(told.events[from..].to_vec());
            }
            if now.ended || state.changed().await.is_err() {
                return None;
            }
        }
    }
}

impl Build {
    /// Tells the last: what still runs is not wanted any more. Nothing that is told later is of this build.
    pub(crate) fn wind_up(&self) {
        self.tell(|told| {
            let mut open: Vec<usize> = std::mem::take(&mut told.open).into_values().collect();
            open.sort_unstable();
            for begun in open {
                if let Event::Vertex(vertex) = &told.events[begun] {
                    let (completed, error) = (Some(jiff::Timestamp::now()), Some(CANCELLED.to_owned()));
                    told.events.push(Event::Vertex(Vertex { completed, error, ..vertex.clone() }));
                }
            }
            told.sealed = true;
        });
    }

    fn tell(&self, tell: impl FnOnce(&mut Told)) {
        let told = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            tell(&mut told);
            told.events.len()
        };
        self.state.send_modify(|state| state.told = state.told.max(told));
    }
}

impl Sink for Build {
    fn emit(&self, mut event: Event) {
        self.tell(|told| {
            if told.sealed {
                return;
            }
            if let Event::Vertex(vertex) = &mut event {
                match vertex.completed {
                    None if vertex.started.is_some() => _ = told.open.insert(vertex.digest, told.events.len()),
                    None => {}
                    Some(_) => _ = told.open.remove(&vertex.digest),
                }
                // Whatever broke on the way: clients know it as the cancellation that it was.
                if vertex.error.is_some() && self.cancel.is_cancelled() {
                    vertex.error = Some(CANCELLED.to_owned());
                }
            }
            told.events.push(event);
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.build.state.send_modify(|state| state.ended = true);
        self.builds.an_end.notify_one();
        self.builds.changed.send_replace(());
        let (builds, reference, build) = (self.builds.clone(), std::mem::take(&mut self.reference), self.build.clone());
        let forget = async move {
            tokio::time::sleep(AFTERLIFE).await;
            let mut known = builds.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.get(&reference).is_some_and(|known| Arc::ptr_eq(known, &build)) {
                known.remove(&reference);
            }
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(forget);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_still_runs_at_the_end_of_a_build_is_told_as_cancelled() {
        let running = Arc::new(Builds::default()).begin("b").expect("new");
        let build = &running.build;
        let now = || Some(jiff::Timestamp::now());
        let vertex = |name: &str| base::report::Label::phase(name).vertex();
        let (waits, runs, done) = (vertex("waits"), vertex("runs"), vertex("done"));
        let emit = |vertex| build.emit(Event::Vertex(vertex));
        emit(waits);
        emit(Vertex { started: now(), ..runs.clone() });
        emit(Vertex { started: now(), ..done.clone() });
        emit(Vertex { started: now(), completed: now(), ..done });
        build.wind_up();
        // Whoever worked on it hears of the end later.
        emit(Vertex { started: now(), completed: now(), ..runs });
        let told = build.told(0, usize::MAX);
        let Some(Event::Vertex(last)) = told.get(4) else { panic!("{told:?}") };
        assert!(last.completed.is_some(), "{last:?}");
        assert_eq!((told.len(), &last.name[..], last.error.as_deref()), (5, "runs", Some(CANCELLED)));
    }

    #[test]
    fn a_client_that_cancels_is_not_the_daemons_end() {
        let builds = Arc::new(Builds::default());
        let (gone, cut_off) = (builds.begin("gone").expect("new"), builds.begin("cut off").expect("new"));
        gone.build.cancel.cancel();
        builds.cancel_all();
        assert!(cut_off.build.cancel.is_cancelled());
        assert_eq!((gone.build.is_cut_off(), cut_off.build.is_cut_off()), (false, true));
    }
}
