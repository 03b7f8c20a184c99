//! [`Compressor`]: takes tar bytes, gives a blob and both digests.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use base::{Digest, Hasher};
use flate2::Crc;

use super::{Compression, CompressionOptions, gzip, zstd};
use crate::Error;

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// sha256 of the bytes that were written in: the layer's diff id.
    pub diff_id: Digest,
    /// Their number.
    pub uncompressed_size: u64,
    /// sha256 of the blob.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
}

impl Compressed {
    /// What was compressed.
    pub fn tar(&self) -> Tar {
        Tar { diff_id: self.diff_id, size: self.uncompressed_size }
    }
}

/// A tar stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tar {
    /// Its sha256.
    pub diff_id: Digest,
    /// Its bytes.
    pub size: u64,
}

/// Compresses what is written to it and passes it to a sink, on threads of its own.
///
/// Call [`finish`](Compressor::finish) at the end: a compressor that is dropped leaves the blob without its end and
/// stops its threads and waits for them: nobody has the sink then. An error of the sink comes back from a later write, or from `finish`.
pub struct Compressor<W: Write + Send + 'static> {
    codec: Codec,
    threads: usize,
    pool: Pool,
    block: Vec<u8>,
    count: u64,
    /// What is going to be written.
    known: Option<Tar>,
    state: State<W>,
}

enum State<W> {
    /// Less than a block was written: no thread is started for it.
    Small(W),
    Running(Running<W>),
    /// An error was reported.
    Failed,
}

struct Running<W> {
    jobs: SyncSender<Job>,
    order: SyncSender<Receiver<Result<Encoded, Error>>>,
    /// None where the digest is known.
    hash: Option<Hashing>,
    output: JoinHandle<Result<Output<W>, Error>>,
    workers: Vec<JoinHandle<()>>,
}

/// A thread that digests blocks.
struct Hashing {
    blocks: SyncSender<Arc<Block>>,
    thread: JoinHandle<Hasher>,
}

#[derive(Clone, Copy)]
enum Codec {
    Store,
    Gzip(i32),
    Zstd(Option<i32>),
}

/// A block of content on its way; its buffer is used again.
struct Block {
    data: Vec<u8>,
    pool: Pool,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.data));
    }
}

struct Job {
    block: Arc<Block>,
    reply: SyncSender<Result<Encoded, Error>>,
}

struct Encoded {
    bytes: Bytes,
    crc: Crc,
}

enum Bytes {
    Own(Vec<u8>),
    /// Stored: the block itself.
    Block(Arc<Block>),
}

impl<W: Write + Send + 'static> Compressor<W> {
    /// Starts a blob.
    pub fn new(sink: W, options: &CompressionOptions) -> Result<Compressor<W>, Error> {
        Self::of(None, sink, options)
    }

    /// Starts a blob of a tar that may be known already. Its digest then is believed, unless all fits into one block or the
    /// blob is not compressed; that its size is another is an error in the end ([`Error::OtherTar`]).
    pub fn of(known: Option<Tar>, sink: W, options: &CompressionOptions) -> Result<Compressor<W>, Error> {
        options.validate()?;
        let codec = match options.kind {
            Compression::Uncompressed => Codec::Store,
            Compression::Gzip => {
                let level = options.level.filter(|level| *level >= 0).unwrap_or(gzip::DEFAULT_LEVEL);
                Codec::Gzip(level)
            }
            Compression::Zstd => Codec::Zstd(options.level),
        };
        Ok(Compressor {
            codec,
            threads: options.threads.max(1),
            pool: Pool::default(),
            block: Vec::new(),
            count: 0,
            // What is stored as it is has no other digest that would be right if this one were not.
            known: known.filter(|_| options.kind != Compression::Uncompressed),
            state: State::Small(sink),
        })
    }

    /// Ends the blob and hands the sink back.
    pub fn finish(mut self) -> Result<(Compressed, W), Error> {
        let last = std::mem::take(&mut self.block);
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Small(sink) => self.finish_small(last, sink),
            State::Running(running) => {
                if !last.is_empty() {
                    let sent = self.send(&running, last);
                    if sent.is_err() {
                        return Err(running.join_failed());
                    }
                }
                running.finish(self.count, self.known)
            }
            State::Failed => Err(Error::Io(io::Error::other("the compressor failed before"))),
        }
    }

    /// All in one block: done here, with the bytes that threads would give.
    fn finish_small(&self, last: Vec<u8>, sink: W) -> Result<(Compressed, W), Error> {
        let mut hasher = Digest::hasher();
        hasher.update(&last);
        let mut output = Output::start(self.codec, sink)?;
        if !last.is_empty() {
            let block = Arc::new(Block { data: last, pool: self.pool.clone() });
            let encoded = BlockEncoder::new(self.codec)?.encode(&block, Vec::new())?;
            output.put(&encoded)?;
        }
        output.finish(hasher.finish(), self.count)
    }

    fn dispatch(&mut self) -> Result<(), Error> {
        let next = self.pool.take(self.codec.block_size());
        let full = std::mem::replace(&mut self.block, next);
        let state = std::mem::replace(&mut self.state, State::Failed);
        let running = match state {
            State::Small(sink) => Running::start(self.codec, self.threads, self.known.is_some(), &self.pool, sink)?,
            State::Running(running) => running,
            State::Failed => return Err(Error::Io(io::Error::other("the compressor failed before"))),
        };
        match self.send(&running, full) {
            Ok(()) => {
                self.state = State::Running(running);
                Ok(())
            }
            Err(Stopped) => Err(running.join_failed()),
        }
    }

    fn send(&mut self, running: &Running<W>, data: Vec<u8>) -> Result<(), Stopped> {
        let block = Arc::new(Block { data, pool: self.pool.clone() });
        let (reply, encoded) = sync_channel(1);
        // The place in the output first: its bound is what limits the blocks in flight.
        running.order.send(encoded).map_err(|_| Stopped)?;
        if let Some(hash) = &running.hash {
            hash.blocks.send(block.clone()).map_err(|_| Stopped)?;
        }
        match self.codec {
            Codec::Store => {
                reply.send(Ok(Encoded { bytes: Bytes::Block(block), crc: Crc::new() })).map_err(|_| Stopped)
            }
            _ => running.jobs.send(Job { block, reply }).map_err(|_| Stopped),
        }
    }
}

impl<W: Write + Send + 'static> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let size = self.codec.block_size();
        // Only when more comes: a blob that fills its last block exactly needs no empty one.
        if self.block.len() == size && !bytes.is_empty() {
            self.dispatch()?;
        }
        let n = bytes.len().min(size - self.block.len());
        self.block.extend_from_slice(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        // Blocks have a fixed size; the sink sees the rest at the end.
        Ok(())
    }
}

impl<W: Write + Send + 'static> Drop for Compressor<W> {
    fn drop(&mut self) {
        if let State::Running(running) = std::mem::replace(&mut self.state, State::Failed) {
            running.stop();
        }
    }
}

struct Stopped;

impl<W: Write + Send + 'static> Running<W> {
    fn start(codec: Codec, threads: usize, known: bool, pool: &Pool, sink: W) -> Result<Running<W>, Error> {
        let (jobs, job_queue) = sync_channel::<Job>(threads);
        let (order, ordered) = sync_channel::<Receiver<Result<Encoded, Error>>>(threads + 1);
        let hash = if known { None } else { Some(Hashing::start(threads)?) };
        let recycle = pool.clone();
        let output = spawn("blob", move || {
            let mut output = Output::start(codec, sink)?;
            for reply in ordered {
                let encoded =
                    reply.recv().map_err(|_| Error::Io(io::Error::other("a compression thread stopped")))??;
                output.put(&encoded)?;
                if let Bytes::Own(buffer) = encoded.bytes {
                    recycle.give(buffer);
                }
            }
            Ok(output)
        })?;
        let job_queue = Arc::new(Mutex::new(job_queue));
        let workers = match codec {
            Codec::Store => 0,
            _ => threads,
        };
        let workers = (0..workers).map(|_| {
            let (queue, pool) = (job_queue.clone(), pool.clone());
            spawn("compress", move || work(codec, &queue, &pool))
        });
        let workers = workers.collect::<Result<Vec<_>, Error>>()?;
        Ok(Running { jobs, order, hash, output, workers })
    }

    fn finish(self, count: u64, known: Option<Tar>) -> Result<(Compressed, W), Error> {
        drop((self.jobs, self.order));
        let hasher = self.hash.map(Hashing::end);
        let output = join(self.output)?;
        let hasher = hasher.transpose()?;
        for worker in self.workers {
            worker.join().map_err(|_| stopped())?;
        }
        let diff_id = match (hasher, known) {
            (Some(hasher), _) => hasher.finish(),
            (None, Some(tar)) if tar.size == count => tar.diff_id,
            (None, Some(tar)) => return Err(Error::OtherTar { expected: tar.size, actual: count }),
            (None, None) => return Err(stopped()),
        };
        output.finish(diff_id, count)
    }

    /// Nobody wants the blob.
    fn stop(self) {
        drop((self.jobs, self.order));
        // What they came to does not matter, their panics neither.
        let _ = self.hash.map(Hashing::end);
        let _ = self.output.join();
        for worker in self.workers {
            let _ = worker.join();
        }
    }

    /// A channel is closed: the output has the reason.
    fn join_failed(self) -> Error {
        match self.finish(0, None) {
            Err(error) => error,
            Ok(_) => stopped(),
        }
    }
}

impl Hashing {
    fn start(threads: usize) -> Result<Hashing, Error> {
        let (blocks, to_hash) = sync_channel::<Arc<Block>>(threads);
        let thread = spawn("diff-id", move || {
            let mut hasher = Digest::hasher();
            to_hash.iter().for_each(|block| hasher.update(&block.data));
            hasher
        })?;
        Ok(Hashing { blocks, thread })
    }

    fn end(self) -> Result<Hasher, Error> {
        drop(self.blocks);
        self.thread.join().map_err(|_| stopped())
    }
}

fn stopped() -> Error {
    Error::Io(io::Error::other("a compression thread stopped"))
}

fn join<T>(thread: JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    thread.join().map_err(|_| stopped())?
}

fn spawn<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>, Error> {
    Ok(std::thread::Builder::new().name(name.to_owned()).spawn(run)?)
}

fn work(codec: Codec, queue: &Mutex<Receiver<Job>>, pool: &Pool) {
    let mut encoder = BlockEncoder::new(codec);
    loop {
        // One worker at a time waits here, the others for it: the lock is held while waiting, not while working.
        let job = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        let Ok(Job { block, reply }) = job else { return };
        let encoded = match &mut encoder {
            Ok(encoder) => encoder.encode(&block, pool.take(0)),
            Err(error) => Err(Error::Io(io::Error::other(error.to_string()))),
        };
        // Nobody waits for it once the output failed.
        _ = reply.send(encoded);
    }
}

impl Codec {
    fn block_size(self) -> usize {
        match self {
            Codec::Store | Codec::Gzip(_) => gzip::BLOCK,
            Codec::Zstd(_) => zstd::BLOCK,
        }
    }
}

/// Compresses single blocks.
enum BlockEncoder {
    Store,
    Gzip(gzip::Deflater),
    Zstd(zstd::Encoder),
}

impl BlockEncoder {
    fn new(codec: Codec) -> Result<BlockEncoder, Error> {
        Ok(match codec {
            Codec::Store => BlockEncoder::Store,
            Codec::Gzip(level) => BlockEncoder::Gzip(gzip::Deflater::new(level)?),
            Codec::Zstd(level) => BlockEncoder::Zstd(zstd::Encoder::new(level)?),
        })
    }

    fn encode(&mut self, block: &Arc<Block>, mut out: Vec<u8>) -> Result<Encoded, Error> {
        let mut crc = Crc::new();
        match self {
            BlockEncoder::Store => return Ok(Encoded { bytes: Bytes::Block(block.clone()), crc }),
            BlockEncoder::Gzip(deflater) => {
                deflater.encode(&block.data, &mut out)?;
                crc.update(&block.data);
            }
            BlockEncoder::Zstd(encoder) => encoder.encode(&block.data, &mut out)?,
        }
        Ok(Encoded { bytes: Bytes::Own(out), crc })
    }
}

/// The blob's end of the line: digests it and passes it on.
struct Output<W> {
    codec: Codec,
    sink: W,
    hasher: Hasher,
    size: u64,
    crc: Crc,
    blocks: u64,
}

impl<W: Write> Output<W> {
    fn start(codec: Codec, sink: W) -> Result<Output<W>, Error> {
        let mut output = Output { codec, sink, hasher: Digest::hasher(), size: 0, crc: Crc::new(), blocks: 0 };
        if let Codec::Gzip(_) = codec {
            output.write(&gzip::HEADER)?;
        }
        Ok(output)
    }

    fn put(&mut self, encoded: &Encoded) -> Result<(), Error> {
        self.crc.combine(&encoded.crc);
        self.blocks += 1;
        match &encoded.bytes {
            Bytes::Own(bytes) => self.write(bytes),
            Bytes::Block(block) => {
                // Not compressed: the diff id is the digest, and the other thread has it.
                self.size += block.data.len() as u64;
                Ok(self.sink.write_all(&block.data)?)
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(self.sink.write_all(bytes)?)
    }

    fn finish(mut self, diff_id: Digest, uncompressed_size: u64) -> Result<(Compressed, W), Error> {
        match self.codec {
            Codec::Gzip(_) => self.write(&gzip::trailer(&self.crc))?,
            Codec::Zstd(level) if self.blocks == 0 => {
                let mut empty = Vec::new();
                zstd::Encoder::new(level)?.encode(&[], &mut empty)?;
                self.write(&empty)?;
            }
            _ => {}
        }
        self.sink.flush()?;
        let digest = match self.codec {
            Codec::Store => diff_id,
            _ => self.hasher.finish(),
        };
        Ok((Compressed { diff_id, uncompressed_size, digest, size: self.size }, self.sink))
    }
}

/// Buffers for the next blocks.
#[derive(Clone, Default)]
struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

impl Pool {
    fn take(&self, capacity: usize) -> Vec<u8> {
        let mut buffer = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop().unwrap_or_default();
        buffer.clear();
        buffer.reserve(capacity);
        buffer
    }

    fn give(&self, buffer: Vec<u8>) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(buffer);
    }
}
