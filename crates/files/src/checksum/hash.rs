//! Reading and hashing files, on all cores.
//!
//! Files of one directory go to a thread together, which opens the directory once. A regular file costs open, fstat,
//! listxattr, read and close. A file that changes while it is read is read again a few times, then is an error.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use base::Digest;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sys::path::{Links, Root, lstat_at};

use super::memo::{MemoKey, Remembered, settled_by};
use super::nodes::{Node, NodeId, What};
use super::{Env, FileHeader, Flavor, Recall, Xattrs};
use crate::error::Error;
use crate::lexical;
use crate::parallel;
use crate::stat::{Kind, Stat, Time};
use crate::xattr;

/// How many files a thread takes at once.
const BATCH: usize = 32;
/// What is read at once.
const BUFFER: usize = 256 * 1024;
/// How often a file is read that changes meanwhile.
const TRIES: usize = 4;

/// A file, link or directory header to hash.
pub(super) struct Job {
    id: NodeId,
    dir: Vec<u8>,
    /// Empty for the root.
    name: OsString,
    kind: Kind,
    link: Box<[u8]>,
    stat: Option<Stat>,
}

/// The answer to a job.
pub(super) struct Done {
    pub(super) id: NodeId,
    pub(super) digest: Digest,
    pub(super) stat: Stat,
    pub(super) settled: bool,
    pub(super) no_xattrs: bool,
}

impl Job {
    /// `path` is relative to the root.
    pub(super) fn new(id: NodeId, path: &[u8], node: &Node) -> Job {
        let (dir, name) = lexical::split(path);
        let (kind, link) = match &node.what {
            What::File(kind) => (*kind, Box::default()),
            What::Link(target) => (Kind::Symlink, target.clone()),
            What::Dir { .. } => (Kind::Dir, Box::default()),
        };
        let dir = dir.strip_suffix(b"/").unwrap_or(dir).to_vec();
        Job { id, dir, name: OsStr::from_bytes(name).to_owned(), kind, link, stat: node.stat.as_deref().copied() }
    }

    fn path(&self) -> PathBuf {
        lexical::to_path(&self.dir).join(&self.name)
    }
}

/// What it takes to read files.
pub(super) struct Reader<'a> {
    pub(super) root: &'a Root,
    pub(super) recall: Option<&'a dyn Recall>,
    pub(super) flavor: Flavor,
    pub(super) env: &'a Env<'a>,
}

/// Hashes all; the order of the answers is any.
pub(super) fn run(reader: &Reader<'_>, jobs: Vec<Job>) -> Result<Vec<Done>, Error> {
    let mut batches: Vec<&[Job]> = Vec::new();
    for same_dir in jobs.chunk_by(|one, two| one.dir == two.dir) {
        batches.extend(same_dir.chunks(BATCH));
    }
    let results = Mutex::new(Vec::with_capacity(jobs.len()));
    let threads = parallel::threads(reader.env.threads);
    parallel::for_each(&batches, threads, Vec::new, |buffer: &mut Vec<u8>, batch| -> Result<(), Error> {
        buffer.resize(BUFFER, 0);
        let batch = reader.batch(batch, buffer)?;
        results.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend(batch);
        Ok(())
    })?;
    Ok(results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

impl Reader<'_> {
    /// Where to keep what is read of a local source; a snapshot keeps its own tree.
    fn memo(&self) -> Option<&dyn super::memo::Memo> {
        self.env.memo.filter(|_| self.flavor == Flavor::Context)
    }

    fn batch(&self, batch: &[Job], buffer: &mut [u8]) -> Result<Vec<Done>, Error> {
        let Some(first) = batch.first() else { return Ok(Vec::new()) };
        let dir = self.root.open_at(
            lexical::to_path(&first.dir),
            OFlags::PATH | OFlags::DIRECTORY,
            Mode::empty(),
            Links::Refuse,
        );
        let dir = dir.map_err(|error| self.gone(lexical::to_path(&first.dir), error))?;
        let mut done = Vec::with_capacity(batch.len());
        for job in batch {
            if let Some(cancel) = self.env.cancel {
                cancel.check()?;
            }
            done.push(self.one(&dir, job, buffer)?);
        }
        Ok(done)
    }

    fn one(&self, dir: &OwnedFd, job: &Job, buffer: &mut [u8]) -> Result<Done, Error> {
        for _ in 0..TRIES {
            let read = match job.kind {
                Kind::File | Kind::Dir => self.open_and_read(dir, job, buffer),
                _ => self.look_at(dir, job),
            };
            match read {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => {}
                Err(error) => return Err(self.gone(&job.path(), error)),
            }
        }
        Err(Error::Changed(job.path()))
    }

    /// Hashes a regular file or a directory's header; none if it changed meanwhile.
    fn open_and_read(&self, dir: &OwnedFd, job: &Job, buffer: &mut [u8]) -> io::Result<Option<Done>> {
        let opened_at = Time::now();
        let name = if job.name.is_empty() { OsStr::new(".") } else { &job.name };
        let mut flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if job.kind == Kind::Dir {
            flags |= OFlags::DIRECTORY;
        }
        let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
        let raw = Stat::from(rustix::fs::fstat(&file)?);
        if raw.kind != job.kind {
            return Ok(None);
        }
        let mut xattrs = xattr::of_fd(&file)?;
        let no_xattrs = xattrs.is_empty();
        let stat = self.seen(job, raw, &mut xattrs)?;
        let mut hasher = FileHeader { stat: &stat, link: &[], xattrs: &xattrs }.hasher(self.flavor);
        // What the kernel refused to make is recorded on an empty regular file.
        if raw.kind == Kind::File && stat.kind == Kind::File && raw.size > 0 {
            let mut read = 0;
            loop {
                let count = file.read(buffer)?;
                hasher.update(&buffer[..count]);
                read += count as u64;
                if count == 0 || (read == raw.size && count < buffer.len()) {
                    break;
                }
                if let Some(cancel) = self.env.cancel {
                    cancel.check()?;
                }
            }
            if read != raw.size || !Stat::from(rustix::fs::fstat(&file)?).is_same_content(&raw) {
                return Ok(None);
            }
        }
        let digest = hasher.finish();
        let settled = settled_by(&raw, opened_at);
        if let Some(memo) = self.memo()
            && raw.kind == Kind::File
            && settled
        {
            memo.put(&MemoKey::of(&raw), Remembered { digest, no_xattrs });
        }
        Ok(Some(Done { id: job.id, digest, stat, settled, no_xattrs }))
    }

    /// Hashes what has no content: links, devices, pipes, sockets; none if it is not what the walk saw.
    fn look_at(&self, dir: &OwnedFd, job: &Job) -> io::Result<Option<Done>> {
        let raw = Stat::from(lstat_at(dir, &job.name)?);
        // The target of a link was read by the walk: it must be the same link still.
        let replaced = raw.kind == Kind::Symlink && job.stat.is_some_and(|seen| !seen.is_same_content(&raw));
        if raw.kind != job.kind || replaced {
            return Ok(None);
        }
        let mut xattrs = xattr::of_entry(dir, &job.name)?;
        let stat = self.seen(job, raw, &mut xattrs)?;
        let digest = FileHeader { stat: &stat, link: &job.link, xattrs: &xattrs }.hasher(self.flavor).finish();
        Ok(Some(Done { id: job.id, digest, stat, settled: false, no_xattrs: false }))
    }

    /// The metadata that counts: with owners reset in local sources, and with what was recorded in snapshots.
    fn seen(&self, job: &Job, raw: Stat, xattrs: &mut Xattrs) -> io::Result<Stat> {
        let mut stat = raw;
        if let Some(recall) = self.recall {
            recall.recall(&job.path(), &mut stat, xattrs)?;
        }
        if self.flavor == Flavor::Context {
            let owner = job.stat.map_or((0, 0), |stat| (stat.uid, stat.gid));
            (stat.uid, stat.gid) = owner;
            xattrs.retain(|name, _| !name.starts_with(b"com.apple."));
        }
        Ok(stat)
    }

    /// A file that the walk saw and that is not there now has changed; other failures are what they are.
    fn gone(&self, path: &Path, error: io::Error) -> Error {
        match error.downcast::<base::Cancelled>() {
            Ok(cancelled) => Error::Cancelled(cancelled),
            Err(error) if is_gone(&error) && self.flavor == Flavor::Context => Error::Changed(path.to_owned()),
            Err(error) => Error::io("read", path, error),
        }
    }
}

/// Whether a path does not lead any more to what was there: it was removed, or something else took its place.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}
