//! Writing a blob: digest on the way, rename at the end.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use base::{Digest, Hasher};
use rustix::fs::FlockOperation;

use super::{BlobHold, BlobInfo, Content, ingest_dir};
use crate::{Error, Result};

/// A blob under way. Dropped before [`finish`](Writer::finish), it leaves nothing, or a part to resume from.
#[derive(Debug)]
pub struct Writer {
    content: Content,
    file: File,
    path: PathBuf,
    hasher: Option<HasherBox>,
    offset: u64,
    expected: Option<Digest>,
    size: Option<u64>,
    resumable: bool,
    done: bool,
}

struct HasherBox(Hasher);

impl std::fmt::Debug for HasherBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl Writer {
    pub(super) fn fresh(content: Content, expected: Option<Digest>, size: Option<u64>) -> Result<Writer> {
        let path = content.temp_path();
        let create = || {
            let file = File::options().read(true).write(true).create_new(true).open(&path);
            file.map_err(|e| Error::io("create", &path, e))
        };
        let file = content.0.with_room(0, create)?;
        Ok(Writer {
            content,
            file,
            path,
            hasher: Some(HasherBox(Digest::hasher())),
            offset: 0,
            expected,
            size,
            resumable: false,
            done: false,
        })
    }

    pub(super) fn trusted(content: Content) -> Result<Writer> {
        let mut writer = Writer::fresh(content, None, None)?;
        writer.hasher = None;
        Ok(writer)
    }

    pub(super) fn resumed(content: Content, digest: Digest, size: Option<u64>) -> Result<Writer> {
        let path = ingest_dir(&content.0.inner.dir).join(digest.hex());
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        // Whoever wrote it may have finished and renamed it between our open and our lock: then it is a blob now.
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        let same = || Some(file.metadata().ok()?.ino() == std::fs::metadata(&path).ok()?.ino());
        if !locked || same() != Some(true) {
            return Writer::fresh(content, Some(digest), size);
        }
        let mut hasher = Digest::hasher();
        let mut offset = digest_rest(&mut file, &mut hasher).map_err(|e| Error::io("read", &path, e))?;
        if size.is_some_and(|size| offset > size) {
            file.set_len(0).and_then(|()| file.rewind()).map_err(|e| Error::io("empty", &path, e))?;
            (hasher, offset) = (Digest::hasher(), 0);
        }
        let hasher = Some(HasherBox(hasher));
        Ok(Writer { content, file, path, hasher, offset, expected: Some(digest), size, resumable: true, done: false })
    }

    /// Bytes that are there already: where a resumed download goes on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Adds bytes. Where the disk is full, what nobody uses goes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.size.is_some_and(|size| self.offset + bytes.len() as u64 > size) {
            let actual = self.offset + bytes.len() as u64;
            return Err(Error::SizeMismatch { expected: self.size.unwrap_or(0), actual });
        }
        let to_follow = self.size.map_or(0, |size| size - self.offset - bytes.len() as u64);
        self.content.0.write_all_at((&self.file, &self.path), bytes, self.offset, to_follow)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.0.update(bytes);
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Forgets all bytes so far: the server could not resume and starts again.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(|e| Error::io("empty", &self.path, e))?;
        self.hasher = Some(HasherBox(Digest::hasher()));
        self.offset = 0;
        Ok(())
    }

    /// Checks digest and size and gives the blob its name. Wrong bytes are removed and reported.
    pub fn finish(self) -> Result<BlobInfo> {
        self.finish_held().map(|(blob, _)| blob)
    }

    /// The same, and keeps it from being removed.
    pub fn finish_held(mut self) -> Result<(BlobInfo, BlobHold)> {
        if let Some(expected) = self.size.filter(|size| *size != self.offset) {
            // A download cut short can go on later.
            return Err(Error::SizeMismatch { expected, actual: self.offset });
        }
        let actual = self.hasher.take().map_or_else(|| Digest::of(b""), |hasher| hasher.0.finish());
        if let Some(expected) = self.expected.filter(|expected| *expected != actual) {
            self.resumable = false;
            return Err(Error::DigestMismatch { expected, actual });
        }
        let hold = self.content.hold(&actual);
        self.name(actual).map(|blob| (blob, hold))
    }

    /// Gives the blob the name that its maker computed.
    pub(crate) fn finish_trusted(self, digest: Digest) -> Result<BlobInfo> {
        self.name(digest)
    }

    fn name(mut self, digest: Digest) -> Result<BlobInfo> {
        let goal = self.content.path(&digest);
        std::fs::rename(&self.path, &goal).map_err(|e| Error::io("rename blob to", &goal, e))?;
        self.done = true;
        self.content.record(&digest, self.offset)?;
        let created_at = std::time::SystemTime::now();
        Ok(BlobInfo { digest, size: self.offset, created_at, last_used_at: created_at, labels: Default::default() })
    }

    /// Gives up, keeping nothing.
    pub fn abort(mut self) {
        self.resumable = false;
    }
}

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.append(buf).map_err(|e| match e {
            Error::Io { source, .. } | Error::NoSpace { source, .. } => source,
            e if e.is_no_space() => io::Error::new(io::ErrorKind::StorageFull, e),
            e => io::Error::other(e),
        })?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.done && (!self.resumable || self.offset == 0) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Digests from the start of the file to its end, which it is left at.
pub(super) fn digest_rest(file: &mut File, hasher: &mut Hasher) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut buf = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let n = file.read(&mut buf)?;
        if n == 0 {
            return Ok(total);
        }
        hasher.update(&buf[..n]);
        total += n as u64;
    }
}
