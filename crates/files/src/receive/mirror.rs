//! What a transfer left in a directory, in memory and as it is stored.

use std::collections::HashSet;
use std::ffi::OsString;
use std::iter::Peekable;
use std::os::unix::ffi::OsStringExt;

use super::{Sent, by_walk};
use crate::checksum::Xattrs;
use crate::lexical;
use crate::stat::{Kind, Stat, Time};
use crate::walk::Entry;

/// What a [`Mirror`] begins with: its version.
const MAGIC: &[u8; 8] = b"mirror02";

/// Bytes of which nobody minds where they are.
const SMALL: u64 = 64 * 1024;

/// What a transfer left in a directory, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror(pub(super) Vec<u8>);

/// What a transfer left in a directory.
#[derive(Debug)]
pub struct Received(pub(super) Files);

/// Files in walk order, each as it is stored: a third of what it takes up otherwise, and there may be many.
#[derive(Debug, Default)]
pub(super) struct Files {
    bytes: Vec<u8>,
    /// Where each begins.
    begins: Vec<usize>,
}

/// The files of a mirror, read one by one.
pub(super) struct Records {
    bytes: Vec<u8>,
    at: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mirrored {
    pub(super) sent: Sent,
    pub(super) here: Here,
}

/// A file here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Here {
    pub(super) stat: Stat,
    /// Bytes that the file system allocated for it.
    pub(super) allocated: u64,
}

impl From<rustix::fs::Stat> for Here {
    fn from(stat: rustix::fs::Stat) -> Here {
        Here { stat: stat.into(), allocated: crate::stat::allocated(&stat) }
    }
}

impl Mirror {
    /// What [`Received::write_to`] wrote; none if that is damaged or of another version.
    pub fn from_bytes(bytes: Vec<u8>) -> Option<Mirror> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        while !rest.is_empty() {
            Mirrored::read(&mut rest)?;
        }
        Some(Mirror(bytes))
    }
}

impl Iterator for Records {
    type Item = Mirrored;

    fn next(&mut self) -> Option<Mirrored> {
        let mut rest = self.bytes.get(self.at..)?;
        let next = Mirrored::read(&mut rest);
        self.at = self.bytes.len() - rest.len();
        next
    }
}

impl Records {
    pub(super) fn of(mirror: Option<Mirror>) -> Peekable<Records> {
        let bytes = mirror.map(|mirror| mirror.0).unwrap_or_default();
        Records { bytes, at: MAGIC.len() }.peekable()
    }
}

impl Received {
    /// The files, as a walk of the client's directory would list them.
    pub fn into_entries(self) -> impl Iterator<Item = Entry> {
        let entry = |Mirrored { sent, here: Here { stat, .. } }: Mirrored| Entry {
            path: lexical::to_path(&sent.path).to_owned(),
            // Nobody sends access times.
            stat: Stat { uid: sent.uid, gid: sent.gid, mode: sent.mode, atime: stat.mtime, ..stat },
            link: (sent.kind == Kind::Symlink).then(|| OsString::from_vec(sent.link)),
        };
        Records { bytes: self.0.bytes, at: 0 }.map(entry)
    }

    /// Bytes that the file system allocated for all of it, without the root; a file with several names counts once. None where
    /// that is much less than what is in the files: it may not have counted all of it yet (ZFS).
    pub fn allocated(&self) -> Option<u64> {
        let mut seen = HashSet::new();
        let files = (0..self.0.len()).map(|index| self.0.fixed(index).here);
        let once = files
            .filter(|Here { stat, .. }| stat.kind == Kind::Dir || stat.nlink < 2 || seen.insert((stat.dev, stat.ino)));
        let add = |(size, allocated), here: Here| {
            let inside = if here.stat.kind == Kind::File { here.stat.size } else { 0 };
            (size + inside, allocated + here.allocated)
        };
        let (size, allocated) = once.fold((0, 0), add);
        // Files of a few bytes can lie in their inodes.
        (allocated >= size / 2 || size < SMALL).then_some(allocated)
    }

    /// Appends what [`Mirror::from_bytes`] reads.
    pub fn write_to(&self, bytes: &mut Vec<u8>) {
        bytes.reserve_exact(MAGIC.len() + self.0.bytes.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.0.bytes);
    }
}

impl Files {
    pub(super) fn len(&self) -> usize {
        self.begins.len()
    }

    pub(super) fn push(&mut self, file: &Mirrored) {
        self.begins.push(self.bytes.len());
        let Mirrored { sent, here } = file;
        self.bytes.extend_from_slice(&Fixed::of(sent, here).to_bytes());
        put_text(&mut self.bytes, &sent.path);
        put_text(&mut self.bytes, &sent.link);
        self.bytes.extend_from_slice(&(sent.xattrs.len() as u32).to_le_bytes());
        for (name, value) in &sent.xattrs {
            put_text(&mut self.bytes, name);
            put_text(&mut self.bytes, value);
        }
    }

    pub(super) fn get(&self, index: usize) -> Mirrored {
        Mirrored::read(&mut &self.bytes[self.begins[index]..]).expect("as it was written")
    }

    pub(super) fn path(&self, index: usize) -> &[u8] {
        self.path_at(self.begins[index])
    }

    fn path_at(&self, begin: usize) -> &[u8] {
        let rest = &self.bytes[begin + Fixed::BYTES..];
        let (len, rest) = rest.split_first_chunk().expect("as it was written");
        &rest[..u32::from_le_bytes(*len) as usize]
    }

    /// All but its names and attributes.
    pub(super) fn fixed(&self, index: usize) -> Fixed {
        Fixed::read(&mut &self.bytes[self.begins[index]..]).expect("as it was written")
    }

    pub(super) fn set(&mut self, index: usize, fixed: &Fixed) {
        self.bytes[self.begins[index]..][..Fixed::BYTES].copy_from_slice(&fixed.to_bytes());
    }

    pub(super) fn set_here(&mut self, index: usize, here: Here) {
        self.set(index, &Fixed { here, ..self.fixed(index) });
    }

    /// The file of that path.
    pub(super) fn find(&self, path: &[u8]) -> Option<usize> {
        self.begins.binary_search_by(|begin| by_walk(self.path_at(*begin), path)).ok()
    }
}

/// What is as long for each file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixed {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: Time,
    pub(super) rdev: u64,
    pub(super) here: Here,
}

impl Fixed {
    const BYTES: usize = 1 + 7 * 4 + 7 * 8 + 3 * 8;

    fn of(sent: &Sent, here: &Here) -> Fixed {
        let Sent { kind, mode, uid, gid, size, mtime, rdev, .. } = *sent;
        Fixed { kind, mode, uid, gid, size, mtime, rdev, here: *here }
    }

    fn to_bytes(self) -> [u8; Fixed::BYTES] {
        let Fixed { kind, mode, uid, gid, size, mtime, rdev, here: Here { stat, allocated } } = self;
        let mut bytes = [0; Fixed::BYTES];
        bytes[0] = kind_to_byte(kind);
        let four = [mode, uid, gid, mtime.nanos, stat.mode, stat.mtime.nanos, stat.ctime.nanos];
        let (secs, mtime_secs, ctime_secs) = (mtime.secs as u64, stat.mtime.secs as u64, stat.ctime.secs as u64);
        let eight = [size, rdev, stat.size, stat.dev, stat.ino, stat.nlink, allocated, secs, mtime_secs, ctime_secs];
        let numbers = four.iter().flat_map(|number| number.to_le_bytes());
        let numbers = numbers.chain(eight.iter().flat_map(|number| number.to_le_bytes()));
        bytes[1..].iter_mut().zip(numbers).for_each(|(byte, number)| *byte = number);
        bytes
    }

    /// Of the file here, owners are what was sent.
    fn read(rest: &mut &[u8]) -> Option<Fixed> {
        let kind = kind_of_byte(take::<1>(rest)?[0])?;
        let mut four = || take::<4>(rest).map(u32::from_le_bytes);
        let [mode, uid, gid, nanos, here_mode, mtime_nanos, ctime_nanos] =
            [four()?, four()?, four()?, four()?, four()?, four()?, four()?];
        let mut eight = || take::<8>(rest).map(u64::from_le_bytes);
        let [size, rdev, here_size, dev, ino, nlink, allocated] =
            [eight()?, eight()?, eight()?, eight()?, eight()?, eight()?, eight()?];
        let [secs, mtime_secs, ctime_secs] = [eight()? as i64, eight()? as i64, eight()? as i64];
        let time = |secs, nanos| Time { secs, nanos };
        let (mtime, ctime) = (time(mtime_secs, mtime_nanos), time(ctime_secs, ctime_nanos));
        let atime = mtime;
        let stat =
            Stat { kind, mode: here_mode, uid, gid, size: here_size, atime, mtime, ctime, dev, ino, nlink, rdev };
        let here = Here { stat, allocated };
        Some(Fixed { kind, mode, uid, gid, size, mtime: time(secs, nanos), rdev, here })
    }
}

impl Mirrored {
    fn read(rest: &mut &[u8]) -> Option<Mirrored> {
        let Fixed { kind, mode, uid, gid, size, mtime, rdev, here } = Fixed::read(rest)?;
        let (path, link) = (take_text(rest)?, take_text(rest)?);
        let count = u32::from_le_bytes(take(rest)?);
        let mut xattrs = Xattrs::new();
        for _ in 0..count {
            xattrs.insert(take_text(rest)?, take_text(rest)?);
        }
        Some(Mirrored { sent: Sent { path, kind, mode, uid, gid, size, mtime, link, rdev, xattrs }, here })
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
    bytes.extend_from_slice(text);
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn take_text(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let len = u32::from_le_bytes(take(rest)?) as usize;
    let (text, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(text.to_vec())
}

const KINDS: [Kind; 7] = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Char, Kind::Block, Kind::Fifo, Kind::Socket];

fn kind_to_byte(kind: Kind) -> u8 {
    KINDS.iter().position(|known| *known == kind).unwrap_or_default() as u8
}

fn kind_of_byte(byte: u8) -> Option<Kind> {
    KINDS.get(usize::from(byte)).copied()
}
