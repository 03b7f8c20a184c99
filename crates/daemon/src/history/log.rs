//! What was told of a build, as a blob: messages of `Status`, each after its length in four bytes, the smallest first.

use std::collections::HashMap;
use std::io::{BufReader, Read as _};

use base::Digest;
use base::progress::Event;
use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use session::remote::MAX_MESSAGE;
use store::{BlobHold, Content};
use tokio::sync::mpsc;
use tonic::Status;

use crate::builds::Build;
use crate::service::error::status;
use crate::service::status::responses;

/// What such a blob is.
const MEDIA_TYPE: &str = "application/vnd.buildkit.status.v0";
/// Events that are written at once.
const SOME: usize = 4096;

/// How many steps there were.
#[derive(Default)]
pub(crate) struct Counts {
    /// Which were cached, which completed.
    steps: HashMap<Digest, (bool, bool)>,
    pub(super) warnings: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Vertex(vertex) => {
                    let (cached, completed) = self.steps.entry(vertex.digest).or_default();
                    *cached |= vertex.cached;
                    *completed |= vertex.completed.is_some();
                }
                Event::Warning(_) => self.warnings += 1,
                Event::Status(_) | Event::Log(_) => {}
            }
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.steps.len()
    }

    pub(crate) fn cached(&self) -> usize {
        self.steps.values().filter(|(cached, _)| *cached).count()
    }

    pub(super) fn completed(&self) -> usize {
        self.steps.values().filter(|(_, completed)| *completed).count()
    }
}

/// Writes all that was told. Blocks.
pub(super) fn write(content: &Content, build: &Build) -> store::Result<(wire::Descriptor, BlobHold, Counts)> {
    let mut writer = content.writer(None, None)?;
    let (mut counts, mut from) = (Counts::default(), 0);
    loop {
        let events = build.told(from, SOME);
        if events.is_empty() {
            break;
        }
        from += events.len();
        counts.add(&events);
        for message in responses(&events) {
            let bytes = message.encode_to_vec();
            writer.append(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes())?;
            writer.append(&bytes)?;
        }
    }
    let (blob, hold) = writer.finish_held()?;
    Ok((super::record::descriptor(MEDIA_TYPE, blob.digest, blob.size), hold, counts))
}

/// Reads a log again and passes it on. Blocks.
pub(crate) fn replay(
    content: &Content,
    log: &wire::Descriptor,
    messages: &mpsc::Sender<Result<wire::StatusResponse, Status>>,
) -> Result<(), Status> {
    let gone = || Status::not_found(format!("the log {} is gone", log.digest));
    let broken = |what: String| Status::data_loss(format!("the log {} is damaged: {what}", log.digest));
    let digest: Digest = log.digest.parse().map_err(|_| gone())?;
    let blob = content
        .get(&digest)
        .map_err(|error| status(&engine::store_fault("cannot read a log", error)))?
        .ok_or_else(gone)?;
    let (mut reader, mut left) = (BufReader::new(blob.file), blob.size);
    let mut length = [0; 4];
    while left > 0 {
        reader.read_exact(&mut length).map_err(|error| broken(error.to_string()))?;
        let length = u64::from(u32::from_le_bytes(length));
        left = left.checked_sub(4 + length).ok_or_else(|| broken("it ends early".to_owned()))?;
        if length > MAX_MESSAGE as u64 {
            return Err(broken("a message is too long".to_owned()));
        }
        let mut bytes = vec![0; length as usize];
        reader.read_exact(&mut bytes).map_err(|error| broken(error.to_string()))?;
        let message = wire::StatusResponse::decode(bytes.as_slice()).map_err(|error| broken(error.to_string()))?;
        // Whoever listened is gone.
        if messages.blocking_send(Ok(message)).is_err() {
            break;
        }
    }
    Ok(())
}
