//! What the kernel refused, recorded beside the file: owners, devices and capabilities in a user namespace.
//!
//! With a single id (an ordinary user without subordinate ids) every file belongs to that id, and
//! `security.capability` cannot be set. With ranges, ids beyond them are refused. Devices cannot be made in either. What
//! the file *should* be is kept in one attribute of the file, and layers, checksums and copies read it back:
//!
//! ```text
//! user.hullworks.stat = "<uid>:<gid>[:<mode in octal, file type included>[:<major>:<minor>]]"
//! user.hullworks.cap  = the value of security.capability
//! ```
//!
//! - A regular file or directory has its real type and mode on disk; only the owner comes from the record.
//! - A device is an empty regular file of mode 0600 whose record states type, mode and numbers.
//! - Whoever records an owner leaves the file to root, which is us: once a step has changed the owner to another id that
//!   the kernel takes, that is the owner ([`Shadow::owner_of`]).
//! - A symlink, fifo or socket can carry no `user.*` attribute. Their owners are in a [`Table`] which the
//!   snapshot keeps beside its tree (path -> owner and link target; a link that has changed since no longer
//!   matches its target and so loses its record).
//!
//! The records belong to the builder: they never appear in a layer or in a checksum.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::xattr;

/// The attribute that holds owner, and type and numbers of a device.
pub const STAT: &CStr = c"user.hullworks.stat";
/// The attribute that holds file capabilities.
pub const CAPABILITY: &CStr = c"user.hullworks.cap";
/// All our records begin so; layers leave them out.
pub const PREFIX: &[u8] = b"user.hullworks.";

/// What a file should be, where the kernel did not let it be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadow {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Full `st_mode` and device numbers, only for devices.
    pub device: Option<(u32, u32, u32)>,
}

impl Shadow {
    /// A record that changes the owner only.
    pub fn owner(uid: u32, gid: u32) -> Shadow {
        Shadow { uid, gid, device: None }
    }

    /// Whom the file belongs to that the kernel says `is` the owner of.
    pub fn owner_of(&self, is: (u32, u32)) -> (u32, u32) {
        if is == (0, 0) { (self.uid, self.gid) } else { is }
    }

    /// The record as the attribute's value.
    pub fn encode(&self) -> Vec<u8> {
        match self.device {
            None => format!("{}:{}", self.uid, self.gid),
            Some((mode, major, minor)) => format!("{}:{}:{mode:o}:{major}:{minor}", self.uid, self.gid),
        }
        .into_bytes()
    }

    /// Reads an attribute's value; a malformed one (a build step may write anything there) is no record.
    pub fn decode(value: &[u8]) -> Option<Shadow> {
        let text = std::str::from_utf8(value).ok()?;
        let mut fields = text.split(':');
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let device = match fields.next() {
            None => None,
            Some(mode) => {
                let mode = u32::from_str_radix(mode, 8).ok()?;
                Some((mode, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
            }
        };
        if fields.next().is_some() {
            return None;
        }
        Some(Shadow { uid, gid, device })
    }

    /// Records this beside the open file or directory.
    pub fn write_fd(&self, fd: impl AsFd) -> io::Result<()> {
        xattr::set_fd(fd, STAT, &self.encode())
    }

    /// Records this beside `path` (not a symlink).
    pub fn write(&self, path: &Path) -> io::Result<()> {
        xattr::set(path, STAT, &self.encode())
    }

    /// The kernel took the owner of `path` (not a symlink): an earlier record of another is void.
    pub fn forget_owner(path: &Path) -> io::Result<()> {
        match Shadow::read(path)? {
            None => Ok(()),
            Some(Shadow { device: None, .. }) => xattr::remove(path, STAT),
            Some(Shadow { device, .. }) => Shadow { device, ..Shadow::owner(0, 0) }.write(path),
        }
    }

    /// The record beside `path`, if any.
    pub fn read(path: &Path) -> io::Result<Option<Shadow>> {
        Ok(xattr::get(path, STAT)?.and_then(|value| Shadow::decode(&value)))
    }
}

/// Owners of symlinks, fifos and sockets of one tree: path without leading slash -> owner and link target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    entries: BTreeMap<Vec<u8>, (u32, u32, Vec<u8>)>,
}

impl Table {
    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Records the owner of the link `path` with this target (empty for a fifo).
    pub fn insert(&mut self, path: Vec<u8>, uid: u32, gid: u32, target: Vec<u8>) {
        self.entries.insert(path, (uid, gid, target));
    }

    /// What is recorded of `path`, if it is still the link that was recorded.
    pub fn get(&self, path: &[u8], target: &[u8]) -> Option<Shadow> {
        let (uid, gid, _) = self.entries.get(path).filter(|(_, _, recorded)| recorded == target)?;
        Some(Shadow::owner(*uid, *gid))
    }

    /// Lays `upper` over this table, as its tree lies over ours.
    pub fn extend(&mut self, upper: &Table) {
        self.entries.extend(upper.entries.iter().map(|(k, v)| (k.clone(), v.clone())));
    }

    /// The same records of a tree that lies in the directory `dir` (without leading slash; empty for the root).
    pub fn below(self, dir: &[u8]) -> Table {
        let path = |name: Vec<u8>| if dir.is_empty() { name } else { [dir, b"/", &name].concat() };
        Table { entries: self.entries.into_iter().map(|(name, record)| (path(name), record)).collect() }
    }

    /// The table as bytes: `uid NUL gid NUL path NUL target NUL`, sorted by path.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (path, (uid, gid, target)) in &self.entries {
            out.extend_from_slice(format!("{uid}\0{gid}\0").as_bytes());
            out.extend_from_slice(path);
            out.push(0);
            out.extend_from_slice(target);
            out.push(0);
        }
        out
    }

    /// Reads [`encode`](Table::encode)'s bytes; none when they are cut or malformed.
    pub fn decode(bytes: &[u8]) -> Option<Table> {
        let mut table = Table::default();
        let Some(body) = bytes.strip_suffix(&[0]) else {
            return bytes.is_empty().then_some(table);
        };
        let fields: Vec<&[u8]> = body.split(|b| *b == 0).collect();
        if !fields.len().is_multiple_of(4) {
            return None;
        }
        for record in fields.chunks_exact(4) {
            let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u32>().ok();
            table.insert(record[2].to_vec(), number(record[0])?, number(record[1])?, record[3].to_vec());
        }
        Some(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_took_later_counts() {
        let file = tempfile::NamedTempFile::new().expect("a scratch file");
        let recorded = Shadow::owner(3_000_000, 7);
        assert_eq!(recorded.owner_of((0, 0)), (3_000_000, 7));
        assert_eq!(recorded.owner_of((0, 5)), (0, 5));
        for (record, left) in [
            (recorded, None),
            (
                Shadow { device: Some((0o20600, 1, 3)), ..recorded },
                Some(Shadow { device: Some((0o20600, 1, 3)), ..Shadow::owner(0, 0) }),
            ),
        ] {
            record.write(file.path()).expect("attributes work here");
            Shadow::forget_owner(file.path()).expect("attributes work here");
            assert_eq!(Shadow::read(file.path()).expect("attributes work here"), left);
        }
    }

    #[test]
    fn records_round_trip_and_nonsense_is_no_record() {
        for shadow in
            [Shadow::owner(0, 0), Shadow::owner(1000, 42), Shadow { uid: 1, gid: 2, device: Some((0o20644, 1, 3)) }]
        {
            assert_eq!(Shadow::decode(&shadow.encode()), Some(shadow));
        }
        for bad in [&b""[..], b"1", b"a:b", b"1:2:9:1:1", b"1:2:644", b"1:2:644:1:1:1", b"\xff"] {
            assert_eq!(Shadow::decode(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn table_round_trips_and_forgets_changed_links() {
        let mut table = Table::default();
        table.insert(b"a/link".to_vec(), 1000, 1001, b"target".to_vec());
        table.insert(b"fifo".to_vec(), 7, 8, Vec::new());
        let read = Table::decode(&table.encode()).expect("what we wrote");
        assert_eq!(read, table);
        assert_eq!(read.get(b"a/link", b"target"), Some(Shadow::owner(1000, 1001)));
        assert_eq!(read.get(b"a/link", b"elsewhere"), None);
        assert_eq!(read.get(b"fifo", b""), Some(Shadow::owner(7, 8)));
        assert_eq!(Table::decode(b"cut\0"), None);
        assert_eq!(Table::decode(b""), Some(Table::default()));
    }
}
