//! `Upload.Pull`: a file that a client gives instead of a web server, such as a context on its standard input.

use base::Fault;
use bytes::Bytes;
use proto::moby::upload::v1::BytesMessage;
use proto::moby::upload::v1::upload_client::UploadClient;
use tokio::sync::mpsc;
use tonic::Request;

use super::{MAX_MESSAGE, RemoteSession};

pub(super) const METHOD: &str = "/moby.upload.v1.Upload/Pull";
const DOING: &str = "cannot get an upload of the client";
/// Pieces that were received and not taken yet.
const QUEUE: usize = 16;

/// Begins to receive what the client has under `path` of `host`.
pub(super) async fn pull(
    session: &std::sync::Arc<RemoteSession>,
    host: &str,
    path: &str,
) -> Result<mpsc::Receiver<Result<Bytes, Fault>>, Fault> {
    let mut client = UploadClient::new(session.channel()).max_decoding_message_size(MAX_MESSAGE);
    // We say nothing, but the call lasts as long as our side of it.
    let mut request = Request::new(tokio_stream::pending::<BytesMessage>());
    for (key, value) in [("urlhost", host), ("urlpath", path)] {
        let value = value.parse().map_err(|_| Fault::user(format!("an upload cannot be called `{value}`")))?;
        request.metadata_mut().insert(key, value);
    }
    let mut messages = session.ask(DOING, client.pull(request)).await?.into_inner();
    let (sender, pieces) = mpsc::channel(QUEUE);
    let session = session.clone();
    tokio::spawn(async move {
        while let Some(piece) = session.ask(DOING, messages.message()).await.transpose() {
            let ends = piece.is_err();
            if sender.send(piece.map(|message| Bytes::from(message.data))).await.is_err() || ends {
                break;
            }
        }
    });
    Ok(pieces)
}
