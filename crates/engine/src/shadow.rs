//! In a user namespace: what the kernel refuses is recorded beside the files (`sys::shadow`), and what was
//! recorded is read back, so that layers, copies and checksums come out as if it had not been refused.

use std::io;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use files::checksum::{Recall, Xattrs};
use files::{Kind, Recorder, Refused, Stat};
use sys::shadow::{CAPABILITY, PREFIX, STAT, Shadow, Table};
use sys::xattr;

/// Records refusals in a tree that is written.
pub(crate) struct Recording {
    root: PathBuf,
    /// Links and fifos have no attributes of their own.
    links: Mutex<Table>,
}

impl Recording {
    pub(crate) fn new(root: &Path) -> Recording {
        Recording { root: root.to_owned(), links: Mutex::default() }
    }

    /// Takes the records of an archive that was unpacked into a directory of the tree.
    pub(crate) fn unpacked(&self, dir: &Path, links: Table) {
        use std::os::unix::ffi::OsStrExt as _;
        let dir = dir.strip_prefix(&self.root).unwrap_or(dir);
        let links = links.below(dir.as_os_str().as_bytes());
        self.links.lock().unwrap_or_else(PoisonError::into_inner).extend(&links);
    }

    /// Owners of links, for the snapshot's table.
    pub(crate) fn into_links(self) -> Table {
        self.links.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder for Recording {
    fn refused(&self, path: &Path, what: Refused<'_>) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt as _;
        use std::os::unix::fs::FileTypeExt as _;
        let relative = path.strip_prefix("/").unwrap_or(path);
        let full = self.root.join(relative);
        let kind = full.symlink_metadata()?.file_type();
        if let Refused::Owner { .. } = what {
            lchown(&full, Some(0), Some(0))?;
        }
        match what {
            Refused::Owner { uid, gid } if kind.is_symlink() || kind.is_fifo() || kind.is_socket() => {
                let target = if kind.is_symlink() { full.read_link()?.into_os_string() } else { Default::default() };
                let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
                links.insert(relative.as_os_str().as_bytes().to_vec(), uid, gid, target.as_bytes().to_vec());
                Ok(())
            }
            Refused::Owner { uid, gid } => {
                let device = Shadow::read(&full)?.and_then(|shadow| shadow.device);
                Shadow { uid, gid, device }.write(&full)
            }
            Refused::Device { kind, rdev } => {
                use std::os::unix::fs::PermissionsExt as _;
                let mode = full.symlink_metadata()?.permissions().mode() & 0o7777;
                let kind = kind.to_raw().as_raw_mode();
                let numbers = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
                let owner = Shadow::read(&full)?.unwrap_or_else(|| Shadow::owner(0, 0));
                Shadow { device: Some((kind | mode, numbers.0, numbers.1)), ..owner }.write(&full)
            }
            Refused::Xattr { name: b"security.capability", value } => xattr::set(&full, CAPABILITY, value),
            Refused::Xattr { .. } => Ok(()),
        }
    }

    fn owned(&self, path: &Path) -> io::Result<()> {
        Shadow::forget_owner(&self.root.join(path.strip_prefix("/").unwrap_or(path)))
    }
}

/// Reads records back.
pub(crate) struct Recalling {
    root: PathBuf,
    links: Table,
}

impl Recalling {
    pub(crate) fn new(root: &Path, links: Table) -> Recalling {
        Recalling { root: root.to_owned(), links }
    }
}

impl Recall for Recalling {
    fn recall(&self, path: &Path, stat: &mut Stat, xattrs: &mut Xattrs) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt as _;
        let relative = path.strip_prefix("/").unwrap_or(path);
        if matches!(stat.kind, Kind::Symlink | Kind::Fifo | Kind::Socket) {
            let target = match stat.kind {
                Kind::Symlink => self.root.join(relative).read_link()?.into_os_string(),
                _ => Default::default(),
            };
            if let Some(shadow) = self.links.get(relative.as_os_str().as_bytes(), target.as_bytes()) {
                (stat.uid, stat.gid) = shadow.owner_of((stat.uid, stat.gid));
            }
            return Ok(());
        }
        let recorded = xattrs.remove(STAT.to_bytes());
        if let Some(shadow) = recorded.and_then(|value| Shadow::decode(&value)) {
            (stat.uid, stat.gid) = shadow.owner_of((stat.uid, stat.gid));
            if let Some((mode, major, minor)) = shadow.device
                && let Some(kind) = Kind::from_raw(rustix::fs::FileType::from_raw_mode(mode))
            {
                (stat.kind, stat.mode) = (kind, mode & 0o7777);
                (stat.rdev, stat.size) = (rustix::fs::makedev(major, minor), 0);
            }
        }
        if let Some(capability) = xattrs.remove(CAPABILITY.to_bytes()) {
            xattrs.insert(b"security.capability".to_vec(), capability);
        }
        xattrs.retain(|name, _| !name.starts_with(PREFIX));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_recalled() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        std::fs::write(dir.path().join("f"), "x").expect("scratch is writable");
        std::os::unix::fs::symlink("f", dir.path().join("l")).expect("scratch is writable");
        let recording = Recording::new(dir.path());
        let record = |path: &str, what| recording.refused(Path::new(path), what).expect("attributes work here");
        record("f", Refused::Owner { uid: 7, gid: 8 });
        record("f", Refused::Xattr { name: b"security.capability", value: b"cap" });
        record("/l", Refused::Owner { uid: 9, gid: 10 });
        let recalling = Recalling::new(dir.path(), recording.into_links());

        let recall = |name: &str| {
            let path = dir.path().join(name);
            let mut stat = Stat::from(rustix::fs::lstat(&path).expect("it is there"));
            let mut xattrs: Xattrs = match stat.kind {
                Kind::Symlink => Xattrs::new(),
                _ => xattr::all(&path, |_| true).expect("attributes work here").into_iter().collect(),
            };
            recalling.recall(Path::new(name), &mut stat, &mut xattrs).expect("records are readable");
            (stat.uid, stat.gid, xattrs)
        };
        let (uid, gid, xattrs) = recall("f");
        assert_eq!((uid, gid), (7, 8));
        assert_eq!(xattrs.into_iter().collect::<Vec<_>>(), [(b"security.capability".to_vec(), b"cap".to_vec())]);
        let (uid, gid, _) = recall("l");
        assert_eq!((uid, gid), (9, 10));
    }
}
