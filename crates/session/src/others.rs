//! The directory that a result goes to, and files in it that the result is to replace, not to join.

use std::collections::HashSet;
use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Directories that were made for a result, innermost first.
#[derive(Debug)]
#[must_use]
pub struct MadeDirs(Vec<PathBuf>);

impl MadeDirs {
    /// The result did not come: those that hold nothing go again.
    pub fn discard(self) {
        // What holds something keeps those above it.
        let _ = self.0.iter().try_for_each(fs::remove_dir);
    }
}

/// Makes the directory of a result where it is missing, and those above it. They are for the user alone, as BuildKit's clients
/// make them: what a result holds may be set-user-id.
pub fn make_output_dir(dir: &Path) -> io::Result<MadeDirs> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let made = MadeDirs(dir.ancestors().take_while(is_missing).map(Path::to_owned).collect());
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Ok(()) => Ok(made),
        Err(error) => {
            made.discard();
            Err(error)
        }
    }
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
    fn directories_without_a_result_go_again() {
        let root = tempfile::tempdir().expect("a directory");
        let path = |name: &str| root.path().join(name);
        fs::create_dir(path("there")).expect("made");
        make_output_dir(&path("there/a/b")).expect("made").discard();
        assert!(path("there").exists() && !path("there/a").exists());
        make_output_dir(&path("there")).expect("there").discard();
        assert!(path("there").exists(), "it is not ours");
        let made = make_output_dir(&path("a/b/c")).expect("made");
        fs::write(path("a/b/file"), "").expect("written");
        made.discard();
        assert!(path("a/b/file").exists() && !path("a/b/c").exists());
        fs::write(path("file"), "").expect("written");
        make_output_dir(&path("file/a")).expect_err("no directory");
    }

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
