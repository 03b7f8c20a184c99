//! What a step asked to have mounted: snapshots or parts of them, host files, memory, secrets.
//!
//! Every target is opened inside the root first and mounted on by its descriptor, so that a link which another
//! step swaps in meanwhile leads nowhere (CVE-2021-30465).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FsWord, Mode, OFlags};
use rustix::mount::MountFlags;
use sys::mount::{FsView, Restrict, attach, fd_path};
use sys::path::{Links, Root};

use super::stubs::{Keep, Kind, mount_point};
use crate::message::{Failure, Mount, Source, Stub};

/// `PROC_SUPER_MAGIC`
const PROC: FsWord = 0x9fa0;

/// The root under construction.
pub(super) struct Builder<'a> {
    pub(super) root: Root,
    /// Our directory, with empty ones to mount things on for a moment.
    pub(super) state: PathBuf,
    /// Mounts of snapshots and host files do not open device nodes.
    pub(super) no_devices: bool,
    /// Owners other than root cannot be given.
    pub(super) single_id: bool,
    pub(super) keep: Keep,
    /// What was made to be the working directory.
    pub(super) directories: Vec<PathBuf>,
    pub(super) made: Vec<Stub>,
    pub(super) files: &'a [&'a [u8]],
}

pub(super) fn setup(what: impl std::fmt::Display, error: impl std::error::Error) -> Failure {
    Failure::Setup(format!("{what}: {}", super::chain(&error)))
}

impl Builder<'_> {
    pub(super) fn mount(&mut self, mount: Mount) -> Result<(), Failure> {
        let target = format!("/{}", mount.target.trim_start_matches('/'));
        if Path::new(&target).components().count() <= 1 {
            return Err(Failure::Invalid(format!("cannot mount over the root: target `{}`", mount.target)));
        }
        match mount.source {
            Source::View { view, subpath, read_only } => self.mount_view(&target, view.into(), &subpath, read_only),
            Source::Bind { path, restrict } => {
                let kind = kind_of(&path).map_err(|error| missing(&path.to_string_lossy(), error))?;
                let point = self.open_target(&target, kind)?;
                self.attach(&path, &point, &target, Restrict::from_bits_truncate(restrict))
            }
            Source::Tmpfs { size } => {
                let made = self.made.len();
                let point = self.open_target(&target, Kind::Directory)?;
                let mut options: Vec<String> = size.map(|size| format!("size={size}")).into_iter().collect();
                // A directory that was there keeps who may do what in it; a new one is for everybody.
                if self.made.len() == made
                    && let Ok(stat) = rustix::fs::fstat(&point)
                {
                    options.push(format!("mode={:o}", stat.st_mode & 0o7777));
                }
                self.mount_new("tmpfs", &point, &target, MountFlags::NOSUID, &options.join(","))
            }
            Source::File { index, mode, .. } => {
                let point = self.open_target(&target, Kind::File)?;
                let file = self.state.join("files").join(index.to_string());
                let mut restrict = Restrict::READ_ONLY | Restrict::NO_SETUID | Restrict::NO_DEVICES;
                restrict.set(Restrict::NO_EXEC, mode & 0o111 == 0);
                attach(&file, point.as_fd(), restrict, &self.state.join("aside"))
                    .map_err(|error| setup(format_args!("cannot mount at `{target}`"), error))
            }
        }
    }

    fn mount_view(&mut self, target: &str, view: FsView, subpath: &str, read_only: bool) -> Result<(), Failure> {
        let whole = Path::new(subpath).components().all(|part| !matches!(part, std::path::Component::Normal(_)));
        let failed = |error: sys::Error| setup(format_args!("cannot mount at `{target}`"), error);
        let scratch = self.state.join("scratch");
        let read_only = read_only || view.is_read_only();
        let tree = match &view {
            FsView::Dir { path, .. } => path.clone(),
            FsView::Overlay(overlay) if overlay.upper.is_none() && overlay.lower.len() == 1 => overlay.lower[0].clone(),
            FsView::Overlay(_) => {
                // One on top of the other: unmounting costs milliseconds, and they all go with the old root.
                view.mount_at(&scratch).map_err(failed)?;
                scratch
            }
        };
        let root = Root::open(&tree).map_err(|error| setup(format_args!("cannot open `{}`", tree.display()), error))?;
        let source = root
            .open_at(if whole { "" } else { subpath }, OFlags::PATH, Mode::empty(), Links::Follow)
            .map_err(|error| missing(subpath, error))?;
        let kind = match rustix::fs::fstat(&source).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Directory) => Kind::Directory,
            _ => Kind::File,
        };
        let point = self.open_target(target, kind)?;
        let restrict = if read_only { Restrict::READ_ONLY } else { Restrict::empty() };
        self.attach(&fd_path(source.as_fd()), &point, target, restrict)
    }

    fn attach(&self, source: &Path, point: &OwnedFd, target: &str, restrict: Restrict) -> Result<(), Failure> {
        let mut restrict = restrict;
        restrict.set(Restrict::NO_DEVICES, self.no_devices || restrict.contains(Restrict::NO_DEVICES));
        attach(source, point.as_fd(), restrict, &self.state.join("aside"))
            .map_err(|error| setup(format_args!("cannot mount at `{target}`"), error))
    }

    /// Opens a mount point, made where missing.
    pub(super) fn open_target(&mut self, target: &str, kind: Kind) -> Result<OwnedFd, Failure> {
        self.adopt_directories(target);
        let point = mount_point(&self.root, target, kind, self.keep, &mut self.made)
            .map_err(|error| setup(format_args!("cannot make the mount point `{target}`"), error))?;
        // What lies there decides about the whole system (CVE-2019-16884).
        if rustix::fs::fstatfs(&point).is_ok_and(|stat| stat.f_type == PROC) {
            return Err(Failure::Invalid(format!("`{target}` cannot be mounted because it is inside /proc")));
        }
        let is_dir =
            rustix::fs::fstat(&point).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if is_dir != (kind == Kind::Directory) {
            let (source, there) = if is_dir { ("a file", "a directory") } else { ("a directory", "a file") };
            return Err(Failure::Invalid(format!("cannot mount {source} at `{target}`, which is {there}")));
        }
        Ok(point)
    }

    /// A mount point that is there only because it, or something in it, is the working directory, is ours as well.
    fn adopt_directories(&mut self, target: &str) {
        if self.directories.is_empty() {
            return;
        }
        let Ok(real) = self.root.resolve(target, Links::Follow) else { return };
        let keep = self.keep;
        for path in
            self.directories.extract_if(.., |made| *made == real || keep == Keep::Nothing && real.starts_with(made))
        {
            self.made.push(Stub { path });
        }
    }

    /// Mounts a new file system on a descriptor.
    pub(super) fn mount_new(
        &self,
        kind: &str,
        point: &OwnedFd,
        target: &str,
        flags: MountFlags,
        options: &str,
    ) -> Result<(), Failure> {
        let options = std::ffi::CString::new(options).unwrap_or_default();
        rustix::mount::mount(kind, fd_path(point.as_fd()), kind, flags, options.as_c_str())
            .map_err(|errno| setup(format_args!("cannot mount {kind} at `{target}`"), std::io::Error::from(errno)))
    }

    /// Writes the message's files to memory of this step alone.
    pub(super) fn write_files(&mut self, mounts: &[Mount]) -> Result<(), Failure> {
        let dir = self.state.join("files");
        let error = |errno: rustix::io::Errno| setup("cannot write files into memory", std::io::Error::from(errno));
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", &dir, "tmpfs", flags, c"mode=0700").map_err(error)?;
        for mount in mounts {
            let Source::File { index, uid, gid, mode } = mount.source else { continue };
            let Some(bytes) = self.files.get(index) else { continue };
            let write = || -> std::io::Result<()> {
                let mut file = File::create(dir.join(index.to_string()))?;
                file.write_all(bytes)?;
                if (uid, gid) != (0, 0) && !self.single_id {
                    std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
                }
                rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777))?;
                Ok(())
            };
            write().map_err(|error| setup(format_args!("cannot write the file of `{}`", mount.target), error))?;
        }
        Ok(())
    }
}

fn kind_of(path: &Path) -> std::io::Result<Kind> {
    Ok(if std::fs::metadata(path)?.is_dir() { Kind::Directory } else { Kind::File })
}

fn missing(path: &str, error: std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            Failure::Invalid(format!("failed to find `{path}` to mount: no such file or directory"))
        }
        _ => setup(format_args!("cannot open `{path}` to mount"), error),
    }
}
