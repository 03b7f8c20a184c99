//! The directory that a result goes to, and files in it that the result is to replace, not to join.

use std::collections::HashSet;
use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Makes the directory of a result where it is missing, and those above it. They are for the user alone, as BuildKit's clients
/// make them: what a result holds may be set-user-id.
pub fn make_output_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Removes all below a directory that is not among `kept`, which are paths in it. Directories that stay keep their times.
pub fn remove_others(dir: &Path, kept: &HashSet<PathBuf>) -> io::Result<()> {
    let mut dirs = vec![PathBuf::new()];
    while let Some(inner) = dirs.pop() {
        let place = dir.join(&inner);
        let before = fs::metadata(&place)?;
        let mut is_changed = false;
        for entry in fs::read_dir(&place)? {
            let entry = entry?;
            let (path, is_dir) = (inner.join(entry.file_name()), entry.file_type()?.is_dir());
            match (kept.contains(&path), is_dir) {
                (true, true) => dirs.push(path),
                (true, false) => {}
                (false, true) => {
                    fs::remove_dir_all(entry.path())?;
                    is_changed = true;
                }
                (false, false) => {
                    fs::remove_file(entry.path())?;
                    is_changed = true;
                }
            }
        }
        if is_changed && !inner.as_os_str().is_empty() {
            let times = FileTimes::new().set_accessed(before.accessed()?).set_modified(before.modified()?);
            File::open(&place)?.set_times(times)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_kept_stays_and_nothing_else() {
        let outside = tempfile::tempdir().expect("a directory");
        fs::write(outside.path().join("safe"), "").expect("written");
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        for name in ["a/b/c", "a/d", "e/f"] {
            fs::create_dir_all(path(name).parent().expect("a parent")).expect("made");
            fs::write(path(name), "").expect("written");
        }
        symlink(outside.path(), path("a/out")).expect("linked");
        symlink("a", path("link")).expect("linked");
        let before = fs::metadata(path("a")).and_then(|meta| meta.modified()).expect("a time");
        let kept = ["a", "a/b", "a/b/c", "link"].into_iter().map(PathBuf::from).collect();
        remove_others(dir.path(), &kept).expect("removed");
        assert!(path("a/b/c").exists() && path("link").is_symlink());
        assert!(!path("a/d").exists() && !path("e").exists() && !path("a/out").is_symlink());
        assert!(outside.path().join("safe").exists(), "a link was followed");
        assert_eq!(fs::metadata(path("a")).and_then(|meta| meta.modified()).expect("a time"), before);
    }
}
