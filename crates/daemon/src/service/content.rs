//! `containerd.services.content.v1.Content`, as clients read blobs through it: those of the cache and of build history.
//! Nothing is written: what a client wants to store here, it builds.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;

use base::Digest;
use proto::content as wire;
use proto::content::{
    INFO, InfoRequest, LIST, LIST_STATUSES, READ, ReadContentRequest, ReadContentResponse, SERVICE, STATUS,
};
use session::remote::service::Calls;
use store::{BlobInfo, Content};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use super::control::Answers;
use crate::Shared;
use crate::filter::Filter;

/// Bytes of one message.
const PIECE: usize = 1 << 20;
/// Messages on their way.
const QUEUE: usize = 2;
/// Blobs of one message of a list.
const SOME: usize = 100;

/// The service.
#[derive(Clone)]
pub(crate) struct ContentStore(pub(crate) Arc<Shared>);

impl Calls for ContentStore {
    const NAME: &'static str = SERVICE;

    async fn call(self, request: http::Request<Body>) -> http::Response<Body> {
        let content = self.0.engine.store().content();
        match request.uri().path() {
            INFO => {
                let codec = ProstCodec::<wire::InfoResponse, InfoRequest>::default();
                let call = tower::service_fn(move |request| info(content.clone(), request));
                Grpc::new(codec).unary(call, request).await
            }
            LIST => {
                let codec = ProstCodec::<wire::ListContentResponse, wire::ListContentRequest>::default();
                let call = tower::service_fn(move |request| list(content.clone(), request));
                Grpc::new(codec).server_streaming(call, request).await
            }
            READ => {
                let codec = ProstCodec::<ReadContentResponse, ReadContentRequest>::default();
                let call = tower::service_fn(move |request| read(content.clone(), request));
                Grpc::new(codec).server_streaming(call, request).await
            }
            STATUS => {
                let codec = ProstCodec::<wire::WriteStatus, wire::StatusRequest>::default();
                let call = tower::service_fn(move |request: Request<wire::StatusRequest>| async move {
                    let name = &request.get_ref().r#ref;
                    Err::<Response<wire::WriteStatus>, _>(Status::not_found(format!("no writing `{name}`")))
                });
                Grpc::new(codec).unary(call, request).await
            }
            LIST_STATUSES => {
                let codec = ProstCodec::<wire::ListStatusesResponse, wire::ListStatusesRequest>::default();
                let call = tower::service_fn(move |_: Request<wire::ListStatusesRequest>| async move {
                    Ok(Response::new(wire::ListStatusesResponse::default()))
                });
                Grpc::new(codec).unary(call, request).await
            }
            path => {
                let method = path.rsplit('/').next().unwrap_or_default();
                let refused = format!("{method}: the content store is read-only");
                let known = matches!(method, "Write" | "Delete" | "Update" | "Abort");
                let code = if known { Code::PermissionDenied } else { Code::Unimplemented };
                Status::new(code, refused).into_http()
            }
        }
    }
}

/// Does something that waits for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> store::Result<T> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| super::error::status(&engine::store_fault("cannot use the content store", error)))
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|_| Status::invalid_argument(format!("`{text}` is no digest such as sha256:..")))
}

fn missing(digest: &Digest) -> Status {
    Status::not_found(format!("content {digest}: not found"))
}

fn described(blob: BlobInfo) -> wire::Info {
    let time = |at: std::time::SystemTime| jiff::Timestamp::try_from(at).ok().map(super::status::time);
    wire::Info {
        digest: blob.digest.to_string(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        created_at: time(blob.created_at),
        updated_at: time(blob.created_at),
        labels: blob.labels.into_iter().collect(),
    }
}

async fn info(content: Content, request: Request<InfoRequest>) -> Result<Response<wire::InfoResponse>, Status> {
    let digest = digest(&request.get_ref().digest)?;
    let blob = blocking(move || content.info(&digest)).await?.ok_or_else(|| missing(&digest))?;
    Ok(Response::new(wire::InfoResponse { info: Some(described(blob)) }))
}

async fn list(
    content: Content,
    request: Request<wire::ListContentRequest>,
) -> Result<Response<Answers<wire::ListContentResponse>>, Status> {
    let filters = &request.get_ref().filters;
    let filters = filters.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>();
    let filters = filters.map_err(Status::invalid_argument)?;
    let mut blobs = blocking(move || content.list()).await?;
    blobs.retain(|blob| {
        let field = |path: &[String]| match path {
            [name] if name == "digest" => Some(blob.digest.to_string()),
            [name] if name == "size" => Some(blob.size.to_string()),
            [name, label] if name == "labels" => blob.labels.get(label).cloned(),
            _ => None,
        };
        filters.is_empty() || filters.iter().any(|filter| filter.matches(field))
    });
    let infos: Vec<wire::Info> = blobs.into_iter().map(described).collect();
    let messages: Vec<_> =
        infos.chunks(SOME).map(|some| Ok(wire::ListContentResponse { info: some.to_vec() })).collect();
    Ok(Response::new(Box::pin(futures_util::stream::iter(messages))))
}

async fn read(
    content: Content,
    request: Request<ReadContentRequest>,
) -> Result<Response<Answers<ReadContentResponse>>, Status> {
    let request = request.into_inner();
    let digest = digest(&request.digest)?;
    let blob = blocking(move || content.get(&digest)).await?.ok_or_else(|| missing(&digest))?;
    let beyond = || Status::out_of_range(format!("read past object length {} bytes", blob.size));
    let offset = u64::try_from(request.offset).map_err(|_| beyond())?;
    let rest = blob.size.checked_sub(offset).ok_or_else(beyond)?;
    let wanted = match u64::try_from(request.size) {
        Ok(0) => rest,
        Ok(size) if size <= rest => size,
        _ => return Err(beyond()),
    };
    let (sender, messages) = tokio::sync::mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = send(blob.file, offset, wanted, &sender) {
            // Whoever reads may be gone.
            let _ = sender.blocking_send(Err(Status::internal(format!("cannot read {digest}: {error}"))));
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
}

fn send(
    mut file: std::fs::File,
    mut offset: u64,
    wanted: u64,
    messages: &tokio::sync::mpsc::Sender<Result<ReadContentResponse, Status>>,
) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    let end = offset + wanted;
    while offset < end {
        let mut data = vec![0; PIECE.min(usize::try_from(end - offset).unwrap_or(PIECE))];
        file.read_exact(&mut data)?;
        let length = data.len() as u64;
        let message = ReadContentResponse { offset: i64::try_from(offset).unwrap_or(i64::MAX), data: data.into() };
        if messages.blocking_send(Ok(message)).is_err() {
            break;
        }
        offset += length;
    }
    Ok(())
}
