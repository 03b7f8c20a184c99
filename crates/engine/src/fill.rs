//! Lazy layers become trees when somebody reads them: download, verify, decompress and unpack in one pass.
//!
//! The compressed blob is kept beside the tree, so that an export need not make it again. Layers of one image
//! are filled side by side where the snapshotter allows it; builds that want the same layer share the work. When the last of
//! them gives up, the download is stopped and the thread with it.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::progress::Stream::Stderr;
use base::{Cancel, Digest, Fault, Kind};
use files::untar::Limits;
use futures_util::FutureExt as _;
use futures_util::future::try_join_all;
use image::Descriptor;
use registry::{Aloud, BlobStart, Class, Stopper};
use store::{Claim, ClaimGuard, Hold, LazyLayer, SnapshotId};
use tokio_util::sync::CancellationToken;

use crate::cache::lost::{blame, is_lost};
use crate::core::{Core, joined, store_fault};
use crate::flight::Flights;
use crate::images::layer_fault;
use crate::job::Job;
use crate::layout::StoreName;
use crate::{layout, room};
use base::report::{Running, Task, Tasks};

/// Layers and blobs on their way in.
#[derive(Default)]
pub(crate) struct Fills {
    layers: Flights<SnapshotId, Result<(), Fault>>,
    blobs: Flights<Digest, Result<(), Fault>>,
}

impl Core {
    /// Whether a snapshot and all below it are unpacked.
    pub(crate) fn is_filled(&self, hold: &Hold) -> Result<bool, Fault> {
        let missing = self.store.snapshots().unfilled(&hold.id());
        missing.map(|missing| missing.is_empty()).map_err(|e| store_fault("cannot read a snapshot", e))
    }

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
        let label = job.pull(*first);
        let image = label.as_ref().map(|label| Running::start(job.sink.clone(), label));
        let tasks = image.as_ref().map_or_else(|| tasks.clone(), Running::tasks);
        let filled = tokio::select! {
            filled = self.fill_all(job, &tasks, missing) => filled,
            () = cancel.cancelled() => return Err(Fault::cancelled()),
        };
        let filled = filled.map_err(|fault| match &label {
            Some(label) => job.locate(fault, label.digest),
            None => fault,
        });
        match image {
            // Whoever wanted the layer fails, or goes on without the cache.
            Some(image) if filled.as_ref().is_err_and(is_lost) => {
                drop(image);
                filled
            }
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
        id: SnapshotId,
        layer: Arc<LazyLayer>,
    ) -> Result<(), Fault> {
        let (core, owner, tasks, digest) = (self.clone(), job.clone(), tasks.clone(), layer.digest);
        let fetched = self.fills.blobs.join(digest, || fetch_one(core, owner, tasks, layer).boxed()).await;
        fetched.map_err(|fault| match job.pull(id) {
            Some(label) => job.locate(fault, label.digest),
            None => fault,
        })
    }
}

async fn fill_one(core: Arc<Core>, job: Arc<Job>, tasks: Tasks, id: SnapshotId) -> Result<(), Fault> {
    let Some(layer) = core.store.snapshots().lazy(&id) else {
        return Err(Fault::new(Kind::Internal, format!("snapshot {id} has neither a tree nor a layer")));
    };
    unpack_one(core, job, tasks, id, layer.clone()).await.map_err(|fault| blame(&layer, fault))
}

async fn unpack_one(
    core: Arc<Core>,
    job: Arc<Job>,
    tasks: Tasks,
    id: SnapshotId,
    layer: Arc<LazyLayer>,
) -> Result<(), Fault> {
    let (mut sources, mut room) = (Sources::of(&job, &layer), core.store.room());
    let mut is_trusted = true;
    loop {
        let blob = match Download::open(&core, &job, &tasks, &layer, &mut sources).await? {
            Some(download) => Blob::Download(download),
            None => Blob::stored(&core, &layer)?,
        };
        let is_stored = matches!(blob, Blob::Stored(_));
        let (owner, extracting, wanted) = (core.clone(), tasks.clone(), layer.clone());
        let unpack = move |reader: Box<dyn Read + Send>, cancel: &Cancel| {
            let _extracting = extracting.start(format!("extracting {}", wanted.digest), 0);
            let unpacked = owner.store.snapshots().unpack(&id, reader, &Limits::default(), cancel);
            unpacked.map_err(|error| match error.is_no_space() {
                true => store_fault("cannot unpack a layer", error),
                false => Fault::because(Kind::Remote, format!("cannot unpack layer {}", wanted.digest), error),
            })
        };
        match read_whole(&core, format!("unpacking layer {}", layer.digest), blob, unpack).await {
            // What was downloaded is there, unless that was too much already.
            Err(Failed { fault, whose: Whose::Other })
                if room::wants_room(&fault) && room::make(&mut room, missing(&core, &layer), &tasks).await => {}
            // One that was here already and is no good would stay in the way.
            Err(Failed { fault, whose: Whose::Bytes }) if is_stored && is_trusted => {
                is_trusted = false;
                tracing::warn!(%fault, layer = %layer.digest, "downloading a layer again");
                let deleted = core.store.content().discard(&layer.digest);
                deleted.map_err(|e| store_fault("cannot discard a broken layer", e))?;
            }
            Err(failed) if !is_stored && sources.go_on(&failed, &tasks) => {}
            done => return done.map_err(|failed| failed.fault),
        }
    }
}

/// The bytes of a blob that is not here yet.
fn missing(core: &Core, layer: &LazyLayer) -> u64 {
    if core.store.content().has(&layer.digest) { 0 } else { layer.size }
}

async fn fetch_one(core: Arc<Core>, job: Arc<Job>, tasks: Tasks, layer: Arc<LazyLayer>) -> Result<(), Fault> {
    keep_one(core, job, tasks, layer.clone()).await.map_err(|fault| blame(&layer, fault))
}

async fn keep_one(core: Arc<Core>, job: Arc<Job>, tasks: Tasks, layer: Arc<LazyLayer>) -> Result<(), Fault> {
    let mut sources = Sources::of(&job, &layer);
    loop {
        let download = Download::open(&core, &job, &tasks, &layer, &mut sources).await?;
        let Some(download) = download else { return Ok(()) };
        let digest = layer.digest;
        let skim = move |mut reader: Box<dyn Read + Send>, _: &Cancel| {
            let read = io::copy(&mut reader, &mut io::sink());
            read.map(drop).map_err(|e| Fault::because(Kind::Remote, format!("cannot fetch layer {digest}"), e))
        };
        match read_whole(&core, format!("fetching layer {}", layer.digest), Blob::Download(download), skim).await {
            Err(failed) if sources.go_on(&failed, &tasks) => {}
            done => return done.map_err(|failed| failed.fault),
        }
    }
}

/// Why a blob was not read.
struct Failed {
    fault: Fault,
    whose: Whose,
}

/// Whose failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// The bytes are not those that were asked for.
    Bytes,
    /// Its source gave up on the way.
    Source,
    Other,
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Failed { fault, whose: Whose::Other }
    }
}

/// The compressed bytes of a layer.
enum Blob {
    Stored(std::fs::File),
    Download(Download),
}

impl Blob {
    fn stored(core: &Core, layer: &LazyLayer) -> Result<Blob, Fault> {
        let missing = || Fault::new(Kind::Internal, format!("layer {} vanished from the content store", layer.digest));
        let blob = core.store.content().get(&layer.digest).map_err(|e| store_fault("cannot read a layer", e))?;
        Ok(Blob::Stored(blob.ok_or_else(missing)?.file))
    }
}

/// Reads a blob on a thread of its own. Where nobody waits for that any more, the thread is told to end.
async fn read_whole(
    core: &Arc<Core>,
    what: String,
    blob: Blob,
    read: impl FnOnce(Box<dyn Read + Send>, &Cancel) -> Result<(), Fault> + Send + 'static,
) -> Result<(), Failed> {
    let cancel = Cancel::new();
    let stop = match &blob {
        Blob::Stored(_) => None,
        Blob::Download(download) => download.stop.clone(),
    };
    let _unwanted = Unwanted { cancel: cancel.clone(), stop };
    let work = move || match blob {
        // It was whole when it was kept; what came of it since only a download can tell.
        Blob::Stored(file) => read(Box::new(file), &cancel).map_err(|fault| {
            let is_broken = fault.kind() == Kind::Remote && !cancel.is_cancelled();
            Failed { fault, whose: if is_broken { Whose::Bytes } else { Whose::Other } }
        }),
        Blob::Download(download) => {
            let read = read(Box::new(download.reader()), &cancel);
            download.settle(read, &cancel)
        }
    };
    joined(core.threads.spawn_blocking(what, work)).await
}

/// Tells a thread that its work is not wanted.
struct Unwanted {
    cancel: Cancel,
    stop: Option<Stopper>,
}

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(stop) = &self.stop {
            stop.stop();
        }
    }
}

/// A blob that is kept while it is read.
struct Download {
    tee: Arc<Mutex<Tee>>,
    stop: Option<Stopper>,
    /// Others who want it wait until it is there, or until we gave up.
    guard: ClaimGuard,
}

struct Tee {
    digest: Digest,
    stream: Box<dyn Read + Send>,
    writer: Option<store::Writer>,
    task: Task,
    read: u64,
    /// The first failure of the download itself, whatever its reader makes of it.
    failed: Option<Failed>,
}

impl Download {
    /// Begins it. None: the blob is there already.
    async fn open(
        core: &Arc<Core>,
        job: &Arc<Job>,
        tasks: &Tasks,
        layer: &LazyLayer,
        sources: &mut Sources,
    ) -> Result<Option<Download>, Fault> {
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
        let (stream, stop) = sources.fetch(core, job, tasks, layer).await?;
        let writer = content.writer(Some(layer.digest), Some(layer.size));
        let writer = Some(writer.map_err(|e| store_fault("cannot keep a layer", e))?);
        let task = tasks.start(layer.digest.to_string(), layer.size);
        let tee = Tee { digest: layer.digest, stream, writer, task, read: 0, failed: None };
        Ok(Some(Download { tee: Arc::new(Mutex::new(tee)), stop, guard }))
    }

    fn reader(&self) -> TeeReader {
        TeeReader(self.tee.clone())
    }

    /// Keeps what was read to its end. Where the reader is not content, the rest is read to see whose fault it is: that of
    /// what came, or of what the layer is.
    fn settle(self, read: Result<(), Fault>, cancel: &Cancel) -> Result<(), Failed> {
        let mut tee = lock(&self.tee);
        let is_full = read.as_ref().is_err_and(room::is_full);
        if (is_full || read.as_ref().is_err_and(|fault| fault.kind() == Kind::Remote)) && tee.failed.is_none() {
            // Its failure is noted.
            let _ = io::copy(&mut *tee, &mut io::sink());
        }
        if cancel.is_cancelled() {
            return Err(Fault::cancelled().into());
        }
        if let Some(failed) = tee.failed.take() {
            return Err(failed);
        }
        // It is no fault of the blob that there was no room beside it.
        let no_room = match read {
            Err(fault) if is_full => Some(fault),
            read => read.map(|()| None)?,
        };
        let kept = tee.writer.take().map(store::Writer::finish).transpose();
        drop(self.guard);
        kept.map_err(|e| store_fault("cannot keep a layer", e))?;
        no_room.map_or(Ok(()), |fault| Err(fault.into()))
    }
}

impl Read for Tee {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let doing = || format!("cannot fetch layer {}", self.digest);
        let failed = match self.stream.read(buf) {
            Ok(n) => match self.writer.as_mut().map_or(Ok(()), |writer| writer.append(&buf[..n])) {
                Ok(()) => {
                    self.read += n as u64;
                    self.task.at(self.read);
                    return Ok(n);
                }
                Err(error) => Failed::from(store_fault("cannot keep a layer", error)),
            },
            Err(error) => match error.downcast::<registry::Error>() {
                Ok(error) => {
                    let whose = if error.class() == Class::BadDigest { Whose::Bytes } else { Whose::Source };
                    Failed { fault: layer_fault(error).context(doing()), whose }
                }
                Err(error) => Failed { fault: Fault::because(Kind::Remote, doing(), error), whose: Whose::Source },
            },
        };
        let said = io::Error::other(failed.fault.to_string());
        self.failed.get_or_insert(failed);
        Err(said)
    }
}

/// A download as the threads that unpack it read it.
struct TeeReader(Arc<Mutex<Tee>>);

impl Read for TeeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        lock(&self.0).read(buf)
    }
}

fn lock(tee: &Mutex<Tee>) -> MutexGuard<'_, Tee> {
    tee.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of a layer, verified when they are read to their end, and what ends a thread that waits for them.
type Stream = (Box<dyn Read + Send>, Option<Stopper>);

/// A place that a layer may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// A store of a client.
    Store(StoreName),
    /// A repository.
    Repository(String),
    /// Stores of clients, of which this build names none.
    NoStore,
}

/// Where a layer can still come from: what fails is not asked again, so that a damaged copy stands in the way of no good one.
struct Sources {
    left: VecDeque<Source>,
    /// What failed last.
    fault: Option<Fault>,
    /// Whether the first one sent wrong bytes once.
    again: bool,
}

impl Sources {
    fn of(job: &Job, layer: &LazyLayer) -> Sources {
        Sources::among(&layer.sources, job.stores())
    }

    /// What the client has on its disk comes first, unless this build names none of it.
    fn among(sources: &[String], stores: Vec<StoreName>) -> Sources {
        let is_of_client = |source: &&String| source.as_str() == layout::SOURCE;
        let repositories = sources.iter().filter(|source| !is_of_client(source)).cloned().map(Source::Repository);
        let mut left = VecDeque::new();
        if sources.iter().any(|source| is_of_client(&source)) {
            left.extend(stores.into_iter().map(Source::Store));
            if left.is_empty() && sources.len() == 1 {
                left.push_back(Source::NoStore);
            }
        }
        left.extend(repositories);
        Sources { left, fault: None, again: false }
    }

    /// Begins to read from the first one that has it.
    async fn fetch(&mut self, core: &Core, job: &Arc<Job>, tasks: &Tasks, layer: &LazyLayer) -> Result<Stream, Fault> {
        while let Some(source) = self.left.front() {
            match source.open(core, job, tasks, layer).await {
                Ok(stream) => return Ok(stream),
                Err(fault) => self.strike(fault),
            }
        }
        let nowhere = || Fault::new(Kind::Internal, "nothing says where the layer comes from");
        let fault = self.fault.take().unwrap_or_else(nowhere);
        Err(fault.context(format!("cannot fetch layer {}", layer.digest)))
    }

    fn strike(&mut self, fault: Fault) {
        self.left.pop_front();
        (self.fault, self.again) = (Some(fault), false);
    }

    /// Strikes off the one that was read from, if it is its fault. Whether one is left.
    fn go_on(&mut self, failed: &Failed, tasks: &Tasks) -> bool {
        let Failed { fault, whose } = failed;
        match (whose, self.left.front()) {
            (Whose::Other, _) => return false,
            // Where what came is not what was asked for, the registry client asks another host, or the same once more.
            (Whose::Bytes, Some(Source::Repository(_))) if !self.again => self.again = true,
            _ => self.strike(fault.clone()),
        }
        if !self.left.is_empty() {
            tracing::warn!(%fault, "downloading a layer again");
            tasks.log(Stderr, format!("{fault}: trying again, or elsewhere\n").as_bytes());
        }
        !self.left.is_empty()
    }
}

impl Source {
    async fn open(&self, core: &Core, job: &Arc<Job>, tasks: &Tasks, layer: &LazyLayer) -> Result<Stream, Fault> {
        let place = match self {
            Source::Store(name) => return layout::layer(job, layer, name).await.map(|stream| (stream, None)),
            Source::NoStore => return Err(Fault::user("it is of an OCI layout that this build does not name")),
            Source::Repository(place) => place,
        };
        let mut descriptor = Descriptor::new(layer.media_type.clone(), layer.digest, layer.size);
        descriptor.annotations.clone_from(&layer.annotations);
        descriptor.urls.clone_from(&layer.urls);
        let repository = core.images.repository_at(job, place)?.with_progress(Arc::new(Aloud(tasks.clone())));
        let stream =
            repository.fetch_blob(&descriptor, BlobStart::Beginning).await.map_err(layer_fault)?.into_blocking();
        let stop = stream.stopper();
        Ok((Box::new(stream), Some(stop)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(name: &str) -> StoreName {
        StoreName { session: None, store: name.to_owned(), cache: true }
    }

    fn failed(whose: Whose) -> Failed {
        Failed { fault: Fault::new(Kind::Remote, "broken"), whose }
    }

    #[test]
    fn stores_that_a_build_names_come_before_repositories() {
        let among = |sources: &[&str], stores: &[&str]| {
            let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
            Vec::from(Sources::among(&sources, stores.iter().copied().map(store).collect()).left)
        };
        let repository = |name: &str| Source::Repository(name.to_owned());
        let both = ["r/a", layout::SOURCE, "r/b"];
        let (one, two) = (Source::Store(store("one")), Source::Store(store("two")));
        assert_eq!(among(&both, &["one", "two"]), [one, two, repository("r/a"), repository("r/b")]);
        assert_eq!(among(&both, &[]), [repository("r/a"), repository("r/b")]);
        assert_eq!(among(&["r/a"], &["one"]), [repository("r/a")]);
        assert_eq!(among(&[layout::SOURCE], &[]), [Source::NoStore]);
    }

    #[test]
    fn a_source_that_fails_is_struck_off_and_a_registry_asked_twice() {
        let tasks = Tasks::new(Arc::new(base::progress::Discard), Digest::of("step"));
        let mut sources = Sources::among(&[layout::SOURCE.to_owned(), "r/a".to_owned()], vec![store("one")]);
        let mut after = |whose| (sources.go_on(&failed(whose), &tasks), sources.left.len());
        assert_eq!(after(Whose::Other), (false, 2));
        assert_eq!(after(Whose::Source), (true, 1));
        assert_eq!(after(Whose::Bytes), (true, 1));
        assert_eq!(after(Whose::Bytes), (false, 0));
    }
}
