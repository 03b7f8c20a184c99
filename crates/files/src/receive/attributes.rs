//! Attributes of files, as a client sends them.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use sys::path::{Links, Root};
use sys::shadow;

use crate::checksum::Xattrs;
use crate::error::Error;
use crate::untar::{CAPABILITY, is_private};

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

    /// Those of a file that a build made, as everybody else knows it: without the marks of overlayfs and our own records.
    /// `is_recorded` says that file capabilities may be among the latter.
    pub fn of_built(&mut self, path: &Path, is_recorded: bool) -> Result<Xattrs, Error> {
        let mut found = self.of(path)?;
        let recorded = found.remove(shadow::CAPABILITY.to_bytes()).filter(|_| is_recorded);
        found.retain(|name, _| !is_private(name));
        found.extend(recorded.map(|value| (CAPABILITY.to_vec(), value)));
        Ok(found)
    }

    fn read(&mut self, path: &Path) -> std::io::Result<Xattrs> {
        // The root itself has no name.
        let Some(name) = path.file_name() else { return crate::xattr::of_fd(self.root.open_dir("", Links::Refuse)?) };
        let parent = path.parent().unwrap_or(Path::new(""));
        let dir = match self.dir.take() {
            Some((known, dir)) if known == parent => dir,
            _ => self.root.parent(path, Links::Refuse)?.0,
        };
        let (_, dir) = self.dir.insert((parent.to_owned(), dir));
        crate::xattr::of_entry(dir, name)
    }
}
