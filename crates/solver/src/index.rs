//! Finds edges in flight that are the same under different vertex digests.
//!
//! Two edges are the same when their ops state the same digest, they are the same output, and for every
//! input they have something in common: the same edge (edges that were merged count as one) read
//! through the same selector, or the same content digest. Vertices without inputs are the same
//! when any of their cache maps is.
//!
//! Merging an edge into an equal one cannot make a cycle of edges that wait for each other: what
//! they share is either the very same input edge, or a content digest, and then that input is
//! complete and waited for no more.

use std::collections::{HashMap, HashSet};

use base::Digest;

use crate::cache_key::KeyDigest;
use crate::edge::EdgeId;

/// One thing about one input of an op that equal edges have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Atom {
    pub digest: KeyDigest,
    pub output: u32,
    /// How many inputs the op has.
    pub inputs: u32,
    pub input: u32,
    pub by: By,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum By {
    /// There are no inputs.
    Root,
    /// The edge it reads, and through which selector.
    Edge(EdgeId, Option<Digest>),
    /// What it reads of the input's content.
    Content(Digest),
}

/// Edges by what is known about their inputs.
#[derive(Default)]
pub(crate) struct Index {
    edges: HashMap<Atom, HashSet<EdgeId>>,
}

impl Index {
    pub fn insert(&mut self, atom: Atom, edge: EdgeId) {
        self.edges.entry(atom).or_default().insert(edge);
    }

    pub fn remove(&mut self, atom: &Atom, edge: EdgeId) {
        if let Some(edges) = self.edges.get_mut(atom) {
            edges.remove(&edge);
            if edges.is_empty() {
                self.edges.remove(atom);
            }
        }
    }

    /// The other edges that share an atom of each input with an edge that has these atoms.
    pub fn equal_to(&self, edge: EdgeId, atoms: &[Atom]) -> Vec<EdgeId> {
        let Some(first) = atoms.first() else { return Vec::new() };
        let mut by_input: Vec<Vec<&HashSet<EdgeId>>> = vec![Vec::new(); (first.inputs as usize).max(1)];
        for atom in atoms {
            by_input[atom.input as usize].extend(self.edges.get(atom));
        }
        // Start where fewest come into question: thousands of steps may share one base.
        by_input.sort_by_key(|sets| sets.iter().map(|set| set.len()).sum::<usize>());
        let Some((rarest, others)) = by_input.split_first() else { return Vec::new() };
        let shared = |candidate: &EdgeId| others.iter().all(|sets| sets.iter().any(|set| set.contains(candidate)));
        let mut equal: Vec<EdgeId> =
            rarest.iter().copied().flatten().copied().filter(|c| *c != edge && shared(c)).collect();
        equal.sort_unstable();
        equal.dedup();
        equal
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }
}

#[cfg(test)]
mod tests;
