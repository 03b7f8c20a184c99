//! Mounting an overlay by whichever interface takes it.
//!
//! Since Linux 6.7 `fsconfig(lowerdir+)` takes one layer at a time, so neither the page that bounds mount(2)'s
//! options nor their escapes matter; a value is bounded to 255 bytes, though. Older kernels get one option
//! string. Where a path fits neither, the directory is opened and named by its descriptor: `/proc/self/fd/7`,
//! or just `7` seen from `/proc/self/fd`. The kernel resolves the names at once and never looks at them again.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::Overlay;
use crate::Error;

/// `OVL_MAX_STACK` of the kernel.
pub const MAX_LAYERS: usize = 500;
/// fsconfig(2) copies at most this many bytes of a value, its NUL included.
const MAX_VALUE: usize = 256;
/// mount(2) copies one page of options, its NUL included.
const MAX_OPTIONS: usize = 4096;
/// The open files of this process, by number.
const DESCRIPTORS: &str = "/proc/self/fd";

impl Overlay {
    /// Mounts it at `target`.
    pub(super) fn mount_at(&self, target: &Path) -> Result<(), Error> {
        let count = self.lower.len();
        if count == 0 {
            return Err(Error::NoLayers { path: target.to_owned() });
        }
        if count > MAX_LAYERS {
            return Err(Error::TooManyLayers { count, max: MAX_LAYERS });
        }
        if let Some((_, work)) = &self.upper {
            // A volatile mount leaves this mark, and the kernel refuses work directories that carry it. Whoever
            // hands us the pair vouches for it: after a crash the snapshot is dropped, not mounted again.
            let mark = work.join("work/incompat/volatile");
            if rustix::fs::unlinkat(CWD, mark.join("dirty"), AtFlags::empty()).is_ok() {
                let _ = rustix::fs::unlinkat(CWD, mark, AtFlags::REMOVEDIR);
            }
        }
        let result = match self.try_mount(target, self.volatile) {
            // Before Linux 5.10 `volatile` is an unknown option.
            Err(Errno::INVAL) if self.volatile => self.try_mount(target, false),
            result => result,
        };
        result.map_err(|errno| Error::path("mount an overlay at", target, errno))
    }

    fn try_mount(&self, target: &Path, volatile: bool) -> Result<(), Errno> {
        if appends_layers() {
            match self.by_fsconfig(target, volatile) {
                // A seccomp profile that knows mount(2) but not the newer calls.
                Err(Refusal::NoInterface) => {}
                Err(Refusal::Errno(errno)) => return Err(errno),
                Ok(()) => return Ok(()),
            }
        }
        self.by_options(target, volatile)
    }

    pub(super) fn by_options(&self, target: &Path, volatile: bool) -> Result<(), Errno> {
        let plain = Names::plain(self);
        let options = self.options(&plain, volatile);
        if options.len() < MAX_OPTIONS && plain.all().all(needs_no_escape) {
            return mount_options(target, &options);
        }
        let opened = plain.opened("", |_| true)?;
        let options = self.options(&opened.names, volatile);
        if options.len() >= MAX_OPTIONS {
            return Err(Errno::NAMETOOLONG);
        }
        let target = absolute(target)?;
        // Other threads share the working directory, so this one takes a copy of its own first.
        let before = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        crate::ns::own_working_directory()?;
        rustix::process::chdir(DESCRIPTORS)?;
        let result = mount_options(&target, &options);
        rustix::process::fchdir(before)?;
        result
    }

    fn by_fsconfig(&self, target: &Path, volatile: bool) -> Result<(), Refusal> {
        let fs = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
            Err(Errno::NOSYS | Errno::PERM) => return Err(Refusal::NoInterface),
            result => result?,
        };
        let opened = Names::plain(self).opened("/proc/self/fd/", |path| !fits_value(path))?;
        self.configure(fs.as_fd(), &opened.names, volatile)?;
        let attrs = if self.upper.is_none() { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        let mount: OwnedFd = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs)?;
        // As mount(2): a link, `/proc/self/fd/7` for one, stands for what it leads to.
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
        Ok(move_mount(&mount, c"", CWD, target, flags)?)
    }

    fn configure(&self, fs: BorrowedFd<'_>, names: &Names, volatile: bool) -> Result<(), Errno> {
        fsconfig_set_string(fs, "source", "overlay")?;
        for lower in &names.lower {
            fsconfig_set_string(fs, "lowerdir+", lower.as_path())?;
        }
        if let Some((upper, work)) = &names.upper {
            fsconfig_set_string(fs, "upperdir", upper.as_path())?;
            fsconfig_set_string(fs, "workdir", work.as_path())?;
        }
        for (flag, value) in self.features(volatile) {
            match value {
                Some(value) => fsconfig_set_string(fs, flag, value)?,
                None => fsconfig_set_flag(fs, flag)?,
            }
        }
        fsconfig_create(fs)
    }

    /// What is asked of the driver beside the directories. `userxattr` implies the others, and refuses them.
    fn features(&self, volatile: bool) -> Vec<(&'static str, Option<&'static str>)> {
        let mut features = match self.userxattr {
            true => vec![("userxattr", None)],
            false => vec![("index", Some("off")), ("redirect_dir", Some("off")), ("metacopy", Some("off"))],
        };
        if volatile && self.upper.is_some() {
            features.push(("volatile", None));
        }
        features
    }

    fn options(&self, names: &Names, volatile: bool) -> Vec<u8> {
        let mut options = b"lowerdir=".to_vec();
        for (at, lower) in names.lower.iter().enumerate() {
            if at > 0 {
                options.push(b':');
            }
            options.extend_from_slice(lower.as_os_str().as_bytes());
        }
        if let Some((upper, work)) = &names.upper {
            for (key, dir) in [(&b",upperdir="[..], upper), (b",workdir=", work)] {
                options.extend_from_slice(key);
                options.extend_from_slice(dir.as_os_str().as_bytes());
            }
        }
        for (key, value) in self.features(volatile) {
            options.push(b',');
            options.extend_from_slice(key.as_bytes());
            if let Some(value) = value {
                options.push(b'=');
                options.extend_from_slice(value.as_bytes());
            }
        }
        options
    }
}

enum Refusal {
    NoInterface,
    Errno(Errno),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal::Errno(errno)
    }
}

/// The directories by the names that the kernel is told.
struct Names {
    lower: Vec<PathBuf>,
    upper: Option<(PathBuf, PathBuf)>,
}

impl Names {
    fn plain(overlay: &Overlay) -> Names {
        Names { lower: overlay.lower.clone(), upper: overlay.upper.clone() }
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        let upper = self.upper.iter().flat_map(|(upper, work)| [upper, work]);
        self.lower.iter().chain(upper).map(PathBuf::as_path)
    }

    /// Opens the directories that `which` picks and names them by `prefix` and descriptor.
    fn opened(mut self, prefix: &str, which: impl Fn(&Path) -> bool) -> Result<Opened, Errno> {
        let mut fds = Vec::new();
        let upper = self.upper.iter_mut().flat_map(|(upper, work)| [upper, work]);
        for name in self.lower.iter_mut().chain(upper).filter(|name| which(name)) {
            let fd = rustix::fs::open(&*name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            *name = format!("{prefix}{}", fd.as_raw_fd()).into();
            fds.push(fd);
        }
        Ok(Opened { names: self, _fds: fds })
    }
}

/// Names that hold while their descriptors are open.
struct Opened {
    names: Names,
    _fds: Vec<OwnedFd>,
}

fn absolute(path: &Path) -> Result<PathBuf, Errno> {
    std::path::absolute(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

/// fsconfig takes the path as it is. A backslash is an escape in upper and work directories only, but is
/// avoided everywhere.
fn fits_value(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.len() < MAX_VALUE && !bytes.contains(&b'\\')
}

fn needs_no_escape(path: &Path) -> bool {
    !path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b'\\' | b':' | b','))
}

fn mount_options(target: &Path, options: &[u8]) -> Result<(), Errno> {
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())
}

/// Whether overlayfs knows `lowerdir+`. Asked of the version, because older kernels say only `EINVAL`.
fn appends_layers() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let uname = rustix::system::uname();
        kernel_version(&uname.release().to_string_lossy()).is_some_and(|version| version >= (6, 7))
    })
}

/// `6.18.44-fc` is (6, 18).
pub(super) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
