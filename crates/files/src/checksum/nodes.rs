//! The tree in memory: an arena of nodes, directories listed when they are first looked into.

use std::collections::VecDeque;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use base::Digest;
use rustix::io::Errno;
use sys::path::{Links, lstat_at};

use super::hash::{self, Job};
use super::header;
use super::memo::{MemoKey, Remembered};
use super::{Env, Flavor, Listed, Place};
use crate::error::Error;
use crate::lexical;
use crate::stat::{Kind, Stat};
use crate::walk::{Entry, MAX_DEPTH, child_path, list};

/// How many links a look-up follows; upstream's limit.
const MAX_LINKS: usize = 255;

pub(super) type NodeId = u32;
pub(super) const ROOT: NodeId = 0;

/// One file.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: Box<[u8]>,
    pub(super) what: What,
    /// Of a file or link its checksum, of a directory that of its header.
    pub(super) digest: Option<Digest>,
    /// Of local sources: what the walk saw, then what the checksum saw.
    pub(super) stat: Option<Box<Stat>>,
    /// When it was hashed, its last change lay back so far that another one cannot go unseen; see [`super::memo`].
    pub(super) settled: bool,
    /// Hashing found no extended attributes.
    pub(super) no_xattrs: bool,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// Anything but the two below.
    File(Kind),
    /// A symbolic link and its target.
    Link(Box<[u8]>),
    /// A directory.
    Dir {
        /// By name; none if it has not been listed.
        children: Option<Vec<NodeId>>,
        /// The checksum of all that is in it.
        contents: Option<Digest>,
    },
}

/// The arena; node 0 is the root directory.
#[derive(Debug)]
pub(super) struct Nodes(pub(super) Vec<Node>);

/// Makes nodes of the entries of a walk as they come, so that the list of them need not be held beside the nodes.
pub(super) struct Listing {
    nodes: Vec<Node>,
    /// From the root down to where the last entry went.
    open: Vec<(Vec<u8>, NodeId)>,
}

impl Node {
    pub(super) fn new(name: &[u8], what: What) -> Node {
        Node { name: name.into(), what, digest: None, stat: None, settled: false, no_xattrs: false }
    }

    pub(super) fn unlisted_dir(name: &[u8]) -> Node {
        Node::new(name, What::Dir { children: None, contents: None })
    }

    pub(super) fn is_dir(&self) -> bool {
        matches!(self.what, What::Dir { .. })
    }
}

impl Listing {
    /// The root of a local source has a header of no bytes.
    pub(super) fn new() -> Listing {
        let mut root = Node::new(b"", Listing::empty_dir());
        root.digest = Some(Digest::of(b""));
        Listing { nodes: vec![root], open: vec![(Vec::new(), ROOT)] }
    }

    fn empty_dir() -> What {
        What::Dir { children: Some(Vec::new()), contents: None }
    }

    /// The next entry, in walk order.
    pub(super) fn push(&mut self, entry: Entry) {
        let path = lexical::to_bytes(&entry.path);
        let (parent, name) = lexical::split(path);
        let parent = parent.strip_suffix(b"/").unwrap_or(parent);
        while self.open.len() > 1 && self.open.last().is_some_and(|(dir, _)| dir != parent) {
            self.open.pop();
        }
        let what = match entry.stat.kind {
            Kind::Dir => Listing::empty_dir(),
            Kind::Symlink => What::Link(entry.link.unwrap_or_default().as_bytes().into()),
            kind => What::File(kind),
        };
        let id = self.nodes.len() as NodeId;
        let is_dir = entry.stat.kind == Kind::Dir;
        let stat = Some(Box::new(entry.stat));
        self.nodes.push(Node { stat, ..Node::new(name, what) });
        let above = self.open.last().map_or(ROOT, |(_, id)| *id);
        if let What::Dir { children: Some(children), .. } = &mut self.nodes[above as usize].what {
            children.push(id);
        }
        if is_dir {
            self.open.push((path.to_vec(), id));
        }
    }

    /// The tree, now that all is listed. If nothing was sent at all, it is hashed as an empty snapshot.
    pub(super) fn finish(mut self) -> Nodes {
        if self.nodes.len() == 1 {
            self.nodes[0].digest = Some(header::of_empty_root());
        }
        Nodes(self.nodes)
    }
}

impl Nodes {
    /// A root of which nothing is known.
    pub(super) fn unknown() -> Nodes {
        Nodes(vec![Node::unlisted_dir(b"")])
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.0[id as usize]
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.0[id as usize]
    }

    /// The entries of a directory that has been listed.
    pub(super) fn children(&self, id: NodeId) -> &[NodeId] {
        match &self.node(id).what {
            What::Dir { children: Some(children), .. } => children,
            _ => &[],
        }
    }

    pub(super) fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        let children = self.children(dir);
        children.binary_search_by(|id| (*self.node(*id).name).cmp(name)).ok().map(|at| children[at])
    }

    fn find_known(&self, path: &[u8]) -> Option<NodeId> {
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(ROOT, |dir, name| self.child(dir, name))
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<(Option<Stat>, Option<Vec<u8>>)> {
        let node = self.node(self.find_known(path)?);
        let link = match &node.what {
            What::Link(target) => Some(target.to_vec()),
            _ => None,
        };
        Some((node.stat.as_deref().copied(), link))
    }

    #[cfg(test)]
    pub(super) fn set_stat(&mut self, path: &[u8], stat: Stat) {
        if let Some(id) = self.find_known(path) {
            let node = self.node_mut(id);
            // It was as fresh as that, however long the test takes.
            (node.stat, node.settled) = (Some(Box::new(stat)), false);
        }
    }

    pub(super) fn list(&self, path: &[u8]) -> Option<Vec<Listed>> {
        let dir = self.find_known(path)?;
        if !self.node(dir).is_dir() {
            return None;
        }
        let listed = |id: &NodeId| {
            let node = self.node(*id);
            let stat = node.stat.as_deref().copied();
            Listed {
                name: node.name.to_vec(),
                stat,
                digest: node.digest,
                settled: node.settled,
                no_xattrs: node.no_xattrs,
            }
        };
        Some(self.children(dir).iter().map(listed).collect())
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        let mut todo = vec![(ROOT, Vec::new())];
        while let Some((id, path)) = todo.pop() {
            for child in self.children(id).iter().rev() {
                todo.push((*child, child_path(&path, &self.node(*child).name)));
            }
            if id != ROOT {
                paths.push(lexical::to_path(&path).to_owned());
            }
        }
        paths
    }
}

/// A question in progress: the nodes, and what it takes to learn more of them.
pub(super) struct Work<'a> {
    pub(super) nodes: &'a mut Nodes,
    pub(super) flavor: Flavor,
    pub(super) place: &'a Place<'a>,
    pub(super) env: &'a Env<'a>,
}

impl Work<'_> {
    /// The checksum of one path, which must be there.
    pub(super) fn checksum_of_path(&mut self, path: &[u8], follow: bool) -> Result<Digest, Error> {
        let path = lexical::absolute(path);
        let Some((id, real)) = self.find(&path, follow)? else {
            return Err(Error::NotFound(lexical::to_path(&path).to_owned()));
        };
        if let Some(digest) = self.known_digest(id) {
            return Ok(digest);
        }
        let mut jobs = Vec::new();
        self.collect_jobs(id, &real, true, &mut jobs)?;
        self.hash(jobs)?;
        self.digest_of(id)
    }

    /// Finds a node, following links as upstream does: a missing name may be left again by `..`.
    ///
    /// Answers with the path without links, relative to the root.
    pub(super) fn find(&mut self, path: &[u8], follow: bool) -> Result<Option<(NodeId, Vec<u8>)>, Error> {
        let too_many = || Error::TooManyLinks(lexical::to_path(path).to_owned());
        let names = |text: &[u8]| -> VecDeque<Vec<u8>> {
            let names = text.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
            names.map(<[u8]>::to_vec).collect()
        };
        let mut todo = names(path);
        let mut at: Vec<(Vec<u8>, Option<NodeId>)> = Vec::new();
        let mut followed = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                at.pop();
                continue;
            }
            let here = at.last().map_or(Some(ROOT), |(_, id)| *id);
            let next = match here {
                Some(dir) if self.nodes.node(dir).is_dir() => {
                    self.load(dir, &at.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>().join(&b'/'))?;
                    self.nodes.child(dir, &name)
                }
                _ => None,
            };
            let target = match next.map(|id| &self.nodes.node(id).what) {
                Some(What::Link(target)) if follow || !todo.is_empty() => target.to_vec(),
                _ => {
                    at.push((name, next));
                    continue;
                }
            };
            followed += 1;
            if followed > MAX_LINKS {
                return Err(too_many());
            }
            if target.starts_with(b"/") {
                at.clear();
            }
            let mut expanded = names(&target);
            expanded.append(&mut todo);
            todo = expanded;
        }
        let found = at.last().map_or(Some(ROOT), |(_, id)| *id);
        let real = at.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(&b'/');
        Ok(found.map(|id| (id, real)))
    }

    /// Lists a directory that has not been listed yet.
    pub(super) fn load(&mut self, id: NodeId, path: &[u8]) -> Result<(), Error> {
        if !matches!(self.nodes.node(id).what, What::Dir { children: None, .. }) {
            return Ok(());
        }
        let shown = || lexical::to_path(path).to_owned();
        let root = self.place.root().map_err(|source| Error::io("mount", shown(), source))?;
        let dir = root
            .open_dir(lexical::to_path(path), Links::Refuse)
            .map_err(|source| Error::io("open", shown(), source))?;
        let mut ids = Vec::new();
        for (name, kind) in list(&dir, path)? {
            let failed = |call, error: std::io::Error| {
                Error::io(call, lexical::to_path(&child_path(path, name.as_bytes())), error)
            };
            let kind = match kind {
                Some(kind) => kind,
                None => Stat::from(lstat_at(&dir, &name).map_err(|error| failed("stat", error))?).kind,
            };
            let mut node = Node::unlisted_dir(name.as_bytes());
            match kind {
                Kind::Dir => {}
                Kind::Symlink => {
                    let target = rustix::fs::readlinkat(&dir, &name, Vec::new());
                    let target = target.map_err(|errno| failed("read link", errno.into()))?;
                    node.what = What::Link(target.into_bytes().into());
                }
                kind => node.what = What::File(kind),
            }
            ids.push(self.nodes.0.len() as NodeId);
            self.nodes.0.push(node);
        }
        if let What::Dir { children, .. } = &mut self.nodes.node_mut(id).what {
            *children = Some(ids);
        }
        Ok(())
    }

    /// The checksum of a file or link, or of all of a directory, if it is known.
    fn known_digest(&self, id: NodeId) -> Option<Digest> {
        let node = self.nodes.node(id);
        match &node.what {
            What::Dir { contents, .. } => *contents,
            _ => node.digest,
        }
    }

    /// Lists what must be hashed for the checksum of a node; `whole`: of a directory all, not only its header.
    pub(super) fn collect_jobs(
        &mut self,
        id: NodeId,
        path: &[u8],
        whole: bool,
        jobs: &mut Vec<Job>,
    ) -> Result<(), Error> {
        self.take_from_memo(id);
        let mut todo = vec![(id, path.to_vec(), 0)];
        while let Some((id, path, depth)) = todo.pop() {
            let node = self.nodes.node(id);
            if node.digest.is_none() {
                jobs.push(Job::new(id, &path, node));
            }
            let What::Dir { contents: None, .. } = node.what else { continue };
            if !whole {
                continue;
            }
            if depth > MAX_DEPTH {
                return Err(Error::TooDeep(lexical::to_path(&path).to_owned()));
            }
            self.load(id, &path)?;
            for at in (0..self.nodes.children(id).len()).rev() {
                let child = self.nodes.children(id)[at];
                self.take_from_memo(child);
                // Most files of most builds are known now, and no path need be made for them.
                if self.known_digest(child).is_none() {
                    todo.push((child, child_path(&path, &self.nodes.node(child).name), depth + 1));
                }
            }
        }
        Ok(())
    }

    /// Takes the checksum of a file that has not changed since an earlier build.
    fn take_from_memo(&mut self, id: NodeId) {
        // Memos hold what trees of local sources hold; a snapshot keeps its own tree.
        let Some(memo) = self.env.memo.filter(|_| self.flavor == Flavor::Context) else { return };
        let node = self.nodes.node_mut(id);
        if node.digest.is_none()
            && let (What::File(Kind::File), Some(stat)) = (&node.what, &node.stat)
            && let Some(Remembered { digest, no_xattrs }) = memo.get(&MemoKey::of(stat))
        {
            (node.digest, node.settled, node.no_xattrs) = (Some(digest), true, no_xattrs);
        }
    }

    /// Hashes files and headers, on all cores.
    pub(super) fn hash(&mut self, jobs: Vec<Job>) -> Result<(), Error> {
        if jobs.is_empty() {
            return Ok(());
        }
        let root = self.place.root().map_err(|source| Error::io("mount", "/", source))?;
        let reader = hash::Reader { root, recall: self.place.recall(), flavor: self.flavor, env: self.env };
        for done in hash::run(&reader, jobs)? {
            let node = self.nodes.node_mut(done.id);
            node.digest = Some(done.digest);
            node.settled = done.settled;
            node.no_xattrs = done.no_xattrs;
            if self.flavor == Flavor::Context {
                node.stat = Some(Box::new(done.stat));
            }
        }
        Ok(())
    }

    /// The checksum of a node whose parts are all hashed.
    pub(super) fn digest_of(&mut self, id: NodeId) -> Result<Digest, Error> {
        // Post-order: a directory is looked at again once its entries are done.
        let mut todo = vec![(id, false)];
        while let Some((id, entries_done)) = todo.pop() {
            if self.known_digest(id).is_some() {
                continue;
            }
            if !entries_done {
                todo.push((id, true));
                todo.extend(self.nodes.children(id).iter().map(|child| (*child, false)));
                continue;
            }
            let mut hasher = Digest::hasher();
            hasher.update([0]);
            hasher.update(text_of(self.nodes.node(id).digest, "header")?);
            for child in self.nodes.children(id) {
                let mut key = vec![0];
                key.extend_from_slice(&self.nodes.node(*child).name);
                self.add_entry(&mut hasher, *child, key)?;
            }
            let contents = hasher.finish();
            if let What::Dir { contents: slot, .. } = &mut self.nodes.node_mut(id).what {
                *slot = Some(contents);
            }
        }
        self.known_digest(id).ok_or_else(|| unhashed("content"))
    }

    /// An entry of a directory listing. Names that begin with 0xff lie behind the point to which upstream skips after
    /// a directory, so those count once more for each directory above.
    fn add_entry(&self, hasher: &mut base::Hasher, id: NodeId, key: Vec<u8>) -> Result<(), Error> {
        let mut todo = vec![(id, key)];
        while let Some((id, key)) = todo.pop() {
            hasher.update(&key);
            hasher.update(text_of(self.known_digest(id), "entry")?);
            for child in self.nodes.children(id).iter().rev() {
                let name = &self.nodes.node(*child).name;
                if !name.starts_with(b"\xff") {
                    break;
                }
                let mut below = key.clone();
                below.push(0);
                below.extend_from_slice(name);
                todo.push((*child, below));
            }
        }
        Ok(())
    }
}

fn text_of(digest: Option<Digest>, what: &'static str) -> Result<[u8; 71], Error> {
    digest.map(|digest| digest.to_text()).ok_or_else(|| unhashed(what))
}

/// Cannot happen: everything was hashed before it is combined.
fn unhashed(what: &'static str) -> Error {
    Error::io("combine", what, Errno::INVAL)
}
