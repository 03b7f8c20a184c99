//! Where a build reads: `PATH`, `--file`, `--build-context`, `--oci-layout`.

use std::path::{Path, PathBuf};

use base::Fault;

use super::invalid;
use super::pairs::require_dir;

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
    /// What the frontend resolves itself: `docker-image://..`.
    Reference(String),
}

/// `--build-context name=path|docker-image://ref`. A name that is an image's is found however it is written.
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
    if target.starts_with("oci-layout://") {
        return Err(invalid(FLAG, value, "oci-layout:// contexts are not supported yet"));
    }
    if is_remote(target) {
        return Err(invalid(FLAG, value, "contexts from URLs and git are not supported yet"));
    }
    require_dir(FLAG, value, Path::new(target))?;
    // These two names are taken by the main context and the Dockerfile.
    let share = if matches!(name.as_str(), "context" | "dockerfile") { format!("_{name}_") } else { name.clone() };
    Ok((name, NamedContext::Directory { share, path: PathBuf::from(target) }))
}

/// Whether docker would fetch this context from somewhere. An existing directory never is.
pub fn is_remote(target: &str) -> bool {
    const SCHEMES: [&str; 5] = ["http://", "https://", "git://", "ssh://", "git@"];
    let looks_remote = SCHEMES.iter().any(|scheme| target.starts_with(scheme)) || target.starts_with("github.com/");
    looks_remote && !Path::new(target).is_dir()
}
