//! containerd's content service in a client's session: its OCI layouts (`oci:NAME`) are read, and its cache directories
//! (`local:DIR`) and the directory of an exported image (`export`) read and written. The daemon's end; [`serve_content`](super::serve_content) is the client's.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Digest, Fault, Kind};
use bytes::Bytes;
use proto::content::{
    INFO, InfoRequest, InfoResponse, READ, ReadContentRequest, ReadContentResponse, STORE, WRITE, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use super::{MAX_MESSAGE, RemoteSession};
use crate::{Blob, Blobs, CacheDir};

/// What one message brings.
const PIECE: usize = 1 << 20;
/// Messages on their way.
const QUEUE: usize = 2;
/// How long to wait for a blob that somebody else writes, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(16);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// When it counts as one that was left behind.
const PATIENCE: Duration = Duration::from_secs(600);

/// A store of a client.
pub(super) struct Store {
    pub(super) session: Arc<RemoteSession>,
    /// `oci:NAME`, `local:DIR` or [`EXPORT`].
    pub(super) id: String,
}

/// Where an image goes that lies in a directory. A session has one.
pub(super) const EXPORT: &str = "export";

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "store {} of session {}", self.id, self.session.id)
    }
}

impl Store {
    fn request<T>(&self, message: T) -> Result<Request<T>, Fault> {
        let mut request = Request::new(message);
        let id = MetadataValue::try_from(self.id.as_str());
        let id = id.map_err(|e| Fault::because(Kind::User, format!("`{}` cannot be asked for", self.place()), e))?;
        request.metadata_mut().insert(STORE, id);
        Ok(request)
    }

    async fn grpc(&self) -> Result<tonic::client::Grpc<tonic::transport::Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.session.channel()).max_decoding_message_size(MAX_MESSAGE);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }

    /// The size of a blob; none if it is not there.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, Fault> {
        let request = self.request(InfoRequest { digest: digest.to_string() })?;
        let call = async {
            let codec = tonic_prost::ProstCodec::<InfoRequest, InfoResponse>::default();
            match self.grpc().await?.unary(request, PathAndQuery::from_static(INFO), codec).await {
                Ok(answer) => Ok(answer.into_inner().info),
                Err(status) if status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(status),
            }
        };
        let info = self.session.ask(&format!("cannot read `{}`", self.place()), call).await?;
        Ok(info.map(|info| u64::try_from(info.size).unwrap_or(0)))
    }

    async fn read(&self, digest: &Digest) -> Result<Streaming<ReadContentResponse>, Fault> {
        let request =
            self.request(ReadContentRequest { digest: digest.to_string(), ..ReadContentRequest::default() })?;
        let call = async {
            let codec = tonic_prost::ProstCodec::<ReadContentRequest, ReadContentResponse>::default();
            self.grpc().await?.server_streaming(request, PathAndQuery::from_static(READ), codec).await
        };
        Ok(self.session.ask(&format!("cannot read `{}`", self.place()), call).await?.into_inner())
    }
}

#[async_trait]
impl Blobs for Store {
    fn place(&self) -> String {
        self.id.split_once(':').map_or(self.id.as_str(), |(_, name)| name).to_owned()
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Blob>, Fault> {
        let Some(size) = self.size(digest).await? else { return Ok(None) };
        let mut answers = self.read(digest).await?;
        let (pieces, queue) = mpsc::channel(QUEUE);
        let session = self.session.clone();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = answers.message() => next.map_err(|status| io::Error::other(status.message().to_owned())),
                    () = session.closed().cancelled() => Err(io::Error::other("the client is gone")),
                    () = pieces.closed() => return,
                };
                let Some(piece) = next.map(|next| next.map(|answer| answer.data)).transpose() else { return };
                let ends = piece.is_err();
                if pieces.send(piece).await.is_err() || ends {
                    return;
                }
            }
        });
        Ok(Some(Blob { size, reader: Box::new(Pieces { queue, rest: Bytes::new() }) }))
    }
}

/// Bytes that come in pieces. Blocks; for a thread.
pub(super) struct Pieces {
    pub(super) queue: mpsc::Receiver<io::Result<Bytes>>,
    pub(super) rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.queue.blocking_recv() {
                Some(piece) => self.rest = piece?,
                None => return Ok(0),
            }
        }
        let count = buf.len().min(self.rest.len());
        buf[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

type Requests = mpsc::Sender<WriteContentRequest>;

impl Store {
    /// Begins to write a blob: where the messages go, the client's answers, and how much of it is there. Waits for whoever
    /// writes the same one, by another name of the directory or in another build.
    async fn begin(
        &self,
        first: &WriteContentRequest,
    ) -> Result<(Requests, Streaming<WriteContentResponse>, u64), Status> {
        let (mut pause, began) = (FIRST_PAUSE, tokio::time::Instant::now());
        loop {
            let (requests, queue) = mpsc::channel(QUEUE);
            let request = self.request(ReceiverStream::new(queue));
            let request = request.map_err(|fault| Status::invalid_argument(fault.to_string()))?;
            // The first message goes out before the client answers anything.
            requests.send(first.clone()).await.map_err(|_| gone())?;
            let codec = tonic_prost::ProstCodec::<WriteContentRequest, WriteContentResponse>::default();
            let call = async {
                let mut answers =
                    self.grpc().await?.streaming(request, PathAndQuery::from_static(WRITE), codec).await?.into_inner();
                let there = answers.message().await?.map_or(0, |answer| u64::try_from(answer.offset).unwrap_or(0));
                Ok((requests, answers, there))
            };
            match call.await {
                Err(status) if is_locked(&status) && began.elapsed() < PATIENCE => tokio::time::sleep(pause).await,
                begun => return begun,
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
}

fn gone() -> Status {
    Status::unavailable("the client takes no more")
}

/// What containerd's stores say of a blob that somebody writes. They do not say when that ends.
fn is_locked(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().contains(" locked")
}

#[async_trait]
impl CacheDir for Store {
    async fn put(&self, digest: &Digest, size: u64, from: Box<dyn Read + Send>) -> Result<(), Fault> {
        let doing = format!("cannot write to `{}`", self.place());
        let total = i64::try_from(size).unwrap_or(i64::MAX);
        let message = |action: WriteAction, offset: u64, data: Bytes| WriteContentRequest {
            action: action.into(),
            r#ref: format!("hullworks-{digest}"),
            total,
            expected: digest.to_string(),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            data,
            labels: std::collections::HashMap::new(),
        };
        let call = async {
            let (requests, mut answers, there) = self.begin(&message(WriteAction::Stat, 0, Bytes::new())).await?;
            let mut pieces = pieces(from, there);
            let mut offset = there;
            while let Some(piece) = pieces.recv().await {
                let piece = piece.map_err(|error| Status::internal(error.to_string()))?;
                let count = piece.len() as u64;
                requests.send(message(WriteAction::Write, offset, piece)).await.map_err(|_| gone())?;
                answers.message().await?.ok_or_else(gone)?;
                offset += count;
            }
            requests.send(message(WriteAction::Commit, offset, Bytes::new())).await.map_err(|_| gone())?;
            answers.message().await?.ok_or_else(gone).map(drop)
        };
        let call = async {
            match call.await {
                Err(status) if status.code() == Code::AlreadyExists => Ok(()),
                done => done,
            }
        };
        self.session.ask(&doing, call).await
    }
}

/// Reads on a thread, from an offset on.
fn pieces(mut from: Box<dyn Read + Send>, skip: u64) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, queue) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        let skipped = io::copy(&mut from.by_ref().take(skip), &mut io::sink());
        if let Err(error) = skipped {
            return drop(sender.blocking_send(Err(error)));
        }
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            match from.by_ref().take(PIECE as u64).read_to_end(&mut piece) {
                Ok(0) => return,
                Ok(_) if sender.blocking_send(Ok(piece.into())).is_err() => return,
                Ok(_) => {}
                Err(error) => return drop(sender.blocking_send(Err(error))),
            }
        }
    });
    queue
}
