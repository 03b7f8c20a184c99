//! Compression of layers: one streaming pass out, a bounded and verified stream back in.
//!
//! ```text
//! tar bytes ─▶ blocks of fixed size ─┬▶ sha256 (diff id)                        own thread
//!                                    └▶ workers: deflate or zstd, one block each
//!                                          └▶ in order: sha256 (digest) ─▶ sink  own thread
//! ```
//!
//! Invariants: the bytes depend on content, kind and level alone, never on the number of threads or on how the
//! content was cut into writes; memory is a few blocks per thread.

mod compressor;
mod decompressor;
mod deflate_end;
mod gzip;
#[cfg(test)]
mod tests;
mod unpack;
mod verify;
mod zstd;

use std::fmt;
use std::str::FromStr;

pub use compressor::{Compressed, Compressor, Tar};
pub use decompressor::Decompressor;
pub use unpack::{BlobTar, Unpacked, Unpacker};
pub use verify::VerifyingReader;

use crate::Error;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compression {
    /// Plain tar.
    Uncompressed,
    /// One gzip member.
    #[default]
    Gzip,
    /// zstd frames.
    Zstd,
}

impl Compression {
    /// What a stream that begins with `head` (4 bytes suffice) is compressed with.
    pub fn detect(head: &[u8]) -> Compression {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A zstd stream may begin with a skippable frame, as those of `pzstd` do.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::Uncompressed,
        }
    }

    /// The levels that may be asked for.
    fn levels(self) -> (i32, i32) {
        match self {
            Compression::Uncompressed => (i32::MIN, i32::MAX),
            Compression::Gzip => (-1, 9),
            Compression::Zstd => (-7, 22),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::Uncompressed => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        })
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Compression, Error> {
        match text {
            "uncompressed" => Ok(Compression::Uncompressed),
            "gzip" => Ok(Compression::Gzip),
            "zstd" => Ok(Compression::Zstd),
            other => Err(Error::Compression(other.to_owned())),
        }
    }
}

/// An attribute that says nothing that can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadAttribute {
    /// `key=value`, which BuildKit knows.
    Unsupported(&'static str),
    /// A value that nobody knows.
    Value {
        /// The attribute.
        key: &'static str,
        /// Its value.
        value: String,
        /// What was expected.
        why: String,
    },
}

/// What to make of a layer, and with how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressionOptions {
    /// The kind.
    pub kind: Compression,
    /// gzip -1 to 9, zstd -7 to 22; none is the kind's default.
    pub level: Option<i32>,
    /// Whether layers that exist with another compression are made anew.
    pub force: bool,
    /// Threads that compress; the bytes do not depend on it. 0 counts as 1.
    pub threads: usize,
}

impl CompressionOptions {
    /// The default level of a kind.
    pub fn new(kind: Compression, threads: usize) -> CompressionOptions {
        CompressionOptions { kind, level: None, force: false, threads }
    }

    /// Reads what people write: the attributes `compression`, `compression-level` and `force-compression` of outputs and caches.
    /// A level beyond those of zstd is the nearest one, as in BuildKit; those of gzip are Go's: -1 is the default, -2 the fastest.
    pub fn read(kind: Option<&str>, level: Option<&str>, force: bool) -> Result<CompressionOptions, BadAttribute> {
        let bad = |key, value: &str, why: String| BadAttribute::Value { key, value: value.to_owned(), why };
        let kind = match kind {
            None | Some("" | "gzip") => Compression::Gzip,
            Some("zstd") => Compression::Zstd,
            Some("uncompressed") => Compression::Uncompressed,
            Some("estargz") => return Err(BadAttribute::Unsupported("compression=estargz")),
            Some(other) => return Err(bad("compression", other, "expected gzip, zstd or uncompressed".to_owned())),
        };
        let level = level.map(|text| {
            let number = text.parse::<i32>().ok();
            let level = match kind {
                Compression::Uncompressed => number.map(|_| None),
                Compression::Zstd => number.map(|level| Some(level.clamp(0, 22))),
                Compression::Gzip => number.filter(|level| (-2..=9).contains(level)).map(|level| match level {
                    -2 => Some(1),
                    -1 => None,
                    level => Some(level),
                }),
            };
            let expected = if kind == Compression::Gzip { "expected 0 to 9" } else { "expected a number" };
            level.ok_or_else(|| bad("compression-level", text, expected.to_owned()))
        });
        Ok(CompressionOptions { kind, level: level.transpose()?.flatten(), force, threads: 1 })
    }

    /// What is to be said of a level that people wrote and that counts as another one.
    pub fn remark(&self, written: Option<&str>) -> Option<String> {
        let (written, level) = (written?, self.level?);
        let is_other = written.parse() != Ok(level);
        is_other.then(|| format!("`compression-level={written}` of {} counts as {level}", self.kind))
    }

    /// Fails where the level is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        let (min, max) = self.kind.levels();
        match self.level {
            Some(level) if level < min || level > max => {
                let kind = if self.kind == Compression::Gzip { "gzip" } else { "zstd" };
                Err(Error::CompressionLevel { kind, level, min, max })
            }
            _ => Ok(()),
        }
    }

    /// Whether a layer that exists as `have` must be made anew.
    pub fn needs_conversion(&self, have: Option<Compression>) -> bool {
        self.force && have != Some(self.kind)
    }
}

impl Default for CompressionOptions {
    fn default() -> CompressionOptions {
        CompressionOptions::new(Compression::default(), 1)
    }
}
