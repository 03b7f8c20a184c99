//! Lexical slash paths, by the rules of Go's `path` package: LLB made by different clients must spell paths alike.
//!
//! These are texts inside an image, never paths of this machine.

/// Whether the path starts at the root.
pub fn is_abs(path: &str) -> bool {
    path.starts_with('/')
}

/// The shortest spelling: no empty or `.` elements, `..` resolved where something stands before it. `.` for nothing.
pub fn clean(path: &str) -> String {
    let rooted = is_abs(path);
    let mut out: Vec<&str> = Vec::new();
    for element in path.split('/') {
        match element {
            "" | "." => {}
            ".." => match out.last() {
                Some(&last) if last != ".." => {
                    out.pop();
                }
                _ if rooted => {}
                _ => out.push(".."),
            },
            other => out.push(other),
        }
    }
    let joined = out.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// The elements put together with slashes, and cleaned. Nothing when all are empty.
pub fn join(elements: &[&str]) -> String {
    let present: Vec<&str> = elements.iter().copied().filter(|element| !element.is_empty()).collect();
    if present.is_empty() { String::new() } else { clean(&present.join("/")) }
}

/// The last element. `.` for the empty path, `/` for the root.
pub fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return "/";
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed)
}

/// All but the last element, cleaned.
pub fn dir(path: &str) -> String {
    match path.rfind('/') {
        Some(slash) => clean(&path[..=slash]),
        None => ".".to_owned(),
    }
}

/// `path` under `parent` unless it is absolute; with `keep_slash`, a final `/` or `/.` (copy the contents) survives.
pub(crate) fn under(parent: &str, path: &str, keep_slash: bool) -> String {
    let mut out = clean(path);
    if !is_abs(&out) {
        out = join(&["/", parent, &out]);
    }
    if keep_slash {
        if path.ends_with('/') {
            if !out.ends_with('/') {
                out.push('/');
            }
        } else if path.ends_with("/.") {
            if out != "/" {
                out.push('/');
            }
            out.push('.');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for (path, cleaned) in [
            ("", "."),
            ("/", "/"),
            ("//a//b/", "/a/b"),
            ("a/./b/../c", "a/c"),
            ("/../a", "/a"),
            ("../a/../..", "../.."),
            ("a/..", "."),
        ] {
            assert_eq!(clean(path), cleaned, "{path}");
        }
        assert_eq!(join(&["", "a", "", "../b"]), "b");
        assert_eq!(join(&["", ""]), "");
        assert_eq!(base("/a/b/"), "b");
        assert_eq!(base("///"), "/");
        assert_eq!(dir("/a/b"), "/a");
        assert_eq!(dir("b"), ".");
    }

    #[test]
    fn destinations_keep_what_says_directory() {
        for (parent, path, out) in
            [("/w", "x", "/w/x"), ("/w", "x/", "/w/x/"), ("/w", "/x/.", "/x/."), ("/", "/.", "/."), ("/w", "./", "/w/")]
        {
            assert_eq!(under(parent, path, true), out, "{path}");
        }
        assert_eq!(under("/w", "x/", false), "/w/x");
    }
}
