//! Lazy layers become trees when somebody reads them: download, verify, decompress and unpack in one pass.
//!
//! The compressed blob is kept beside the tree, so that an export need not make it again. Layers of one image
//! are filled side by side where the snapshotter allows it; builds that want the same layer share the work. When the last of
//! them gives up, the download is stopped and the thread with it.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use base::{Cancel, Digest, Fault, Kind};
use files::untar::Limits;
use futures_util::FutureExt as _;
use futures_util::future::try_join_all;
use image::{Descriptor, Reference};
use registry::{BlobStart, BlockingBlob, Stopper};
use store::{Claim, Hold, LazyLayer, SnapshotId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::core::{Core, blocking, store_fault};
use crate::flight::Flights;
use crate::images::registry_fault;
use crate::job::Job;
use base::report::{Running, Task, Tasks};

/// Layers and blobs on their way in.
#[derive(Default)]
pub(crate) struct Fills {
    layers: Flights<SnapshotId, Result<(), Fault>>,
    blobs: Flights<Digest, Result<(), Fault>>,
    /// The threads that unpack.
    threads: TaskTracker,
}

impl Fills {
    /// Waits for the threads that are on their way to an end; for when nobody waits for a layer any more.
    pub(crate) async fn end(&self) {
        self.threads.close();
        self.threads.wait().await;
    }
}

impl Core {
    /// Makes the snapshot readable, with all below it.
    pub(crate) async fn fill(
        self: &Arc<Self>,
        job: &Arc<Job>,
        tasks: &Tasks,
        cancel: &CancellationToken,
        top: &Hold,
    ) -> Result<(), Fault> {
        let snapshots = self.store.snapshots();
        let missing = snapshots.unfilled(&top.id()).map_err(|e| store_fault("cannot read a snapshot", e))?;
        let Some(first) = missing.first() else { return Ok(()) };
        // People look for a download at the image, not at the step that happens to need it first.
        let image = job.pull(*first).map(|label| Running::start(job.sink.clone(), &label));
        let tasks = image.as_ref().map_or_else(|| tasks.clone(), Running::tasks);
        let filled = tokio::select! {
            filled = self.fill_all(job, &tasks, missing) => filled,
            () = cancel.cancelled() => return Err(Fault::cancelled()),
        };
        match image {
            Some(image) => image.end(filled),
            None => filled,
        }
    }

    async fn fill_all(self: &Arc<Self>, job: &Arc<Job>, tasks: &Tasks, missing: Vec<SnapshotId>) -> Result<(), Fault> {
        let start = |id: SnapshotId| {
            let (core, job, tasks) = (self.clone(), job.clone(), tasks.clone());
            self.fills.layers.join(id, || fill_one(core, job, tasks, id).boxed())
        };
        if self.store.driver().driver == store::Driver::Copy {
            // Each tree begins as a copy of the one below.
            for id in missing {
                start(id).await?;
            }
            return Ok(());
        }
        try_join_all(missing.into_iter().map(start)).await.map(drop)
    }

    /// Brings the blob of a lazy layer into the content store without unpacking it.
    pub(crate) async fn fetch_layer(
        self: &Arc<Self>,
        job: &Arc<Job>,
        tasks: &Tasks,
        layer: Arc<LazyLayer>,
    ) -> Result<(), Fault> {
        let (core, job, tasks, digest) = (self.clone(), job.clone(), tasks.clone(), layer.digest);
        let work = || {
            async move {
                if let Some(mut blob) = Blob::open(&core, &job, &tasks, &layer).await? {
                    let _stop = blob.stop.take();
                    let copy = move || io::copy(&mut blob.reader, &mut io::sink()).map(|_| blob.finish);
                    let copied = core.fills.blocking(copy).await;
                    let finish = copied.map_err(|e| broken(&layer, e))?;
                    finish()?;
                }
                Ok(())
            }
            .boxed()
        };
        self.fills.blobs.join(digest, work).await
    }
}

async fn fill_one(core: Arc<Core>, job: Arc<Job>, tasks: Tasks, id: SnapshotId) -> Result<(), Fault> {
    let Some(layer) = core.store.snapshots().lazy(&id) else {
        return Err(Fault::new(Kind::Internal, format!("snapshot {id} has neither a tree nor a layer")));
    };
    let mut tries = 2;
    loop {
        tries -= 1;
        let (source, downloaded) = match Blob::open(&core, &job, &tasks, &layer).await? {
            Some(blob) => (blob, true),
            None => (Blob::stored(&core, &layer)?, false),
        };
        let unpacked = unpack(core.clone(), tasks.clone(), id, layer.clone(), source).await;
        match unpacked {
            // Wrong bytes show at the end of a download; the registry client then asks another host.
            Err(fault) if tries > 0 && fault.kind() == Kind::Remote => {
                tracing::warn!(%fault, layer = %layer.digest, "downloading a layer again");
                // A blob that was here already and is no good would stay in the way.
                if !downloaded {
                    let deleted = core.store.content().delete(&layer.digest);
                    deleted.map_err(|e| store_fault("cannot discard a broken layer", e))?;
                }
            }
            done => return done,
        }
    }
}

async fn unpack(
    core: Arc<Core>,
    tasks: Tasks,
    id: SnapshotId,
    layer: Arc<LazyLayer>,
    mut source: Blob,
) -> Result<(), Fault> {
    let cancel = Cancel::new();
    let _stop = (source.stop.take(), CancelOnDrop(cancel.clone()));
    let store = core.store.clone();
    let work = move || {
        let extracting = tasks.start(format!("extracting {}", layer.digest), 0);
        let filled = store.snapshots().unpack(&id, source.reader, &Limits::default(), &cancel);
        drop(extracting);
        match filled {
            Ok(()) => (source.finish)(),
            Err(error) if error.is_no_space() => Err(store_fault("cannot unpack a layer", error)),
            Err(error) => Err(Fault::because(Kind::Remote, format!("cannot unpack layer {}", layer.digest), error)),
        }
    };
    core.fills.blocking(work).await
}

impl Fills {
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let running = self.threads.token();
        blocking(move || {
            let _running = running;
            work()
        })
        .await
    }
}

/// Stops the thread that unpacks when nobody waits for it.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Stops a download when nobody waits for it. One that has ended does not mind.
struct StopOnDrop(Stopper);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn broken(layer: &LazyLayer, error: io::Error) -> Fault {
    Fault::because(Kind::Remote, format!("layer {} is broken", layer.digest), error)
}

type Finish = Box<dyn FnOnce() -> Result<(), Fault> + Send>;

/// The compressed bytes of a layer, and what to do when all of them were read.
struct Blob {
    reader: Box<dyn Read + Send>,
    finish: Finish,
    stop: Option<StopOnDrop>,
}

impl Blob {
    fn stored(core: &Core, layer: &LazyLayer) -> Result<Blob, Fault> {
        let missing = || Fault::new(Kind::Internal, format!("layer {} vanished from the content store", layer.digest));
        let blob = core.store.content().get(&layer.digest).map_err(|e| store_fault("cannot read a layer", e))?;
        Ok(Blob { reader: Box::new(blob.ok_or_else(missing)?.file), finish: Box::new(|| Ok(())), stop: None })
    }

    /// Opens a download that also goes into the content store. None: the blob is there already.
    async fn open(core: &Arc<Core>, job: &Arc<Job>, tasks: &Tasks, layer: &LazyLayer) -> Result<Option<Blob>, Fault> {
        let content = core.store.content();
        let guard = loop {
            let (wake, woken) = tokio::sync::oneshot::channel();
            match content.claim(&layer.digest, move || wake.send(()).unwrap_or(())) {
                Claim::Present(_) => return Ok(None),
                Claim::Mine(guard) => break guard,
                // Closed or sent, either way it is time to look again.
                Claim::Busy => drop(woken.await),
            }
        };
        let stream = fetch(core, job, layer).await?;
        let writer = content.writer(Some(layer.digest), Some(layer.size));
        let writer = writer.map_err(|e| store_fault("cannot keep a layer", e))?;
        let task = tasks.start(layer.digest.to_string(), layer.size);
        let stop = Some(StopOnDrop(stream.stopper()));
        let writer = Arc::new(Mutex::new(Some(writer)));
        let reader = Tee { stream, writer: writer.clone(), task, read: 0 };
        let finish = Box::new(move || {
            let writer = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
            let kept = writer.map(store::Writer::finish).transpose();
            drop(guard);
            kept.map(drop).map_err(|e| store_fault("cannot keep a layer", e))
        });
        Ok(Some(Blob { reader: Box::new(reader), finish, stop }))
    }
}

async fn fetch(core: &Core, job: &Arc<Job>, layer: &LazyLayer) -> Result<BlockingBlob, Fault> {
    let mut descriptor = Descriptor::new(layer.media_type.clone(), layer.digest, layer.size);
    descriptor.annotations.clone_from(&layer.annotations);
    let mut last = None;
    for source in &layer.sources {
        let reference: Reference =
            source.parse().map_err(|e| Fault::because(Kind::Internal, format!("layer comes from `{source}`"), e))?;
        let repository = core.images.repository(job, &reference)?;
        match repository.fetch_blob(&descriptor, BlobStart::Beginning).await {
            Ok(stream) => return Ok(stream.into_blocking()),
            Err(error) => last = Some(registry_fault(error)),
        }
    }
    let nowhere = || Fault::new(Kind::Internal, "nothing says where the layer comes from");
    Err(last.unwrap_or_else(nowhere).context(format!("cannot fetch layer {}", layer.digest)))
}

/// A download that is kept while it is read.
struct Tee {
    stream: BlockingBlob,
    writer: Arc<Mutex<Option<store::Writer>>>,
    task: Task,
    read: u64,
}

impl Read for Tee {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(buf)?;
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            writer.append(&buf[..n]).map_err(io::Error::other)?;
        }
        self.read += n as u64;
        self.task.at(self.read);
        Ok(n)
    }
}
