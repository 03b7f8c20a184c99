//! Bodies that can stop in the middle.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::{Sleep, sleep};

/// Bytes to send piece by piece, and how to end.
pub(super) struct Stream {
    left: Bytes,
    piece: usize,
    pause: Duration,
    sleeping: Option<Pin<Box<Sleep>>>,
    end: End,
}

/// How a body ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Properly,
    /// The connection drops.
    Abruptly,
}

impl Stream {
    pub(super) fn whole(bytes: Bytes) -> Stream {
        Stream { left: bytes, piece: 64 << 10, pause: Duration::ZERO, sleeping: None, end: End::Properly }
    }

    pub(super) fn cut(bytes: &Bytes, after: u64) -> Stream {
        let at = usize::try_from(after).map_or(bytes.len(), |after| after.min(bytes.len()));
        Stream { end: End::Abruptly, ..Stream::whole(bytes.slice(..at)) }
    }

    pub(super) fn drip(bytes: Bytes, piece: usize, pause: Duration) -> Stream {
        Stream { piece: piece.max(1), pause, ..Stream::whole(bytes) }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(sleeping) = &mut self.sleeping {
            std::task::ready!(sleeping.as_mut().poll(cx));
            self.sleeping = None;
        }
        if self.left.is_empty() {
            return Poll::Ready(match self.end {
                End::Properly => None,
                End::Abruptly => {
                    self.end = End::Properly;
                    Some(Err(io::Error::other("cut on request")))
                }
            });
        }
        let n = self.piece.min(self.left.len());
        let piece = self.left.split_to(n);
        if !self.pause.is_zero() || self.end == End::Abruptly {
            // Before an abrupt end, let the bytes reach the wire.
            self.sleeping = Some(Box::pin(sleep(self.pause.max(Duration::from_millis(1)))));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}
