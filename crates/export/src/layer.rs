//! The layer blobs of a snapshot: those that were pulled, those made earlier, those made now.
//!
//! tar, digest, compression, digest and store are one streaming pass. A blob is remembered beside its snapshot, by
//! variant: compression, level and, for rewritten timestamps, the epoch.

use std::io::{self, Write};
use std::sync::Arc;

use base::{Digest, Fault, Kind};
use image::layer::compression::Compressor;
use image::layer::tar;
use image::layer::{Entry, EntryKind, Time};
use image::{Compression, CompressionOptions, Descriptor, Flavor, media_type};
use store::{Change, ChangeKind, FileKind, LayerRecord, LazyLayer, SnapshotId, Store};

use crate::{Context, ImageOptions, blocking, image_fault, store_fault};

/// One layer of a result.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
    pub(crate) description: String,
    pub(crate) created: Option<jiff::Timestamp>,
    pub(crate) snapshot: SnapshotId,
    /// Repositories that have the blob, if it was pulled and not made anew.
    pub(crate) sources: Vec<String>,
    /// Its bytes are in the content store.
    pub(crate) present: bool,
}

/// The layers of a snapshot, base first. Lazy ones stay where they are.
pub(crate) async fn layers(
    context: &Context,
    top: &store::Hold,
    options: &ImageOptions,
    base_diff_ids: &[Digest],
) -> Result<Vec<Layer>, Fault> {
    let snapshots = context.store.snapshots();
    let mut chain = snapshots.chain(&top.id()).map_err(|e| store_fault("cannot read a snapshot", e))?;
    chain.reverse();
    let mut layers = Vec::with_capacity(chain.len());
    let mut on_base = true;
    for (index, id) in chain.into_iter().enumerate() {
        context.cancel.check().map_err(|_| Fault::cancelled())?;
        let lazy = snapshots.lazy(&id);
        on_base &= lazy.as_ref().map(|lazy| lazy.diff_id) == base_diff_ids.get(index).copied() && lazy.is_some();
        let epoch = options.epoch.filter(|_| options.rewrite_timestamp && !on_base);
        layers.push(layer(context, id, lazy, options, epoch).await?);
    }
    Ok(layers)
}

async fn layer(
    context: &Context,
    id: SnapshotId,
    lazy: Option<Arc<LazyLayer>>,
    options: &ImageOptions,
    epoch: Option<i64>,
) -> Result<Layer, Fault> {
    let snapshots = context.store.snapshots();
    let info = snapshots.info(&id).ok_or_else(|| Fault::new(Kind::Internal, format!("snapshot {id} is gone")))?;
    let shown = |descriptor: Descriptor, diff_id, sources, present| Layer {
        descriptor,
        diff_id,
        description: info.description.clone(),
        created: jiff::Timestamp::try_from(info.created_at).ok(),
        snapshot: id,
        sources,
        present,
    };
    let wanted = compression(options, context.threads);
    if let Some(lazy) = lazy.filter(|lazy| epoch.is_none() && fits(lazy, &wanted)) {
        let mut descriptor = Descriptor::new(lazy.media_type.clone(), lazy.digest, lazy.size);
        descriptor.annotations.clone_from(&lazy.annotations);
        let present = context.store.content().has(&lazy.digest);
        return Ok(shown(descriptor, lazy.diff_id, lazy.sources.clone(), present));
    }
    let record = made(context, id, &wanted, epoch).await?;
    let mut descriptor = Descriptor::new(record.media_type.clone(), record.digest, record.size);
    descriptor.annotations.clone_from(&record.annotations);
    Ok(shown(descriptor, record.diff_id, Vec::new(), true))
}

fn compression(options: &ImageOptions, threads: usize) -> CompressionOptions {
    let wanted = options.compression;
    CompressionOptions { kind: wanted.kind, level: wanted.level, force: wanted.force, threads }
}

/// Whether a layer that was pulled will do as it is.
fn fits(lazy: &LazyLayer, wanted: &CompressionOptions) -> bool {
    !wanted.needs_conversion(media_type::layer_compression(&lazy.media_type))
}

fn variant(wanted: &CompressionOptions, epoch: Option<i64>) -> String {
    let kind = match wanted.kind {
        Compression::Uncompressed => "uncompressed",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    };
    let level = wanted.level.map(|level| format!("-{level}")).unwrap_or_default();
    let epoch = epoch.map(|epoch| format!("@{epoch}")).unwrap_or_default();
    format!("{kind}{level}{epoch}")
}

/// A blob made from the snapshot, now or earlier.
async fn made(
    context: &Context,
    id: SnapshotId,
    wanted: &CompressionOptions,
    epoch: Option<i64>,
) -> Result<LayerRecord, Fault> {
    let snapshots = context.store.snapshots();
    let variant = variant(wanted, epoch);
    let content = context.store.content();
    let failed = |e| store_fault("cannot read the layers of a snapshot", e);
    let mut known = snapshots.layer(&id, &variant).map_err(failed)?;
    if known.is_none() && !wanted.force && epoch.is_none() {
        // Whatever was made already will do, like a layer that was pulled.
        let all = snapshots.layers(&id).map_err(failed)?;
        known = all.into_iter().find(|(variant, _)| !variant.contains('@')).map(|(_, record)| record);
    }
    if let Some(record) = known.filter(|record| content.has(&record.digest)) {
        return Ok(record);
    }
    let hold = snapshots.hold_quietly(&id);
    let hold = hold.ok_or_else(|| Fault::new(Kind::Internal, format!("snapshot {id} is gone")))?;
    context.lazy.fill(&hold).await?;
    let (store, wanted, cancel) = (context.store.clone(), *wanted, context.cancel.clone());
    blocking(move || make(&store, id, &variant, &wanted, epoch, &cancel)).await
}

fn make(
    store: &Store,
    id: SnapshotId,
    variant: &str,
    wanted: &CompressionOptions,
    epoch: Option<i64>,
    cancel: &base::Cancel,
) -> Result<LayerRecord, Fault> {
    let writer = store.content().writer(None, None).map_err(|e| store_fault("cannot write a layer", e))?;
    let compressor = Compressor::new(Sink(writer), wanted).map_err(|e| image_fault("cannot write a layer", e))?;
    let mut tar = tar::Writer::new(compressor);
    write_changes(store, id, epoch, &mut tar, cancel)?;
    let compressor = tar.finish().map_err(|e| image_fault("cannot write a layer", e))?;
    let (compressed, sink) = compressor.finish().map_err(|e| image_fault("cannot write a layer", e))?;
    let blob = sink.0.finish().map_err(|e| store_fault("cannot write a layer", e))?;
    let record = LayerRecord {
        digest: blob.digest,
        size: blob.size,
        diff_id: compressed.diff_id,
        media_type: Flavor::Oci.layer(wanted.kind).to_owned(),
        annotations: Default::default(),
    };
    let record = store.snapshots().set_layer(&id, variant, record);
    let record = record.map_err(|e| store_fault("cannot remember a layer", e))?;
    store.content().attach(&record.digest, &id).map_err(|e| store_fault("cannot remember a layer", e))?;
    Ok(record)
}

/// A content writer as `Write`.
struct Sink(store::Writer);

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.append(buf).map(|()| buf.len()).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Failure {
    Store(store::Error),
    Image(image::Error),
    Io(Vec<u8>, io::Error),
    Cancelled,
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Failure::Store(error)
    }
}

impl Failure {
    fn into_fault(self) -> Fault {
        match self {
            Failure::Store(error) => store_fault("cannot read a snapshot", error),
            Failure::Image(error) => image_fault("cannot write a layer", error),
            Failure::Io(path, error) => {
                let path = String::from_utf8_lossy(&path).into_owned();
                Fault::because(Kind::Environment, format!("cannot read `{path}` of a snapshot"), error)
            }
            Failure::Cancelled => Fault::cancelled(),
        }
    }
}

fn write_changes<W: Write>(
    store: &Store,
    id: SnapshotId,
    epoch: Option<i64>,
    tar: &mut tar::Writer<W>,
    cancel: &base::Cancel,
) -> Result<(), Fault> {
    let visit = |change: &Change| append(change, epoch, tar, cancel);
    store.snapshots().changes(&id, visit).map_err(Failure::into_fault)
}

/// Writes everything in a snapshot, as a tree of its own.
pub(crate) fn write_tree<W: Write>(
    store: &Store,
    id: Option<SnapshotId>,
    prefix: &[u8],
    epoch: Option<i64>,
    tar: &mut tar::Writer<W>,
    cancel: &base::Cancel,
) -> Result<(), Fault> {
    let visit = |change: &Change| {
        let mut change = change.clone();
        change.path = [prefix, &change.path].concat();
        change.hardlink = change.hardlink.map(|target| [prefix, &target].concat());
        append(&change, epoch, tar, cancel)
    };
    store.snapshots().changes_between(None, id.as_ref(), visit).map_err(Failure::into_fault)
}

fn append<W: Write>(
    change: &Change,
    epoch: Option<i64>,
    tar: &mut tar::Writer<W>,
    cancel: &base::Cancel,
) -> Result<(), Failure> {
    cancel.check().map_err(|_| Failure::Cancelled)?;
    let entry = entry(change, epoch);
    let appended = match &entry.kind {
        EntryKind::File { size } if *size > 0 => {
            let file = change.open().map_err(|e| Failure::Io(change.path.clone(), e))?;
            tar.append(&entry, file)
        }
        _ => tar.append(&entry, io::empty()),
    };
    appended.map_err(Failure::Image)
}

fn entry(change: &Change, epoch: Option<i64>) -> Entry {
    let Some(metadata) = change.metadata.as_ref().filter(|_| change.kind != ChangeKind::Delete) else {
        let mut entry = Entry::whiteout(&change.path);
        clamp(&mut entry.mtime, epoch);
        return entry;
    };
    let kind = match (&change.hardlink, &metadata.kind) {
        (Some(target), _) => EntryKind::HardLink { target: target.clone() },
        (None, FileKind::Regular) => EntryKind::File { size: metadata.size },
        (None, FileKind::Directory) => EntryKind::Directory,
        (None, FileKind::Symlink(target)) => EntryKind::Symlink { target: target.clone() },
        (None, FileKind::CharDevice(major, minor)) => EntryKind::CharDevice { major: *major, minor: *minor },
        (None, FileKind::BlockDevice(major, minor)) => EntryKind::BlockDevice { major: *major, minor: *minor },
        (None, FileKind::Fifo) => EntryKind::Fifo,
    };
    let mut entry = Entry::new(change.path.clone(), kind, metadata.mode);
    (entry.uid, entry.gid) = (metadata.uid, metadata.gid);
    entry.mtime = Time { seconds: metadata.mtime.0, nanos: metadata.mtime.1 };
    clamp(&mut entry.mtime, epoch);
    // Layers hold capabilities and nothing else, as upstream's do.
    let kept = metadata.xattrs.iter().filter(|(name, _)| name == b"security.capability");
    entry.xattrs = kept.cloned().collect();
    entry
}

fn clamp(time: &mut Time, epoch: Option<i64>) {
    if let Some(epoch) = epoch.filter(|epoch| time.seconds >= *epoch) {
        *time = Time { seconds: epoch, nanos: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_tell_blobs_apart() {
        let gzip = CompressionOptions::new(Compression::Gzip, 2);
        let leveled = CompressionOptions { level: Some(9), ..gzip };
        assert_eq!(variant(&gzip, None), "gzip");
        assert_eq!(variant(&leveled, Some(0)), "gzip-9@0");
        let one_thread = CompressionOptions { threads: 1, ..gzip };
        assert_eq!(variant(&one_thread, None), variant(&gzip, None), "threads change no byte");
    }

    #[test]
    fn times_are_clamped_down_only() {
        for (seconds, nanos, wanted) in [(5, 7, (5, 7)), (10, 7, (10, 0)), (11, 0, (10, 0))] {
            let mut time = Time { seconds, nanos };
            clamp(&mut time, Some(10));
            assert_eq!((time.seconds, time.nanos), wanted);
        }
    }
}
