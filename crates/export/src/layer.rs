//! The layer blobs of a snapshot: those that were pulled, those made earlier, those made now.
//!
//! tar, digest, compression, digest and store are one streaming pass. A blob is remembered beside its snapshot, by
//! variant: compression, level and, for rewritten timestamps, the epoch.
//!
//! A layer that came from elsewhere is the tar that it came as, whatever compresses it: its order and some of its attributes
//! are in no tree of ours. One of ours is made of its tree, which always gives the same tar and saves decompressing it.

use std::sync::Arc;

use base::{Digest, Fault, Kind};
use image::layer::{Entry, Time};
use image::{Compression, CompressionOptions, Descriptor, annotation, media_type};
use store::{Hold, LayerRecord, LazyLayer, SnapshotId, SnapshotInfo, Store};

use crate::{Context, ImageOptions, store_fault};

/// One layer of a result. Its blob stays, or can be brought, as long as this lives.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its blob.
    pub descriptor: Descriptor,
    /// The digest of the tar stream in it.
    pub diff_id: Digest,
    /// What made it, for people.
    pub description: String,
    /// When it was made.
    pub created: Option<jiff::Timestamp>,
    /// The snapshot that it is of. What a snapshot refers to is not removed.
    pub snapshot: Hold,
    /// Repositories that have the blob, if it was pulled and not made anew.
    pub sources: Vec<String>,
    /// Its bytes are in the content store.
    pub present: bool,
}

/// What becomes of layers whose image says that they are not to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Foreign {
    /// They stay so, and whoever pulls the image has them from the addresses that it names.
    Stays,
    /// They are layers as any other.
    PassedOn,
}

impl Layer {
    /// Whether its bytes are had elsewhere, and not pushed.
    pub(crate) fn is_elsewhere(&self) -> bool {
        media_type::is_foreign(&self.descriptor.media_type) && !self.descriptor.urls.is_empty()
    }
}

/// The topmost layer of a snapshot, whatever is below. A lazy one stays where it is.
pub async fn layer_of(context: &Context, id: SnapshotId, wanted: CompressionOptions) -> Result<Layer, Fault> {
    let wanted = CompressionOptions { threads: context.threads, ..wanted };
    layer(context, id, context.store.snapshots().lazy(&id), &wanted, None, Foreign::PassedOn).await
}

/// The same if its blob is here already: nothing is made and nothing fetched.
pub fn known_layer(context: &Context, id: SnapshotId, wanted: CompressionOptions) -> Result<Option<Layer>, Fault> {
    let snapshots = context.store.snapshots();
    let (Some(snapshot), Some(info)) = (snapshots.hold_quietly(&id), snapshots.info(&id)) else { return Ok(None) };
    let lazy = snapshots.lazy(&id).filter(|lazy| fits(&lazy.media_type, &wanted));
    let layer = match lazy {
        Some(lazy) => of_pulled(context, &snapshot, &info, &lazy, Foreign::PassedOn),
        None => match known(context, &id, &wanted, None)? {
            Some(record) => of_record(&snapshot, &info, record),
            None => return Ok(None),
        },
    };
    Ok(Some(layer).filter(|layer| layer.present))
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
    let foreign = if options.prefer_nondist_layers { Foreign::Stays } else { Foreign::PassedOn };
    let wanted = CompressionOptions { threads: context.threads, ..options.compression };
    for (index, id) in chain.into_iter().enumerate() {
        context.cancel.check().map_err(|_| Fault::cancelled())?;
        let lazy = snapshots.lazy(&id);
        on_base &= lazy.as_ref().map(|lazy| lazy.diff_id) == base_diff_ids.get(index).copied() && lazy.is_some();
        let epoch = options.epoch.filter(|_| options.rewrite_timestamp && !on_base);
        layers.push(layer(context, id, lazy, &wanted, epoch, foreign).await?);
    }
    Ok(layers)
}

async fn layer(
    context: &Context,
    id: SnapshotId,
    lazy: Option<Arc<LazyLayer>>,
    wanted: &CompressionOptions,
    epoch: Option<i64>,
    foreign: Foreign,
) -> Result<Layer, Fault> {
    let snapshots = context.store.snapshots();
    let gone = || Fault::new(Kind::Internal, format!("snapshot {id} is gone"));
    // Before anybody looks whether a blob is there.
    let snapshot = snapshots.hold_quietly(&id).ok_or_else(gone)?;
    let info = snapshots.info(&id).ok_or_else(gone)?;
    if let Some(lazy) =
        lazy.filter(|lazy| fits(&lazy.media_type, wanted) && epoch.is_none_or(|epoch| is_of(lazy, epoch)))
    {
        return Ok(of_pulled(context, &snapshot, &info, &lazy, foreign));
    }
    let mut layer = of_record(&snapshot, &info, made(context, &snapshot, wanted, epoch).await?);
    if let Some(epoch) = epoch {
        layer.descriptor = layer.descriptor.annotate(annotation::REWRITTEN_TIMESTAMP, epoch.to_string());
    }
    Ok(layer)
}

fn of_pulled(context: &Context, snapshot: &Hold, info: &SnapshotInfo, lazy: &LazyLayer, foreign: Foreign) -> Layer {
    let mut descriptor = Descriptor::new(lazy.media_type.clone(), lazy.digest, lazy.size);
    descriptor.annotations.clone_from(&lazy.annotations);
    match foreign {
        Foreign::Stays => descriptor.urls.clone_from(&lazy.urls),
        Foreign::PassedOn => descriptor.media_type = media_type::distributable(&descriptor.media_type),
    }
    let present = context.store.content().has(&lazy.digest);
    Layer { sources: lazy.sources.clone(), present, ..shown(snapshot, info, descriptor, lazy.diff_id) }
}

fn of_record(snapshot: &Hold, info: &SnapshotInfo, record: LayerRecord) -> Layer {
    let mut descriptor = Descriptor::new(record.media_type, record.digest, record.size);
    descriptor.annotations = record.annotations;
    shown(snapshot, info, descriptor, record.diff_id)
}

/// A layer whose blob is here.
fn shown(snapshot: &Hold, info: &SnapshotInfo, descriptor: Descriptor, diff_id: Digest) -> Layer {
    Layer {
        descriptor,
        diff_id,
        description: info.description.clone(),
        created: jiff::Timestamp::try_from(info.created_at).ok(),
        snapshot: snapshot.clone(),
        sources: Vec::new(),
        present: true,
    }
}

/// Whether a layer that came from elsewhere will do as it is.
fn fits(media_type: &str, wanted: &CompressionOptions) -> bool {
    !wanted.needs_conversion(media_type::layer_compression(media_type))
}

/// Whether the times in a layer that was pulled are no later already.
fn is_of(lazy: &LazyLayer, epoch: i64) -> bool {
    lazy.annotations.get(annotation::REWRITTEN_TIMESTAMP).is_some_and(|known| *known == epoch.to_string())
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

/// A blob made now or earlier: of the blob that the layer came as, else of the snapshot.
async fn made(
    context: &Context,
    snapshot: &Hold,
    wanted: &CompressionOptions,
    epoch: Option<i64>,
) -> Result<LayerRecord, Fault> {
    let id = snapshot.id();
    if let Some(record) = known(context, &id, wanted, epoch)? {
        return Ok(record);
    }
    let variant = variant(wanted, epoch);
    let origin = origin(context, &id, epoch)?;
    let needs_below =
        || context.store.snapshots().needs_below(&id).map_err(|e| store_fault("cannot read a snapshot", e));
    match &origin {
        Some(_) => context.lazy.fetch_blob(id).await?,
        None if needs_below()? => context.lazy.fill(snapshot).await?,
        None => {}
    }
    // The thread may outlive whoever waits for it.
    let (store, snapshot, wanted, cancel) = (context.store.clone(), snapshot.clone(), *wanted, context.cancel.clone());
    context
        .blocking(format!("making a layer of snapshot {id}"), move || match origin {
            Some(origin) => {
                let converted = store.snapshots().convert_blob(&snapshot.id(), &variant, &wanted, &origin, &cancel);
                converted.map_err(|e| store_fault(&format!("cannot recompress layer {}", origin.digest), e))
            }
            None => make(&store, &snapshot, &variant, &wanted, epoch, &cancel),
        })
        .await
}

/// The blob that the layer came as. None where we made the layer, or where another one is wanted.
fn origin(context: &Context, id: &SnapshotId, epoch: Option<i64>) -> Result<Option<LayerRecord>, Fault> {
    match epoch {
        Some(_) => Ok(None),
        None => {
            context.store.snapshots().origin(id).map_err(|e| store_fault("cannot read the layers of a snapshot", e))
        }
    }
}

/// A blob of the layer that is there and will do.
fn known(
    context: &Context,
    id: &SnapshotId,
    wanted: &CompressionOptions,
    epoch: Option<i64>,
) -> Result<Option<LayerRecord>, Fault> {
    let snapshots = context.store.snapshots();
    let failed = |e| store_fault("cannot read the layers of a snapshot", e);
    let origin = origin(context, id, epoch)?;
    let mut known = snapshots.layer(id, &variant(wanted, epoch)).map_err(failed)?;
    // Once blobs were made of the trees of layers from elsewhere: other layers.
    known = known.filter(|known| origin.as_ref().is_none_or(|origin| origin.diff_id == known.diff_id));
    if known.is_none() {
        known = match origin {
            Some(origin) => Some(origin).filter(|origin| fits(&origin.media_type, wanted)),
            // Whatever was made already will do, like a layer that was pulled.
            None if !wanted.force && epoch.is_none() => {
                let all = snapshots.layers(id).map_err(failed)?;
                all.into_iter().find(|(variant, _)| !variant.contains('@')).map(|(_, record)| record)
            }
            None => None,
        };
    }
    Ok(known.filter(|record| context.store.content().has(&record.digest)))
}

fn make(
    store: &Store,
    snapshot: &Hold,
    variant: &str,
    wanted: &CompressionOptions,
    epoch: Option<i64>,
    cancel: &base::Cancel,
) -> Result<LayerRecord, Fault> {
    let (snapshots, id) = (store.snapshots(), snapshot.id());
    let made = match EntryMap::of(epoch) {
        EntryMap::Keep => snapshots.make_blob(&id, variant, wanted, cancel),
        map => snapshots.make_blob_with(&id, variant, wanted, cancel, |entry| map.apply(entry)),
    };
    made.map_err(|e| store_fault("cannot write a layer", e))
}

/// What becomes of an entry on its way out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum EntryMap {
    Keep,
    /// No time is later: seconds since 1970.
    Clamp(i64),
    /// Every time is this one.
    Set(i64),
}

impl EntryMap {
    pub(crate) fn of(epoch: Option<i64>) -> EntryMap {
        epoch.map_or(EntryMap::Keep, EntryMap::Clamp)
    }

    pub(crate) fn apply(self, entry: &mut Entry) {
        match self {
            EntryMap::Clamp(epoch) if entry.mtime.secs >= epoch => entry.mtime = Time { secs: epoch, nanos: 0 },
            EntryMap::Set(epoch) => entry.mtime = Time { secs: epoch, nanos: 0 },
            EntryMap::Keep | EntryMap::Clamp(_) => {}
        }
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
        for (secs, nanos, wanted) in [(5, 7, (5, 7)), (10, 7, (10, 0)), (11, 0, (10, 0))] {
            let mut entry = Entry::new(*b"f", image::layer::EntryKind::Directory, 0o755);
            entry.mtime = Time { secs, nanos };
            EntryMap::Clamp(10).apply(&mut entry);
            assert_eq!((entry.mtime.secs, entry.mtime.nanos), wanted);
            EntryMap::Set(20).apply(&mut entry);
            assert_eq!((entry.mtime.secs, entry.mtime.nanos), (20, 0));
        }
    }
}
