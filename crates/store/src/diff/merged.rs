//! Stacked directories read as one tree, the way overlayfs shows them (kernel: Documentation/filesystems/overlayfs.rst).
//!
//! An upper name hides the same name below; a character device 0/0 hides it and is not there itself; directories of one
//! name are merged down to the first that is opaque or no directory.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use sys::path::Root;
use sys::{shadow, xattr};

use super::node::{self, Node};

/// One directory of a tree: the directories that it is made of, topmost first.
#[derive(Clone)]
pub(crate) struct Merged {
    layers: Vec<Layer>,
    shadow: Option<Arc<shadow::Table>>,
    /// Its path in the tree, with a slash at the end unless it is the root.
    path: Vec<u8>,
}

#[derive(Clone)]
struct Layer {
    root: Arc<Root>,
    dir: Rc<OwnedFd>,
}

impl Merged {
    /// An empty tree.
    pub(crate) fn nothing() -> Merged {
        Merged { layers: Vec::new(), shadow: None, path: Vec::new() }
    }

    /// The tree made of these directories, topmost first.
    pub(super) fn open(dirs: &[PathBuf], shadow: Option<Arc<shadow::Table>>) -> io::Result<Merged> {
        let mut layers = Vec::with_capacity(dirs.len());
        for dir in dirs {
            let root = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let again = rustix::io::fcntl_dupfd_cloexec(&root, 3)?;
            layers.push(Layer { dir: Rc::new(root), root: Arc::new(Root::from_fd(again, dir)) });
        }
        Ok(Merged { layers, shadow, path: Vec::new() })
    }

    /// Where `path` is found in the tree made of `dirs`, if it is there.
    pub(crate) fn find(dirs: &[PathBuf], path: &[u8]) -> io::Result<Option<PathBuf>> {
        use std::os::unix::ffi::OsStrExt;
        let mut candidates: Vec<PathBuf> = dirs.to_vec();
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            // What is no directory has nothing beneath it; what a link leads to is not asked.
            candidates.retain(|dir| !dir.is_symlink());
            let mut next = Vec::new();
            for dir in &candidates {
                let child = dir.join(std::ffi::OsStr::from_bytes(part));
                let stat = match rustix::fs::lstat(&child) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT | Errno::NOTDIR) => continue,
                    Err(e) => return Err(e.into()),
                };
                let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if node::is_whiteout(&stat) || !is_dir && !next.is_empty() {
                    break;
                }
                let ends = !is_dir || is_opaque(&child)?;
                next.push(child);
                if ends {
                    break;
                }
            }
            candidates = next;
        }
        Ok(candidates.into_iter().next())
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.layers.is_empty()
    }

    /// The path of child `name` in the tree.
    pub(super) fn path_of(&self, name: &CStr) -> Vec<u8> {
        [&self.path, name.to_bytes()].concat()
    }

    /// Looks at `name` as it shows in the tree.
    pub(super) fn look(&self, name: &CStr) -> io::Result<Option<Node>> {
        let found = self.look_raw(name)?;
        Ok(found.filter(|node| !node.is_whiteout()))
    }

    /// Looks at the topmost `name`, which may be a whiteout.
    pub(super) fn look_raw(&self, name: &CStr) -> io::Result<Option<Node>> {
        let path = if self.shadow.is_some() { self.path_of(name) } else { Vec::new() };
        for layer in &self.layers {
            if let Some(node) = Node::look(&layer.dir, &layer.root, name, &path, self.shadow.as_deref())? {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    /// The directory `name`; nothing if it is not there or no directory.
    pub(super) fn descend(&self, name: &CStr) -> io::Result<Merged> {
        let mut layers = Vec::new();
        for layer in &self.layers {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = match rustix::fs::openat(&*layer.dir, name, flags, Mode::empty()) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => continue,
                // A whiteout, a link, a file: what lies deeper is hidden.
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            };
            let last = self.layers.len() > 1 && is_opaque_fd(&dir)?;
            layers.push(Layer { root: Arc::clone(&layer.root), dir: Rc::new(dir) });
            if last {
                break;
            }
        }
        let mut path = self.path_of(name);
        path.push(b'/');
        Ok(Merged { layers, shadow: self.shadow.clone(), path })
    }

    /// Whether the topmost directory hides what is below it.
    pub(super) fn is_opaque(&self) -> io::Result<bool> {
        self.layers.first().map_or(Ok(false), |layer| is_opaque_fd(&*layer.dir))
    }

    /// Only the topmost directory.
    pub(super) fn topmost(&self) -> Merged {
        Merged {
            layers: self.layers.first().cloned().into_iter().collect(),
            shadow: self.shadow.clone(),
            path: self.path.clone(),
        }
    }

    /// All names that show, in the order of their bytes.
    pub(super) fn names(&self) -> io::Result<Vec<CString>> {
        let mut names: BTreeMap<CString, bool> = BTreeMap::new();
        for layer in &self.layers {
            for entry in Dir::read_from(&*layer.dir)? {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." || names.contains_key(name) {
                    continue;
                }
                let shows = match entry.file_type() {
                    FileType::CharacterDevice | FileType::Unknown => {
                        !node::is_whiteout(&rustix::fs::statat(&*layer.dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
                    }
                    _ => true,
                };
                names.insert(name.to_owned(), shows);
            }
        }
        Ok(names.into_iter().filter(|(_, shows)| *shows).map(|(name, _)| name).collect())
    }

    /// All names of the topmost directory, whiteouts included, in the order of their bytes.
    pub(super) fn raw_names(&self) -> io::Result<Vec<CString>> {
        let Some(layer) = self.layers.first() else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for entry in Dir::read_from(&*layer.dir)? {
            let entry = entry?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Looks at a path from here.
    pub(super) fn look_at(&self, path: &[u8]) -> io::Result<Option<Node>> {
        let mut at = self.clone();
        let mut parts = path.split(|b| *b == b'/').peekable();
        while let Some(part) = parts.next() {
            let name = CString::new(part)?;
            if parts.peek().is_none() {
                return at.look(&name);
            }
            at = at.descend(&name)?;
        }
        Ok(None)
    }
}

const OPAQUE: [&CStr; 2] = [c"trusted.overlay.opaque", c"user.overlay.opaque"];

fn is_opaque_fd(dir: impl std::os::fd::AsFd) -> io::Result<bool> {
    for key in OPAQUE {
        if xattr::get_fd(&dir, key)?.is_some_and(|value| value == b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_opaque(dir: &Path) -> io::Result<bool> {
    for key in OPAQUE {
        if xattr::get(dir, key)?.is_some_and(|value| value == b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}
