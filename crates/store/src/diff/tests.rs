//! Random edits of trees: what `changes` says of them, applied elsewhere, gives the same tree.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use base::Cancel;
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};

use crate::tests::{each_driver, inside, open_with, step};
use crate::*;

/// A small generator: each seed is one history of edits.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

const NAMES: [&str; 9] = ["a", "b", "a-b", "a.b", "c", "dir", "x y", "\u{e4}", "zz"];

fn everything(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        let mut children: Vec<PathBuf> =
            fs::read_dir(&dir).expect("a directory").map(|e| e.expect("an entry").path()).collect();
        children.sort();
        for child in children {
            if fs::symlink_metadata(&child).expect("there").is_dir() {
                waiting.push(child.clone());
            }
            found.push(child);
        }
    }
    found.sort();
    found
}

fn set_time(path: &Path, secs: i64, nanos: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("a time is set");
}

/// One random edit; those that make no sense on what they hit do nothing.
fn edit(root: &Path, dice: &mut Dice, as_root: bool, upstream: bool) {
    let all = everything(root);
    let pick = |dice: &mut Dice| all.get(dice.roll(all.len().max(1) as u64) as usize).cloned();
    let place = |dice: &mut Dice| {
        let dirs: Vec<&PathBuf> = all.iter().filter(|p| fs::symlink_metadata(p).is_ok_and(|m| m.is_dir())).collect();
        let dir = match dirs.is_empty() || dice.roll(3) == 0 {
            true => root.to_owned(),
            false => dirs[dice.roll(dirs.len() as u64) as usize].clone(),
        };
        dir.join(NAMES[dice.roll(NAMES.len() as u64) as usize])
    };
    let _ = match dice.roll(19) {
        0..=3 => {
            let (path, data) = (place(dice), vec![dice.roll(256) as u8; dice.roll(5000) as usize]);
            // Not through links, and not into a fifo that nobody reads.
            match fs::symlink_metadata(&path) {
                Ok(m) if !m.is_file() => Ok(()),
                _ => fs::write(path, data),
            }
        }
        4 | 5 => fs::create_dir(place(dice)),
        6 => pick(dice).map_or(Ok(()), fs::remove_file),
        7 => pick(dice).map_or(Ok(()), fs::remove_dir_all),
        8 => symlink(["a", "../b", "/c", "gone"][dice.roll(4) as usize], place(dice)),
        9 => pick(dice).map_or(Ok(()), |path| fs::hard_link(path, place(dice))),
        10 => match pick(dice).filter(|path| !path.is_symlink()) {
            Some(path) => fs::set_permissions(
                path,
                PermissionsExt::from_mode([0o755, 0o700, 0o4711, 0o1777, 0o644][dice.roll(5) as usize]),
            ),
            None => Ok(()),
        },
        11 if as_root => {
            pick(dice).map_or(Ok(()), |path| std::os::unix::fs::lchown(path, Some(dice.roll(3) as u32), Some(7)))
        }
        12 => match (pick(dice), place(dice)) {
            // Overlayfs may refuse to rename directories that lie below.
            (Some(from), to) => fs::rename(from, to),
            _ => Ok(()),
        },
        // A directory removed and made again hides what was in it.
        13 => match pick(dice).filter(|path| path.is_dir() && !path.is_symlink()) {
            Some(path) => fs::remove_dir_all(&path)
                .and_then(|()| fs::create_dir(&path))
                .and_then(|()| fs::write(path.join("new"), "n")),
            None => Ok(()),
        },
        14 => {
            let kind = if as_root && dice.roll(2) == 0 { FileType::CharacterDevice } else { FileType::Fifo };
            let dev = if kind == FileType::Fifo { 0 } else { rustix::fs::makedev(1, 3) };
            rustix::fs::mknodat(CWD, place(dice), kind, Mode::RWXU, dev).map_err(Into::into)
        }
        15 if !upstream => match pick(dice).filter(|path| !path.is_symlink() && (path.is_file() || path.is_dir())) {
            Some(path) => sys::xattr::set(&path, c"user.note", &[dice.roll(256) as u8]),
            None => Ok(()),
        },
        16 if as_root => match pick(dice).filter(|path| path.is_file() && !path.is_symlink()) {
            Some(path) => sys::xattr::set(
                &path,
                c"security.capability",
                &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            None => Ok(()),
        },
        // Changed in nothing that counts: a copy-up that is no change.
        17 => match pick(dice).filter(|path| path.is_file() && !path.is_symlink()) {
            Some(path) => fs::metadata(&path).and_then(|m| fs::set_permissions(&path, m.permissions())),
            None => Ok(()),
        },
        _ => {
            if let Some(path) = pick(dice) {
                let secs = 1_000_000 + dice.roll(3) as i64;
                set_time(&path, secs, if upstream { 0 } else { dice.roll(2) as i64 });
            }
            Ok(())
        }
    };
}

pub(crate) fn edits(root: &Path, dice: &mut Dice, count: u64, upstream: bool) {
    let as_root = rustix::process::geteuid().is_root();
    for _ in 0..count {
        edit(root, dice, as_root, upstream);
    }
}

/// Everything that a layer carries, path by path; of times whole seconds, and those of directories not always. With `links`, names of one file share a number.
pub(crate) fn picture(root: &Path, links: bool) -> Vec<String> {
    let mut inodes: BTreeMap<u64, usize> = BTreeMap::new();
    let mut lines = Vec::new();
    for path in everything(root) {
        let m = fs::symlink_metadata(&path).expect("there");
        let name = path.strip_prefix(root).expect("below").display().to_string();
        let next = inodes.len();
        let inode = if m.is_dir() || !links { 0 } else { *inodes.entry(m.ino()).or_insert(next) };
        let data = match m.file_type() {
            t if t.is_symlink() => format!("-> {}", fs::read_link(&path).expect("a link").display()),
            t if t.is_file() => base::Digest::of(fs::read(&path).expect("a file")).short(),
            _ => format!("{:x}", m.rdev()),
        };
        let keep = |name: &[u8]| name == b"security.capability" || name.starts_with(b"user.note");
        let xattrs = sys::xattr::all(&path, keep).expect("readable");
        let mode = if m.is_symlink() { 0 } else { m.mode() };
        let time = if m.is_dir() { 0 } else { m.mtime() };
        lines.push(format!("{name} {mode:o} {}:{} {time} #{inode} {data} {xattrs:?}", m.uid(), m.gid()));
    }
    lines
}

/// Two steps of random edits in one store; their tars, unpacked as pulled layers in another store.
fn round_trip(seed: u64) {
    each_driver(|scratch, store| {
        let mut dice = Dice::new(seed);
        let base = step(&store, scratch, None, |root| edits(root, &mut dice, 40, false));
        let top = step(&store, scratch, Some(&base), |root| edits(root, &mut dice, 25, false));
        let target = scratch.join("other");
        let other = open_with(&target, store.driver().driver);
        let mut parent: Option<Hold> = None;
        let mut chain = None;
        for hold in [&base, &top] {
            let tar = store.snapshots().write_tar(&hold.id(), Vec::new(), &Cancel::new()).expect("a tar");
            let digest = base::Digest::of(&tar);
            let chain_id = chain.map_or(digest, |chain: base::Digest| base::Digest::of(format!("{chain} {digest}")));
            chain = Some(chain_id);
            let layer = LazyLayer {
                digest,
                size: tar.len() as u64,
                media_type: "application/vnd.oci.image.layer.v1.tar".into(),
                diff_id: digest,
                chain_id,
                sources: Vec::new(),
                urls: Vec::new(),
                annotations: Default::default(),
                from_cache: false,
            };
            let on = parent.as_ref().map(Hold::id);
            let lazy =
                other.snapshots().register_lazy(on.as_ref(), layer, PrepareOptions::default()).expect("registered");
            other
                .snapshots()
                .unpack(&lazy.id(), std::io::Cursor::new(tar), &files::untar::Limits::default(), &Cancel::new())
                .expect("unpacked");
            // Overlayfs breaks hard links when it copies one of the names up: those it cannot tell from others.
            let links = store.driver().driver == Driver::Copy;
            let look = |store: &Store, id| {
                inside(&store.snapshots().view(&id).expect("a view"), scratch, |root| picture(root, links))
            };
            assert_eq!(look(&other, lazy.id()), look(&store, hold.id()), "seed {seed} {:?}", store.driver().driver);
            parent = Some(lazy);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn privileged_changes_lead_to_the_same_tree(seed in any::<u64>()) {
        round_trip(seed);
    }
}

/// What `changes` says, in short: `A path`, `M path`, `D path`, `(path)` for implied directories, `path => first` for links.
fn spell(store: &Store, hold: &Hold) -> Vec<String> {
    let mut lines = Vec::new();
    let visit = |change: &Change| {
        let path = String::from_utf8_lossy(&change.path).into_owned();
        lines.push(match (change.kind, change.implied, &change.hardlink) {
            (_, true, _) => format!("({path})"),
            (_, _, Some(first)) => format!("{path} => {}", String::from_utf8_lossy(first)),
            (ChangeKind::Add, ..) => format!("A {path}"),
            (ChangeKind::Modify, ..) => format!("M {path}"),
            (ChangeKind::Delete, ..) => format!("D {path}"),
        });
        Ok::<(), Error>(())
    };
    store.snapshots().changes(&hold.id(), visit).expect("changes");
    lines
}

/// A step's edits, and what its layer says then.
type Case = (&'static str, fn(&Path), &'static [&'static str]);

#[test]
fn privileged_layers_say_what_upstreams_say() {
    let write = |path: PathBuf, text: &str| fs::write(path, text).expect("written");
    let cases: &[Case] = &[
        ("nothing", |_| (), &[]),
        (
            "a new file brings its directory",
            |root| fs::write(root.join("d/s/new"), "x").expect("written"),
            &["(d)", "(d/s)", "A d/s/new"],
        ),
        (
            "a changed mode of a directory",
            |root| fs::set_permissions(root.join("d"), PermissionsExt::from_mode(0o700)).expect("set"),
            &["M d"],
        ),
        ("a removed file", |root| fs::remove_file(root.join("d/f")).expect("removed"), &["(d)", "D d/f"]),
        ("a removed directory is one whiteout", |root| fs::remove_dir_all(root.join("d")).expect("removed"), &["D d"]),
        (
            "a file in place of a directory",
            |root| {
                fs::remove_dir_all(root.join("d")).expect("removed");
                fs::write(root.join("d"), "x").expect("written");
            },
            &["M d"],
        ),
        (
            "a directory made anew deletes one by one",
            |root| {
                fs::remove_dir_all(root.join("d")).expect("removed");
                fs::create_dir(root.join("d")).expect("made");
                fs::write(root.join("d/f"), "other").expect("written");
            },
            &["(d)", "M d/f", "D d/s"],
        ),
        (
            "names with a dash sort behind what is in the directory",
            |root| {
                fs::write(root.join("d-x"), "x").expect("written");
                fs::write(root.join("d/z"), "x").expect("written");
            },
            &["(d)", "A d/z", "A d-x"],
        ),
        (
            "the second name of a file is a link to the first",
            |root| {
                fs::write(root.join("n1"), "x").expect("written");
                fs::hard_link(root.join("n1"), root.join("n2")).expect("linked");
            },
            &["A n1", "n2 => n1"],
        ),
        (
            "made and removed again",
            |root| {
                fs::write(root.join("t"), "x").expect("written");
                fs::remove_file(root.join("t")).expect("removed");
            },
            &[],
        ),
    ];
    each_driver(|scratch, store| {
        let base = step(&store, scratch, None, |root| {
            fs::create_dir_all(root.join("d/s")).expect("made");
            write(root.join("d/f"), "f");
            write(root.join("d/s/g"), "g");
            write(root.join("top"), "t");
        });
        assert_eq!(spell(&store, &base), ["A d", "A d/f", "A d/s", "A d/s/g", "A top"]);
        for (what, work, expected) in cases {
            let hold = step(&store, scratch, Some(&base), work);
            assert_eq!(spell(&store, &hold), *expected, "{what}, {:?}", store.driver().driver);
        }
    });
}

#[test]
fn privileged_changes_between_any_two_snapshots() {
    each_driver(|scratch, store| {
        let a = step(&store, scratch, None, |root| fs::write(root.join("a"), "1").expect("written"));
        let b = step(&store, scratch, Some(&a), |root| fs::write(root.join("b"), "2").expect("written"));
        let c = step(&store, scratch, Some(&b), |root| fs::remove_file(root.join("a")).expect("removed"));
        let paths = |lower: Option<&Hold>, upper: Option<&Hold>| {
            let mut seen = Vec::new();
            let (lower, upper) = (lower.map(Hold::id), upper.map(Hold::id));
            let visit = |change: &Change| {
                seen.push(format!("{:?} {}", change.kind, String::from_utf8_lossy(&change.path)));
                Ok::<(), Error>(())
            };
            store.snapshots().changes_between(lower.as_ref(), upper.as_ref(), visit).expect("changes");
            seen
        };
        assert_eq!(paths(Some(&a), Some(&c)), ["Delete a", "Add b"]);
        assert_eq!(paths(None, Some(&b)), ["Add a", "Add b"]);
        assert_eq!(paths(Some(&b), None), ["Delete a", "Delete b"]);
        assert_eq!(paths(Some(&c), Some(&c)), [""; 0]);
    });
}
