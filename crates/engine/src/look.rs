//! Looking into trees on behalf of frontends: a file, a directory, what a path is.

use std::path::PathBuf;

use base::{Fault, Kind};
use files::walk::Entry;
use rustix::fs::{Mode, OFlags};
use sys::path::{Links, Root};

/// What a frontend may read of a file at once.
const FILE_LIMIT: u64 = 16 << 20;

/// A file, or a part of it: an offset and a length, 0 for all that follows.
pub(crate) fn read_file(root: &Root, path: &str, range: Option<(u64, u64)>) -> Result<Vec<u8>, Fault> {
    use std::io::{Read as _, Seek as _};
    let failed = |e| missing("read", path, e);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = root.open_at(path.trim_start_matches('/'), flags, Mode::empty(), Links::Follow);
    let file = std::fs::File::from(file.map_err(failed)?);
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

/// What is in a directory, by name; only what a pattern matches, unless that is empty.
pub(crate) fn read_dir(root: &Root, path: &str, pattern: &str) -> Result<Vec<Entry>, Fault> {
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
    Ok(entries)
}

/// What a path is. `links` says whether its last component is followed.
pub(crate) fn stat(root: &Root, path: &str, links: Links) -> Result<Entry, Fault> {
    let failed = |e| missing("stat", path, e);
    let stat = files::Stat::from(root.stat(path, links).map_err(failed)?);
    let link = (stat.kind == files::Kind::Symlink).then(|| root.read_link(path)).transpose();
    let name = PathBuf::from(path).file_name().map(PathBuf::from).unwrap_or_default();
    Ok(Entry { path: name, stat, link: link.map_err(failed)? })
}

fn missing(doing: &str, path: &str, error: std::io::Error) -> Fault {
    Fault::because(Kind::User, format!("cannot {doing} `{path}`"), error)
}
