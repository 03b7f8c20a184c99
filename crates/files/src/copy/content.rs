//! The bytes of a file: shared with the source where the file system can, holes kept, else copied.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use base::{Cancel, Hasher};
use rustix::io::Errno;

/// What is read at once; files that fit are read and written with one call each.
pub(super) const BUFFER: usize = 256 * 1024;
/// How much the kernel copies between two looks at cancellation.
const STEP: usize = 64 << 20;

/// Copies `size` bytes from the start of one file to the start of an empty one; tells how many it found.
///
/// With a hasher the bytes pass through here; else the kernel moves large files. Small ones it would share where the file
/// system can, which costs more than it saves: what was just written has to reach the disk first, and whoever reads the copy
/// next finds none of it in memory.
pub(super) fn copy(
    from: &File,
    to: &File,
    size: u64,
    buffer: &mut [u8],
    hasher: Option<&mut Hasher>,
    cancel: Option<&Cancel>,
) -> io::Result<u64> {
    if size <= buffer.len() as u64 || hasher.is_some() {
        return by_hand(from, to, size, buffer, hasher, cancel);
    }
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(to.metadata()?.len());
    }
    if has_holes(from, size) {
        return sparse(from, to, size, buffer, cancel);
    }
    match by_kernel(from, to, size, cancel)? {
        Some(copied) => Ok(copied),
        None => by_hand(from, to, size, buffer, None, cancel),
    }
}

/// Reads and writes. Ends at the end of the file, but goes on past `size` no further than to see that there is more.
fn by_hand(
    mut from: &File,
    mut to: &File,
    size: u64,
    buffer: &mut [u8],
    mut hasher: Option<&mut Hasher>,
    cancel: Option<&Cancel>,
) -> io::Result<u64> {
    let mut copied = 0;
    loop {
        let count = match from.read(buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if let Some(hasher) = hasher.as_deref_mut() {
            hasher.update(&buffer[..count]);
        }
        to.write_all(&buffer[..count])?;
        copied += count as u64;
        // A short read at the expected size is the end; no need to read nothing once more.
        if count == 0 || copied > size || (copied == size && count < buffer.len()) {
            return Ok(copied);
        }
        if let Some(cancel) = cancel {
            cancel.check()?;
        }
    }
}

/// `copy_file_range`; none if these files cannot be copied so.
fn by_kernel(from: &File, to: &File, size: u64, cancel: Option<&Cancel>) -> io::Result<Option<u64>> {
    let (mut read_at, mut write_at) = (0, 0);
    while read_at < size {
        let step = STEP.min(usize::try_from(size - read_at).unwrap_or(STEP));
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), step) {
            // Some file systems say 0 at once for files that they make up as they are read.
            Ok(0) if read_at == 0 => return Ok(None),
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::INTR) => {}
            // File systems refuse in many ways. Whatever it is, copying by hand finds out.
            Err(_) if read_at == 0 => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        if let Some(cancel) = cancel {
            cancel.check()?;
        }
    }
    Ok(Some(read_at))
}

/// Leaves the position at the start, where reading goes on: the search for a hole moves it to the end of a file
/// that has none.
fn has_holes(from: &File, size: u64) -> bool {
    let hole = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(0));
    let rewound = rustix::fs::seek(from, rustix::fs::SeekFrom::Start(0));
    hole.is_ok_and(|hole| hole < size) && rewound.is_ok()
}

/// Copies what is between the holes.
fn sparse(mut from: &File, to: &File, size: u64, buffer: &mut [u8], cancel: Option<&Cancel>) -> io::Result<u64> {
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data))?.min(size);
        from.seek(SeekFrom::Start(data))?;
        at = data;
        while at < end {
            let want = buffer.len().min(usize::try_from(end - at).unwrap_or(buffer.len()));
            let count = from.read(&mut buffer[..want])?;
            if count == 0 {
                return Ok(at);
            }
            to.write_all_at(&buffer[..count], at)?;
            at += count as u64;
            if let Some(cancel) = cancel {
                cancel.check()?;
            }
        }
    }
    to.set_len(size)?;
    Ok(from.metadata()?.len().min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between file systems the kernel copies nothing, and reading starts where the search for holes ended.
    #[test]
    fn the_search_for_holes_leaves_files_at_their_start() {
        for (written, at, holes) in [(4 << 20, 0, false), (1, 4 << 20, true)] {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all_at(&vec![b'x'; written], at).expect("written");
            let size = file.metadata().expect("a size").len();
            // Not every file system knows holes; none sees one where there is none.
            assert!(!has_holes(&file, size) || holes);
            assert_eq!(file.stream_position().expect("a position"), 0);
        }
    }
}
