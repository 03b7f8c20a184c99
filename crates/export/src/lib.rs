//! A result becomes an image, an archive, a tar or a directory.
//!
//! `layer` makes blobs of snapshots, once per snapshot and compression; `assemble` puts config, manifests and index
//! around them; `archive`, `push` and `tree` take it out. How the result was built is nobody's business here.

mod archive;
mod assemble;
mod layer;
mod offer;
mod options;
mod push;
mod tree;
mod unfinished;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use base::hint::{PRUNE, no_space};
use base::report::Tasks;
use base::{Cancel, Digest, Fault, Kind, Platform};
use registry::{Client, CredentialSource};
use session::Output;
use store::{BlobHold, Hold, SnapshotId, Store};

pub use layer::{Layer, known_layer, layer_of};
pub use options::{Annotation, AnnotationPlace, Attributes, ImageOptions, PushOptions, Stale};
pub use push::{push_fault, push_layers, repository};
pub use unfinished::Unfinished;

/// A build's result.
#[derive(Clone, Debug)]
pub struct BuildResult {
    /// In the order of the request.
    pub platforms: Vec<PlatformResult>,
    /// An index is wanted, even for one platform.
    pub multi: bool,
}

/// The result for one platform.
#[derive(Clone, Debug)]
pub struct PlatformResult {
    /// Its key in attributes: the platform's text form.
    pub id: String,
    /// What it runs on, where the frontend said so.
    pub platform: Option<Platform>,
    /// The tree; none is an empty one.
    pub tree: Option<Arc<Hold>>,
    /// The image config, without its layers.
    pub config: Option<Vec<u8>>,
    /// The config of the image that it stands on.
    pub base_config: Option<Vec<u8>>,
    /// What makes an image of it a cache, too.
    pub inline: Option<Arc<dyn Inline>>,
}

/// What became of a result.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// What BuildKit's exporter answers.
    pub answer: BTreeMap<String, String>,
    /// What describes the image that was made. No snapshot keeps it: it stays as long as this lives.
    pub documents: Vec<BlobHold>,
}

/// The cache records of a build, for the config of its image.
pub trait Inline: Send + Sync + std::fmt::Debug {
    /// What the image's layers, base first, are results of. None if of nothing.
    fn records(&self, layers: &[(SnapshotId, Digest)]) -> Option<Vec<u8>>;
}

/// What lazy layers need from whoever pulled them.
#[async_trait]
pub trait Lazy: Send + Sync {
    /// Brings the layer's own blob into the content store.
    async fn fetch_blob(&self, snapshot: SnapshotId) -> Result<(), Fault>;
    /// Unpacks the snapshot and all below it.
    async fn fill(&self, snapshot: &Hold) -> Result<(), Fault>;
}

/// What exporters have at hand.
pub struct Context {
    /// Where snapshots and blobs are.
    pub store: Store,
    /// Where images are pushed.
    pub registry: Client,
    /// The client's credentials.
    pub credentials: Arc<dyn CredentialSource>,
    /// Fetches what was not read so far.
    pub lazy: Arc<dyn Lazy>,
    /// Where progress goes.
    pub tasks: Tasks,
    /// Ends the export early.
    pub cancel: Cancel,
    /// Threads that go on for a moment when the export was cancelled: somebody waits for them in the end.
    pub unfinished: Unfinished,
    /// Threads that compress.
    pub threads: usize,
}

/// One `--output`, its attributes read.
#[derive(Clone, Debug)]
pub enum Exporter {
    /// `type=image`
    Image(ImageOptions, PushOptions),
    /// `type=oci` and `type=docker`
    Archive {
        /// `docker` instead of `oci`.
        docker: bool,
        /// As one tar; else as a directory.
        tar: bool,
        /// What goes in.
        image: ImageOptions,
    },
    /// `type=tar` and `type=local`
    Tree {
        /// As a directory of files; else as one tar.
        local: bool,
        /// No timestamp is later.
        epoch: Option<i64>,
        /// One directory per platform. Unset: where there are several.
        platform_split: Option<bool>,
        /// What becomes of files of the directory that are not in the result.
        stale: Stale,
    },
}

/// What BuildKit's exporters had once.
const OLDER: [&str; 2] = ["buildinfo", "buildinfo-attrs"];

/// Whether some output has such an attribute.
fn is_elsewhere(key: &str) -> bool {
    let has = |kind| Exporter::read_all(kind, &BTreeMap::new()).is_ok_and(|(_, known, _)| known.contains(key));
    OLDER.contains(&key) || ["image", "oci", "docker", "tar", "local"].into_iter().any(has)
}

impl Exporter {
    /// How it wants layers compressed, if it makes any.
    pub fn compression(&self) -> Option<image::CompressionOptions> {
        match self {
            Exporter::Image(image, _) | Exporter::Archive { image, .. } => Some(image.compression),
            Exporter::Tree { .. } => None,
        }
    }

    /// Reads an output's type and attributes. Unknown ones are refused by name.
    pub fn read(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Exporter, Fault> {
        let (exporter, _, rest) = Exporter::read_all(kind, attrs)?;
        match rest.iter().find(|key| !is_elsewhere(key)) {
            None => Ok(exporter),
            Some(key) => Err(Fault::user(format!("output type={kind}: attribute `{key}` is not supported"))),
        }
    }

    /// What is to be said of attributes: those that other types of outputs have, or old builders had, mean nothing for this
    /// one, and some values count as others.
    pub fn remarks(kind: &str, attrs: &BTreeMap<String, String>) -> Vec<String> {
        let Ok((exporter, _, rest)) = Exporter::read_all(kind, attrs) else { return Vec::new() };
        let level = attrs.get("compression-level").map(String::as_str);
        let level = exporter.compression().and_then(|compression| compression.remark(level));
        let meaningless = rest.iter().map(|key| format!("attribute `{key}` means nothing for output type={kind}"));
        meaningless.chain(level.map(|remark| format!("output type={kind}: {remark}"))).collect()
    }

    /// The output, the names of all attributes that it has, annotations aside, and of those given that it does not have.
    fn read_all(
        kind: &str,
        attrs: &BTreeMap<String, String>,
    ) -> Result<(Exporter, BTreeSet<&'static str>, Vec<String>), Fault> {
        type Read = fn(&mut Attributes) -> Result<Exporter, Fault>;
        let (name, exporter): (&'static str, Read) = match kind {
            "image" => ("image", |attrs| Ok(Exporter::Image(attrs.image()?, attrs.push()?))),
            "oci" => ("oci", |attrs| read_archive(attrs, false)),
            "docker" => ("docker", |attrs| read_archive(attrs, true)),
            "tar" => ("tar", |attrs| read_tree(attrs, false)),
            "local" => ("local", |attrs| read_tree(attrs, true)),
            "registry" => ("registry", |attrs| {
                let mut push = attrs.push()?;
                push.push = true;
                Ok(Exporter::Image(attrs.image()?, push))
            }),
            "" => return Err(Fault::user("output has no type")),
            other => {
                let text =
                    format!("output type `{other}` is not supported: there are image, oci, docker, tar and local");
                return Err(Fault::user(text));
            }
        };
        let mut attributes = Attributes::new(name, attrs);
        let exporter = exporter(&mut attributes)?;
        let (known, rest) = attributes.finish();
        Ok((exporter, known, rest))
    }

    /// Whether it makes blobs for a directory.
    pub fn makes_layout(&self) -> bool {
        matches!(self, Exporter::Archive { tar: false, .. })
    }

    /// What people see while it works.
    pub fn title(&self) -> &'static str {
        match self {
            Exporter::Image(..) => "exporting to image",
            Exporter::Archive { docker: false, .. } => "exporting to oci image format",
            Exporter::Archive { docker: true, .. } => "exporting to docker image format",
            Exporter::Tree { local: true, .. } => "exporting to client directory",
            Exporter::Tree { local: false, .. } => "exporting to client tarball",
        }
    }

    /// Sets the name that the frontend chose, where the attributes leave it to that: `name=*`.
    #[must_use]
    pub fn with_chosen_name(mut self, chosen: Option<&str>) -> Exporter {
        if let (
            Exporter::Image(ImageOptions { names, .. }, _)
            | Exporter::Archive { image: ImageOptions { names, .. }, .. },
            Some(chosen),
        ) = (&mut self, chosen)
            && names[..] == ["*"]
        {
            *names = options::names(chosen);
        }
        self
    }

    /// Adds the annotations that the frontend's words about its result ask for.
    pub fn with_annotations(mut self, words: &BTreeMap<String, Vec<u8>>) -> Result<Exporter, Fault> {
        if let Exporter::Image(image, _) | Exporter::Archive { image, .. } = &mut self {
            image.annotate(words)?;
        }
        Ok(self)
    }

    /// Exports `result`.
    pub async fn export(&self, context: &Context, result: &BuildResult, output: Output) -> Result<Exported, Fault> {
        if let Exporter::Image(image, _) | Exporter::Archive { image, .. } = self
            && image.rewrite_timestamp
            && image.epoch.is_none()
        {
            let text =
                "rewrite-timestamp changes nothing: there is no SOURCE_DATE_EPOCH, as build argument or attribute\n";
            context.tasks.log(base::progress::Stream::Stderr, text.as_bytes());
        }
        match self {
            Exporter::Image(image, push) => {
                let assembled = assemble::assemble(context, result, image).await?;
                let documents = assembled.holds.clone();
                let answer = push::name_and_push(context, assembled, image, push).await?;
                Ok(Exported { answer, documents })
            }
            Exporter::Archive { docker, tar, image } => {
                if *docker && (result.multi || result.platforms.len() > 1) {
                    return Err(Fault::user("output type=docker cannot hold several platforms").hint("use type=oci"));
                }
                let assembled = assemble::assemble(context, result, image).await?;
                let documents = assembled.holds.clone();
                let answer = archive::write(context, assembled, image, *docker, *tar, output).await?;
                Ok(Exported { answer, documents })
            }
            Exporter::Tree { local, epoch, platform_split, .. } => {
                let answer = tree::write(context, result, *local, *epoch, *platform_split, output).await?;
                Ok(Exported { answer, documents: Vec::new() })
            }
        }
    }
}

fn read_archive(attrs: &mut Attributes, docker: bool) -> Result<Exporter, Fault> {
    let tar = attrs.boolean("tar")?.unwrap_or(true);
    Ok(Exporter::Archive { docker, tar, image: attrs.image()? })
}

fn read_tree(attrs: &mut Attributes, local: bool) -> Result<Exporter, Fault> {
    let epoch = attrs.epoch()?;
    let platform_split = attrs.boolean("platform-split")?;
    // Where attestations would go; this version makes none.
    attrs.text("attestation-prefix");
    // Clients that annotate a build say so to each of its outputs; files have none.
    attrs.annotations()?;
    let stale = if local { attrs.stale()? } else { Stale::Stays };
    Ok(Exporter::Tree { local, epoch, platform_split, stale })
}

impl Context {
    /// Runs code that waits for disks on a thread of its own, and looks at [`cancel`](Context::cancel) now and then. `what`
    /// says what it does.
    async fn blocking<T: Send + 'static>(&self, what: String, work: impl FnOnce() -> T + Send + 'static) -> T {
        joined(self.unfinished.spawn_blocking(what, work)).await
    }
}

/// What a thread came to. Its panic is ours.
async fn joined<T>(thread: tokio::task::JoinHandle<T>) -> T {
    match thread.await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

fn store_fault(doing: &str, error: store::Error) -> Fault {
    let full = error.is_no_space();
    let fault = Fault::because(Kind::Environment, doing, error);
    if full { fault.hint(no_space()) } else { fault }
}

fn image_fault(doing: &str, error: image::Error) -> Fault {
    Fault::because(Kind::Environment, doing, error)
}

/// The client's file or directory could not be written.
fn output_fault(path: &Path, error: io::Error) -> Fault {
    let full = store::is_full(&error);
    let fault = Fault::because(Kind::Environment, format!("cannot write to `{}`", path.display()), error);
    match full {
        true => {
            fault.hint(format!("free space there, or write elsewhere; if the state directory lies there, try {PRUNE}"))
        }
        false => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables of the page in `docs/` name what the code reads, no more and no less.
    #[test]
    fn the_reference_page_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/outputs.md");
        let page = std::fs::read_to_string(path).expect("docs/reference/outputs.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let mut told: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, rest) in rows.clone() {
            let types = rest.split(" | ").next().unwrap_or_default();
            types.split(", ").for_each(|kind| _ = told.entry(kind).or_default().insert(name));
        }
        for kind in ["image", "oci", "docker", "tar", "local"] {
            assert!(rows.clone().any(|(name, _)| name == kind), "no row for type `{kind}`");
            let (_, known, _) = Exporter::read_all(kind, &BTreeMap::new()).expect("no attributes");
            assert_eq!(told.remove(kind), Some(known), "attributes of type={kind}");
        }
    }

    #[test]
    fn files_have_no_annotations_and_take_them() {
        let read = |kind: &str, key: &str| Exporter::read(kind, &[(key.to_owned(), "v".to_owned())].into());
        for kind in ["tar", "local", "oci"] {
            for key in ["annotation.a.b", "annotation-index.a", "annotation[linux/amd64].a"] {
                assert!(read(kind, key).is_ok(), "{kind} {key}");
            }
            let error = read(kind, "colour").expect_err(kind).to_string();
            assert!(error.contains("attribute `colour` is not supported"), "{error}");
        }
    }

    #[test]
    fn what_other_outputs_have_means_nothing() {
        let attrs = |keys: &[&str]| keys.iter().map(|key| ((*key).to_owned(), "true".to_owned())).collect();
        for (kind, keys) in [("local", ["name", "push"]), ("oci", ["buildinfo", "push"]), ("image", ["mode", "tar"])] {
            let attrs: BTreeMap<_, _> = attrs(&keys);
            assert!(Exporter::read(kind, &attrs).is_ok(), "{kind}");
            let said = keys.map(|key| format!("attribute `{key}` means nothing for output type={kind}"));
            assert_eq!(Exporter::remarks(kind, &attrs), said, "{kind}");
        }
        assert!(Exporter::remarks("image", &attrs(&["push", "unpack"])).is_empty());
        let zstd = [("compression", "zstd"), ("compression-level", "99")];
        let zstd = zstd.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(Exporter::remarks("oci", &zstd), ["output type=oci: `compression-level=99` of zstd counts as 22"]);
    }
}
