//! Mount points: made where the root has none, and removed again, as if nothing had been.
//!
//! A mount needs something to cover. What we make for that is no work of the step, so it must not end up in its
//! layer: afterwards it is removed where it is still empty, and directories keep the times that they had.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timestamps};
use rustix::io::Errno;
use sys::path::{Links, Root};

use crate::message::Stub;

/// What is to be mounted, and so what must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// Whether what we make is to be removed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// `/proc`, `/sys` and `/dev` stay, as upstream leaves them.
    All,
    /// The mount point goes, its parents stay.
    Parents,
    /// All of it goes.
    Nothing,
}

/// Opens what `path` leads to inside the root, making it where nothing is there.
pub(super) fn mount_point(
    root: &Root,
    path: &str,
    kind: Kind,
    keep: Keep,
    made: &mut Vec<Stub>,
) -> std::io::Result<OwnedFd> {
    match root.open_at(path, OFlags::PATH, Mode::empty(), Links::Follow) {
        Ok(fd) => return Ok(fd),
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NOTDIR)) => {}
        Err(error) => return Err(error),
    }
    let real = root.resolve(path, Links::Follow)?;
    let names: Vec<&OsStr> = real.iter().collect();
    let mut here = root.open_dir("", Links::Refuse)?;
    let mut walked = PathBuf::new();
    let mut parent_is_ours = false;
    for (at, name) in names.iter().enumerate() {
        let last = at + 1 == names.len();
        walked.push(name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let existing = match rustix::fs::openat(&here, *name, flags, Mode::empty()) {
            Ok(fd) => Some(fd),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno.into()),
        };
        if existing.is_none() {
            let before = (!parent_is_ours).then(|| rustix::fs::fstat(&here)).transpose()?;
            let mode = Mode::from_raw_mode(0o755);
            let exclusive = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let made_now = match last && kind == Kind::File {
                true => rustix::fs::openat(&here, *name, exclusive, mode).map(drop),
                false => rustix::fs::mkdirat(&here, *name, mode),
            };
            match made_now {
                Ok(()) => {
                    if let Some(before) = before {
                        restore_times(&here, &before)?;
                    }
                    parent_is_ours = true;
                    if keep == Keep::Nothing || keep == Keep::Parents && last {
                        made.push(Stub { path: walked.clone() });
                    }
                }
                // In a cache mount: another step was faster, and it is theirs.
                Err(Errno::EXIST) => parent_is_ours = false,
                Err(errno) => return Err(errno.into()),
            }
        }
        let flags = match last {
            true => OFlags::PATH,
            false => OFlags::RDONLY | OFlags::DIRECTORY,
        };
        here = rustix::fs::openat(&here, *name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    }
    Ok(here)
}

/// Makes the working directory of a step where it is missing, with its parents, for `uid` and `gid`; answers
/// with what it made.
pub(super) fn make_directories(root: &Root, path: &str, uid: u32, gid: u32) -> std::io::Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    if root.open_at(path, OFlags::PATH, Mode::empty(), Links::Follow).is_ok() {
        return Ok(made);
    }
    let real = root.resolve(path, Links::Follow)?;
    let mut here = root.open_dir("", Links::Refuse)?;
    let mut walked = PathBuf::new();
    for name in real.iter() {
        walked.push(name);
        match rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
                rustix::fs::chownat(&here, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                made.push(walked.clone());
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        here = rustix::fs::openat(&here, name, flags, Mode::empty())?;
    }
    Ok(made)
}

/// Removes the mount points that are still empty, the last made first. What cannot be removed stays.
pub(crate) fn remove_stubs(root: OwnedFd, stubs: &[Stub]) {
    let root = Root::from_fd(root, "/");
    for stub in stubs.iter().rev() {
        let _ = remove_stub(&root, &stub.path);
    }
}

fn remove_stub(root: &Root, path: &Path) -> std::io::Result<()> {
    let name: OsString = path.file_name().ok_or(Errno::INVAL)?.to_owned();
    let parent = root.open_dir(path.parent().unwrap_or(Path::new("")), Links::Refuse)?;
    let stat = rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
    let flags = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => AtFlags::REMOVEDIR,
        FileType::RegularFile if stat.st_size == 0 => AtFlags::empty(),
        _ => return Ok(()),
    };
    let before = rustix::fs::fstat(&parent)?;
    rustix::fs::unlinkat(&parent, &name, flags)?;
    restore_times(&parent, &before)
}

fn restore_times(dir: &OwnedFd, stat: &Stat) -> std::io::Result<()> {
    let time = |sec, nsec| rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps {
        last_access: time(stat.st_atime as _, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime as _, stat.st_mtime_nsec as _),
    };
    Ok(rustix::fs::futimens(dir.as_fd(), &times)?)
}
