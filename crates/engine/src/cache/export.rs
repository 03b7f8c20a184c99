//! The results of a build become a cache: which of them, as layers, beside a config, and out of here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ::export::{Context, Layer, known_layer, layer_of, push_fault, push_layers, repository};
use base::progress::Stream;
use base::report::{Label, Running};
use base::{Cancel, Fault, Kind};
use bytes::Bytes;
use futures_util::future::join_all;
use image::{Descriptor, Reference, annotation};
use registry::{Target, UploadMode};
use remotecache::{Draft, ExportOptions, MEDIA_TYPE, Made, Mode, Place};
use session::CacheDir;
use solver::cache_export::{self, Chain, ChainRecord};
use solver::{CacheKey, CacheStore, SourceId};
use store::{Hold, SnapshotId};

use crate::cache::load;
use crate::cache::lost::is_lost;
use crate::core::{Core, blocking};
use crate::job::Job;
use crate::request::CacheOptions;

/// Where the manifest of a cache is answered.
const ANSWER: &str = "cache.manifest";

/// The caches that a build leaves.
#[derive(Debug, Default)]
pub(crate) struct CacheExports {
    list: Vec<ExportOptions>,
    /// Images carry their own.
    pub(crate) inline: bool,
}

impl CacheExports {
    /// Reads what was asked for.
    pub(crate) fn read(exports: &[CacheOptions]) -> Result<CacheExports, Fault> {
        let mut read = CacheExports::default();
        // As in BuildKit: one name in a registry has one cache, and all others are told apart by their attributes.
        let name = |export: &CacheOptions| {
            export.attrs.get("ref").filter(|name| export.kind == "registry" && !name.is_empty()).cloned()
        };
        for (at, export) in exports.iter().enumerate() {
            // An image is made a cache once, however often one asks for it.
            if read.inline && export.kind == "inline" {
                continue;
            }
            let same =
                |other: &CacheOptions| other == export || name(export).is_some_and(|own| name(other) == Some(own));
            if exports[..at].iter().any(same) {
                let fault = Fault::user(format!("duplicate cache exports [{}]", export.kind));
                return Err(match name(export) {
                    Some(name) => fault.hint(format!("name each cache differently: two are to be `{name}`")),
                    None => fault,
                });
            }
            let options = ExportOptions::read(&export.kind, &export.attrs)?;
            match options.place {
                Place::Inline => read.inline = true,
                _ => read.list.push(options),
            }
        }
        Ok(read)
    }

    /// Whether there is anything to do beside images.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Those beside images.
    pub(crate) fn list(&self) -> &[ExportOptions] {
        &self.list
    }

    /// Writes all caches side by side, those in directories of the client one after the other: two names may be one directory.
    /// Answers what clients want to know of them.
    pub(crate) async fn write(
        &self,
        core: &Arc<Core>,
        job: &Arc<Job>,
        keys: &[Arc<CacheKey>],
        lacking: Lacking,
        context: impl Fn(&Running, Cancel) -> Context,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let chain = chain(core, job, keys.to_vec()).await?;
        let directories = tokio::sync::Mutex::new(());
        let write = async |options: &ExportOptions| {
            // Who waits longest is next.
            let _turn = match options.place {
                Place::Local { .. } => Some(directories.lock().await),
                _ => None,
            };
            write_one(core, job, &chain, options, lacking, &context).await
        };
        let written = join_all(self.list.iter().map(write)).await;
        let mut answers = BTreeMap::new();
        for (manifest, options) in written.into_iter().zip(&self.list) {
            let Some(manifest) = manifest? else { continue };
            // A client looks there for what it is to tag in its directory.
            if matches!(options.place, Place::Local { .. }) || !answers.contains_key(ANSWER) {
                answers.insert(ANSWER.to_owned(), serde_json::to_string(&manifest).unwrap_or_default());
            }
        }
        Ok(answers)
    }
}

/// All that the local cache and those that the build read know about keys.
pub(crate) async fn chain(core: &Arc<Core>, job: &Job, keys: Vec<Arc<CacheKey>>) -> Result<Chain, Fault> {
    let (local, read) = (core.store.cache_keys(), job.read_caches());
    let chain = blocking(move || {
        let read = read.iter().map(|cache| (cache.keys.source(), &cache.keys as &dyn CacheStore));
        let stores: Vec<(SourceId, &dyn CacheStore)> =
            [(SourceId::LOCAL, &local as &dyn CacheStore)].into_iter().chain(read).collect();
        cache_export::chain(&keys, &stores)
    });
    let chain = chain.await;
    chain.map_err(|e| Fault::because(Kind::Environment, "cannot read the cache keys of the build", e))
}

async fn write_one(
    core: &Arc<Core>,
    job: &Arc<Job>,
    chain: &Chain,
    options: &ExportOptions,
    lacking: Lacking,
    context: impl Fn(&Running, Cancel) -> Context,
) -> Result<Option<Descriptor>, Fault> {
    let running = Running::start(job.sink.clone(), &Label::phase(options.title()));
    for remark in &options.remarks {
        running.tasks().log(Stream::Stderr, format!("{remark}\n").as_bytes());
    }
    // Steps that are made again can fail, which is not what a build wants that goes on without a cache.
    let lacking = if options.ignore_error { Lacking::LeaveOut } else { lacking };
    let cancel = Cancel::new();
    let context = context(&running, cancel.clone());
    let writing = async {
        // A registry may have what is not here. Where it turns out not to, all that is sent has to be here first.
        if matches!(options.place, Place::Registry { .. }) {
            match prepare_and_send(core, job, chain, options, &context, Lacking::Unknown).await {
                Err(fault) if is_lost(&fault) => {}
                written => return written,
            }
        }
        prepare_and_send(core, job, chain, options, &context, lacking).await
    };
    let written = tokio::select! {
        written = writing => written,
        () = job.cancel.cancelled() => {
            cancel.cancel();
            Err(Fault::cancelled())
        }
    };
    let written = match written {
        // What is said is no failure yet: the build is about to do something about it.
        Err(fault) if lacking == Lacking::Repeat && job.would_give_up(&fault) => {
            running
                .tasks()
                .log(Stream::Stderr, b"no layer of the cache can be had any more: its steps are made again\n");
            running.end(Ok(()))?;
            return Err(fault);
        }
        written => written,
    };
    match running.end(written) {
        Err(fault) if options.ignore_error && fault.kind() != Kind::Cancelled => {
            tracing::warn!(%fault, "a cache was not written");
            Ok(None)
        }
        written => written,
    }
}

/// What is done about layers that are not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lacking {
    /// Whoever gets the cache may have them.
    Unknown,
    /// They are fetched. Where that leaves nothing of the cache, it is an error: the steps are to be made again. Else as below.
    Repeat,
    /// They are fetched. Where that fails, the cache is without them: whoever reads it makes those steps again.
    LeaveOut,
}

async fn prepare_and_send(
    core: &Arc<Core>,
    job: &Arc<Job>,
    chain: &Chain,
    options: &ExportOptions,
    context: &Context,
    lacking: Lacking,
) -> Result<Option<Descriptor>, Fault> {
    let preparing = context.tasks.start("preparing build cache for export", 0);
    let layers = HashMap::new();
    let mut results = Results { core, job, context, options, lacking, layers, lost: 0, cause: None };
    let made = results.collect(chain).await?;
    let draft = Draft::new(chain, &made);
    drop(preparing);
    if lacking == Lacking::Repeat
        && draft.layers.is_empty()
        && let Some(fault) = results.cause.take_if(|fault| job.would_give_up(fault))
    {
        return Err(fault);
    }
    if results.lost > 0 {
        let lost = format!("leaving out results whose layers cannot be had: {}", results.lost);
        drop(context.tasks.start(&lost, 0));
    }
    if draft.layers.is_empty() {
        drop(context.tasks.start("skipping cache export for empty result", 0));
        return Ok(None);
    }
    let _sending = context.tasks.start("sending cache export", 0);
    send(context, job, options, &draft, results.layers).await.map(Some)
}

/// What is wanted of a record's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Want {
    /// If its layers are among those that are exported anyway, or here.
    IfThere,
    Layers,
}

struct Results<'a> {
    core: &'a Arc<Core>,
    job: &'a Arc<Job>,
    context: &'a Context,
    options: &'a ExportOptions,
    lacking: Lacking,
    layers: HashMap<SnapshotId, Layer>,
    /// How many were wanted and cannot be had.
    lost: usize,
    /// Why, of the first one.
    cause: Option<Fault>,
}

impl Results<'_> {
    /// Makes the layers of the results that belong into the cache.
    async fn collect(&mut self, chain: &Chain) -> Result<Vec<Option<Made>>, Fault> {
        let mut made = vec![None; chain.records.len()];
        let mut wants = vec![Want::IfThere; chain.records.len()];
        chain.tops.iter().for_each(|top| wants[*top] = Want::Layers);
        let mut later = Vec::new();
        // Those that read a record stand behind it.
        for (at, record) in chain.records.iter().enumerate().rev() {
            let mut below = wants[at];
            match wants[at] {
                _ if !has_result(record) => {}
                Want::IfThere => later.push(at),
                Want::Layers => {
                    made[at] = self.make(record).await?;
                    if made[at].is_some() && self.options.mode == Mode::Min {
                        below = Want::IfThere;
                    }
                }
            }
            for link in record.inputs.iter().flatten() {
                wants[link.record] = wants[link.record].max(below);
            }
        }
        for at in later {
            made[at] = self.there(&chain.records[at]).await?;
        }
        Ok(made)
    }

    async fn make(&mut self, record: &ChainRecord) -> Result<Option<Made>, Fault> {
        let mut is_lost_here = false;
        for result in &record.results {
            let Some((_hold, chain)) = self.find(result).await? else { continue };
            let depth = chain.len();
            let mut layers = Vec::with_capacity(depth);
            for id in chain {
                match self.layer(id).await {
                    Ok(layer) => layers.push(layer),
                    Err(fault) if is_lost(&fault) => {
                        is_lost_here = true;
                        self.cause.get_or_insert(fault);
                        break;
                    }
                    Err(fault) => return Err(fault),
                }
            }
            if layers.len() == depth {
                return Ok(Some(Made { layers, created_at: result.result.created_at }));
            }
        }
        self.lost += usize::from(is_lost_here);
        Ok(None)
    }

    async fn there(&mut self, record: &ChainRecord) -> Result<Option<Made>, Fault> {
        for result in &record.results {
            let Some((_hold, chain)) = self.find(result).await? else { continue };
            let mut here = Vec::new();
            for id in chain.iter().filter(|id| !self.layers.contains_key(id)) {
                match known_layer(self.context, *id, self.options.compression)? {
                    Some(layer) => here.push((*id, layer)),
                    None => break,
                }
            }
            // One that lacks some is left out as a whole.
            let known = here.len() + chain.iter().filter(|id| self.layers.contains_key(id)).count();
            if known == chain.len() {
                self.layers.extend(here);
            }
            let layers: Option<Vec<Descriptor>> = chain.iter().map(|id| self.layers.get(id).map(describe)).collect();
            if let Some(layers) = layers {
                return Ok(Some(Made { layers, created_at: result.result.created_at }));
            }
        }
        Ok(None)
    }

    /// The snapshot of a result and all it stands on, base first.
    async fn find(&self, record: &solver::Record) -> Result<Option<(Hold, Vec<SnapshotId>)>, Fault> {
        let (core, job, record) = (self.core.clone(), self.job.clone(), record.clone());
        let found = blocking(move || {
            let Some(hold) = load::find(&core, &job, &record)? else { return Ok(None) };
            let chain = core.store.snapshots().chain(&hold.id());
            let mut chain = chain.map_err(|e| crate::core::store_fault("cannot read a snapshot", e))?;
            chain.reverse();
            Ok(Some((hold, chain)))
        });
        found.await
    }

    async fn layer(&mut self, id: SnapshotId) -> Result<Descriptor, Fault> {
        if let Some(layer) = self.layers.get(&id) {
            return Ok(describe(layer));
        }
        self.context.cancel.check().map_err(|_| Fault::cancelled())?;
        let layer = layer_of(self.context, id, self.options.compression).await?;
        if self.lacking != Lacking::Unknown && !self.context.store.content().has(&layer.descriptor.digest) {
            self.context.lazy.fetch_blob(id).await?;
        }
        let described = describe(&layer);
        self.layers.insert(id, layer);
        Ok(described)
    }
}

/// Sources are what they say; their layers come with what stands on them.
fn has_result(record: &ChainRecord) -> bool {
    !record.inputs.is_empty() && record.exported != Some(false) && !record.results.is_empty()
}

/// A layer with what whoever unpacks it must know.
fn describe(layer: &Layer) -> Descriptor {
    let mut described = layer.descriptor.clone().annotate(annotation::UNCOMPRESSED, layer.diff_id.to_string());
    if let Some(created) = layer.created {
        described = described.annotate(annotation::CREATED_AT, created.to_string());
    }
    described
}

async fn send(
    context: &Context,
    job: &Job,
    options: &ExportOptions,
    draft: &Draft,
    layers: HashMap<SnapshotId, Layer>,
) -> Result<Descriptor, Fault> {
    let config = Bytes::from(draft.config.to_json());
    let config_descriptor = Descriptor::of(MEDIA_TYPE, &config);
    let (manifest_descriptor, manifest) =
        remotecache::document::around(options.form, config_descriptor.clone(), &draft.layers);
    let mut wanted: Vec<Layer> = Vec::new();
    for layer in layers.into_values() {
        let digest = layer.descriptor.digest;
        let is_named = draft.layers.iter().any(|named| named.digest == digest);
        if is_named && wanted.iter().all(|known| known.descriptor.digest != digest) {
            wanted.push(layer);
        }
    }
    let documents = Documents { config_descriptor, config, manifest_descriptor, manifest: manifest.into() };
    match &options.place {
        Place::Registry { reference, insecure } => {
            to_registry(context, reference, *insecure, &wanted, &documents)
                .await
                .map_err(|fault| fault.context(format!("failed to push {reference}")))?;
        }
        Place::Local { dir } => {
            let cache = job.session.cache(dir).await?;
            let cache = cache.ok_or_else(|| Fault::user(format!("the client takes no cache `{dir}`")))?;
            to_client(context, &*cache, &wanted, &documents).await?;
        }
        Place::Inline => return Err(Fault::new(Kind::Internal, "an inline cache is the image exporter's")),
    }
    Ok(documents.manifest_descriptor)
}

struct Documents {
    config_descriptor: Descriptor,
    config: Bytes,
    manifest_descriptor: Descriptor,
    manifest: Bytes,
}

impl Documents {
    fn writing_config(&self) -> String {
        format!("writing config {}", self.config_descriptor.digest)
    }

    fn writing_manifest(&self) -> String {
        let kind = if image::media_type::is_manifest(&self.manifest_descriptor.media_type) { "image " } else { "" };
        format!("writing cache {kind}manifest {}", self.manifest_descriptor.digest)
    }
}

async fn to_registry(
    context: &Context,
    reference: &Reference,
    insecure: bool,
    layers: &[Layer],
    documents: &Documents,
) -> Result<(), Fault> {
    let repository = repository(context, reference, insecure)?;
    push_layers(context, &repository, layers).await?;
    let task = context.tasks.start(documents.writing_config(), 0);
    let config = Arc::new(documents.config.clone());
    let pushed = repository.push_blob(&documents.config_descriptor, config, &[], UploadMode::default()).await;
    pushed.map_err(push_fault)?;
    drop(task);
    let _task = context.tasks.start(documents.writing_manifest(), 0);
    let media_type = &documents.manifest_descriptor.media_type;
    let target = match reference.tag() {
        Some(tag) => Target::Tag(tag.to_owned()),
        None => Target::Digest(documents.manifest_descriptor.digest),
    };
    let put = repository.push_manifest(&target, media_type, documents.manifest.clone()).await;
    put.map(drop).map_err(push_fault)
}

async fn to_client(
    context: &Context,
    cache: &dyn CacheDir,
    layers: &[Layer],
    documents: &Documents,
) -> Result<(), Fault> {
    for layer in layers {
        put_layer(context, cache, layer).await?;
    }
    for (doing, descriptor, bytes) in [
        (documents.writing_config(), &documents.config_descriptor, &documents.config),
        // Whoever keeps the directory takes what comes last for the cache.
        (documents.writing_manifest(), &documents.manifest_descriptor, &documents.manifest),
    ] {
        let _task = context.tasks.start(doing, 0);
        cache.put(&descriptor.digest, descriptor.size, Box::new(std::io::Cursor::new(bytes.clone()))).await?;
    }
    Ok(())
}

/// Keeps a layer in a client's directory.
pub(crate) async fn put_layer(context: &Context, cache: &dyn CacheDir, layer: &Layer) -> Result<(), Fault> {
    let content = context.store.content();
    let Descriptor { digest, size, .. } = layer.descriptor;
    let task = context.tasks.start(format!("writing layer {digest}"), size).of_reading();
    if !content.has(&digest) {
        context.lazy.fetch_blob(layer.snapshot.id()).await?;
    }
    let blob = content.get(&digest).map_err(|e| crate::core::store_fault("cannot read a layer", e))?;
    let blob = blob.ok_or_else(|| Fault::new(Kind::Internal, format!("layer {digest} is gone")))?;
    cache.put(&digest, size, Box::new(task.count(blob.file))).await?;
    task.all();
    Ok(())
}
