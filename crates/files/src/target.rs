//! A tree that is written to: making directories, setting metadata, removing what is in the way.
//!
//! Everything happens relative to directory descriptors that were opened inside the root without following links.
//! Owners, modes and times are only set where they differ from what the kernel made.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timestamps, Uid};
use rustix::io::Errno;
use sys::path::{Links, Root, lstat_at};

use crate::checksum::Xattrs;
use crate::error::Error;
use crate::lexical;
use crate::owner::Owner;
use crate::stat::{Kind, Stat, Time};
use crate::walk::{MAX_DEPTH, child_path, list, open_dir_at};
use crate::xattr::{self, has_default_list};

/// Something that the kernel refuses to an ordinary user or in a namespace with a single id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused<'a> {
    /// Another owner.
    Owner {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// A device; an empty regular file stands for it.
    Device {
        /// [`Kind::Char`] or [`Kind::Block`].
        kind: Kind,
        /// Which.
        rdev: u64,
    },
    /// An extended attribute, such as `security.capability`.
    Xattr {
        /// Its name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
}

/// Keeps what the kernel refused, so that layers come out right all the same. [`Recall`](crate::checksum::Recall) is
/// its other half.
pub trait Recorder: Sync {
    /// Called once the file at `path` (relative to the root of the target) is there, from any thread.
    fn refused(&self, path: &Path, what: Refused<'_>) -> io::Result<()>;

    /// Called when the owner of what may have been there before (not a link) was set after all.
    fn owned(&self, path: &Path) -> io::Result<()>;
}

/// Where a file op writes.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The tree.
    pub root: &'a Root,
    /// Who keeps what the kernel refuses; without one, a refusal is an error.
    pub recorder: Option<&'a dyn Recorder>,
}

/// What a file or directory is to become.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) owner: Option<Owner>,
    pub(crate) mode: Option<u32>,
    /// Access and modification time.
    pub(crate) times: Option<(Time, Time)>,
}

/// What a change of owner came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chown {
    Needless,
    Done,
    /// And recorded.
    Refused,
}

impl<'a> Target<'a> {
    /// A target without a recorder.
    pub fn new(root: &'a Root) -> Target<'a> {
        Target { root, recorder: None }
    }

    /// Follows the links of a path that need not be there; relative to the root.
    pub(crate) fn resolve(&self, path: &[u8], links: Links) -> Result<Vec<u8>, Error> {
        let resolved = self.root.resolve(lexical::to_path(path), links);
        Ok(lexical::to_bytes(&resolved.map_err(|error| Error::lookup(lexical::to_path(path), error))?).to_vec())
    }

    /// Opens a directory that is named without links.
    pub(crate) fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let opened = self.root.open_at(lexical::to_path(path), flags, Mode::empty(), Links::Refuse);
        opened.map_err(|source| Error::io("open", shown(path), source))
    }

    /// What is at a path that is named without links; none if nothing is.
    pub(crate) fn stat(&self, path: &[u8]) -> Result<Option<Stat>, Error> {
        // A link is not followed, but may be what is there.
        let found = if path.is_empty() {
            self.root.stat("", Links::Refuse)
        } else {
            self.root.parent(lexical::to_path(path), Links::Refuse).and_then(|(dir, name)| lstat_at(dir, name))
        };
        match found {
            Ok(stat) => Ok(Some(stat.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("stat", shown(path), error)),
        }
    }

    /// Makes a directory and those above it that are missing; tells which were made, outermost first.
    pub(crate) fn make_dirs(&self, path: &[u8], wanted: &Wanted) -> Result<Vec<Vec<u8>>, Error> {
        if let Some(stat) = self.stat(path)? {
            return if stat.kind == Kind::Dir { Ok(Vec::new()) } else { Err(not_dir(path)) };
        }
        let mut made = Vec::new();
        let mut here = self.open_dir(b"")?;
        let mut at: Vec<u8> = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            at = child_path(&at, name);
            let name = OsStr::from_bytes(name);
            match rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(wanted.mode.unwrap_or(0o755))) {
                Ok(()) => {
                    self.finish_new_dir(&here, name, &at, wanted)?;
                    made.push(at.clone());
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io("create directory", shown(&at), errno)),
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            here = rustix::fs::openat(&here, name, flags, Mode::empty()).map_err(|errno| match errno {
                Errno::NOTDIR => not_dir(&at),
                errno => Error::io("open", shown(&at), errno),
            })?;
        }
        Ok(made)
    }

    /// Sets the metadata of a directory that was made just now. What it has from the one above stays, as if our umask were 0: a
    /// set-group-id bit, and a mode that default access control lists led to.
    pub(crate) fn finish_new_dir(
        &self,
        parent: impl AsFd,
        name: &OsStr,
        path: &[u8],
        wanted: &Wanted,
    ) -> Result<(), Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(parent, name, flags, Mode::empty());
        let dir = dir.map_err(|errno| Error::io("open", shown(path), errno))?;
        let made = Stat::from(rustix::fs::fstat(&dir).map_err(|errno| Error::io("stat", shown(path), errno))?);
        let mode = wanted.mode.map(|mode| match made.mode & 0o777 == mode || has_default_list(&dir) {
            true => made.mode,
            false => made.mode & 0o7000 | mode,
        });
        self.set_on_path_fd(&dir, path, &Wanted { mode, ..*wanted })
    }

    /// Sets metadata of what an `O_PATH` descriptor stands for; not of links.
    pub(crate) fn set_on_path_fd(&self, fd: &OwnedFd, path: &[u8], wanted: &Wanted) -> Result<(), Error> {
        let now = Stat::from(rustix::fs::fstat(fd).map_err(|errno| Error::io("stat", shown(path), errno))?);
        let chown =
            self.chown(&now, wanted, path, |uid, gid| rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH))?;
        if let (Some(recorder), Some(_)) = (self.recorder, wanted.owner)
            && chown != Chown::Refused
        {
            let forgotten = recorder.owned(lexical::to_path(path));
            forgotten.map_err(|source| Error::io("forget the earlier owner of", shown(path), source))?;
        }
        let reached = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if let Some(mode) = wanted.mode
            && (mode != now.mode || chown != Chown::Needless && mode & 0o6000 != 0)
        {
            let set = rustix::fs::chmodat(CWD, &reached, Mode::from_raw_mode(mode), AtFlags::empty());
            set.map_err(|errno| Error::io("change mode of", shown(path), errno))?;
        }
        if let Some(times) = wanted.times {
            let set = rustix::fs::utimensat(CWD, &reached, &timestamps(times), AtFlags::empty());
            set.map_err(|errno| Error::io("set times of", shown(path), errno))?;
        }
        Ok(())
    }

    /// Sets owner and times of a link.
    pub(crate) fn finish_link(&self, dir: &OwnedFd, name: &OsStr, path: &[u8], wanted: &Wanted) -> Result<(), Error> {
        if wanted.owner.is_some() {
            let now = lstat_at(dir, name).map_err(|error| Error::io("stat", shown(path), error))?;
            self.chown(&now.into(), wanted, path, |uid, gid| {
                rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            })?;
        }
        if let Some(times) = wanted.times {
            let set = rustix::fs::utimensat(dir, name, &timestamps(times), AtFlags::SYMLINK_NOFOLLOW);
            set.map_err(|errno| Error::io("set times of", shown(path), errno))?;
        }
        Ok(())
    }

    /// Changes the owner if it is not the wanted one yet, and records what the kernel refuses.
    pub(crate) fn chown(
        &self,
        now: &Stat,
        wanted: &Wanted,
        path: &[u8],
        call: impl Fn(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
    ) -> Result<Chown, Error> {
        let Some(Owner { uid, gid }) = wanted.owner else { return Ok(Chown::Needless) };
        if (now.uid, now.gid) == (uid, gid) {
            return Ok(Chown::Needless);
        }
        match call(Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
            Ok(()) => Ok(Chown::Done),
            // EINVAL: the id has no place in the namespace.
            Err(errno @ (Errno::PERM | Errno::INVAL)) => {
                self.record(path, Refused::Owner { uid, gid }, errno, "change owner of")?;
                Ok(Chown::Refused)
            }
            Err(errno) => Err(Error::io("change owner of", shown(path), errno)),
        }
    }

    /// Hands a refusal to the recorder; without one it is an error.
    pub(crate) fn record(&self, path: &[u8], what: Refused<'_>, errno: Errno, call: &'static str) -> Result<(), Error> {
        match self.recorder {
            Some(recorder) => {
                let recorded = recorder.refused(lexical::to_path(path), what);
                recorded.map_err(|source| Error::io("record what the kernel refused for", shown(path), source))
            }
            None => Err(Error::io(call, shown(path), errno)),
        }
    }

    /// Copies attributes as far as they can be; only those that decide what a file may do are worth a record.
    pub(crate) fn set_xattrs(
        &self,
        path: &[u8],
        xattrs: &Xattrs,
        set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>,
    ) -> Result<(), Error> {
        for (name, value) in xattrs {
            if let Err(errno) = set(name, value)
                && matches!(errno, Errno::PERM | Errno::NOTSUP)
                && name == b"security.capability"
                && self.recorder.is_some()
            {
                self.record(path, Refused::Xattr { name, value }, errno, "set attribute of")?;
            }
        }
        Ok(())
    }

    /// [`set_xattrs`](Self::set_xattrs) for a directory by its path.
    pub(crate) fn set_dir_xattrs(&self, path: &[u8], xattrs: &Xattrs) -> Result<(), Error> {
        if xattrs.is_empty() {
            return Ok(());
        }
        let dir = self.root.open_dir(lexical::to_path(path), Links::Refuse);
        let dir = dir.map_err(|source| Error::io("open", shown(path), source))?;
        self.set_xattrs(path, xattrs, |name, value| xattr::set_on_fd(&dir, name, value))
    }

    /// Removes whatever is at a place, with all that is in it; nothing there is fine.
    pub(crate) fn remove_all(&self, dir: impl AsFd, name: &OsStr, path: &[u8]) -> Result<(), Error> {
        match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(Error::io("remove", shown(path), errno)),
        }
        remove_dir(dir, name, path, 0)
    }
}

fn remove_dir(parent: impl AsFd, name: &OsStr, path: &[u8], depth: usize) -> Result<(), Error> {
    let failed = |errno| Error::io("remove", shown(path), errno);
    if depth > MAX_DEPTH / 2 {
        return Err(Error::TooDeep(shown(path)));
    }
    let dir = match open_dir_at(&parent, name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    for (entry, kind) in list(&dir, path)? {
        let below = child_path(path, entry.as_bytes());
        if kind != Some(Kind::Dir) {
            match rustix::fs::unlinkat(&dir, &entry, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {}
                Err(errno) => return Err(Error::io("remove", shown(&below), errno)),
            }
        }
        remove_dir(&dir, &entry, &below, depth + 1)?;
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed(errno)),
    }
}

/// Times for `utimensat`.
pub(crate) fn timestamps((access, modification): (Time, Time)) -> Timestamps {
    Timestamps { last_access: access.to_timespec(), last_modification: modification.to_timespec() }
}

/// A path for people: absolute in its root.
pub(crate) fn shown(path: &[u8]) -> PathBuf {
    lexical::to_path(&lexical::absolute(path)).to_owned()
}

fn not_dir(path: &[u8]) -> Error {
    Error::io("create directory", shown(path), Errno::NOTDIR)
}
