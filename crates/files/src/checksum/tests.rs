//! Checksums and walks against answers that upstream's code gave (`cases.txt`), and what is ours alone.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::memo::{MemoKey, Remembered};
use super::*;
use crate::stat::Time;
use crate::testtree::{TestTree, decode, decode_list, is_root};
use crate::walk::Verdict;

/// `cases.txt`: trees, each followed by `sum <snap | ctx:include:exclude> <path> <follow><wildcard> <include> <exclude>
/// <required> <digest | error>` and `walk <include> <exclude> <follow> <paths>`.
fn cases() -> Vec<(Vec<String>, Vec<String>)> {
    // A longer list of the same format can be tried from outside.
    let text = match std::env::var_os("CHECKSUM_CASES") {
        Some(path) => fs::read_to_string(path).unwrap(),
        None => include_str!("cases.txt").to_owned(),
    };
    let mut trees: Vec<(Vec<String>, Vec<String>)> = Vec::new();
    for line in text.lines() {
        let line = line.to_owned();
        match line.split(' ').next().unwrap() {
            "tree" => trees.push((Vec::new(), Vec::new())),
            "sum" | "walk" => trees.last_mut().unwrap().1.push(line),
            _ => trees.last_mut().unwrap().0.push(line),
        }
    }
    trees
}

fn answer(tree: &TestTree, line: &str, real: bool, kept: &Tree) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let cancel = Cancel::new();
    if words[0] == "walk" {
        let filter = Filter {
            include: decode_list(words[1]),
            exclude: decode_list(words[2]),
            follow: decode_list(words[3]),
            hidden: None,
        };
        let walked = crate::walk::walk(&tree.root(), &filter, &mut |_, _| Verdict::Keep, &cancel);
        let Ok(entries) = walked else { return "error".to_owned() };
        let paths: Vec<String> = entries.iter().map(|entry| encode(entry.path.as_os_str().as_bytes())).collect();
        return if paths.is_empty() { "-".to_owned() } else { paths.join(",") };
    }
    let options = Options {
        follow_links: words[3].starts_with('1'),
        wildcard: words[3].ends_with('1'),
        include: decode_list(words[4]),
        exclude: decode_list(words[5]),
        required: decode_list(words[6]),
    };
    let place = Place::at(tree.root()).with_recall((!real).then_some(&tree.records as &dyn Recall));
    let path = decode(words[2]);
    let path = lexical::to_path(&path);
    let sum = match words[1].split(':').collect::<Vec<_>>()[..] {
        ["ctx", include, exclude] => {
            let filter = Filter { include: decode_list(include), exclude: decode_list(exclude), ..Filter::default() };
            let context = Tree::of_context(&tree.root(), &filter, &cancel).unwrap();
            context.checksum(&place, path, &options, &Env::default())
        }
        _ => {
            let fresh =
                Tree::of_snapshot().checksum(&place, path, &options, &Env { threads: Some(1), ..Env::default() });
            // The answer does not depend on what was asked before, nor on having been written down.
            let again = kept.checksum(&place, path, &options, &Env::default());
            assert_eq!(fresh.as_ref().ok(), again.as_ref().ok(), "{line}");
            let read = Tree::from_bytes(&kept.to_bytes()).unwrap();
            assert_eq!(read.checksum(&place, path, &options, &Env::default()).ok(), again.ok(), "{line}");
            fresh
        }
    };
    sum.map_or_else(|_| "error".to_owned(), |digest| digest.to_string())
}

fn encode(bytes: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b',');
    let text = |byte: &u8| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02x}") };
    bytes.iter().map(text).collect()
}

fn check_all(real: bool) {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (spec, questions) in cases() {
        let spec: Vec<&str> = spec.iter().map(String::as_str).collect();
        let tree = TestTree::build(&spec, real);
        let kept = Tree::of_snapshot();
        for line in &questions {
            // A local source is read as it is, records or not.
            if !real && line.starts_with("sum ctx") {
                continue;
            }
            count += 1;
            let (_, expected) = line.rsplit_once(' ').unwrap();
            let actual = answer(&tree, line, real, &kept);
            if actual != expected {
                wrong.push(format!("{}\n{line}\n  actual {actual}", spec.join("\n")));
            }
        }
    }
    let shown = wrong.iter().take(3).cloned().collect::<Vec<_>>().join("\n\n");
    assert!(wrong.is_empty(), "{} of {count} differ:\n{shown}", wrong.len());
}

#[test]
fn upstream_answers_hold_with_recorded_owners() {
    check_all(false);
}

#[test]
fn privileged_upstream_answers_hold() {
    if is_root() {
        check_all(true);
    }
}

fn scratch(files: &[(&str, &str)]) -> (tempfile::TempDir, Arc<Root>) {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let root = Arc::new(Root::open(dir.path()).unwrap());
    (dir, root)
}

fn context(root: &Root) -> Tree {
    Tree::of_context(root, &Filter::default(), &Cancel::new()).unwrap()
}

/// Counts what it is asked and told.
#[derive(Default)]
struct CountingMemo {
    kept: Mutex<HashMap<MemoKey, Remembered>>,
    hits: AtomicUsize,
}

impl Memo for CountingMemo {
    fn get(&self, key: &MemoKey) -> Option<Remembered> {
        let found = self.kept.lock().unwrap().get(key).copied();
        self.hits.fetch_add(usize::from(found.is_some()), Ordering::Relaxed);
        found
    }

    fn put(&self, key: &MemoKey, file: Remembered) {
        self.kept.lock().unwrap().insert(*key, file);
    }
}

#[test]
fn unchanged_files_are_not_read_again() {
    let (dir, root) = scratch(&[("a", "one"), ("d/b", "two"), ("d/c", "three")]);
    std::thread::sleep(std::time::Duration::from_millis(60));
    let memo = CountingMemo::default();
    let env = Env { memo: Some(&memo), ..Env::default() };
    let sum = || context(&root).checksum(&Place::at(root.clone()), "/", &Options::default(), &env).unwrap();
    let first = sum();
    assert_eq!((memo.kept.lock().unwrap().len(), memo.hits.load(Ordering::Relaxed)), (3, 0));
    assert_eq!(sum(), first);
    assert_eq!(memo.hits.load(Ordering::Relaxed), 3);
    // Same size, old time put back: the change of the inode still tells.
    let modified = fs::metadata(dir.path().join("a")).unwrap().modified().unwrap();
    fs::write(dir.path().join("a"), "ONE").unwrap();
    fs::File::options().write(true).open(dir.path().join("a")).unwrap().set_modified(modified).unwrap();
    assert_ne!(sum(), first);
    assert_eq!(memo.hits.load(Ordering::Relaxed), 5);
}

#[test]
fn fresh_files_are_not_remembered() {
    let at = |secs, nanos| Time { secs, nanos };
    let (_dir, root) = scratch(&[("a", "")]);
    let stat = Stat::from(root.stat("a", sys::path::Links::Refuse).unwrap());
    for (mtime, ctime, now, expected) in [
        (at(10, 5), at(10, 5), at(10, 5), false),
        (at(10, 5), at(10, 5), at(10, 15_000_000), false),
        (at(10, 5), at(10, 5), at(10, 30_000_000), true),
        (at(5, 5), at(10, 5), at(10, 6), false),
        // A time in the future, from a server or a program.
        (at(99, 5), at(10, 5), at(50, 0), false),
        // Whole seconds only: two of them must have passed.
        (at(10, 0), at(10, 0), at(11, 900_000_000), false),
        (at(10, 0), at(10, 0), at(12, 1), true),
    ] {
        assert_eq!(
            super::memo::settled_by(&Stat { mtime, ctime, ..stat }, now),
            expected,
            "{mtime:?} {ctime:?} {now:?}"
        );
    }
}

#[test]
fn answers_that_are_known_need_no_mount() {
    let (_dir, root) = scratch(&[("d/a", "one"), ("d/b", "two"), ("e/c", "three")]);
    let mounts = AtomicUsize::new(0);
    let mount = || {
        mounts.fetch_add(1, Ordering::Relaxed);
        Ok(root.clone())
    };
    let tree = Tree::of_snapshot();
    let ask = |tree: &Tree, path: &str| {
        tree.checksum(&Place::when_needed(&mount), path, &Options::default(), &Env::default())
    };
    let (sum, file) = (ask(&tree, "/d").unwrap(), ask(&tree, "/d/a").unwrap());
    assert_eq!(mounts.swap(0, Ordering::Relaxed), 1);
    assert!(ask(&tree, "/d/none").unwrap_err().is_not_found());
    // What no question touched was not looked at.
    assert_eq!(tree.paths(), ["d", "d/a", "d/b", "e"].map(PathBuf::from));
    let stored = tree.to_bytes();
    let read = Tree::from_bytes(&stored).unwrap();
    assert_eq!((ask(&read, "/d").unwrap(), ask(&read, "d/a").unwrap()), (sum, file));
    assert_eq!(mounts.load(Ordering::Relaxed), 0);
    ask(&read, "/e").unwrap();
    assert_eq!(mounts.load(Ordering::Relaxed), 1);
    for len in 0..stored.len() {
        assert!(matches!(Tree::from_bytes(&stored[..len]), Err(Error::Stored)), "cut at {len}");
    }
    for (index, _) in stored.iter().enumerate().take(200) {
        let mut damaged = stored.clone();
        damaged[index] ^= 0x41;
        // Whatever it is read as, nothing panics.
        drop(Tree::from_bytes(&damaged));
    }
}

#[test]
fn content_keys_join_the_selectors() {
    let (_dir, root) = scratch(&[("a", "one"), ("d/b", "two")]);
    let tree = context(&root);
    let place = Place::at(root.clone());
    let sum = |path: &str| tree.checksum(&place, path, &Options::default(), &Env::default()).unwrap();
    let key = |selectors: &[Selector]| content_key(selectors, Some((&tree, &place)), &Env::default());
    assert_eq!(key(&[]).unwrap(), Digest::of(sum("/").to_string()));
    let both = [Selector::of_copy("/a", true, true), Selector::of_copy("d/", false, false)];
    assert_eq!(key(&both).unwrap(), Digest::of(format!("{}\0{}", sum("/a"), sum("/d"))));
    let missing = key(&[Selector::of_copy("/none", true, true)]).unwrap_err();
    assert_eq!(missing.to_string(), "\"/none\": not found");
    // An empty input has a root and nothing else.
    let nothing = content_key(&[], None, &Env::default()).unwrap();
    assert_eq!(nothing, Digest::of(Digest::of(b"").to_string()));
    assert!(content_key(&both, None, &Env::default()).unwrap_err().is_not_found());
}

#[test]
fn selectors_are_put_together_as_upstream_does() {
    let copy = |path: &str| Selector::of_copy(path, true, true);
    let passwd = Selector::of_owner_file("/etc/passwd");
    let wild = copy("/src/*");
    assert!(wild.wildcard && !copy("/src/\\*").wildcard);
    let plain = Selector::of_copy("/b", true, false);
    let given = [copy("/b/c"), wild.clone(), copy("/b"), passwd.clone(), copy("/b"), plain.clone(), copy("/bc")];
    let expected = [plain, copy("/b"), copy("/bc"), passwd, wild];
    assert_eq!(dedupe_file_selectors(&given), expected);
    let text = "/src/*\0/etc/passwd\0/bc\0/b/c\0/b\0/b\0/b";
    assert_eq!(file_selector_digest(&given), Digest::of(text));
    let paths = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    assert_eq!(exec_selectors(&paths(&["/"])), []);
    assert_eq!(exec_selectors(&paths(&["/b/c", "/b", "/a"])), [copy("/a"), copy("/b")]);
    assert_eq!(exec_selectors(&paths(&["/b", "/"])), []);
    assert_eq!(exec_selector_digest(&paths(&["/b", "/a"])), Some(Digest::of("/b\0/a")));
    assert_eq!(exec_selector_digest(&[]), None);
}

#[test]
fn files_that_change_are_told_from_files_that_are_gone() {
    let (dir, root) = scratch(&[("a", "one"), ("b", "two")]);
    let tree = context(&root);
    fs::remove_file(dir.path().join("a")).unwrap();
    let sum =
        |tree: &Tree, path: &str| tree.checksum(&Place::at(root.clone()), path, &Options::default(), &Env::default());
    // The walk saw it.
    assert!(sum(&tree, "/a").unwrap_err().is_changed());
    assert!(sum(&context(&root), "/a").unwrap_err().is_not_found());
    assert!(sum(&tree, "/b").is_ok());
    // The walk read the target of a link, so the link that is hashed must be that one.
    std::os::unix::fs::symlink("one", dir.path().join("link")).unwrap();
    let tree = context(&root);
    fs::remove_file(dir.path().join("link")).unwrap();
    std::os::unix::fs::symlink("two", dir.path().join("link")).unwrap();
    assert!(sum(&tree, "/link").unwrap_err().is_changed());
    assert!(sum(&context(&root), "/link").is_ok());
    let cancel = Cancel::new();
    cancel.cancel();
    let env = Env { cancel: Some(&cancel), ..Env::default() };
    let stopped = context(&root).checksum(&Place::at(root.clone()), "/", &Options::default(), &env);
    assert!(matches!(stopped.unwrap_err(), Error::Cancelled(_)));
}
