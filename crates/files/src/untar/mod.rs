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

mod error;
mod make;
mod metadata;
#[cfg(test)]
mod tests;
mod walk;
mod whiteout;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use base::Cancel;
use rustix::fs::{Mode, OFlags};
use sys::path::Root;
use sys::shadow;

pub use error::Error;
use error::write_error;
pub(crate) use metadata::{CAPABILITY, is_private};
use walk::Unpacker;

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
    /// Such names are names and nothing else, though all other rules for layers hold.
    pub literal_names: bool,
    /// All entries belong to these ids whatever the headers say (`ADD --chown`).
    pub owner: Option<(u32, u32)>,
    /// Device nodes.
    pub devices: Devices,
    /// Modification times.
    pub times: Times,
    /// An entry `/` describes the directory that is unpacked into. Otherwise it is passed over.
    pub top: bool,
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
            literal_names: whiteouts == Whiteouts::Literal,
            owner: None,
            devices: Devices::Create,
            times: Times::Bounded,
            top: false,
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

/// Opens the directory to unpack into.
pub fn open_root(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
