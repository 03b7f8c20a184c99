//! File system views: what a snapshot looks like before somebody mounts it.

use std::path::PathBuf;

/// How to see a snapshot as one tree.
///
/// A plain directory needs no mount at all; an overlay is mounted by whoever uses it, in a private mount
/// namespace, so that the mount dies with its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FsView {
    /// The tree is this directory.
    Dir {
        /// An absolute path.
        path: PathBuf,
        /// Nobody may write through this view.
        read_only: bool,
    },
    /// The tree is an overlay mount.
    Overlay(Overlay),
}

/// The parts of an overlay mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Lower directories, topmost first; never empty.
    pub lower: Vec<PathBuf>,
    /// Upper and work directory; none for a read-only view.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Mounted inside a user namespace: overlay keeps its marks in `user.overlay.*`.
    pub userxattr: bool,
    /// Skip syncs on the upper directory: its snapshot is thrown away after a crash anyway.
    pub volatile: bool,
}
