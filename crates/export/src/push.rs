//! Naming an image, and taking it to its registries.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use base::progress::Stream;
use base::report::{Task, Tasks};
use base::{Digest, Fault, Kind};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use image::{Descriptor, Reference};
use registry::{Aloud, Class, FileSource, Progress, Repository, Retrying, Target, UploadMode};

use crate::assemble::Assembled;
use crate::layer::Layer;
use crate::{Context, ImageOptions, PushOptions};

/// What a blob's label begins with that says which repositories of a registry have it; containerd's.
const SOURCE: &str = "containerd.io/distribution.source.";
/// So many of them are kept: each that does not hand the blob over costs a question.
const MOST_SOURCES: usize = 2;
/// Blobs of one push that are under way at the same time; the registry client bounds hosts as well.
const PARALLEL_BLOBS: usize = 8;

pub(crate) async fn name_and_push(
    context: &Context,
    assembled: Assembled,
    image: &ImageOptions,
    options: &PushOptions,
) -> Result<BTreeMap<String, String>, Fault> {
    let names = names(image, options, &assembled.root)?;
    if options.push && names.is_empty() {
        // As with BuildKit: whoever leaves names to a variable has none sometimes, and wants that.
        context.tasks.log(Stream::Stderr, b"nothing is pushed: the image has no name (`name=`)\n");
    }
    for name in &names {
        drop(context.tasks.start(format!("naming to {name}"), 0));
        if options.push {
            push(context, &assembled, name, options)
                .await
                .map_err(|fault| fault.context(format!("failed to push {name}")))?;
        }
    }
    let mut response = assembled.response();
    if !names.is_empty() {
        response.insert("image.name".to_owned(), told(image, options, &assembled.root).join(","));
    }
    Ok(response)
}

/// The name of an image that has no other, or beside its others.
fn dangling(image: &ImageOptions, options: &PushOptions, root: &Descriptor) -> Option<String> {
    let prefix = options.dangling_prefix.as_ref()?;
    let is_wanted = image.names.is_empty() || !options.dangling_empty_only;
    is_wanted.then(|| format!("{prefix}@{}", root.digest))
}

/// The names in the answer: as they were asked for, as BuildKit has them.
fn told(image: &ImageOptions, options: &PushOptions, root: &Descriptor) -> Vec<String> {
    image.names.iter().cloned().chain(dangling(image, options, root)).collect()
}

/// The names that an image gets, normalised.
fn names(image: &ImageOptions, options: &PushOptions, root: &Descriptor) -> Result<Vec<Reference>, Fault> {
    let parse = |name: &str| -> Result<Reference, Fault> {
        name.parse().map_err(|e| Fault::because(Kind::User, format!("bad image name `{name}`"), e))
    };
    let mut names = Vec::new();
    for name in &image.names {
        let name = parse(name)?;
        if options.push && options.push_by_digest && name.tag().is_some() {
            let untagged = name.clone().name_only();
            return Err(Fault::user(format!("failed to push {name}: can't push tagged ref {name} by digest"))
                .hint(format!("name it `{untagged}`, or leave out `push-by-digest`")));
        }
        names.push(if options.push_by_digest { name } else { name.or_latest() });
    }
    names.extend(dangling(image, options, root).map(|name| parse(&name)).transpose()?);
    Ok(names)
}

async fn push(context: &Context, assembled: &Assembled, name: &Reference, options: &PushOptions) -> Result<(), Fault> {
    let repository = repository(context, name, options.insecure)?;

    let task = context.tasks.start("pushing layers", 0);
    push_layers(context, &repository, &assembled.layers).await?;
    let mut configs = Vec::new();
    for config in &assembled.configs {
        configs.push(push_blob(context, &repository, config, &[]));
    }
    stream::iter(configs).buffer_unordered(PARALLEL_BLOBS).try_collect::<Vec<()>>().await?;
    drop(task);

    let whole = name.clone().with_digest(assembled.root.digest);
    let _task = context.tasks.start(format!("pushing manifest for {whole}"), 0);
    for manifest in &assembled.manifests {
        if manifest.digest != assembled.root.digest {
            put(context, &repository, &Target::Digest(manifest.digest), manifest).await?;
        }
    }
    let target = match (options.push_by_digest, name.tag()) {
        (false, Some(tag)) => Target::Tag(tag.to_owned()),
        _ => Target::Digest(assembled.root.digest),
    };
    put(context, &repository, &target, &assembled.root).await
}

/// Where blobs are pushed that belong to a name; each is shown on its way.
pub fn repository(context: &Context, name: &Reference, insecure: bool) -> Result<Repository, Fault> {
    let client = match insecure {
        true => context.registry.with_registries(context.registry.registries().clone().with_insecure(name.domain())),
        false => context.registry.clone(),
    };
    let moving = Arc::new(Moving { tasks: context.tasks.clone(), blobs: Mutex::default() });
    let repository = client.repository(name, context.credentials.clone()).map_err(push_fault)?;
    Ok(repository.with_progress(moving))
}

/// Pushes layers, several at a time.
pub async fn push_layers(context: &Context, repository: &Repository, layers: &[Layer]) -> Result<(), Fault> {
    // Lists, not closures: those would keep the whole export from being moved between threads.
    let mut pushed = Vec::new();
    for layer in layers.iter().filter(|layer| !layer.is_elsewhere()) {
        pushed.push(push_layer(context, repository, layer));
    }
    stream::iter(pushed).buffer_unordered(PARALLEL_BLOBS).try_collect::<Vec<()>>().await.map(drop)
}

async fn push_layer(context: &Context, repository: &Repository, layer: &Layer) -> Result<(), Fault> {
    // A repository of the same registry may hand the blob over, so that it need not pass through us.
    let pulled = layer.sources.iter().filter_map(|source| source.parse::<Reference>().ok());
    let pulled = pulled.filter(|source| repository.is_neighbour_of(source)).map(|source| source.path().to_owned());
    let mut neighbours: Vec<String> = pulled.collect();
    let pushed = had_by(context, repository, &layer.descriptor.digest);
    let news: Vec<String> = pushed.into_iter().filter(|path| !neighbours.contains(path)).collect();
    neighbours.extend(news);
    neighbours.retain(|path| path != repository.path());
    let known = !layer.present && repository.blob_exists(&layer.descriptor.digest).await.map_err(push_fault)?;
    if known {
        let (digest, bytes) = (&layer.descriptor.digest, layer.descriptor.size);
        tracing::debug!(host = repository.domain(), %digest, bytes, outcome = "was there", "a blob was pushed");
        return Ok(());
    }
    if !layer.present && neighbours.is_empty() {
        context.lazy.fetch_blob(layer.snapshot.id()).await?;
    }
    let pushed = push_blob(context, repository, &layer.descriptor, &neighbours).await;
    match pushed {
        // The mount was refused and the bytes are not here: bring them and try once more.
        Err(_) if !layer.present && !context.store.content().has(&layer.descriptor.digest) => {
            context.lazy.fetch_blob(layer.snapshot.id()).await?;
            push_blob(context, repository, &layer.descriptor, &neighbours).await?;
        }
        other => other?,
    }
    note(context, repository, &layer.descriptor.digest);
    Ok(())
}

/// Repositories of the same registry that were seen to have a blob, the latest first.
fn had_by(context: &Context, repository: &Repository, digest: &Digest) -> Vec<String> {
    let labels = context.store.content().labels(digest).unwrap_or_default();
    let paths = labels.get(&format!("{SOURCE}{}", repository.domain()));
    paths.map(|paths| paths.split(',').map(str::to_owned).collect()).unwrap_or_default()
}

/// Notes that a repository has a blob.
fn note(context: &Context, repository: &Repository, digest: &Digest) {
    let mut paths = had_by(context, repository, digest);
    if paths.first().is_some_and(|path| path == repository.path()) {
        return;
    }
    paths.retain(|path| path != repository.path());
    paths.insert(0, repository.path().to_owned());
    paths.truncate(MOST_SOURCES);
    let label = format!("{SOURCE}{}", repository.domain());
    if let Err(error) = context.store.content().set_label(digest, &label, &paths.join(",")) {
        // It is uploaded where it could have been mounted.
        tracing::debug!(%error, "where a blob was pushed is not noted");
    }
}

async fn push_blob(
    context: &Context,
    repository: &Repository,
    descriptor: &Descriptor,
    neighbours: &[String],
) -> Result<(), Fault> {
    let source = Arc::new(FileSource(context.store.content().path(&descriptor.digest)));
    let pushed = repository.push_blob(descriptor, source, neighbours, UploadMode::default()).await;
    pushed.map(drop).map_err(push_fault)
}

async fn put(
    context: &Context,
    repository: &Repository,
    target: &Target,
    descriptor: &Descriptor,
) -> Result<(), Fault> {
    let bytes = context.store.content().read(&descriptor.digest).ok().flatten();
    let bytes = bytes.ok_or_else(|| Fault::new(Kind::Internal, format!("manifest {} is gone", descriptor.digest)))?;
    let put = repository.push_manifest(target, &descriptor.media_type, bytes.into()).await;
    put.map(drop).map_err(push_fault)
}

/// A registry's refusal of a push in the words of a fault.
pub fn push_fault(error: registry::Error) -> Fault {
    let hint = match error.class() {
        _ if error.proxy_hint().is_some() => error.proxy_hint(),
        _ if error.is_certificate() => {
            Some("see `ca`, `keypair` and `insecure` of `[registry.\"HOST\"]` in buildkitd.toml")
        }
        _ if error.is_not_tls() => {
            Some("if it speaks plain HTTP, say `http = true` in `[registry.\"HOST\"]` of buildkitd.toml")
        }
        _ if error.is_refused_elsewhere() => {
            Some("no login is sent to where a redirect leads: ask those who run the registry")
        }
        Class::Unauthorised | Class::Denied => {
            Some("log in with `docker login`, or check the credentials' right to push")
        }
        Class::TooLarge => Some("raise the body limit of the proxy in front of the registry"),
        Class::NotFound => Some("check the name; some registries want the repository to be created first"),
        _ if error.is_out_of_reach() => Some("check the host's name and port, and whether a registry runs there"),
        Class::RateLimited | Class::Unavailable => Some("try again later: what was pushed already is not pushed again"),
        _ => None,
    };
    let fault = Fault::new(Kind::Remote, error.summary());
    match hint {
        Some(hint) => fault.hint(hint),
        None => fault,
    }
}

/// Shows the bytes of each blob as a task of its own, from its first byte on.
struct Moving {
    tasks: Tasks,
    blobs: Mutex<BTreeMap<Digest, Task>>,
}

impl Progress for Moving {
    fn moved(&self, blob: &Digest, current: u64, total: u64) {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        if current >= total {
            if let Some(mut task) = blobs.remove(blob) {
                task.at(current);
            }
            return;
        }
        blobs.entry(*blob).or_insert_with(|| self.tasks.start(blob.to_string(), total)).at(current);
    }

    fn retrying(&self, subject: &str, retrying: &Retrying) {
        Aloud(self.tasks.clone()).retrying(subject, retrying);
    }
}
