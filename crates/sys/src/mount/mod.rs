//! File system views: what a snapshot looks like before somebody mounts it, and how it is mounted.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, StatVfsMountFlags};
use rustix::mount::{MountFlags, UnmountFlags};

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
        Access::ReadOnly => make_read_only(target),
    }
}

/// Makes the mount at `target` read-only, and where the kernel can (5.12), the mounts below it too.
pub fn make_read_only(target: &Path) -> Result<(), Error> {
    match crate::raw::mount_setattr_read_only(target) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => {}
        Err(errno) => return Err(Error::path("make read-only", target, errno)),
    }
    // A user namespace may not drop flags that its owner set, so they are all repeated.
    let error = |errno| Error::path("make read-only", target, errno);
    let now = rustix::fs::statvfs(target).map_err(error)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (have, flag) in [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        if now.contains(have) {
            flags |= flag;
        }
    }
    rustix::mount::mount_remount(target, flags, c"").map_err(error)
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
        let (path, mounted) = match view {
            FsView::Dir { path, .. } => (path, false),
            FsView::Overlay(overlay) => match (&overlay.lower[..], &overlay.upper) {
                ([only], None) => (only, false),
                _ => (&scratch.join(format!("m{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))), true),
            },
        };
        if mounted {
            rustix::fs::mkdir(path, Mode::RWXU).map_err(|errno| Error::path("create directory", path, errno))?;
            if let Err(error) = view.mount_at(path) {
                let _ = rustix::fs::rmdir(path);
                return Err(error);
            }
        }
        Ok(Mounted { path: path.clone(), mounted })
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
