//! An image that is its own cache: its config names the steps whose results its layers are.

use std::sync::Arc;

use base::Digest;
use remotecache::draft::{Within, inline};
use solver::cache_export::{Chain, ChainRecord};
use store::{Hold, SnapshotId, Snapshots};

use crate::cache::load;
use crate::core::Core;
use crate::job::Job;

/// The results of a build, one place for each record of its chain.
#[derive(Debug)]
pub(crate) struct Records {
    chain: Chain,
    results: Vec<Option<(Hold, i64)>>,
    snapshots: Snapshots,
}

impl Records {
    /// Finds the results of a chain. Blocks.
    pub(crate) fn of(core: &Core, job: &Arc<Job>, chain: Chain) -> Records {
        let result = |record: &ChainRecord| {
            if record.inputs.is_empty() || record.exported == Some(false) {
                return None;
            }
            record.results.iter().find_map(|record| {
                let found = load::find(core, job, record).ok().flatten();
                found.map(|hold| (hold, record.result.created_at))
            })
        };
        let results = chain.records.iter().map(result).collect();
        Records { chain, results, snapshots: core.store.snapshots() }
    }

    /// Where the layers of a snapshot are in the image; none if it does not have them all.
    fn places(&self, top: &Hold, layers: &[(SnapshotId, Digest)]) -> Option<Vec<usize>> {
        let mut chain = self.snapshots.chain(&top.id()).ok()?;
        chain.reverse();
        let place = |(at, id): (usize, &SnapshotId)| {
            // Most often its layers are the image's first ones.
            if layers.get(at).is_some_and(|(of_image, _)| of_image == id) {
                return Some(at);
            }
            let diff_id = self.diff_id(id)?;
            layers.iter().position(|(of_image, of_layer)| of_image == id || *of_layer == diff_id)
        };
        chain.iter().enumerate().map(place).collect()
    }

    fn diff_id(&self, id: &SnapshotId) -> Option<Digest> {
        let lazy = self.snapshots.lazy(id).map(|lazy| lazy.diff_id);
        lazy.or_else(|| {
            Some(self.snapshots.layers(id).ok()?.into_iter().find(|(variant, _)| !variant.contains('@'))?.1.diff_id)
        })
    }
}

impl ::export::Inline for Records {
    fn records(&self, layers: &[(SnapshotId, Digest)]) -> Option<Vec<u8>> {
        let within = |result: &Option<(Hold, i64)>| {
            let (hold, created_at) = result.as_ref()?;
            Some(Within { layers: self.places(hold, layers)?, created_at: *created_at })
        };
        inline(&self.chain, &self.results.iter().map(within).collect::<Vec<_>>())
    }
}
