//! Changes in the order in which a layer's tar has them (containerd `pkg/archive`, the change writer).
//!
//! - A directory comes before what is in it, changed or not.
//! - Of several names of one file the first is the file, and the others link to it. An unchanged name waits: if a
//!   changed one follows, it becomes a link to that, else it does not appear.

use std::collections::{HashMap, HashSet};

use super::merged::Merged;
use super::node::Node;
use super::{Change, ChangeKind, Stop};

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Add,
    Modify,
    Delete,
    Unmodified,
}

/// What of a layer is in its tar although the same is below it.
#[derive(Clone, Debug, Default)]
pub(crate) enum Kept {
    /// Nothing: the tar has what the layer changes.
    #[default]
    Nothing,
    /// All that the layer's own directory has.
    All,
    /// The same, and it deletes nothing: what is below it decides nothing.
    Alone,
    /// These paths.
    Paths(HashSet<Vec<u8>>),
}

impl Kept {
    fn has(&self, path: &[u8]) -> bool {
        match self {
            Kept::Nothing => false,
            Kept::All | Kept::Alone => true,
            Kept::Paths(paths) => paths.contains(path),
        }
    }
}

/// Puts changes in order and hands them on.
pub(super) struct Sequence<'a, E> {
    view: &'a Merged,
    visit: &'a mut dyn FnMut(&Change) -> Result<(), E>,
    /// Inode -> the name that has the data.
    sources: HashMap<u64, Vec<u8>>,
    /// Inode -> unchanged names that were seen so far.
    waiting: HashMap<u64, Vec<Vec<u8>>>,
    written: HashSet<Vec<u8>>,
    kept: Kept,
}

impl<'a, E> Sequence<'a, E> {
    pub(super) fn new(
        view: &'a Merged,
        kept: Kept,
        visit: &'a mut dyn FnMut(&Change) -> Result<(), E>,
    ) -> Sequence<'a, E> {
        Sequence { view, visit, sources: HashMap::new(), waiting: HashMap::new(), written: HashSet::new(), kept }
    }

    /// Whether the path is in the tar even if it is what it was.
    pub(super) fn keeps(&self, path: &[u8]) -> bool {
        self.kept.has(path)
    }

    /// Takes the next change of the walk.
    pub(super) fn change(&mut self, kind: Kind, path: Vec<u8>, node: Option<&Node>) -> Result<(), Stop<E>> {
        let kind = if kind == Kind::Unmodified && self.keeps(&path) { Kind::Modify } else { kind };
        match node.filter(|_| kind != Kind::Delete) {
            Some(node) => self.there(kind, path, node, false),
            None => {
                self.parents(&path)?;
                self.hand_on(Change {
                    path,
                    kind: ChangeKind::Delete,
                    implied: false,
                    metadata: None,
                    hardlink: None,
                    layer: None,
                })
            }
        }
    }

    fn there(&mut self, kind: Kind, path: Vec<u8>, node: &Node, implied: bool) -> Result<(), Stop<E>> {
        if kind == Kind::Unmodified && !node.is_linked() {
            return Ok(());
        }
        let mut links = Vec::new();
        let mut hardlink = None;
        if node.is_linked() {
            let inode = node.stat.st_ino;
            match self.sources.get(&inode) {
                Some(source) => hardlink = Some(source.clone()),
                None if kind == Kind::Unmodified => {
                    self.waiting.entry(inode).or_default().push(path);
                    return Ok(());
                }
                None => {
                    self.sources.insert(inode, path.clone());
                    links = self.waiting.remove(&inode).unwrap_or_default();
                }
            }
        }
        let Some(metadata) = node.metadata().map_err(|e| Stop::Walk(path.clone(), e))? else { return Ok(()) };
        let kind = if kind == Kind::Add { ChangeKind::Add } else { ChangeKind::Modify };
        self.parents(&path)?;
        if node.is_dir() {
            self.written.insert(path.clone());
        }
        let layer = Some(node.layer.clone());
        let change = Change { path, kind, implied, metadata: Some(metadata), hardlink, layer };
        self.hand_on_all(change, links)
    }

    fn hand_on_all(&mut self, change: Change, links: Vec<Vec<u8>>) -> Result<(), Stop<E>> {
        self.hand_on(change.clone())?;
        for path in links {
            self.parents(&path)?;
            self.hand_on(Change { path, hardlink: Some(change.path.clone()), ..change.clone() })?;
        }
        Ok(())
    }

    /// Directories on the way to `path` that the layer does not have yet.
    fn parents(&mut self, path: &[u8]) -> Result<(), Stop<E>> {
        let Some(slash) = path.iter().rposition(|b| *b == b'/') else { return Ok(()) };
        let parent = &path[..slash];
        if !self.written.insert(parent.to_vec()) {
            return Ok(());
        }
        let failed = |e| Stop::Walk(parent.to_vec(), e);
        match self.view.look_at(parent).map_err(failed)? {
            Some(node) => self.there(Kind::Modify, parent.to_vec(), &node, true),
            None => Err(failed(std::io::ErrorKind::NotFound.into())),
        }
    }

    fn hand_on(&mut self, change: Change) -> Result<(), Stop<E>> {
        (self.visit)(&change).map_err(Stop::Visitor)
    }
}
