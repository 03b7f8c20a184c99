//! Looking into trees on behalf of frontends: a file, a directory, what a path is.

use std::path::PathBuf;

use base::{Fault, Kind};
use files::receive::{Attributes, Sent};
use files::walk::Entry;
use sys::path::{Links, Root};

/// What a frontend may read of a file at once.
const FILE_LIMIT: u64 = 16 << 20;

/// A file, or a part of it: an offset and a length, 0 for all that follows.
pub(crate) fn read_file(root: &Root, path: &str, range: Option<(u64, u64)>) -> Result<Vec<u8>, Fault> {
    use std::io::{Read as _, Seek as _};
    let failed = |e| missing("read", path, e);
    let file = root.open_file(path.trim_start_matches('/'), Links::Follow).map_err(failed)?;
    let (offset, length) = range.unwrap_or((0, 0));
    let length = if length == 0 { FILE_LIMIT + 1 } else { length };
    let mut bytes = Vec::new();
    (&file).seek(std::io::SeekFrom::Start(offset)).map_err(failed)?;
    file.take(length.min(FILE_LIMIT + 1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(Fault::user(format!("cannot read `{path}`: larger than {FILE_LIMIT} bytes")));
    }
    Ok(bytes)
}

/// What is in a directory, by name; only what a pattern matches, unless that is empty. `is_recorded` says whether what the
/// kernel refused is recorded there.
pub(crate) fn read_dir(root: &Root, path: &str, pattern: &str, is_recorded: bool) -> Result<Vec<Sent>, Fault> {
    let resolved = root.resolve(path, Links::Follow).map_err(|e| missing("list", path, e))?;
    let dir = root.open_dir(&resolved, Links::Refuse).map_err(|e| missing("list", path, e))?;
    let below = Root::from_fd(dir, path);
    let entries = files::walk::list_dir(&below);
    let mut entries = entries.map_err(|e| Fault::because(Kind::User, format!("cannot list `{path}`"), e))?;
    if !pattern.is_empty() {
        let matches =
            |entry: &Entry| files::pattern::glob_match(pattern.as_bytes(), entry.path.as_os_str().as_encoded_bytes());
        entries.retain(|entry| matches(entry).unwrap_or(false));
    }
    let mut attributes = Attributes::new(&below);
    let mut sent = Vec::with_capacity(entries.len());
    for entry in entries {
        match attributes.of_built(&entry.path, is_recorded) {
            Ok(xattrs) => sent.push(Sent { xattrs, ..Sent::of(&entry, None) }),
            // A container's process removed it meanwhile.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(Fault::because(Kind::User, format!("cannot list `{path}`"), error)),
        }
    }
    Ok(sent)
}

/// What a path is. `links` says whether its last component is followed.
pub(crate) fn stat(root: &Root, path: &str, links: Links, is_recorded: bool) -> Result<Sent, Fault> {
    let failed = |e| missing("stat", path, e);
    let stat = files::Stat::from(root.stat(path, links).map_err(failed)?);
    let link = (stat.kind == files::Kind::Symlink).then(|| root.read_link(path)).transpose();
    let name = PathBuf::from(path).file_name().map(PathBuf::from).unwrap_or_default();
    let entry = Entry { path: name, stat, link: link.map_err(failed)? };
    let resolved = root.resolve(path, links).map_err(failed)?;
    let xattrs = Attributes::new(root).of_built(&resolved, is_recorded);
    let xattrs = xattrs.map_err(|e| Fault::because(Kind::User, format!("cannot stat `{path}`"), e))?;
    Ok(Sent { xattrs, ..Sent::of(&entry, None) })
}

fn missing(doing: &str, path: &str, error: std::io::Error) -> Fault {
    Fault::because(Kind::User, format!("cannot {doing} `{path}`"), error)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().expect("made");
        let node = |name: &str, kind: FileType, device: u64| {
            rustix::fs::mknodat(CWD, dir.path().join(name), kind, Mode::RUSR | Mode::WUSR, device)
        };
        std::fs::write(dir.path().join("file"), "0123456789").expect("written");
        std::os::unix::fs::symlink("/file", dir.path().join("link")).expect("made");
        node("pipe", FileType::Fifo, 0).expect("made");
        let mut wrong = vec!["pipe"];
        // For root, whose steps can make such nodes, too: `/dev/zero`, which gives bytes to whoever opens it.
        if node("zero", FileType::CharacterDevice, rustix::fs::makedev(1, 5)).is_ok() {
            wrong.push("zero");
        }
        let root = Root::open(dir.path()).expect("open");
        assert_eq!(read_file(&root, "/link", Some((2, 3))).expect("read"), b"234");
        for path in wrong {
            let error = read_file(&root, path, Some((0, 4))).expect_err(path);
            assert_eq!(error.to_string(), format!("cannot read `{path}`: not a regular file"));
        }
        let error = read_file(&root, "/", None).expect_err("a directory");
        assert!(error.to_string().starts_with("cannot read `/`: Is a directory"), "{error}");
    }

    #[test]
    fn attributes_are_told_but_not_those_of_the_builder() {
        let dir = tempfile::tempdir().expect("made");
        let file = dir.path().join("d/f");
        std::fs::create_dir(dir.path().join("d")).expect("made");
        std::fs::write(&file, "x").expect("written");
        for (name, value) in [
            (c"user.text", "hello"),
            (c"user.overlay.opaque", "y"),
            (c"user.hullworks.stat", "7:8"),
            (c"user.hullworks.cap", "all"),
        ] {
            for path in [&file, &dir.path().join("d"), &dir.path().to_owned()] {
                sys::xattr::set(path, name, value.as_bytes()).expect("attributes work here");
            }
        }
        let root = Root::open(dir.path()).expect("open");
        let attribute = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let text = attribute("user.text", "hello");
        for (is_recorded, expected) in
            [(false, vec![text.clone()]), (true, vec![attribute("security.capability", "all"), text])]
        {
            let expected: files::checksum::Xattrs = expected.into_iter().collect();
            for path in ["/", "d", "/d/f"] {
                let sent = stat(&root, path, Links::FollowParents, is_recorded).expect(path);
                assert_eq!(sent.xattrs, expected, "{path}");
            }
            let listed = read_dir(&root, "/d", "", is_recorded).expect("a list");
            assert_eq!(listed.len(), 1);
            assert_eq!((listed[0].path.as_slice(), &listed[0].xattrs), (b"f".as_slice(), &expected));
        }
    }
}
