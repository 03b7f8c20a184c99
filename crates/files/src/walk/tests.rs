//! What the map function does, and what a walk bears. Which paths filters select is checked with the checksums, whose
//! cases hold upstream's answers for walks too.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::testtree::is_root;

fn scratch() -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    for path in ["a/b/c/1", "a/b/2", "a/3", "d/4", "e"] {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    let root = Root::open(dir.path()).unwrap();
    (dir, root)
}

fn paths(root: &Root, filter: &Filter, map: MapFn<'_>) -> Vec<String> {
    let entries = walk(root, filter, map, &Cancel::new()).unwrap();
    entries.iter().map(|entry| entry.path.display().to_string()).collect()
}

fn filter(include: &[&str], exclude: &[&str], follow: &[&str]) -> Filter {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    Filter { include: texts(include), exclude: texts(exclude), follow: texts(follow), hidden: None }
}

#[test]
fn the_map_function_has_the_last_word() {
    let (_dir, root) = scratch();
    let everything = filter(&[], &[], &[]);
    let says = |hit: &str, verdict| {
        paths(&root, &everything, &mut |path: &Path, _: &mut Stat| {
            if path == Path::new(hit) { verdict } else { Verdict::Keep }
        })
    };
    assert_eq!(says("", Verdict::Keep), ["a", "a/3", "a/b", "a/b/2", "a/b/c", "a/b/c/1", "d", "d/4", "e"]);
    assert_eq!(says("a/b", Verdict::Exclude), ["a", "a/3", "a/b/2", "a/b/c", "a/b/c/1", "d", "d/4", "e"]);
    assert_eq!(says("a/b", Verdict::SkipDir), ["a", "a/3", "d", "d/4", "e"]);
    assert_eq!(says("a/3", Verdict::SkipDir), ["a", "d", "d/4", "e"]);
    let owners = walk(&root, &everything, &mut reset_owner, &Cancel::new()).unwrap();
    assert!(owners.iter().all(|entry| (entry.stat.uid, entry.stat.gid) == (0, 0)));
}

#[test]
fn directories_come_when_something_in_them_does() {
    let (_dir, root) = scratch();
    let deep = filter(&["a/b/c/1"], &[], &[]);
    assert_eq!(paths(&root, &deep, &mut |_, _| Verdict::Keep), ["a", "a/b", "a/b/c", "a/b/c/1"]);
    // The map function is asked for them then, too.
    let mut asked = Vec::new();
    let seen = paths(&root, &deep, &mut |path: &Path, _: &mut Stat| {
        asked.push(path.display().to_string());
        if path == Path::new("a/b") { Verdict::SkipDir } else { Verdict::Keep }
    });
    assert_eq!((seen, asked), (vec!["a".to_owned()], ["a/b/c/1", "a", "a/b"].map(str::to_owned).to_vec()));
    let but = filter(&[], &["a", "!a/b/2"], &[]);
    assert_eq!(paths(&root, &but, &mut |_, _| Verdict::Keep), ["a", "a/b", "a/b/2", "d", "d/4", "e"]);
}

#[test]
fn a_hidden_directory_is_known_by_what_it_is() {
    let (dir, root) = scratch();
    symlink("a", dir.path().join("link")).unwrap();
    let seen = |dir: &Path, given: Filter| {
        let hidden = Hidden::new(dir).map(Arc::new).unwrap();
        let seen = paths(&root, &Filter { hidden: Some(hidden.clone()), ..given }, &mut |_, _| Verdict::Keep);
        (seen, hidden.met().map(|path| path.display().to_string()))
    };
    let (path, met) = (|name: &str| dir.path().join(name), |name: &str| Some(name.to_owned()));
    let all = ["a", "a/3", "d", "d/4", "e", "link"].map(str::to_owned).to_vec();
    assert_eq!(seen(&path("link/b"), filter(&[], &[], &[])), (all, met("a/b")));
    // Something in it would be seen; it would be, but for patterns; nobody asks for it; it is not below the root.
    assert_eq!(seen(&path("a/b"), filter(&["**/1"], &[], &[])), (vec![], met("a/b")));
    let rest = ["a", "a/3"].map(str::to_owned).to_vec();
    assert_eq!(seen(&path("a/b"), filter(&[], &["a/b", "d", "e", "link"], &[])), (rest, None));
    assert_eq!(seen(&path("a/b"), filter(&["d"], &[], &[])), (vec!["d".to_owned(), "d/4".to_owned()], None));
    assert_eq!(seen(&path("."), filter(&["e"], &[], &[])), (vec!["e".to_owned()], None));
    assert_eq!(Hidden::new(&path("none")), None);
}

#[test]
fn follow_paths_take_what_links_lead_to() {
    let (dir, root) = scratch();
    symlink("a/b", dir.path().join("link")).unwrap();
    symlink("loop/x", dir.path().join("loop")).unwrap();
    symlink("/link/2", dir.path().join("far")).unwrap();
    let follow = |list: &[&str]| paths(&root, &filter(&[], &[], list), &mut |_, _| Verdict::Keep);
    assert_eq!(follow(&["link/2"]), ["a", "a/b", "a/b/2", "link"]);
    assert_eq!(follow(&["link/2", "link/c"]), ["a", "a/b", "a/b/2", "a/b/c", "a/b/c/1", "link"]);
    assert_eq!(follow(&["/far"]), ["a", "a/b", "a/b/2", "far", "link"]);
    assert_eq!(follow(&["loop"]), ["loop"]);
    assert_eq!(follow(&["../../e"]), ["e"]);
    assert_eq!(follow(&["none"]), Vec::<String>::new());
    assert_eq!(follow(&["."]).len(), 12);
}

#[test]
fn nobody_looks_into_what_is_excluded() {
    if is_root() {
        // Root may read everything.
        return;
    }
    let (dir, root) = scratch();
    fs::set_permissions(dir.path().join("a/b"), fs::Permissions::from_mode(0o0)).unwrap();
    let kept = paths(&root, &filter(&[], &["a/b"], &[]), &mut |_, _| Verdict::Keep);
    assert_eq!(kept, ["a", "a/3", "d", "d/4", "e"]);
    let error = walk(&root, &Filter::default(), &mut reset_owner, &Cancel::new()).unwrap_err();
    assert_eq!(crate::chain(&error).to_string(), "cannot open `a/b`: Permission denied (os error 13)");
    fs::set_permissions(dir.path().join("a/b"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn bad_patterns_and_cancelled_walks_end_it() {
    let (_dir, root) = scratch();
    let said = |filter: &Filter, cancel: &Cancel| {
        crate::chain(&walk(&root, filter, &mut reset_owner, cancel).unwrap_err()).to_string()
    };
    let fresh = Cancel::new();
    assert_eq!(said(&filter(&["[a"], &[], &[]), &fresh), "invalid include patterns: syntax error in pattern `[a`");
    assert_eq!(said(&filter(&[], &["!"], &[]), &fresh), "invalid exclude patterns: illegal exclusion pattern: `!`");
    fresh.cancel();
    assert_eq!(said(&Filter::default(), &fresh), "cancelled");
}

/// Paths below a directory in walk order, but for directories that are named `hidden` and what is in them.
fn expected(dir: &Path, prefix: &str) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort_unstable();
    let mut paths = Vec::new();
    for name in names.iter().filter(|name| *name != "hidden") {
        let path = format!("{prefix}{}", name.to_str().unwrap());
        let below = dir.join(name);
        let inner = if below.is_dir() { expected(&below, &format!("{path}/")) } else { Vec::new() };
        paths.push(path);
        paths.extend(inner);
    }
    paths
}

#[test]
fn what_is_read_ahead_comes_in_the_same_order() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..60 {
        for path in ["1", "hidden/2", "in/3", "in/hidden/4", "in/in/5", "z"] {
            let path = dir.path().join(format!("dir{number}/{path}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "content").unwrap();
        }
    }
    let root = Root::open(dir.path()).unwrap();
    let expected = expected(dir.path(), "");
    assert_eq!(expected.len(), 60 * 7);
    // Threads meet in another way each time.
    for _ in 0..20 {
        let seen = paths(&root, &Filter::default(), &mut |path: &Path, stat: &mut Stat| {
            assert_eq!(stat.kind == Kind::File, stat.size == 7 && stat.nlink == 1, "{}", path.display());
            if path.ends_with("hidden") { Verdict::SkipDir } else { Verdict::Keep }
        });
        assert_eq!(seen, expected);
    }
}
