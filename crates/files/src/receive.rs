//! A directory that mirrors one of a remote client: what the client says about its files, and their bytes as they come.
//!
//! The client lists its files in walk order; [`Receiver::take`] compares each with what the last transfer left here and
//! says whether its bytes are wanted. Files that the client did not name are removed. Content is hashed while it is
//! written, so that nothing received is read again to be digested.
//!
//! What is here is described by a [`Mirror`], not by the directory: it is taken out before anything changes and put
//! back when all is well, so that an interrupted transfer leaves a directory that is emptied, never one that lies.
//! Nobody else may read or write the directory meanwhile.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use base::Hasher;
use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use sys::path::Root;

use crate::checksum::memo::{Memo, MemoKey, Remembered};
use crate::checksum::{FileHeader, Flavor, Xattrs};
use crate::error::Error;
use crate::lexical;
use crate::stat::{Kind, Stat, Time};
use crate::target::{shown, timestamps};
use crate::walk::{Entry, MAX_DEPTH};

mod attributes;
mod make;
mod mirror;

pub use attributes::Attributes;
use make::{empty, set_xattr};
use mirror::{Files, Fixed, Here, Mirrored, Records};
pub use mirror::{Mirror, Received};

/// A file as the client describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Relative to the root, `/` between names.
    pub path: Vec<u8>,
    /// Type and permissions.
    pub kind: Kind,
    /// The lower twelve bits.
    pub mode: u32,
    /// The owner, which is remembered and not given to the file.
    pub uid: u32,
    /// The group, likewise.
    pub gid: u32,
    /// Bytes; 0 for all but regular files.
    pub size: u64,
    /// When its content last changed.
    pub mtime: Time,
    /// Where a symbolic link points; of a regular file that is another name for an earlier one, that one's path.
    pub link: Vec<u8>,
    /// Of devices, which.
    pub rdev: u64,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// How long a name may be, as the kernel has it.
const MAX_NAME: usize = 255;
/// How long a path or the target of a link may be.
const MAX_PATH: usize = 4096;

/// Whether the bytes of a file are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// It is here already, or has none.
    NotWanted,
    /// They are to be given to [`Receiver::write`], and their end to [`Receiver::close`].
    Wanted,
}

/// When a file counts as the one that is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Differ {
    /// Same size, time and metadata: BuildKit's default.
    #[default]
    Metadata,
    /// Never: all bytes are sent again.
    None,
}

/// One transfer into a directory.
pub struct Receiver<'a> {
    root: &'a Root,
    memo: &'a dyn Memo,
    differ: Differ,
    /// Told before the first change, until then.
    before_changes: Option<BeforeChanges<'a>>,
    /// What is there and unknown is somebody's, and makes way only for what has its name.
    keeps_others: bool,
    before: std::iter::Peekable<Records>,
    now: Files,
    /// From the root down, the directories that the next entry may lie in: their indices in `now`.
    open: Vec<(Vec<u8>, Option<usize>)>,
    /// Names for files that were sent before, made at the end.
    links: Vec<usize>,
    /// Files whose bytes are still to come, by index: none of them yet, or some. There may be as many as the client has.
    awaited: HashMap<usize, Option<Box<Incoming>>>,
    /// Directories whose times changed because something was made or removed in them.
    touched: BTreeSet<Vec<u8>>,
    /// Files that lost a name: what is known of their other names is outdated.
    unlinked: BTreeSet<u64>,
    dir: Option<(Vec<u8>, OwnedFd)>,
}

/// What is done before anything changes in a directory. If it fails, nothing changes.
pub type BeforeChanges<'a> = &'a mut dyn FnMut() -> std::io::Result<()>;

/// A file whose bytes come in.
struct Incoming {
    file: File,
    hasher: Hasher,
    written: u64,
}

impl Sent {
    /// What a walk found, without its attributes. `first_name` is the path of which a file is another name.
    pub fn of(entry: &Entry, first_name: Option<&[u8]>) -> Sent {
        let Stat { kind, mode, uid, gid, mtime, rdev, size, .. } = entry.stat;
        let link = entry.link.as_ref().map(|link| link.as_bytes());
        Sent {
            path: lexical::to_bytes(&entry.path).to_vec(),
            kind,
            mode,
            uid,
            gid,
            size: if kind == Kind::Dir || first_name.is_some() { 0 } else { size },
            mtime,
            link: first_name.or(link).unwrap_or_default().to_vec(),
            rdev,
            xattrs: Xattrs::new(),
        }
    }

    /// Fails for what no file system takes, before anybody keeps it.
    pub fn check_lengths(&self) -> Result<(), Error> {
        if self.path.len().max(self.link.len()) <= MAX_NAME {
            return Ok(());
        }
        match self.path.split(|byte| *byte == b'/').find(|name| name.len() > MAX_NAME) {
            Some(name) => Err(Error::too_long("name", MAX_NAME, name)),
            None if self.path.len() > MAX_PATH => Err(Error::too_long("path", MAX_PATH, &self.path)),
            None if self.link.len() > MAX_PATH => Err(Error::too_long("link", MAX_PATH, &self.link)),
            None => Ok(()),
        }
    }

    /// A plain directory.
    pub fn dir(path: &[u8], mtime: Time) -> Sent {
        let (kind, link, xattrs) = (Kind::Dir, Vec::new(), Xattrs::new());
        Sent { path: path.to_vec(), kind, mode: 0o755, uid: 0, gid: 0, size: 0, mtime, link, rdev: 0, xattrs }
    }
}

impl<'a> Receiver<'a> {
    /// Begins a transfer into `root`. Without a mirror of what is there, it is emptied first. Digests of what comes go
    /// into `memo`. Nothing changes before `before_changes` was called: where the client has nothing new, nothing does.
    pub fn new(
        root: &'a Root,
        mirror: Option<Mirror>,
        differ: Differ,
        memo: &'a dyn Memo,
        before_changes: BeforeChanges<'a>,
    ) -> Result<Self, Error> {
        let is_known = mirror.is_some();
        let mut receiver = Receiver {
            root,
            memo,
            differ,
            before_changes: Some(before_changes),
            keeps_others: false,
            now: Files::default(),
            before: Records::of(mirror),
            open: vec![(Vec::new(), None)],
            links: Vec::new(),
            awaited: HashMap::new(),
            touched: BTreeSet::new(),
            unlinked: BTreeSet::new(),
            dir: None,
        };
        if !is_known {
            receiver.changes()?;
            empty(root)?;
        }
        Ok(receiver)
    }

    /// Begins to take a tree into a directory that has files of its own: those stay, unless one of the same name comes.
    pub fn beside(root: &'a Root) -> Self {
        Receiver {
            root,
            memo: &Forgets,
            differ: Differ::None,
            before_changes: None,
            keeps_others: true,
            now: Files::default(),
            before: Records::of(None),
            open: vec![(Vec::new(), None)],
            links: Vec::new(),
            awaited: HashMap::new(),
            touched: BTreeSet::new(),
            unlinked: BTreeSet::new(),
            dir: None,
        }
    }

    /// Takes the client's next file. Files come in walk order, a directory before what it holds.
    pub fn take(&mut self, sent: Sent) -> Result<Bytes, Error> {
        self.check_place(&sent)?;
        while self.before.peek().is_some_and(|old| by_walk(&old.sent.path, &sent.path) == Ordering::Less) {
            self.remove_next()?;
        }
        let index = self.now.len();
        let old = self.before.next_if(|old| old.sent.path == sent.path);
        if sent.kind == Kind::Dir {
            self.open.push((sent.path.clone(), Some(index)));
        }
        let is_name = sent.kind == Kind::File && !sent.link.is_empty();
        if let Some(old) = old {
            if self.is_same(&old.sent, &sent) {
                self.now.push(&Mirrored { sent, here: old.here });
                return Ok(Bytes::NotWanted);
            }
            if !(old.sent.kind == Kind::Dir && sent.kind == Kind::Dir) {
                self.remove(&old)?;
            }
        }
        self.changes()?;
        self.touched.insert(parent_of(&sent.path).to_vec());
        if self.keeps_others {
            self.make_way(&sent)?;
        }
        let wanted = sent.kind == Kind::File && !is_name;
        let here = match (wanted, is_name) {
            (true, _) => {
                self.awaited.insert(index, None);
                not_yet(&sent)
            }
            (_, true) => {
                self.links.push(index);
                not_yet(&sent)
            }
            _ => self.make(&sent)?,
        };
        self.now.push(&Mirrored { sent, here });
        Ok(if wanted { Bytes::Wanted } else { Bytes::NotWanted })
    }

    /// How many files were taken: the number of the next one.
    pub fn count(&self) -> usize {
        self.now.len()
    }

    /// Takes bytes of the file with that number, the first one being 0. Fails for files whose bytes are not wanted.
    pub fn write(&mut self, index: usize, bytes: &[u8]) -> Result<(), Error> {
        let mut incoming = self.open(index)?;
        incoming.hasher.update(bytes);
        incoming.written += bytes.len() as u64;
        let written = incoming.file.write_all(bytes);
        written.map_err(|source| Error::io("write", shown(self.now.path(index)), source))?;
        self.awaited.insert(index, Some(incoming));
        Ok(())
    }

    /// Takes a file that is awaited out of the list; one of which nothing came yet is made.
    fn open(&mut self, index: usize) -> Result<Box<Incoming>, Error> {
        match self.awaited.remove(&index) {
            Some(Some(incoming)) => return Ok(incoming),
            Some(None) => {}
            None => return Err(Error::io("receive", index.to_string(), Errno::INVAL)),
        }
        let sent = self.now.get(index).sent;
        let header = FileHeader { stat: &not_yet(&sent).stat, link: &[], xattrs: &sent.xattrs };
        let hasher = header.hasher(Flavor::Context);
        let (path, mode) = (sent.path, Mode::from_raw_mode(sent.mode & 0o777 | 0o200));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = self.dir(parent_of(&path))?;
        let file = rustix::fs::openat(dir, name_of(&path), flags, mode);
        let file = file.map_err(|errno| Error::io("create", shown(&path), errno))?;
        Ok(Box::new(Incoming { file: File::from(file), hasher, written: 0 }))
    }

    /// The file with that number is whole.
    pub fn close(&mut self, index: usize) -> Result<(), Error> {
        let incoming = self.open(index)?;
        let sent = self.now.get(index).sent;
        let failed = |call, errno: Errno| Error::io(call, shown(&sent.path), errno);
        if incoming.written == 0 && sent.size > 0 {
            return Err(Error::Unsent(shown(&sent.path)));
        }
        let file = &incoming.file;
        for (name, value) in &sent.xattrs {
            set_xattr(self.keeps_others, name, |name| rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()))
                .map_err(|errno| failed("set attribute of", errno))?;
        }
        rustix::fs::futimens(file, &timestamps((sent.mtime, sent.mtime)))
            .map_err(|errno| failed("set times of", errno))?;
        let mut here = Here::from(rustix::fs::fstat(file).map_err(|errno| failed("stat", errno))?);
        if here.stat.mode != sent.mode {
            rustix::fs::fchmod(file, Mode::from_raw_mode(sent.mode))
                .map_err(|errno| failed("change mode of", errno))?;
            here = Here::from(rustix::fs::fstat(file).map_err(|errno| failed("stat", errno))?);
        }
        let remembered = Remembered { digest: incoming.hasher.finish(), no_xattrs: sent.xattrs.is_empty() };
        self.memo.put(&MemoKey::of(&here.stat), remembered);
        // The client's file may have grown or shrunk since it was listed.
        self.now.set(index, &Fixed { size: incoming.written, here, ..self.now.fixed(index) });
        Ok(())
    }

    /// All files are taken and whole: what is left of earlier transfers goes, and the rest is settled.
    pub fn finish(mut self) -> Result<Received, Error> {
        while self.before.peek().is_some() {
            self.remove_next()?;
        }
        if let Some(index) = self.awaited.keys().next() {
            return Err(Error::Changed(shown(self.now.path(*index))));
        }
        for index in std::mem::take(&mut self.links) {
            self.link(index)?;
        }
        self.look_again()?;
        self.settle_dirs()?;
        Ok(Received(self.now))
    }

    /// Paths must be clean, in order, and lie in directories that were sent.
    fn check_place(&mut self, sent: &Sent) -> Result<(), Error> {
        sent.check_lengths()?;
        let refuse = |errno| Err(Error::io("receive", shown(&sent.path), errno));
        let bad = |name: &[u8]| name.is_empty() || name == b"." || name == b".." || name.contains(&0);
        if sent.path.split(|byte| *byte == b'/').any(bad) {
            return refuse(Errno::INVAL);
        }
        let last = self.now.len().checked_sub(1).map(|last| self.now.path(last));
        if last.is_some_and(|last| by_walk(last, &sent.path) != Ordering::Less) {
            return refuse(Errno::INVAL);
        }
        let parent = parent_of(&sent.path);
        while self.open.len() > 1 && self.open.last().is_some_and(|(dir, _)| dir != parent) {
            self.open.pop();
        }
        match self.open.last() {
            Some((dir, _)) if dir == parent => {}
            _ => return refuse(Errno::NOTDIR),
        }
        if self.open.len() > MAX_DEPTH {
            return Err(Error::TooDeep(shown(&sent.path)));
        }
        Ok(())
    }

    fn is_same(&self, old: &Sent, new: &Sent) -> bool {
        match (old.kind, new.kind) {
            (Kind::Dir, Kind::Dir) => Sent { mtime: old.mtime, ..new.clone() } == *old,
            // What it is another name for may have been sent anew.
            (Kind::File, Kind::File) if !new.link.is_empty() => false,
            (Kind::File, Kind::File) => self.differ == Differ::Metadata && old == new,
            _ => old == new,
        }
    }

    fn remove_next(&mut self) -> Result<(), Error> {
        if let Some(old) = self.before.next() {
            self.touched.insert(parent_of(&old.sent.path).to_vec());
            self.remove(&old)?;
        }
        Ok(())
    }

    /// Something is about to change.
    fn changes(&mut self) -> Result<(), Error> {
        let Some(tell) = self.before_changes.take() else { return Ok(()) };
        tell().map_err(|source| Error::io("change", self.root.path(), source))
    }
}

/// Nobody asks for what is taken beside other files.
struct Forgets;

impl Memo for Forgets {
    fn get(&self, _: &MemoKey) -> Option<Remembered> {
        None
    }

    fn put(&self, _: &MemoKey, _: Remembered) {}
}

/// What is known of a file before it is here.
fn not_yet(sent: &Sent) -> Here {
    let (dev, ino, nlink) = (0, 0, 1);
    let (atime, mtime, ctime) = (sent.mtime, sent.mtime, Time::default());
    let Sent { kind, mode, uid, gid, size, rdev, .. } = *sent;
    let stat = Stat { kind, mode, uid, gid, size, atime, mtime, ctime, dev, ino, nlink, rdev };
    Here { stat, allocated: 0 }
}

/// Names compare one by one, so that a slash is less than any other byte.
pub fn by_walk(one: &[u8], two: &[u8]) -> Ordering {
    one.split(|byte| *byte == b'/').cmp(two.split(|byte| *byte == b'/'))
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}

fn parent_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |slash| &path[..slash])
}

fn name_of(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path.rsplit(|byte| *byte == b'/').next().unwrap_or(path))
}

#[cfg(test)]
mod tests;
