//! Where the bytes of a tree are.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use sys::path::Root;

use super::Xattrs;
use crate::stat::Stat;

/// Tells what a file was meant to be where the kernel refused to make it so.
///
/// With a single mapped id owners, devices and some xattrs are recorded beside the file; whoever reads the tree must see
/// what was recorded. Called for each file that is hashed or copied.
pub trait Recall: Sync {
    /// Corrects what the kernel says of the file at `path` (relative to the root): its metadata and xattrs. The records
    /// themselves, if they are xattrs, are to be taken out of `xattrs`.
    fn recall(&self, path: &Path, stat: &mut Stat, xattrs: &mut Xattrs) -> io::Result<()>;
}

/// Where the bytes of a tree are; asked for only when a question needs them, so that it may mount on demand.
pub struct Place<'a> {
    root: OnceLock<Arc<Root>>,
    mount: Option<&'a (dyn Fn() -> io::Result<Arc<Root>> + Sync)>,
    recall: Option<&'a dyn Recall>,
}

impl<'a> Place<'a> {
    /// A directory that is there.
    pub fn at(root: Arc<Root>) -> Place<'a> {
        Place { root: OnceLock::from(root), mount: None, recall: None }
    }

    /// A directory that `mount` provides; called at most once at a time, and never if nothing needs it.
    pub fn when_needed(mount: &'a (dyn Fn() -> io::Result<Arc<Root>> + Sync)) -> Place<'a> {
        Place { root: OnceLock::new(), mount: Some(mount), recall: None }
    }

    /// Reads records of what the kernel refused.
    pub fn with_recall(self, recall: Option<&'a dyn Recall>) -> Place<'a> {
        Place { recall, ..self }
    }

    pub(crate) fn root(&self) -> io::Result<&Arc<Root>> {
        if let Some(root) = self.root.get() {
            return Ok(root);
        }
        let mount = self.mount.ok_or_else(|| io::Error::other("no directory"))?;
        let root = mount()?;
        Ok(self.root.get_or_init(|| root))
    }

    pub(crate) fn recall(&self) -> Option<&'a dyn Recall> {
        self.recall
    }
}
