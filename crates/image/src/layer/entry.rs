//! [`Entry`]: one changed file of a layer, as snapshots and tars exchange it.

use std::collections::BTreeMap;

use super::tar::{Format, Header, Time, TypeFlag};
use super::whiteout::{OPAQUE, whiteout_path};

/// A file of a layer without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path below the root: no slash at either end, any bytes but NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions with set-uid, set-gid and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of its content. Layers keep whole seconds.
    pub mtime: Time,
    /// Extended attributes. Upstream's layers hold `security.capability` and nothing else.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file with so many bytes of content.
    File {
        /// Number of bytes.
        size: u64,
    },
    /// Another name of an earlier entry.
    HardLink {
        /// Path of the earlier entry.
        target: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// Its text, taken as it is.
        target: Vec<u8>,
    },
    /// A directory.
    Directory,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

impl EntryKind {
    /// Bytes of content that follow the entry.
    pub fn size(&self) -> u64 {
        match self {
            EntryKind::File { size } => *size,
            _ => 0,
        }
    }
}

impl Entry {
    /// An entry of root's with time 0.
    pub fn new(path: impl Into<Vec<u8>>, kind: EntryKind, mode: u32) -> Entry {
        Entry { path: path.into(), kind, mode, uid: 0, gid: 0, mtime: Time::default(), xattrs: BTreeMap::new() }
    }

    /// The mark that `path` is gone; the bytes of containerd's since 2.0 (time 0, mode 0).
    pub fn whiteout(path: &[u8]) -> Entry {
        Entry::new(whiteout_path(path), EntryKind::File { size: 0 }, 0)
    }

    /// The mark that a directory hides all that lies below it in lower layers.
    pub fn opaque(directory: &[u8]) -> Entry {
        let mut path = directory.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(OPAQUE);
        Entry::new(path, EntryKind::File { size: 0 }, 0)
    }

    /// The header that containerd's differ writes for it: whole seconds, no user names, directories end in `/`.
    pub fn to_header(&self) -> Header {
        let mut header = Header {
            path: self.path.clone(),
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            mtime: Time { secs: self.mtime.secs, nanos: 0 },
            xattrs: self.xattrs.clone(),
            format: Format::PAX,
            ..Header::default()
        };
        match &self.kind {
            EntryKind::File { size } => header.size = *size,
            EntryKind::HardLink { target } => {
                header.flag = TypeFlag::HardLink;
                header.link.clone_from(target);
            }
            EntryKind::Symlink { target } => {
                header.flag = TypeFlag::Symlink;
                header.link.clone_from(target);
            }
            EntryKind::Directory => {
                header.flag = TypeFlag::Directory;
                header.path.push(b'/');
            }
            EntryKind::CharDevice { major, minor } => {
                header.flag = TypeFlag::CharDevice;
                header.device = (*major, *minor);
            }
            EntryKind::BlockDevice { major, minor } => {
                header.flag = TypeFlag::BlockDevice;
                header.device = (*major, *minor);
            }
            EntryKind::Fifo => header.flag = TypeFlag::Fifo,
        }
        header
    }

    /// The file that a header describes; its path as written but for slashes at the end.
    ///
    /// The path is not made safe: whoever unpacks resolves it below a root.
    pub fn from_header(header: Header) -> Entry {
        let mut path = header.path;
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let (major, minor) = header.device;
        let kind = match header.flag {
            TypeFlag::File => EntryKind::File { size: header.size },
            TypeFlag::HardLink => EntryKind::HardLink { target: header.link },
            TypeFlag::Symlink => EntryKind::Symlink { target: header.link },
            TypeFlag::CharDevice => EntryKind::CharDevice { major, minor },
            TypeFlag::BlockDevice => EntryKind::BlockDevice { major, minor },
            TypeFlag::Directory => EntryKind::Directory,
            TypeFlag::Fifo => EntryKind::Fifo,
        };
        Entry {
            path,
            kind,
            mode: header.mode,
            uid: header.uid,
            gid: header.gid,
            mtime: header.mtime,
            xattrs: header.xattrs,
        }
    }
}
