//! `ADD` unpacks local archives: tar, plain or compressed with gzip, zstd, xz or bzip2, whatever their name.

use std::fs::File;
use std::io::{self, Read};

use base::Cancel;
use files::copy::Unpack;
use files::{Owner, untar};
use image::layer::compression::Decompressor;
use image::layer::{Compression, tar};
use store::TarSource;
use sys::path::Root;

use crate::shadow::Recording;

/// What tells an archive from a file, and writes what is in one.
pub(super) struct Archives<'a> {
    /// Keeps owners of links that the kernel refuses.
    pub(super) recording: Option<&'a Recording>,
    pub(super) cancel: &'a Cancel,
}

const XZ: &[u8] = b"\xfd7zXZ\0";
const BZIP2: &[u8] = b"BZh";

/// Memory of xz's dictionary: twice that of its highest preset; a header can ask for 4 GiB.
const XZ_MEMORY_KIB: u32 = 128 << 10;

/// The tar in a file, or None if it is compressed twice.
fn plain(file: File, limit: u64) -> io::Result<Option<Decompressor<Box<dyn Read + Send>>>> {
    let mut magic = Vec::with_capacity(XZ.len());
    Read::by_ref(&mut &file).take(XZ.len() as u64).read_to_end(&mut magic)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    let file = io::BufReader::with_capacity(1 << 16, file);
    let (stream, done): (Box<dyn Read + Send>, bool) = if magic.starts_with(XZ) {
        (Box::new(lzma_rust2::XzReader::new_mem_limit(file, true, XZ_MEMORY_KIB)), true)
    } else if magic.starts_with(BZIP2) {
        (Box::new(bzip2::bufread::MultiBzDecoder::new(file)), true)
    } else {
        (Box::new(file), false)
    };
    let plain = Decompressor::new(stream, limit).map_err(io::Error::other)?;
    Ok((!done || plain.kind() == Compression::Uncompressed).then_some(plain))
}

impl Unpack for Archives<'_> {
    fn is_archive(&self, file: &File) -> io::Result<bool> {
        let Ok(Some(plain)) = plain(file.try_clone()?, untar::Limits::default().bytes) else { return Ok(false) };
        Ok(tar::is_archive(plain))
    }

    fn unpack(
        &self,
        file: File,
        into: &Root,
        owner: Option<Owner>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut options = untar::Options::archive();
        options.owner = owner.map(|owner| (owner.uid, owner.gid));
        options.top = true;
        options.shadow = self.recording.is_some();
        options.cancel = self.cancel.clone();
        let plain = plain(file, options.limits.bytes)?.ok_or("it is compressed twice")?;
        let dir = into.dir().try_clone_to_owned()?;
        let report = untar::unpack(&dir, &mut TarSource(tar::Reader::new(plain)), &options)?;
        if let Some(recording) = self.recording {
            recording.unpacked(into.path(), report.links);
        }
        Ok(())
    }
}
