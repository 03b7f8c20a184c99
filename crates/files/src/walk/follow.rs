//! Follow-paths: which files a list of paths needs, when links on the way are followed.
//!
//! The answer is a list of include patterns. A wildcard name in a path stays a pattern; the links that it matches are
//! followed too. One difference from upstream: a link that two paths go through is followed for both.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::unix::ffi::OsStrExt;

use sys::path::{Links, Root};

use super::{Filter, list};
use crate::error::Error;
use crate::lexical;
use crate::pattern::{glob_match, has_wildcards};
use crate::stat::{Kind, Stat};

/// The include list of a filter with its follow-paths resolved; empty if everything is included.
pub(super) fn with_follow_paths(root: &Root, filter: &Filter) -> Result<Vec<Vec<u8>>, Error> {
    let include = || filter.include.iter().map(|pattern| pattern.clone().into_bytes());
    if filter.follow.is_empty() {
        return Ok(include().collect());
    }
    let Some(targets) = follow_links(root, &filter.follow)? else { return Ok(include().collect()) };
    Ok(dedupe(include().chain(targets)).unwrap_or_default())
}

/// The paths themselves and what their links lead to; none if that is the whole root.
fn follow_links(root: &Root, paths: &[String]) -> Result<Option<Vec<Vec<u8>>>, Error> {
    let mut follow = Follow { root, needed: BTreeSet::new(), seen: HashSet::new() };
    for path in paths {
        follow.add(path.as_bytes().to_vec())?;
    }
    Ok(dedupe(follow.needed.into_iter()))
}

struct Follow<'a> {
    root: &'a Root,
    needed: BTreeSet<Vec<u8>>,
    /// Links met on the way of the current path; none is followed twice, for links may form loops.
    seen: HashSet<Vec<u8>>,
}

impl Follow<'_> {
    fn add(&mut self, path: Vec<u8>) -> Result<(), Error> {
        self.seen.clear();
        let mut todo = vec![path];
        while let Some(path) = todo.pop() {
            let path = lexical::relative(&path);
            let mut current = Vec::new();
            let mut names = path.split(|byte| *byte == b'/');
            loop {
                let Some(name) = names.next() else {
                    self.needed.insert(if current.is_empty() { b".".to_vec() } else { current });
                    break;
                };
                current = lexical::join(&current, name);
                let targets = self.targets(&current, true)?;
                if targets.is_empty() {
                    continue;
                }
                let rest = names.collect::<Vec<_>>().join(&b'/');
                self.needed.insert(current.clone());
                if self.seen.insert(current) {
                    todo.extend(targets.iter().rev().map(|target| lexical::join(target, &rest)));
                }
                break;
            }
        }
        Ok(())
    }

    /// Where a link, or the links that a wildcard name matches, lead to.
    fn targets(&self, path: &[u8], wildcards: bool) -> Result<Vec<Vec<u8>>, Error> {
        let name = lexical::base(path);
        let dir = lexical::relative(&lexical::dir(path));
        if wildcards && has_wildcards(name) {
            let Some(names) = self.names(&dir)? else { return Ok(Vec::new()) };
            let mut found = Vec::new();
            for entry in names {
                if glob_match(name, &entry) == Ok(true) {
                    found.extend(self.targets(&lexical::join(&dir, &entry), false)?);
                }
            }
            return Ok(found);
        }
        let lookup = self.root.stat(lexical::to_path(path), Links::FollowParents);
        let Some(stat) = existing(lookup, path)? else { return Ok(Vec::new()) };
        if Stat::from(stat).kind != Kind::Symlink {
            return Ok(Vec::new());
        }
        let Some(target) = existing(self.root.read_link(lexical::to_path(path)), path)? else { return Ok(Vec::new()) };
        let target = target.as_bytes();
        let target = if target.starts_with(b"/") { lexical::clean(target) } else { lexical::join(&dir, target) };
        Ok(vec![lexical::absolute(&target)])
    }

    fn names(&self, dir: &[u8]) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let Some(fd) = existing(self.root.open_dir(lexical::to_path(dir), Links::Follow), dir)? else {
            return Ok(None);
        };
        Ok(Some(list(&fd, dir)?.into_iter().map(|(name, _)| name.as_bytes().to_vec()).collect()))
    }
}

fn existing<T>(answer: io::Result<T>, path: &[u8]) -> Result<Option<T>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::lookup(lexical::to_path(path), error)),
    }
}

/// Drops what lies below the path before it; none if the root is among them. Sorted input gives the shortest list.
fn dedupe(paths: impl Iterator<Item = Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for path in paths {
        if path == b"." {
            return None;
        }
        let last = kept.last().map_or(&[][..], Vec::as_slice);
        if !path.strip_prefix(last).is_some_and(|rest| rest.starts_with(b"/")) {
            kept.push(path);
        }
    }
    Some(kept)
}
