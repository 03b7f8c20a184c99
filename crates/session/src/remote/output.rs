//! `FileSend.DiffCopy`: what exporters give to a client, as one stream or as a tree of files.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use base::Fault;
use futures_util::StreamExt as _;
use proto::fsutil::Packet;
use proto::moby::filesync::v1::BytesMessage;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use super::{MAX_MESSAGE, RemoteSession, Said, batch, describe};
use crate::{RemoteOutput, RemoteStream};

pub(super) const METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";
/// Says that a tree has the files of all platforms.
pub(super) const ALL_AT_ONCE: &str = "buildkit-exporter-multi-platform";
const DOING: &str = "cannot send the result to the client";
/// What is collected before it is sent.
const CHUNK: usize = 256 << 10;
/// Messages on their way.
const QUEUE: usize = 8;

/// A client that takes the result of one export.
pub(super) struct Remote {
    pub(super) session: Arc<RemoteSession>,
    pub(super) index: usize,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "export {} of session {}", self.index, self.session.id)
    }
}

/// A tree of files that is offered to a client, who asks for the bytes that it wants. See [`Offer::send`].
pub struct Offer {
    pub(super) requests: mpsc::Receiver<Result<Packet, Fault>>,
    pub(super) packets: batch::Sender,
    /// Ends the call: nobody waits for the other end any more.
    pub(super) call: tokio::task::AbortHandle,
}

impl Remote {
    async fn call<Out, In>(&self, mut request: Request<Out>) -> Result<Streaming<In>, Fault>
    where
        Out: tonic::codegen::tokio_stream::Stream + Send + 'static,
        Out::Item: proto::Message + Send + Sync + 'static,
        In: proto::Message + Default + Send + Sync + 'static,
    {
        request.metadata_mut().insert("buildkit-attachable-exporter-id", self.index.into());
        let mut grpc = tonic::client::Grpc::new(self.session.channel()).max_decoding_message_size(MAX_MESSAGE);
        let call = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Out::Item, In>::default();
            grpc.streaming(request, PathAndQuery::from_static(METHOD), codec).await
        };
        Ok(self.session.ask(DOING, call).await?.into_inner())
    }
}

#[async_trait]
impl RemoteOutput for Remote {
    async fn stream(&self, about: &BTreeMap<String, String>) -> Result<Box<dyn RemoteStream>, Fault> {
        let (messages, queue) = mpsc::channel::<BytesMessage>(QUEUE);
        let mut request = Request::new(ReceiverStream::new(queue));
        describe(request.metadata_mut(), about);
        let remote = Remote { session: self.session.clone(), index: self.index };
        // The client may answer nothing before the end, not even headers.
        let answer = tokio::spawn(async move {
            let mut answers: Streaming<BytesMessage> = remote.call(request).await?;
            remote.session.ask(DOING, async { answers.message().await }).await.map(drop)
        });
        Ok(Box::new(Stream { messages: Some(messages), buffer: Vec::new(), answer: Some(answer), unwanted: false }))
    }

    async fn tree(&self) -> Result<Offer, Fault> {
        let (packets, batches) = batch::channel();
        let packets_only = batch::packets(batches).filter_map(|packet| std::future::ready(packet.ok()));
        let mut request = Request::new(packets_only);
        // All platforms come at once: a client that removes what is not among them may do so.
        request.metadata_mut().insert(ALL_AT_ONCE, MetadataValue::from_static("1"));
        let remote = Remote { session: self.session.clone(), index: self.index };
        let (asked, requests) = mpsc::channel(QUEUE);
        // The client asks for nothing before it was told of a file.
        let call = tokio::spawn(async move {
            let mut answers: Streaming<Packet> = match remote.call(request).await {
                Ok(answers) => answers,
                Err(fault) => return drop(asked.send(Err(fault)).await),
            };
            while let Some(packet) = remote.session.ask(DOING, answers.message()).await.transpose() {
                let ends = packet.is_err();
                if asked.send(packet).await.is_err() || ends {
                    break;
                }
            }
        });
        Ok(Offer { requests, packets, call: call.abort_handle() })
    }
}

struct Stream {
    messages: Option<mpsc::Sender<BytesMessage>>,
    buffer: Vec<u8>,
    answer: Option<tokio::task::JoinHandle<Result<(), Fault>>>,
    /// The client has it already.
    unwanted: bool,
}

impl Stream {
    fn send(&mut self) -> io::Result<()> {
        let data = std::mem::take(&mut self.buffer);
        let sent = self.messages.as_ref().is_some_and(|queue| queue.blocking_send(BytesMessage { data }).is_ok());
        if sent { Ok(()) } else { self.end().and(Err(io::ErrorKind::BrokenPipe.into())) }
    }

    /// What the client said in the end.
    fn end(&mut self) -> io::Result<()> {
        self.messages = None;
        let Some(answer) = self.answer.take() else { return Ok(()) };
        let answer = tokio::runtime::Handle::current().block_on(answer).map_err(io::Error::other)?;
        match answer {
            Err(fault) if fault.find::<Said>().is_some_and(|said| said.code == Code::AlreadyExists) => {
                self.unwanted = true;
                Ok(())
            }
            answer => answer.map_err(io::Error::other),
        }
    }
}

impl io::Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == CHUNK {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl RemoteStream for Stream {
    fn is_unwanted(&self) -> bool {
        self.unwanted
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        if !self.buffer.is_empty() {
            match self.send() {
                Err(_) if self.unwanted => return Ok(()),
                sent => sent?,
            }
        }
        self.end()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Not finished: the client must not take what it has for the whole.
        if let Some(answer) = &self.answer {
            answer.abort();
        }
    }
}
