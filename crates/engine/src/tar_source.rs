//! Tar streams as `files::untar` reads them.

use std::io::{self, Read};

use files::untar::{Entry, EntryKind, Source};
use image::layer::{self, tar};

/// The entries of a tar stream.
pub(crate) struct TarSource<R>(pub(crate) tar::Reader<R>);

impl<R: Read> Source for TarSource<R> {
    fn next(&mut self) -> io::Result<Option<Entry>> {
        Ok(self.0.next_entry().map_err(io::Error::other)?.map(entry))
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

fn entry(entry: layer::Entry) -> Entry {
    Entry {
        path: entry.path,
        kind: match entry.kind {
            layer::EntryKind::File { size } => EntryKind::Regular { size },
            layer::EntryKind::HardLink { target } => EntryKind::Hardlink(target),
            layer::EntryKind::Symlink { target } => EntryKind::Symlink(target),
            layer::EntryKind::Directory => EntryKind::Directory,
            layer::EntryKind::CharDevice { major, minor } => EntryKind::CharDevice(major, minor),
            layer::EntryKind::BlockDevice { major, minor } => EntryKind::BlockDevice(major, minor),
            layer::EntryKind::Fifo => EntryKind::Fifo,
        },
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: (entry.mtime.seconds, entry.mtime.nanos),
        atime: None,
        xattrs: entry.xattrs.into_iter().collect(),
    }
}
