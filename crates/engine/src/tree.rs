//! What ops make and read: file system trees.

use std::sync::Arc;

use crate::local::LocalTree;

/// The result of an op. Clones share it; a snapshot stays while one of them lives.
#[derive(Clone, Debug)]
pub(crate) enum Tree {
    /// Nothing: `scratch`.
    Empty,
    /// A committed snapshot, maybe a lazy one.
    Snapshot(Arc<store::Hold>),
    /// A directory of the client, read in place.
    Local(Arc<LocalTree>),
}

impl Tree {
    pub(crate) fn snapshot(hold: store::Hold) -> Tree {
        Tree::Snapshot(Arc::new(hold))
    }
}
