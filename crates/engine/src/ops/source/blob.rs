//! `docker-image+blob://` and `oci-layout+blob://`: one blob of a registry or of a client's store, as a file.
//!
//! Its digest says which one, so that a cached one is never asked for again.

use std::io::Read;

use base::{Digest, Fault, Kind};
use image::Descriptor;
use image::layer::compression::VerifyingReader;
use image::reference::Reference;
use llb::pb;
use registry::{BlobStart, Stopper};

use super::super::OpContext;
use super::identifier::{reference, unknown};
use super::one_file::{OneFile, Trouble, number, safe_name};
use crate::core::blocking;
use crate::images::layer_fault;
use crate::layout::{self, StoreName};
use crate::tree::Tree;

/// A blob, and the file that it becomes.
#[derive(Clone, Debug)]
pub(crate) struct BlobSource {
    reference: Reference,
    digest: Digest,
    /// The client's store that has it; none: a registry.
    store: Option<StoreName>,
    /// Without a name it is called by its digest.
    file: OneFile,
}

impl BlobSource {
    /// Reads what follows `docker-image+blob://`, or `oci-layout+blob://` where it is `of_client`.
    pub(super) fn read(name: &str, op: &pb::SourceOp, of_client: bool) -> Result<BlobSource, Fault> {
        let reference = reference(name)?;
        let digest = reference.digest();
        let digest = digest.ok_or_else(|| Fault::user(format!("blob `{name}` has no digest")))?;
        let (mut file, mut session, mut store) = (OneFile::default(), None, String::new());
        for (key, value) in &op.attrs {
            match key.as_str() {
                "http.filename" => file.name = safe_name(value),
                "http.perm" => file.mode = number(key, value)? & 0o7777,
                "http.uid" => file.uid = number(key, value)?,
                "http.gid" => file.gid = number(key, value)?,
                // Only says how `du` shows it.
                "image.recordtype" => {}
                "oci.session" if of_client => session = Some(value.clone()).filter(|session| !session.is_empty()),
                "oci.store" if of_client => store.clone_from(value),
                _ => return Err(unknown(key)),
            }
        }
        if of_client && store.is_empty() {
            return Err(Fault::user(format!("blob `{name}` of an OCI layout needs the attribute `oci.store`")));
        }
        let store = of_client.then_some(StoreName { session, store, cache: false });
        Ok(BlobSource { reference, digest, store, file })
    }

    /// What it states for its key.
    pub(super) fn key(&self) -> Digest {
        let OneFile { name, mode, uid, gid, .. } = &self.file;
        llb::key::blob(self.digest, name, *mode, *uid, *gid)
    }
}

pub(super) async fn run(ctx: &OpContext, source: &BlobSource) -> Result<Tree, Fault> {
    let opened = tokio::select! {
        opened = open(ctx, source) => opened?,
        () = ctx.cancel.cancelled() => return Err(Fault::cancelled()),
    };
    let BlobSource { reference, digest, mut file, .. } = source.clone();
    if file.name.is_empty() {
        file.name = digest.hex();
    }
    let active = ctx.core.prepare(None, &format!("blob {reference}")).await?;
    let (dir, cancel) = (active.dir().to_owned(), ctx.blocking_cancel());
    let mut task = ctx.tasks.start(format!("reading blob {digest}"), opened.size);
    let (stop, store) = (opened.stop, ctx.core.store.clone());
    let mut written = std::pin::pin!(blocking(move || {
        let mut content = opened.content;
        match file.write(&store, &dir, &mut *content, &mut task, &cancel) {
            Ok(_) => Ok(()),
            Err(Trouble::Other(fault)) => Err(fault),
            Err(Trouble::Read(e)) => Err(Fault::because(Kind::Remote, format!("cannot read blob `{reference}`"), e)),
        }
    }));
    tokio::select! {
        written = &mut written => written?,
        () = ctx.cancel.cancelled() => {
            // A server that sends nothing more must not be waited for.
            if let Some(stop) = stop {
                stop.stop();
            }
            let _ = written.await;
            return Err(Fault::cancelled());
        }
    }
    ctx.core.commit(active).await
}

/// A blob whose bytes are verified as they are read.
struct Opened {
    size: u64,
    content: Box<dyn Read + Send>,
    /// Of a download: what ends it.
    stop: Option<Stopper>,
}

async fn open(ctx: &OpContext, source: &BlobSource) -> Result<Opened, Fault> {
    let digest = source.digest;
    if let Some(store) = &source.store {
        let blobs = layout::find(&ctx.jobs, store).await?;
        let blob = blobs.open(&digest).await?.ok_or_else(|| layout::missing(&*blobs, &digest))?;
        let content = Box::new(VerifyingReader::new(blob.reader, digest, blob.size));
        return Ok(Opened { size: blob.size, content, stop: None });
    }
    let repository = ctx.core.images.repository(ctx.job(), &source.reference)?;
    let size = repository.blob_size(&digest).await.map_err(layer_fault)?;
    let descriptor = Descriptor::new("", digest, size);
    let blob = repository.fetch_blob(&descriptor, BlobStart::Beginning).await.map_err(layer_fault)?;
    let content = blob.into_blocking();
    let stop = Some(content.stopper());
    Ok(Opened { size, content: Box::new(content), stop })
}
