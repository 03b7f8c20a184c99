//! Rewriting a tar while it streams: no time later than an epoch.

use std::io::{Read, Write};

use super::reader::{Item, Reader, copy_item};
use super::{Header, Time, Writer};
use crate::Error;

/// Copies a tar with all times clamped to `epoch` (seconds since 1970): BuildKit's `rewrite-timestamp`.
///
/// Headers are read and written again by the rules of Go's package, so the result has upstream's bytes. Reads `source`
/// to its end; writes a complete archive.
pub fn clamp_times<R: Read, W: Write>(source: R, sink: W, epoch: i64) -> Result<W, Error> {
    let epoch = Time::from_secs(epoch);
    let mut reader = Reader::new(source);
    let mut writer = Writer::new(sink);
    while let Some(mut item) = reader.next_item()? {
        if let Item::Entry(header) = &mut item {
            clamp(header, epoch);
        }
        copy_item(&mut reader, &item, &mut writer)?;
    }
    reader.drain()?;
    writer.finish()
}

fn clamp(header: &mut Header, epoch: Time) {
    header.mtime = header.mtime.min(epoch);
    for time in [&mut header.atime, &mut header.ctime].into_iter().flatten() {
        *time = (*time).min(epoch);
    }
}
