//! Path texts as bytes, taken apart and joined without a look at any file system.
//!
//! Cache keys are digests over path texts that BuildKit makes with Go's `path` package, so these follow its rules:
//! [`clean`] drops `.`, resolves `..` against the text before it, and turns the empty path into `.`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The shortest text of the same path.
pub fn clean(path: &[u8]) -> Vec<u8> {
    let rooted = path.first() == Some(&b'/');
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." if names.last().is_some_and(|last| *last != b"..") => {
                names.pop();
            }
            b".." if rooted => {}
            name => names.push(name),
        }
    }
    let mut cleaned = if rooted { b"/".to_vec() } else { Vec::with_capacity(path.len()) };
    cleaned.extend_from_slice(&names.join(&b'/'));
    if cleaned.is_empty() { b".".to_vec() } else { cleaned }
}

/// `path` as an absolute, clean path: `/` for the root.
pub fn absolute(path: &[u8]) -> Vec<u8> {
    clean(&[b"/", path].concat())
}

/// `path` as a clean path below the root without the leading slash: empty for the root.
pub fn relative(path: &[u8]) -> Vec<u8> {
    absolute(path).split_off(1)
}

/// `parent/name`, cleaned.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match (parent.is_empty(), name.is_empty()) {
        (true, true) => Vec::new(),
        (true, false) => clean(name),
        (false, true) => clean(parent),
        (false, false) => clean(&[parent, b"/", name].concat()),
    }
}

/// The last name of a path, trailing slashes aside: `.` for the empty path and `/` for the root.
pub fn base(path: &[u8]) -> &[u8] {
    if path.is_empty() {
        return b".";
    }
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    if end == 0 {
        return b"/";
    }
    let start = path[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    &path[start..end]
}

/// The path without its last name, cleaned.
pub fn dir(path: &[u8]) -> Vec<u8> {
    clean(split(path).0)
}

/// The path up to and with its last slash, and what follows.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    path.split_at(at)
}

/// Bytes as a path.
pub fn to_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// A path as bytes.
pub fn to_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: impl AsRef<[u8]>) -> String {
        String::from_utf8_lossy(bytes.as_ref()).into_owned()
    }

    #[test]
    fn texts_follow_go() {
        for (path, cleaned, absolute_path, last, parent) in [
            ("", ".", "/", ".", "."),
            ("/", "/", "/", "/", "/"),
            ("///", "/", "/", "/", "/"),
            ("a", "a", "/a", "a", "."),
            ("a/", "a", "/a", "a", "a"),
            ("a/b/../c", "a/c", "/a/c", "c", "a"),
            ("../a", "../a", "/a", "a", ".."),
            ("a/../../b", "../b", "/b", "b", ".."),
            ("/../a//b/.", "/a/b", "/a/b", ".", "/a/b"),
            ("./a", "a", "/a", "a", "."),
            ("/a", "/a", "/a", "a", "/"),
        ] {
            assert_eq!(text(clean(path.as_bytes())), cleaned, "clean {path}");
            assert_eq!(text(absolute(path.as_bytes())), absolute_path, "absolute {path}");
            assert_eq!(text(base(path.as_bytes())), last, "base {path}");
            assert_eq!(text(dir(path.as_bytes())), parent, "dir {path}");
            assert_eq!(format!("/{}", text(relative(path.as_bytes()))), absolute_path, "relative {path}");
        }
        assert_eq!(text(join(b"a", b"../b")), "b");
        assert_eq!(text(join(b"", b"")), "");
        assert_eq!(text(join(b"/x", b".")), "/x");
    }
}
