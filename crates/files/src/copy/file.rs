//! One file of a copy: created with its mode, written, given owner and times where they are not right already.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use base::Hasher;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use sys::path::lstat_at;

use super::content::{self, BUFFER};
use super::plan::{Shared, open_source_dir};
use super::source::Known;
use super::{CopyJob, source::Source};
use crate::checksum::{FileHeader, Flavor, Xattrs};
use crate::error::Error;
use crate::owner::Owner;
use crate::stat::{Kind, Stat};
use crate::target::{Chown, Refused, Wanted, shown, timestamps};
use crate::walk::child_path;
use crate::xattr;

/// Files of one directory, for one thread.
pub(super) struct Batch {
    pub(super) src_dir: Vec<u8>,
    pub(super) dst_dir: Vec<u8>,
    pub(super) files: Vec<FileJob>,
}

/// Anything but a directory.
pub(super) struct FileJob {
    pub(super) name: Vec<u8>,
    /// None if it keeps its name.
    pub(super) dst_name: Option<Vec<u8>>,
    pub(super) kind: Option<Kind>,
    pub(super) known: Option<Known>,
}

/// What a thread copies with.
pub(super) struct Hands<'a> {
    shared: &'a Shared<'a>,
    buffer: Vec<u8>,
}

/// What the kernel makes of a new file in a directory: mode after umask and default ACL, owner after set-group-id.
#[derive(Clone, Copy)]
struct Made {
    wanted_mode: u32,
    stat: Stat,
}

impl CopyJob<'_> {
    /// Who is to own the copy of a file.
    pub(super) fn owner_of(&self, stat: &Stat) -> Owner {
        self.action.owner.unwrap_or(Owner { uid: stat.uid, gid: stat.gid })
    }

    fn wanted(&self, stat: &Stat) -> Wanted {
        let times = self.action.timestamp.map_or((stat.atime, stat.mtime), |time| (time, time));
        Wanted {
            owner: Some(self.owner_of(stat)),
            mode: Some(self.action.mode.apply(stat.kind, stat.mode)),
            times: Some(times),
        }
    }
}

/// One file with all that is known of it.
struct One<'a> {
    src_dir: &'a OwnedFd,
    dst_dir: &'a OwnedFd,
    name: &'a OsStr,
    dst_name: &'a OsStr,
    src: Vec<u8>,
    dst: Vec<u8>,
    known: Option<Known>,
}

impl<'a> Hands<'a> {
    pub(super) fn new(shared: &'a Shared<'a>) -> Hands<'a> {
        Hands { shared, buffer: Vec::new() }
    }

    pub(super) fn batch(&mut self, batch: &Batch) -> Result<(), Error> {
        let job = self.shared.job;
        let src_dir = open_source_dir(job, &batch.src_dir)?;
        let dst_dir = job.target.open_dir(&batch.dst_dir)?;
        let mut made = None;
        for file in &batch.files {
            if let Some(cancel) = job.env.cancel {
                cancel.check()?;
            }
            let dst_name = file.dst_name.as_deref().unwrap_or(&file.name);
            let one = One {
                src_dir: &src_dir,
                dst_dir: &dst_dir,
                name: OsStr::from_bytes(&file.name),
                dst_name: OsStr::from_bytes(dst_name),
                src: child_path(&batch.src_dir, &file.name),
                dst: child_path(&batch.dst_dir, dst_name),
                known: file.known,
            };
            match file.kind {
                Some(Kind::File) => self.regular(&one, &mut made)?,
                _ => self.special(&one)?,
            }
        }
        Ok(())
    }

    fn regular(&mut self, one: &One<'_>, made: &mut Option<Made>) -> Result<(), Error> {
        let job = self.shared.job;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let source = rustix::fs::openat(one.src_dir, one.name, flags, Mode::empty());
        let source = File::from(source.map_err(|errno| one.source_failed(job.source, "open", errno.into()))?);
        let raw = match one.known {
            // It is asked below whether this still holds, when all is read.
            Some(known) if job.source.is_view() && known.stat.kind == Kind::File && known.stat.nlink == 1 => known.stat,
            _ => one.stat(job.source, &source)?,
        };
        if raw.kind != Kind::File || one.known.is_some_and(|known| !raw.is_same_content(&known.stat)) {
            return Err(Error::Changed(shown(&one.src)));
        }
        let mut xattrs = match one.known {
            Some(Known { no_xattrs: true, settled: true, .. }) => Xattrs::new(),
            _ => xattr::of_fd(&source).map_err(|error| one.source_failed(job.source, "read attributes of", error))?,
        };
        let stat = one.seen(job.source, raw, &mut xattrs)?;
        if raw.nlink > 1 && self.shared.link_to_first(&raw, &one.dst) {
            return Ok(());
        }
        if matches!(stat.kind, Kind::Char | Kind::Block) {
            return self.device(one, &stat, &xattrs);
        }
        let wanted = job.wanted(&stat);
        let mode = wanted.mode.unwrap_or(0o644);
        let file = create(job, one, mode)?;
        let like = match made.filter(|made| made.wanted_mode == mode) {
            Some(made) => made.stat,
            None => {
                let stat = rustix::fs::fstat(&file).map_err(|errno| Error::io("stat", shown(&one.dst), errno))?.into();
                made.insert(Made { wanted_mode: mode, stat }).stat
            }
        };
        // A digest that may have been taken just before an unseen change is checked against the bytes themselves.
        let mut hasher = one
            .known
            .filter(|known| !known.settled && known.digest.is_some())
            .map(|_| FileHeader { stat: &stat, link: &[], xattrs: &xattrs }.hasher(Flavor::Context));
        let copied = self.content(one, &source, &file, &raw, hasher.as_mut());
        // First, whether it is still the file that it was: then how reading it failed says nothing.
        if job.source.is_view() && !one.stat(job.source, &source)?.is_same_content(&raw) {
            return Err(Error::Changed(shown(&one.src)));
        }
        copied?;
        if let (Some(hasher), Some(digest)) = (hasher, one.known.and_then(|known| known.digest))
            && hasher.finish() != digest
        {
            return Err(Error::Changed(shown(&one.src)));
        }
        self.finish_regular(one, &file, &like, &wanted, &xattrs)?;
        let made = rustix::fs::fstat(&file).map_err(|errno| Error::io("stat", shown(&one.dst), errno))?;
        self.shared.count(&made);
        self.shared.files.fetch_add(1, Ordering::Relaxed);
        self.shared.bytes.fetch_add(raw.size, Ordering::Relaxed);
        Ok(())
    }

    fn content(
        &mut self,
        one: &One<'_>,
        source: &File,
        file: &File,
        raw: &Stat,
        hasher: Option<&mut Hasher>,
    ) -> Result<(), Error> {
        if raw.size == 0 {
            return Ok(());
        }
        self.buffer.resize(BUFFER, 0);
        let copied = content::copy(source, file, raw.size, &mut self.buffer, hasher, self.shared.job.env.cancel);
        match copied {
            Ok(copied) if copied == raw.size => Ok(()),
            Ok(_) => Err(Error::Changed(shown(&one.src))),
            Err(error) => match error.downcast::<base::Cancelled>() {
                Ok(cancelled) => Err(cancelled.into()),
                Err(error) => Err(Error::io("copy", shown(&one.dst), error)),
            },
        }
    }

    /// Sets what the kernel did not make right; `like` is what a new file here is.
    fn finish_regular(
        &self,
        one: &One<'_>,
        file: &File,
        like: &Stat,
        wanted: &Wanted,
        xattrs: &Xattrs,
    ) -> Result<(), Error> {
        let target = self.shared.job.target;
        let chown = target.chown(like, wanted, &one.dst, |uid, gid| rustix::fs::fchown(file, uid, gid))?;
        if let Some(mode) = wanted.mode
            // A write or a change of owner takes set-id bits away; a refusal leaves the file to us, which is one too.
            && (mode != like.mode || mode & 0o6000 != 0 && (chown != Chown::Needless || like.size == 0))
        {
            let set = rustix::fs::fchmod(file, Mode::from_raw_mode(mode));
            set.map_err(|errno| Error::io("change mode of", shown(&one.dst), errno))?;
        }
        target.set_xattrs(&one.dst, xattrs, |name, value| xattr::set_on_fd(file, name, value))?;
        if let Some(times) = wanted.times {
            let set = rustix::fs::futimens(file, &timestamps(times));
            set.map_err(|errno| Error::io("set times of", shown(&one.dst), errno))?;
        }
        Ok(())
    }

    /// Links, devices, pipes and sockets.
    fn special(&mut self, one: &One<'_>) -> Result<(), Error> {
        let job = self.shared.job;
        let raw = lstat_at(one.src_dir, one.name).map_err(|error| one.source_failed(job.source, "stat", error))?;
        let raw = Stat::from(raw);
        if one.known.is_some_and(|known| !raw.is_same_content(&known.stat)) || raw.kind == Kind::Dir {
            return Err(Error::Changed(shown(&one.src)));
        }
        let attributes = xattr::of_entry(one.src_dir, one.name);
        let mut xattrs = attributes.map_err(|error| one.source_failed(job.source, "read attributes of", error))?;
        let stat = one.seen(job.source, raw, &mut xattrs)?;
        if raw.nlink > 1 && self.shared.link_to_first(&raw, &one.dst) {
            return Ok(());
        }
        if stat.kind == Kind::Symlink { self.symlink(one, &stat, &xattrs) } else { self.device(one, &stat, &xattrs) }
    }

    fn symlink(&self, one: &One<'_>, stat: &Stat, xattrs: &Xattrs) -> Result<(), Error> {
        let job = self.shared.job;
        let link = rustix::fs::readlinkat(one.src_dir, one.name, Vec::new());
        let link = link.map_err(|errno| one.source_failed(job.source, "read link", errno.into()))?;
        if job.source.is_view() {
            let now = lstat_at(one.src_dir, one.name).map_err(|error| one.source_failed(job.source, "stat", error))?;
            if !Stat::from(now).is_same_content(stat) {
                return Err(Error::Changed(shown(&one.src)));
            }
        }
        place(job, one, "create link", || rustix::fs::symlinkat(&link, one.dst_dir, one.dst_name))?;
        self.finish_special(one, stat, xattrs)
    }

    /// Devices, pipes; an empty file for a socket.
    fn device(&self, one: &One<'_>, stat: &Stat, xattrs: &Xattrs) -> Result<(), Error> {
        let job = self.shared.job;
        let (kind, rdev) = match stat.kind {
            Kind::Char | Kind::Block => (stat.kind, stat.rdev),
            Kind::Socket => (Kind::File, 0),
            kind => (kind, 0),
        };
        let mode = Mode::from_raw_mode(stat.mode);
        let make = |kind: Kind, rdev| rustix::fs::mknodat(one.dst_dir, one.dst_name, kind.to_raw(), mode, rdev);
        let mut refused = None;
        place(job, one, "create device", || match make(kind, rdev) {
            Err(errno @ Errno::PERM) if rdev != 0 && job.target.recorder.is_some() => {
                refused = Some(errno);
                make(Kind::File, 0)
            }
            other => other,
        })?;
        if let Some(errno) = refused {
            job.target.record(&one.dst, Refused::Device { kind, rdev }, errno, "create device")?;
        }
        self.finish_special(one, stat, xattrs)
    }

    fn finish_special(&self, one: &One<'_>, stat: &Stat, xattrs: &Xattrs) -> Result<(), Error> {
        let job = self.shared.job;
        let wanted = job.wanted(stat);
        job.target
            .set_xattrs(&one.dst, xattrs, |name, value| xattr::set_on_entry(one.dst_dir, one.dst_name, name, value))?;
        if stat.kind == Kind::Symlink {
            job.target.finish_link(one.dst_dir, one.dst_name, &one.dst, &wanted)?;
        } else {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(one.dst_dir, one.dst_name, flags, Mode::empty());
            let fd = fd.map_err(|errno| Error::io("open", shown(&one.dst), errno))?;
            job.target.set_on_path_fd(&fd, &one.dst, &wanted)?;
        }
        let made = rustix::fs::statat(one.dst_dir, one.dst_name, AtFlags::SYMLINK_NOFOLLOW);
        self.shared.count(&made.map_err(|errno| Error::io("stat", shown(&one.dst), errno))?);
        self.shared.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl One<'_> {
    fn stat(&self, source: &Source<'_>, file: &File) -> Result<Stat, Error> {
        let stat = rustix::fs::fstat(file).map_err(|errno| self.source_failed(source, "stat", errno.into()))?;
        Ok(stat.into())
    }

    /// What the file is meant to be: with records in snapshots, of root in local sources.
    fn seen(&self, source: &Source<'_>, raw: Stat, xattrs: &mut Xattrs) -> Result<Stat, Error> {
        let mut stat = raw;
        if let Some(recall) = source.recall {
            let recalled = recall.recall(crate::lexical::to_path(&self.src), &mut stat, xattrs);
            recalled.map_err(|error| self.source_failed(source, "read records of", error))?;
        }
        if source.is_view() {
            let owner = self.known.map_or((0, 0), |known| (known.stat.uid, known.stat.gid));
            (stat.uid, stat.gid) = owner;
            xattrs.retain(|name, _| !name.starts_with(b"com.apple."));
        }
        Ok(stat)
    }

    /// In the user's directory, what is gone has changed.
    fn source_failed(&self, source: &Source<'_>, call: &'static str, error: io::Error) -> Error {
        source.failed(call, &self.src, error)
    }
}

fn create(job: &CopyJob<'_>, one: &One<'_>, mode: u32) -> Result<File, Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = None;
    place(job, one, "create", || {
        file = Some(rustix::fs::openat(one.dst_dir, one.dst_name, flags, Mode::from_raw_mode(mode))?);
        Ok(())
    })?;
    // `place` only succeeds once the call has.
    file.map(File::from).ok_or_else(|| Error::io("create", shown(&one.dst), Errno::NOENT))
}

/// Makes an entry; what is in its way goes first.
fn place(
    job: &CopyJob<'_>,
    one: &One<'_>,
    call: &'static str,
    mut make: impl FnMut() -> Result<(), Errno>,
) -> Result<(), Error> {
    let mut made = make();
    if made == Err(Errno::EXIST) {
        clear(job, one.dst_dir, one.dst_name, &one.dst)?;
        made = make();
    }
    made.map_err(|errno| Error::io(call, shown(&one.dst), errno))
}

/// Removes what is in the way of a file.
pub(super) fn clear(job: &CopyJob<'_>, dir: &OwnedFd, name: &OsStr, path: &[u8]) -> Result<(), Error> {
    let there = lstat_at(dir, name).map_err(|error| Error::io("stat", shown(path), error))?;
    if Stat::from(there).kind == Kind::Dir && !job.action.always_replace {
        return Err(Error::IsADirectory(shown(path)));
    }
    job.target.remove_all(dir, name, path)
}
