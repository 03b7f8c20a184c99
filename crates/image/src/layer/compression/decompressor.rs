//! [`Decompressor`]: any layer blob to its tar, told by its first bytes.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::bufread::GzDecoder;

use super::Compression;
use crate::Error;

const BUFFER: usize = 128 << 10;
/// Largest zstd window that we take: what `zstd --ultra -22` makes.
const WINDOW_LOG: u32 = 27;

/// Reads gzip (any number of members), zstd (any number of frames, skippable ones too) or plain bytes.
///
/// A stream that ends early, or goes on behind its end with something else, is an error, and so is more output than
/// the limit. Errors of the source pass through.
pub struct Decompressor<R: Read> {
    kind: Compression,
    stream: Stream<R>,
    failed: Arc<AtomicBool>,
    left: u64,
    limit: u64,
}

enum Stream<R: Read> {
    Plain(Source<R>),
    Gzip(Box<GzDecoder<Source<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Source<R>>>),
    Ended,
}

/// The source, buffered; remembers whether an error was its own.
struct Source<R> {
    inner: BufReader<Chain<Cursor<Vec<u8>>, R>>,
    failed: Arc<AtomicBool>,
}

impl<R: Read> Decompressor<R> {
    /// Looks at the first bytes of `source`. No more than `limit` bytes come out.
    pub fn new(mut source: R, limit: u64) -> Result<Decompressor<R>, Error> {
        let failed = Arc::new(AtomicBool::new(false));
        let mut head = Vec::new();
        source.by_ref().take(4).read_to_end(&mut head)?;
        let kind = Compression::detect(&head);
        let inner = BufReader::with_capacity(BUFFER, Cursor::new(head).chain(source));
        let source = Source { inner, failed: failed.clone() };
        let stream = match kind {
            Compression::Uncompressed => Stream::Plain(source),
            Compression::Gzip => Stream::Gzip(Box::new(GzDecoder::new(source))),
            Compression::Zstd => Stream::Zstd(Box::new(zstd_decoder(source)?)),
        };
        Ok(Decompressor { kind, stream, failed, left: limit, limit })
    }

    /// What the source is compressed with.
    pub fn kind(&self) -> Compression {
        self.kind
    }

    fn read_stream(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = match &mut self.stream {
                Stream::Plain(source) => return source.read(buffer),
                Stream::Zstd(decoder) => return decoder.read(buffer),
                Stream::Ended => return Ok(0),
                Stream::Gzip(decoder) => decoder.read(buffer)?,
            };
            if n > 0 {
                return Ok(n);
            }
            // The end of a member: another one, or the end of the source.
            let Stream::Gzip(decoder) = std::mem::replace(&mut self.stream, Stream::Ended) else { return Ok(0) };
            let mut source = decoder.into_inner();
            match source.fill_buf()? {
                [] => return Ok(0),
                [0x1f, ..] => self.stream = Stream::Gzip(Box::new(GzDecoder::new(source))),
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "garbage behind its end")),
            }
        }
    }

    fn explain(&self, error: io::Error) -> io::Error {
        if self.failed.load(Ordering::Relaxed)
            || self.kind == Compression::Uncompressed
            || error.kind() == io::ErrorKind::Interrupted
        {
            return error;
        }
        let kind = if self.kind == Compression::Gzip { "gzip" } else { "zstd" };
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it ends early".to_owned(),
            _ => error.to_string().to_lowercase(),
        };
        Error::Compressed { kind, reason }.into()
    }
}

fn zstd_decoder<R: Read>(source: Source<R>) -> io::Result<zstd::stream::read::Decoder<'static, Source<R>>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
    decoder.window_log_max(WINDOW_LOG)?;
    Ok(decoder)
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        // At the limit one byte more is asked for, to tell the end from a bomb.
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX).max(1));
        let n = match self.read_stream(&mut buffer[..want]) {
            Ok(n) => n,
            Err(error) => return Err(self.explain(error)),
        };
        if n as u64 > self.left {
            return Err(Error::TooLarge { what: "decompressed layer".to_owned(), limit: self.limit }.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

impl<R: Read> Source<R> {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.failed.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buffer);
        self.note(result)
    }
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if let Err(error) = self.inner.fill_buf() {
            return self.note(Err(error));
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.inner.consume(n);
    }
}
