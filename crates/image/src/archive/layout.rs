//! Reading OCI layouts, from a directory or a tar: `oci-layout://` contexts and caches.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Take};

use base::Digest;
use serde::Deserialize;

use super::{INDEX, LAYOUT};
use crate::layer::compression::VerifyingReader;
use crate::layer::tar;
use crate::layer::{Entry, EntryKind};
use crate::{Descriptor, Error, Index, MAX_DOCUMENT, annotation, document, media_type};

/// Gives the files of a layout by their path in it: `index.json`, `blobs/sha256/<hex>`.
///
/// Closures are enough: for a directory, one that opens the file below it (paths are checked: no `..`, not absolute).
/// For a tar there is [`TarFiles`].
pub trait LayoutFiles {
    /// What a file is read with.
    type File<'a>: Read
    where
        Self: 'a;

    /// Opens a file; [`Error::Missing`] where there is none.
    fn open(&mut self, path: &str) -> Result<Self::File<'_>, Error>;
}

impl<F: Read, O: FnMut(&str) -> Result<F, Error>> LayoutFiles for O {
    type File<'a>
        = F
    where
        O: 'a;

    fn open(&mut self, path: &str) -> Result<F, Error> {
        self(path)
    }
}

/// An OCI layout whose version and index were read and checked.
#[derive(Debug)]
pub struct Layout<F> {
    files: F,
    index: Index,
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl<F: LayoutFiles> Layout<F> {
    /// Reads `oci-layout` and `index.json`.
    pub fn open(mut files: F) -> Result<Layout<F>, Error> {
        let version: Version = document::parse(LAYOUT, &read_limited(LAYOUT, files.open(LAYOUT)?)?)?;
        if version.version.split('.').next() != Some("1") {
            return Err(Error::document(LAYOUT, format!("version `{}` is not supported, only 1 is", version.version)));
        }
        let index = Index::parse(&read_limited(INDEX, files.open(INDEX)?)?, None)?;
        Ok(Layout { files, index })
    }

    /// `index.json`.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The image of this tag or name; with none, the only one that there is.
    pub fn find(&self, name: Option<&str>) -> Result<&Descriptor, Error> {
        let names = |d: &Descriptor| -> Vec<String> {
            [annotation::REF_NAME, annotation::IMAGE_NAME]
                .iter()
                .filter_map(|key| d.annotations.get(*key))
                .cloned()
                .collect()
        };
        let fail = |reason: String| Err(Error::document("image layout", reason));
        let known = || self.index.manifests.iter().flat_map(names).collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => match self.index.manifests.iter().find(|d| names(d).iter().any(|known| known == name)) {
                Some(found) => Ok(found),
                None => fail(format!("it has no image `{name}`, only: {}", known())),
            },
            None => {
                let mut digests: Vec<&Descriptor> = self.index.manifests.iter().collect();
                digests.dedup_by_key(|d| d.digest);
                match digests.as_slice() {
                    [only] => Ok(only),
                    [] => fail("it is empty".to_owned()),
                    _ => fail(format!("it has several images, name one of: {}", known())),
                }
            }
        }
    }

    /// Opens a blob; reading it to the end checks its digest and size.
    pub fn blob(&mut self, descriptor: &Descriptor) -> Result<VerifyingReader<F::File<'_>>, Error> {
        let file = self.files.open(&descriptor.blob_path())?;
        Ok(VerifyingReader::new(file, descriptor.digest, descriptor.size))
    }

    /// Opens a blob of which only the digest is known; nothing is checked.
    pub fn blob_by_digest(&mut self, digest: Digest) -> Result<F::File<'_>, Error> {
        self.files.open(&Descriptor::new("", digest, 0).blob_path())
    }

    /// Reads a manifest, index or config, checked.
    pub fn document(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        read_document(descriptor, self.files.open(&descriptor.blob_path())?)
    }
}

/// Reads a small blob whole, checked against its descriptor.
pub(super) fn read_document(descriptor: &Descriptor, source: impl Read) -> Result<Vec<u8>, Error> {
    if descriptor.size > MAX_DOCUMENT as u64 {
        let what = match descriptor.media_type.as_str() {
            t if media_type::is_index(t) => "image index",
            t if media_type::is_manifest(t) => "image manifest",
            _ => "document",
        };
        return Err(Error::TooLarge { what: format!("{what} {}", descriptor.digest), limit: MAX_DOCUMENT as u64 });
    }
    let mut bytes = Vec::with_capacity(descriptor.size as usize);
    VerifyingReader::new(source, descriptor.digest, descriptor.size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_limited(what: &str, source: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    source.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > MAX_DOCUMENT {
        true => Err(Error::TooLarge { what: what.to_owned(), limit: MAX_DOCUMENT as u64 }),
        false => Ok(bytes),
    }
}

/// The files of a layout in a tar that can seek: read once for where they lie, then opened in any order.
#[derive(Debug)]
pub struct TarFiles<T> {
    tar: T,
    places: HashMap<String, (u64, u64)>,
}

impl<T: Read + Seek> TarFiles<T> {
    /// Finds the files. Of two entries of one name the last counts, as when unpacked.
    pub fn scan(mut tar: T) -> Result<TarFiles<T>, Error> {
        let mut places = HashMap::new();
        tar.rewind()?;
        let mut reader = tar::Reader::new(&mut tar);
        while let Some(header) = reader.next_by_seek()? {
            let entry = Entry::from_header(header);
            if let (EntryKind::File { size }, Ok(path)) = (&entry.kind, String::from_utf8(entry.path)) {
                let path = path.strip_prefix("./").unwrap_or(&path);
                places.insert(path.to_owned(), (reader.offset(), *size));
            }
        }
        Ok(TarFiles { tar, places })
    }
}

impl<T: Read + Seek> LayoutFiles for TarFiles<T> {
    type File<'a>
        = Take<&'a mut T>
    where
        T: 'a;

    fn open(&mut self, path: &str) -> Result<Take<&mut T>, Error> {
        let (offset, size) = *self.places.get(path).ok_or_else(|| Error::Missing(path.to_owned()))?;
        self.tar.seek(SeekFrom::Start(offset))?;
        Ok(self.tar.by_ref().take(size))
    }
}
