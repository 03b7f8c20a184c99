//! The client's end of [`content`](super::content): OCI layouts that are given away, directories of caches and images that
//! are also written to.

use std::io::{self, Read as _};
use std::pin::Pin;
use std::sync::Arc;

use base::Digest;
use bytes::Bytes;
use futures_util::Stream;
use proto::content::{
    INFO, Info, InfoRequest, InfoResponse, READ, ReadContentRequest, ReadContentResponse, SERVICE, STORE, WRITE,
    WriteAction, WriteContentRequest, WriteContentResponse,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

use super::MAX_MESSAGE;
use super::content::{EXPORT, Pieces};
use super::serve::refused;
use super::service::Calls;
use crate::{Blob, Blobs, CacheDir, SharedSession};

/// What one message brings.
const PIECE: usize = 1 << 20;
/// Messages on their way.
const QUEUE: usize = 2;

/// The stores of a client.
#[derive(Clone)]
pub(super) struct Content(pub(super) SharedSession);

impl Calls for Content {
    const NAME: &'static str = SERVICE;

    async fn call(self, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path() {
            INFO => {
                let codec = tonic_prost::ProstCodec::<InfoResponse, InfoRequest>::default();
                Grpc::new(codec).unary(InfoCall(self), request).await
            }
            READ => {
                let codec = tonic_prost::ProstCodec::<ReadContentResponse, ReadContentRequest>::default();
                Grpc::new(codec).server_streaming(ReadCall(self), request).await
            }
            WRITE => {
                let codec = tonic_prost::ProstCodec::<WriteContentResponse, WriteContentRequest>::default();
                let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE);
                grpc.streaming(WriteCall(self), request).await
            }
            _ => Status::unimplemented("no such method").into_http(),
        }
    }
}

impl Content {
    /// The store that a call is about.
    async fn store(&self, metadata: &MetadataMap) -> Result<Arc<dyn Blobs>, Status> {
        let id = store_id(metadata)?;
        let found: Option<Arc<dyn Blobs>> = match id.split_once(':') {
            Some(("oci", name)) => self.0.content(name).await.map_err(refused)?,
            _ => writable(&self.0, id).await?.map(|store| store as Arc<dyn Blobs>),
        };
        found.ok_or_else(|| unknown(id))
    }

    async fn blob(&self, metadata: &MetadataMap, digest: &str) -> Result<Blob, Status> {
        let digest: Digest = digest.parse().map_err(|_| Status::invalid_argument(format!("bad digest `{digest}`")))?;
        let blob = self.store(metadata).await?.open(&digest).await.map_err(refused)?;
        blob.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))
    }
}

/// The store of that name, where it may be written to.
async fn writable(session: &SharedSession, id: &str) -> Result<Option<Arc<dyn CacheDir>>, Status> {
    let found = match id.split_once(':') {
        Some(("local", dir)) => session.cache(dir).await,
        None if id == EXPORT => session.export_store().await,
        _ => Ok(None),
    };
    found.map_err(refused)
}

fn store_id(metadata: &MetadataMap) -> Result<&str, Status> {
    let id = metadata.get(STORE).and_then(|id| id.to_str().ok());
    id.ok_or_else(|| Status::invalid_argument(format!("request lacks metadata `{STORE}`")))
}

fn unknown(id: &str) -> Status {
    Status::not_found(format!("unknown store {id}"))
}

type Reply<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct InfoCall(Content);

impl UnaryService<InfoRequest> for InfoCall {
    type Response = InfoResponse;
    type Future = Reply<InfoResponse>;

    fn call(&mut self, request: Request<InfoRequest>) -> Self::Future {
        let content = self.0.clone();
        Box::pin(async move {
            let digest = &request.get_ref().digest;
            let blob = content.blob(request.metadata(), digest).await?;
            let size = i64::try_from(blob.size).unwrap_or(i64::MAX);
            let info = Info { digest: digest.clone(), size, ..Info::default() };
            Ok(Response::new(InfoResponse { info: Some(info) }))
        })
    }
}

struct ReadCall(Content);

impl ServerStreamingService<ReadContentRequest> for ReadCall {
    type Response = ReadContentResponse;
    type ResponseStream = Replies<ReadContentResponse>;
    type Future = Reply<Replies<ReadContentResponse>>;

    fn call(&mut self, request: Request<ReadContentRequest>) -> Self::Future {
        let content = self.0.clone();
        Box::pin(async move {
            let wanted = request.get_ref();
            let Blob { reader: mut blob, .. } = content.blob(request.metadata(), &wanted.digest).await?;
            let skip = u64::try_from(wanted.offset).unwrap_or(0);
            let most = u64::try_from(wanted.size).ok().filter(|size| *size > 0).unwrap_or(u64::MAX);
            let (pieces, replies) = mpsc::channel(QUEUE);
            tokio::task::spawn_blocking(move || {
                let failed = |error: io::Error| Status::unknown(error.to_string());
                if let Err(error) = io::copy(&mut blob.by_ref().take(skip), &mut io::sink()) {
                    return drop(pieces.blocking_send(Err(failed(error))));
                }
                let mut blob = blob.take(most);
                let mut offset = skip;
                loop {
                    let mut piece = Vec::with_capacity(PIECE);
                    let reply = match blob.by_ref().take(PIECE as u64).read_to_end(&mut piece) {
                        Ok(0) => return,
                        Ok(count) => {
                            let at = i64::try_from(offset).unwrap_or(i64::MAX);
                            offset += count as u64;
                            Ok(ReadContentResponse { offset: at, data: piece.into() })
                        }
                        Err(error) => Err(failed(error)),
                    };
                    let ends = reply.is_err();
                    if pieces.blocking_send(reply).is_err() || ends {
                        return;
                    }
                }
            });
            Ok(Response::new(Box::pin(ReceiverStream::new(replies)) as Replies<_>))
        })
    }
}

struct WriteCall(Content);

impl StreamingService<WriteContentRequest> for WriteCall {
    type Response = WriteContentResponse;
    type ResponseStream = Replies<WriteContentResponse>;
    type Future = Reply<Replies<WriteContentResponse>>;

    fn call(&mut self, request: Request<Streaming<WriteContentRequest>>) -> Self::Future {
        let session = self.0.0.clone();
        Box::pin(async move {
            let (metadata, _, messages) = request.into_parts();
            let id = store_id(&metadata)?;
            let cache = writable(&session, id).await?.ok_or_else(|| unknown(id))?;
            let (queue, replies) = mpsc::channel(QUEUE);
            tokio::spawn(async move {
                if let Err(status) = write(cache, messages, &queue).await {
                    // Whoever hung up does not hear it.
                    let _ = queue.send(Err(status)).await;
                }
            });
            Ok(Response::new(Box::pin(ReceiverStream::new(replies)) as Replies<_>))
        })
    }
}

/// A blob on its way into a cache.
struct Writing {
    digest: Digest,
    size: u64,
    pieces: Option<mpsc::Sender<io::Result<Bytes>>>,
    kept: Option<JoinHandle<Result<(), base::Fault>>>,
    offset: u64,
}

impl Writing {
    /// It begins with a message that says which blob it is to be.
    async fn begin(cache: &Arc<dyn CacheDir>, first: &WriteContentRequest) -> Result<Writing, Status> {
        let digest: Digest = first.expected.parse().map_err(|_| Status::invalid_argument("a blob without a digest"))?;
        if cache.open(&digest).await.map_err(refused)?.is_some_and(|blob| i64::try_from(blob.size) == Ok(first.total)) {
            // It counts as put, and says so.
            let nothing = Box::new(io::empty());
            cache.put(&digest, u64::try_from(first.total).unwrap_or(0), nothing).await.map_err(refused)?;
            return Err(Status::already_exists(format!("content {digest}: already exists")));
        }
        let size = u64::try_from(first.total).map_err(|_| Status::invalid_argument("a blob of no size"))?;
        let (pieces, queue) = mpsc::channel(QUEUE);
        let cache = cache.clone();
        let reader = Box::new(Pieces { queue, rest: Bytes::new() });
        let kept = Some(tokio::spawn(async move { cache.put(&digest, size, reader).await }));
        Ok(Writing { digest, size, pieces: Some(pieces), kept, offset: 0 })
    }

    async fn add(&mut self, message: &WriteContentRequest) -> Result<(), Status> {
        if message.data.is_empty() {
            return Ok(());
        }
        if u64::try_from(message.offset) != Ok(self.offset) {
            let (there, meant) = (self.offset, message.offset);
            return Err(Status::out_of_range(format!("{there} bytes are there, not {meant}")));
        }
        self.offset += message.data.len() as u64;
        let sent = match &self.pieces {
            Some(pieces) => pieces.send(Ok(message.data.clone())).await.is_ok(),
            None => false,
        };
        // It says itself why it takes no more.
        if sent { Ok(()) } else { self.end().await }
    }

    /// What the cache says. It may have the blob before all of it came, by another build that writes there: what still
    /// comes is not needed then.
    async fn end(&mut self) -> Result<(), Status> {
        self.pieces = None;
        let Some(kept) = self.kept.take() else { return Ok(()) };
        let kept = kept.await;
        kept.map_err(|error| Status::internal(error.to_string()))?.map_err(refused)
    }

    fn reply(&self, action: WriteAction) -> WriteContentResponse {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let digest = if action == WriteAction::Commit { self.digest.to_string() } else { String::new() };
        WriteContentResponse { action: action.into(), offset: number(self.offset), total: number(self.size), digest }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // Not all came: what did is no blob, which its reader must not take for the end.
        if let Some(pieces) = self.pieces.take() {
            let _ = pieces.try_send(Err(io::Error::other("the daemon gave up")));
        }
    }
}

async fn write(
    cache: Arc<dyn CacheDir>,
    mut messages: Streaming<WriteContentRequest>,
    replies: &mpsc::Sender<Result<WriteContentResponse, Status>>,
) -> Result<(), Status> {
    let mut writing = None;
    while let Some(message) = messages.message().await? {
        let writing = match &mut writing {
            Some(writing) => writing,
            None => writing.insert(Writing::begin(&cache, &message).await?),
        };
        let action = message.action();
        writing.add(&message).await?;
        if action == WriteAction::Commit {
            writing.end().await?;
        }
        if replies.send(Ok(writing.reply(action))).await.is_err() || action == WriteAction::Commit {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base::Fault;

    use super::*;

    /// Has got every blob from somebody else, by the time that it is to be written.
    #[derive(Debug)]
    struct Overtaken;

    #[async_trait::async_trait]
    impl Blobs for Overtaken {
        fn place(&self) -> String {
            "overtaken".to_owned()
        }

        async fn open(&self, _: &Digest) -> Result<Option<Blob>, Fault> {
            Ok(None)
        }
    }

    #[async_trait::async_trait]
    impl CacheDir for Overtaken {
        async fn put(&self, _: &Digest, _: u64, _: Box<dyn io::Read + Send>) -> Result<(), Fault> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_blob_that_another_build_has_written_meanwhile_is_taken_to_its_end() {
        let pieces = ["some", "more", "last"];
        let whole = pieces.concat();
        let message = |offset: usize, data: &'static str| WriteContentRequest {
            expected: Digest::of(&whole).to_string(),
            total: whole.len() as i64,
            offset: offset as i64,
            data: Bytes::from_static(data.as_bytes()),
            ..WriteContentRequest::default()
        };
        let cache: Arc<dyn CacheDir> = Arc::new(Overtaken);
        let mut writing = Writing::begin(&cache, &message(0, pieces[0])).await.expect("it begins");
        let mut offset = 0;
        for piece in pieces {
            writing.add(&message(offset, piece)).await.expect("it is taken");
            offset += piece.len();
            tokio::task::yield_now().await;
        }
        writing.end().await.expect("it is there");
        writing.end().await.expect("and stays");
    }
}
