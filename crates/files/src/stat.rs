//! What a file is: the part of `stat` that builds look at.

use rustix::fs::FileType;

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Whole seconds; negative before 1970.
    pub secs: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// The metadata of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The type.
    pub kind: Kind,
    /// The lower twelve bits: permissions, set-uid, set-gid, sticky.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// When it was last read.
    pub atime: Time,
    /// When its content last changed.
    pub mtime: Time,
    /// When anything of it last changed.
    pub ctime: Time,
    /// The file system.
    pub dev: u64,
    /// The file in the file system.
    pub ino: u64,
    /// The number of its names.
    pub nlink: u64,
    /// Of devices, which.
    pub rdev: u64,
}

impl Kind {
    /// The type in a raw mode; none for what Linux does not have.
    pub fn from_raw(file_type: FileType) -> Option<Kind> {
        Some(match file_type {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::Char,
            FileType::BlockDevice => Kind::Block,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => return None,
        })
    }

    /// The type bits of `mknod`.
    pub fn to_raw(self) -> FileType {
        match self {
            Kind::File => FileType::RegularFile,
            Kind::Dir => FileType::Directory,
            Kind::Symlink => FileType::Symlink,
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
        }
    }
}

impl Time {
    /// From nanoseconds since 1970, as LLB counts.
    pub fn from_nanos(nanos: i64) -> Time {
        Time { secs: nanos.div_euclid(1_000_000_000), nanos: nanos.rem_euclid(1_000_000_000) as u32 }
    }

    /// Now.
    pub fn now() -> Time {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Time { secs: now.tv_sec, nanos: now.tv_nsec as u32 }
    }

    pub(crate) fn to_timespec(self) -> rustix::fs::Timespec {
        rustix::fs::Timespec { tv_sec: self.secs, tv_nsec: self.nanos.into() }
    }

    /// This time and some milliseconds.
    pub(crate) fn plus_millis(self, millis: u32) -> Time {
        let nanos = u64::from(self.nanos) + u64::from(millis) * 1_000_000;
        Time { secs: self.secs + (nanos / 1_000_000_000) as i64, nanos: (nanos % 1_000_000_000) as u32 }
    }
}

impl Stat {
    /// Whether both speak of one file whose content nobody has touched in between.
    ///
    /// The device is left out: every mount of an overlay has one of its own, so that a tree that was hashed through one
    /// mount and is copied through another would seem to have changed.
    pub fn is_same_content(&self, other: &Stat) -> bool {
        let key = |stat: &Stat| (stat.ino, stat.size, stat.mtime, stat.ctime, stat.kind);
        key(self) == key(other)
    }
}

/// Bytes that the file system allocated for a file: its content, and a block for attributes. What is set aside behind the end of
/// a file that was just written (XFS does) is given back, and does not count.
#[expect(clippy::useless_conversion, reason = "the widths of these fields differ between architectures")]
pub(crate) fn allocated(stat: &rustix::fs::Stat) -> u64 {
    let number = |field: i64| u64::try_from(field).unwrap_or(0);
    let blocks = number(stat.st_blocks.into()) * 512;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let block = number(stat.st_blksize.into()).max(512);
            blocks.min(number(stat.st_size.into()).next_multiple_of(block) + block)
        }
        _ => blocks,
    }
}

impl From<rustix::fs::Stat> for Stat {
    #[expect(clippy::useless_conversion, reason = "the widths of these fields differ between architectures")]
    fn from(raw: rustix::fs::Stat) -> Stat {
        let time = |secs, nanos: u64| Time { secs, nanos: nanos as u32 };
        Stat {
            // A file of a type that Linux does not have cannot be met on Linux.
            kind: Kind::from_raw(FileType::from_raw_mode(raw.st_mode)).unwrap_or(Kind::File),
            mode: raw.st_mode & 0o7777,
            uid: raw.st_uid,
            gid: raw.st_gid,
            size: raw.st_size as u64,
            atime: time(raw.st_atime.into(), raw.st_atime_nsec.into()),
            mtime: time(raw.st_mtime.into(), raw.st_mtime_nsec.into()),
            ctime: time(raw.st_ctime.into(), raw.st_ctime_nsec.into()),
            dev: raw.st_dev.into(),
            ino: raw.st_ino.into(),
            nlink: raw.st_nlink.into(),
            rdev: raw.st_rdev.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::FallocateFlags;

    use super::*;

    #[test]
    fn what_is_set_aside_behind_the_end_of_a_file_does_not_count() {
        let file = tempfile::tempfile().expect("a file");
        rustix::io::write(&file, b"x").expect("written");
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).expect("set aside");
        let stat = rustix::fs::fstat(&file).expect("looked at");
        assert!(stat.st_blocks * 512 >= 1 << 20, "{stat:?}");
        let block = u64::try_from(stat.st_blksize).expect("a size");
        assert_eq!(allocated(&stat), 2 * block);
    }
}
