//! What the small actions say when they fail; what they leave behind is checked with the copies.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink as link};

use sys::path::Root;

use super::*;

fn scratch() -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::open(dir.path()).unwrap();
    (dir, root)
}

fn said(result: Result<(), Error>) -> String {
    crate::chain(&result.unwrap_err()).to_string()
}

#[test]
fn failures_name_path_and_cause() {
    let (dir, root) = scratch();
    let target = Target::new(&root);
    fs::write(dir.path().join("file"), "").unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    link("loop", dir.path().join("loop")).unwrap();
    let new_dir = |path: &str, make_parents| {
        mkdir(&target, &Mkdir { path: path.into(), mode: 0o755, make_parents, ..Mkdir::default() })
    };
    let write = |path: &str| mkfile(&target, &Mkfile { path: path.into(), mode: 0o644, ..Mkfile::default() });
    let remove = |path: &str| rm(&target, &Rm { path: path.into(), ..Rm::default() });
    assert_eq!(said(new_dir("/no/way", false)), "cannot open `/no`: No such file or directory (os error 2)");
    assert_eq!(said(new_dir("/file/x", true)), "cannot open `/file/x`: Not a directory (os error 20)");
    assert_eq!(said(new_dir("/file", true)), "cannot create directory `/file`: Not a directory (os error 20)");
    assert_eq!(said(new_dir("/loop/x", true)), "too many links in `/loop/x`");
    assert_eq!(said(write("/dir")), "cannot write `/dir`: Is a directory (os error 21)");
    assert_eq!(said(write("/")), "cannot write `/`: Is a directory (os error 21)");
    assert_eq!(said(remove("/none")), "cannot remove `/none`: No such file or directory (os error 2)");
    for path in ["/", "..", "a/..", ""] {
        assert_eq!(said(remove(path)), "invalid empty path");
    }
    let taken = Symlink { old_path: "x".into(), new_path: "/file".into(), ..Symlink::default() };
    assert_eq!(said(symlink(&target, &taken)), "cannot create link `/file`: File exists (os error 17)");
}

#[test]
fn directories_get_exactly_their_mode_and_time() {
    let (dir, root) = scratch();
    let target = Target::new(&root);
    let timestamp = Some(Time { secs: 1_000_000, nanos: 5 });
    let action = Mkdir { path: "/a/b/c".into(), mode: 0o777, make_parents: true, timestamp, ..Mkdir::default() };
    mkdir(&target, &action).unwrap();
    for path in ["a", "a/b", "a/b/c"] {
        let meta = fs::metadata(dir.path().join(path)).unwrap();
        assert_eq!(
            (meta.permissions().mode() & 0o7777, meta.mtime(), meta.mtime_nsec()),
            (0o777, 1_000_000, 5),
            "{path}"
        );
    }
    // One that is there keeps what it has.
    mkdir(&target, &Mkdir { mode: 0o700, make_parents: false, ..action.clone() }).unwrap();
    mkdir(&target, &Mkdir { mode: 0o700, timestamp: None, ..action }).unwrap();
    assert_eq!(fs::metadata(dir.path().join("a/b/c")).unwrap().permissions().mode() & 0o7777, 0o777);
}

#[test]
fn rm_takes_trees_wildcards_and_links_themselves() {
    let (dir, root) = scratch();
    let target = Target::new(&root);
    for path in ["a/x/1.txt", "a/y/2.txt", "b/3.md", "keep/4.txt"] {
        fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(path), "").unwrap();
    }
    link("keep", dir.path().join("link")).unwrap();
    link("nowhere", dir.path().join("dangling")).unwrap();
    let run = |path: &str, allow_wildcard, allow_not_found| {
        rm(&target, &Rm { path: path.into(), allow_wildcard, allow_not_found })
    };
    run("/a/*/*.txt", true, false).unwrap();
    assert!(dir.path().join("a/x").exists() && !dir.path().join("a/x/1.txt").exists());
    run("/a", false, false).unwrap();
    run("/b*", true, false).unwrap();
    run("/none", false, true).unwrap();
    run("/keep/4.txt/below", false, true).unwrap();
    run("/none*", true, false).unwrap();
    run("/link", false, false).unwrap();
    run("/dangling", false, false).unwrap();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["keep"]);
    assert!(dir.path().join("keep/4.txt").exists());
}

#[test]
fn files_are_written_through_links_inside_the_tree() {
    let (dir, root) = scratch();
    let target = Target::new(&root);
    fs::create_dir(dir.path().join("real")).unwrap();
    link("/real", dir.path().join("linked")).unwrap();
    let write = |data: &str, mode| {
        let action = Mkfile { path: "linked/f".into(), mode, data: data.into(), ..Mkfile::default() };
        mkfile(&target, &action).unwrap();
    };
    write("long text", 0o755);
    write("short", 0o600);
    let file = dir.path().join("real/f");
    assert_eq!(fs::read_to_string(&file).unwrap(), "short");
    // The mode is for new files only.
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o755);
}
