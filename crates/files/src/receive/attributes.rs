//! Attributes of files, as a client sends them.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use sys::path::{Links, Root};

use crate::checksum::Xattrs;
use crate::error::Error;

/// Reads the attributes of files that come directory by directory.
#[derive(Debug)]
pub struct Attributes<'a> {
    root: &'a Root,
    dir: Option<(PathBuf, OwnedFd)>,
}

impl<'a> Attributes<'a> {
    /// Of files in `root`.
    pub fn new(root: &'a Root) -> Self {
        Attributes { root, dir: None }
    }

    /// All attributes of a file, but for those of Apple's systems, which nobody wants elsewhere.
    pub fn of(&mut self, path: &Path) -> Result<Xattrs, Error> {
        let mut found = self.read(path).map_err(|source| Error::io("read attributes of", path, source))?;
        found.retain(|name, _| !name.starts_with(b"com.apple."));
        Ok(found)
    }

    fn read(&mut self, path: &Path) -> std::io::Result<Xattrs> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let dir = match self.dir.take() {
            Some((known, dir)) if known == parent => dir,
            _ => self.root.parent(path, Links::Refuse)?.0,
        };
        let (_, dir) = self.dir.insert((parent.to_owned(), dir));
        crate::xattr::of_entry(dir, name)
    }
}
