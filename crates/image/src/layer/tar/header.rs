//! [`Header`]: all that a tar says of one file, exact enough to write the same bytes again.

use std::collections::BTreeMap;

/// The fields of an entry as the archive has them. For a file of a layer see [`Entry`](crate::layer::Entry).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub flag: TypeFlag,
    /// The name; directories usually end in `/`.
    pub path: Vec<u8>,
    /// The target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// Permissions with set-uid, set-gid and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Name of the owner.
    pub uname: Vec<u8>,
    /// Name of the group.
    pub gname: Vec<u8>,
    /// Bytes of content, holes included.
    pub size: u64,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Time of the last access, where it is recorded.
    pub atime: Option<Time>,
    /// Time of the last change of the inode, where it is recorded.
    pub ctime: Option<Time>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes (`SCHILY.xattr.*`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// All other PAX records, as read.
    pub records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Which formats may be used to write it; the reader's best guess.
    pub format: Format,
}

/// The type of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TypeFlag {
    /// `0`, and NUL, `7` and `S` when read.
    #[default]
    File,
    /// `1`
    HardLink,
    /// `2`
    Symlink,
    /// `3`
    CharDevice,
    /// `4`
    BlockDevice,
    /// `5`
    Directory,
    /// `6`
    Fifo,
}

impl TypeFlag {
    pub(super) fn byte(self) -> u8 {
        match self {
            TypeFlag::File => b'0',
            TypeFlag::HardLink => b'1',
            TypeFlag::Symlink => b'2',
            TypeFlag::CharDevice => b'3',
            TypeFlag::BlockDevice => b'4',
            TypeFlag::Directory => b'5',
            TypeFlag::Fifo => b'6',
        }
    }
}

/// Seconds and nanoseconds since 1970; negative seconds lie before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// Nanoseconds behind them, below 1,000,000,000.
    pub nanos: u32,
}

impl Time {
    /// A whole second.
    pub const fn from_secs(secs: i64) -> Time {
        Time { secs, nanos: 0 }
    }

    /// Whether Go holds it for "no time": the first second of the year 1.
    pub(super) fn is_go_zero(self) -> bool {
        self.secs == -62_135_596_800 && self.nanos == 0
    }

    /// The nearest whole second, halves away from the past, as Go's `Round`.
    pub(super) fn rounded(self) -> Time {
        Time::from_secs(self.secs.saturating_add(i64::from(self.nanos >= 500_000_000)))
    }
}

/// A set of tar formats. Empty means "whatever fits, times rounded": Go's `FormatUnknown`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Format(u8);

impl Format {
    /// No wish.
    pub const UNKNOWN: Format = Format(0);
    /// POSIX.1-1988.
    pub const USTAR: Format = Format(1);
    /// POSIX.1-2001; ustar where no record is needed.
    pub const PAX: Format = Format(2);
    /// GNU's.
    pub const GNU: Format = Format(4);
    pub(super) const ALL: Format = Format(7);
    pub(super) const USTAR_OR_PAX: Format = Format(3);

    pub(super) fn has(self, other: Format) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn only(self, other: Format) -> Format {
        Format(self.0 & other.0)
    }

    pub(super) fn without(self, other: Format) -> Format {
        Format(self.0 & !other.0)
    }

    pub(super) fn or(self, other: Format) -> Format {
        Format(self.0 | other.0)
    }
}
