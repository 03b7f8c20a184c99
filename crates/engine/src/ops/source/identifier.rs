//! What a source op asks for: its identifier and attributes, read and checked.
//!
//! An attribute that is not known is an error: ignoring it could build something else than was asked for.

use std::collections::BTreeMap;

use base::{Digest, Fault, Kind};
use image::reference::Reference;
use llb::pb;

use super::blob::BlobSource;
use super::git::GitSource;
use super::http::HttpSource;
use crate::layout::StoreName;

/// A source that this version can read.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Image(ImageSource),
    Layout(LayoutSource),
    Http(HttpSource),
    Blob(BlobSource),
    Git(GitSource),
    Local(LocalSource),
}

/// `docker-image://`
#[derive(Clone, Debug)]
pub(crate) struct ImageSource {
    pub(crate) reference: Reference,
    pub(crate) mode: ResolveMode,
    /// Only so many layers.
    pub(crate) layer_limit: Option<usize>,
    /// The manifest must have this digest.
    pub(crate) checksum: Option<Digest>,
}

/// `oci-layout://`: an image of a content store that a client offers.
#[derive(Clone, Debug)]
pub(crate) struct LayoutSource {
    /// Its digest says which image it is.
    pub(crate) reference: Reference,
    pub(crate) store: StoreName,
    /// Only so many layers.
    pub(crate) layer_limit: Option<usize>,
}

/// Whether an image that is here already may be used without asking its registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum ResolveMode {
    #[default]
    Default,
    ForcePull,
    PreferLocal,
}

impl From<llb::build::ResolveMode> for ResolveMode {
    fn from(mode: llb::build::ResolveMode) -> Self {
        match mode {
            llb::build::ResolveMode::Default => ResolveMode::Default,
            llb::build::ResolveMode::ForcePull => ResolveMode::ForcePull,
            llb::build::ResolveMode::PreferLocal => ResolveMode::PreferLocal,
        }
    }
}

/// `local://`: a directory of the client, seen through filters. Filters are `None` where the client
/// sent none, which the cache key tells apart from an empty list.
#[derive(Clone, Debug, Default)]
pub(crate) struct LocalSource {
    pub(crate) name: String,
    /// The session that has it; any session of the build where none is named.
    pub(crate) session: Option<String>,
    pub(crate) include: Option<Vec<String>>,
    pub(crate) exclude: Option<Vec<String>>,
    pub(crate) follow_paths: Option<Vec<String>>,
    /// Tells directories apart that have one name, when earlier transfers are looked for.
    pub(crate) shared_key_hint: String,
    /// When a file counts as the one that was sent before.
    pub(crate) differ: files::receive::Differ,
    /// Only these files come with their bytes; a file of the tree describes all of them.
    pub(crate) chosen: Option<Vec<String>>,
}

impl Source {
    pub(crate) fn read(op: &pb::SourceOp) -> Result<Source, Fault> {
        let id = &op.identifier;
        let (scheme, rest) = id
            .split_once("://")
            .ok_or_else(|| Fault::user(format!("source `{id}` has no scheme such as docker-image://")))?;
        match scheme {
            "docker-image" => image_source(rest, &op.attrs).map(Source::Image),
            "oci-layout" => layout_source(rest, &op.attrs).map(Source::Layout),
            "local" => local_source(rest, &op.attrs).map(Source::Local),
            "http" | "https" => HttpSource::read(op).map(Source::Http),
            "docker-image+blob" => BlobSource::read(rest, op, false).map(Source::Blob),
            "oci-layout+blob" => BlobSource::read(rest, op, true).map(Source::Blob),
            "git" => GitSource::read(rest, op).map(Source::Git),
            _ => Err(Fault::user(format!("source `{id}` has an unknown scheme"))),
        }
    }
}

pub(super) fn reference(name: &str) -> Result<Reference, Fault> {
    name.parse().map_err(|e| Fault::because(Kind::User, format!("bad image reference `{name}`"), e))
}

fn layer_limit(value: &str) -> Result<usize, Fault> {
    let bad = || Fault::user(format!("invalid layer limit `{value}`")).hint("it is a number of layers, one at least");
    value.parse().ok().filter(|n| *n > 0).ok_or_else(bad)
}

fn layout_source(name: &str, attrs: &BTreeMap<String, String>) -> Result<LayoutSource, Fault> {
    let mut source = LayoutSource {
        reference: reference(name)?,
        store: StoreName { session: None, store: String::new(), cache: false },
        layer_limit: None,
    };
    for (key, value) in attrs {
        match key.as_str() {
            "oci.session" => source.store.session = Some(value.clone()).filter(|session| !session.is_empty()),
            "oci.store" => source.store.store.clone_from(value),
            "oci.layerlimit" => source.layer_limit = Some(layer_limit(value)?),
            _ => return Err(unknown(key)),
        }
    }
    Ok(source)
}

fn image_source(name: &str, attrs: &BTreeMap<String, String>) -> Result<ImageSource, Fault> {
    let reference = reference(name)?;
    let mut source = ImageSource { reference, mode: ResolveMode::Default, layer_limit: None, checksum: None };
    for (key, value) in attrs {
        match key.as_str() {
            "image.resolvemode" => {
                source.mode = match value.as_str() {
                    "" | "default" => ResolveMode::Default,
                    "pull" => ResolveMode::ForcePull,
                    "local" => ResolveMode::PreferLocal,
                    _ => return Err(bad(key, value, "not a resolve mode")),
                }
            }
            // Only says how `du` shows the image.
            "image.recordtype" => {}
            "image.layerlimit" => source.layer_limit = Some(layer_limit(value)?),
            "image.checksum" => {
                source.checksum = Some(value.parse().map_err(|_| bad(key, value, "not a digest"))?);
            }
            _ => return Err(unknown(key)),
        }
    }
    Ok(source)
}

fn local_source(name: &str, attrs: &BTreeMap<String, String>) -> Result<LocalSource, Fault> {
    let mut source = LocalSource { name: name.to_owned(), ..LocalSource::default() };
    let (mut described, mut chosen) = (false, None);
    for (key, value) in attrs {
        let list = || -> Result<_, Fault> {
            serde_json::from_str::<Option<Vec<String>>>(value).map_err(|_| bad(key, value, "not a list of patterns"))
        };
        match key.as_str() {
            "local.session" => source.session = Some(value.clone()),
            "local.includepattern" => source.include = list()?,
            "local.excludepatterns" => source.exclude = list()?,
            "local.followpaths" => source.follow_paths = list()?,
            "local.sharedkeyhint" => source.shared_key_hint.clone_from(value),
            "local.differ" => {
                source.differ = match value.as_str() {
                    "" | "metadata" => files::receive::Differ::Metadata,
                    "none" => files::receive::Differ::None,
                    _ => return Err(bad(key, value, "not a way to compare files")),
                }
            }
            "local.metadatatransfer" => {
                described = match value.as_str() {
                    "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                    "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                    _ => return Err(bad(key, value, "neither true nor false")),
                }
            }
            "local.metadatatransferexclude" => chosen = list()?,
            // Only keeps equal sources apart.
            "local.unique" => {}
            _ => return Err(unknown(key)),
        }
    }
    source.chosen = described.then(|| chosen.unwrap_or_default());
    if let Some((prefix, session)) = source.session.as_deref().and_then(|s| s.split_once(':')) {
        source.name = format!("{prefix}-{}", source.name);
        source.session = Some(session.to_owned());
    }
    Ok(source)
}

pub(super) fn bad(key: &str, value: &str, why: &str) -> Fault {
    Fault::user(format!("source attribute `{key}`: `{value}` is {why}"))
}

pub(super) fn unknown(key: &str) -> Fault {
    Fault::user(format!("source attribute `{key}` is not supported yet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(identifier: &str, attrs: &[(&str, &str)]) -> Result<Source, String> {
        let attrs = attrs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Source::read(&pb::SourceOp { identifier: identifier.into(), attrs }).map_err(|e| e.to_string())
    }

    #[test]
    fn attributes_are_read_and_unknown_ones_refused() {
        let attrs = [("local.session", "s"), ("local.followpaths", "[\"a\"]"), ("local.excludepatterns", "null")];
        let Ok(Source::Local(local)) = read("local://context", &attrs) else { panic!("a local source") };
        assert_eq!((local.name.as_str(), local.session.as_deref()), ("context", Some("s")));
        assert_eq!((local.follow_paths, local.exclude), (Some(vec!["a".to_owned()]), None));
        for (attrs, chosen) in [
            (&[("local.metadatatransfer", "true")][..], Some(vec![])),
            (&[("local.metadatatransfer", "1"), ("local.metadatatransferexclude", "[\"a\"]")], Some(vec!["a".into()])),
            (&[("local.metadatatransferexclude", "[\"a\"]")], None),
        ] {
            let Ok(Source::Local(local)) = read("local://context", attrs) else { panic!("a local source") };
            assert_eq!(local.chosen, chosen);
        }
        let attrs = [("image.resolvemode", "pull"), ("image.layerlimit", "2")];
        let Ok(Source::Image(image)) = read("docker-image://docker.io/library/x:1", &attrs) else { panic!("an image") };
        assert_eq!((image.mode, image.layer_limit), (ResolveMode::ForcePull, Some(2)));

        let id = format!("oci-layout://docker.io/library/x@{}", Digest::of("x"));
        let attrs = [("oci.session", ""), ("oci.store", "s"), ("oci.layerlimit", "2")];
        let Ok(Source::Layout(layout)) = read(&id, &attrs) else { panic!("an image of a layout") };
        assert_eq!(layout.store, StoreName { session: None, store: "s".to_owned(), cache: false });
        assert_eq!((layout.reference.digest(), layout.layer_limit), (Some(Digest::of("x")), Some(2)));

        let blob = |kind: &str| format!("{kind}+blob://docker.io/x/y@{}", Digest::of("x"));
        let attrs = [("http.filename", "a/b"), ("http.uid", "7"), ("http.perm", "0644"), ("oci.store", "s")];
        let Ok(Source::Blob(source)) = read(&blob("oci-layout"), &attrs) else { panic!("a blob") };
        assert_eq!(source.key(), llb::key::blob(Digest::of("x"), "b", 0o644, 7, 0));
        for (id, attrs, wanted) in [
            ("x", &[][..], "no scheme"),
            ("ftp://x", &[], "unknown scheme"),
            ("git://h/x#-x", &[], "invalid git ref \"-x\""),
            ("git://h/x", &[("git.checksum", "x y")], "invalid checksum x y for Git URL, expected hex commit hash"),
            ("git://h/x", &[("git.mtime", "now")], "neither `checkout` nor `commit`"),
            ("git://h/x", &[("git.bundle", "x")], "`git.bundle` is not supported yet"),
            ("git://h/x", &[("git.sig.pubkey", "x")], "`git.sig.pubkey` is not supported yet"),
            ("docker-image+blob://docker.io/x/y:1", &[], "blob `docker.io/x/y:1` has no digest"),
            (&blob("oci-layout"), &[("oci.session", "s")], "needs the attribute `oci.store`"),
            (&blob("docker-image"), &[("oci.store", "s")], "`oci.store` is not supported yet"),
            (&blob("docker-image"), &[("http.uid", "x")], "source attribute `http.uid`"),
            ("docker-image://UPPER", &[], "bad image reference"),
            ("docker-image://x", &[("image.layerlimit", "0")], "invalid layer limit `0`"),
            ("docker-image://x", &[("image.new", "")], "`image.new` is not supported yet"),
            ("local://x", &[("local.metadatatransfer", "yes")], "neither true nor false"),
            ("local://x", &[("local.followpaths", "{")], "not a list of patterns"),
        ] {
            let error = read(id, attrs).expect_err(id);
            assert!(error.contains(wanted), "{error}");
        }
    }
}
