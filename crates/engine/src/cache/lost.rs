//! A layer that only a cache vouches for, and that is not there or not what it should be: the build goes on without that
//! cache.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use base::Fault;
use store::{Hold, LazyLayer};

use crate::core::Core;
use crate::job::Job;
use crate::layout;

/// Why a cached result cannot be used after all.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{cause}")]
pub(crate) struct Lost {
    /// Where the layer was said to be.
    sources: Vec<String>,
    cause: String,
}

/// Says of a failure to have `layer` that it is the cache's, if it is.
pub(crate) fn blame(layer: &LazyLayer, fault: Fault) -> Fault {
    if !layer.from_cache || fault.kind() == base::Kind::Cancelled || fault.kind() == base::Kind::Environment {
        return fault;
    }
    let lost = Lost { sources: layer.sources.clone(), cause: fault.to_string() };
    let said = Fault::because(fault.kind(), "a layer of a cache cannot be had", lost);
    fault.get_hint().into_iter().fold(said, Fault::hint)
}

/// Whether a failure is that of a cache.
pub(crate) fn is_lost(fault: &Fault) -> bool {
    fault.find::<Lost>().is_some()
}

/// Caches that a build does not count on any more.
#[derive(Debug, Default)]
pub(crate) struct GivenUp {
    /// Where their layers were said to be.
    places: BTreeSet<String>,
    /// Of the vertices that know it; 0 while nothing was lost. No other build has the same one.
    generation: u64,
}

impl Job {
    /// Gives up the cache that a failure is of. Whether that is news, so that another try makes sense.
    pub(crate) fn gives_up(&self, fault: &Fault) -> bool {
        let Some(lost) = fault.find::<Lost>() else { return false };
        let mut given_up = self.given_up();
        let before = given_up.places.len();
        given_up.places.extend(lost.sources.iter().cloned());
        let is_news = given_up.places.len() > before;
        if is_news {
            static NEXT: AtomicU64 = AtomicU64::new(1);
            given_up.generation = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        drop(given_up);
        if is_news {
            self.warn_once("going on without a cache", self.without_cache(lost));
        }
        is_news
    }

    fn without_cache(&self, lost: &Lost) -> String {
        let is_local = lost.sources.iter().all(|source| source.starts_with(layout::SOURCE));
        match is_local && !self.stores().iter().any(|store| store.cache) {
            true => "the local cache that these steps came from is not given any more: they run again".to_owned(),
            false => format!("a cache lacks what it promised: steps run again ({})", lost.cause),
        }
    }

    /// Whether [`gives_up`](Self::gives_up) would say yes.
    pub(crate) fn would_give_up(&self, fault: &Fault) -> bool {
        let given_up = self.given_up();
        fault.find::<Lost>().is_some_and(|lost| lost.sources.iter().any(|source| !given_up.places.contains(source)))
    }

    /// Whether nothing is left where a layer could come from.
    pub(crate) fn has_given_up(&self, sources: &[String]) -> bool {
        let given_up = self.given_up();
        !given_up.places.is_empty() && sources.iter().all(|source| given_up.places.contains(source))
    }

    /// Of the vertices that are new from now on: what was loaded from a cache that was given up since is not met again.
    pub(crate) fn generation(&self) -> u64 {
        self.given_up().generation
    }
}

impl Core {
    /// Whether a snapshot can be had, as far as a build has found out.
    pub(crate) fn is_lost(&self, job: &Job, hold: &Hold) -> bool {
        if job.generation() == 0 {
            return false;
        }
        let snapshots = self.store.snapshots();
        let unfilled = snapshots.unfilled(&hold.id()).unwrap_or_default();
        let mut layers = unfilled.iter().filter_map(|id| snapshots.lazy(id)).filter(|layer| layer.from_cache);
        layers.any(|layer| !self.store.content().has(&layer.digest) && job.has_given_up(&layer.sources))
    }
}
