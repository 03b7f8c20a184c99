//! Where copies come from: a snapshot on disk, or a directory of the user through the tree of a local source.

use std::collections::VecDeque;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use base::Digest;
use sys::path::{Links, Root, lstat_at};

use crate::checksum::{Recall, Tree, is_gone};
use crate::error::Error;
use crate::lexical;
use crate::pattern::{BadGlob, PatternError, glob_match, split_wildcards};
use crate::stat::{Kind, Stat};
use crate::target::shown;
use crate::walk::{MAX_DEPTH, child_path, list};

/// How many links a look-up follows; upstream's limit.
const MAX_LINKS: usize = 255;

/// A tree to copy from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub(super) root: &'a Root,
    pub(super) view: Option<&'a Tree>,
    pub(super) recall: Option<&'a dyn Recall>,
}

/// An entry of a source directory.
pub(super) struct SourceEntry {
    pub(super) name: Vec<u8>,
    /// None where the file system does not tell before one asks.
    pub(super) kind: Option<Kind>,
    pub(super) known: Option<Known>,
}

/// What the tree of a local source knows of a file.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub(super) stat: Stat,
    pub(super) digest: Option<Digest>,
    pub(super) settled: bool,
    pub(super) no_xattrs: bool,
}

impl<'a> Source<'a> {
    /// A snapshot: all that is there.
    pub fn snapshot(root: &'a Root) -> Source<'a> {
        Source { root, view: None, recall: None }
    }

    /// A local source: what `tree` holds of the directory it was made from. Take the checksum of what is to be copied
    /// before, with the same tree, and no change in between goes unseen.
    pub fn context(root: &'a Root, tree: &'a Tree) -> Source<'a> {
        Source { root, view: Some(tree), recall: None }
    }

    /// Reads records of what the kernel refused when the tree was made.
    pub fn with_recall(self, recall: Option<&'a dyn Recall>) -> Source<'a> {
        Source { recall, ..self }
    }

    pub(super) fn is_view(&self) -> bool {
        self.view.is_some()
    }

    /// A failure to read the source. In the user's directory, what is gone has changed.
    pub(super) fn failed(&self, call: &'static str, path: &[u8], error: io::Error) -> Error {
        if self.is_view() && is_gone(&error) {
            return Error::Changed(shown(path));
        }
        Error::io(call, shown(path), error)
    }

    /// Follows the links of a path; relative to the root. What is missing is taken as named.
    pub(super) fn resolve(&self, path: &[u8], links: Links) -> Result<Vec<u8>, Error> {
        let path = lexical::absolute(path);
        match self.view {
            Some(view) => resolve_in(view, &path, links),
            None => {
                let resolved = self.root.resolve(lexical::to_path(&path), links);
                let resolved = resolved.map_err(|error| Error::lookup(lexical::to_path(&path), error))?;
                Ok(lexical::to_bytes(&resolved).to_vec())
            }
        }
    }

    /// What is at a path without links; none if nothing is.
    pub(super) fn stat(&self, path: &[u8]) -> Result<Option<Stat>, Error> {
        if let Some(view) = self.view {
            if path.is_empty() {
                let raw = self.root.stat("", Links::Refuse).map_err(|source| Error::io("stat", "/", source))?;
                return Ok(Some(Stat { uid: 0, gid: 0, ..raw.into() }));
            }
            return Ok(view.get(path).and_then(|(stat, _)| stat));
        }
        let found = if path.is_empty() {
            self.root.stat("", Links::Refuse)
        } else {
            self.root.parent(lexical::to_path(path), Links::Refuse).and_then(|(dir, name)| lstat_at(dir, name))
        };
        match found {
            Ok(stat) => Ok(Some(stat.into())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(Error::io("stat", shown(path), error)),
        }
    }

    /// What the view knows of a file.
    pub(super) fn known(&self, path: &[u8]) -> Option<Known> {
        let (dir, name) = lexical::split(path);
        let entries = self.view?.list(dir.strip_suffix(b"/").unwrap_or(dir))?;
        let entry = entries.into_iter().find(|entry| entry.name == name)?;
        Some(Known { stat: entry.stat?, digest: entry.digest, settled: entry.settled, no_xattrs: entry.no_xattrs })
    }

    /// The entries of a directory, by name.
    pub(super) fn list(&self, path: &[u8]) -> Result<Vec<SourceEntry>, Error> {
        if let Some(view) = self.view {
            let entries = view.list(path).ok_or_else(|| Error::Changed(shown(path)))?;
            let entry = |listed: crate::checksum::Listed| {
                let known = listed.stat.map(|stat| Known {
                    stat,
                    digest: listed.digest,
                    settled: listed.settled,
                    no_xattrs: listed.no_xattrs,
                });
                SourceEntry { name: listed.name, kind: known.map(|known| known.stat.kind), known }
            };
            return Ok(entries.into_iter().map(entry).collect());
        }
        let dir = self.root.open_dir(lexical::to_path(path), Links::Refuse);
        let dir = dir.map_err(|source| Error::io("open", shown(path), source))?;
        let entries = list(&dir, path)?.into_iter();
        Ok(entries.map(|(name, kind)| SourceEntry { name: name.as_bytes().to_vec(), kind, known: None }).collect())
    }
}

/// The paths that a source path with wildcards means, sorted; relative to the root of the source, with links in the
/// part without wildcards followed. A path without wildcards means itself. A directory that matches is not looked into.
pub fn resolve_wildcards(source: &Source<'_>, path: &[u8], follow_links: bool) -> Result<Vec<Vec<u8>>, Error> {
    let (before, wildcard) = split_wildcards(&lexical::absolute(path));
    if wildcard.is_empty() {
        return Ok(vec![before]);
    }
    let links = if follow_links { Links::Follow } else { Links::FollowParents };
    let base = source.resolve(&before, links)?;
    let stat = source.stat(&base)?.ok_or_else(|| Error::Missing(PathBuf::from(lexical::to_path(&before))))?;
    let mut found = Vec::new();
    let mut todo = Vec::new();
    if stat.kind == Kind::Dir {
        todo.push((Vec::new(), 0));
    }
    let names: Vec<&[u8]> = wildcard.split(|byte| *byte == b'/').collect();
    let failed = |BadGlob| {
        let text = String::from_utf8_lossy(path).into_owned();
        Error::Pattern { list: "source", source: PatternError::Syntax(text) }
    };
    while let Some((dir, depth)) = todo.pop() {
        if depth > MAX_DEPTH {
            return Err(Error::TooDeep(shown(&dir)));
        }
        for entry in source.list(&child_path(&base, &dir))? {
            let below = child_path(&dir, &entry.name);
            if glob_match(&wildcard, &below).map_err(failed)? {
                found.push(below);
            } else if is_dir(source, &base, &below, &entry)? && may_lead(&names, depth, &below) {
                todo.push((below, depth + 1));
            }
        }
    }
    // In the order of a walk: names compare one by one, so a slash is less than any other byte.
    found.sort_by(|one: &Vec<u8>, two| one.split(|byte| *byte == b'/').cmp(two.split(|byte| *byte == b'/')));
    Ok(found.iter().map(|below| lexical::absolute(&child_path(&base, below))).collect())
}

fn is_dir(source: &Source<'_>, base: &[u8], below: &[u8], entry: &SourceEntry) -> Result<bool, Error> {
    match entry.kind {
        Some(kind) => Ok(kind == Kind::Dir),
        None => Ok(source.stat(&child_path(base, below))?.is_some_and(|stat| stat.kind == Kind::Dir)),
    }
}

/// Whether a wildcard can match below a directory at this depth; classes and escapes leave that open.
fn may_lead(names: &[&[u8]], depth: usize, dir: &[u8]) -> bool {
    if names.iter().any(|name| name.iter().any(|byte| matches!(byte, b'[' | b'\\'))) {
        return true;
    }
    depth + 1 < names.len() && glob_match(&names[..=depth].join(&b'/'), dir) != Ok(false)
}

/// [`Root::resolve`] on the tree of a local source: links to what a filter hides lead nowhere.
fn resolve_in(view: &Tree, path: &[u8], links: Links) -> Result<Vec<u8>, Error> {
    let names = |text: &[u8]| -> VecDeque<Vec<u8>> {
        let names = text.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
        names.map(<[u8]>::to_vec).collect()
    };
    let mut todo = names(path);
    let mut at: Vec<Vec<u8>> = Vec::new();
    let mut followed = 0;
    while let Some(name) = todo.pop_front() {
        if name == b".." {
            at.pop();
            continue;
        }
        at.push(name);
        let Some((_, Some(target))) = view.get(&at.join(&b'/')) else { continue };
        if todo.is_empty() && links != Links::Follow {
            continue;
        }
        followed += 1;
        if followed > MAX_LINKS {
            return Err(Error::TooManyLinks(lexical::to_path(path).to_owned()));
        }
        at.pop();
        if target.starts_with(b"/") {
            at.clear();
        }
        let mut expanded = names(&target);
        expanded.append(&mut todo);
        todo = expanded;
    }
    Ok(at.join(&b'/'))
}
