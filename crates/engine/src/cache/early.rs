//! Caches with all steps (`mode=max`) get the layers of steps that are done while later ones run. What is there in the end need
//! not be sent then; a build that fails leaves blobs, and nothing that names them.

use std::collections::HashSet;
use std::sync::Arc;

use ::export::{Context, Exporter, Layer, layer_of, push_layers, repository};
use base::{Cancel, Fault};
use remotecache::{ExportOptions, Mode, Place};
use store::{Hold, SnapshotId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::export::{CacheExports, put_layer};
use crate::job::Job;

/// What sends layers beside the build. Dropped, it is of no use any more and stops at once.
pub(crate) struct Early {
    task: JoinHandle<()>,
    /// The build is done: what is under way is finished, and nothing begun.
    enough: CancellationToken,
    cancel: Cancel,
}

/// The layers that a build made, as they come.
type Made = mpsc::UnboundedReceiver<Arc<Hold>>;

impl Early {
    /// Starts to send what the steps of a build make. None where no cache wants it.
    pub(crate) fn start(
        job: &Arc<Job>,
        caches: &CacheExports,
        exporters: &[Exporter],
        context: impl FnOnce(Cancel) -> Context,
    ) -> Option<Early> {
        let wanted: Vec<ExportOptions> =
            caches.list().iter().filter(|options| is_early(options, exporters)).cloned().collect();
        if wanted.is_empty() {
            return None;
        }
        let (cancel, enough) = (Cancel::new(), CancellationToken::new());
        let made = job.tell_made();
        let task = send_all(job.clone(), context(cancel.clone()), wanted, made, enough.clone());
        Some(Early { task: tokio::spawn(task), enough, cancel })
    }

    /// Waits for what is under way.
    pub(crate) async fn finish(mut self) {
        self.enough.cancel();
        // What went wrong is found again by who writes the cache.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.task.abort();
    }
}

/// Layers are made once, and images take what is there: a cache must not be first where an image wants them otherwise.
fn is_early(options: &ExportOptions, exporters: &[Exporter]) -> bool {
    let own = options.compression;
    options.mode == Mode::Max
        && options.place != Place::Inline
        && exporters
            .iter()
            .filter_map(Exporter::compression)
            .all(|image| (image.kind, image.level) == (own.kind, own.level))
}

async fn send_all(
    job: Arc<Job>,
    context: Context,
    mut wanted: Vec<ExportOptions>,
    mut made: Made,
    enough: CancellationToken,
) {
    let mut done: HashSet<SnapshotId> = HashSet::new();
    loop {
        let hold = tokio::select! {
            biased;
            () = enough.cancelled() => return,
            hold = made.recv() => hold,
        };
        let Some(hold) = hold else { return };
        let Ok(mut chain) = context.store.snapshots().chain(&hold.id()) else { continue };
        chain.reverse();
        for id in chain {
            if !done.insert(id) {
                continue;
            }
            let mut left = Vec::new();
            for options in wanted {
                match send(&job, &context, &options, id).await {
                    Ok(()) => left.push(options),
                    // The cache is tried again in the end, and tells what is wrong then.
                    Err(fault) => tracing::debug!(%fault, "a layer was not sent ahead"),
                }
                if enough.is_cancelled() {
                    return;
                }
            }
            wanted = left;
        }
    }
}

/// Sends a layer where it is wanted. One that is elsewhere can wait: the place may have it, or need it not.
async fn send(job: &Job, context: &Context, options: &ExportOptions, id: SnapshotId) -> Result<(), Fault> {
    if context.store.snapshots().lazy(&id).is_some() {
        return Ok(());
    }
    let layer: Layer = layer_of(context, id, options.compression).await?;
    match &options.place {
        Place::Registry { reference, insecure } => {
            let repository = repository(context, reference, *insecure)?;
            push_layers(context, &repository, &[layer]).await
        }
        Place::Local { dir } => match job.session.cache(dir).await? {
            Some(cache) => put_layer(context, &*cache, &layer).await,
            None => Ok(()),
        },
        Place::Inline => Ok(()),
    }
}
