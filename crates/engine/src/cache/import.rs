//! Fetching a cache: its manifest and its config, no layers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use base::progress::{Event, Stream, Warning};
use base::report::{Label, Running, Tasks};
use base::{Fault, Kind};
use futures_util::future::join_all;
use image::{Descriptor, Manifest};
use registry::{Aloud, Retry, Target};
use remotecache::{CacheConfig, Document, ImportOptions, Imported, InlineCache, Place};
use solver::SourceId;
use tokio::sync::OnceCell;

use crate::core::Core;
use crate::driver::JobHandle;
use crate::images::{Origin, registry_fault};
use crate::job::Job;
use crate::layout::{self, StoreName};
use crate::request::CacheOptions;

/// An index within an index within an index is nobody's image.
const DEEPEST: usize = 2;

/// A cache that a build may read.
pub(crate) struct Import {
    /// What people see.
    name: String,
    /// What to fetch, or why that is not known: then it is a miss.
    options: Result<ImportOptions, Fault>,
    source: SourceId,
    /// None if it cannot be used.
    read: OnceCell<Option<Arc<ReadCache>>>,
}

/// A cache that was read.
#[derive(Debug)]
pub(crate) struct ReadCache {
    pub(crate) keys: Imported,
    /// Where its layers are, as [`store::LazyLayer::sources`] says it.
    pub(crate) place: String,
}

impl Import {
    pub(crate) fn new(asked: &CacheOptions) -> Import {
        // 0 is the local one.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let options = ImportOptions::read(&asked.kind, &asked.attrs);
        let name = match &options {
            Ok(options) => options.name.clone(),
            Err(_) => asked.attrs.get("ref").filter(|name| !name.is_empty()).unwrap_or(&asked.kind).clone(),
        };
        Import { name, options, source: SourceId(NEXT.fetch_add(1, Ordering::Relaxed)), read: OnceCell::new() }
    }

    fn is(&self, other: &Import) -> bool {
        match (&self.options, &other.options) {
            (Ok(own), Ok(other)) => own.place == other.place && own.digest == other.digest,
            (Err(own), Err(said)) => self.name == other.name && own.to_string() == said.to_string(),
            _ => false,
        }
    }

    /// What was read already.
    pub(crate) fn known(&self, source: SourceId) -> Option<Arc<ReadCache>> {
        (self.source == source).then(|| self.read.get().cloned().flatten()).flatten()
    }

    async fn get(&self, core: &Core, job: &Arc<Job>) -> Option<Arc<ReadCache>> {
        let read = self.read.get_or_init(|| async {
            let running =
                Running::start(job.sink.clone(), &Label::phase(format!("importing cache manifest from {}", self.name)));
            for key in self.options.iter().flat_map(|options| &options.unknown) {
                let text = format!("attribute `{key}` of a cache import means nothing here\n");
                running.tasks().log(Stream::Stderr, text.as_bytes());
            }
            let tasks = running.tasks();
            let read = tokio::select! {
                read = self.fetch(core, job, &tasks) => read,
                () = job.cancel.cancelled() => Err(Fault::cancelled()),
            };
            match read.as_ref().map(|read| (read.keys.complaint(), read.keys.is_empty())) {
                Ok((Some(why), _)) => {
                    let short = format!("cache `{}` {why}", self.name);
                    tracing::warn!(cache = self.name, why, "a cache is not what it should be");
                    let (vertex, detail, spans) = (running.digest(), Vec::new(), Vec::new());
                    let warning = Warning { vertex, level: 0, short, detail, url: None, file: None, spans };
                    job.sink.emit(Event::Warning(warning));
                }
                // The usual first build with an inline cache: nothing to be alarmed by.
                Ok((None, true)) => {
                    let text = "there is no cache in it: neither one of its own nor one in the config of an image\n";
                    running.tasks().log(Stream::Stderr, text.as_bytes());
                }
                _ => {}
            }
            match running.end(read) {
                Ok(read) => {
                    let (reference, cache) = (&job.reference, &self.name);
                    tracing::debug!(reference, cache, place = read.place, "a cache was read");
                    Some(Arc::new(read))
                }
                Err(fault) => {
                    tracing::warn!(cache = self.name, %fault, "a cache is not used");
                    None
                }
            }
        });
        read.await.clone()
    }

    async fn fetch(&self, core: &Core, job: &Arc<Job>, tasks: &Tasks) -> Result<ReadCache, Fault> {
        let images = &core.images;
        let options = self.options.as_ref().map_err(Clone::clone)?;
        let (origin, root, place) = match &options.place {
            Place::Registry { reference, insecure } => {
                let name = reference.clone().name_only().to_string();
                let place = if *insecure { format!("{INSECURE}{name}") } else { name };
                // Without it the build is slower, but it goes on: there is nothing to wait for long.
                let repository = images.repository_at(job, &place)?.with_retry(Retry::ONCE_MORE);
                let repository = repository.with_progress(Arc::new(Aloud(tasks.clone())));
                let resolved = repository.resolve(&Target::of(reference)).await.map_err(registry_fault)?;
                if let Some(document) = &resolved.document {
                    images.keep(document).await?;
                }
                (Origin::Registry(repository), resolved.descriptor, place)
            }
            Place::Local { dir } => {
                let digest =
                    options.digest.ok_or_else(|| Fault::user(format!("the client found no cache in `{dir}`")))?;
                let blobs = job.session.cache(dir).await?;
                let blobs = blobs.ok_or_else(|| Fault::user(format!("the client offers no cache `{dir}`")))?;
                let size = layout::document(&*blobs, &digest, None).await?.len() as u64;
                job.add_store(StoreName {
                    session: Some(job.session.id().to_owned()),
                    store: dir.clone(),
                    cache: true,
                });
                (Origin::Store(blobs), Descriptor::new("", digest, size), layout::SOURCE.to_owned())
            }
            Place::Inline => return Err(Fault::new(Kind::Internal, "an inline cache is imported as an image")),
        };
        let mut keys = Imported::new(self.source);
        let document = parse(&images.document(&origin, &root).await?)?;
        match document {
            Document::Cache { config, layers } => {
                let config = CacheConfig::parse(&images.document(&origin, &config).await?).map_err(unusable)?;
                keys.add(&config, &layers).map_err(unusable)?;
            }
            Document::Image(manifest) => add_image(core, &origin, &manifest, &mut keys).await?,
            Document::Images(list) => {
                let mut left: Vec<(usize, Descriptor)> = list.into_iter().map(|image| (1, image)).collect();
                let mut has_images = false;
                while let Some((depth, descriptor)) = left.pop() {
                    if !remotecache::document::is_image(&descriptor) {
                        continue;
                    }
                    match Document::parse(&images.document(&origin, &descriptor).await?) {
                        Ok(Document::Image(manifest)) => {
                            has_images = true;
                            add_image(core, &origin, &manifest, &mut keys).await?;
                        }
                        Ok(Document::Images(list)) if depth < DEEPEST => {
                            left.extend(list.into_iter().map(|image| (depth + 1, image)));
                        }
                        // Things that lie beside images, such as signatures.
                        Ok(_) | Err(remotecache::Error::Stranger(_)) => {}
                        Err(error) => return Err(unusable(error)),
                    }
                }
                if !has_images {
                    keys.complain("its index leads to no image, and names no config of a cache");
                }
            }
        }
        Ok(ReadCache { keys, place })
    }
}

/// In front of the name of a repository that may be asked over plain HTTP, and whatever its certificate.
pub(crate) const INSECURE: &str = "insecure:";

async fn add_image(core: &Core, origin: &Origin, manifest: &Manifest, keys: &mut Imported) -> Result<(), Fault> {
    let config = core.images.document(origin, &manifest.config).await?;
    match InlineCache::of_image(manifest, &config).map_err(unusable)? {
        Some(cache) => keys.add(&cache.config, &cache.layers).map_err(unusable),
        None => Ok(()),
    }
}

fn parse(bytes: &[u8]) -> Result<Document, Fault> {
    Document::parse(bytes).map_err(unusable)
}

fn unusable(error: remotecache::Error) -> Fault {
    Fault::because(Kind::Remote, "the cache cannot be used", error)
}

impl Job {
    /// Notes a cache that the build may read, unless it is noted already.
    pub(crate) fn add_import(&self, asked: &CacheOptions) {
        let mut imports = self.imports();
        let import = Import::new(asked);
        if imports.iter().all(|known| !known.is(&import)) {
            imports.push(Arc::new(import));
        }
    }

    /// All caches that were read.
    pub(crate) fn read_caches(&self) -> Vec<Arc<ReadCache>> {
        self.imports().iter().filter_map(|import| import.read.get().cloned().flatten()).collect()
    }

    /// A cache that was read.
    pub(crate) fn read_cache(&self, source: SourceId) -> Option<Arc<ReadCache>> {
        self.imports().iter().find_map(|import| import.known(source))
    }
}

impl JobHandle {
    /// The caches that the build may read and that can be used, in the order in which they were named. The first to ask
    /// fetches them.
    pub(crate) async fn caches(&self, core: &Core) -> Vec<Arc<ReadCache>> {
        let imports: Vec<Arc<Import>> = self.job.imports().clone();
        let read = join_all(imports.iter().map(|import| import.get(core, &self.job))).await;
        read.into_iter().flatten().collect()
    }
}
