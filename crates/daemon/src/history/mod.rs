//! Records of builds: what was asked, how it went, what it printed, kept across restarts.
//!
//! A record is BuildKit's own message, in the store's database under its reference. What a build printed and why it failed
//! are blobs (`log`); they, and manifests and configs of what it made, are leased for as long as the record exists:
//!
//! ```text
//! kv `history`: <reference>          BuildHistoryRecord
//! lease `history/<reference>`        log, trace, error, manifests, configs
//! ```
//!
//! Blobs come first, then the lease, then the record: a kill in between leaves a lease without a record, which the next
//! start gives up, and blobs that garbage collection finds. Builds under way are in memory only. What clients may put into
//! records has bounds (`bounds`), for each and for all of them.

mod bounds;
mod filter;
mod log;
mod record;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::Digest;
use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::BuildHistoryEventType as Happened;
use store::{Content, Kv, Store};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

pub(crate) use log::{Counts, replay};
pub(crate) use record::Recording;

/// Events that a slow listener may be behind.
const BACKLOG: usize = 1024;
/// How often records that grew old are looked for.
const ROUND: Duration = Duration::from_secs(120);

/// How long records are kept. One goes when there are too many *and* it is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Younger ones stay.
    pub age: Duration,
    /// So many stay, the newest ones.
    pub entries: usize,
    /// Whatever their age and number, the oldest go when all of them take up more bytes than these.
    pub bytes: u64,
}

impl Default for Keep {
    /// BuildKit's.
    fn default() -> Keep {
        Keep { age: Duration::from_secs(48 * 3600), entries: 50, bytes: bounds::MOST_IN_ALL }
    }
}

/// All records.
pub(crate) struct History {
    store: Store,
    content: Content,
    records: Kv,
    keep: Keep,
    state: Mutex<State>,
    /// One change of records at a time; taken on blocking threads.
    writing: Mutex<()>,
    /// One at a time makes room: two would both delete what makes room for one.
    making_room: Mutex<()>,
    events: broadcast::Sender<Arc<wire::BuildHistoryEvent>>,
    /// Nothing happens any more.
    pub(crate) closed: CancellationToken,
}

#[derive(Default)]
struct State {
    active: BTreeMap<String, wire::BuildHistoryRecord>,
    /// What the records take up.
    bytes: u64,
    /// How many listen to one reference: its record stays as long.
    watched: HashMap<String, usize>,
    /// To be deleted when the build has ended and nobody listens to it.
    doomed: HashSet<String>,
}

/// A listener's share: what it was told so far comes first, then what happens.
pub(crate) struct Listening {
    pub(crate) active: Vec<wire::BuildHistoryEvent>,
    pub(crate) events: broadcast::Receiver<Arc<wire::BuildHistoryEvent>>,
    /// Keeps the one record that it listens to.
    pub(crate) watch: Option<Watch>,
}

/// As long as this lives the record of its reference stays.
pub(crate) struct Watch {
    history: Arc<History>,
    reference: String,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let last = {
            let mut state = self.history.state();
            let count = state.watched.get_mut(&self.reference);
            let left = count.map_or(0, |count| {
                *count -= 1;
                *count
            });
            if left == 0 {
                state.watched.remove(&self.reference);
            }
            left == 0 && state.doomed.contains(&self.reference)
        };
        if let (true, Ok(runtime)) = (last, tokio::runtime::Handle::try_current()) {
            let (history, reference) = (self.history.clone(), std::mem::take(&mut self.reference));
            runtime.spawn_blocking(move || {
                if let Err(error) = history.delete(&reference) {
                    tracing::warn!(%error, reference, "a build record was not deleted");
                }
            });
        }
    }
}

/// Why a record was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is none.
    #[error("no build record with reference `{0}`")]
    Missing(String),
    /// The state directory does not work.
    #[error("cannot use build records: {0}")]
    Store(#[from] store::Error),
}

impl History {
    /// Reads what is there; records whose log is gone are dropped, leases without records given up.
    pub(crate) fn open(store: &Store, keep: Keep) -> Result<History, Error> {
        let history = History {
            store: store.clone(),
            content: store.content(),
            records: store.kv("history"),
            keep,
            state: Mutex::default(),
            writing: Mutex::default(),
            making_room: Mutex::default(),
            events: broadcast::Sender::new(BACKLOG),
            closed: CancellationToken::new(),
        };
        // Of releases that had no bounds; what they may have been is more than there is memory.
        let too_large = history.records.delete_larger(crate::service::MAX_NAME, bounds::MOST)?;
        if too_large > 0 {
            tracing::warn!(records = too_large, "dropped build records that are too large");
        }
        let mut known = HashSet::new();
        for (reference, bytes) in history.records.scan("")? {
            let record = wire::BuildHistoryRecord::decode(bytes.as_slice()).ok();
            let log = record.as_ref().and_then(|record| record.logs.as_ref()?.digest.parse::<Digest>().ok());
            let name = String::from_utf8_lossy(&reference).into_owned();
            if log.is_some_and(|log| history.content.has(&log)) {
                known.insert(lease(&name));
                history.count(None, record.as_ref());
            } else {
                tracing::warn!(reference = name, "dropped a build record whose log is gone");
                history.records.delete(&reference)?;
            }
        }
        for lease in history.content.leases(LEASES) {
            if !known.contains(&lease) {
                history.release(&lease, &[])?;
            }
        }
        Ok(history)
    }

    /// Deletes old records, as long as it is asked.
    pub(crate) async fn collect(self: Arc<Self>) {
        loop {
            let history = self.clone();
            let collected = tokio::task::spawn_blocking(move || history.delete_old()).await;
            if let Ok(Err(error)) = collected {
                tracing::warn!(%error, "old build records were not deleted");
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    /// Deletes the oldest records, as long as all of them take up too much. Blocks.
    fn make_room(&self) -> Result<(), Error> {
        let _turn = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state().bytes <= self.keep.bytes {
            return Ok(());
        }
        let mut records = self.finished()?;
        self.state().bytes = records.iter().map(bounds::size).sum();
        records.retain(|record| !record.pinned);
        records.sort_by_key(|record| record.completed_at.map(|at| (at.seconds, at.nanos)));
        // Some more than has to go: this looks at all of them.
        let enough = self.keep.bytes / 8 * 7;
        for record in records {
            if self.state().bytes <= enough {
                break;
            }
            if self.get(&record.r#ref)?.is_none_or(|now| now.pinned) {
                continue;
            }
            match self.delete(&record.r#ref) {
                // A client was faster.
                Err(Error::Missing(_)) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Notes that a record took another's place.
    fn count(&self, before: Option<&wire::BuildHistoryRecord>, now: Option<&wire::BuildHistoryRecord>) {
        let mut state = self.state();
        let size = |record: Option<&wire::BuildHistoryRecord>| record.map_or(0, bounds::size);
        state.bytes = (state.bytes + size(now)).saturating_sub(size(before));
    }

    fn delete_old(&self) -> Result<(), Error> {
        let mut records = self.finished()?;
        records.retain(|record| !record.pinned);
        let completed = |record: &wire::BuildHistoryRecord| record.completed_at.map_or(0, |at| at.seconds);
        records.sort_by_key(|record| std::cmp::Reverse(completed(record)));
        let oldest = jiff::Timestamp::now().as_second().saturating_sub_unsigned(self.keep.age.as_secs());
        for record in records.iter().skip(self.keep.entries).filter(|record| completed(record) < oldest) {
            match self.delete(&record.r#ref) {
                // A client was faster.
                Err(Error::Missing(_)) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What happens from now on, and what is under way; of one reference, or of all.
    pub(crate) fn listen(self: &Arc<Self>, reference: &str) -> Result<Listening, Error> {
        let mut state = self.state();
        let events = self.events.subscribe();
        let mut watch = None;
        if !reference.is_empty() {
            if state.doomed.contains(reference) {
                return Err(Error::Missing(reference.to_owned()));
            }
            *state.watched.entry(reference.to_owned()).or_default() += 1;
            watch = Some(Watch { history: self.clone(), reference: reference.to_owned() });
        }
        let wanted = |record: &&wire::BuildHistoryRecord| {
            (reference.is_empty() || record.r#ref == reference) && !state.doomed.contains(&record.r#ref)
        };
        let active = state.active.values().filter(wanted).map(|record| event(Happened::Started, record.clone()));
        Ok(Listening { active: active.collect(), events, watch })
    }

    /// The records of builds that have ended: of one reference, or all; only what a filter matches, and the newest ones
    /// where there is a limit. Blocks.
    pub(crate) fn ended(
        &self,
        reference: &str,
        filters: &[filter::Filter],
        limit: Option<usize>,
    ) -> Result<Vec<wire::BuildHistoryEvent>, Error> {
        let mut records = match reference {
            "" => self.finished()?,
            reference => self.get(reference)?.into_iter().collect(),
        };
        {
            let state = self.state();
            records.retain(|record| !state.doomed.contains(&record.r#ref));
        }
        let now = jiff::Timestamp::now();
        records.retain(|record| filters.is_empty() || filters.iter().any(|filter| filter.matches(record, now)));
        if let Some(limit) = limit {
            records.sort_by_key(|record| std::cmp::Reverse(record.created_at.map(|at| (at.seconds, at.nanos))));
            records.truncate(limit);
        }
        Ok(records.into_iter().map(|record| event(Happened::Complete, record)).collect())
    }

    /// Reads filters of a request.
    pub(crate) fn filters(texts: &[String]) -> Result<Vec<filter::Filter>, String> {
        texts.iter().map(|text| filter::Filter::parse(text)).collect()
    }

    /// The record of a build that has ended. Blocks.
    pub(crate) fn get(&self, reference: &str) -> Result<Option<wire::BuildHistoryRecord>, Error> {
        let bytes = self.records.get(reference)?;
        Ok(bytes.and_then(|bytes| wire::BuildHistoryRecord::decode(bytes.as_slice()).ok()))
    }

    fn finished(&self) -> Result<Vec<wire::BuildHistoryRecord>, Error> {
        let rows = self.records.scan("")?;
        Ok(rows.iter().filter_map(|(_, bytes)| wire::BuildHistoryRecord::decode(bytes.as_slice()).ok()).collect())
    }

    /// Keeps a record for ever, or no longer. Blocks.
    pub(crate) fn pin(&self, reference: &str, pinned: bool) -> Result<(), Error> {
        let _writing = self.writing();
        let mut record = self.get(reference)?.ok_or_else(|| Error::Missing(reference.to_owned()))?;
        let before = record.clone();
        record.pinned = pinned;
        record.generation += 1;
        let bytes = record.encode_to_vec();
        self.store.with_room(0, || self.records.put(reference, &bytes))?;
        self.count(Some(&before), Some(&record));
        self.tell(Happened::Complete, record);
        Ok(())
    }

    /// Deletes a record and what only it kept; at once, or when its build has ended and nobody listens to it any more.
    /// Blocks.
    pub(crate) fn delete(&self, reference: &str) -> Result<(), Error> {
        let _writing = self.writing();
        {
            let mut state = self.state();
            if state.active.contains_key(reference) || state.watched.contains_key(reference) {
                state.doomed.insert(reference.to_owned());
                return Ok(());
            }
        }
        let record = self.get(reference)?.ok_or_else(|| Error::Missing(reference.to_owned()))?;
        self.store.forget(|| {
            self.records.delete(reference)?;
            self.count(Some(&record), None);
            self.state().doomed.remove(reference);
            let gone = wire::BuildHistoryRecord { r#ref: reference.to_owned(), ..Default::default() };
            self.tell(Happened::Deleted, gone);
            self.release(&lease(reference), &own_blobs(&record))
        })?;
        Ok(())
    }

    /// Gives up a lease, and deletes those of its blobs that are nobody else's.
    fn release(&self, lease: &str, own: &[Digest]) -> store::Result<()> {
        let left = self.content.release(lease)?;
        for digest in left.iter().filter(|digest| own.contains(digest)) {
            self.content.delete(digest)?;
        }
        Ok(())
    }

    fn tell(&self, happened: Happened, record: wire::BuildHistoryRecord) {
        // Nobody may listen.
        let _ = self.events.send(Arc::new(event(happened, record)));
    }

    /// Where blobs of records are.
    pub(crate) fn content(&self) -> &Content {
        &self.content
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the names of our leases begin with.
const LEASES: &str = "history/";

fn lease(reference: &str) -> String {
    format!("{LEASES}{reference}")
}

fn event(happened: Happened, record: wire::BuildHistoryRecord) -> wire::BuildHistoryEvent {
    wire::BuildHistoryEvent { r#type: happened.into(), record: Some(record) }
}

/// Blobs that exist for the record alone.
fn own_blobs(record: &wire::BuildHistoryRecord) -> Vec<Digest> {
    let blobs = record.logs.iter().chain(&record.external_error).chain(&record.trace);
    blobs.filter_map(|blob| blob.digest.parse().ok()).collect()
}

#[cfg(test)]
mod tests;
