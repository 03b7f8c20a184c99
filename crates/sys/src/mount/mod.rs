//! File system views: what a snapshot looks like before somebody mounts it, and how it is mounted.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::Error;

mod overlay;
#[cfg(test)]
mod tests;

pub use overlay::MAX_LAYERS;

/// How to see a snapshot as one tree.
///
/// A plain directory needs no mount at all; an overlay is mounted by whoever uses it, in a private mount
/// namespace, so that the mount dies with its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FsView {
    /// The tree is this directory.
    Dir {
        /// An absolute path.
        path: PathBuf,
        /// Nobody may write through this view.
        read_only: bool,
    },
    /// The tree is an overlay mount.
    Overlay(Overlay),
}

/// The parts of an overlay mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Lower directories, topmost first; never empty.
    pub lower: Vec<PathBuf>,
    /// Upper and work directory; none for a read-only view.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Mounted inside a user namespace: overlay keeps its marks in `user.overlay.*`.
    pub userxattr: bool,
    /// Skip syncs on the upper directory: its snapshot is thrown away after a crash anyway.
    pub volatile: bool,
}

impl FsView {
    /// Mounts the view at `target`, an existing directory (or file, where the view is one).
    ///
    /// Needs the right to mount in the caller's mount namespace. A directory is bound; a read-only overlay
    /// of a single layer, which overlayfs refuses, is that layer bound read-only.
    pub fn mount_at(&self, target: &Path) -> Result<(), Error> {
        match self {
            FsView::Dir { path, read_only } => bind(path, target, Access::read_only(*read_only)),
            FsView::Overlay(overlay) => match (&overlay.lower[..], &overlay.upper) {
                ([only], None) => bind(only, target, Access::ReadOnly),
                _ => overlay.mount_at(target),
            },
        }
    }

    /// Whether nobody can write through this view.
    pub fn is_read_only(&self) -> bool {
        match self {
            FsView::Dir { read_only, .. } => *read_only,
            FsView::Overlay(overlay) => overlay.upper.is_none(),
        }
    }
}

/// Whether a mount lets itself be written through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// As far as the file system below allows.
    ReadWrite,
    /// Not at all.
    ReadOnly,
}

impl Access {
    /// From a flag.
    pub fn read_only(read_only: bool) -> Access {
        if read_only { Access::ReadOnly } else { Access::ReadWrite }
    }
}

/// Binds `source`, and what is mounted below it, to `target`.
pub fn bind(source: &Path, target: &Path, access: Access) -> Result<(), Error> {
    rustix::mount::mount_bind_recursive(source, target).map_err(|errno| Error::path("bind", source, errno))?;
    match access {
        Access::ReadWrite => Ok(()),
        Access::ReadOnly => restrict(target, Restrict::READ_ONLY, Depth::Below),
    }
}

bitflags::bitflags! {
    /// What is not allowed on a mount.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Restrict: u64 {
        /// Writing.
        const READ_ONLY = libc::MOUNT_ATTR_RDONLY;
        /// Set-uid bits and file capabilities.
        const NO_SETUID = libc::MOUNT_ATTR_NOSUID;
        /// Opening device nodes.
        const NO_DEVICES = libc::MOUNT_ATTR_NODEV;
        /// Running programs.
        const NO_EXEC = libc::MOUNT_ATTR_NOEXEC;
    }
}

/// Which mounts a restriction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The one named.
    Top,
    /// The ones mounted below it too, where the kernel can (5.12).
    Below,
}

/// Restricts the mount at `target`.
pub fn restrict(target: &Path, restrict: Restrict, depth: Depth) -> Result<(), Error> {
    match crate::raw::mount_setattr(CWD, target, restrict.bits(), depth) {
        Ok(()) => return Ok(()),
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => {}
        Err(errno) => return Err(Error::path("restrict the mount at", target, errno)),
    }
    // A user namespace may not drop flags that its owner set, so they are all repeated.
    let error = |errno| Error::path("restrict the mount at", target, errno);
    let now = rustix::fs::statvfs(target).map_err(error)?.f_flag;
    let mut flags = MountFlags::BIND;
    for (have, want, flag) in [
        (StatVfsMountFlags::RDONLY, Restrict::READ_ONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, Restrict::NO_SETUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, Restrict::NO_DEVICES, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, Restrict::NO_EXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, Restrict::empty(), MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, Restrict::empty(), MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, Restrict::empty(), MountFlags::RELATIME),
    ] {
        if now.contains(have) || !want.is_empty() && restrict.contains(want) {
            flags |= flag;
        }
    }
    rustix::mount::mount_remount(target, flags, c"").map_err(error)
}

/// Binds `source`, and what is mounted below it, to an open directory or file, already restricted when it appears.
///
/// Nobody can lead it astray by links, because the target is open. `scratch` is an empty directory, with an empty file
/// `<scratch>.file` beside it, that only older kernels need, for a moment.
pub fn attach(source: &Path, target: BorrowedFd<'_>, restrict: Restrict, scratch: &Path) -> Result<(), Error> {
    let error = |errno| Error::path("bind", source, errno);
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    match rustix::mount::open_tree(CWD, source, clone) {
        Ok(tree) => {
            let restricted = match restrict.is_empty() {
                true => Ok(()),
                false => crate::raw::mount_setattr(tree.as_fd(), Path::new(""), restrict.bits(), Depth::Below),
            };
            match restricted {
                Ok(()) => {
                    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
                    return rustix::mount::move_mount(&tree, c"", target, c"", flags).map_err(error);
                }
                Err(Errno::NOSYS) => {}
                Err(errno) => return Err(error(errno)),
            }
        }
        Err(Errno::NOSYS | Errno::PERM) => {}
        Err(errno) => return Err(error(errno)),
    }
    // A mount keeps its flags when it moves, so the scratch directory, or file, is where it gets them.
    let is_dir = rustix::fs::stat(source).map_err(error)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let place = if is_dir { scratch.to_owned() } else { scratch.with_extension("file") };
    rustix::mount::mount_bind_recursive(source, &place).map_err(error)?;
    if !restrict.is_empty() {
        self::restrict(&place, restrict, Depth::Below)?;
    }
    let moved = rustix::mount::mount_move(&place, fd_path(target));
    if moved.is_err() {
        let _ = rustix::mount::unmount(&place, UnmountFlags::DETACH);
    }
    moved.map_err(error)
}

/// Our own program, opened such that nobody who gets hold of it through /proc can write to it (CVE-2019-5736).
///
/// Fails where the kernel has no detached mounts, or the program's file is not where it was.
pub fn read_only_program() -> Result<OwnedFd, Error> {
    let link = Path::new("/proc/self/exe");
    let path = std::fs::read_link(link).map_err(|error| Error::path("read", link, error))?;
    let error = |errno| Error::path("open", &path, errno);
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, &path, clone).map_err(error)?;
    let (ours, found) = (rustix::fs::stat(link).map_err(error)?, rustix::fs::fstat(&tree).map_err(error)?);
    if (ours.st_dev, ours.st_ino) != (found.st_dev, found.st_ino) {
        return Err(error(Errno::STALE));
    }
    crate::raw::mount_setattr(tree.as_fd(), Path::new(""), Restrict::READ_ONLY.bits(), Depth::Top).map_err(error)?;
    Ok(tree)
}

/// A path that leads to what a descriptor has open, while it is open.
pub fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// A view that can be read (and, where it allows, written) at a path, for as long as this lives.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    mounted: bool,
}

impl Mounted {
    /// Makes `view` reachable: a directory is where it is, an overlay gets mounted on a new directory in `scratch`.
    ///
    /// A read-only `Dir` is handed out as it is: the caller keeps the promise not to write.
    pub fn new(view: &FsView, scratch: &Path) -> Result<Mounted, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        match view {
            FsView::Dir { path, .. } => return Ok(Mounted { path: path.clone(), mounted: false }),
            FsView::Overlay(overlay) => {
                if let ([only], None) = (&overlay.lower[..], &overlay.upper) {
                    return Ok(Mounted { path: only.clone(), mounted: false });
                }
            }
        }
        let path = scratch.join(format!("m{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        rustix::fs::mkdir(&path, Mode::RWXU).map_err(|errno| Error::path("create directory", &path, errno))?;
        if let Err(error) = view.mount_at(&path) {
            let _ = rustix::fs::rmdir(&path);
            return Err(error);
        }
        let mounted = Mounted { path, mounted: true };
        // Steps make nodes of devices that they may not open. Neither do we.
        restrict(&mounted.path, Restrict::NO_DEVICES, Depth::Top)?;
        Ok(mounted)
    }

    /// Where the tree can be found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts now and says what went wrong. Dropping does the same in silence.
    pub fn unmount(mut self) -> Result<(), Error> {
        self.detach()
    }

    fn detach(&mut self) -> Result<(), Error> {
        if !std::mem::take(&mut self.mounted) {
            return Ok(());
        }
        let error = |errno| Error::path("unmount", &self.path, errno);
        rustix::mount::unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(error)?;
        rustix::fs::rmdir(&self.path).map_err(|errno| Error::path("remove directory", &self.path, errno))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.detach();
    }
}
