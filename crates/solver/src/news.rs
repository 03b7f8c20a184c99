//! What became known of an op while edges of it were in flight: an edge that was told "nothing is cached" long before
//! it can run learns here that this may no longer hold.

use std::collections::HashMap;

use crate::cache_key::KeyDigest;

/// An output of an op, whatever its inputs.
pub(crate) type Made = (KeyDigest, i32);

/// How often results were saved, for each op that an edge watches.
#[derive(Default)]
pub(crate) struct News {
    ops: HashMap<Made, Heard>,
}

#[derive(Default)]
struct Heard {
    watchers: usize,
    saved: u64,
}

impl News {
    /// Counts for this op from now on.
    pub fn watch(&mut self, op: Made) {
        self.ops.entry(op).or_default().watchers += 1;
    }

    pub fn forget(&mut self, op: &Made) {
        if let Some(heard) = self.ops.get_mut(op) {
            heard.watchers -= 1;
            if heard.watchers == 0 {
                self.ops.remove(op);
            }
        }
    }

    /// The cache knows more of this op.
    pub fn saved(&mut self, op: &Made) {
        if let Some(heard) = self.ops.get_mut(op) {
            heard.saved += 1;
        }
    }

    /// How often anything was saved of these ops since the first of their watchers came.
    pub fn count(&self, ops: &[Made]) -> u64 {
        ops.iter().filter_map(|op| self.ops.get(op)).map(|heard| heard.saved).sum()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}
