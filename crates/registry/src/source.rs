//! Where the bytes of a push come from: something that can be opened again when an upload has to begin anew.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future, stream};
use http_client::BodyStream;
use tokio::sync::mpsc;

/// Bytes per piece handed to the connection.
const PIECE: usize = 256 << 10;
/// Pieces read ahead.
const AHEAD: usize = 4;

/// The bytes of a blob.
pub trait BlobSource: Send + Sync {
    /// Begins a stream of the bytes from `offset` on. Called for every try, inside a tokio runtime.
    fn open(&self, offset: u64) -> BodyStream;
}

impl BlobSource for Bytes {
    fn open(&self, offset: u64) -> BodyStream {
        let from = usize::try_from(offset).map_or(self.len(), |offset| offset.min(self.len()));
        let rest = self.slice(from..);
        if rest.is_empty() {
            return stream::empty().boxed();
        }
        stream::once(future::ok(rest)).boxed()
    }
}

/// A file.
#[derive(Clone, Debug)]
pub struct FileSource(pub PathBuf);

impl BlobSource for FileSource {
    fn open(&self, offset: u64) -> BodyStream {
        let path = self.0.clone();
        read_on_a_thread(move || {
            let mut file = std::fs::File::open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            Ok(Box::new(file))
        })
    }
}

/// Any blocking reader that a function opens at an offset. Read on a thread of its own, a little ahead.
pub struct ReadSource<F>(pub F);

impl<F> BlobSource for ReadSource<F>
where
    F: Fn(u64) -> io::Result<Box<dyn Read + Send>> + Clone + Send + Sync + 'static,
{
    fn open(&self, offset: u64) -> BodyStream {
        let open = self.0.clone();
        read_on_a_thread(move || open(offset))
    }
}

fn read_on_a_thread(open: impl FnOnce() -> io::Result<Box<dyn Read + Send>> + Send + 'static) -> BodyStream {
    let start = async move {
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = pump(open, &sender) {
                // A receiver that is gone wants no error either.
                let _ = sender.blocking_send(Err(error));
            }
        });
        stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|piece| (piece, receiver)) })
    };
    start.into_stream().flatten().boxed()
}

fn pump(
    open: impl FnOnce() -> io::Result<Box<dyn Read + Send>>,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut reader = open()?;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let n = reader.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
        if n == 0 || sender.blocking_send(Ok(piece.into())).is_err() {
            return Ok(());
        }
    }
}
