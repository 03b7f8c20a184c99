//! Build history's calls of the control service, and what `Status` says of builds that have ended.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use proto::moby::buildkit::v1 as wire;
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::control::Answers;
use crate::history::{Error, History, replay};

fn failed(error: Error) -> Status {
    match error {
        Error::Missing(_) => Status::not_found(error.to_string()),
        Error::Store(error) => super::error::status(&engine::store_fault("cannot use build records", error)),
    }
}

/// Does something that waits for the disk.
async fn blocking<T: Send + 'static>(
    history: &Arc<History>,
    work: impl FnOnce(&Arc<History>) -> Result<T, Error> + Send + 'static,
) -> Result<T, Status> {
    let history = history.clone();
    let done = tokio::task::spawn_blocking(move || work(&history)).await;
    done.map_err(|error| Status::internal(error.to_string()))?.map_err(failed)
}

/// `ListenBuildHistory`: what runs, what has ended, then what happens.
pub(super) async fn listen(
    history: &Arc<History>,
    request: wire::BuildHistoryRequest,
) -> Result<Answers<wire::BuildHistoryEvent>, Status> {
    let filters = History::filters(&request.filter).map_err(Status::invalid_argument)?;
    let limit = match usize::try_from(request.limit) {
        Ok(0) => None,
        Ok(limit) => Some(limit),
        Err(_) => return Err(Status::invalid_argument(format!("invalid limit {}", request.limit))),
    };
    let reference = request.r#ref;
    super::check_name("reference of the build", &reference)?;
    let listening = history.listen(&reference).map_err(failed)?;
    let ended = if request.active_only {
        Vec::new()
    } else {
        let reference = reference.clone();
        blocking(history, move |history| history.ended(&reference, &filters, limit)).await?
    };
    let known = stream::iter(listening.active.into_iter().chain(ended).map(Ok));
    if request.early_exit {
        return Ok(Box::pin(known));
    }
    let closed = history.closed.clone();
    let state = Some((listening.events, listening.watch));
    let happens = stream::unfold(state, move |state| {
        let (closed, reference) = (closed.clone(), reference.clone());
        async move {
            let (mut events, watch) = state?;
            loop {
                let event = tokio::select! {
                    biased;
                    event = events.recv() => event,
                    () = closed.cancelled() => return None,
                };
                match event {
                    Ok(event) => {
                        let about = event.record.as_ref().map_or("", |record| &record.r#ref);
                        if reference.is_empty() || about == reference {
                            return Some((Ok((*event).clone()), Some((events, watch))));
                        }
                    }
                    Err(RecvError::Lagged(_)) => {
                        let slow = "build history events are read too slowly: some were lost";
                        return Some((Err(Status::resource_exhausted(slow)), None));
                    }
                    Err(RecvError::Closed) => return None,
                }
            }
        }
    });
    Ok(Box::pin(known.chain(happens)))
}

/// `UpdateBuildHistory`. There is nothing to finalize: a record is whole when its build has ended.
pub(super) async fn update(history: &Arc<History>, request: wire::UpdateBuildHistoryRequest) -> Result<(), Status> {
    let reference = request.r#ref;
    super::check_name("reference of the build", &reference)?;
    match (request.delete, request.finalize) {
        (true, _) => blocking(history, move |history| history.delete(&reference)).await,
        (false, true) => Ok(()),
        (false, false) => blocking(history, move |history| history.pin(&reference, request.pinned)).await,
    }
}

/// What was told of a build that has ended, if there is a record of it.
pub(super) async fn status(
    history: &Arc<History>,
    reference: &str,
) -> Result<Option<Answers<wire::StatusResponse>>, Status> {
    let reference = reference.to_owned();
    let Some(record) = blocking(history, move |history| history.get(&reference)).await? else { return Ok(None) };
    let Some(log) = record.logs else { return Ok(Some(Box::pin(stream::empty()))) };
    let (sender, messages) = tokio::sync::mpsc::channel(4);
    let content = history.content().clone();
    tokio::task::spawn_blocking(move || {
        if let Err(status) = replay(&content, &log, &sender) {
            // Whoever asked may be gone.
            let _ = sender.blocking_send(Err(status));
        }
    });
    Ok(Some(Box::pin(ReceiverStream::new(messages))))
}
