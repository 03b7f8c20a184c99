//! Config, manifests and index around the layers of a result.

use std::collections::BTreeMap;

use base::{Digest, Fault, Platform};
use image::{ConfigPatch, Descriptor, Flavor, ImageConfig, Index, LayerMeta, Manifest};
use store::BlobHold;

use crate::layer::{self, Layer};
use crate::{AnnotationPlace, BuildResult, Context, ImageOptions, PlatformResult, image_fault, store_fault};

/// An image whose documents are in the content store.
#[derive(Clone, Debug)]
pub(crate) struct Assembled {
    /// The manifest or index.
    pub(crate) root: Descriptor,
    /// Manifests of an index; the root itself where there is none.
    pub(crate) manifests: Vec<Descriptor>,
    /// Configs, which registries want before the manifests.
    pub(crate) configs: Vec<Descriptor>,
    pub(crate) layers: Vec<Layer>,
    /// Of the only platform.
    pub(crate) config_digest: Option<Digest>,
    /// No snapshot keeps the documents: whoever removes what is not used leaves them until they have gone out.
    pub(crate) holds: Vec<BlobHold>,
}

impl Assembled {
    /// BuildKit's answers about the image.
    pub(crate) fn response(&self) -> BTreeMap<String, String> {
        use base64::Engine as _;
        let mut response = BTreeMap::new();
        response.insert("containerimage.digest".to_owned(), self.root.digest.to_string());
        if let Some(config) = self.config_digest {
            response.insert("containerimage.config.digest".to_owned(), config.to_string());
        }
        let json = serde_json::to_vec(&self.root).unwrap_or_default();
        let descriptor = base64::engine::general_purpose::STANDARD.encode(json);
        response.insert("containerimage.descriptor".to_owned(), descriptor);
        response
    }
}

pub(crate) async fn assemble(
    context: &Context,
    result: &BuildResult,
    options: &ImageOptions,
) -> Result<Assembled, Fault> {
    let flavor = if options.oci_types.unwrap_or(true) { Flavor::Oci } else { Flavor::Docker };
    let indexed = result.multi || result.platforms.len() > 1;
    for warning in check_annotations(result, options, flavor, indexed)? {
        context.tasks.log(base::progress::Stream::Stderr, warning.as_bytes());
    }
    let mut assembled = Assembled {
        root: Descriptor::of("", b""),
        manifests: vec![],
        configs: vec![],
        layers: vec![],
        config_digest: None,
        holds: vec![],
    };
    for platform in &result.platforms {
        let task = context.tasks.start("exporting layers", 0);
        let layers = platform_layers(context, platform, options).await?;
        drop(task);
        let own = platform.config.as_deref();
        // What is said of one image is not said of each of several that have their own.
        let config = match options.config.as_deref().map(str::as_bytes) {
            Some(given) if !result.multi || own.is_none() => Some(given),
            _ => own,
        };
        let holds = &mut assembled.holds;
        let (manifest, config) = manifest(context, platform, config, &layers, options, flavor, holds).await?;
        assembled.config_digest = Some(config.digest);
        assembled.configs.push(config);
        assembled.manifests.push(manifest);
        for layer in layers {
            if assembled.layers.iter().all(|known| known.descriptor.digest != layer.descriptor.digest) {
                assembled.layers.push(layer);
            }
        }
    }
    assembled.root = match &assembled.manifests[..] {
        [only] if !indexed => only.clone(),
        _ => {
            assembled.config_digest = None;
            index(context, &assembled.manifests, options, flavor, &mut assembled.holds).await?
        }
    };
    Ok(assembled)
}

async fn platform_layers(
    context: &Context,
    platform: &PlatformResult,
    options: &ImageOptions,
) -> Result<Vec<Layer>, Fault> {
    let Some(tree) = &platform.tree else { return Ok(Vec::new()) };
    let base = platform.base_config.as_deref().map(ImageConfig::parse).transpose();
    let base = base.map_err(|e| image_fault("cannot read the config of the base image", e))?;
    let base_diff_ids = base.map(|base| base.rootfs.diff_ids).unwrap_or_default();
    layer::layers(context, tree, options, &base_diff_ids).await
}

async fn manifest(
    context: &Context,
    platform: &PlatformResult,
    config: Option<&[u8]>,
    layers: &[Layer],
    options: &ImageOptions,
    flavor: Flavor,
    holds: &mut Vec<BlobHold>,
) -> Result<(Descriptor, Descriptor), Fault> {
    let doing = "cannot assemble the image";
    let config = match config {
        Some(config) if config.trim_ascii() == b"null" => {
            return Err(Fault::user("invalid null image config for export"));
        }
        Some(config) => {
            check_system(config)?;
            config.to_vec()
        }
        None => ImageConfig::empty(&platform.platform.clone().unwrap_or_else(Platform::host)).to_json(),
    };
    let base_history = match &platform.base_config {
        Some(base) => image::history_of(base).map_err(|e| image_fault(doing, e))?,
        None => Vec::new(),
    };
    let metas: Vec<LayerMeta> = layers
        .iter()
        .map(|layer| LayerMeta {
            description: layer.description.clone(),
            created: layer.created.map(|created| clamp(created, options.epoch).into()),
        })
        .collect();
    let history = image::history_of(&config).map_err(|e| image_fault(doing, e))?;
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
    let inline_cache = inline_cache(context, platform, layers, options);
    let patch = ConfigPatch {
        diff_ids: &diff_ids,
        history: image::normalize_history(history, &metas),
        epoch: options.epoch.and_then(|epoch| jiff::Timestamp::from_second(epoch).ok()),
        base_history: &base_history,
        inline_cache: inline_cache.as_deref(),
    };
    let config = image::patch_config(&config, patch).map_err(|e| image_fault(doing, e))?;
    let config_descriptor = Descriptor::of(flavor.config(), &config);

    let descriptors = layers.iter().map(|layer| layer.descriptor.clone());
    let mut manifest = Manifest::new(flavor, config_descriptor.clone(), descriptors.collect());
    manifest.annotations = options.annotations_of(AnnotationPlace::Manifest, Some(&name(platform)));
    let bytes = manifest.to_json();
    let mut descriptor = Descriptor::of(flavor.manifest(), &bytes);
    descriptor.platform.clone_from(&platform.platform);
    descriptor.annotations = options.annotations_of(AnnotationPlace::ManifestDescriptor, Some(&name(platform)));
    holds.push(keep(context, &format!("exporting manifest {}", descriptor.digest), bytes).await?);
    holds.push(keep(context, &format!("exporting config {}", config_descriptor.digest), config).await?);
    Ok((descriptor, config_descriptor))
}

/// The records of the build, for the image that is its own cache.
fn inline_cache(
    context: &Context,
    platform: &PlatformResult,
    layers: &[Layer],
    options: &ImageOptions,
) -> Option<Vec<u8>> {
    let inline = platform.inline.as_ref()?;
    let _task = context.tasks.start("preparing layers for inline cache", 0);
    let text = match options.rewrite_timestamp && options.epoch.is_some() {
        true => "no inline cache: layers with rewritten timestamps are not the results of the steps\n",
        false => {
            let layers: Vec<_> = layers.iter().map(|layer| (layer.snapshot.id(), layer.diff_id)).collect();
            match inline.records(&layers) {
                Some(records) => return Some(records),
                None => "no inline cache: the image has no layer that a step made\n",
            }
        }
    };
    context.tasks.log(base::progress::Stream::Stderr, text.as_bytes());
    None
}

/// A config says for which system it is, or leaves that to others.
fn check_system(config: &[u8]) -> Result<(), Fault> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct System {
        os: String,
        architecture: String,
    }
    // What is malformed is told where it is read.
    let system: System = serde_json::from_slice(config).unwrap_or_default();
    match system.os.is_empty() == system.architecture.is_empty() {
        true => Ok(()),
        false => Err(Fault::user("invalid image config: os and architecture must be specified together")),
    }
}

fn clamp(time: jiff::Timestamp, epoch: Option<i64>) -> jiff::Timestamp {
    match epoch.and_then(|epoch| jiff::Timestamp::from_second(epoch).ok()) {
        Some(epoch) => time.min(epoch),
        None => time,
    }
}

async fn index(
    context: &Context,
    manifests: &[Descriptor],
    options: &ImageOptions,
    flavor: Flavor,
    holds: &mut Vec<BlobHold>,
) -> Result<Descriptor, Fault> {
    let mut index = Index::new(flavor, manifests.to_vec());
    index.annotations = options.annotations_of(AnnotationPlace::Index, None);
    let bytes = index.to_json();
    let mut descriptor = Descriptor::of(flavor.index(), &bytes);
    descriptor.annotations = options.annotations_of(AnnotationPlace::IndexDescriptor, None);
    holds.push(keep(context, &format!("exporting manifest list {}", descriptor.digest), bytes).await?);
    Ok(descriptor)
}

async fn keep(context: &Context, what: &str, bytes: Vec<u8>) -> Result<BlobHold, Fault> {
    let _task = context.tasks.start(what, 0);
    let content = context.store.content();
    let hold = content.hold(&Digest::of(&bytes));
    let put = context.blocking("keeping a document of an image".to_owned(), move || content.put(bytes)).await;
    put.map(|_| hold).map_err(|e| store_fault("cannot write the image", e))
}

/// What annotations call a platform. Where nobody said which it is, it is the machine's.
fn name(result: &PlatformResult) -> String {
    match (&result.platform, result.id.as_str()) {
        (Some(platform), _) => platform.to_string(),
        (None, "") => Platform::host().to_string(),
        (None, id) => id.to_owned(),
    }
}

/// Refuses annotations that have no place. Answers what is to be said of others that come to nothing: a build of one platform
/// is often one of several, narrowed down, and still has all their annotations.
fn check_annotations(
    result: &BuildResult,
    options: &ImageOptions,
    flavor: Flavor,
    indexed: bool,
) -> Result<Vec<String>, Fault> {
    let mut warnings = Vec::new();
    for annotation in &options.annotations {
        let key = &annotation.key;
        if let Some(platform) = &annotation.platform
            && result.platforms.iter().all(|p| name(p) != *platform)
        {
            let text = format!("annotation `{key}` is for `{platform}`, which is not built");
            if result.platforms.len() > 1 {
                return Err(Fault::user(text));
            }
            warnings.push(format!("{text}: left out\n"));
        }
        if flavor == Flavor::Docker && annotation.place != AnnotationPlace::Manifest {
            return Err(Fault::user(format!("annotation `{key}` conflicts with `oci-mediatypes=false`")));
        }
        let of_index = matches!(annotation.place, AnnotationPlace::Index | AnnotationPlace::IndexDescriptor);
        if of_index && !indexed {
            return Err(Fault::user(format!("annotation `{key}` is for an index, but a single platform has none")));
        }
    }
    Ok(warnings)
}
