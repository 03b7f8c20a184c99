//! What the builds that share a vertex are told of it.

use std::collections::HashMap;
use std::sync::Arc;

use base::progress::{CANCELLED, Event, Stream, Vertex};
use base::report::{Relay, Tasks};
use base::{Digest, Fault, Kind};
use jiff::Timestamp;
use solver::{JobId, NodeId, Notice, Status};

use crate::driver::is_stale;
use crate::job::Job;
use crate::journal::{self, Found, Outcome};
use crate::ops::Op;

/// Vertices that are, or were, worked on for builds that go on.
#[derive(Default)]
pub(crate) struct Shows(HashMap<NodeId, Show>);

#[derive(Default)]
struct Show {
    relay: Arc<Relay>,
    /// When work began.
    started: Option<Timestamp>,
    /// When it ended.
    completed: Option<Timestamp>,
    /// Where its result was found, for the log.
    found: Option<Found>,
}

impl Shows {
    /// Where work on a vertex says how it goes.
    pub(crate) fn relay(&mut self, node: NodeId) -> Arc<Relay> {
        self.0.entry(node).or_default().relay.clone()
    }

    /// A build has ended.
    pub(crate) fn leave(&mut self, job: &Job) {
        self.0.retain(|_, show| show.relay.leave(&job.sink));
    }

    /// The result of a vertex was found.
    pub(crate) fn found(&mut self, node: NodeId, found: Found) {
        self.0.entry(node).or_default().found = Some(found);
    }

    /// Tells builds what happened to a vertex; those that come late, what happened before, too.
    pub(crate) fn notify(&mut self, notice: &Notice<Fault>, op: Option<&Op>, jobs: &[(JobId, Arc<Job>)]) {
        let now = Timestamp::now();
        let show = match &notice.status {
            Status::Loading => return,
            Status::Started => {
                let show = self.0.entry(notice.node).or_default();
                // What was cancelled may begin again.
                if show.completed.take().is_some() || show.started.is_none() {
                    show.started = Some(now);
                }
                Some(show)
            }
            _ => self.0.get_mut(&notice.node),
        };
        let is_started = show.as_ref().is_some_and(|show| show.started.is_some());
        // Nothing to say about what never began.
        if matches!(notice.status, Status::Cancelled) && !is_started {
            return;
        }
        let found = show.as_ref().and_then(|show| show.found.clone());
        // Who hears of it after its end joined what others had made.
        let is_news = show.as_ref().is_none_or(|show| show.completed.is_none());
        let shared = jobs.len() + notice.merged.len() > 1 || matches!(notice.status, Status::Completed) && !is_news;
        let (started, completed, relay) = match (show, &notice.status) {
            (Some(show), Status::Started) => (show.started, None, Some(&show.relay)),
            (Some(show), _) if is_started => {
                (show.started, Some(*show.completed.get_or_insert(now)), Some(&show.relay))
            }
            _ => (Some(now), Some(now), None),
        };
        for (id, job) in jobs {
            let Some(name) = name(notice, *id, job) else { continue };
            let Some(label) = job.label(name) else { continue };
            let tell = |completed, cached, error| {
                let vertex = Vertex { started, completed, cached, error, ..label.vertex() };
                job.sink.emit(Event::Vertex(vertex));
            };
            if let Some(relay) = relay {
                // Output comes between the beginning and the end.
                if completed.is_none() || !relay.has(&job.sink) {
                    tell(None, false, None);
                }
                relay.join(&job.sink, name);
            }
            let Some(completed) = completed else { continue };
            let error = match &notice.status {
                Status::Failed(fault) if is_stale(fault) && job.has_readings_left() || job.would_give_up(fault) => {
                    let said = format!("{}: trying again\n", fault.cause());
                    Tasks::new(job.sink.clone(), name).log(Stream::Stderr, said.as_bytes());
                    Some(CANCELLED.to_owned())
                }
                Status::Failed(fault) if fault.kind() == Kind::Cancelled => Some(CANCELLED.to_owned()),
                Status::Failed(fault) => Some(fault.to_string()),
                Status::Cancelled => Some(CANCELLED.to_owned()),
                _ => None,
            };
            tell(Some(completed), matches!(notice.status, Status::Cached), error);
            if journal::is_kept() {
                let shared = shared || name != notice.vertex && job.follows_for(name);
                let outcome = Outcome { status: &notice.status, found: found.as_ref(), shared, started, completed };
                journal::ended(job, name, op, &outcome);
            }
        }
    }
}

/// What a build calls the vertex; none if it is not told of it.
fn name(notice: &Notice<Fault>, id: JobId, job: &Job) -> Option<Digest> {
    match (job.name_of(notice.vertex), &notice.status) {
        // It was told that it ran: that its own vertex need not is no news.
        (Some(name), Status::Cached) if job.follows_for(name) => None,
        // What was there already when the vertices turned out to be one is told as cached.
        (None, Status::Started) => {
            let (_, name) = notice.merged.iter().find(|(merged, _)| *merged == id)?;
            job.follow(notice.vertex, *name);
            Some(*name)
        }
        (name, _) => name,
    }
}
