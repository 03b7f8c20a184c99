//! The packets of `FileSync` and `FileSend` (`fsutil.types`).
//!
//! The same on the wire as the generated ones, but names are bytes here: a file's name need not be text, and Go does not
//! insist on it; and content shares the buffer that it arrived in.

use std::collections::HashMap;

use bytes::Bytes;

/// One message of a transfer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Packet {
    /// What it is.
    #[prost(enumeration = "PacketType", tag = "1")]
    pub r#type: i32,
    /// Of [`PacketType::Stat`]: the next file; none ends the list.
    #[prost(message, optional, tag = "2")]
    pub stat: Option<Stat>,
    /// Of [`PacketType::Req`] and [`PacketType::Data`]: the file's place in the list, from 0.
    #[prost(uint32, tag = "3")]
    pub id: u32,
    /// Of [`PacketType::Data`]: bytes of the file, none at its end; of [`PacketType::Err`]: the message.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PacketType {
    /// The sender lists a file.
    Stat = 0,
    /// The receiver wants a file's bytes.
    Req = 1,
    /// The sender sends some.
    Data = 2,
    /// The receiver has all that it wants, and the sender says good-bye.
    Fin = 3,
    /// One side gives up.
    Err = 4,
}

/// A file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stat {
    /// Relative, `/` between names.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Type and permissions as Go's `fs.FileMode` has them: see [`mode`].
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// The owner.
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    /// The group.
    #[prost(uint32, tag = "4")]
    pub gid: u32,
    /// Bytes.
    #[prost(int64, tag = "5")]
    pub size: i64,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "6")]
    pub mod_time: i64,
    /// Where a link points; of a regular file, the path of which it is another name.
    #[prost(bytes = "vec", tag = "7")]
    pub linkname: Vec<u8>,
    /// Of devices.
    #[prost(int64, tag = "8")]
    pub devmajor: i64,
    /// Of devices.
    #[prost(int64, tag = "9")]
    pub devminor: i64,
    /// Extended attributes.
    #[prost(map = "string, bytes", tag = "10")]
    pub xattrs: HashMap<String, Vec<u8>>,
}

/// The bits of Go's `fs.FileMode` beside the nine permissions.
pub mod mode {
    /// A directory.
    pub const DIR: u32 = 1 << 31;
    /// A symbolic link.
    pub const SYMLINK: u32 = 1 << 27;
    /// A device; a block device unless [`CHAR`] is there too.
    pub const DEVICE: u32 = 1 << 26;
    /// A named pipe.
    pub const PIPE: u32 = 1 << 25;
    /// A socket.
    pub const SOCKET: u32 = 1 << 24;
    /// Set-uid.
    pub const SETUID: u32 = 1 << 23;
    /// Set-gid.
    pub const SETGID: u32 = 1 << 22;
    /// With [`DEVICE`]: a character device.
    pub const CHAR: u32 = 1 << 21;
    /// Sticky.
    pub const STICKY: u32 = 1 << 20;
    /// Neither file, directory, link, device, pipe nor socket.
    pub const IRREGULAR: u32 = 1 << 19;
    /// What is set on all but regular files.
    pub const TYPE: u32 = DIR | SYMLINK | PIPE | SOCKET | DEVICE | CHAR | IRREGULAR;
}
