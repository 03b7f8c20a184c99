//! Between trees and tars: a layer's blob into a snapshot, a snapshot's changes into a layer's blob. One pass each.

use std::fs::File;
use std::io::{self, Read, Write};

use base::{Cancel, Digest};
use files::untar;
use image::Descriptor;
use image::layer::compression::{BlobTar, Compression, CompressionOptions, Compressor, Tar, Unpacker};
use image::layer::{Entry, EntryKind, Time, tar};

use crate::{Change, ChangeKind, Error, FileKind, LayerRecord, Result, SnapshotId, Snapshots};

#[cfg(test)]
mod tests;

/// A tar stream as [`files::untar`] takes it.
pub struct TarSource<R: Read>(pub tar::Reader<R>);

impl<R: Read> untar::Source for TarSource<R> {
    fn next(&mut self) -> io::Result<Option<untar::Entry>> {
        Ok(self.0.next()?.map(entry_of))
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

fn entry_of(header: tar::Header) -> untar::Entry {
    let (major, minor) = header.device;
    let kind = match header.flag {
        tar::TypeFlag::File => untar::EntryKind::Regular { size: header.size },
        tar::TypeFlag::HardLink => untar::EntryKind::Hardlink(header.link),
        tar::TypeFlag::Symlink => untar::EntryKind::Symlink(header.link),
        tar::TypeFlag::CharDevice => untar::EntryKind::CharDevice(major, minor),
        tar::TypeFlag::BlockDevice => untar::EntryKind::BlockDevice(major, minor),
        tar::TypeFlag::Directory => untar::EntryKind::Directory,
        tar::TypeFlag::Fifo => untar::EntryKind::Fifo,
    };
    untar::Entry {
        path: header.path,
        kind,
        mode: header.mode,
        uid: header.uid,
        gid: header.gid,
        mtime: (header.mtime.secs, header.mtime.nanos),
        atime: header.atime.map(|time| (time.secs, time.nanos)),
        xattrs: header.xattrs.into_iter().collect(),
    }
}

impl Snapshots {
    /// Unpacks the blob of a lazy layer into its snapshot, verifying digest, size and diff id on the way.
    ///
    /// Download, decompression, digests and writing overlap. `limits` bound what a hostile layer may ask for.
    pub fn unpack(
        &self,
        id: &SnapshotId,
        blob: impl Read + Send + 'static,
        limits: &untar::Limits,
        cancel: &Cancel,
    ) -> Result<()> {
        let layer = self.lazy(id).ok_or(Error::Missing(*id))?;
        self.fill(id, |target| {
            let mut target = crate::FillTarget { dir: target.dir.clone(), options: target.options.clone() };
            target.options.limits = *limits;
            target.options.cancel = cancel.clone();
            let descriptor = Descriptor::new(&layer.media_type, layer.digest, layer.size);
            // Headers and padding come on top of the files' data.
            let overhead = limits.entries.saturating_mul(4096);
            let unpacker = Unpacker::start(blob, &descriptor, limits.bytes.saturating_add(overhead))?;
            // What is passed over behind the last entry may be the most of it.
            let mut source = TarSource(tar::Reader::new(cancel.reader(unpacker)));
            let filled = target.unpack(&mut source)?;
            let unpacked = source.0.drain()?.into_inner().finish()?;
            if unpacked.diff_id != layer.diff_id {
                return Err(Error::DiffId { expected: layer.diff_id, actual: unpacked.diff_id });
            }
            Ok(filled)
        })
    }

    /// Writes the snapshot's changes as a layer's tar; its bytes are those of upstream's for the same changes.
    pub fn write_tar<W: Write>(&self, id: &SnapshotId, to: W, cancel: &Cancel) -> Result<W> {
        self.write_tar_with(id, to, cancel, |_| {})
    }

    /// The same, each entry changed by `map` before it is written.
    pub fn write_tar_with<W: Write>(
        &self,
        id: &SnapshotId,
        to: W,
        cancel: &Cancel,
        map: impl Fn(&mut Entry),
    ) -> Result<W> {
        if let Some(kept) = self.deletions(id)? {
            return self.write_deletions(&kept, to, cancel, map);
        }
        let mut writer = tar::Writer::new(to);
        self.changes(id, |change| {
            cancel.check()?;
            append(&mut writer, change, cancel, &map)
        })?;
        Ok(writer.finish()?)
    }

    /// Adds the whole tree of a snapshot (none: nothing) to a tar, but for what is not `wanted`, each entry changed by `map`
    /// before it is written.
    pub fn append_tree<W: Write>(
        &self,
        id: Option<&SnapshotId>,
        writer: &mut tar::Writer<W>,
        cancel: &Cancel,
        wanted: impl Fn(&Change) -> bool,
        map: impl Fn(&mut Entry),
    ) -> Result<()> {
        self.changes_between(None, id, |change| {
            cancel.check()?;
            if wanted(change) { append(writer, change, cancel, &map) } else { Ok(()) }
        })
    }

    /// The snapshot's layer blob in this compression; made, stored and recorded if it is not there.
    ///
    /// `variant` names the compression and whatever else decides the bytes (kind, level). A tar that was written before is not
    /// digested again.
    pub fn make_blob(
        &self,
        id: &SnapshotId,
        variant: &str,
        options: &CompressionOptions,
        cancel: &Cancel,
    ) -> Result<LayerRecord> {
        let snapshots = &self.0.inner.snapshots;
        let known = snapshots.table().tars.get(id).copied();
        let (record, tar) = match self.make(id, variant, options, cancel, |_| {}, known) {
            // What is there is digested after all.
            Err(error) if known.is_some() && error.is_other_tar() => {
                tracing::warn!(snapshot = %id, "a layer is not what it was before");
                self.make(id, variant, options, cancel, |_| {}, None)?
            }
            made => made?,
        };
        if let Some(tar) = tar {
            snapshots.table().note_tar(*id, tar);
        }
        Ok(record)
    }

    /// The same, each entry changed by `map` before it is written; `variant` says how.
    pub fn make_blob_with(
        &self,
        id: &SnapshotId,
        variant: &str,
        options: &CompressionOptions,
        cancel: &Cancel,
        map: impl Fn(&mut Entry),
    ) -> Result<LayerRecord> {
        self.make(id, variant, options, cancel, map, None).map(|(record, _)| record)
    }

    /// The snapshot's layer blob in this compression, made of `from`, a blob of the layer that is here: the tar stays what it
    /// is, also in what no tree tells, such as its order and attributes that we may not set.
    pub fn convert_blob(
        &self,
        id: &SnapshotId,
        variant: &str,
        options: &CompressionOptions,
        from: &LayerRecord,
        cancel: &Cancel,
    ) -> Result<LayerRecord> {
        if self.layer(id, variant)?.is_some_and(|known| known.diff_id != from.diff_id) {
            // Made of the tree once.
            self.drop_layer(id, variant)?;
        }
        let content = self.0.content();
        let path = content.path(&from.digest);
        self.make_layer(id, variant, || {
            let blob = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
            let descriptor = Descriptor::new(&from.media_type, from.digest, from.size);
            let mut tar = BlobTar::start(cancel.reader(blob), &descriptor, untar::Limits::default().bytes)?;
            let mut compressor = Compressor::new(content.trusted_writer()?, options)?;
            io::copy(&mut tar, &mut compressor).map_err(image::Error::from)?;
            self.keep(id, compressor, options.kind, Some(from.diff_id)).map(|(record, _)| record)
        })
    }

    /// What is on record, and what was written if it was not.
    fn make(
        &self,
        id: &SnapshotId,
        variant: &str,
        options: &CompressionOptions,
        cancel: &Cancel,
        map: impl Fn(&mut Entry),
        known: Option<Tar>,
    ) -> Result<(LayerRecord, Option<Tar>)> {
        let content = self.0.content();
        let mut written = None;
        // All that is written makes its own room: no layer is compressed twice for want of it.
        let make = || {
            let compressor = Compressor::of(known, content.trusted_writer()?, options)?;
            let compressor = self.write_tar_with(id, compressor, cancel, map)?;
            let (record, tar) = self.keep(id, compressor, options.kind, None)?;
            written = Some(tar);
            Ok::<_, Error>(record)
        };
        let record = self.make_layer(id, variant, make)?;
        Ok((record, written))
    }

    /// Ends a blob of the snapshot and keeps it, if it is what was expected.
    fn keep(
        &self,
        id: &SnapshotId,
        compressor: Compressor<crate::Writer>,
        kind: Compression,
        expected: Option<Digest>,
    ) -> Result<(LayerRecord, Tar)> {
        let content = self.0.content();
        let (compressed, writer) = compressor.finish()?;
        if let Some(expected) = expected.filter(|expected| *expected != compressed.diff_id) {
            return Err(Error::DiffId { expected, actual: compressed.diff_id });
        }
        // Held until the record refers to it.
        let _hold = content.hold(&compressed.digest);
        writer.finish_trusted(compressed.digest)?;
        content.attach(&compressed.digest, id)?;
        let record = LayerRecord {
            digest: compressed.digest,
            size: compressed.size,
            diff_id: compressed.diff_id,
            media_type: media_type(kind).to_owned(),
            annotations: Default::default(),
        };
        Ok((record, compressed.tar()))
    }
}

/// OCI's media types of layers.
fn media_type(kind: Compression) -> &'static str {
    match kind {
        Compression::Uncompressed => "application/vnd.oci.image.layer.v1.tar",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    }
}

/// Adds one change to a layer's tar.
pub(crate) fn append<W: Write>(
    writer: &mut tar::Writer<W>,
    change: &Change,
    cancel: &Cancel,
    map: impl Fn(&mut Entry),
) -> Result<()> {
    let Some(mut entry) = layer_entry(change) else { return Ok(()) };
    map(&mut entry);
    let mut header = writer.header(&entry);
    if let Some(FileKind::CharDevice(major, minor) | FileKind::BlockDevice(major, minor)) =
        change.metadata.as_ref().map(|m| &m.kind)
    {
        // Also on a hard link to a device, since upstream's layers have them there.
        header.device = (*major, *minor);
    }
    match entry.kind {
        EntryKind::File { size } if size > 0 => {
            let file = change.open().map_err(|e| Error::io("open", display(&change.path), e))?;
            writer.append_header(&header, cancel.reader(file))?;
        }
        _ => writer.append_header(&header, io::empty())?,
    }
    Ok(())
}

/// The tar entry of a change.
pub fn layer_entry(change: &Change) -> Option<Entry> {
    if change.kind == ChangeKind::Delete {
        return Some(Entry::whiteout(&change.path));
    }
    let metadata = change.metadata.as_ref()?;
    let kind = match (&change.hardlink, &metadata.kind) {
        (Some(target), _) => EntryKind::HardLink { target: target.clone() },
        (None, FileKind::Regular) => EntryKind::File { size: metadata.size },
        (None, FileKind::Directory) => EntryKind::Directory,
        (None, FileKind::Symlink(target)) => EntryKind::Symlink { target: target.clone() },
        (None, FileKind::CharDevice(major, minor)) => EntryKind::CharDevice { major: *major, minor: *minor },
        (None, FileKind::BlockDevice(major, minor)) => EntryKind::BlockDevice { major: *major, minor: *minor },
        (None, FileKind::Fifo) => EntryKind::Fifo,
    };
    Some(Entry {
        path: change.path.clone(),
        kind,
        mode: metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
        mtime: Time { secs: metadata.mtime.0, nanos: metadata.mtime.1 },
        xattrs: metadata.xattrs.iter().cloned().collect(),
    })
}

fn display(path: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::path::Path::new("/").join(std::ffi::OsStr::from_bytes(path))
}
