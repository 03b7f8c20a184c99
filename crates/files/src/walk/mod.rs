//! Which files of a directory a build sees: include, exclude and follow-paths of a local source.
//!
//! The meaning is that of fsutil's filtered walk. Entries come sorted by name within each directory, a directory before
//! what it holds; a directory that matches nothing itself comes all the same, late, when something in it does. The
//! root itself never comes. Directories in which nothing can match are not opened, so that nobody waits for
//! `node_modules` and nobody's unreadable directory stops a build that excludes it.
//!
//! Names that vanish during the walk are taken as never there.
//!
//! One thread walks; another reads the directories that it will come to ([`ahead`]).

mod ahead;
mod follow;

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use base::Cancel;
use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use sys::path::{Links, Root, lstat_at};

use crate::error::Error;
use crate::lexical;
use crate::parallel;
use crate::pattern::{MatchInfo, Matcher};
use crate::stat::{Kind, Stat};
use ahead::{Ahead, ReadDir, Ticket, WORTH_A_THREAD};

/// How deep directories may be nested.
pub(crate) const MAX_DEPTH: usize = 1024;

/// What a source asks for; empty lists do not filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only what matches one of these.
    pub include: Vec<String>,
    /// Nothing that matches these (`.dockerignore`).
    pub exclude: Vec<String>,
    /// Only these paths and what their links lead to; in addition to `include`.
    pub follow: Vec<String>,
    /// A directory that is left out whatever the patterns say. It does not go over a line.
    pub hidden: Option<Arc<Hidden>>,
}

/// A directory that is left out by what it is: a mount or a path of another spelling leads to the same one.
#[derive(Debug, PartialEq, Eq)]
pub struct Hidden {
    /// File system and number.
    identity: (u64, u64),
    /// Where a walk met it.
    met: OnceLock<PathBuf>,
}

impl Hidden {
    /// None, if nobody can say what stands there.
    pub fn new(dir: &Path) -> Option<Hidden> {
        let meta = std::fs::metadata(dir).ok()?;
        Some(Hidden { identity: (meta.dev(), meta.ino()), met: OnceLock::new() })
    }

    /// Where a walk first met it, relative to the root of that; none if patterns alone kept every walk away.
    pub fn met(&self) -> Option<&Path> {
        self.met.get().map(PathBuf::as_path)
    }

    fn is(&self, stat: &Stat, path: &[u8]) -> bool {
        let is = stat.kind == Kind::Dir && (stat.dev, stat.ino) == self.identity;
        if is {
            let _ = self.met.set(lexical::to_path(path).to_owned());
        }
        is
    }
}

/// One file of the walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the root, clean.
    pub path: PathBuf,
    /// What it is, after the map function.
    pub stat: Stat,
    /// Where a symbolic link points.
    pub link: Option<OsString>,
}

/// What a map function says of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is there.
    Keep,
    /// It is not there; what lies in it may be.
    Exclude,
    /// It is not there, nor is anything in it; said of a file, neither is what follows in its directory.
    SkipDir,
}

/// Sees each entry that the patterns let through, may change its metadata, and has the last word.
pub type MapFn<'a> = &'a mut dyn FnMut(&Path, &mut Stat) -> Verdict;

/// The map function of local sources: who owns a file on the user's machine is nobody's business.
pub fn reset_owner(_: &Path, stat: &mut Stat) -> Verdict {
    (stat.uid, stat.gid) = (0, 0);
    Verdict::Keep
}

/// Lists the files that a filter lets through.
pub fn walk(root: &Root, filter: &Filter, map: MapFn<'_>, cancel: &Cancel) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    walk_each(root, filter, map, cancel, &mut |entry| {
        entries.push(entry);
        Ok(())
    })?;
    Ok(entries)
}

/// [`walk`], one entry at a time.
pub fn walk_each(
    root: &Root,
    filter: &Filter,
    map: MapFn<'_>,
    cancel: &Cancel,
    visit: &mut dyn FnMut(Entry) -> Result<(), Error>,
) -> Result<(), Error> {
    let include = follow::with_follow_paths(root, filter)?;
    let failed = |list| move |source| Error::Pattern { list, source };
    let include = Matcher::optional(&include).map_err(failed("include"))?;
    let exclude = Matcher::optional(&filter.exclude).map_err(failed("exclude"))?;
    let top = root.open_dir("", Links::Refuse).map_err(|source| Error::io("open", root.path(), source))?;
    let top = OpenDir::new(read_dir(top, &[])?, Vec::new(), None);
    let ahead = Ahead::new();
    std::thread::scope(|scope| {
        let mut more_threads = parallel::threads(None) > 1;
        let mut start = || {
            if std::mem::take(&mut more_threads) {
                // No thread is no failure: the walk reads all that is not read ahead.
                drop(std::thread::Builder::new().name("walk".to_owned()).spawn_scoped(scope, || ahead.run()));
            }
        };
        let _walking = ahead.walking();
        let hidden = filter.hidden.as_deref();
        Walk { include, exclude, hidden, map, visit, open: Vec::new(), ahead: &ahead, start: &mut start }
            .run(top, cancel)
    })
}

struct Walk<'a> {
    include: Option<Matcher>,
    exclude: Option<Matcher>,
    hidden: Option<&'a Hidden>,
    map: MapFn<'a>,
    visit: &'a mut dyn FnMut(Entry) -> Result<(), Error>,
    /// From the root down to the directory being listed.
    open: Vec<OpenDir>,
    /// Reads the directories to come.
    ahead: &'a Ahead,
    /// Gives `ahead` its thread, when first called.
    start: &'a mut dyn FnMut(),
}

/// A directory between its first and its last entry.
struct OpenDir {
    fd: Arc<OwnedFd>,
    path: Vec<u8>,
    /// What is left to visit, last first.
    todo: Vec<Found>,
    include: MatchInfo,
    exclude: MatchInfo,
    /// The entry, as long as it has not been visited; the root never is.
    unvisited: Option<Stat>,
}

/// A name in a directory, and what is known of it already.
struct Found {
    name: OsString,
    kind: Option<Kind>,
    /// Where it was read ahead.
    stat: Option<Stat>,
    /// Of a directory that is to be read ahead.
    ticket: Option<Ticket>,
}

impl OpenDir {
    fn new(read: ReadDir, path: Vec<u8>, unvisited: Option<Stat>) -> OpenDir {
        let ReadDir { fd, entries: mut todo } = read;
        todo.reverse();
        let (include, exclude) = (MatchInfo::default(), MatchInfo::default());
        OpenDir { fd: Arc::new(fd), path, todo, include, exclude, unvisited }
    }
}

impl Walk<'_> {
    fn run(&mut self, top: OpenDir, cancel: &Cancel) -> Result<(), Error> {
        self.open(top);
        while let Some(dir) = self.open.last_mut() {
            match dir.todo.pop() {
                Some(found) => {
                    cancel.check()?;
                    self.step(&found)?;
                }
                None => {
                    self.open.pop();
                    self.ahead.leave(self.open.len());
                }
            }
        }
        Ok(())
    }

    /// Begins with a directory; those in it that will be entered are read ahead.
    fn open(&mut self, dir: OpenDir) {
        self.open.push(dir);
        let depth = self.open.len();
        let dir = &self.open[depth - 1];
        // What no pattern lets through is not opened, and what fails, fails when its turn comes.
        let is_entered = |found: &Found| {
            found.kind == Some(Kind::Dir)
                && matches!(self.filter(&child_path(&dir.path, found.name.as_bytes()), true), Ok(Some(_)))
        };
        let entered: Vec<usize> = (0..dir.todo.len()).filter(|at| is_entered(&dir.todo[*at])).collect();
        let dir = &mut self.open[depth - 1];
        if !entered.is_empty() && self.ahead.announce(&dir.fd, depth, &mut dir.todo, &entered) >= WORTH_A_THREAD {
            (self.start)();
        }
    }

    fn step(&mut self, found: &Found) -> Result<(), Error> {
        let name = &found.name;
        let parent = &self.open[self.open.len() - 1];
        let path = child_path(&parent.path, name.as_bytes());
        let look = |parent: &OpenDir| match found.stat {
            Some(stat) => Ok(Some(stat)),
            None => lstat(&parent.fd, name, &path),
        };
        let kind = match found.kind {
            Some(kind) => kind,
            None => match look(parent)? {
                Some(stat) => stat.kind,
                None => return Ok(()),
            },
        };
        let Some(Filtered { skip, include, exclude }) = self.filter(&path, kind == Kind::Dir)? else { return Ok(()) };
        if skip && kind != Kind::Dir {
            return Ok(());
        }
        let parent = &self.open[self.open.len() - 1];
        let Some(mut stat) = look(parent)? else { return Ok(()) };
        if self.hidden.is_some_and(|hidden| hidden.is(&stat, &path)) {
            return Ok(());
        }
        let raw_stat = stat;
        if !skip {
            let link = match stat.kind {
                Kind::Symlink => match rustix::fs::readlinkat(&parent.fd, name, Vec::new()) {
                    Ok(target) => Some(OsString::from_vec(target.into_bytes())),
                    Err(Errno::NOENT) => return Ok(()),
                    Err(errno) => return Err(Error::io("read link", lexical::to_path(&path), errno)),
                },
                _ => None,
            };
            match (self.map)(lexical::to_path(&path), &mut stat) {
                Verdict::SkipDir if kind == Kind::Dir => return Ok(()),
                Verdict::SkipDir => {
                    self.skip_rest_of_dir();
                    return Ok(());
                }
                Verdict::Exclude if kind == Kind::Dir => {}
                Verdict::Exclude => return Ok(()),
                Verdict::Keep => {
                    if !self.visit_parents()? {
                        return Ok(());
                    }
                    (self.visit)(Entry { path: lexical::to_path(&path).to_owned(), stat, link })?;
                }
            }
        }
        if stat.kind == Kind::Dir {
            self.enter(found, path, include, exclude, skip.then_some(raw_stat))?;
        }
        Ok(())
    }

    fn skip_rest_of_dir(&mut self) {
        if let Some(dir) = self.open.last_mut() {
            dir.todo.clear();
        }
    }

    fn enter(
        &mut self,
        found: &Found,
        path: Vec<u8>,
        include: MatchInfo,
        exclude: MatchInfo,
        unvisited: Option<Stat>,
    ) -> Result<(), Error> {
        if self.open.len() > MAX_DEPTH {
            return Err(Error::TooDeep(lexical::to_path(&path).to_owned()));
        }
        let read = match found.ticket.and_then(|ticket| self.ahead.take(ticket)) {
            Some(read) => read,
            None => match open_dir_at(&self.open[self.open.len() - 1].fd, &found.name) {
                Ok(fd) => read_dir(fd, &path)?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
                // Nobody asked for what is in there.
                Err(Errno::ACCESS) if unvisited.is_some() => return Ok(()),
                Err(errno) => return Err(Error::io("open", lexical::to_path(&path), errno)),
            },
        };
        self.open(OpenDir { include, exclude, ..OpenDir::new(read, path, unvisited) });
        Ok(())
    }

    /// Says whether patterns skip an entry; none if nothing in it matters either.
    fn filter(&self, path: &[u8], is_dir: bool) -> Result<Option<Filtered>, Error> {
        let parent = &self.open[self.open.len() - 1];
        let mut filtered = Filtered::default();
        if let Some(matcher) = &self.include {
            let matched = matched(matcher, "include", path, is_dir, &parent.include, &mut filtered.include)?;
            if !matched {
                if is_dir && !matcher.may_match_below(path) {
                    return Ok(None);
                }
                filtered.skip = true;
            }
        }
        if let Some(matcher) = &self.exclude
            && matched(matcher, "exclude", path, is_dir, &parent.exclude, &mut filtered.exclude)?
        {
            if is_dir && !matcher.may_take_back_below(path) {
                return Ok(None);
            }
            filtered.skip = true;
        }
        Ok(Some(filtered))
    }

    /// Makes up for directories on the way that were not visited; false if the map function hides one.
    fn visit_parents(&mut self) -> Result<bool, Error> {
        for dir in &mut self.open {
            let Some(mut stat) = dir.unvisited else { continue };
            let path = lexical::to_path(&dir.path);
            match (self.map)(path, &mut stat) {
                Verdict::SkipDir => {
                    dir.todo.clear();
                    return Ok(false);
                }
                Verdict::Exclude => continue,
                Verdict::Keep => {}
            }
            dir.unvisited = None;
            (self.visit)(Entry { path: path.to_owned(), stat, link: None })?;
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Filtered {
    skip: bool,
    include: MatchInfo,
    exclude: MatchInfo,
}

fn matched(
    matcher: &Matcher,
    list: &'static str,
    path: &[u8],
    is_dir: bool,
    parent: &MatchInfo,
    info: &mut MatchInfo,
) -> Result<bool, Error> {
    let answer = if is_dir {
        matcher.matches_dir(path, parent).map(|(matched, known)| {
            *info = known;
            matched
        })
    } else {
        matcher.matches_below(path, parent)
    };
    answer.map_err(|source| Error::Pattern { list, source })
}

/// The names in a directory and their types where the file system tells them, sorted by name.
/// What is in a directory, by name, with nothing filtered and nothing below.
pub fn list_dir(dir: &Root) -> Result<Vec<Entry>, Error> {
    let open = dir.open_dir("", Links::Refuse).map_err(|source| Error::io("open", dir.path(), source))?;
    let mut entries = Vec::new();
    for (name, _) in list(&open, b"")? {
        let stat = match lstat_at(&open, &name) {
            Ok(stat) => Stat::from(stat),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::io("stat", &name, source)),
        };
        let link = (stat.kind == Kind::Symlink).then(|| dir.read_link(&name)).transpose();
        let link = link.map_err(|source| Error::io("read link", &name, source))?;
        entries.push(Entry { path: name.into(), stat, link });
    }
    Ok(entries)
}

pub(crate) fn list(dir: impl AsFd, path: &[u8]) -> Result<Vec<(OsString, Option<Kind>)>, Error> {
    let failed = |errno| Error::io("list", lexical::to_path(path), errno);
    let mut names = Vec::new();
    for entry in Dir::read_from(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name: &CStr = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            let kind = match entry.file_type() {
                FileType::Unknown => None,
                // A directory that one layer alone has is listed by an overlay with the marks of files that layer removed,
                // though none is there.
                FileType::CharacterDevice if is_missing(&dir, name) => continue,
                known => Kind::from_raw(known),
            };
            names.push((OsString::from_vec(name.to_bytes().to_vec()), kind));
        }
    }
    names.sort_unstable_by(|one, two| one.0.cmp(&two.0));
    Ok(names)
}

/// Lists a directory; nothing in it has been looked at.
fn read_dir(fd: OwnedFd, path: &[u8]) -> Result<ReadDir, Error> {
    let entries = list(&fd, path)?.into_iter();
    let entries = entries.map(|(name, kind)| Found { name, kind, stat: None, ticket: None }).collect();
    Ok(ReadDir { fd, entries })
}

fn is_missing(dir: impl AsFd, name: &CStr) -> bool {
    lstat_at(dir, OsStr::from_bytes(name.to_bytes())).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Opens a directory for listing, itself and not what a link leads to.
pub(crate) fn open_dir_at(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

pub(crate) fn child_path(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(parent.len() + name.len() + 1);
    path.extend_from_slice(parent);
    if !parent.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

fn lstat(dir: &OwnedFd, name: &OsStr, path: &[u8]) -> Result<Option<Stat>, Error> {
    match lstat_at(dir, name) {
        Ok(stat) => Ok(Some(stat.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("stat", lexical::to_path(path), error)),
    }
}

#[cfg(test)]
mod tests;
