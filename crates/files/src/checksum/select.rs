//! Checksums of what wildcards, include and exclude patterns select.
//!
//! The selection is a list of files and directory headers in byte order of their paths; the content of a directory
//! counts only through its entries. A directory that is not selected itself counts once something in it is. Paths are
//! written as the caller named them: what lies behind a link in the path without wildcards keeps the link's name.

use base::Digest;

use super::Options;
use super::nodes::{NodeId, What, Work};
use crate::error::Error;
use crate::lexical;
use crate::pattern::{MatchInfo, Matcher, glob_match, split_wildcards};
use crate::walk::child_path;

/// One selected file or directory header.
struct Selected {
    /// Absolute, as the caller sees it; empty for the root.
    path: Vec<u8>,
    /// Relative to the root, without links.
    real: Vec<u8>,
    id: NodeId,
    /// A link at the top of the selection that is to be followed.
    follow: bool,
}

/// The checksum of a selection.
pub(super) fn checksum(work: &mut Work<'_>, path: &[u8], options: &Options) -> Result<Digest, Error> {
    let (prefix, selected) = Selection::new(path, options)?.run(work)?;
    for required in &options.required {
        if !selected.iter().any(|entry| entry.path.starts_with(required.as_bytes())) {
            return Err(Error::NotFound(required.into()));
        }
    }
    let mut jobs = Vec::new();
    for entry in &selected {
        work.collect_jobs(entry.id, &entry.real, false, &mut jobs)?;
    }
    work.hash(jobs)?;
    let mut digests = Vec::with_capacity(selected.len());
    for entry in &selected {
        let is_link = matches!(work.nodes.node(entry.id).what, What::Link(_));
        digests.push(match work.nodes.node(entry.id).digest {
            _ if entry.follow && is_link => work.checksum_of_path(&entry.path, true)?,
            Some(digest) => digest,
            None => return Err(Error::Changed(lexical::to_path(&entry.real).to_owned())),
        });
    }
    if let ([entry], [digest]) = (&selected[..], &digests[..])
        && lexical::base(path) == lexical::base(&entry.path)
    {
        return Ok(*digest);
    }
    let mut hasher = Digest::hasher();
    for (entry, digest) in selected.iter().zip(&digests) {
        let rest = entry.path.strip_prefix(&prefix[..]).unwrap_or(&entry.path);
        let key: Vec<u8> = rest.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect();
        hasher.update(if key.is_empty() { &[0][..] } else { &key });
        hasher.update(digest.to_text());
    }
    Ok(hasher.finish())
}

/// A walk of the tree that finds what is selected.
struct Selection<'a> {
    /// Absolute and clean, but empty for the root.
    path: Vec<u8>,
    /// The path named a directory by a trailing slash: its own header does not count.
    bare: bool,
    options: &'a Options,
    include: Option<Matcher>,
    exclude: Option<Matcher>,
    selected: Vec<Selected>,
    /// The directories above the current entry.
    above: Vec<Above>,
    /// What the wildcard matched last; all in it is selected without another look at the wildcard.
    matched: Vec<u8>,
}

struct Above {
    id: NodeId,
    path: Vec<u8>,
    real: Vec<u8>,
    include: MatchInfo,
    exclude: MatchInfo,
    selected: bool,
    follow: bool,
}

/// What the walk does next.
enum Step {
    Visit { id: NodeId, path: Vec<u8>, real: Vec<u8> },
    Leave,
}

impl<'a> Selection<'a> {
    fn new(path: &[u8], options: &'a Options) -> Result<Selection<'a>, Error> {
        let matcher =
            |list, patterns: &[String]| Matcher::optional(patterns).map_err(|source| Error::Pattern { list, source });
        Ok(Selection {
            bare: path.ends_with(b"/"),
            path: key_path(path),
            options,
            include: matcher("include", &options.include)?,
            exclude: matcher("exclude", &options.exclude)?,
            selected: Vec::new(),
            above: Vec::new(),
            matched: Vec::new(),
        })
    }

    /// Answers with the part of the path that the walk began at, too.
    fn run(mut self, work: &mut Work<'_>) -> Result<(Vec<u8>, Vec<Selected>), Error> {
        let mut prefix = self.path.clone();
        let mut follow_last = false;
        if self.options.wildcard {
            let (before, wild) = split_wildcards(&self.path);
            prefix = key_path(&before);
            follow_last = !wild.is_empty();
        }
        // The root is where every walk begins that has no other place to begin at.
        let start = work.find(&prefix, follow_last && !prefix.is_empty())?;
        if let Some((id, real)) = start {
            let mut todo = vec![Step::Visit { id, path: prefix.clone(), real }];
            while let Some(step) = todo.pop() {
                match step {
                    Step::Visit { id, path, real } => self.visit(work, id, path, real, &mut todo)?,
                    Step::Leave => {
                        self.above.pop();
                    }
                }
            }
        }
        Ok((prefix, self.selected))
    }

    fn visit(
        &mut self,
        work: &mut Work<'_>,
        id: NodeId,
        path: Vec<u8>,
        real: Vec<u8>,
        todo: &mut Vec<Step>,
    ) -> Result<(), Error> {
        let is_dir = work.nodes.node(id).is_dir();
        let bare = is_dir && self.bare && path == self.path;
        let mut below = true;
        let mut pushed = false;
        if bare {
            // Only a wildcard that is its own match comes here with wildcards on.
            self.matched = if self.options.wildcard { path.clone() } else { Vec::new() };
        } else {
            match self.consider(id, &path, &real, is_dir)? {
                Considered::NotYet => below = is_dir && may_lead(&self.path, &path),
                Considered::Dir { selected, above, closed } => {
                    if selected {
                        self.take(Selected { path: path.clone(), real: real.clone(), id, follow: above.follow });
                    }
                    self.above.push(Above { selected, ..above });
                    pushed = true;
                    below = !closed;
                }
                Considered::File { selected, follow } => {
                    if selected {
                        self.take(Selected { path, real, id, follow });
                    }
                    return Ok(());
                }
            }
        }
        if pushed {
            todo.push(Step::Leave);
        }
        if is_dir && below {
            work.load(id, &real)?;
            for child in work.nodes.children(id).iter().rev() {
                let name = &work.nodes.node(*child).name;
                let path = [&path[..], b"/", name].concat();
                todo.push(Step::Visit { id: *child, path, real: child_path(&real, name) });
            }
        }
        Ok(())
    }

    /// Whether an entry is selected.
    fn consider(&mut self, id: NodeId, path: &[u8], real: &[u8], is_dir: bool) -> Result<Considered, Error> {
        let follow = self.above.is_empty() && self.options.follow_links;
        let candidate = if self.options.wildcard {
            let inside = !self.matched.is_empty() && is_below(path, &self.matched);
            if !self.path.is_empty() && !inside {
                let matched = glob_match(&self.path, path).map_err(|_| bad_wildcard(&self.path))?;
                if !matched {
                    return Ok(Considered::NotYet);
                }
                self.matched = path.to_vec();
            }
            strip_dir(path, &self.matched)
        } else {
            strip_dir(path, &self.path)
        };
        let (mut include_info, mut exclude_info) = (MatchInfo::default(), MatchInfo::default());
        let unknown = MatchInfo::default();
        let parent = self.above.last();
        let mut selected = true;
        let mut closed = false;
        if let Some(matcher) = &self.include {
            let known = parent.map_or(&unknown, |parent| &parent.include);
            (selected, include_info) = check(matcher, "include", &candidate, known)?;
            closed = !selected && !candidate.is_empty() && !matcher.may_match_below(&candidate);
        }
        if selected && let Some(matcher) = &self.exclude {
            let known = parent.map_or(&unknown, |parent| &parent.exclude);
            let excluded;
            (excluded, exclude_info) = check(matcher, "exclude", &candidate, known)?;
            selected = !excluded;
            closed |= excluded && !matcher.has_exclusions();
        }
        if !is_dir {
            return Ok(Considered::File { selected, follow });
        }
        let above = Above {
            id,
            path: path.to_vec(),
            real: real.to_vec(),
            include: include_info,
            exclude: exclude_info,
            selected,
            follow,
        };
        Ok(Considered::Dir { selected, above, closed })
    }

    /// Selects an entry, and before it the directories above that have not been.
    fn take(&mut self, entry: Selected) {
        for dir in &mut self.above {
            if !dir.selected {
                dir.selected = true;
                let (path, real) = (dir.path.clone(), dir.real.clone());
                self.selected.push(Selected { path, real, id: dir.id, follow: dir.follow });
            }
        }
        self.selected.push(entry);
    }
}

enum Considered {
    /// The wildcard does not match here.
    NotYet,
    /// `closed`: nothing in it can be selected.
    Dir {
        selected: bool,
        above: Above,
        closed: bool,
    },
    File {
        selected: bool,
        follow: bool,
    },
}

fn check(matcher: &Matcher, list: &'static str, path: &[u8], parent: &MatchInfo) -> Result<(bool, MatchInfo), Error> {
    matcher.matches_dir(path, parent).map_err(|source| Error::Pattern { list, source })
}

/// Absolute and clean, but empty for the root.
fn key_path(path: &[u8]) -> Vec<u8> {
    let path = lexical::absolute(path);
    if path == b"/" { Vec::new() } else { path }
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}

/// `path` relative to `dir`; empty for the directory itself.
fn strip_dir(path: &[u8], dir: &[u8]) -> Vec<u8> {
    let rest = path.strip_prefix(dir).unwrap_or(path);
    rest.strip_prefix(b"/").unwrap_or(rest).to_vec()
}

/// Whether a wildcard may match something below a directory; `true` when in doubt.
fn may_lead(wildcard: &[u8], dir: &[u8]) -> bool {
    // Classes may match slashes, and escapes may hide them.
    if wildcard.iter().any(|byte| matches!(byte, b'[' | b'\\')) {
        return true;
    }
    let names: Vec<&[u8]> = wildcard.split(|byte| *byte == b'/').collect();
    let depth = dir.split(|byte| *byte == b'/').count();
    depth < names.len() && glob_match(&names[..depth].join(&b'/'), dir) != Ok(false)
}

fn bad_wildcard(path: &[u8]) -> Error {
    let text = String::from_utf8_lossy(path).into_owned();
    Error::Pattern { list: "source", source: crate::pattern::PatternError::Syntax(text) }
}
