//! `moby.sshforward.v1.SSH`, both ends: a step's connection travels to the client, whose agent answers it.

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use base::Fault;
use futures_util::Stream;
use proto::moby::sshforward::v1::ssh_client::SshClient;
use proto::moby::sshforward::v1::ssh_server::{Ssh, SshServer};
use proto::moby::sshforward::v1::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::RemoteSession;
use super::serve::refused;
use crate::{Agent, DEFAULT_AGENT, SharedSession};

pub(super) const CHECK: &str = "/moby.sshforward.v1.SSH/CheckAgent";
pub(super) const FORWARD: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
/// Which agent a connection is for.
const ID: &str = "buildkit.ssh.id";
/// What is read of a connection at once.
const CHUNK: usize = 32 << 10;
/// Messages on their way.
const QUEUE: usize = 4;

/// The agent of that name, where the client has one.
pub(super) async fn find(session: &Arc<RemoteSession>, id: &str) -> Result<Option<Arc<dyn Agent>>, Fault> {
    if !session.supports(CHECK) || !session.supports(FORWARD) {
        return Ok(None);
    }
    let mut client = SshClient::new(session.channel());
    let check = async {
        match client.check_agent(CheckAgentRequest { id: id.to_owned() }).await {
            Ok(_) => Ok(true),
            // In words only, that it has none of the name.
            Err(status) if matches!(status.code(), Code::Unknown | Code::NotFound | Code::Unimplemented) => Ok(false),
            Err(status) => Err(status),
        }
    };
    let found = session.ask(&format!("cannot ask for the SSH agent `{id}`"), check).await?;
    Ok(found.then(|| Arc::new(Forwarded { session: session.clone(), id: id.to_owned() }) as Arc<dyn Agent>))
}

/// An agent at the other end.
struct Forwarded {
    session: Arc<RemoteSession>,
    id: String,
}

#[async_trait]
impl Agent for Forwarded {
    async fn answer(&self, step: UnixStream) -> Result<(), Fault> {
        let (from, to) = step.into_split();
        let (queue, messages) = mpsc::channel(QUEUE);
        let mut request = Request::new(ReceiverStream::new(messages));
        if let Ok(id) = self.id.parse() {
            request.metadata_mut().insert(ID, id);
        }
        let mut client = SshClient::new(self.session.channel());
        let talk = async {
            let answers = async {
                let incoming = client.forward_agent(request).await?.into_inner();
                put_out(incoming, to).await
            };
            let questions = async {
                take_in(from, |message| async { queue.send(message).await.is_ok() }).await;
                // The client hears that no more comes, and may still have something to say.
                drop(queue);
                std::future::pending().await
            };
            tokio::select! {
                answered = answers => answered,
                () = questions => Ok(()),
            }
        };
        self.session.ask(&format!("cannot reach the SSH agent `{}` of the client", self.id), talk).await
    }
}

/// Passes on what is read, until there is no more or nobody wants it.
async fn take_in<F: Future<Output = bool>>(mut from: OwnedReadHalf, mut send: impl FnMut(BytesMessage) -> F) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if !send(BytesMessage { data: buffer[..count].to_vec() }).await {
            return;
        }
    }
}

/// Writes what comes, and then says that no more does.
async fn put_out(mut incoming: Streaming<BytesMessage>, mut to: OwnedWriteHalf) -> Result<(), Status> {
    while let Some(message) = incoming.message().await? {
        if to.write_all(&message.data).await.is_err() {
            return Ok(());
        }
    }
    let _ = to.shutdown().await;
    Ok(())
}

/// The client's end.
pub(super) fn service(session: SharedSession) -> SshServer<Lent> {
    SshServer::new(Lent(session))
}

/// What a client lends.
pub(super) struct Lent(SharedSession);

impl Lent {
    async fn find(&self, id: &str) -> Result<Arc<dyn Agent>, Status> {
        let id = if id.is_empty() { DEFAULT_AGENT } else { id };
        let found = self.0.agent(id).await.map_err(refused)?;
        found.ok_or_else(|| Status::unknown(format!("unset ssh forward key {id}")))
    }
}

#[tonic::async_trait]
impl Ssh for Lent {
    async fn check_agent(&self, request: Request<CheckAgentRequest>) -> Result<Response<CheckAgentResponse>, Status> {
        self.find(&request.get_ref().id).await?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    type ForwardAgentStream = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = request.metadata().get(ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
        let agent = self.find(id).await?;
        let (ours, theirs) = UnixStream::pair().map_err(|error| Status::unknown(error.to_string()))?;
        let (from, to) = ours.into_split();
        let (queue, answers) = mpsc::channel(QUEUE);
        let incoming = request.into_inner();
        tokio::spawn(async move {
            let failures = queue.clone();
            let answering = async move {
                if let Err(fault) = agent.answer(theirs).await {
                    let _ = failures.send(Err(refused(fault))).await;
                }
            };
            let questions = async {
                // Where the call breaks off, so does the connection, with its writing half.
                let _ = put_out(incoming, to).await;
                std::future::pending().await
            };
            let told = queue.clone();
            let reading = take_in(from, |message| {
                let told = told.clone();
                async move { told.send(Ok(message)).await.is_ok() }
            });
            tokio::select! {
                ((), ()) = async { tokio::join!(answering, reading) } => {}
                () = questions => {}
                // The daemon does not listen any more.
                () = queue.closed() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}
