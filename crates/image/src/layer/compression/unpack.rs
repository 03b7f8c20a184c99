//! [`Unpacker`]: a blob to its tar, with download, digests and decompression overlapping the consumer.
//!
//! ```text
//! blob ─▶ read + sha256 + size ─▶ decompress ─┬▶ sha256 (diff id)
//!         own thread              own thread  └▶ the consumer, through `Read`
//! ```
//!
//! [`BlobTar`] is the same for who digests the tar himself.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use base::{Digest, Hasher};

use super::{Decompressor, VerifyingReader};
use crate::{Descriptor, Error};

/// Bytes that move between threads at a time.
const CHUNK: usize = 256 << 10;
/// Chunks that wait at most, per pair of threads.
const QUEUE: usize = 4;

/// What a blob turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// sha256 of the tar.
    pub diff_id: Digest,
    /// Its size.
    pub size: u64,
}

/// Reads the tar of a layer while other threads read, verify and decompress the blob.
///
/// The consumer must call [`finish`](Unpacker::finish): only then are digest and size of the blob known to be right.
/// Dropping it stops the threads.
pub struct Unpacker {
    chunks: Chunks,
    size: u64,
    hasher: JoinHandle<Hasher>,
}

/// Reads the tar of a layer while other threads read, verify and decompress the blob. Who reads it to its end has got what the
/// descriptor promises. Dropping it stops the threads.
pub struct BlobTar(Chunks);

type Chunk = Arc<Vec<u8>>;

impl Unpacker {
    /// Starts to unpack a blob that `descriptor` describes; at most `limit` bytes of tar come out.
    pub fn start(blob: impl Read + Send + 'static, descriptor: &Descriptor, limit: u64) -> Result<Unpacker, Error> {
        let (hash_tx, to_hash) = sync_channel::<Chunk>(QUEUE);
        let hasher = spawn("diff-id", move || {
            let mut hasher = Digest::hasher();
            to_hash.iter().for_each(|chunk| hasher.update(chunk.as_slice()));
            hasher
        })?;
        let chunks = start(blob, descriptor, limit, Some(hash_tx))?;
        Ok(Unpacker { chunks, size: 0, hasher })
    }

    /// Reads what the consumer left, checks the blob, and gives the digest of the tar.
    pub fn finish(mut self) -> Result<Unpacked, Error> {
        io::copy(&mut self, &mut io::sink())?;
        let hasher = self.hasher.join().map_err(|_| Error::Io(io::Error::other("the digest thread stopped")))?;
        Ok(Unpacked { diff_id: hasher.finish(), size: self.size })
    }
}

impl BlobTar {
    /// Starts to unpack a blob that `descriptor` describes; at most `limit` bytes of tar come out.
    pub fn start(blob: impl Read + Send + 'static, descriptor: &Descriptor, limit: u64) -> Result<BlobTar, Error> {
        start(blob, descriptor, limit, None).map(BlobTar)
    }
}

fn start(
    blob: impl Read + Send + 'static,
    descriptor: &Descriptor,
    limit: u64,
    hash: Option<SyncSender<Chunk>>,
) -> Result<Chunks, Error> {
    let (digest, size) = (descriptor.digest, descriptor.size);
    let (raw_tx, raw) = sync_channel(QUEUE);
    let (tx, chunks) = sync_channel(QUEUE);
    spawn("blob-read", move || pump(VerifyingReader::new(blob, digest, size), |chunk| raw_tx.send(chunk).is_ok()))?;
    spawn("decompress", move || decompress(raw, limit, &tx, hash.as_ref()))?;
    Ok(Chunks::new(chunks))
}

fn spawn<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>, Error> {
    Ok(std::thread::Builder::new().name(name.to_owned()).spawn(run)?)
}

/// Reads to the end, chunk by chunk, as long as somebody takes them. The last one is an error, or empty.
fn pump(mut source: impl Read, mut send: impl FnMut(Result<Chunk, Error>) -> bool) {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let result = source.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
        let ended = chunk.is_empty();
        if !ended && !send(Ok(Arc::new(chunk))) {
            return;
        }
        match result {
            Ok(_) if !ended => {}
            Ok(_) => {
                send(Ok(Chunk::default()));
                return;
            }
            Err(error) => {
                send(Err(error.into()));
                return;
            }
        }
    }
}

fn decompress(
    raw: Receiver<Result<Chunk, Error>>,
    limit: u64,
    tx: &SyncSender<Result<Chunk, Error>>,
    hash: Option<&SyncSender<Chunk>>,
) {
    let decompressor = match Decompressor::new(Chunks::new(raw), limit) {
        Ok(decompressor) => decompressor,
        Err(error) => {
            // Nobody waits for it when the consumer is gone.
            _ = tx.send(Err(error));
            return;
        }
    };
    pump(decompressor, |chunk| {
        if let (Ok(chunk), Some(hash)) = (&chunk, hash)
            && hash.send(chunk.clone()).is_err()
        {
            return false;
        }
        tx.send(chunk).is_ok()
    });
}

/// Chunks of another thread as one stream.
struct Chunks {
    receiver: Receiver<Result<Chunk, Error>>,
    current: Chunk,
    at: usize,
    ended: bool,
}

impl Chunks {
    fn new(receiver: Receiver<Result<Chunk, Error>>) -> Chunks {
        Chunks { receiver, current: Chunk::default(), at: 0, ended: false }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            if self.ended || buffer.is_empty() {
                return Ok(0);
            }
            // No last chunk: the thread is gone, and what came is not all.
            let next = self.receiver.recv().map_err(|_| io::Error::other("an unpacking thread stopped"))?;
            (self.current, self.at) = (next?, 0);
            self.ended = self.current.is_empty();
        }
        let n = buffer.len().min(self.current.len() - self.at);
        buffer[..n].copy_from_slice(&self.current[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

impl Read for Unpacker {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.chunks.read(buffer)?;
        self.size += n as u64;
        Ok(n)
    }
}

impl Read for BlobTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}
