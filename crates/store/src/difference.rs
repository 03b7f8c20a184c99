//! What leads from one tree to another, as a snapshot of its own.
//!
//! A snapshot shows a tree, and that something is deleted which it does not stand on shows in no tree. So where a
//! difference deletes, its tar is kept beside the tree ([`DELETES`]): that is its layer, in images and wherever it is stacked
//! on something. Where it deletes nothing, the tree says it all.

use std::fs::File;
use std::io::{self, Write};

use base::Cancel;
use files::untar::{self, Limits, Whiteouts};
use image::Descriptor;
use image::layer::compression::{Compression, CompressionOptions, Compressor, Unpacker};
use image::layer::{Entry, tar};

use crate::diff::Kept;
use crate::layer_io::{TarSource, append};
use crate::snapshot::PULLED;
use crate::{
    CommitOptions, Driver, Error, FillTarget, Hold, LayerRecord, LazyLayer, PrepareOptions, Result, SnapshotId,
    Snapshots,
};

#[cfg(test)]
mod tests;

/// The variant of a layer that is kept for what it deletes. No variant that images are made of has an `@` at its end.
const DELETES: &str = "deletes@";

/// The namespace of layers that were put onto another parent, by their ids: their tars stay what they were, whatever the
/// parent has. With whole trees the value names the paths of the tar, each ended by a NUL: nothing else tells them. With overlay
/// it is [`ALONE`] where the tar deletes nothing.
const RESTACKED: &str = "restacked";
const ALONE: &[u8] = b"alone";

/// What becomes of deletions of what is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deletions {
    /// Nothing: they have done what they can.
    Apply,
    /// They are kept for whoever stacks the layer on something else.
    Keep,
}

/// A tar, and what it has had.
struct Watched<R: io::Read> {
    tar: TarSource<R>,
    seen: Seen,
}

/// What a tar has.
#[derive(Default)]
struct Seen {
    /// Whiteouts.
    deletes: bool,
    /// Names of whiteouts stand for themselves.
    literal: bool,
    /// Paths, each ended by a NUL; none unless they are wanted.
    paths: Option<Vec<u8>>,
}

impl<R: io::Read> untar::Source for Watched<R> {
    fn next(&mut self) -> io::Result<Option<untar::Entry>> {
        let entry = self.tar.next()?;
        let name = |entry: &untar::Entry| entry.path.rsplit(|byte| *byte == b'/').next().map(<[u8]>::to_vec);
        let name = entry.as_ref().and_then(name).unwrap_or_default();
        self.seen.deletes |= !self.seen.literal && name.starts_with(b".wh.");
        if let (Some(paths), Some(entry)) = (&mut self.seen.paths, &entry) {
            paths.extend_from_slice(entry.path.strip_suffix(b"/").unwrap_or(&entry.path));
            paths.push(0);
        }
        Ok(entry)
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.tar.read(buf)
    }
}

impl Snapshots {
    /// Puts what one snapshot changes on its parent onto another parent: a new snapshot whose layer blobs are those
    /// of `layer`. `layer` must be filled, with all below it. So must `parent`, unless layers are
    /// [`stackable`](Snapshots::is_stackable) on what is not: the new snapshot can be read when all below it is filled.
    ///
    /// The changes go through a tar, which costs a copy of the data and needs to know nothing of the driver.
    pub fn restack(&self, parent: &SnapshotId, layer: &SnapshotId, cancel: &Cancel) -> Result<Hold> {
        self.restack_layer(Some(parent), layer, Deletions::Apply, cancel)
    }

    /// Whether layers can be put onto a parent before it is filled: where each has a directory of its own.
    pub fn is_stackable(&self) -> bool {
        self.0.inner.driver.driver == Driver::Overlay
    }

    /// What leads from `lower` to `upper` (none: to nothing), as snapshots that stand on nothing: the layers of `upper` where
    /// it stands on `lower`, else one. Both must be filled. None where there are no layers in between.
    pub fn difference(
        &self,
        lower: &SnapshotId,
        upper: Option<&SnapshotId>,
        description: &str,
        cancel: &Cancel,
    ) -> Result<Option<Hold>> {
        let chain = upper.map(|upper| self.chain(upper)).transpose()?.unwrap_or_default();
        let Some(at) = chain.iter().position(|id| id == lower) else {
            return self.compared(lower, upper, description, cancel).map(Some);
        };
        let mut top: Option<Hold> = None;
        for layer in chain[..at].iter().rev() {
            top = Some(self.restack_layer(top.as_ref().map(Hold::id).as_ref(), layer, Deletions::Keep, cancel)?);
        }
        Ok(top)
    }

    /// One layer of all that differs.
    fn compared(
        &self,
        lower: &SnapshotId,
        upper: Option<&SnapshotId>,
        description: &str,
        cancel: &Cancel,
    ) -> Result<Hold> {
        let options = PrepareOptions { description: description.to_owned(), ..PrepareOptions::default() };
        let write = |to: io::PipeWriter| self.write_between(lower, upper, to, cancel).map(drop);
        let (hold, seen) = self.unpacked(None, options, None, false, write)?;
        if seen.deletes {
            self.keep_deletions(&hold, |to| self.write_between(lower, upper, to, cancel))?;
        }
        Ok(hold)
    }

    fn write_between<W: Write>(
        &self,
        lower: &SnapshotId,
        upper: Option<&SnapshotId>,
        to: W,
        cancel: &Cancel,
    ) -> Result<W> {
        let mut writer = tar::Writer::new(to);
        self.changes_between(Some(lower), upper, |change| {
            cancel.check()?;
            append(&mut writer, change, cancel, |_| {})
        })?;
        Ok(writer.finish()?)
    }

    fn restack_layer(
        &self,
        parent: Option<&SnapshotId>,
        layer: &SnapshotId,
        deletions: Deletions,
        cancel: &Cancel,
    ) -> Result<Hold> {
        let info = self.info(layer).ok_or(Error::Missing(*layer))?;
        let options = PrepareOptions { kind: info.kind, description: info.description, created_at: None };
        // A difference may come from a cache: only its blob says all that it deletes.
        let blob = self.lazy(layer).filter(|lazy| self.0.content().has(&lazy.digest));
        let blob = blob.filter(|_| !matches!(self.deletions(layer), Ok(Some(_))));
        let created_at = Some(info.created_at);
        // What stands on nothing and was made here deletes nothing: what is named like a whiteout there is a file.
        let literal = blob.is_none() && info.parent.is_none() && matches!(self.deletions(layer), Ok(None));
        let (hold, seen) = self.unpacked(parent, options, created_at, literal, |to| match &blob {
            Some(lazy) => self.write_blob(lazy, to, cancel).map(drop),
            None => self.write_tar(layer, to, cancel).map(drop),
        })?;
        if let Some(lazy) = self.lazy(layer) {
            self.set_layer(&hold.id(), PULLED, LayerRecord::from(&*lazy))?;
        }
        for (variant, record) in self.layers(layer)? {
            self.0.content().attach(&record.digest, &hold.id())?;
            self.set_layer(&hold.id(), &variant, record)?;
        }
        if parent.is_some() {
            let about = seen.paths.unwrap_or_else(|| if seen.deletes { Vec::new() } else { ALONE.to_vec() });
            self.0.kv(RESTACKED).put_with(hold.id().to_string(), about, &hold.id())?;
        }
        let keep = seen.deletes && (deletions == Deletions::Keep || blob.is_some());
        if keep && self.deletions(&hold.id())?.is_none() {
            self.keep_deletions(&hold, |to| match &blob {
                Some(lazy) => self.write_blob(lazy, to, cancel),
                None => self.write_tar(layer, to, cancel),
            })?;
        }
        Ok(hold)
    }

    /// The tar of a layer that was pulled, as it came.
    fn write_blob<W: Write>(&self, lazy: &LazyLayer, mut to: W, cancel: &Cancel) -> Result<W> {
        let blob = self.0.content().get(&lazy.digest)?.ok_or_else(|| {
            let path = self.0.content().path(&lazy.digest);
            Error::io("open", path, io::ErrorKind::NotFound)
        })?;
        let descriptor = Descriptor::new(&lazy.media_type, lazy.digest, lazy.size);
        let mut unpacker = Unpacker::start(cancel.reader(blob.file), &descriptor, Limits::default().bytes)?;
        io::copy(&mut unpacker, &mut to).map_err(|e| Error::io("read", self.0.content().path(&lazy.digest), e))?;
        unpacker.finish()?;
        Ok(to)
    }

    /// A snapshot of what `write` writes as a tar, on a parent or on nothing: what that tar deletes is not there then. And
    /// what that tar has.
    fn unpacked(
        &self,
        parent: Option<&SnapshotId>,
        options: PrepareOptions,
        created_at: Option<std::time::SystemTime>,
        literal: bool,
        write: impl FnOnce(io::PipeWriter) -> Result<()> + Send,
    ) -> Result<(Hold, Seen)> {
        let mut active = self.prepare(parent, options)?;
        let dir = active.dir();
        let mut target = FillTarget { dir: dir.clone(), options: self.layer_options() };
        target.options.literal_names = literal;
        if parent.is_none() {
            target.options.whiteouts = Whiteouts::Delete;
        }
        let wants_paths = parent.is_some() && self.0.inner.driver.driver == Driver::Copy;
        let seen = Seen { deletes: false, literal, paths: wants_paths.then(Vec::new) };
        let (reader, writer) = io::pipe().map_err(|e| Error::io("open a pipe for", &dir, e))?;
        let (filled, seen) = std::thread::scope(|scope| {
            let writing = std::thread::Builder::new().spawn_scoped(scope, || write(writer));
            let writing = writing.map_err(|e| Error::io("start a thread for", &dir, e))?;
            let mut source = Watched { tar: TarSource(tar::Reader::new(reader)), seen };
            let filled = target.unpack(&mut source).and_then(|filled| {
                source.tar.0.drain()?;
                Ok((filled, source.seen))
            });
            let written =
                writing.join().unwrap_or_else(|_| Err(Error::io("read", &dir, io::Error::other("it stopped"))));
            // Where unpacking fails, the writer only sees a broken pipe.
            filled.and_then(|filled| written.map(|()| filled))
        })?;
        active.record_links(&filled.links);
        let hold = self.commit(active, CommitOptions { created_at, ..CommitOptions::default() })?;
        Ok((hold, seen))
    }

    /// Keeps the tar of a layer that deletes.
    fn keep_deletions<W>(&self, hold: &Hold, write: W) -> Result<()>
    where
        W: FnOnce(Compressor<crate::Writer>) -> Result<Compressor<crate::Writer>>,
    {
        let content = self.0.content();
        let uncompressed = CompressionOptions::new(Compression::Uncompressed, 1);
        let compressor = write(Compressor::new(content.trusted_writer()?, &uncompressed)?)?;
        let (compressed, writer) = compressor.finish()?;
        // Held until the record refers to it.
        let _hold = content.hold(&compressed.digest);
        writer.finish_trusted(compressed.digest)?;
        content.attach(&compressed.digest, &hold.id())?;
        let record = LayerRecord {
            digest: compressed.digest,
            size: compressed.size,
            diff_id: compressed.diff_id,
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            annotations: Default::default(),
        };
        self.set_layer(&hold.id(), DELETES, record).map(drop)
    }

    /// What a layer's tar has although the parent has the same.
    pub(crate) fn kept(&self, id: &SnapshotId) -> Result<Kept> {
        let Some(about) = self.0.kv(RESTACKED).get(id.to_string())? else { return Ok(Kept::Nothing) };
        if self.0.inner.driver.driver == Driver::Overlay {
            return Ok(if *about == *ALONE { Kept::Alone } else { Kept::All });
        }
        Ok(Kept::Paths(about.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()))
    }

    /// What is kept of a snapshot that deletes what it does not stand on.
    pub(crate) fn deletions(&self, id: &SnapshotId) -> Result<Option<LayerRecord>> {
        self.layer(id, DELETES)
    }

    /// Writes such a layer's tar, each entry changed by `map`.
    pub(crate) fn write_deletions<W: Write>(
        &self,
        kept: &LayerRecord,
        to: W,
        cancel: &Cancel,
        map: impl Fn(&mut Entry),
    ) -> Result<W> {
        let path = self.0.content().path(&kept.digest);
        let blob = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        let mut reader = tar::Reader::new(cancel.reader(blob));
        let mut writer = tar::Writer::new(to);
        while let Some(mut header) = reader.next()? {
            let mut entry = Entry::from_header(header.clone());
            map(&mut entry);
            header.mtime = entry.mtime;
            writer.append_header(&header, &mut reader)?;
        }
        Ok(writer.finish()?)
    }
}
