//! Content keys of inputs: which paths an op reads, and one digest over all of them.
//!
//! A content key is the digest of the selectors' checksums as text, with zero bytes between; the *selector digest* is
//! one of the paths alone, and goes into the op's own cache key. The order of paths in these is history, not thought.

use std::collections::BTreeSet;
use std::path::PathBuf;

use base::Digest;

use super::{Env, Options, Place, Tree};
use crate::error::Error;
use crate::lexical;
use crate::pattern::has_wildcards;

/// What an op reads of an input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// The path as the op states it.
    pub path: String,
    /// The path may hold wildcards.
    pub wildcard: bool,
    /// The link that the path is, is followed.
    pub follow_links: bool,
    /// Only what matches.
    pub include: Vec<String>,
    /// Nothing that matches.
    pub exclude: Vec<String>,
    /// What must be among it.
    pub required: Vec<String>,
}

impl Selector {
    /// What a copy reads. A path without wildcards in it is not a wildcard, whatever the op allows.
    pub fn of_copy(path: &str, allow_wildcard: bool, follow_links: bool) -> Selector {
        let wildcard = allow_wildcard && has_wildcards(path.as_bytes());
        Selector { path: path.to_owned(), wildcard, follow_links, ..Selector::default() }
    }

    /// What the look-up of a user (`/etc/passwd`) or group (`/etc/group`) reads.
    pub fn of_owner_file(path: &str) -> Selector {
        Selector { path: path.to_owned(), follow_links: true, ..Selector::default() }
    }

    fn is_plain(&self) -> bool {
        !self.wildcard && self.include.is_empty() && self.exclude.is_empty()
    }

    fn options(&self) -> Options {
        Options {
            follow_links: self.follow_links,
            wildcard: self.wildcard,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            required: self.required.clone(),
        }
    }
}

/// The content key of an input: of all of it if there are no selectors.
///
/// `input` is none for an empty input (scratch), which has a root and nothing else.
pub fn content_key(selectors: &[Selector], input: Option<(&Tree, &Place<'_>)>, env: &Env<'_>) -> Result<Digest, Error> {
    let everything = [Selector::default()];
    let selectors = if selectors.is_empty() { &everything } else { selectors };
    let mut texts = Vec::with_capacity(selectors.len());
    for selector in selectors {
        let path = lexical::absolute(selector.path.as_bytes());
        let digest = match input {
            Some((tree, place)) => tree.checksum(place, lexical::to_path(&path), &selector.options(), env)?,
            None if path == b"/" => Digest::of(b""),
            None => return Err(Error::NotFound(PathBuf::from(lexical::to_path(&path)))),
        };
        texts.push(digest.to_string());
    }
    Ok(Digest::of(texts.join("\0")))
}

/// The selectors of a file op's input, in the order in which its content key takes them, without those that others
/// cover. Apply [`file_selector_digest`] to the list before this.
pub fn dedupe_file_selectors(selectors: &[Selector]) -> Vec<Selector> {
    let paths = |follow: bool| {
        let plain = selectors.iter().filter(|selector| selector.is_plain() && selector.follow_links == follow);
        dedupe_paths(plain.map(|selector| selector.path.clone()).collect())
    };
    let plain = |path, follow_links| Selector { path, follow_links, ..Selector::default() };
    let mut kept: Vec<Selector> = paths(false).into_iter().map(|path| plain(path, false)).collect();
    kept.extend(paths(true).into_iter().map(|path| plain(path, true)));
    kept.extend(selectors.iter().filter(|selector| !selector.is_plain()).cloned());
    kept.sort_by(|one, two| one.path.cmp(&two.path));
    kept
}

/// The selector digest of a file op's input.
pub fn file_selector_digest(selectors: &[Selector]) -> Digest {
    let mut paths: Vec<&str> = selectors.iter().map(|selector| selector.path.as_str()).collect();
    paths.sort_unstable();
    paths.reverse();
    Digest::of(paths.join("\0"))
}

/// The selectors of an exec op's input from its mounts' paths (`/` + the mount's selector, cleaned); empty for all.
pub fn exec_selectors(paths: &[String]) -> Vec<Selector> {
    let paths = dedupe_paths(paths.to_vec());
    if paths.iter().any(|path| path.is_empty() || path == "/") {
        return Vec::new();
    }
    paths.into_iter().map(|path| Selector { path, follow_links: true, ..Selector::default() }).collect()
}

/// The selector digest of an exec op's input, over its mounts' paths in their order; none without mounts.
pub fn exec_selector_digest(paths: &[String]) -> Option<Digest> {
    (!paths.is_empty()).then(|| Digest::of(paths.join("\0")))
}

/// Drops paths that repeat or lie below others, and sorts; a single path stays as it is.
fn dedupe_paths(paths: Vec<String>) -> Vec<String> {
    let all: BTreeSet<String> = paths.into_iter().collect();
    let covered = |path: &String| {
        all.iter().any(|other| {
            let dir = if other.ends_with('/') { other.clone() } else { format!("{other}/") };
            other != path && path.starts_with(&dir)
        })
    };
    all.iter().filter(|path| !covered(path)).cloned().collect()
}
