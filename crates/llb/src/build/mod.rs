//! Making LLB: states over ops, marshalled to the bytes that BuildKit's Go client would send.
//!
//! A [`Builder`] owns all ops of one definition; a [`State`] is an output of one of them plus what later steps inherit
//! (environment, directory, user, ..). States are values: changing one leaves the op that was made from it alone.
//! [`Builder::marshal`] turns what a state needs into a `pb.Definition`.
//!
//! Byte equality is a promise: vertex digests go into progress, source maps and in-flight sharing, and the ops'
//! contents into cache keys. The goldens of crate `dockerfile` hold digests that upstream computed.
//!
//! Left to others: which ops a Dockerfile needs (`dockerfile::lower`), reading definitions ([`crate::Graph`]).

mod caps;
mod exec;
mod file;
mod import;
mod marshal;
mod source;
mod state;

pub use exec::{CacheSharing, Exec, Mount, MountKind, Secret, Ssh};
pub use file::{Chmod, CopyInfo, FileAction, Owner, User};
pub use marshal::Defaults;
pub use source::{Git, Http, Image, Local, OciLayout, ResolveMode};
pub use state::{Env, State};

use std::collections::{BTreeMap, BTreeSet};

use base::{Platform, SourceSpan};

use crate::pb;

/// What went wrong while making a definition: each of these is a mistake of the caller.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// An exec op with an empty command line.
    #[error("a step has no arguments")]
    NoArguments,
    /// A [slot](Builder::slot) that was never filled is needed.
    #[error("an input was promised and never given")]
    EmptySlot,
    /// Ops that need each other through a slot.
    #[error("an op needs itself")]
    Cycle,
    /// The environments of all steps together are larger than a builder takes.
    #[error("the environments of the steps have more than {MAX_ENVIRONMENTS} bytes together")]
    TooLarge,
    /// A definition that was to be taken in is malformed.
    #[error("an input definition is malformed: {0}")]
    Import(String),
}

/// Most bytes of all steps' environments and arguments. Each step repeats its environment, so that a short Dockerfile
/// could ask for any amount of memory.
pub const MAX_ENVIRONMENTS: usize = 128 << 20;

/// All ops of one definition.
#[derive(Debug, Default)]
pub struct Builder {
    environments: usize,
    nodes: Vec<Node>,
    slots: Vec<Option<Option<Output>>>,
    maps: Vec<pb::SourceInfo>,
}

/// One output of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Output(pub(crate) Place);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    Op { node: u32, index: Index },
    Slot(u32),
}

/// Which output: known, or that of an exec's root, which depends on how its mounts sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Index {
    Fixed(i64),
    Root,
}

/// A source file that locations refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceMap(u32);

/// What an op carries besides its meaning: platform, hints, texts, places. Only the platform is part of its digest.
#[derive(Clone, Debug, Default)]
pub struct Constraints {
    /// Where the op runs; by default where its input does, or the definition's.
    pub platform: Option<Platform>,
    /// Run again even if a result is known.
    pub ignore_cache: bool,
    /// Texts for people and tools.
    pub description: BTreeMap<String, String>,
    /// Shown as one line with others of the group.
    pub progress_group: Option<pb::ProgressGroup>,
    /// Where it was written.
    pub locations: Vec<(SourceMap, Vec<SourceSpan>)>,
    pub(crate) caps: BTreeSet<&'static str>,
}

impl Constraints {
    /// Constraints with a name for people.
    pub fn named(name: impl Into<String>) -> Constraints {
        Constraints::default().name(name)
    }

    /// Sets the name for people.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Constraints {
        self.description.insert("llb.customname".to_owned(), name.into());
        self
    }

    /// Sets the platform.
    #[must_use]
    pub fn platform(mut self, platform: &Platform) -> Constraints {
        self.platform = Some(platform.clone());
        self
    }

    /// Adds the place where the op was written.
    #[must_use]
    pub fn at(mut self, map: Option<SourceMap>, spans: &[SourceSpan]) -> Constraints {
        if let Some(map) = map {
            self.locations.push((map, spans.to_vec()));
        }
        self
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    op: Op,
    constraints: Constraints,
}

#[derive(Debug)]
enum Op {
    Source { identifier: String, attrs: BTreeMap<String, String> },
    Exec(Box<exec::ExecNode>),
    File(file::FileNode),
    Merge(Vec<Output>),
    Raw(Box<import::RawNode>),
}

impl Builder {
    /// An empty builder.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Registers a source file, so that ops can say where they were written.
    pub fn source_map(&mut self, info: pb::SourceInfo) -> SourceMap {
        self.maps.push(info);
        SourceMap(self.maps.len() as u32 - 1)
    }

    /// Promises an output that becomes known later, such as the build context, whose paths are known at the end.
    pub fn slot(&mut self) -> Output {
        self.slots.push(None);
        Output(Place::Slot(self.slots.len() as u32 - 1))
    }

    /// Keeps the promise. No output means an empty file system.
    pub fn fill(&mut self, slot: Output, output: Option<Output>) {
        if let Place::Slot(index) = slot.0 {
            self.slots[index as usize] = Some(output);
        }
    }

    /// Lays states over each other. Empty ones do not count; a single one is returned as it is.
    pub fn merge(&mut self, inputs: &[State], mut constraints: Constraints) -> State {
        let mut present = inputs.iter().filter(|state| state.output().is_some());
        let Some(first) = present.next() else { return State::scratch() };
        let mut outputs: Vec<Output> = first.output().into_iter().collect();
        outputs.extend(present.filter_map(State::output));
        if outputs.len() == 1 {
            return first.clone();
        }
        constraints.caps.insert(caps::MERGE);
        let output = self.push(Op::Merge(outputs), constraints);
        first.with_output(Some(output))
    }

    fn push(&mut self, op: Op, constraints: Constraints) -> Output {
        let node = u32::try_from(self.nodes.len()).expect("an op takes more than a byte of input");
        let index = if matches!(op, Op::Exec(_)) { Index::Root } else { Index::Fixed(0) };
        self.nodes.push(Node { op, constraints });
        Output(Place::Op { node, index })
    }
}

#[cfg(test)]
mod tests;
