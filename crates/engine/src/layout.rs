//! Images of content stores that a client offers by name (`oci-layout://`): an OCI layout on its disk.
//!
//! Nothing but the digests of blobs is trusted. Layers stay where they are until somebody reads them, as those of registries
//! do; a state that knows them from an earlier build asks the stores that the build at hand has named.

use std::io::{self, Read};
use std::sync::Arc;

use base::{Digest, Fault, Kind, Platform};
use image::layer::compression::VerifyingReader;
use image::{Descriptor, Reference, media_type};
use serde::Deserialize;
use serde::de::IgnoredAny;
use session::Blobs;
use store::LazyLayer;

use crate::core::blocking;
use crate::images::{Images, Origin, ResolvedImage};
use crate::job::Job;
use crate::ops::source::ResolveMode;

/// Stands among the sources of a layer for the stores of the clients.
pub(crate) const SOURCE: &str = "oci-layout://";

/// A store that a build names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StoreName {
    /// The session that has it; any session of the build where none is named.
    pub(crate) session: Option<String>,
    pub(crate) store: String,
    /// A directory with caches, not an OCI layout.
    pub(crate) cache: bool,
}

impl Images {
    /// Finds the image that the digest of `reference` names in a client's store.
    pub(crate) async fn resolve_layout(
        &self,
        jobs: &[Arc<Job>],
        name: &StoreName,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Arc<ResolvedImage>, Fault> {
        let Some(job) = jobs.first() else {
            return Err(Fault::new(Kind::Internal, "nobody wants the image"));
        };
        jobs.iter().for_each(|job| job.add_store(name.clone()));
        let cell = job.image(&format!("{SOURCE}{}/{reference}", name.store), platform, ResolveMode::Default);
        let resolved = cell.get_or_try_init(|| async {
            let digest = reference.digest();
            let digest = digest.ok_or_else(|| Fault::user(format!("`{reference}` of an OCI layout has no digest")))?;
            let blobs = find(jobs, name).await?;
            let bytes = document(&*blobs, &digest, None).await?;
            let media_type =
                kind(&bytes).ok_or_else(|| Fault::user(format!("`{reference}` is neither an index nor a manifest")))?;
            let root = Descriptor::new(media_type, digest, bytes.len() as u64);
            self.keep(&bytes).await?;
            self.describe(&Origin::Store(blobs), reference, root, platform).await.map(Arc::new)
        });
        resolved.await.cloned()
    }
}

/// The store, from the session that has it.
pub(crate) async fn find(jobs: &[Arc<Job>], name: &StoreName) -> Result<Arc<dyn Blobs>, Fault> {
    for session in crate::job::sessions(jobs, name.session.as_deref()).await {
        let found = match name.cache {
            true => session.cache(&name.store).await?.map(|cache| cache as Arc<dyn Blobs>),
            false => session.content(&name.store).await?,
        };
        if let Some(blobs) = found {
            return Ok(blobs);
        }
    }
    if name.cache {
        return Err(Fault::user(format!("no cache `{}` was given", name.store)));
    }
    let text = format!("no OCI layout named `{}` was given", name.store);
    Err(Fault::user(text).hint(format!("share it with `--oci-layout {}=<directory>`", name.store)))
}

/// A small blob, verified.
pub(crate) async fn document(blobs: &dyn Blobs, digest: &Digest, size: Option<u64>) -> Result<Vec<u8>, Fault> {
    let Some(blob) = blobs.open(digest).await? else { return Err(missing(blobs, digest)) };
    let size = size.unwrap_or(blob.size);
    if size > image::MAX_DOCUMENT as u64 {
        let place = blobs.place();
        return Err(Fault::user(format!("{digest} of OCI layout `{place}` has {size} bytes, more than is allowed")));
    }
    let mut reader = VerifyingReader::new(blob.reader, *digest, size);
    let (read, bytes) = blocking(move || {
        let mut bytes = Vec::new();
        (reader.read_to_end(&mut bytes), bytes)
    })
    .await;
    read.map(|_| bytes)
        .map_err(|e| Fault::because(Kind::User, format!("cannot read {digest} of OCI layout `{}`", blobs.place()), e))
}

pub(crate) fn missing(blobs: &dyn Blobs, digest: &Digest) -> Fault {
    Fault::user(format!("OCI layout `{}` has no blob {digest}", blobs.place()))
}

/// What the blob of a layer is read with, from a store that the build has named.
pub(crate) async fn layer(job: &Arc<Job>, layer: &LazyLayer, name: &StoreName) -> Result<Box<dyn Read + Send>, Fault> {
    let blobs = find(std::slice::from_ref(job), name).await?;
    let blob = blobs.open(&layer.digest).await?.ok_or_else(|| missing(&*blobs, &layer.digest))?;
    let reader = VerifyingReader::new(blob.reader, layer.digest, layer.size);
    Ok(Box::new(Placed { reader, place: blobs.place() }))
}

/// Says where what cannot be read lies.
struct Placed<R> {
    reader: R,
    place: String,
}

impl<R: Read> Read for Placed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buf);
        read.map_err(|e| match e.kind() {
            io::ErrorKind::Interrupted => e,
            kind => io::Error::new(kind, format!("OCI layout `{}`: {e}", self.place)),
        })
    }
}

/// The media type of a manifest or index: what it says, else what it looks like.
fn kind(bytes: &[u8]) -> Option<&'static str> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        media_type: String,
        manifests: Option<IgnoredAny>,
        layers: Option<IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(bytes).ok()?;
    let known = media_type::ACCEPT_MANIFESTS.into_iter().find(|known| *known == shape.media_type);
    match (known, shape.manifests, shape.layers) {
        (Some(known), ..) => Some(known),
        (None, Some(_), None) => Some(media_type::OCI_INDEX),
        (None, None, Some(_)) => Some(media_type::OCI_MANIFEST),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_known_by_what_they_say_or_look_like() {
        for (text, wanted) in [
            (
                r#"{"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}"#,
                Some(media_type::DOCKER_MANIFEST),
            ),
            (r#"{"schemaVersion":2,"manifests":[]}"#, Some(media_type::OCI_INDEX)),
            (r#"{"schemaVersion":2,"config":{},"layers":[]}"#, Some(media_type::OCI_MANIFEST)),
            // What can be taken for both is neither (CVE-2021-41190).
            (r#"{"manifests":[],"layers":[]}"#, None),
            (r#"{"architecture":"amd64","config":{}}"#, None),
            ("no JSON", None),
        ] {
            assert_eq!(kind(text.as_bytes()), wanted, "{text}");
        }
    }
}
