//! Trees from text, for tests, and the text's encoding (percent signs; `%%` is the empty text).

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, XattrFlags};
use sys::path::Root;

use crate::checksum::{Recall, Xattrs};
use crate::lexical;
use crate::stat::{Kind, Stat, Time};
use crate::target::timestamps;

pub(crate) fn decode(text: &str) -> Vec<u8> {
    if text == "%%" {
        return Vec::new();
    }
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap().as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    bytes
}

pub(crate) fn decode_list(text: &str) -> Vec<String> {
    let texts = text.split(',').filter(|_| text != "-");
    texts.map(|text| String::from_utf8(decode(text)).unwrap()).collect()
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A tree in a scratch directory.
///
/// Lines: `dir|file|char|block|fifo|sock <path> <mode> <uid> <gid> [<content> | <major> <minor>]`, `link <path>
/// <target>`, `hard <path> <first>`, `xattr <path> <name> <value>`.
pub(crate) struct TestTree {
    pub(crate) scratch: tempfile::TempDir,
    /// What an ordinary user could not make.
    pub(crate) records: Records,
}

#[derive(Default)]
pub(crate) struct Records(HashMap<PathBuf, Record>);

#[derive(Default)]
struct Record {
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
    device: Option<(Kind, u64)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    same_as: Option<PathBuf>,
}

impl TestTree {
    /// `real`: with owners and devices, which takes root; else they are only recorded.
    pub(crate) fn build(spec: &[&str], real: bool) -> TestTree {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("root")).unwrap();
        let mut tree = TestTree { scratch, records: Records::default() };
        fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755)).unwrap();
        tree.records.0.entry(PathBuf::new()).or_default().owner = Some((0, 0));
        for line in spec {
            tree.line(line, real);
        }
        tree
    }

    /// Gives entry `i` of the text the time `base + i`, and the root `base - 1`.
    pub(crate) fn set_times(&self, spec: &[&str], base: i64) {
        let set = |path: &Path, secs: i64| {
            let time = Time { secs, nanos: 0 };
            let times = timestamps((time, time));
            rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        };
        for (index, line) in spec.iter().enumerate().rev() {
            if !line.starts_with("xattr") && !line.starts_with("hard") {
                let name = decode(line.split(' ').nth(1).unwrap());
                set(&self.path().join(lexical::to_path(&name)), base + index as i64);
            }
        }
        set(&self.path(), base - 1);
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    pub(crate) fn root(&self) -> Arc<Root> {
        Arc::new(Root::open(self.path()).unwrap())
    }

    fn line(&mut self, line: &str, real: bool) {
        let words: Vec<&str> = line.split(' ').collect();
        let relative = lexical::to_path(&decode(words[1])).to_owned();
        let path = self.path().join(&relative);
        let bytes = |index: usize| decode(words[index]);
        let number = |index: usize| words[index].parse::<u32>().unwrap();
        let mode = || u32::from_str_radix(words[2], 8).unwrap();
        let record = self.records.0.entry(relative.clone()).or_default();
        match words[0] {
            "dir" => fs::create_dir(&path).unwrap(),
            "file" => fs::write(&path, bytes(5)).unwrap(),
            "link" => symlink(lexical::to_path(&bytes(2)), &path).unwrap(),
            "hard" => fs::hard_link(self.scratch.path().join("root").join(lexical::to_path(&bytes(2))), &path).unwrap(),
            "fifo" => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            "sock" => drop(UnixListener::bind(&path).unwrap()),
            "char" | "block" => {
                let (kind, raw) = match words[0] {
                    "char" => (Kind::Char, FileType::CharacterDevice),
                    _ => (Kind::Block, FileType::BlockDevice),
                };
                let rdev = rustix::fs::makedev(number(5), number(6));
                if real {
                    rustix::fs::mknodat(CWD, &path, raw, Mode::RUSR, rdev).unwrap();
                } else {
                    fs::write(&path, "").unwrap();
                    record.device = Some((kind, rdev));
                }
            }
            "xattr" if real => rustix::fs::lsetxattr(&path, words[2], &bytes(3), XattrFlags::empty()).unwrap(),
            "xattr" => record.xattrs.push((words[2].into(), bytes(3))),
            other => panic!("unknown line {other}"),
        }
        match words[0] {
            "hard" => record.same_as = Some(lexical::to_path(&bytes(2)).to_owned()),
            "link" => {
                let parent = relative.parent().and_then(|parent| self.records.0.get(parent));
                let gid =
                    parent.filter(|dir| dir.mode.is_some_and(|mode| mode & 0o2000 != 0)).and_then(|dir| dir.owner);
                let owner = Some((0, gid.map_or(0, |(_, gid)| gid)));
                self.records.0.entry(relative).or_default().owner = owner;
            }
            "xattr" => {}
            _ => {
                record.owner = Some((number(3), number(4)));
                record.mode = Some(mode());
                if real {
                    let (uid, gid) = (Uid::from_raw(number(3)), Gid::from_raw(number(4)));
                    rustix::fs::chownat(CWD, &path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
                }
                // Ordinary users must be able to go on, and get no set-group-id bit of a foreign group.
                let shown = if real { mode() } else { mode() & 0o1777 | 0o700 };
                fs::set_permissions(&path, fs::Permissions::from_mode(shown)).unwrap();
            }
        }
    }
}

impl Recall for Records {
    fn recall(&self, path: &Path, stat: &mut Stat, xattrs: &mut Xattrs) -> io::Result<()> {
        let Some(mut record) = self.0.get(path) else { return Ok(()) };
        while let Some(first) = record.same_as.as_ref().and_then(|first| self.0.get(first)) {
            record = first;
        }
        if let Some((uid, gid)) = record.owner {
            (stat.uid, stat.gid) = (uid, gid);
        }
        if let Some(mode) = record.mode {
            stat.mode = mode;
        }
        if let Some((kind, rdev)) = record.device {
            (stat.kind, stat.rdev) = (kind, rdev);
        }
        xattrs.extend(record.xattrs.iter().cloned());
        Ok(())
    }
}
