//! Images of registries (and [of clients](crate::layout)): from a name to a manifest and a config, and to a chain of lazy layers.
//!
//! Documents are small and kept in the content store; layers are only registered. Whoever reads a tree
//! has them fetched ([`fill`](crate::fill)).

use std::sync::Arc;
use std::time::Instant;

use base::{Digest, Fault, Kind, Platform};
use image::Reference;
use image::{Descriptor, ImageConfig, Index, Manifest, media_type};
use registry::{Class, Repository, Target};
use session::Blobs;
use store::{LazyLayer, PrepareOptions, Store};

use crate::cache::import::INSECURE;
use crate::core::blocking;
use crate::job::Job;
use crate::journal;
use crate::layout;
use crate::ops::source::ResolveMode;
use crate::tree::Tree;

/// Remembers which digest a name had when it was last pulled, as long as the image is here.
const NAMES: &str = "image-names";

/// An image whose documents are here.
#[derive(Clone, Debug)]
pub(crate) struct ResolvedImage {
    pub(crate) reference: Reference,
    /// Where layers can be had: a repository, or [`layout::SOURCE`].
    source: String,
    /// What the name pointed to: an index or a manifest.
    pub(crate) root: Descriptor,
    pub(crate) manifest: Manifest,
    /// The config's bytes.
    pub(crate) config: Vec<u8>,
    pub(crate) diff_ids: Vec<Digest>,
}

impl ResolvedImage {
    /// Its layers as the store registers them, the lowest first.
    pub(crate) fn layers(&self) -> impl Iterator<Item = LazyLayer> {
        let mut chain: Option<Digest> = None;
        self.manifest.layers.iter().zip(&self.diff_ids).map(move |(descriptor, diff_id)| {
            let chain_id = chain_id(chain, *diff_id);
            chain = Some(chain_id);
            LazyLayer {
                digest: descriptor.digest,
                size: descriptor.size,
                media_type: descriptor.media_type.clone(),
                diff_id: *diff_id,
                chain_id,
                sources: vec![self.source.clone()],
                urls: descriptor.urls.clone(),
                annotations: descriptor.annotations.clone(),
                from_cache: false,
            }
        })
    }
}

/// Where the documents of an image come from.
pub(crate) enum Origin {
    Registry(Repository),
    /// A store of a client.
    Store(Arc<dyn Blobs>),
}

/// The images that this engine knows how to find.
#[derive(Clone)]
pub(crate) struct Images {
    pub(crate) client: registry::Client,
    pub(crate) store: Store,
}

impl Images {
    /// Finds the image that `reference` names on `platform`. Within one build, a name is asked for once.
    pub(crate) async fn resolve(
        &self,
        job: &Arc<Job>,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
    ) -> Result<Arc<ResolvedImage>, Fault> {
        let reference = reference.clone().or_latest();
        let cell = job.image(&reference.to_string(), platform, mode);
        let resolved =
            cell.get_or_try_init(|| async { self.resolve_now(job, &reference, platform, mode).await.map(Arc::new) });
        resolved.await.cloned()
    }

    async fn resolve_now(
        &self,
        job: &Arc<Job>,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
    ) -> Result<ResolvedImage, Fault> {
        let repository = self.repository(job, reference)?;
        let root = self.root(job, &repository, reference, mode).await?;
        self.describe(&Origin::Registry(repository), reference, root, platform).await
    }

    /// Reads what describes the image.
    pub(crate) async fn describe(
        &self,
        origin: &Origin,
        reference: &Reference,
        root: Descriptor,
        platform: &Platform,
    ) -> Result<ResolvedImage, Fault> {
        let bad = |error| origin.bad_document(error).context(reference);
        let manifest_descriptor = if media_type::is_index(&root.media_type) {
            let bytes = self.document(origin, &root).await?;
            let index = Index::parse(&bytes, Some(&root.media_type)).map_err(bad)?;
            index.choose(platform).map_err(bad)?.clone()
        } else {
            root.clone()
        };
        let bytes = self.document(origin, &manifest_descriptor).await?;
        let manifest = Manifest::parse(&bytes, Some(&manifest_descriptor.media_type)).map_err(bad)?;
        let config = self.document(origin, &manifest.config).await?;
        let diff_ids = ImageConfig::parse(&config).map_err(bad)?.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let (layers, ids) = (manifest.layers.len(), diff_ids.len());
            return Err(Fault::new(
                Kind::Remote,
                format!("{reference}: the image has {layers} layers, but its config {ids}"),
            ));
        }
        let source = match origin {
            Origin::Registry(_) => reference.clone().name_only().to_string(),
            Origin::Store(_) => layout::SOURCE.to_owned(),
        };
        let image = ResolvedImage { reference: reference.clone(), source, root, manifest, config, diff_ids };
        self.tell_where(&image)?;
        Ok(image)
    }

    /// Layers that are known from another place can be had here, too. A tree that is cached is not registered anew, and
    /// the other place may not be there any more.
    fn tell_where(&self, image: &ResolvedImage) -> Result<(), Fault> {
        for layer in image.layers() {
            self.store.snapshots().also_from(&layer).map_err(cannot_register)?;
        }
        Ok(())
    }

    pub(crate) fn repository(&self, job: &Arc<Job>, reference: &Reference) -> Result<Repository, Fault> {
        self.client.repository(reference, job.credentials()).map_err(registry_fault)
    }

    /// The repository that a layer is said to be in.
    pub(crate) fn repository_at(&self, job: &Arc<Job>, place: &str) -> Result<Repository, Fault> {
        let name = place.strip_prefix(INSECURE);
        let parsed = name.unwrap_or(place).parse::<Reference>();
        let reference = parsed.map_err(|e| Fault::because(Kind::Internal, format!("layer comes from `{place}`"), e))?;
        if name.is_none() {
            return self.repository(job, &reference);
        }
        let registries = self.client.registries().clone().with_insecure(reference.domain());
        self.client.with_registries(registries).repository(&reference, job.credentials()).map_err(registry_fault)
    }

    /// What the name points to, from the registry unless a digest or the mode spares the question.
    async fn root(
        &self,
        job: &Job,
        repository: &Repository,
        reference: &Reference,
        mode: ResolveMode,
    ) -> Result<Descriptor, Fault> {
        let began = Instant::now();
        let names = self.store.kv(NAMES);
        let name = name(reference);
        if mode == ResolveMode::PreferLocal || reference.digest().is_some() {
            let known = names.get(&name).ok().flatten();
            let known = known.and_then(|bytes| serde_json::from_slice::<Descriptor>(&bytes).ok());
            if let Some(descriptor) = known.filter(|d| is_of(d, reference) && self.store.content().has(&d.digest)) {
                resolved_to(job, reference, &descriptor, "here", began);
                return Ok(descriptor);
            }
        }
        let resolved = repository.resolve(&Target::of(reference)).await.map_err(registry_fault)?;
        resolved_to(job, reference, &resolved.descriptor, "the registry", began);
        if let Some(document) = &resolved.document {
            self.keep(document).await?;
        }
        if let Ok(bytes) = serde_json::to_vec(&resolved.descriptor) {
            // Only spares a question later: without it the registry is asked again. A frontend asks by tag, and what it
            // makes of the answer asks by digest.
            let _ = names.put(of_digest(reference, resolved.descriptor.digest), bytes.clone());
            let _ = names.put(&name, bytes);
        }
        Ok(resolved.descriptor)
    }

    /// Keeps a document in the content store.
    pub(crate) async fn keep(&self, bytes: &[u8]) -> Result<(), Fault> {
        let (content, bytes) = (self.store.content(), bytes.to_vec());
        let stored = blocking(move || content.put(bytes)).await;
        stored.map(drop).map_err(|e| crate::core::store_fault("cannot keep a document of the image", e))
    }

    /// A manifest, index or config: from the content store, else from where the image is.
    pub(crate) async fn document(&self, origin: &Origin, descriptor: &Descriptor) -> Result<Vec<u8>, Fault> {
        let content = self.store.content();
        if let Ok(Some(bytes)) = content.read(&descriptor.digest) {
            return Ok(bytes);
        }
        let is_manifest =
            media_type::is_manifest(&descriptor.media_type) || media_type::is_index(&descriptor.media_type);
        let bytes = match origin {
            Origin::Registry(repository) if is_manifest => {
                repository.fetch_manifest(descriptor).await.map_err(registry_fault)?.to_vec()
            }
            Origin::Registry(repository) => self.small_blob(repository, descriptor).await?.to_vec(),
            Origin::Store(blobs) => layout::document(&**blobs, &descriptor.digest, Some(descriptor.size)).await?,
        };
        self.keep(&bytes).await?;
        Ok(bytes)
    }

    async fn small_blob(&self, repository: &Repository, descriptor: &Descriptor) -> Result<bytes::Bytes, Fault> {
        if descriptor.size > image::MAX_DOCUMENT as u64 {
            let text = format!("config {} has {} bytes, more than is allowed", descriptor.digest, descriptor.size);
            return Err(Fault::new(Kind::Remote, text));
        }
        let fetched = repository.fetch_blob(descriptor, registry::BlobStart::Beginning).await;
        let mut stream = fetched.map_err(registry_fault)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.chunk().await.map_err(registry_fault)? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// The image's tree: its layers are registered, none is fetched.
    pub(crate) fn tree(&self, image: &ResolvedImage, limit: Option<usize>, description: &str) -> Result<Tree, Fault> {
        let count = limit.unwrap_or(image.diff_ids.len());
        if count > image.diff_ids.len() {
            let text = format!("layer limit {count} is greater than the {} layers of the image", image.diff_ids.len());
            return Err(Fault::user(text));
        }
        let mut top: Option<store::Hold> = None;
        for layer in image.layers().take(count) {
            let options = PrepareOptions { description: description.to_owned(), ..PrepareOptions::default() };
            let parent = top.as_ref().map(store::Hold::id);
            let hold = self.store.snapshots().register_lazy(parent.as_ref(), layer, options);
            top = Some(hold.map_err(cannot_register)?);
        }
        // Documents of an image live as long as its layers.
        if let Some(top) = &top {
            for digest in [image.root.digest, image.manifest.config.digest] {
                let _ = self.store.content().attach(&digest, &top.id());
            }
            // And so do its names.
            if let Ok(bytes) = serde_json::to_vec(&image.root) {
                let names = self.store.kv(NAMES);
                // Where both are said, it was found by the tag.
                let reference = &image.reference;
                let tagged = reference.tag().map(|tag| format!("{}:{tag}", reference.name()));
                for name in tagged.into_iter().chain([of_digest(reference, image.root.digest)]) {
                    let known = names.get(&name).ok().flatten();
                    if known.is_some_and(|known| known == bytes) {
                        let _ = names.put_with(name, &bytes, &top.id());
                    }
                }
            }
        }
        Ok(top.map_or(Tree::Empty, Tree::snapshot))
    }
}

/// A line of the log.
fn resolved_to(job: &Job, reference: &Reference, to: &Descriptor, from: &str, began: Instant) {
    if journal::is_kept() {
        let (digest, ms) = (to.digest, began.elapsed().as_millis() as u64);
        let (image, reference) = (reference.to_string(), &job.reference);
        let image = job.hidden().in_text(&image).into_owned();
        tracing::debug!(reference, image, %digest, from, ms, "an image was resolved");
    }
}

/// What an image is remembered by: a digest means the same whatever tag stands beside it.
fn name(reference: &Reference) -> String {
    reference.digest().map_or_else(|| reference.to_string(), |digest| of_digest(reference, digest))
}

fn of_digest(reference: &Reference, digest: Digest) -> String {
    reference.clone().name_only().with_digest(digest).to_string()
}

/// Whether what is remembered may be what is asked for.
fn is_of(known: &Descriptor, reference: &Reference) -> bool {
    reference.digest().is_none_or(|digest| digest == known.digest)
}

fn cannot_register(error: store::Error) -> Fault {
    crate::core::store_fault("cannot register a layer", error)
}

/// The chain id of a layer on its parents (OCI image-spec `config.md`).
pub(crate) fn chain_id(parent: Option<Digest>, diff_id: Digest) -> Digest {
    match parent {
        None => diff_id,
        Some(parent) => Digest::of(format!("{parent} {diff_id}")),
    }
}

impl Origin {
    fn bad_document(&self, error: image::Error) -> Fault {
        match self {
            Origin::Registry(_) => Fault::because(Kind::Remote, "the registry's answer makes no image", error),
            Origin::Store(blobs) => {
                Fault::because(Kind::User, format!("what OCI layout `{}` has makes no image", blobs.place()), error)
            }
        }
    }
}

/// A registry's failure in the words of a fault.
pub(crate) fn registry_fault(error: registry::Error) -> Fault {
    let hint = match error.class() {
        Class::NotFound => Some("check the spelling of name and tag"),
        _ if error.is_missed_by_mirrors() => Some(
            "check the spelling of name and tag; where they are right, the mirror lacks the image and the registry is out of \
             reach",
        ),
        _ => pull_hint(&error),
    };
    with_hint(error, hint)
}

/// The same for a layer: the name was right, or nobody had told us of the layer.
pub(crate) fn layer_fault(error: registry::Error) -> Fault {
    let hint = match error.class() {
        Class::NotFound => Some("the registry has lost a part of the image: push the image again, or use another tag"),
        _ => pull_hint(&error),
    };
    with_hint(error, hint)
}

fn with_hint(error: registry::Error, hint: Option<&str>) -> Fault {
    let fault = Fault::new(Kind::Remote, error.summary());
    match hint {
        Some(hint) => fault.hint(hint),
        None => fault,
    }
}

/// What to try where a pull fails.
fn pull_hint(error: &registry::Error) -> Option<&'static str> {
    match error.class() {
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
        Class::Unauthorised | Class::Denied => Some("log in with `docker login`, or check the credentials' rights"),
        Class::RateLimited => Some("log in, or use a mirror (`[registry.\"..\"] mirrors` in buildkitd.toml)"),
        Class::Unavailable | Class::Truncated => {
            Some("try again later, or use a mirror (`[registry.\"..\"] mirrors` in buildkitd.toml)")
        }
        Class::BadDigest => Some("try again; if it stays so, a proxy or a mirror on the way changes what is sent"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_remembered_as_itself() {
        let (a, b) = (Digest::of("a"), Digest::of("b"));
        let tagged: Reference = format!("busybox:1@{a}").parse().expect("a reference");
        assert_eq!(name(&tagged), format!("docker.io/library/busybox@{a}"));
        let known = |digest| Descriptor::new(media_type::OCI_MANIFEST, digest, 1);
        assert!(is_of(&known(a), &tagged) && !is_of(&known(b), &tagged));
        assert!(is_of(&known(b), &"busybox:1".parse().expect("a reference")));
    }

    #[test]
    fn chains_are_those_of_the_image_spec() {
        let (a, b) = (Digest::of("a"), Digest::of("b"));
        assert_eq!(chain_id(None, a), a);
        assert_eq!(chain_id(Some(a), b), Digest::of(format!("{a} {b}")));
    }
}
