//! The walk of a copy: which directories are made, which files are copied.
//!
//! One thread walks the source and makes directories; files go to the threads in batches, a directory at a time. When all
//! files are there, hard links are made, and directories get owners, modes and times, innermost first, since what lands
//! in a directory changes its time.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use base::Digest;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use sys::path::{Links, lstat_at};

use super::file::{Batch, FileJob, Hands};
use super::queue::Queue;
use super::source::SourceEntry;
use super::{Copied, CopyJob};
use crate::checksum::{FileHeader, Flavor, Xattrs};
use crate::error::Error;
use crate::lexical;
use crate::parallel;
use crate::pattern::MatchInfo;
use crate::stat::{Kind, Stat, allocated};
use crate::target::{Wanted, shown};
use crate::walk::{MAX_DEPTH, child_path};
use crate::xattr;

/// How many files a thread takes at once: enough that two threads are seldom at the same directory, whose lock they would
/// wait for,
const BATCH: usize = 128;
/// and so few bytes that none is left with all the work. What is not known to be smaller counts as a part of them.
const BATCH_BYTES: u64 = 4 << 20;
const UNKNOWN_BYTES: u64 = BATCH_BYTES / 32;

/// A directory of the source that has been come across.
struct Dir {
    /// In the plan's list; none for the top.
    parent: Option<usize>,
    src: Vec<u8>,
    dst: Vec<u8>,
    /// Relative to the top of the copy, for patterns.
    path: Vec<u8>,
    depth: usize,
    include: MatchInfo,
    exclude: MatchInfo,
    /// Whether it passed the patterns itself; else it is made when something in it does.
    selected: bool,
    state: DirState,
    finish: Finish,
    stat: Stat,
    xattrs: Xattrs,
    /// Of a local source: what its header was hashed to.
    digest: Option<Digest>,
}

#[derive(Clone, Copy, PartialEq)]
enum DirState {
    NotYet,
    There,
}

/// What a directory gets in the end.
#[derive(Clone, Copy, PartialEq)]
enum Finish {
    Nothing,
    Times,
    Mode,
    All,
}

/// What the threads share.
pub(super) struct Shared<'a> {
    pub(super) job: &'a CopyJob<'a>,
    /// Where the first name of a file with several went, by device and inode.
    first_names: Mutex<HashMap<(u64, u64), Vec<u8>>>,
    /// First name and further one.
    links: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    pub(super) files: AtomicU64,
    pub(super) bytes: AtomicU64,
    allocated: AtomicU64,
}

impl Shared<'_> {
    /// Adds what has been made to the sum of allocated bytes.
    pub(super) fn count(&self, made: &rustix::fs::Stat) {
        self.allocated.fetch_add(allocated(made), Ordering::Relaxed);
    }

    /// Whether a file with several names has been copied under another; if so, it will be linked.
    pub(super) fn link_to_first(&self, stat: &Stat, dst: &[u8]) -> bool {
        let mut names = lock(&self.first_names);
        match names.get(&(stat.dev, stat.ino)) {
            Some(first) => {
                lock(&self.links).push((first.clone(), dst.to_vec()));
                true
            }
            None => {
                names.insert((stat.dev, stat.ino), dst.to_vec());
                false
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Copies `src`, which `stat` describes, to `dst`; both relative to their roots and without links.
pub(super) fn run(job: &CopyJob<'_>, src: &[u8], stat: &Stat, dst: &[u8]) -> Result<Copied, Error> {
    let shared = Shared {
        job,
        first_names: Mutex::default(),
        links: Mutex::default(),
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        allocated: AtomicU64::new(0),
    };
    if stat.kind == Kind::Dir {
        copy_tree(&shared, src, stat, dst)?;
    } else if dst.is_empty() {
        // Upstream would put the file in place of the whole tree.
        return Err(Error::IsADirectory(shown(dst)));
    } else {
        let (src_dir, name) = lexical::split(src);
        let (dst_dir, dst_name) = lexical::split(dst);
        let file = FileJob {
            name: name.to_vec(),
            dst_name: Some(dst_name.to_vec()),
            kind: Some(stat.kind),
            known: job.source.known(src),
        };
        let batch = Batch { src_dir: trim(src_dir), dst_dir: trim(dst_dir), files: vec![file] };
        Hands::new(&shared).batch(&batch)?;
    }
    let allocated = Some(shared.allocated.into_inner());
    Ok(Copied { files: shared.files.into_inner(), bytes: shared.bytes.into_inner(), allocated })
}

fn trim(dir: &[u8]) -> Vec<u8> {
    dir.strip_suffix(b"/").unwrap_or(dir).to_vec()
}

fn copy_tree(shared: &Shared<'_>, src: &[u8], stat: &Stat, dst: &[u8]) -> Result<(), Error> {
    let queue = Queue::new();
    let threads = parallel::threads(shared.job.env.threads);
    let dirs = std::thread::scope(|scope| {
        let work = || {
            let mut hands = Hands::new(shared);
            while let Some((index, batch)) = queue.pop() {
                if let Err(error) = hands.batch(&batch) {
                    queue.fail(index, error);
                }
            }
        };
        let mut started = 1;
        let mut hands = Hands::new(shared);
        let mut submit = |batch: Batch| {
            let waiting = queue.push(batch);
            if waiting > started && started < threads {
                started += 1;
                // Too few threads are no failure: this one does the work.
                drop(std::thread::Builder::new().name("copy".to_owned()).spawn_scoped(scope, work));
            }
            while queue.is_full() {
                do_one(&queue, &mut hands);
            }
        };
        let mut plan = Plan { shared, dirs: Vec::new() };
        let filling = queue.filling();
        let walked = plan.walk(src, stat, dst, &mut submit, &|| queue.has_failed());
        drop(filling);
        while do_one(&queue, &mut hands) {}
        walked.map(|()| plan.dirs)
    });
    queue.into_result()?;
    finish(shared, &dirs?)
}

fn do_one(queue: &Queue<Batch>, hands: &mut Hands<'_>) -> bool {
    let Some((index, batch)) = queue.try_pop() else { return false };
    if let Err(error) = hands.batch(&batch) {
        queue.fail(index, error);
    }
    true
}

struct Plan<'a> {
    shared: &'a Shared<'a>,
    /// All directories; those above others come first.
    dirs: Vec<Dir>,
}

impl Plan<'_> {
    fn walk(
        &mut self,
        src: &[u8],
        stat: &Stat,
        dst: &[u8],
        submit: &mut dyn FnMut(Batch),
        failed: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let job = self.shared.job;
        self.dirs.push(Dir {
            parent: None,
            src: src.to_vec(),
            dst: dst.to_vec(),
            path: Vec::new(),
            depth: 0,
            include: MatchInfo::default(),
            exclude: MatchInfo::default(),
            selected: true,
            state: DirState::NotYet,
            finish: Finish::Nothing,
            stat: *stat,
            xattrs: Xattrs::new(),
            digest: job.source.known(src).and_then(|known| known.digest),
        });
        let mut todo = vec![0];
        while let Some(index) = todo.pop() {
            if let Some(cancel) = job.env.cancel {
                cancel.check()?;
            }
            if failed() {
                return Ok(());
            }
            self.look_at(index)?;
            if self.dirs[index].selected {
                self.make(index)?;
            }
            let below = self.enter(index, submit)?;
            todo.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// Learns mode, owner and attributes of a source directory, which must be what the checksum has seen of it.
    fn look_at(&mut self, index: usize) -> Result<(), Error> {
        let source = self.shared.job.source;
        let dir = &mut self.dirs[index];
        let failed = |call, error: io::Error| source.failed(call, &dir.src, error);
        let opened = source.root.open_dir(lexical::to_path(&dir.src), Links::Refuse);
        let fd = opened.map_err(|error| failed("open", error))?;
        let mut stat = Stat::from(rustix::fs::fstat(&fd).map_err(|errno| failed("stat", errno.into()))?);
        dir.xattrs = xattr::of_fd(&fd).map_err(|error| failed("read attributes of", error))?;
        if let Some(recall) = source.recall {
            let recalled = recall.recall(lexical::to_path(&dir.src), &mut stat, &mut dir.xattrs);
            recalled.map_err(|error| failed("read records of", error))?;
        }
        if source.is_view() {
            (stat.uid, stat.gid) = (dir.stat.uid, dir.stat.gid);
            dir.xattrs.retain(|name, _| !name.starts_with(b"com.apple."));
            // Its times say nothing: they change with every file that comes or goes, also where nobody looks.
            let header = FileHeader { stat: &stat, link: &[], xattrs: &dir.xattrs };
            if dir.digest.is_some_and(|seen| header.hasher(Flavor::Context).finish() != seen) {
                return Err(Error::Changed(shown(&dir.src)));
            }
        }
        dir.stat = stat;
        Ok(())
    }

    /// Makes a directory in the target, and those above it that waited for something to be in them.
    fn make(&mut self, index: usize) -> Result<(), Error> {
        let mut waiting = vec![index];
        while let Some(parent) = self.dirs[waiting[waiting.len() - 1]].parent {
            if self.dirs[parent].state == DirState::There {
                break;
            }
            waiting.push(parent);
        }
        for index in waiting.into_iter().rev() {
            if self.dirs[index].state == DirState::NotYet {
                self.make_one(index)?;
            }
        }
        Ok(())
    }

    fn make_one(&mut self, index: usize) -> Result<(), Error> {
        let job = self.shared.job;
        let dir = &mut self.dirs[index];
        dir.state = DirState::There;
        let is_top = dir.parent.is_none();
        if dir.dst.is_empty() {
            dir.finish = Finish::Times;
            return Ok(());
        }
        let (parent, name) = lexical::split(&dir.dst);
        let name = OsStr::from_bytes(name);
        let failed = |errno: Errno| Error::io("create directory", shown(&dir.dst), errno);
        let parent = job.target.open_dir(parent)?;
        // The final mode comes last; until then we must be able to write here.
        let mode = Mode::from_raw_mode(dir.stat.mode & 0o777 | 0o700);
        let made = match rustix::fs::mkdirat(&parent, name, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => {
                let there = lstat_at(&parent, name).map_err(|error| Error::io("stat", shown(&dir.dst), error))?;
                let is_dir = Stat::from(there).kind == Kind::Dir;
                if !is_dir && !job.action.always_replace {
                    return Err(Error::NotADirectory(shown(&dir.dst)));
                }
                if !is_dir {
                    job.target.remove_all(&parent, name, &dir.dst)?;
                    rustix::fs::mkdirat(&parent, name, mode).map_err(failed)?;
                }
                !is_dir
            }
            Err(errno) => return Err(failed(errno)),
        };
        dir.finish = match (made, is_top, dir.selected) {
            (true, ..) | (false, false, true) => Finish::All,
            (false, true, _) => Finish::Times,
            (false, false, false) => Finish::Mode,
        };
        Ok(())
    }

    /// Sends the files of a directory on their way; answers with the directories in it.
    fn enter(&mut self, index: usize, submit: &mut dyn FnMut(Batch)) -> Result<Vec<usize>, Error> {
        let job = self.shared.job;
        let entries = job.source.list(&self.dirs[index].src)?;
        let mut files = Vec::new();
        let mut bytes = 0;
        let mut below = Vec::new();
        for entry in entries {
            let dir = &self.dirs[index];
            let path = child_path(&dir.path, &entry.name);
            let kind = match entry.kind {
                Some(kind) => Some(kind),
                None => job.source.stat(&child_path(&dir.src, &entry.name))?.map(|stat| stat.kind),
            };
            let Some(kind) = kind else { continue };
            let selection = self.select(index, &path, kind == Kind::Dir)?;
            if kind == Kind::Dir {
                if !selection.closed {
                    below.push(self.add_dir(index, &entry, path, selection)?);
                }
            } else if selection.selected {
                self.make(index)?;
                let SourceEntry { name, known, .. } = entry;
                bytes += known.map_or(UNKNOWN_BYTES, |known| known.stat.size);
                files.push(FileJob { name, dst_name: None, kind: Some(kind), known });
                if files.len() == BATCH || bytes >= BATCH_BYTES {
                    bytes = 0;
                    self.send(index, std::mem::take(&mut files), submit);
                }
            }
        }
        if !files.is_empty() {
            self.send(index, files, submit);
        }
        Ok(below)
    }

    fn send(&self, index: usize, files: Vec<FileJob>, submit: &mut dyn FnMut(Batch)) {
        let dir = &self.dirs[index];
        submit(Batch { src_dir: dir.src.clone(), dst_dir: dir.dst.clone(), files });
    }

    fn add_dir(
        &mut self,
        parent: usize,
        entry: &SourceEntry,
        path: Vec<u8>,
        selection: Selection,
    ) -> Result<usize, Error> {
        let above = &self.dirs[parent];
        if above.depth > MAX_DEPTH {
            return Err(Error::TooDeep(shown(&above.src)));
        }
        let dir = Dir {
            parent: Some(parent),
            src: child_path(&above.src, &entry.name),
            dst: child_path(&above.dst, &entry.name),
            path,
            depth: above.depth + 1,
            include: selection.include,
            exclude: selection.exclude,
            selected: selection.selected,
            state: DirState::NotYet,
            finish: Finish::Nothing,
            stat: entry.known.map_or(above.stat, |known| known.stat),
            xattrs: Xattrs::new(),
            digest: entry.known.and_then(|known| known.digest),
        };
        self.dirs.push(dir);
        Ok(self.dirs.len() - 1)
    }

    fn select(&self, parent: usize, path: &[u8], is_dir: bool) -> Result<Selection, Error> {
        let (job, parent) = (self.shared.job, &self.dirs[parent]);
        let mut selection = Selection { selected: true, ..Selection::default() };
        if let Some(matcher) = job.include {
            let answer = matcher.matches_dir(path, &parent.include);
            (selection.selected, selection.include) =
                answer.map_err(|source| Error::Pattern { list: "include", source })?;
            selection.closed = is_dir && !selection.selected && !matcher.may_match_below(path);
        }
        if let Some(matcher) = job.exclude {
            let answer = matcher.matches_dir(path, &parent.exclude);
            let (excluded, info) = answer.map_err(|source| Error::Pattern { list: "exclude", source })?;
            selection.exclude = info;
            selection.selected &= !excluded;
            selection.closed |= excluded && !matcher.has_exclusions();
        }
        Ok(selection)
    }
}

#[derive(Default)]
struct Selection {
    selected: bool,
    /// Nothing in it can be selected.
    closed: bool,
    include: MatchInfo,
    exclude: MatchInfo,
}

fn finish(shared: &Shared<'_>, dirs: &[Dir]) -> Result<(), Error> {
    let job = shared.job;
    for (first, name) in lock(&shared.links).iter() {
        link(shared, first, name)?;
    }
    for dir in dirs.iter().rev() {
        let times = job.action.timestamp.map_or((dir.stat.atime, dir.stat.mtime), |time| (time, time));
        let wanted = match dir.finish {
            Finish::Nothing => continue,
            Finish::Times => Wanted { times: Some(times), ..Wanted::default() },
            Finish::Mode => Wanted { mode: Some(dir.stat.mode), ..Wanted::default() },
            Finish::All => Wanted {
                owner: Some(job.owner_of(&dir.stat)),
                mode: Some(job.action.mode.apply(Kind::Dir, dir.stat.mode)),
                times: Some(times),
            },
        };
        let fd = job.target.open_dir(&dir.dst)?;
        job.target.set_on_path_fd(&fd, &dir.dst, &wanted)?;
        if dir.finish == Finish::All {
            shared.count(&rustix::fs::fstat(&fd).map_err(|errno| Error::io("stat", shown(&dir.dst), errno))?);
            job.target.set_dir_xattrs(&dir.dst, &dir.xattrs)?;
        }
    }
    Ok(())
}

/// Gives a file that has been copied a further name.
fn link(shared: &Shared<'_>, first: &[u8], name: &[u8]) -> Result<(), Error> {
    let target = shared.job.target;
    let failed = |errno: Errno| Error::io("create hard link", shown(name), errno);
    let (from_dir, from) = lexical::split(first);
    let (to_dir, to) = lexical::split(name);
    let (from_dir, to_dir): (OwnedFd, OwnedFd) = (target.open_dir(from_dir)?, target.open_dir(to_dir)?);
    let to = OsStr::from_bytes(to);
    let from = OsStr::from_bytes(from);
    let made = match rustix::fs::linkat(&from_dir, from, &to_dir, to, AtFlags::empty()) {
        Err(Errno::EXIST) => {
            super::file::clear(shared.job, &to_dir, to, name)?;
            rustix::fs::linkat(&from_dir, from, &to_dir, to, AtFlags::empty())
        }
        other => other,
    };
    made.map_err(failed)?;
    shared.files.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// A base for calls on the entries of a directory.
pub(super) fn open_source_dir(job: &CopyJob<'_>, path: &[u8]) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let opened = job.source.root.open_at(lexical::to_path(path), flags, Mode::empty(), Links::Refuse);
    opened.map_err(|error| job.source.failed("open", path, error))
}
