//! The walk over the entries: where each lies, what is open on the way there, and what waits for the end.
//!
//! Parents of consecutive entries are mostly the same, so the directories on the way to the last one stay open. What the
//! entry becomes there is the business of [`super::make`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use sys::path::{Links, Root};

use super::error::{refused, write_error};
use super::{Entry, EntryKind, Error, Options, Report, Source, Whiteouts};
use crate::owner::NO_ID;
use crate::xattr::has_default_list;

/// Each level costs an open descriptor while it is unpacked.
const MAX_DEPTH: usize = 256;

/// The last component and its directory.
pub(super) struct Place {
    pub(super) dir: Rc<OwnedFd>,
    pub(super) name: CString,
    /// How many steps lead to `dir`.
    pub(super) depth: usize,
}

/// An open directory on the way to the current entry.
pub(super) struct Step {
    /// What entries call it.
    pub(super) name: Vec<u8>,
    /// Where it is, without links.
    pub(super) path: Vec<u8>,
    pub(super) fd: Rc<OwnedFd>,
    /// New files inherit its group.
    pub(super) setgid: bool,
}

/// What a directory gets once everything lies in it.
pub(super) struct Finish {
    pub(super) mode: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) atime: Option<(i64, u32)>,
}

pub(super) struct Unpacker<'a> {
    pub(super) options: &'a Options,
    pub(super) root: Rc<OwnedFd>,
    /// The same, for paths that may lead through links.
    pub(super) inside: Root,
    pub(super) root_setgid: bool,
    /// Open directories from the root to the last entry's parent.
    pub(super) steps: Vec<Step>,
    /// A step was reached through a symlink, so a replaced entry may have been part of it.
    pub(super) aliased: bool,
    /// Paths of directories, clean and without links, in order of appearance, and what they get.
    pub(super) dirs: Vec<Vec<u8>>,
    pub(super) finish: HashMap<Vec<u8>, Finish>,
    pub(super) implied: BTreeSet<Vec<u8>>,
    /// All such paths, kept only where an opaque mark must spare them.
    pub(super) unpacked: HashSet<Vec<u8>>,
    /// Whiteouts made by this stream: a directory that replaces one hides what lies below.
    pub(super) whiteouts: HashSet<Vec<u8>>,
    pub(super) ids: (u32, u32),
    /// What the kernel may take from the mode of a new file: by the process's umask, and [anything](ANY) by access control lists.
    pub(super) masked: u32,
    pub(super) buf: Vec<u8>,
    pub(super) report: Report,
}

/// All bits of a mode that something else than an archive's header may decide.
pub(super) const ANY: u32 = 0o777;

impl<'a> Unpacker<'a> {
    pub(super) fn new(root: OwnedFd, inside: Root, options: &'a Options) -> Unpacker<'a> {
        let has_lists = options.whiteouts == Whiteouts::Literal && has_default_list(&root);
        Unpacker {
            options,
            root_setgid: is_setgid(&root),
            root: Rc::new(root),
            inside,
            steps: Vec::new(),
            aliased: false,
            dirs: Vec::new(),
            finish: HashMap::new(),
            implied: BTreeSet::new(),
            unpacked: HashSet::new(),
            whiteouts: HashSet::new(),
            ids: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            masked: if has_lists { ANY } else { umask() },
            buf: Vec::new(),
            report: Report::default(),
        }
    }

    pub(super) fn entry(&mut self, mut entry: Entry, source: &mut impl Source) -> Result<(), Error> {
        let path = self.clean(&entry.path)?;
        // The root itself: as `.` it is passed over by all tools, as `/` only some change it.
        if path.is_empty() && !(self.options.top && entry.path.starts_with(b"/")) {
            return Ok(());
        }
        if let Some((uid, gid)) = self.options.owner {
            (entry.uid, entry.gid) = (uid, gid);
        }
        if entry.uid == NO_ID || entry.gid == NO_ID {
            return Err(refused(&entry.path, "its owner is the largest number, which is no id"));
        }
        entry.mode &= 0o7777;
        if path.is_empty() {
            return self.top(&entry);
        }
        let place = self.place(&path)?;
        if entry.xattrs.iter().any(|(name, _)| name.starts_with(b"system.posix_acl_")) {
            self.masked = ANY;
        }
        let path = if self.aliased { join(self.here_path(), place.name.to_bytes()) } else { path };
        if !self.options.literal_names && self.whiteout(&path, &place, &entry)? {
            return Ok(());
        }
        match &entry.kind {
            EntryKind::Directory => self.directory(path.clone(), &place, &entry)?,
            EntryKind::Regular { size } => self.regular(&path, &place, &entry, *size, source)?,
            EntryKind::Symlink(target) => self.symlink(&path, &place, &entry, target)?,
            EntryKind::Hardlink(target) => self.hardlink(&path, &place, &entry, target)?,
            // The target of a user's archive may be an overlay.
            EntryKind::CharDevice(0, 0) if self.options.whiteouts != Whiteouts::Delete => {
                return Err(refused(&path, "a character device 0/0 would be taken for a whiteout"));
            }
            EntryKind::CharDevice(major, minor) => {
                self.node(&path, &place, &entry, FileType::CharacterDevice, (*major, *minor))?
            }
            EntryKind::BlockDevice(major, minor) => {
                self.node(&path, &place, &entry, FileType::BlockDevice, (*major, *minor))?
            }
            EntryKind::Fifo => self.node(&path, &place, &entry, FileType::Fifo, (0, 0))?,
        }
        if self.options.whiteouts == Whiteouts::Delete {
            self.unpacked.insert(path);
        }
        Ok(())
    }

    /// Splits, drops `.` and empty parts, resolves `..` by its letters.
    pub(super) fn clean(&self, name: &[u8]) -> Result<Vec<u8>, Error> {
        if name.contains(&0) {
            return Err(refused(name, "its name holds a NUL byte"));
        }
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in name.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    if parts.pop().is_none() && self.options.whiteouts == Whiteouts::Literal {
                        return Err(refused(name, "it points outside of the target directory"));
                    }
                }
                part if part.len() > 255 => return Err(refused(name, "a part of its name is longer than 255 bytes")),
                part => parts.push(part),
            }
        }
        if parts.len() > MAX_DEPTH {
            return Err(refused(name, "its directories are nested too deeply"));
        }
        Ok(parts.join(&b'/'))
    }

    /// Opens the parent of `path` (clean, not empty), making what is missing.
    fn place(&mut self, path: &[u8]) -> Result<Place, Error> {
        let (parent, name) = split(path);
        let name = CString::new(name).map_err(|_| refused(path, "its name holds a NUL byte"))?;
        let dir = self.walk_to(parent)?;
        Ok(Place { dir, name, depth: self.steps.len() })
    }

    /// Opens directory `parent`, reusing what the entry before had open.
    fn walk_to(&mut self, parent: &[u8]) -> Result<Rc<OwnedFd>, Error> {
        let parts: Vec<&[u8]> = if parent.is_empty() { Vec::new() } else { parent.split(|b| *b == b'/').collect() };
        let common = self.steps.iter().zip(&parts).take_while(|(step, part)| step.name == **part).count();
        self.steps.truncate(common);
        if common == 0 {
            self.aliased = false;
        }
        for part in &parts[common..] {
            let (fd, path) = self.open_dir(part, join(self.here_path(), part))?;
            let setgid = is_setgid(&fd);
            self.steps.push(Step { name: part.to_vec(), path, fd: Rc::new(fd), setgid });
        }
        Ok(self.here())
    }

    fn here(&self) -> Rc<OwnedFd> {
        Rc::clone(self.steps.last().map_or(&self.root, |step| &step.fd))
    }

    fn here_path(&self) -> &[u8] {
        self.steps.last().map_or(b"", |step| &step.path)
    }

    /// Opens child `name` of the innermost open directory, `path` from the root, and says where it leads.
    fn open_dir(&mut self, name: &[u8], path: Vec<u8>) -> Result<(OwnedFd, Vec<u8>), Error> {
        let dir = self.here();
        let name = CString::new(name).map_err(|_| refused(&path, "its name holds a NUL byte"))?;
        let open =
            |flags| rustix::fs::openat(&*dir, &*name, OFlags::DIRECTORY | OFlags::CLOEXEC | flags, Mode::empty());
        let fd = match open(OFlags::RDONLY | OFlags::NOFOLLOW) {
            Ok(fd) => {
                self.heed_lists(&fd);
                fd
            }
            Err(Errno::ACCESS) => {
                open(OFlags::PATH | OFlags::NOFOLLOW).map_err(|e| write_error("open directory", &path, e))?
            }
            Err(Errno::NOENT) => self.make_implied(&dir, &name, &path)?,
            Err(Errno::LOOP | Errno::NOTDIR) => return self.open_through_link(&dir, &name, path),
            Err(e) => return Err(write_error("open directory", &path, e)),
        };
        Ok((fd, path))
    }

    /// An archive may be added to directories whose access control lists have a say in the modes of what is made there. Layers
    /// are unpacked where there are none but their own.
    fn heed_lists(&mut self, dir: &OwnedFd) {
        if self.options.whiteouts == Whiteouts::Literal && has_default_list(dir) {
            self.masked = ANY;
        }
    }

    fn make_implied(&mut self, dir: &OwnedFd, name: &CStr, path: &[u8]) -> Result<OwnedFd, Error> {
        rustix::fs::mkdirat(dir, name, Mode::RWXU).map_err(|e| write_error("create directory", path, e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|e| write_error("open directory", path, e))?;
        self.implied.insert(path.to_vec());
        let mut mode = 0o755;
        if self.options.whiteouts == Whiteouts::Literal {
            // As other tools do: root's, but a set-group-id bit from above stays.
            let made = rustix::fs::fstat(&fd).map_err(|e| write_error("look at", path, e))?;
            mode |= made.st_mode & 0o7000;
            if (made.st_uid, made.st_gid) != (0, 0) {
                rustix::fs::fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT))
                    .map_err(|e| write_error("set the owner of", path, e))?;
            }
        }
        self.set_finish(path, Finish { mode: Some(mode), mtime: None, atime: None });
        if self.options.whiteouts == Whiteouts::Delete {
            self.unpacked.insert(path.to_vec());
        }
        Ok(fd)
    }

    /// The component is a symlink (or no directory): its target is looked up with our root as `/`.
    fn open_through_link(&mut self, dir: &OwnedFd, name: &CStr, path: Vec<u8>) -> Result<(OwnedFd, Vec<u8>), Error> {
        let stat =
            rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| write_error("look at", &path, e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 && self.whiteouts.remove(&path) {
            // A whiteout of this stream, and now something lies beneath: a new directory that hides the old one.
            rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(|e| write_error("replace", &path, e))?;
            let fd = self.make_implied(dir, name, &path)?;
            self.mark_opaque(&fd, &path)?;
            return Ok((fd, path));
        }
        if kind != FileType::Symlink {
            return Err(refused(&path, "an entry lies beneath it, yet it is no directory"));
        }
        self.aliased = true;
        let failed = |e| match e {
            Errno::NOENT | Errno::NOTDIR => {
                refused(&path, "an entry lies beneath a symlink that leads to no directory")
            }
            Errno::LOOP => refused(&path, "an entry lies beneath a symlink that leads in a circle or out of the root"),
            e => write_error("open directory", &path, e),
        };
        let target = self.inside.resolve(OsStr::from_bytes(&path), Links::Follow);
        let target = target.map_err(|e| failed(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        let target = target.into_os_string().into_vec();
        match self.open_inside(&target, OFlags::RDONLY, Links::Refuse) {
            Ok(fd) => Ok((fd, target)),
            // It may be in a layer below, or hidden there by this one.
            Err(Errno::NOENT | Errno::NOTDIR) if self.options.whiteouts != Whiteouts::Literal => {
                if target.split(|b| *b == b'/').count() > MAX_DEPTH {
                    return Err(refused(&path, "its directories are nested too deeply"));
                }
                Ok((self.make_target(&target)?, target))
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// Opens a directory that a link leads to, making what is missing. There is no link in `path`.
    fn make_target(&mut self, path: &[u8]) -> Result<OwnedFd, Error> {
        let steps = std::mem::take(&mut self.steps);
        let made = self.walk_to(path);
        self.steps = steps;
        self.aliased = true;
        rustix::io::fcntl_dupfd_cloexec(&*made?, 3).map_err(|e| write_error("open directory", path, e))
    }

    pub(super) fn open_inside(&self, path: &[u8], flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
        let opened = self.inside.open_at(OsStr::from_bytes(path), flags | OFlags::DIRECTORY, Mode::empty(), links);
        opened.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    }

    /// Something was replaced or removed: descriptors reached through links may name what is gone.
    pub(super) fn forget_aliases(&mut self) {
        if self.aliased {
            self.steps.clear();
            self.aliased = false;
        }
    }

    /// `path` is no directory any more: nothing beneath it can be finished.
    pub(super) fn drop_beneath(&mut self, path: &[u8]) {
        self.whiteouts.remove(path);
        if self.finish.contains_key(path) {
            let beneath = |dir: &[u8]| dir == path || (dir.starts_with(path) && dir.get(path.len()) == Some(&b'/'));
            self.finish.retain(|dir, _| !beneath(dir));
            self.implied.retain(|dir| !beneath(dir));
            self.unpacked.retain(|entry| !beneath(entry));
        }
    }

    pub(super) fn set_finish(&mut self, path: &[u8], finish: Finish) {
        if self.finish.insert(path.to_vec(), finish).is_none() {
            self.dirs.push(path.to_vec());
        }
    }

    /// Modes and times of directories, innermost first, so that closing one does not hinder another.
    pub(super) fn finish(mut self) -> Result<Report, Error> {
        self.steps.clear();
        for path in self.dirs.iter().rev() {
            let Some(finish) = self.finish.get(path) else { continue };
            let fd = match self.open_inside(path, OFlags::RDONLY, Links::Refuse) {
                Ok(fd) => fd,
                // Replaced since, or removed by a whiteout.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(e) => return Err(write_error("open directory", path, e)),
            };
            if let Some(mode) = finish.mode {
                rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))
                    .map_err(|e| write_error("set the mode of", path, e))?;
            }
            if let Some(mtime) = finish.mtime {
                rustix::fs::futimens(&fd, &self.times(mtime, finish.atime))
                    .map_err(|e| write_error("set the time of", path, e))?;
            }
        }
        self.report.implied = std::mem::take(&mut self.implied).into_iter().collect();
        Ok(self.report)
    }
}

pub(super) fn is_setgid(dir: impl AsFd) -> bool {
    rustix::fs::fstat(dir).is_ok_and(|stat| stat.st_mode & 0o2000 != 0)
}

/// The process's umask, read and not set: setting it to read it would race with other threads.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    value.and_then(|v| u32::from_str_radix(v.trim(), 8).ok()).unwrap_or(0o777)
}

pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
