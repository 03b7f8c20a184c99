//! Whiteouts (OCI image-spec `layer.md`): file names that say what is gone.

/// Prefix of the name of a file that is gone.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The name that makes a directory opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a path in a layer means beyond a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whiteout {
    /// The file, or tree, at this path is gone.
    Gone(Vec<u8>),
    /// All below this directory that lower layers hold is gone.
    Opaque(Vec<u8>),
    /// Another name that AUFS reserved (`.wh..wh.plnk`, ..): to be skipped.
    Reserved,
    /// The name of a whiteout of nothing, of `.` or of `..`: hostile or broken.
    Invalid,
}

impl Whiteout {
    /// Reads a path of a layer; none where it is an ordinary file. Slashes at the end do not count.
    pub fn parse(path: &[u8]) -> Option<Whiteout> {
        let end = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
        let path = &path[..end];
        let (directory, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        let gone = name.strip_prefix(WHITEOUT_PREFIX)?;
        Some(match gone {
            _ if name == OPAQUE => Whiteout::Opaque(directory.to_vec()),
            b"" | b"." | b".." => Whiteout::Invalid,
            _ if gone.starts_with(WHITEOUT_PREFIX) => Whiteout::Reserved,
            _ => Whiteout::Gone(join(directory, gone, path.starts_with(b"/"))),
        })
    }
}

fn join(directory: &[u8], name: &[u8], absolute: bool) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.is_empty() || absolute {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Where the whiteout of `path` lies: `a/b` is gone by `a/.wh.b`.
pub fn whiteout_path(path: &[u8]) -> Vec<u8> {
    let name = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let mut out = Vec::with_capacity(path.len() + WHITEOUT_PREFIX.len());
    out.extend_from_slice(&path[..name]);
    out.extend_from_slice(WHITEOUT_PREFIX);
    out.extend_from_slice(&path[name..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_is_gone() {
        let gone = |path: &str| Some(Whiteout::Gone(path.into()));
        let opaque = |path: &str| Some(Whiteout::Opaque(path.into()));
        for (path, expected) in [
            ("a/b", None),
            ("a/.wh", None),
            ("a/.wha", None),
            (".wh./a", None),
            ("a/.wh.b", gone("a/b")),
            (".wh.b", gone("b")),
            ("/.wh.b", gone("/b")),
            ("a/.wh.b/", gone("a/b")),
            ("a/.wh..b", gone("a/.b")),
            ("a/.wh..wh..opq", opaque("a")),
            (".wh..wh..opq", opaque("")),
            ("a/.wh..wh.plnk", Some(Whiteout::Reserved)),
            ("a/.wh.", Some(Whiteout::Invalid)),
            ("a/.wh..", Some(Whiteout::Invalid)),
            ("a/.wh...", Some(Whiteout::Invalid)),
            ("", None),
            ("/", None),
        ] {
            assert_eq!(Whiteout::parse(path.as_bytes()), expected, "{path}");
        }
        assert_eq!(whiteout_path(b"a/b"), b"a/.wh.b");
        assert_eq!(whiteout_path(b"b"), b".wh.b");
    }
}
