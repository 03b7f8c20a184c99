//! A connection inside a connection: bytes that travel as messages of the `Session` call.
//!
//! The daemon answers a client's call and becomes the caller itself: over the tunnel it speaks HTTP/2 to services that the
//! client runs.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::Stream;
use proto::moby::buildkit::v1::BytesMessage;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tonic::Status;

/// No message is larger; what is written comes in smaller pieces anyway.
const CHUNK: usize = 1 << 20;
/// Messages on their way to the connection.
const QUEUE: usize = 16;

/// Bytes both ways.
pub struct Tunnel<S> {
    incoming: S,
    /// What the last message holds that is not read yet.
    unread: Bytes,
    outgoing: PollSender<BytesMessage>,
}

/// A tunnel, and the messages that it wants to be sent.
pub fn tunnel<S>(incoming: S) -> (Tunnel<S>, mpsc::Receiver<BytesMessage>) {
    let (sender, outgoing) = mpsc::channel(QUEUE);
    (Tunnel { incoming, unread: Bytes::new(), outgoing: PollSender::new(sender) }, outgoing)
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl<S: Stream<Item = Result<BytesMessage, Status>> + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.incoming).poll_next(cx)) {
                Some(Ok(message)) => self.unread = message.data.into(),
                Some(Err(status)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, status))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.outgoing.poll_reserve(cx)).map_err(|_| gone())?;
        let data = &buf[..buf.len().min(CHUNK)];
        self.outgoing.send_item(BytesMessage { data: data.to_vec() }).map_err(|_| gone())?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.outgoing.poll_reserve(cx)).map_err(|_| gone())?;
        let mut data = Vec::with_capacity(bufs.iter().map(|buf| buf.len()).sum::<usize>().min(CHUNK));
        for buf in bufs {
            data.extend_from_slice(&buf[..buf.len().min(CHUNK - data.len())]);
        }
        let written = data.len();
        self.outgoing.send_item(BytesMessage { data }).map_err(|_| gone())?;
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    #[tokio::test]
    async fn bytes_arrive_in_order_and_ends_are_seen() {
        let (to_b, from_a) = mpsc::channel(1);
        let (mut b, mut b_out) = tunnel(ReceiverStream::new(from_a));
        let (mut a, mut a_out) = tunnel(tokio_stream::empty::<Result<BytesMessage, Status>>());
        tokio::spawn(async move {
            while let Some(message) = a_out.recv().await {
                to_b.send(Ok(message)).await.expect("b reads");
            }
        });
        let text: Vec<u8> = (0..3 * CHUNK).map(|i| i as u8).collect();
        let sent = text.clone();
        tokio::spawn(async move {
            a.write_all(&sent).await.expect("written");
            a.shutdown().await.expect("closed");
        });
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.expect("read");
        assert!(got == text);
        b.shutdown().await.expect("closed");
        assert!(b_out.recv().await.is_none());
        let mut nothing = tokio_stream::empty::<()>();
        assert!(nothing.next().await.is_none());
    }
}
