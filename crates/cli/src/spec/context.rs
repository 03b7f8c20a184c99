//! Where a build reads: `PATH`, `--file`, `--build-context`, `--oci-layout`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use base::{Digest, Fault};

use super::invalid;
use super::pairs::{pairs, require_dir};

/// A named context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContext {
    /// A directory, shared with the build under this name.
    Directory {
        /// The name of the share.
        share: String,
        /// The directory.
        path: PathBuf,
    },
    /// An image of an OCI layout, shared with the build under this name.
    Layout {
        /// The name of the share.
        share: String,
        /// The directory.
        path: PathBuf,
        /// The manifest or index.
        digest: Digest,
    },
    /// What the frontend resolves itself: `docker-image://..`, a git repository, a file of the web.
    Reference(String),
}

/// `--build-context name=path|docker-image://ref|oci-layout://path[:tag|@digest]|url`. A name that is an image's is found however it is written.
pub fn build_context(value: &str) -> Result<(String, NamedContext), Fault> {
    const FLAG: &str = "--build-context";
    let (name, target) = value.split_once('=').ok_or_else(|| invalid(FLAG, value, "expected name=path"))?;
    if name.is_empty() || target.is_empty() {
        return Err(invalid(FLAG, value, "expected name=path"));
    }
    let name = image::Reference::parse(&name.to_lowercase()).map_err(|error| invalid(FLAG, value, error))?;
    let name = name.familiar();
    let name = name.strip_suffix(":latest").unwrap_or(&name).to_owned();
    if target.starts_with("docker-image://") {
        return Ok((name, NamedContext::Reference(target.to_owned())));
    }
    if target.starts_with("target:") {
        return Err(invalid(
            FLAG,
            value,
            "target: contexts are for bake files, which are built by `docker buildx bake`",
        ));
    }
    if let Some(layout) = target.strip_prefix("oci-layout://") {
        return layout_image(FLAG, value, layout).map(|context| (name, context));
    }
    if is_remote(target) {
        return Ok((name, NamedContext::Reference(target.to_owned())));
    }
    require_dir(FLAG, value, Path::new(target))?;
    // These two names are taken by the main context and the Dockerfile.
    let share = if matches!(name.as_str(), "context" | "dockerfile") { format!("_{name}_") } else { name.clone() };
    Ok((name, NamedContext::Directory { share, path: PathBuf::from(target) }))
}

/// `path[:tag|@digest]`. Without either: the image `latest`, or the only one.
fn layout_image(flag: &str, value: &str, typed: &str) -> Result<NamedContext, Fault> {
    // Paths may have an `@`, too.
    let (place, digest) = match typed.rsplit_once('@') {
        Some((place, digest)) if is_meant_as_digest(digest) => {
            (place, Some(digest.parse::<Digest>().map_err(|error| invalid(flag, value, error))?))
        }
        _ => (typed, None),
    };
    let (path, tag) = match place.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (place, None),
    };
    let path = PathBuf::from(path);
    require_dir(flag, value, &path)?;
    let digest = match digest {
        Some(digest) => digest,
        None => find_image(&path, tag).map_err(|error| invalid(flag, value, error))?,
    };
    // Frontends cut a store's name at a colon: a name that any path has.
    let share = Digest::of(path.as_os_str().as_bytes()).hex();
    Ok(NamedContext::Layout { share: share[..25].to_owned(), path, digest })
}

/// Whether a text begins as digests do, well formed or not.
fn is_meant_as_digest(text: &str) -> bool {
    let algorithm = text.split_once(':').map(|(algorithm, _)| algorithm);
    algorithm.is_some_and(|algorithm| matches!(algorithm, "sha256" | "sha384" | "sha512" | "blake3"))
}

fn find_image(dir: &Path, tag: Option<&str>) -> Result<Digest, image::Error> {
    let open = |name: &str| match File::open(dir.join(name)) {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(image::Error::Missing(name.to_owned())),
        Err(error) => Err(image::Error::Io(error)),
    };
    let layout = image::archive::Layout::open(open)?;
    let found = match tag {
        Some(tag) => layout.find(Some(tag)),
        None => layout.find(Some("latest")).or_else(|_| layout.find(None)),
    };
    found.map(|image| image.digest)
}

/// `--oci-layout name=dir`.
pub fn layouts(values: &[String]) -> Result<BTreeMap<String, PathBuf>, Fault> {
    const FLAG: &str = "--oci-layout";
    let dirs = pairs(FLAG, values)?;
    for (name, dir) in &dirs {
        require_dir(FLAG, &format!("{name}={dir}"), dir.as_ref())?;
    }
    Ok(dirs.into_iter().map(|(name, dir)| (name, PathBuf::from(dir))).collect())
}

/// Whether the builder fetches this context from somewhere. An existing directory never is.
pub fn is_remote(target: &str) -> bool {
    const SCHEMES: [&str; 5] = ["http://", "https://", "git://", "ssh://", "git@"];
    let looks_remote = SCHEMES.iter().any(|scheme| target.starts_with(scheme)) || target.starts_with("github.com/");
    looks_remote && !Path::new(target).is_dir()
}
