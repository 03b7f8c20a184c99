//! An OCI layout of the user, as a content store.

use std::io::Read;
use std::path::PathBuf;

use async_trait::async_trait;
use base::{Digest, Fault, Kind};

use crate::{Blob, Blobs};

/// The blobs of a directory: `<dir>/blobs/sha256/<hex>`.
#[derive(Clone, Debug)]
pub struct Layout(PathBuf);

impl Layout {
    /// The layout in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Layout {
        Layout(dir.into())
    }
}

#[async_trait]
impl Blobs for Layout {
    fn place(&self) -> String {
        self.0.display().to_string()
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Blob>, Fault> {
        let path = self.0.join("blobs").join(digest.to_string().replace(':', "/"));
        let failed = |e: std::io::Error| Fault::because(Kind::User, format!("cannot read `{}`", path.display()), e);
        let meta = match tokio::fs::metadata(&path).await {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        if !meta.is_file() {
            return Err(Fault::user(format!("cannot read `{}`: it is no file", path.display())));
        }
        let file = tokio::fs::File::open(&path).await.map_err(failed)?.into_std().await;
        Ok(Some(Blob { size: meta.len(), reader: Box::new(file) as Box<dyn Read + Send> }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blobs_are_files_below_their_digest() {
        let dir = tempfile::tempdir().expect("scratch");
        let (there, other, odd) = (Digest::of("x"), Digest::of("y"), Digest::of("z"));
        let blobs = dir.path().join("blobs/sha256");
        std::fs::create_dir_all(blobs.join(odd.hex())).expect("made");
        std::fs::write(blobs.join(there.hex()), "x").expect("written");
        let layout = Layout::new(dir.path());
        let Some(mut blob) = layout.open(&there).await.expect("readable") else { panic!("it is there") };
        let mut text = String::new();
        blob.reader.read_to_string(&mut text).expect("readable");
        assert_eq!((blob.size, text.as_str()), (1, "x"));
        assert!(layout.open(&other).await.expect("none").is_none());
        assert!(layout.open(&odd).await.is_err());
    }
}
