//! The way from the build to the readers: as long as it takes for events, of bounded size for output.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use base::progress::{Event, Room, Sink};
use tokio::sync::Notify;

/// How much output may wait for the readers before steps are held back. A piece of it may come on top.
pub(super) const ROOM: usize = 4 << 20;
/// What an event costs beside its bytes.
const EVENT_BYTES: usize = 256;

/// What readers get.
pub(super) enum Message {
    Event(Box<Event>),
    End,
}

/// The build's end.
pub(super) struct Entrance {
    messages: Sender<Message>,
    waiting: Arc<Waiting>,
}

/// The readers' end. Nobody is held back once it is gone.
pub(super) struct Exit {
    pub(super) messages: Receiver<Message>,
    waiting: Arc<Waiting>,
}

/// Output that no reader has taken yet.
#[derive(Default)]
struct Waiting {
    bytes: AtomicUsize,
    less: Notify,
}

pub(super) fn queue() -> (Entrance, Exit) {
    let (sender, receiver) = channel();
    let waiting = Arc::<Waiting>::default();
    (Entrance { messages: sender, waiting: waiting.clone() }, Exit { messages: receiver, waiting })
}

/// What the output in an event costs; other events are few.
pub(super) fn weight(event: &Event) -> usize {
    match event {
        Event::Log(log) => log.bytes.len() + EVENT_BYTES,
        _ => 0,
    }
}

impl Entrance {
    /// Says that nothing follows.
    pub(super) fn end(&self) {
        let _ = self.messages.send(Message::End);
    }
}

impl Sink for Entrance {
    fn emit(&self, event: Event) {
        let weight = weight(&event);
        self.waiting.bytes.fetch_add(weight, Ordering::Relaxed);
        // After the end there is nobody left to read it.
        if self.messages.send(Message::Event(Box::new(event))).is_err() {
            self.waiting.bytes.fetch_sub(weight, Ordering::Relaxed);
        }
    }

    fn room(&self) -> Room {
        let waiting = self.waiting.clone();
        Box::pin(async move {
            loop {
                // Listens before it looks, so that it misses nothing in between.
                let less = waiting.less.notified();
                if waiting.bytes.load(Ordering::Relaxed) < ROOM {
                    return;
                }
                less.await;
            }
        })
    }
}

impl Exit {
    /// Readers took output of this weight.
    pub(super) fn taken(&self, weight: usize) {
        if weight > 0 {
            self.waiting.bytes.fetch_sub(weight, Ordering::Relaxed);
            self.waiting.less.notify_waiters();
        }
    }
}

impl Drop for Exit {
    fn drop(&mut self) {
        while self.messages.try_recv().is_ok() {}
        self.waiting.bytes.store(0, Ordering::Relaxed);
        self.waiting.less.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use base::Digest;
    use base::progress::{Log, Stream};
    use jiff::Timestamp;

    use super::*;

    fn log(bytes: usize) -> Event {
        let (vertex, timestamp) = (Digest::of("step"), Timestamp::UNIX_EPOCH);
        Event::Log(Log { vertex, stream: Stream::Stdout, timestamp, bytes: vec![b'x'; bytes] })
    }

    fn is_ready(room: &mut Room) -> bool {
        matches!(room.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()))
    }

    #[test]
    fn output_waits_for_its_readers() {
        let (entrance, exit) = queue();
        assert!(is_ready(&mut entrance.room()));
        entrance.emit(log(ROOM));
        let mut room = entrance.room();
        assert!(!is_ready(&mut room));
        exit.taken(EVENT_BYTES);
        assert!(!is_ready(&mut room));
        exit.taken(ROOM);
        assert!(is_ready(&mut room));
    }

    #[test]
    fn nobody_waits_for_readers_that_are_gone() {
        let (entrance, exit) = queue();
        entrance.emit(log(ROOM));
        let mut room = entrance.room();
        assert!(!is_ready(&mut room));
        drop(exit);
        assert!(is_ready(&mut room));
        entrance.emit(log(ROOM));
        assert!(is_ready(&mut entrance.room()));
    }
}
