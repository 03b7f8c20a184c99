//! What an op that failed left behind, for people who want to look into it: BuildKit's clients open a container on it.
//!
//! It rides on the fault, so it lives as long as somebody knows of the failure: the vertex that failed, until its builds
//! end, and the client that was told. Trees that were committed for it alone are removed with it.

use std::collections::HashMap;

use base::Fault;
use llb::pb;

use crate::core::Core;
use crate::ops::OpContext;
use crate::result::Ref;
use crate::tree::Tree;

/// What failed, and what there is to look at.
#[derive(Debug)]
pub struct Wreck {
    op: pb::Op,
    description: HashMap<String, String>,
    subject: Subject,
    inputs: Vec<Option<Tree>>,
    mounts: Vec<Option<Tree>>,
    /// Those of the mounts that nobody else wants.
    own: Vec<Own>,
}

/// What of an op failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// All of it.
    Op,
    /// An action of a file op.
    FileAction(usize),
    /// The digest of an input's content.
    Content(usize),
}

/// A snapshot that was committed to be looked at.
#[derive(Debug)]
struct Own {
    store: store::Store,
    id: store::SnapshotId,
}

impl Drop for Own {
    fn drop(&mut self) {
        let (store, id) = (self.store.clone(), self.id);
        let remove = move || {
            // Who has it mounted keeps it; the garbage collection finds it then.
            if let Err(error) = store.snapshots().remove(&id) {
                tracing::warn!(%error, snapshot = %id, "what a failed step left was not removed");
            }
        };
        // The last who knows of it may be the solver's owner, who never waits for a disk.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

impl Wreck {
    pub(crate) fn new(ctx: &OpContext, subject: Subject, inputs: Vec<Option<Tree>>) -> Wreck {
        let vertex = &ctx.op.vertex;
        let description = vertex.metadata.description.clone();
        let (op, mounts, own) = (vertex.op.clone(), Vec::new(), Vec::new());
        Wreck { op, description: description.into_iter().collect(), subject, inputs, mounts, own }
    }

    /// Adds a tree at its place among the mounts.
    pub(crate) fn set_mount(&mut self, index: usize, tree: Option<Tree>) {
        if self.mounts.len() <= index {
            self.mounts.resize(index + 1, None);
        }
        self.mounts[index] = tree;
    }

    /// Adds a tree that was made for this only.
    pub(crate) fn set_own_mount(&mut self, core: &Core, index: usize, tree: Tree) {
        if let Tree::Snapshot(hold) = &tree {
            self.own.push(Own { store: core.store.clone(), id: hold.id() });
        }
        self.set_mount(index, Some(tree));
    }

    /// What failed.
    pub fn op(&self) -> &pb::Op {
        &self.op
    }

    /// What is noted about it.
    pub fn description(&self) -> &HashMap<String, String> {
        &self.description
    }

    /// What of it.
    pub fn subject(&self) -> Subject {
        self.subject
    }

    /// What it read: for each mount of a step its input, for each input of a file op that.
    pub fn inputs(self: &std::sync::Arc<Self>) -> Vec<Option<Ref>> {
        self.inputs.iter().map(|tree| self.reference(tree)).collect()
    }

    /// As it left them: for each mount of a step that, for each action of a file op its result.
    pub fn mounts(self: &std::sync::Arc<Self>) -> Vec<Option<Ref>> {
        self.mounts.iter().map(|tree| self.reference(tree)).collect()
    }

    fn reference(self: &std::sync::Arc<Self>, tree: &Option<Tree>) -> Option<Ref> {
        tree.as_ref().map(|tree| Ref::left(tree.clone(), self.clone()))
    }
}

impl Drop for Wreck {
    fn drop(&mut self) {
        // Given back before they are removed.
        self.inputs.clear();
        self.mounts.clear();
    }
}

impl OpContext {
    /// Whether a client of the op looks into what failed.
    pub(crate) fn wants_wrecks(&self) -> bool {
        self.jobs.iter().any(|job| job.wants_wrecks())
    }
}

/// What a fault left, if anything.
pub fn wreck(fault: &Fault) -> Option<std::sync::Arc<Wreck>> {
    fault.get_left()
}
