//! Unpacking a tar stream into a directory, whatever the stream says.
//!
//! - Nothing outside the root is ever touched: parents are opened beneath the root by descriptor, symlinks in
//!   them are resolved with the root as `/` (`openat2`, `RESOLVE_IN_ROOT`), a last component is never followed.
//! - `..` in a layer's names cannot climb above the root, as in other tools; in an archive of the user's it is refused.
//! - A file costs open, write, utimens and close. Directories get modes and times at the end, because a
//!   child could not be made in one without write permission and would change its time.
//! - What the kernel refuses for want of ids (owners, devices, capabilities) is recorded ([`sys::shadow`]) when
//!   [`Options::shadow`] says so.
//!
//! The stream is any [`Source`]; this module knows neither headers nor compression.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use base::{Cancel, Cancelled};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use sys::path::{Links, Root};
use sys::shadow::{self, Shadow};
use sys::xattr;

use crate::owner::NO_ID;

#[cfg(test)]
mod tests;

const OPAQUE: &[u8] = b".wh..wh..opq";
const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Each level costs an open descriptor while it is unpacked.
const MAX_DEPTH: usize = 256;
const CAPABILITY: &[u8] = b"security.capability";

/// One entry of a tar stream, as its header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The name, any bytes.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Access time, where the header has one.
    pub atime: Option<(i64, u32)>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The kinds of entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EntryKind {
    /// A file with this many bytes of data, read with [`Source::read`].
    Regular {
        /// Bytes of data.
        size: u64,
    },
    /// A directory.
    #[default]
    Directory,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// Another name of an entry that came earlier.
    Hardlink(Vec<u8>),
    /// A character device, major and minor.
    CharDevice(u32, u32),
    /// A block device, major and minor.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A tar stream that was parsed already.
pub trait Source {
    /// The next entry; what was not read of the one before is skipped. None at the end of the archive.
    fn next(&mut self) -> io::Result<Option<Entry>>;

    /// Reads data of the current entry; 0 at its end.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;
}

/// What `.wh.` names mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// Nothing: an archive that a user adds. Its names may not climb with `..`.
    Literal,
    /// Remove what a lower layer left in this directory.
    Delete,
    /// Become overlayfs's marks; the directory holds one layer only.
    Overlay {
        /// The marks are `user.overlay.*` instead of `trusted.overlay.*`.
        userxattr: bool,
    },
}

/// What to do about device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Make them; where the kernel refuses, record them if [`Options::shadow`], else fail.
    Create,
    /// Leave them out.
    Skip,
}

/// So many zeros are not written: a file that had a hole, which an archive cannot say, has one again.
const HOLE: usize = 64 << 10;
static ZEROS: [u8; HOLE] = [0; HOLE];

/// What to do about odd times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// Those before 1970 or past what nanoseconds in 64 bits can say become 1970, as containerd and Docker have it.
    Bounded,
    /// As they are.
    Exact,
}

/// Bounds on what a stream may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries.
    pub entries: u64,
    /// Bytes of file data.
    pub bytes: u64,
}

impl Default for Limits {
    /// Far above what an image holds, far below what fills a node unnoticed.
    fn default() -> Limits {
        Limits { entries: 10_000_000, bytes: 256 << 30 }
    }
}

/// How to unpack.
#[derive(Clone, Debug)]
pub struct Options {
    /// The meaning of `.wh.` names.
    pub whiteouts: Whiteouts,
    /// All entries belong to these ids whatever the headers say (`ADD --chown`).
    pub owner: Option<(u32, u32)>,
    /// Device nodes.
    pub devices: Devices,
    /// Modification times.
    pub times: Times,
    /// Record beside the file what the kernel refuses to set.
    pub shadow: bool,
    /// Bounds.
    pub limits: Limits,
    /// Looked at once per entry and per 256 KiB.
    pub cancel: Cancel,
}

impl Options {
    /// For one layer of an image.
    pub fn layer(whiteouts: Whiteouts) -> Options {
        Options {
            whiteouts,
            owner: None,
            devices: Devices::Create,
            times: Times::Bounded,
            shadow: false,
            limits: Limits::default(),
            cancel: Cancel::new(),
        }
    }

    /// For an archive that a user adds.
    pub fn archive() -> Options {
        Options::layer(Whiteouts::Literal)
    }
}

/// What was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Entries.
    pub entries: u64,
    /// Bytes of file data.
    pub bytes: u64,
    /// Directories that no entry described, made because something lies in them. In a layer they should look
    /// like the directory of the layers below.
    pub implied: Vec<Vec<u8>>,
    /// The layer hides all that lies below it.
    pub opaque_root: bool,
    /// Owners of links and fifos that the kernel refused.
    pub links: shadow::Table,
}

/// Why a stream was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream could not be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The entry asks for something outside the root, or for nonsense.
    #[error("archive entry `{path}` is refused: {why}")]
    Refused {
        /// The entry's name.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The archive is larger than allowed.
    #[error("the archive unpacks to more than {limit}: refused as a decompression bomb")]
    TooLarge {
        /// The bound, and of what.
        limit: String,
    },
    /// The file system refused.
    #[error("cannot {doing} `{path}` from the archive")]
    Write {
        /// A verb phrase.
        doing: &'static str,
        /// The entry's name.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Error {
    /// Whether the file system or a quota is full.
    pub fn is_no_space(&self) -> bool {
        let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        matches!(self, Error::Write { source, .. } if full(source))
    }
}

/// Unpacks `source` into the directory `root`.
pub fn unpack(root: impl AsFd, source: &mut impl Source, options: &Options) -> Result<Report, Error> {
    let root = rustix::io::fcntl_dupfd_cloexec(root, 3).map_err(|e| write_error("open", b"/", e))?;
    let again = rustix::io::fcntl_dupfd_cloexec(&root, 3).map_err(|e| write_error("open", b"/", e))?;
    let mut unpacker = Unpacker::new(root, Root::from_fd(again, "/"), options);
    while let Some(entry) = source.next().map_err(Error::Read)? {
        options.cancel.check()?;
        unpacker.report.entries += 1;
        if unpacker.report.entries > options.limits.entries {
            return Err(Error::TooLarge { limit: format!("{} entries", options.limits.entries) });
        }
        unpacker.entry(entry, source)?;
    }
    unpacker.finish()
}

/// The last component and its directory.
struct Place {
    dir: Rc<OwnedFd>,
    name: CString,
}

/// An open directory on the way to the current entry.
struct Step {
    name: Vec<u8>,
    fd: Rc<OwnedFd>,
    /// New files inherit its group.
    setgid: bool,
}

/// What a directory gets once everything lies in it.
struct Finish {
    mode: Option<u32>,
    mtime: Option<(i64, u32)>,
    atime: Option<(i64, u32)>,
}

struct Unpacker<'a> {
    options: &'a Options,
    root: Rc<OwnedFd>,
    /// The same, for paths that may lead through links.
    inside: Root,
    root_setgid: bool,
    /// Open directories from the root to the last entry's parent.
    steps: Vec<Step>,
    /// A step was reached through a symlink, so a replaced entry may have been part of it.
    aliased: bool,
    /// Cleaned paths of directories, in order of appearance, and what they get.
    dirs: Vec<Vec<u8>>,
    finish: HashMap<Vec<u8>, Finish>,
    implied: BTreeSet<Vec<u8>>,
    /// All cleaned paths, kept only where an opaque mark must spare them.
    unpacked: HashSet<Vec<u8>>,
    /// Whiteouts made by this stream: a directory that replaces one hides what lies below.
    whiteouts: HashSet<Vec<u8>>,
    ids: (u32, u32),
    umask: u32,
    buf: Vec<u8>,
    report: Report,
}

impl<'a> Unpacker<'a> {
    fn new(root: OwnedFd, inside: Root, options: &'a Options) -> Unpacker<'a> {
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
            umask: umask(),
            buf: Vec::new(),
            report: Report::default(),
        }
    }

    fn entry(&mut self, mut entry: Entry, source: &mut impl Source) -> Result<(), Error> {
        let path = self.clean(&entry.path)?;
        if path.is_empty() {
            return Ok(()); // The root itself: neither layers nor archives change it.
        }
        if let Some((uid, gid)) = self.options.owner {
            (entry.uid, entry.gid) = (uid, gid);
        }
        if entry.uid == NO_ID || entry.gid == NO_ID {
            return Err(refused(&entry.path, "its owner is the largest number, which is no id"));
        }
        entry.mode &= 0o7777;
        let place = self.place(&path)?;
        if self.options.whiteouts != Whiteouts::Literal && self.whiteout(&path, &place, &entry)? {
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
    fn clean(&self, name: &[u8]) -> Result<Vec<u8>, Error> {
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
        Ok(Place { dir, name })
    }

    /// Opens directory `parent`, reusing what the entry before had open.
    fn walk_to(&mut self, parent: &[u8]) -> Result<Rc<OwnedFd>, Error> {
        let parts: Vec<&[u8]> = if parent.is_empty() { Vec::new() } else { parent.split(|b| *b == b'/').collect() };
        let common = self.steps.iter().zip(&parts).take_while(|(step, part)| step.name == **part).count();
        self.steps.truncate(common);
        if common == 0 {
            self.aliased = false;
        }
        for depth in common..parts.len() {
            let path = parts[..=depth].join(&b'/');
            let fd = self.open_dir(parts[depth], &path)?;
            let setgid = is_setgid(&fd);
            self.steps.push(Step { name: parts[depth].to_vec(), fd: Rc::new(fd), setgid });
        }
        Ok(self.here())
    }

    fn here(&self) -> Rc<OwnedFd> {
        Rc::clone(self.steps.last().map_or(&self.root, |step| &step.fd))
    }

    /// Opens child `name` of the innermost open directory; `path` is its path from the root.
    fn open_dir(&mut self, name: &[u8], path: &[u8]) -> Result<OwnedFd, Error> {
        let dir = self.here();
        let name = CString::new(name).map_err(|_| refused(path, "its name holds a NUL byte"))?;
        let open =
            |flags| rustix::fs::openat(&*dir, &*name, OFlags::DIRECTORY | OFlags::CLOEXEC | flags, Mode::empty());
        match open(OFlags::RDONLY | OFlags::NOFOLLOW) {
            Ok(fd) => Ok(fd),
            Err(Errno::ACCESS) => {
                open(OFlags::PATH | OFlags::NOFOLLOW).map_err(|e| write_error("open directory", path, e))
            }
            Err(Errno::NOENT) => {
                let fd = self.make_implied(&dir, &name, path)?;
                Ok(fd)
            }
            Err(Errno::LOOP | Errno::NOTDIR) => self.open_through_link(&dir, &name, path),
            Err(e) => Err(write_error("open directory", path, e)),
        }
    }

    fn make_implied(&mut self, dir: &OwnedFd, name: &CStr, path: &[u8]) -> Result<OwnedFd, Error> {
        rustix::fs::mkdirat(dir, name, Mode::RWXU).map_err(|e| write_error("create directory", path, e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|e| write_error("open directory", path, e))?;
        self.implied.insert(path.to_vec());
        self.set_finish(path, Finish { mode: Some(0o755), mtime: None, atime: None });
        if self.options.whiteouts == Whiteouts::Delete {
            self.unpacked.insert(path.to_vec());
        }
        Ok(fd)
    }

    /// The component is a symlink (or no directory): its target is looked up with our root as `/`.
    fn open_through_link(&mut self, dir: &OwnedFd, name: &CStr, path: &[u8]) -> Result<OwnedFd, Error> {
        let stat =
            rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| write_error("look at", path, e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 && self.whiteouts.remove(path) {
            // A whiteout of this stream, and now something lies beneath: a new directory that hides the old one.
            rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(|e| write_error("replace", path, e))?;
            let fd = self.make_implied(dir, name, path)?;
            self.mark_opaque(&fd, path)?;
            return Ok(fd);
        }
        if kind != FileType::Symlink {
            return Err(refused(path, "an entry lies beneath it, yet it is no directory"));
        }
        self.aliased = true;
        self.open_inside(path, OFlags::RDONLY, Links::Follow).map_err(|e| match e {
            // containerd makes the target of a dangling link; nothing that writes images depends on it.
            Errno::NOENT | Errno::NOTDIR => refused(path, "an entry lies beneath a symlink that leads to no directory"),
            Errno::LOOP => refused(path, "an entry lies beneath a symlink that leads in a circle or out of the root"),
            e => write_error("open directory", path, e),
        })
    }

    fn open_inside(&self, path: &[u8], flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
        let opened = self.inside.open_at(OsStr::from_bytes(path), flags | OFlags::DIRECTORY, Mode::empty(), links);
        opened.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    }

    /// Handles `.wh.` names; says whether it was one.
    fn whiteout(&mut self, path: &[u8], place: &Place, entry: &Entry) -> Result<bool, Error> {
        let name = place.name.to_bytes();
        if !name.starts_with(WHITEOUT) {
            return Ok(false);
        }
        let (parent, _) = split(path);
        if name == OPAQUE {
            self.opaque(parent, place)?;
            return Ok(true);
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(true); // AUFS's own files: reserved, and of no meaning here.
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(&entry.path, "a whiteout must name a file of its directory"));
        }
        let hidden_path = join(parent, hidden);
        let hidden = CString::new(hidden).map_err(|_| refused(path, "its name holds a NUL byte"))?;
        match self.options.whiteouts {
            Whiteouts::Literal => return Ok(false),
            Whiteouts::Delete => {
                if !self.unpacked.contains(&hidden_path) {
                    remove(&place.dir, &hidden).map_err(|e| write_error("remove", &hidden_path, e))?;
                    self.forget_aliases();
                }
            }
            Whiteouts::Overlay { .. } => self.overlay_whiteout(&hidden_path, &place.dir, &hidden)?,
        }
        Ok(true)
    }

    fn overlay_whiteout(&mut self, path: &[u8], dir: &OwnedFd, name: &CStr) -> Result<(), Error> {
        match rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                self.whiteouts.insert(path.to_vec());
                Ok(())
            }
            // A whiteout speaks of lower layers only: what this layer has itself stays, but hides what is below.
            Err(Errno::EXIST) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(dir, name, flags, Mode::empty()) {
                    Ok(fd) => self.mark_opaque(&fd, path),
                    Err(_) => Ok(()),
                }
            }
            Err(e) => Err(write_error("create whiteout", path, e)),
        }
    }

    fn opaque(&mut self, parent: &[u8], place: &Place) -> Result<(), Error> {
        match self.options.whiteouts {
            Whiteouts::Literal => Ok(()),
            Whiteouts::Overlay { .. } if parent.is_empty() => {
                self.report.opaque_root = true;
                Ok(())
            }
            Whiteouts::Overlay { .. } => self.mark_opaque(&place.dir, parent),
            Whiteouts::Delete => {
                let removed = clear(&place.dir, parent, &self.unpacked);
                self.forget_aliases();
                removed.map_err(|e| write_error("empty directory", parent, e))
            }
        }
    }

    fn mark_opaque(&self, dir: impl AsFd, path: &[u8]) -> Result<(), Error> {
        let Whiteouts::Overlay { userxattr } = self.options.whiteouts else { return Ok(()) };
        let key = if userxattr { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
        xattr::set_fd(dir, key, b"y").map_err(|e| io_error("mark as opaque", path, e))
    }

    /// Something was replaced or removed: descriptors reached through links may name what is gone.
    fn forget_aliases(&mut self) {
        if self.aliased {
            self.steps.clear();
            self.aliased = false;
        }
    }

    /// Makes a new thing under a name, removing what stands there.
    fn replace(
        &mut self,
        path: &[u8],
        place: &Place,
        doing: &'static str,
        make: impl Fn() -> Result<(), Errno>,
    ) -> Result<(), Error> {
        match make() {
            Err(Errno::EXIST) => {}
            other => return other.map_err(|e| write_error(doing, path, e)),
        }
        remove(&place.dir, &place.name).map_err(|e| write_error("replace", path, e))?;
        self.drop_beneath(path);
        self.forget_aliases();
        make().map_err(|e| write_error(doing, path, e))
    }

    /// `path` is no directory any more: nothing beneath it can be finished.
    fn drop_beneath(&mut self, path: &[u8]) {
        self.whiteouts.remove(path);
        if self.finish.contains_key(path) {
            let beneath = |dir: &[u8]| dir == path || (dir.starts_with(path) && dir.get(path.len()) == Some(&b'/'));
            self.finish.retain(|dir, _| !beneath(dir));
            self.implied.retain(|dir| !beneath(dir));
            self.unpacked.retain(|entry| !beneath(entry));
        }
    }

    fn directory(&mut self, path: Vec<u8>, place: &Place, entry: &Entry) -> Result<(), Error> {
        let (mut hides, mut existed) = (false, false);
        match rustix::fs::mkdirat(&*place.dir, &*place.name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(&*place.dir, &*place.name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| write_error("look at", &path, e))?;
                existed = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if !existed {
                    hides = self.whiteouts.remove(&path);
                    rustix::fs::unlinkat(&*place.dir, &*place.name, AtFlags::empty())
                        .map_err(|e| write_error("replace", &path, e))?;
                    self.forget_aliases();
                    rustix::fs::mkdirat(&*place.dir, &*place.name, Mode::RWXU)
                        .map_err(|e| write_error("create directory", &path, e))?;
                }
            }
            Err(e) => return Err(write_error("create directory", &path, e)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*place.dir, &*place.name, flags, Mode::empty())
            .map_err(|e| write_error("open", &path, e))?;
        if hides {
            self.mark_opaque(&fd, &path)?;
        }
        if existed && self.options.whiteouts == Whiteouts::Delete {
            self.clear_attributes(&path, &fd, entry)?;
        }
        self.own_fd(&path, &fd, entry, existed)?;
        self.attributes_fd(&path, &fd, entry)?;
        self.implied.remove(&path);
        self.set_finish(&path, Finish { mode: Some(entry.mode), mtime: Some(entry.mtime), atime: entry.atime });
        // The next entry most likely lies in it.
        let parent_depth = split(&path).0.split(|b| *b == b'/').filter(|p| !p.is_empty()).count();
        if self.steps.len() == parent_depth {
            let setgid = is_setgid(&fd);
            self.steps.push(Step { name: place.name.to_bytes().to_vec(), fd: Rc::new(fd), setgid });
        }
        Ok(())
    }

    fn set_finish(&mut self, path: &[u8], finish: Finish) {
        if self.finish.insert(path.to_vec(), finish).is_none() {
            self.dirs.push(path.to_vec());
        }
    }

    fn regular(
        &mut self,
        path: &[u8],
        place: &Place,
        entry: &Entry,
        size: u64,
        source: &mut impl Source,
    ) -> Result<(), Error> {
        self.report.bytes = self.report.bytes.saturating_add(size);
        if self.report.bytes > self.options.limits.bytes {
            return Err(Error::TooLarge { limit: bytes_text(self.options.limits.bytes) });
        }
        let fd = self.create(path, place, entry.mode & 0o777)?;
        if let Err(error) = self.fill(path, &fd, size, source) {
            // Where nobody discards the tree, half a file must not pass for a whole one.
            let _ = rustix::fs::unlinkat(&*place.dir, &*place.name, AtFlags::empty());
            return Err(error);
        }
        let changed_owner = self.own_fd(path, &fd, entry, false)?;
        self.attributes_fd(path, &fd, entry)?;
        if entry.mode & (self.umask | 0o7000) != 0 || changed_owner && entry.mode & 0o6000 != 0 {
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(entry.mode))
                .map_err(|e| write_error("set the mode of", path, e))?;
        }
        rustix::fs::futimens(&fd, &self.times(entry.mtime, entry.atime))
            .map_err(|e| write_error("set the time of", path, e))
    }

    fn create(&mut self, path: &[u8], place: &Place, mode: u32) -> Result<OwnedFd, Error> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&*place.dir, &*place.name, flags, Mode::from_raw_mode(mode));
        match open() {
            Err(Errno::EXIST) => {}
            other => return other.map_err(|e| write_error("create", path, e)),
        }
        remove(&place.dir, &place.name).map_err(|e| write_error("replace", path, e))?;
        self.drop_beneath(path);
        self.forget_aliases();
        open().map_err(|e| write_error("create", path, e))
    }

    fn fill(&mut self, path: &[u8], fd: &OwnedFd, size: u64, source: &mut impl Source) -> Result<(), Error> {
        if size == 0 {
            return Ok(());
        }
        if self.buf.is_empty() {
            self.buf = vec![0; 256 << 10];
        }
        let (mut left, mut in_hole) = (size, false);
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buf.len());
            let n = source.read(&mut self.buf[..want]).map_err(Error::Read)?;
            if n == 0 {
                return Err(Error::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            for piece in self.buf[..n].chunks(HOLE) {
                in_hole = *piece == ZEROS;
                if in_hole {
                    let skipped = rustix::fs::seek(fd, rustix::fs::SeekFrom::Current(HOLE as i64));
                    skipped.map_err(|e| write_error("write", path, e))?;
                    continue;
                }
                let mut rest = piece;
                while !rest.is_empty() {
                    let written = rustix::io::write(fd, rest).map_err(|e| write_error("write", path, e))?;
                    rest = &rest[written..];
                }
            }
            left -= n as u64;
            if left > 0 {
                self.options.cancel.check()?;
            }
        }
        if in_hole {
            rustix::fs::ftruncate(fd, size).map_err(|e| write_error("write", path, e))?;
        }
        Ok(())
    }

    fn symlink(&mut self, path: &[u8], place: &Place, entry: &Entry, target: &[u8]) -> Result<(), Error> {
        let goal = CString::new(target).map_err(|_| refused(path, "its link target holds a NUL byte"))?;
        if target.is_empty() {
            return Err(refused(path, "its link target is empty"));
        }
        self.replace(path, place, "create symlink", || rustix::fs::symlinkat(&*goal, &*place.dir, &*place.name))?;
        if !self.is_born_with(entry) {
            self.own_name(path, place, entry, target, false)?;
        }
        self.attributes_name(path, place, entry)?;
        self.time_name(path, place, entry)
    }

    fn hardlink(&mut self, path: &[u8], place: &Place, entry: &Entry, target: &[u8]) -> Result<(), Error> {
        let target = self.clean(target)?;
        if target.is_empty() {
            return Err(refused(path, "it is a hard link to a directory"));
        }
        if target == path {
            return Err(refused(path, "it is a hard link to itself"));
        }
        let (parent, name) = split(&target);
        let name = CString::new(name).map_err(|_| refused(path, "its link target holds a NUL byte"))?;
        let from =
            if parent.is_empty() { Ok(None) } else { self.open_inside(parent, OFlags::PATH, Links::Follow).map(Some) };
        let from = from.map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
                refused(path, "it is a hard link to a file that the archive does not have")
            }
            e => write_error("link", path, e),
        })?;
        let from = from.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
        let from = rustix::io::fcntl_dupfd_cloexec(from, 3).map_err(|e| write_error("link", path, e))?;
        // The target is looked at first: replacing our own name must not take it away.
        match rustix::fs::statat(&from, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(refused(path, "it is a hard link to a directory"));
            }
            Ok(_) => {}
            Err(Errno::NOENT) => {
                return Err(refused(path, "it is a hard link to a file that the archive does not have"));
            }
            Err(e) => return Err(write_error("link", path, e)),
        }
        self.replace(path, place, "link", || {
            rustix::fs::linkat(&from, &*name, &*place.dir, &*place.name, AtFlags::empty())
        })
        .map_err(|e| match e {
            Error::Write { source, .. } if source.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                refused(path, "it is a hard link to a file that the archive does not have")
            }
            e => e,
        })?;
        let stat = rustix::fs::statat(&*place.dir, &*place.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| write_error("look at", path, e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let link_target = match kind {
            FileType::Symlink => rustix::fs::readlinkat(&*place.dir, &*place.name, Vec::new())
                .map_err(|e| write_error("read link", path, e))?
                .into_bytes(),
            _ => Vec::new(),
        };
        // The header of the link is the last word on the file's metadata, as in other tools. Mostly it says the same again,
        // and then nothing may be touched: a change of owner, even to the same, takes away capabilities.
        let owned = (stat.st_uid, stat.st_gid) == (entry.uid, entry.gid);
        if !owned {
            self.own_name(path, place, entry, &link_target, kind == FileType::RegularFile)?;
        }
        if kind != FileType::Symlink && (!owned || stat.st_mode & 0o7777 != entry.mode) {
            self.mode_name(path, place, entry.mode)?;
        }
        self.attributes_name(path, place, entry)?;
        if (stat.st_mtime, stat.st_mtime_nsec as u32) == entry.mtime {
            return Ok(());
        }
        self.time_name(path, place, entry)
    }

    fn node(
        &mut self,
        path: &[u8],
        place: &Place,
        entry: &Entry,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), Error> {
        if kind != FileType::Fifo && self.options.devices == Devices::Skip {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(entry.mode);
        let dev = rustix::fs::makedev(major, minor);
        let made = self
            .replace(path, place, "create device", || rustix::fs::mknodat(&*place.dir, &*place.name, kind, mode, dev));
        match made {
            Ok(()) => {}
            Err(Error::Write { source, .. })
                if self.options.shadow && source.raw_os_error() == Some(Errno::PERM.raw_os_error()) =>
            {
                let fd = self.create(path, place, 0o600)?;
                rustix::fs::fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(|e| owner_error(path, entry, e))?;
                let device = Some((kind.as_raw_mode() | entry.mode, major, minor));
                let shadow = Shadow { uid: entry.uid, gid: entry.gid, device };
                shadow.write_fd(&fd).map_err(|e| io_error("record the device", path, e))?;
                return rustix::fs::futimens(&fd, &self.times(entry.mtime, entry.atime))
                    .map_err(|e| write_error("set the time of", path, e));
            }
            Err(e) => return Err(e),
        }
        self.own_name(path, place, entry, b"", false)?;
        self.mode_name(path, place, entry.mode)?;
        self.attributes_name(path, place, entry)?;
        self.time_name(path, place, entry)
    }

    /// Whether a new file in the current directory belongs to the entry's owner from the start.
    fn is_born_with(&self, entry: &Entry) -> bool {
        let inherits = self.steps.last().map_or(self.root_setgid, |step| step.setgid);
        !inherits && (entry.uid, entry.gid) == self.ids
    }

    /// Sets the owner of an open file or directory; says whether it had to.
    fn own_fd(&mut self, path: &[u8], fd: &OwnedFd, entry: &Entry, existing: bool) -> Result<bool, Error> {
        if !existing && self.is_born_with(entry) {
            return Ok(false);
        }
        match rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))) {
            Ok(()) if self.options.shadow && existing => {
                let forgotten = Shadow::forget_owner(&xattr::proc_path(fd, b"."));
                forgotten.map_err(|e| io_error("forget the earlier owner of", path, e))?;
            }
            Ok(()) => {}
            Err(Errno::PERM | Errno::INVAL) if self.options.shadow => {
                rustix::fs::fchown(fd, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(|e| owner_error(path, entry, e))?;
                let recorded = Shadow::owner(entry.uid, entry.gid).write_fd(fd);
                recorded.map_err(|e| io_error("record the owner of", path, e))?;
            }
            Err(e) => return Err(owner_error(path, entry, e)),
        }
        Ok(true)
    }

    /// Sets the owner of a name that is not opened. `data` says that it is a regular file, which can carry a record.
    fn own_name(&mut self, path: &[u8], place: &Place, entry: &Entry, target: &[u8], data: bool) -> Result<(), Error> {
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        match rustix::fs::chownat(&*place.dir, &*place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::PERM | Errno::INVAL) if self.options.shadow && data => {
                let file = xattr::proc_path(&*place.dir, place.name.to_bytes());
                self.leave_to_us(path, place, entry)?;
                // A hard link to a recorded device keeps its record.
                match Shadow::read(&file).map_err(|e| io_error("read the record of", path, e))? {
                    Some(Shadow { device: Some(_), .. }) => Ok(()),
                    _ => Shadow::owner(entry.uid, entry.gid)
                        .write(&file)
                        .map_err(|e| io_error("record the owner of", path, e)),
                }
            }
            Err(Errno::PERM | Errno::INVAL) if self.options.shadow => {
                self.leave_to_us(path, place, entry)?;
                self.report.links.insert(path.to_vec(), entry.uid, entry.gid, target.to_vec());
                Ok(())
            }
            Err(e) => Err(owner_error(path, entry, e)),
        }
    }

    /// What a directory with the set-group-id bit holds is born to its group; what is recorded must be root's.
    fn leave_to_us(&self, path: &[u8], place: &Place, entry: &Entry) -> Result<(), Error> {
        let (uid, gid) = (Some(Uid::ROOT), Some(Gid::ROOT));
        let left = rustix::fs::chownat(&*place.dir, &*place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        left.map_err(|e| owner_error(path, entry, e))
    }

    fn mode_name(&self, path: &[u8], place: &Place, mode: u32) -> Result<(), Error> {
        rustix::fs::chmodat(&*place.dir, &*place.name, Mode::from_raw_mode(mode), AtFlags::empty())
            .map_err(|e| write_error("set the mode of", path, e))
    }

    fn times(&self, mtime: (i64, u32), atime: Option<(i64, u32)>) -> Timestamps {
        let can_be = |sec| self.options.times == Times::Exact || (0..=i64::MAX / 1_000_000_000).contains(&sec);
        let bound = |(sec, nsec): (i64, u32)| if can_be(sec) { (sec, nsec) } else { (0, 0) };
        let spec = |(tv_sec, nsec): (i64, u32)| Timespec { tv_sec, tv_nsec: nsec.into() };
        let latest = atime.map_or(mtime, |atime| atime.max(mtime));
        Timestamps { last_access: spec(bound(latest)), last_modification: spec(bound(mtime)) }
    }

    fn time_name(&self, path: &[u8], place: &Place, entry: &Entry) -> Result<(), Error> {
        let times = self.times(entry.mtime, entry.atime);
        rustix::fs::utimensat(&*place.dir, &*place.name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| write_error("set the time of", path, e))
    }

    fn attributes_fd(&self, path: &[u8], fd: &OwnedFd, entry: &Entry) -> Result<(), Error> {
        for (name, value) in &entry.xattrs {
            self.attribute(path, name, value, &|key, value| xattr::set_fd(fd, key, value))?;
        }
        Ok(())
    }

    /// A layer describes a directory whole: what it had in the layer below and is not listed here is gone.
    fn clear_attributes(&self, path: &[u8], fd: &OwnedFd, entry: &Entry) -> Result<(), Error> {
        let failed = |e| io_error("clear an attribute of", path, e);
        for name in xattr::list_fd(fd).map_err(failed)? {
            let listed = entry.xattrs.iter().any(|(listed, _)| *listed == name);
            if name.starts_with(b"user.") && !listed {
                xattr::c_name(&name).and_then(|key| xattr::remove_fd(fd, &key)).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn attributes_name(&self, path: &[u8], place: &Place, entry: &Entry) -> Result<(), Error> {
        if entry.xattrs.is_empty() {
            return Ok(());
        }
        let file = xattr::proc_path(&*place.dir, place.name.to_bytes());
        for (name, value) in &entry.xattrs {
            self.attribute(path, name, value, &|key, value| xattr::set(&file, key, value))?;
        }
        Ok(())
    }

    fn attribute(
        &self,
        path: &[u8],
        name: &[u8],
        value: &[u8],
        set: &dyn Fn(&CStr, &[u8]) -> io::Result<()>,
    ) -> Result<(), Error> {
        if is_private(name) {
            return Ok(()); // An archive must not speak in overlayfs's name, nor in ours.
        }
        let key = xattr::c_name(name).map_err(|_| refused(path, "the name of an attribute holds a NUL byte"))?;
        let error = match set(&key, value) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOTSUP) => Ok(()),
            Some(Errno::PERM | Errno::INVAL) if self.options.shadow && name == CAPABILITY => {
                set(shadow::CAPABILITY, value).map_err(|e| io_error("record the capabilities of", path, e))
            }
            // `user.*` exists on files and directories only; other namespaces may be closed to us.
            Some(Errno::PERM) if name != CAPABILITY => Ok(()),
            _ => Err(io_error("set an attribute of", path, error)),
        }
    }

    /// Modes and times of directories, innermost first, so that closing one does not hinder another.
    fn finish(mut self) -> Result<Report, Error> {
        self.steps.clear();
        for path in self.dirs.iter().rev() {
            let Some(finish) = self.finish.get(path) else { continue };
            let fd = match self.open_inside(path, OFlags::RDONLY, Links::FollowParents) {
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

/// Attributes that belong to the builder's machinery.
fn is_private(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") || name.starts_with(shadow::PREFIX)
}

/// Removes a name and all beneath it; one that is not there is removed already.
fn remove(dir: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(dir, name, flags, Mode::empty())?
        }
        other => other?,
    };
    for child in names(&inner)? {
        match remove(&inner, &child) {
            Err(Errno::ACCESS) => {
                rustix::fs::fchmod(&inner, Mode::RWXU)?;
                remove(&inner, &child)?;
            }
            other => other?,
        }
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Removes from `dir`, which is `path`, everything that is not in `keep`.
fn clear(dir: &OwnedFd, path: &[u8], keep: &HashSet<Vec<u8>>) -> Result<(), Errno> {
    for child in names(dir)? {
        let child_path = join(path, child.to_bytes());
        if !keep.contains(&child_path) {
            remove(dir, &child)?;
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(inner) = rustix::fs::openat(dir, &*child, flags, Mode::empty()) {
            clear(&inner, &child_path, keep)?;
        }
    }
    Ok(())
}

fn names(dir: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            found.push(entry.file_name().to_owned());
        }
    }
    Ok(found)
}

fn is_setgid(dir: impl AsFd) -> bool {
    rustix::fs::fstat(dir).is_ok_and(|stat| stat.st_mode & 0o2000 != 0)
}

/// The process's umask, read and not set: setting it to read it would race with other threads.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    value.and_then(|v| u32::from_str_radix(v.trim(), 8).ok()).unwrap_or(0o777)
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn refused(path: &[u8], why: &'static str) -> Error {
    Error::Refused { path: shown(path), why }
}

/// A name in a message; the beginning of one that is too long for people.
fn shown(path: &[u8]) -> String {
    const MOST: usize = 256;
    match path.get(..MOST) {
        Some(head) if path.len() > MOST => format!("{}…", String::from_utf8_lossy(head)),
        _ => String::from_utf8_lossy(path).into_owned(),
    }
}

fn bytes_text(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes >= GIB && bytes.is_multiple_of(GIB) { format!("{} GiB", bytes / GIB) } else { format!("{bytes} bytes") }
}

fn write_error(doing: &'static str, path: &[u8], errno: Errno) -> Error {
    io_error(doing, path, errno.into())
}

fn io_error(doing: &'static str, path: &[u8], source: io::Error) -> Error {
    Error::Write { doing, path: shown(path), source }
}

fn owner_error(path: &[u8], entry: &Entry, errno: Errno) -> Error {
    let source = match errno {
        Errno::INVAL => io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "owner {}:{} is not mapped in this user namespace: more subordinate ids are needed",
                entry.uid, entry.gid
            ),
        ),
        errno => errno.into(),
    };
    io_error("set the owner of", path, source)
}

/// Opens the directory to unpack into.
pub fn open_root(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
