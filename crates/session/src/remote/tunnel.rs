//! A connection inside a connection: bytes that travel as messages of the `Session` call.
//!
//! The daemon answers a client's call and becomes the caller itself: over the tunnel it speaks HTTP/2 to services that the
//! client runs.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tonic::Status;

use super::frames;

/// No message is larger; what is written comes in smaller pieces anyway.
const CHUNK: usize = 1 << 20;
/// Messages on their way to the connection.
const QUEUE: usize = 16;

/// Bytes both ways.
pub struct Tunnel<S> {
    incoming: S,
    /// What came and is not read yet.
    unread: Bytes,
    outgoing: PollSender<Bytes>,
}

/// A tunnel: what comes in is the bytes that messages carry, wherever one ends; what is to be sent are whole messages as
/// [`frames`] makes them.
pub fn tunnel<S>(incoming: S) -> (Tunnel<S>, mpsc::Receiver<Bytes>) {
    let (sender, outgoing) = mpsc::channel(QUEUE);
    (Tunnel { incoming, unread: Bytes::new(), outgoing: PollSender::new(sender) }, outgoing)
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl<S: Stream<Item = Result<Bytes, Status>> + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.incoming).poll_next(cx)) {
                Some(Ok(bytes)) => self.unread = bytes,
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
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.outgoing.poll_reserve(cx)).map_err(|_| gone())?;
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(CHUNK);
        let mut message = frames::of_bytes(length);
        let mut left = length;
        for buf in bufs {
            let piece = &buf[..buf.len().min(left)];
            message.extend_from_slice(piece);
            left -= piece.len();
        }
        self.outgoing.send_item(message.into()).map_err(|_| gone())?;
        Poll::Ready(Ok(length))
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
    use futures_util::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::body::Body;

    use super::*;

    #[tokio::test]
    async fn bytes_arrive_in_order_and_ends_are_seen() {
        let (a, a_out) = tunnel(tokio_stream::empty::<Result<Bytes, Status>>());
        let body = frames::body(ReceiverStream::new(a_out));
        let (mut b, mut b_out) = tunnel(Box::pin(frames::carried(body)));
        let mut a = a;
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
    }

    #[tokio::test]
    async fn an_end_inside_of_a_message_is_an_error() {
        let mut message = frames::of_bytes(5);
        message.extend_from_slice(b"123");
        let pieces = tokio_stream::iter([Bytes::from(message)]);
        let mut carried = Box::pin(frames::carried(frames::body(pieces)));
        assert_eq!(carried.next().await.expect("a piece").expect("good"), "123");
        assert!(carried.next().await.expect("an error").is_err());
        let mut nothing = Box::pin(frames::carried(Body::empty()));
        assert!(nothing.next().await.is_none());
    }
}
