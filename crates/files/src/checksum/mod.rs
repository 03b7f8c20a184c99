//! Content checksums of trees: BuildKit's, byte for byte, since cache keys are made of them and caches are exchanged.
//!
//! ```text
//! file     sha256(header + content)                       header: see `header`
//! link     sha256(header)                                 never followed inside of a directory
//! dir      sha256(for each entry, the directory itself first as "": 0x00 name "sha256:<hex of the entry>")
//! several  sha256(for each file and directory header: path with 0x00 for "/", "sha256:<hex>")
//! ```
//!
//! Names are in byte order with `/` below all other bytes. Where upstream loads a whole subtree before it answers, a
//! [`Tree`] lists a directory when an answer needs it; the answers are those of the whole tree.
//!
//! A [`Tree`] remembers what it learned. It can be kept beside a snapshot ([`Tree::to_bytes`]), whose content never
//! changes; then most questions are answered without the snapshot being mounted. For a directory of the user, which
//! changes all the time, the tree lives for one build, and digests are kept per inode instead: see [`memo`].

mod hash;
mod header;
mod key;
pub mod memo;
mod nodes;
mod place;
mod select;
mod stored;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use base::{Cancel, Digest};
use sys::path::Root;

pub(crate) use hash::is_gone;
pub use header::{FileHeader, Xattrs};
pub use key::{
    Selector, content_key, dedupe_file_selectors, exec_selector_digest, exec_selectors, file_selector_digest,
};
pub use place::{Place, Recall};

use crate::error::Error;
use crate::lexical;
use crate::stat::Stat;
use crate::walk::{Entry, Filter, reset_owner, walk_each};
use memo::Memo;
use nodes::{Listing, Nodes};

/// Whose rules a tree follows: the two differ in the root and in devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// A snapshot: the root counts with its own mode and owner, and devices have no numbers.
    Snapshot,
    /// A local source: only what was sent counts, so the root is bare, and devices have their numbers.
    Context,
}

/// What to take the checksum of, beside the path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Follow the link that the path (or a wildcard match) is.
    pub follow_links: bool,
    /// The path may hold wildcards.
    pub wildcard: bool,
    /// Only what matches one of these, relative to the path or the wildcard match.
    pub include: Vec<String>,
    /// Nothing that matches these.
    pub exclude: Vec<String>,
    /// Fail unless something was taken below each of these.
    pub required: Vec<String>,
}

/// How to compute: shared by the calls of one build.
#[derive(Clone, Copy, Default)]
pub struct Env<'a> {
    /// Digests of files by inode, for trees that change under their owner's hands.
    pub memo: Option<&'a dyn Memo>,
    /// Looked at between files.
    pub cancel: Option<&'a Cancel>,
    /// How many threads hash; as many as there are cores if none.
    pub threads: Option<usize>,
}

/// The checksums of one tree.
#[derive(Debug)]
pub struct Tree {
    flavor: Flavor,
    nodes: Mutex<Nodes>,
}

/// An entry of a tree, as [`Tree::list`] tells it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) name: Vec<u8>,
    /// What the walk or the checksum saw.
    pub(crate) stat: Option<Stat>,
    /// The checksum, if it was asked for.
    pub(crate) digest: Option<Digest>,
    /// Whether unchanged times mean an unchanged file since then.
    pub(crate) settled: bool,
    /// The file has no extended attributes as long as its times are the same.
    pub(crate) no_xattrs: bool,
}

impl Tree {
    /// The tree of a snapshot, of which nothing is known yet.
    pub fn of_snapshot() -> Tree {
        Tree { flavor: Flavor::Snapshot, nodes: Mutex::new(Nodes::unknown()) }
    }

    /// The tree of a local source: what a filter lets through of a directory. Owners are taken as root.
    pub fn of_context(root: &Root, filter: &Filter, cancel: &Cancel) -> Result<Tree, Error> {
        let mut listing = Listing::new();
        walk_each(root, filter, &mut reset_owner, cancel, &mut |entry| {
            listing.push(entry);
            Ok(())
        })?;
        Ok(Tree { flavor: Flavor::Context, nodes: Mutex::new(listing.finish()) })
    }

    /// The tree of a local source whose files are listed already, in walk order.
    pub fn of_entries(entries: impl IntoIterator<Item = Entry>) -> Tree {
        let mut listing = Listing::new();
        entries.into_iter().for_each(|entry| listing.push(entry));
        Tree { flavor: Flavor::Context, nodes: Mutex::new(listing.finish()) }
    }

    /// Whose rules it follows.
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// The checksum of a path, or of all that a wildcard, include and exclude patterns select there.
    ///
    /// Fails with [`Error::NotFound`] for a path that is not there, but if patterns or wildcards are given, a selection
    /// of nothing has a checksum too.
    pub fn checksum(
        &self,
        place: &Place<'_>,
        path: impl AsRef<Path>,
        options: &Options,
        env: &Env<'_>,
    ) -> Result<Digest, Error> {
        let path = lexical::to_bytes(path.as_ref());
        let mut nodes = self.lock();
        let mut work = nodes::Work { nodes: &mut nodes, flavor: self.flavor, place, env };
        if !options.wildcard && options.include.is_empty() && options.exclude.is_empty() {
            return work.checksum_of_path(path, options.follow_links);
        }
        select::checksum(&mut work, path, options)
    }

    /// Everything learned so far, for [`Tree::from_bytes`]; only snapshots are worth keeping.
    pub fn to_bytes(&self) -> Vec<u8> {
        stored::to_bytes(self.flavor, &self.lock())
    }

    /// A tree as [`to_bytes`](Self::to_bytes) wrote it. An error is a reason to begin with an unknown tree.
    pub fn from_bytes(bytes: &[u8]) -> Result<Tree, Error> {
        let (flavor, nodes) = stored::from_bytes(bytes).ok_or(Error::Stored)?;
        Ok(Tree { flavor, nodes: Mutex::new(nodes) })
    }

    /// The files and directories, for what needs to see them: paths relative to the root, in walk order.
    ///
    /// Only what is known: all of a local source, of a snapshot what checksums have looked at.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.lock().paths()
    }

    /// What is in a directory; none if there is no such directory in the tree. Links are not followed.
    pub(crate) fn list(&self, path: &[u8]) -> Option<Vec<Listed>> {
        self.lock().list(path)
    }

    /// What the walk or the checksum saw at a path, and where it points; none if the tree does not hold it.
    pub(crate) fn get(&self, path: &[u8]) -> Option<(Option<Stat>, Option<Vec<u8>>)> {
        self.lock().get(path)
    }

    /// Takes the files of `root` for those that were hashed.
    #[cfg(test)]
    pub(crate) fn pretend_seen(&self, root: &Root) {
        for path in self.paths() {
            let stat = root.stat(&path, sys::path::Links::FollowParents).expect("a file to stand in");
            let stat = Stat { uid: 0, gid: 0, ..stat.into() };
            self.lock().set_stat(lexical::to_bytes(&path), stat);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Nodes> {
        // A panic between two assignments leaves at worst a digest unset.
        self.nodes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests;
