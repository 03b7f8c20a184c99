//! Paths inside a root: every look-up stays below one directory, whatever the links in that tree say.
//!
//! A [`Root`] is an open directory. Absolute paths and absolute link targets start at it, `..` at the top stays at the
//! top, and links of procfs that lead out of any tree are refused: what `chroot` would give, without its rights. The
//! kernel does the walk (`openat2` with `RESOLVE_IN_ROOT`), so that nobody can swap a directory for a link between a
//! check and its use. Where the call is missing or filtered (`ENOSYS`, `EPERM` of old seccomp profiles), the walk is
//! made component by component on directory descriptors, with the same result: `..` goes back to the descriptor that
//! we came from, never to whatever the parent may be by now.
//!
//! [`Root::resolve`] answers with a path, for callers that go on to create what is not there yet. Between its answer
//! and its use the tree may change, so use it with [`Links::Refuse`]: a link that appeared meanwhile is then an error.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// How many links one look-up may follow; the kernel's own limit.
const MAX_LINKS: usize = 40;
/// How many links [`Root::resolve`] follows; what BuildKit allows.
const MAX_RESOLVED_LINKS: usize = 255;
/// How often a look-up is tried again that met a rename beside it.
const MAX_TRIES: usize = 64;

/// What a look-up does with symbolic links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Follow all of them, inside the root.
    Follow,
    /// Follow those on the way, but take the last component for what it is.
    FollowParents,
    /// Fail with `ELOOP` on any link, the last component included.
    Refuse,
}

/// A directory that no look-up leaves.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    path: PathBuf,
    openat2: AtomicBool,
}

impl Root {
    /// Opens a directory as a root. Links in `path` itself are followed: the caller vouches for it.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Root> {
        let path = path.as_ref();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Root::from_fd(dir, path))
    }

    /// Takes an open directory; `path` only serves messages.
    pub fn from_fd(dir: OwnedFd, path: impl Into<PathBuf>) -> Root {
        Root { dir, path: path.into(), openat2: AtomicBool::new(true) }
    }

    /// Where the root was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory itself; it may be an `O_PATH` descriptor.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Uses the component walk even where the kernel has `openat2`.
    pub fn without_openat2(self) -> Root {
        self.openat2.store(false, Ordering::Relaxed);
        self
    }

    /// Opens `path` inside the root. `O_CLOEXEC` is added; `mode` counts when `flags` create.
    pub fn open_at(&self, path: impl AsRef<Path>, flags: OFlags, mode: Mode, links: Links) -> io::Result<OwnedFd> {
        let path = path.as_ref();
        let flags = flags | OFlags::CLOEXEC;
        if self.openat2.load(Ordering::Relaxed) {
            match self.ask_kernel(path, flags, mode, links) {
                Err(Errno::NOSYS | Errno::PERM) => self.refused_by_kernel(path, flags, mode, links),
                other => Ok(other?),
            }
        } else {
            Ok(self.walk(path, flags, mode, links)?)
        }
    }

    /// Opens a directory for reading or, with `O_PATH`, as a base for further calls.
    pub fn open_dir(&self, path: impl AsRef<Path>, links: Links) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty(), links)
    }

    /// Opens a regular file for reading. What it is is asked before it is opened: trees hold nodes that steps and clients made,
    /// and whoever may open the device of such a node need not be who made it. Anything else is `EISDIR` or `InvalidInput`.
    pub fn open_file(&self, path: impl AsRef<Path>, links: Links) -> io::Result<File> {
        let found = self.open_at(path, OFlags::PATH, Mode::empty(), links)?;
        match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
        File::open(crate::mount::fd_path(found.as_fd()))
    }

    /// What `path` is, following all links (`Links::Follow`) or not the last one.
    pub fn stat(&self, path: impl AsRef<Path>, links: Links) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(self.open_at(path, OFlags::PATH, Mode::empty(), links)?)?)
    }

    /// The target of the link at `path`.
    pub fn read_link(&self, path: impl AsRef<Path>) -> io::Result<OsString> {
        let link = self.open_at(path, OFlags::PATH, Mode::empty(), Links::FollowParents)?;
        Ok(link_target(&link)?)
    }

    /// Opens the directory that holds `path` (as `O_PATH`) and names the entry in it.
    ///
    /// Fails with `EINVAL` for paths that end in no name (`/`, `..`).
    pub fn parent(&self, path: impl AsRef<Path>, links: Links) -> io::Result<(OwnedFd, OsString)> {
        let path = path.as_ref();
        let name = path.file_name().ok_or(Errno::INVAL)?.to_owned();
        let parent = path.parent().unwrap_or(Path::new(""));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let links = if links == Links::Refuse { Links::Refuse } else { Links::Follow };
        Ok((self.open_at(parent, flags, Mode::empty(), links)?, name))
    }

    /// Follows the links of a path that may not exist yet (`realpath -m` inside the root).
    ///
    /// What is missing is taken as named. The answer is relative to the root, without links, `.` and `..`, and
    /// empty for the root itself.
    pub fn resolve(&self, path: impl AsRef<Path>, links: Links) -> io::Result<PathBuf> {
        let mut walk = LenientWalk::new(self)?;
        let mut todo = components(path.as_ref().as_os_str());
        let mut followed = 0;
        while let Some(name) = todo.pop_front() {
            let last = todo.is_empty();
            let Some(target) = walk.step(&name, last && links != Links::Follow)? else { continue };
            followed += 1;
            if links == Links::Refuse || followed > MAX_RESOLVED_LINKS {
                return Err(Errno::LOOP.into());
            }
            if target.as_bytes().starts_with(b"/") {
                walk.restart();
            }
            let mut expanded = components(&target);
            expanded.append(&mut todo);
            todo = expanded;
        }
        Ok(walk.names.iter().collect())
    }

    fn ask_kernel(&self, path: &Path, flags: OFlags, mode: Mode, links: Links) -> Result<OwnedFd, Errno> {
        let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut flags = flags;
        match links {
            Links::Follow => {}
            Links::FollowParents => flags |= OFlags::NOFOLLOW,
            Links::Refuse => resolve |= ResolveFlags::NO_SYMLINKS,
        }
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.dir, path, flags, mode, resolve) {
                // A rename beside the walk: the kernel cannot say whether `..` stayed inside.
                Err(Errno::AGAIN) if tries < MAX_TRIES => tries += 1,
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// `EPERM` comes from a filter or from the file itself: the walk tells which.
    fn refused_by_kernel(&self, path: &Path, flags: OFlags, mode: Mode, links: Links) -> io::Result<OwnedFd> {
        let opened = self.walk(path, flags, mode, links)?;
        let probe = self.ask_kernel(Path::new("."), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), Links::Follow);
        if probe.is_err() {
            self.openat2.store(false, Ordering::Relaxed);
        }
        Ok(opened)
    }

    fn walk(&self, path: &Path, flags: OFlags, mode: Mode, links: Links) -> Result<OwnedFd, Errno> {
        let mut above: Vec<OwnedFd> = Vec::new();
        let mut todo = components(path.as_os_str());
        let mut followed = 0;
        let mut want_dir = wants_directory(path);
        loop {
            let here = above.last().unwrap_or(&self.dir);
            let Some(name) = todo.pop_front() else {
                return rustix::fs::openat(here, ".", flags & !OFlags::CREATE & !OFlags::EXCL, Mode::empty());
            };
            if name == ".." {
                above.pop();
                continue;
            }
            let last = todo.is_empty();
            let opened = if last {
                let flags = if want_dir { flags | OFlags::DIRECTORY } else { flags };
                rustix::fs::openat(here, &name, flags | OFlags::NOFOLLOW, mode)
            } else {
                rustix::fs::openat(here, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            };
            let target = match opened {
                // With O_PATH a link opens; without, it is ELOOP, or ENOTDIR when a directory is wanted.
                Ok(fd) if last && !flags.contains(OFlags::PATH) => return Ok(fd),
                Ok(fd) => {
                    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
                    if kind == FileType::Symlink {
                        if last && links == Links::FollowParents && !want_dir {
                            return Ok(fd);
                        }
                        link_target(&fd)?
                    } else if last {
                        return Ok(fd);
                    } else if kind == FileType::Directory {
                        above.push(fd);
                        continue;
                    } else {
                        return Err(Errno::NOTDIR);
                    }
                }
                Err(Errno::LOOP | Errno::NOTDIR | Errno::EXIST) if last && !flags.contains(OFlags::EXCL) => {
                    match read_link_at(here, &name) {
                        Ok(target) if links == Links::Follow || links == Links::FollowParents && want_dir => target,
                        Ok(_) => return Err(Errno::LOOP),
                        Err(_) => return opened,
                    }
                }
                Err(errno) => return Err(errno),
            };
            followed += 1;
            if links == Links::Refuse || followed > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            if target.as_bytes().is_empty() {
                return Err(Errno::NOENT);
            }
            want_dir |= todo.is_empty() && wants_directory(Path::new(&target));
            if target.as_bytes().starts_with(b"/") {
                above.clear();
            }
            let mut expanded = components(&target);
            expanded.append(&mut todo);
            todo = expanded;
        }
    }
}

/// Walks down while things exist, then only counts names.
struct LenientWalk<'a> {
    root: &'a Root,
    /// The directories of `names` that exist, outermost first.
    dirs: Vec<OwnedFd>,
    names: Vec<OsString>,
}

impl<'a> LenientWalk<'a> {
    fn new(root: &'a Root) -> io::Result<Self> {
        Ok(LenientWalk { root, dirs: Vec::new(), names: Vec::new() })
    }

    fn restart(&mut self) {
        self.dirs.clear();
        self.names.clear();
    }

    /// Goes one name further, or gives the target of the link that stands there.
    fn step(&mut self, name: &OsStr, keep_link: bool) -> Result<Option<OsString>, Errno> {
        if name == ".." {
            self.names.pop();
            self.dirs.truncate(self.names.len());
            return Ok(None);
        }
        if self.dirs.len() == self.names.len() {
            let here = self.dirs.last().unwrap_or(&self.root.dir);
            match rustix::fs::openat(here, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
                Ok(fd) => {
                    let link = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) == FileType::Symlink;
                    if link && !keep_link {
                        return link_target(&fd).map(Some);
                    }
                    self.dirs.push(fd);
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.names.push(name.to_owned());
        Ok(None)
    }
}

/// The names of a path, without empty ones and `.`.
fn components(path: &OsStr) -> VecDeque<OsString> {
    let names = path.as_bytes().split(|byte| *byte == b'/');
    names.filter(|name| !name.is_empty() && *name != b".").map(|name| OsStr::from_bytes(name).to_owned()).collect()
}

/// A path that ends in a slash or a dot names a directory.
fn wants_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || bytes.ends_with(b"/.")
}

fn link_target(link: &OwnedFd) -> Result<OsString, Errno> {
    Ok(OsString::from_vec(rustix::fs::readlinkat(link, "", Vec::new())?.into_bytes()))
}

fn read_link_at(dir: &OwnedFd, name: &OsStr) -> Result<OsString, Errno> {
    Ok(OsString::from_vec(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes()))
}

/// What the entry `name` of `dir` is, never following it.
pub fn lstat_at(dir: impl AsFd, name: impl AsRef<OsStr>) -> io::Result<Stat> {
    Ok(rustix::fs::statat(dir, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
#[path = "path/tests.rs"]
mod tests;
