//! Writing archives, with the bytes of containerd's exporter, which BuildKit uses.
//!
//! Entries are sorted by name; blobs have mode 0444, owner root, time 0. `index.json` and `manifest.json` are one line
//! of JSON. So the archive depends on the image and its names alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use base::Digest;
use serde::Serialize;

use super::{DOCKER_MANIFEST, INDEX, LAYOUT, LAYOUT_CONTENT};
use crate::layer::compression::VerifyingReader;
use crate::layer::tar::{Header, TypeFlag, Writer};
use crate::{Descriptor, Error, Flavor, Index, Manifest, Reference, annotation, children, document, media_type};

/// What reads the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveKind {
    /// Tools that know OCI layouts. Images of all platforms.
    Oci,
    /// `docker load` too: has `manifest.json`. Takes image manifests, no indexes.
    Docker,
}

/// One entry of `index.json` per name; the manifest alone where there are no names.
///
/// `names` are full references with a tag; `created` is RFC 3339.
pub fn name_manifests(manifest: &Descriptor, names: &[Reference], created: &str) -> Vec<Descriptor> {
    let mut manifest = manifest.clone();
    manifest.annotations.entry(annotation::CREATED.to_owned()).or_insert_with(|| created.to_owned());
    if names.is_empty() {
        return vec![manifest];
    }
    names
        .iter()
        .map(|name| {
            let name = name.clone().or_latest();
            let short = match (name.tag(), name.digest()) {
                (Some(tag), Some(digest)) => format!("{tag}@{digest}"),
                (Some(tag), None) => tag.to_owned(),
                (None, _) => name.to_string(),
            };
            manifest.clone().annotate(annotation::IMAGE_NAME, name.to_string()).annotate(annotation::REF_NAME, short)
        })
        .collect()
}

/// The bytes of `index.json`.
pub fn index_json(roots: &[Descriptor]) -> Vec<u8> {
    Index::new(Flavor::Oci, roots.to_vec()).to_compact_json()
}

/// All blobs that `roots` consist of, themselves included, by digest. `open` is asked for manifests and indexes only.
pub fn list_blobs<R: Read>(
    roots: &[Descriptor],
    mut open: impl FnMut(&Descriptor) -> Result<R, Error>,
) -> Result<Vec<Descriptor>, Error> {
    let mut plan = Plan::default();
    roots.iter().try_for_each(|root| plan.add(root, 0, &mut open))?;
    Ok(plan.blobs.into_values().collect())
}

/// Writes the images that `roots` name, with all that they refer to, as a tar.
///
/// `open` gives a blob's bytes; it is asked once for every layer, twice for manifests and indexes. Digest and size of
/// every blob are checked on the way. Reading stops at the first blob that cannot be had.
pub fn write_archive<W: Write, R: Read>(
    sink: W,
    kind: ArchiveKind,
    roots: &[Descriptor],
    mut open: impl FnMut(&Descriptor) -> Result<R, Error>,
) -> Result<W, Error> {
    let mut plan = Plan::default();
    for root in roots {
        let media_type = root.media_type.as_str();
        let is_root =
            media_type::is_manifest(media_type) || (kind == ArchiveKind::Oci && media_type::is_index(media_type));
        if !is_root {
            return Err(Error::document("archive", format!("cannot export {} of type `{media_type}`", root.digest)));
        }
        plan.add(root, 0, &mut open)?;
    }
    let mut files = vec![(LAYOUT, 0o444, LAYOUT_CONTENT.as_bytes().to_vec()), (INDEX, 0o644, index_json(roots))];
    if kind == ArchiveKind::Docker {
        files.push((DOCKER_MANIFEST, 0o644, docker_manifest(roots, &plan.documents)?));
    }
    // By name: blobs/ comes first, then index.json, manifest.json, oci-layout.
    files.sort_by_key(|(name, ..)| *name);

    let mut tar = Writer::new(sink);
    for directory in ["blobs/", "blobs/sha256/"] {
        let header = Header { flag: TypeFlag::Directory, path: directory.into(), mode: 0o755, ..Header::default() };
        tar.append_header(&header, std::io::empty())?;
    }
    for blob in plan.blobs.values() {
        let content = VerifyingReader::new(open(blob)?, blob.digest, blob.size);
        tar.append_header(&file_header(&blob.blob_path(), 0o444, blob.size), content)?;
    }
    for (name, mode, content) in files {
        tar.append_header(&file_header(name, mode, content.len() as u64), content.as_slice())?;
    }
    tar.finish()
}

fn file_header(name: &str, mode: u32, size: u64) -> Header {
    Header { path: name.into(), mode, size, ..Header::default() }
}

/// The blobs that an image consists of, by digest, which is their order in the archive.
#[derive(Default)]
struct Plan {
    blobs: BTreeMap<Digest, Descriptor>,
    documents: BTreeMap<Digest, Vec<u8>>,
}

/// Indexes within indexes beyond this are refused.
const MAX_DEPTH: usize = 8;

impl Plan {
    fn add<R: Read>(
        &mut self,
        descriptor: &Descriptor,
        depth: usize,
        open: &mut impl FnMut(&Descriptor) -> Result<R, Error>,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::document("archive", format!("{} nests indexes too deep", descriptor.digest)));
        }
        if let Some(known) = self.blobs.insert(descriptor.digest, descriptor.clone()) {
            return match known.size == descriptor.size {
                true => Ok(()),
                false => {
                    Err(Error::WrongSize { digest: descriptor.digest, expected: known.size, actual: descriptor.size })
                }
            };
        }
        if !media_type::is_manifest(&descriptor.media_type) && !media_type::is_index(&descriptor.media_type) {
            return Ok(());
        }
        let bytes = super::layout::read_document(descriptor, open(descriptor)?)?;
        for child in children(descriptor, &bytes)? {
            self.add(&child, depth + 1, open)?;
        }
        self.documents.insert(descriptor.digest, bytes);
        Ok(())
    }
}

/// An item of `manifest.json`. Field order is containerd's; no tags and no layers are `null`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerItem {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

fn docker_manifest(roots: &[Descriptor], documents: &BTreeMap<Digest, Vec<u8>>) -> Result<Vec<u8>, Error> {
    let mut items = Vec::new();
    let mut seen = BTreeSet::new();
    for root in roots.iter().filter(|root| seen.insert(root.digest)) {
        let bytes = documents.get(&root.digest).map_or(&b""[..], Vec::as_slice);
        let manifest = Manifest::parse(bytes, Some(&root.media_type))?;
        let names = roots.iter().filter(|other| other.digest == root.digest);
        let mut tags = Vec::new();
        for name in names.filter_map(|other| other.annotations.get(annotation::IMAGE_NAME)) {
            tags.push(Reference::parse(name)?.or_latest().familiar());
        }
        let layers: Vec<String> = manifest.layers.iter().map(Descriptor::blob_path).collect();
        items.push(DockerItem {
            config: manifest.config.blob_path(),
            repo_tags: Some(tags).filter(|tags| !tags.is_empty()),
            layers: Some(layers).filter(|layers| !layers.is_empty()),
        });
    }
    Ok(document::compact(&items))
}
