//! Packets go from thread to thread in batches: most are small, and to wake somebody for each costs more than it carries.

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use proto::Message as _;
use proto::fsutil::Packet;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// What a batch holds at most, but for its last packet.
const BYTES: usize = 256 << 10;
/// Packets of a batch, at most.
const PACKETS: usize = 256;
/// Batches on their way.
const QUEUE: usize = 8;

pub(super) type Batch = Result<Vec<Packet>, Status>;
pub(super) type Sender = mpsc::Sender<Batch>;
pub(super) type Receiver = mpsc::Receiver<Batch>;

pub(super) fn channel() -> (Sender, Receiver) {
    mpsc::channel(QUEUE)
}

/// Passes on what comes, whatever is there at once in one batch; until the first error, the end, or until nobody listens.
pub(super) async fn receive(mut incoming: Streaming<Packet>, batches: Sender) {
    let mut end = None;
    while end.is_none() {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut next = Some(incoming.message().await);
        while let Some(message) = next {
            match message {
                Ok(Some(packet)) => {
                    bytes += packet.encoded_len();
                    batch.push(packet);
                }
                Ok(None) => end = Some(Ok(())),
                Err(status) => end = Some(Err(status)),
            }
            let is_full = end.is_some() || batch.len() >= PACKETS || bytes >= BYTES;
            next = if is_full { None } else { incoming.message().now_or_never() };
        }
        if !batch.is_empty() && batches.send(Ok(batch)).await.is_err() {
            return;
        }
    }
    if let Some(Err(status)) = end {
        // Nobody may listen any more.
        let _ = batches.send(Err(status)).await;
    }
}

/// The packets of batches, one by one.
pub(super) fn packets(batches: Receiver) -> impl Stream<Item = Result<Packet, Status>> + Send + 'static {
    ReceiverStream::new(batches).flat_map(|batch| {
        let (packets, end) = match batch {
            Ok(packets) => (packets, None),
            Err(status) => (Vec::new(), Some(Err(status))),
        };
        stream::iter(packets.into_iter().map(Ok).chain(end))
    })
}

/// Collects packets that are small and many, on a thread.
pub(super) struct Outbox {
    batches: Sender,
    held: Vec<Packet>,
}

impl Outbox {
    pub(super) fn new(batches: Sender) -> Outbox {
        Outbox { batches, held: Vec::new() }
    }

    /// Sends it with others. Fails when nobody listens any more.
    pub(super) fn push(&mut self, packet: Packet) -> Result<(), Gone> {
        self.held.push(packet);
        if self.held.len() < PACKETS { Ok(()) } else { self.flush() }
    }

    /// Sends what was collected.
    pub(super) fn flush(&mut self) -> Result<(), Gone> {
        match std::mem::take(&mut self.held) {
            held if held.is_empty() => Ok(()),
            held => self.batches.blocking_send(Ok(held)).map_err(|_| Gone),
        }
    }
}

/// Nobody listens any more.
pub(super) struct Gone;

/// Sends one packet, from a thread.
pub(super) fn send(batches: &Sender, packet: Packet) -> Result<(), Gone> {
    send_all(batches, vec![packet])
}

/// Sends packets in one batch, from a thread.
pub(super) fn send_all(batches: &Sender, packets: Vec<Packet>) -> Result<(), Gone> {
    batches.blocking_send(Ok(packets)).map_err(|_| Gone)
}
