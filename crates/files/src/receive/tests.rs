use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;

use base::Cancel;

use super::*;
use crate::checksum;
use crate::walk::Filter;

#[derive(Default)]
struct Known(Mutex<HashMap<MemoKey, Remembered>>);

impl Memo for Known {
    fn get(&self, key: &MemoKey) -> Option<Remembered> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(key).copied()
    }
    fn put(&self, key: &MemoKey, file: Remembered) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(*key, file);
    }
}

fn sent(path: &str, kind: Kind, mode: u32, text: &str) -> Sent {
    let is_file = kind == Kind::File;
    Sent {
        path: path.as_bytes().to_vec(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        size: if is_file { text.len() as u64 } else { 0 },
        mtime: Time { secs: 1_000_000_000, nanos: 5 },
        link: if kind == Kind::Symlink { text.as_bytes().to_vec() } else { Vec::new() },
        rdev: 0,
        xattrs: Xattrs::new(),
    }
}

fn file(path: &str, text: &str) -> Sent {
    sent(path, Kind::File, 0o644, text)
}

fn dir(path: &str) -> Sent {
    sent(path, Kind::Dir, 0o755, "")
}

/// What a walk that looks at everything counts.
fn allocated_below(dir: &Path, seen: &mut HashSet<u64>) -> u64 {
    let entries = std::fs::read_dir(dir).expect("read").map(|entry| entry.expect("read"));
    let of = |entry: std::fs::DirEntry| {
        let meta = entry.metadata().expect("looked at");
        let below = if meta.is_dir() { allocated_below(&entry.path(), seen) } else { 0 };
        if seen.insert(meta.ino()) { below + meta.blocks() * 512 } else { below }
    };
    entries.map(of).sum()
}

struct Place {
    dir: tempfile::TempDir,
    memo: Known,
    mirror: Option<Mirror>,
    entries: Vec<Entry>,
    /// Of the last transfer, whether it told that something was about to change.
    changed: bool,
}

impl Place {
    fn new() -> Place {
        Place {
            dir: tempfile::tempdir().expect("a directory"),
            memo: Known::default(),
            mirror: None,
            entries: Vec::new(),
            changed: false,
        }
    }

    /// Sends files with their texts; answers those whose bytes were wanted.
    fn receive(&mut self, files: &[(Sent, &str)]) -> Result<Vec<String>, Error> {
        let root = Root::open(self.dir.path()).expect("opens");
        self.changed = false;
        let mut told = || {
            self.changed = true;
            Ok(())
        };
        let before = self.mirror.take();
        let mut receiver = Receiver::new(&root, before.clone(), Differ::Metadata, &self.memo, &mut told)?;
        let mut wanted = Vec::new();
        for (sent, text) in files {
            let index = receiver.count();
            if receiver.take(sent.clone())? == Bytes::Wanted {
                wanted.push((index, *text));
            }
        }
        let mut names = Vec::new();
        // Bytes come in any order.
        for (index, text) in wanted.into_iter().rev() {
            if !text.is_empty() {
                receiver.write(index, text.as_bytes())?;
            }
            receiver.close(index)?;
            names.insert(0, String::from_utf8_lossy(&files[index].0.path).into_owned());
        }
        let received = receiver.finish()?;
        let mut bytes = Vec::new();
        received.write_to(&mut bytes);
        let mirror = Mirror::from_bytes(bytes).expect("reads");
        assert!(self.changed || before.as_ref() == Some(&mirror));
        assert_eq!(
            received.allocated().expect("counted at once"),
            allocated_below(self.dir.path(), &mut HashSet::new())
        );
        self.entries = received.into_entries().collect();
        let mut stored = Files::default();
        Records::of(Some(mirror.clone())).for_each(|file| stored.push(&file));
        assert_eq!(Received(stored).into_entries().collect::<Vec<_>>(), self.entries);
        self.mirror = Some(mirror);
        self.is_whole();
        Ok(names)
    }

    /// What is remembered is what a walk and a checksum of the directory see.
    fn is_whole(&self) {
        let root = std::sync::Arc::new(Root::open(self.dir.path()).expect("opens"));
        let walked = crate::walk::walk(&root, &Filter::default(), &mut crate::walk::reset_owner, &Cancel::new());
        let walked = walked.expect("walks");
        let short = |entries: &[Entry]| -> Vec<_> {
            let line = |e: &Entry| (e.path.clone(), e.stat.kind, e.stat.mode, e.stat.mtime, e.stat.ino, e.link.clone());
            entries.iter().map(line).collect()
        };
        assert_eq!(short(&self.entries), short(&walked));
        let sum = |entries: Vec<Entry>, memo: Option<&dyn Memo>| {
            let tree = checksum::Tree::of_entries(entries);
            let env = checksum::Env { memo, ..checksum::Env::default() };
            let place = checksum::Place::at(root.clone());
            tree.checksum(&place, "/", &checksum::Options::default(), &env).expect("a checksum")
        };
        assert_eq!(sum(self.entries.clone(), Some(&self.memo)), sum(walked, None));
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(path)).expect(path)
    }

    fn has(&self, path: &str) -> bool {
        Path::new(&self.dir.path().join(path)).symlink_metadata().is_ok()
    }
}

#[test]
fn only_what_changed_is_wanted() {
    let mut place = Place::new();
    let first = [
        (file("a", "one"), "one"),
        (dir("d"), ""),
        (dir("d/e"), ""),
        (file("d/e/f", "deep"), "deep"),
        (sent("d/l", Kind::Symlink, 0o777, "../a"), ""),
        (sent("d.x", Kind::File, 0o4755, "tool"), "tool"),
        (sent("p", Kind::Fifo, 0o600, ""), ""),
    ];
    assert_eq!(place.receive(&first).expect("first"), ["a", "d/e/f", "d.x"]);
    assert_eq!(place.receive(&first).expect("again"), [""; 0]);
    assert!(!place.changed);
    assert_eq!(place.text("d/l"), "one");
    let mut changed = first.to_vec();
    changed[3] = (file("d/e/f", "deeper"), "deeper");
    assert_eq!(place.receive(&changed).expect("one changed"), ["d/e/f"]);
    assert_eq!(place.text("d/e/f"), "deeper");
    assert_eq!(place.receive(&changed[..2]).expect("fewer"), [""; 0]);
    assert!(!place.has("d/e") && !place.has("d.x") && place.has("d"));
}

#[test]
fn a_file_becomes_a_directory_and_back() {
    let mut place = Place::new();
    place.receive(&[(file("x", "1"), "1"), (file("y", "2"), "2")]).expect("files");
    place.receive(&[(dir("x"), ""), (file("x/z", "3"), "3"), (file("y", "2"), "2")]).expect("a directory");
    assert_eq!(place.text("x/z"), "3");
    assert_eq!(place.receive(&[(file("x", "1"), "1"), (file("y", "2"), "2")]).expect("files"), ["x"]);
    assert_eq!(place.text("x"), "1");
}

#[test]
fn other_names_are_the_same_file() {
    let mut place = Place::new();
    let name = |path: &str, of: &str| (Sent { size: 0, link: of.into(), ..file(path, "") }, "");
    let files = [(file("a", "text"), "text"), name("b", "a"), (dir("d"), ""), name("d/c", "a")];
    place.receive(&files).expect("linked");
    assert_eq!((place.text("b"), place.text("d/c")), ("text".into(), "text".into()));
    place.receive(&files).expect("again");
    let changed = [(file("a", "other"), "other"), name("b", "a"), (dir("d"), ""), name("d/c", "a")];
    assert_eq!(place.receive(&changed).expect("changed"), ["a"]);
    assert_eq!((place.text("b"), place.text("d/c")), ("other".into(), "other".into()));
    place.receive(&changed[..1]).expect("one name is left");
    assert!(place.receive(&[name("b", "nowhere")]).is_err());
}

#[test]
fn hostile_lists_are_refused() {
    for files in [
        vec![file("../x", "")],
        vec![file("/x", "")],
        vec![file("a/./b", "")],
        vec![file("", "")],
        vec![file("b", ""), file("a", "")],
        vec![file("a", ""), file("a", "")],
        vec![file("a/b", "")],
        vec![file("a", ""), file("a/b", "")],
        vec![sent("l", Kind::Symlink, 0o777, "/etc"), file("l/passwd", "")],
        vec![file("a\0b", "")],
    ] {
        let mut place = Place::new();
        let files: Vec<_> = files.into_iter().map(|file| (file, "")).collect();
        assert!(place.receive(&files).is_err(), "{files:?}");
    }
}

#[test]
fn what_was_interrupted_is_emptied() {
    let mut place = Place::new();
    place.receive(&[(file("a", "1"), "1")]).expect("files");
    // The mirror was taken out and never put back.
    place.mirror = None;
    std::fs::write(place.dir.path().join("half"), "x").expect("writes");
    assert_eq!(place.receive(&[(file("a", "1"), "1")]).expect("anew"), ["a"]);
    assert!(!place.has("half"));
}

#[test]
fn damaged_records_are_none() {
    let mut place = Place::new();
    place.receive(&[(file("a", "1"), "1"), (dir("d"), "")]).expect("files");
    let bytes = place.mirror.take().expect("a mirror").0;
    for len in 0..bytes.len() {
        let cut = Mirror::from_bytes(bytes[..len].to_vec());
        assert!(cut.is_none_or(|mirror| Records::of(Some(mirror)).count() < 2), "{len}");
    }
    assert_eq!(Mirror::from_bytes(b"mirror99".to_vec()), None);
}

#[test]
fn names_that_no_file_system_takes_are_refused_at_once() {
    let root = tempfile::tempdir().expect("a directory");
    let root = Root::open(root.path()).expect("opens");
    let long = |len| "x".repeat(len);
    let deep = vec![long(200); 21].join("/");
    let link = Sent { link: long(5000).into_bytes(), ..file("a", "") };
    for (sent, what) in [
        (file(&long(8 << 20), ""), "name is longer than 255 bytes"),
        (file(&deep, ""), "path is longer than 4096 bytes"),
        (link, "link is longer than 4096 bytes"),
    ] {
        let refused = Receiver::beside(&root).take(sent).expect_err("too long").to_string();
        assert!(refused.contains(what) && refused.len() < 200, "{refused}");
    }
    assert_eq!(Receiver::beside(&root).take(file(&long(255), "")).expect("fits"), Bytes::Wanted);
}

/// A user's directory takes those attributes that it can; a mirror fails for what is no matter of rights.
#[test]
fn attributes_that_a_directory_cannot_take_are_left_out() {
    let xattrs: Xattrs = [("user.large", vec![0; 70_000]), ("user.small", b"x".to_vec())]
        .map(|(name, value)| (name.as_bytes().to_vec(), value))
        .into();
    let sent = [Sent { xattrs: xattrs.clone(), ..dir("d") }, Sent { xattrs, ..file("d/f", "") }];
    let place = tempfile::tempdir().expect("a directory");
    let root = Root::open(place.path()).expect("opens");
    let mut receiver = Receiver::beside(&root);
    for (index, sent) in sent.iter().enumerate() {
        if receiver.take(sent.clone()).expect("taken") == Bytes::Wanted {
            receiver.close(index).expect("whole");
        }
    }
    receiver.finish().expect("settled");
    for name in ["d", "d/f"] {
        let found = sys::xattr::all(&place.path().join(name), |name| name.starts_with(b"user.")).expect("read");
        assert_eq!(found, [(b"user.small".to_vec(), b"x".to_vec())], "{name}");
    }
    let error = Place::new().receive(&[(sent[0].clone(), "")]).expect_err("too large").to_string();
    assert!(error.starts_with("cannot set attribute of "), "{error}");
}
