//! What a transfer left in a directory, in memory and as it is stored.

use std::collections::HashSet;
use std::ffi::OsString;
use std::iter::Peekable;
use std::os::unix::ffi::OsStringExt;

use super::Sent;
use crate::checksum::Xattrs;
use crate::lexical;
use crate::stat::{Kind, Stat, Time};
use crate::walk::Entry;

/// What a [`Mirror`] begins with: its version.
const MAGIC: &[u8; 8] = b"mirror02";

/// What a transfer left in a directory, as it is stored: with many files much smaller than in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror(pub(super) Vec<u8>);

/// What a transfer left in a directory.
#[derive(Debug)]
pub struct Received(pub(super) Vec<Mirrored>);

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
        self.0.into_iter().map(|Mirrored { sent, here: Here { stat, .. } }| Entry {
            path: lexical::to_path(&sent.path).to_owned(),
            // Nobody sends access times.
            stat: Stat { uid: sent.uid, gid: sent.gid, mode: sent.mode, atime: stat.mtime, ..stat },
            link: (sent.kind == Kind::Symlink).then(|| OsString::from_vec(sent.link)),
        })
    }

    /// Bytes that the file system allocated for all of it, without the root; a file with several names counts once.
    pub fn allocated(&self) -> u64 {
        let mut seen = HashSet::new();
        let once = |file: &&Mirrored| {
            let stat = &file.here.stat;
            stat.kind == Kind::Dir || stat.nlink < 2 || seen.insert((stat.dev, stat.ino))
        };
        self.0.iter().filter(once).map(|file| file.here.allocated).sum()
    }

    /// Appends what [`Mirror::from_bytes`] reads.
    pub fn write_to(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(MAGIC);
        self.0.iter().for_each(|file| file.write_to(bytes));
    }
}

impl Mirrored {
    fn write_to(&self, bytes: &mut Vec<u8>) {
        let Mirrored { sent, here: Here { stat, allocated } } = self;
        put_text(bytes, &sent.path);
        put_text(bytes, &sent.link);
        bytes.push(kind_to_byte(sent.kind));
        [sent.mode, sent.uid, sent.gid, sent.mtime.nanos, stat.mtime.nanos, stat.ctime.nanos]
            .iter()
            .for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        [sent.size, sent.rdev, stat.size, stat.dev, stat.ino, stat.nlink, *allocated]
            .iter()
            .for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        [sent.mtime.secs, stat.mtime.secs, stat.ctime.secs]
            .iter()
            .for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        bytes.extend_from_slice(&(sent.xattrs.len() as u32).to_le_bytes());
        for (name, value) in &sent.xattrs {
            put_text(bytes, name);
            put_text(bytes, value);
        }
    }

    fn read(rest: &mut &[u8]) -> Option<Mirrored> {
        let (path, link) = (take_text(rest)?, take_text(rest)?);
        let kind = kind_of_byte(take::<1>(rest)?[0])?;
        let mut four = || take::<4>(rest).map(u32::from_le_bytes);
        let [mode, uid, gid, sent_nanos, mtime_nanos, ctime_nanos] =
            [four()?, four()?, four()?, four()?, four()?, four()?];
        let mut eight = || take::<8>(rest).map(u64::from_le_bytes);
        let [sent_size, rdev, size, dev, ino, nlink, allocated] =
            [eight()?, eight()?, eight()?, eight()?, eight()?, eight()?, eight()?];
        let [sent_secs, mtime_secs, ctime_secs] = [eight()? as i64, eight()? as i64, eight()? as i64];
        let count = u32::from_le_bytes(take(rest)?);
        let mut xattrs = Xattrs::new();
        for _ in 0..count {
            xattrs.insert(take_text(rest)?, take_text(rest)?);
        }
        let time = |secs, nanos| Time { secs, nanos };
        let mtime = time(sent_secs, sent_nanos);
        let sent = Sent { path, kind, mode, uid, gid, size: sent_size, mtime, link, rdev, xattrs };
        let (mtime, ctime) = (time(mtime_secs, mtime_nanos), time(ctime_secs, ctime_nanos));
        let stat = Stat { kind, mode, uid, gid, size, atime: mtime, mtime, ctime, dev, ino, nlink, rdev };
        Some(Mirrored { sent, here: Here { stat, allocated } })
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
