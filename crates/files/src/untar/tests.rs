//! Honest, odd and hostile archives.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use sys::shadow::Shadow;
use sys::xattr;

use super::metadata::CAPABILITY;
use super::*;

/// Entries and their data, from memory.
struct Script {
    entries: std::vec::IntoIter<(Entry, Vec<u8>)>,
    data: io::Cursor<Vec<u8>>,
}

impl Source for Script {
    fn next(&mut self) -> io::Result<Option<Entry>> {
        Ok(self.entries.next().map(|(entry, data)| {
            self.data = io::Cursor::new(data);
            entry
        }))
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut self.data, buf)
    }
}

fn ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

fn entry(path: &str, kind: EntryKind, mode: u32) -> Entry {
    let (uid, gid) = ids();
    Entry { path: path.into(), kind, mode, uid, gid, mtime: (1_000, 5), atime: None, xattrs: Vec::new() }
}

/// One line of an archive in short form: `dir/`, `file=data`, `link->target`, `hard=>target`, `fifo|`.
fn parse(line: &str) -> (Entry, Vec<u8>) {
    if let Some((path, target)) = line.split_once("=>") {
        (entry(path, EntryKind::Hardlink(target.into()), 0o644), Vec::new())
    } else if let Some((path, target)) = line.split_once("->") {
        (entry(path, EntryKind::Symlink(target.into()), 0o777), Vec::new())
    } else if let Some((path, data)) = line.split_once('=') {
        (entry(path, EntryKind::Regular { size: data.len() as u64 }, 0o644), data.into())
    } else if let Some(path) = line.strip_suffix('|') {
        (entry(path, EntryKind::Fifo, 0o600), Vec::new())
    } else {
        (entry(line, EntryKind::Directory, 0o755), Vec::new())
    }
}

fn run(root: &Path, entries: Vec<(Entry, Vec<u8>)>, options: &Options) -> Result<Report, Error> {
    let mut script = Script { entries: entries.into_iter(), data: io::Cursor::default() };
    unpack(open_root(root).expect("a directory"), &mut script, options)
}

fn run_lines(root: &Path, lines: &[&str], options: &Options) -> Result<Report, Error> {
    run(root, lines.iter().map(|line| parse(line)).collect(), options)
}

/// The tree in the short form of [`parse`], sorted.
fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, out: &mut Vec<String>) {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
            let kind = fs::symlink_metadata(&path).expect("there").file_type();
            if kind.is_dir() {
                out.push(format!("{name}/"));
                walk(root, &path, out);
            } else if kind.is_symlink() {
                out.push(format!("{name}->{}", fs::read_link(&path).expect("a link").display()));
            } else if kind.is_fifo() {
                out.push(format!("{name}|"));
            } else if kind.is_char_device() {
                out.push(format!("{name} whiteout"));
            } else {
                out.push(format!("{name}={}", fs::read_to_string(&path).expect("a file")));
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out.sort();
    out
}

fn scratch() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("a directory");
    (dir, root)
}

#[test]
fn archives_become_trees() {
    for (lines, expected) in [
        (&["a/", "a/b=1", "a/c->b", "a/d=>a/b", "f|"][..], &["a/", "a/b=1", "a/c->b", "a/d=1", "f|"][..]),
        // Names are cleaned; absolute ones start at the root; the root itself is left alone.
        (&["./", "/", "./x=1", "/y=2", "a//b/./c=3", "a/../z=4"], &["a/", "a/b/", "a/b/c=3", "x=1", "y=2", "z=4"]),
        // The later entry wins, whatever the earlier one was.
        (&["x=1", "x=2"], &["x=2"]),
        (&["x/", "x/y=1", "x=2"], &["x=2"]),
        (&["x->y", "x=2"], &["x=2"]),
        (&["x=1", "x/", "x/y=2"], &["x/", "x/y=2"]),
        (&["x/", "x/y=1", "x/", "x/z=2"], &["x/", "x/y=1", "x/z=2"]),
        // Links on the way are followed below the root.
        (&["d/", "l->d", "l/f=1"], &["d/", "d/f=1", "l->d"]),
        (&["d/e/", "l->/d/e", "l/f=1"], &["d/", "d/e/", "d/e/f=1", "l->/d/e"]),
        (&["d/", "d/up->../../..", "d/up/f=1"], &["d/", "d/up->../../..", "f=1"]),
        (&["l->.", "l/l/x=1"], &["l->.", "x=1"]),
        (&["l->.", "l/l=1", "l"], &["l/"]),
        // What they lead to may be in a layer below.
        (&["s->etc", "s/f=1"], &["etc/", "etc/f=1", "s->etc"]),
        (&["s->/etc", "s/d/", "s/d/f=1"], &["etc/", "etc/d/", "etc/d/f=1", "s->/etc"]),
        (&["etc->usr", "etc/a/b=1"], &["etc->usr", "usr/", "usr/a/", "usr/a/b=1"]),
        (&["s->t", "t->u/v", "s/f=1", "u/v/g=2"], &["s->t", "t->u/v", "u/", "u/v/", "u/v/f=1", "u/v/g=2"]),
        (&["s->../../no/../etc", "s/f=1"], &["etc/", "etc/f=1", "s->../../no/../etc"]),
        (&["s->etc", "s/f=1", "s/g=2", "etc/h=3"], &["etc/", "etc/f=1", "etc/g=2", "etc/h=3", "s->etc"]),
        (&["s->etc", "s/.wh.f="], &["etc/", "etc/f whiteout", "s->etc"]),
        (&["s->etc", "s/f=1", "s=2"], &["etc/", "etc/f=1", "s=2"]),
        (&[".wh.etc=", "s->etc", "s/f=1"], &["etc/", "etc/f=1", "s->etc"]),
        // A hard link to a link is that link.
        (&["l->t", "h=>l"], &["h->t", "l->t"]),
        (&["d/", "d/f=1", "l->d", "h=>l/f"], &["d/", "d/f=1", "h=1", "l->d"]),
    ] {
        let (_dir, root) = scratch();
        run_lines(&root, lines, &Options::layer(Whiteouts::Overlay { userxattr: true }))
            .unwrap_or_else(|e| panic!("{lines:?}: {e:?}"));
        assert_eq!(tree(&root), expected, "{lines:?}");
    }
}

#[test]
fn nothing_leaves_the_root() {
    for lines in [
        &["l->../outside", "l/f=pwned"][..],
        &["l->/../outside", "l/f=pwned"],
        &["a->..", "a/outside/f=pwned"],
        &["a/", "a/b->../..", "a/b/outside/f=pwned"],
        &["l->../outside/secret", "l=pwned"],
        &["h=>../outside/secret", "h=pwned"],
        &["l->../outside", "h=>l/secret", "h=pwned"],
        &["../outside/f=pwned"],
        &["../../../../../../outside/f=pwned"],
        &["/../outside/f=pwned"],
        &["x->/proc/self/root", "x/tmp/f=pwned"],
        &["x->/proc/self/cwd/../outside", "x/f=pwned"],
        &["loop->loop", "loop/f=pwned"],
        &["l->../outside", "l/.wh.secret="],
        &["l->../outside", "l/.wh..wh..opq="],
        &["../outside/.wh.secret="],
        &["l->../outside", "l/"],
        &["l->../outside/secret", "l|"],
    ] {
        for whiteouts in [Whiteouts::Literal, Whiteouts::Delete, Whiteouts::Overlay { userxattr: true }] {
            let (dir, root) = scratch();
            let outside = dir.path().join("outside");
            fs::create_dir(&outside).expect("a directory");
            fs::write(outside.join("secret"), "secret").expect("a file");
            let before = fs::metadata(&outside).expect("there");
            // Refused or kept inside: both are fine.
            let _ = run_lines(&root, lines, &Options::layer(whiteouts));
            assert_eq!(tree(&outside), ["secret=secret"], "{lines:?} {whiteouts:?}");
            let after = fs::metadata(&outside).expect("there");
            assert_eq!(
                (before.mode(), before.mtime(), before.nlink()),
                (after.mode(), after.mtime(), after.nlink()),
                "{lines:?}"
            );
            assert_eq!(fs::metadata(outside.join("secret")).expect("there").nlink(), 1, "{lines:?}");
        }
    }
}

#[test]
fn nonsense_is_refused_with_its_name() {
    let long = format!("{}=", "n".repeat(300));
    let deep = format!("{}x=", "d/".repeat(400));
    for (lines, expected) in [
        (&[".wh.="][..], "archive entry `.wh.` is refused: a whiteout must name a file of its directory"),
        (&["a/.wh..="], "archive entry `a/.wh..` is refused: a whiteout must name a file of its directory"),
        (&["a/.wh...="], "archive entry `a/.wh...` is refused: a whiteout must name a file of its directory"),
        (&["h=>nowhere"], "archive entry `h` is refused: it is a hard link to a file that the archive does not have"),
        (&["h=>a/b/c"], "archive entry `h` is refused: it is a hard link to a file that the archive does not have"),
        (&["d/", "h=>d"], "archive entry `h` is refused: it is a hard link to a directory"),
        (&["h=>/"], "archive entry `h` is refused: it is a hard link to a directory"),
        (&["h=>h"], "archive entry `h` is refused: it is a hard link to itself"),
        (&["f=1", "f/x=2"], "archive entry `f` is refused: an entry lies beneath it, yet it is no directory"),
        (
            &["l->l", "l/x=1"],
            "archive entry `l` is refused: an entry lies beneath a symlink that leads in a circle or out of the root",
        ),
        (&["f=1", "l->f", "l/x=2"], "archive entry `f` is refused: an entry lies beneath it, yet it is no directory"),
        (&["l->"], "archive entry `l` is refused: its link target is empty"),
        (&["a\0b="], "archive entry `a\0b` is refused: its name holds a NUL byte"),
        (
            &[&long],
            &format!("archive entry `{}…` is refused: a part of its name is longer than 255 bytes", &long[..256]),
        ),
        (&[&deep], &format!("archive entry `{}…` is refused: its directories are nested too deeply", &deep[..256])),
    ] {
        let (_dir, root) = scratch();
        let error = run_lines(&root, lines, &Options::layer(Whiteouts::Delete)).expect_err("refused");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn an_archive_of_the_users_may_not_climb_and_keeps_odd_names() {
    let (_dir, root) = scratch();
    let error = run_lines(&root, &["../x=1"], &Options::archive()).expect_err("refused");
    assert_eq!(error.to_string(), "archive entry `../x` is refused: it points outside of the target directory");
    run_lines(&root, &["a/.wh.b=1", ".wh..wh..opq=2"], &Options::archive()).expect("unpacked");
    assert_eq!(tree(&root), [".wh..wh..opq=2", "a/", "a/.wh.b=1"]);
    // Below it there is nothing else that a link could lead to.
    let error = run_lines(&root, &["l->gone", "l/x=1"], &Options::archive()).expect_err("refused");
    let words = "archive entry `l` is refused: an entry lies beneath a symlink that leads to no directory";
    assert_eq!(error.to_string(), words);
}

#[test]
fn what_lies_beneath_links_is_known_by_its_own_path() {
    let whiteouts = Whiteouts::Overlay { userxattr: true };
    for (lines, implied) in [
        (&["s->etc", "s/d/f=1"][..], &["etc", "etc/d"][..]),
        (&["etc/", "s->etc", "s/d/f=1"], &["etc/d"]),
        (&["etc/", "s->/etc", "s/d/f=1", "etc/d"], &[]),
        (&["etc/", "s->etc", "etc/d/f=1", "s/d/"], &[]),
    ] {
        let (_dir, root) = scratch();
        let report = run_lines(&root, lines, &Options::layer(whiteouts)).expect("unpacked");
        let found: Vec<_> = report.implied.iter().map(|path| String::from_utf8_lossy(path)).collect();
        assert_eq!(found, implied, "{lines:?}");
    }
    let deep = format!("s->{}", "d/".repeat(400));
    let (_dir, root) = scratch();
    let error = run_lines(&root, &[&deep, "s/f=1"], &Options::layer(whiteouts)).expect_err("refused");
    assert_eq!(error.to_string(), "archive entry `s` is refused: its directories are nested too deeply");
}

#[test]
fn an_entry_may_describe_the_target() {
    let slash = |path: &str, kind| vec![(entry(path, kind, 0o711), Vec::new()), parse("f=1")];
    for (path, top, mode) in
        [("/", true, 0o711), ("//", true, 0o711), ("/a/..", true, 0o711), ("./", true, 0o750), ("/", false, 0o750)]
    {
        let (_dir, root) = scratch();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o750)).expect("set");
        let options = Options { top, ..Options::archive() };
        run(&root, slash(path, EntryKind::Directory), &options).unwrap_or_else(|e| panic!("{path}: {e:?}"));
        let metadata = fs::metadata(&root).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{path} {top}");
        assert_eq!(metadata.mtime() == 1_000, mode == 0o711, "{path} {top}");
    }
    let (_dir, root) = scratch();
    let options = Options { top: true, ..Options::archive() };
    let error = run(&root, slash("/", EntryKind::Regular { size: 0 }), &options).expect_err("refused");
    assert_eq!(error.to_string(), "archive entry `/` is refused: it would replace the target directory");
}

#[test]
fn whiteouts_delete_what_was_there_before() {
    for (before, lines, expected) in [
        (&["a=1", "b=2"][..], &[".wh.a="][..], &["b=2"][..]),
        (&["d/", "d/a=1"], &[".wh.d="], &[]),
        (&["d/", "d/a=1", "d/b=2"], &["d/.wh..wh..opq=", "d/c=3"], &["d/", "d/c=3"]),
        (
            &["d/", "d/a=1", "d/s/", "d/s/x=1"],
            &["d/", "d/s/", "d/s/y=2", "d/.wh..wh..opq="],
            &["d/", "d/s/", "d/s/y=2"],
        ),
        // A whiteout speaks of lower layers only.
        (&["a=1"], &["a=2", ".wh.a="], &["a=2"]),
        (&["a=1"], &[".wh.a=", "a=2"], &["a=2"]),
        (&["d/", "d/a=1"], &[".wh.d=", "d/", "d/b=2"], &["d/", "d/b=2"]),
        (&["a=1"], &[".wh.missing="], &["a=1"]),
        (&["a=1"], &[".wh..wh.plnk/x=1", ".wh..wh.aufs="], &[".wh..wh.plnk/", ".wh..wh.plnk/x=1", "a=1"]),
        (&["a=1", "b/", "b/c=2"], &[".wh..wh..opq=", "n=3"], &["n=3"]),
    ] {
        let (_dir, root) = scratch();
        run_lines(&root, before, &Options::archive()).expect("the layer below");
        run_lines(&root, lines, &Options::layer(Whiteouts::Delete)).expect("unpacked");
        assert_eq!(tree(&root), expected, "{before:?} {lines:?}");
    }
}

#[test]
fn whiteouts_become_overlay_marks() {
    let opaque = |path: &Path| xattr::get(path, c"user.overlay.opaque").expect("readable").is_some();
    for (lines, expected, is_opaque, root_opaque) in [
        (&[".wh.a="][..], &["a whiteout"][..], false, false),
        (&["d/", "d/.wh..wh..opq=", "d/x=1"], &["d/", "d/x=1"], true, false),
        (&["d/.wh..wh..opq="], &["d/"], true, false),
        (&[".wh.d=", "d/", "d/x=1"], &["d/", "d/x=1"], true, false),
        (&[".wh.d=", "d/x=1"], &["d/", "d/x=1"], true, false),
        (&["d/", "d/x=1", ".wh.d="], &["d/", "d/x=1"], true, false),
        (&[".wh.a=", "a=1"], &["a=1"], false, false),
        (&["a=1", ".wh.a="], &["a=1"], false, false),
        (&[".wh..wh..opq=", "n=1"], &["n=1"], false, true),
    ] {
        let (_dir, root) = scratch();
        let report =
            run_lines(&root, lines, &Options::layer(Whiteouts::Overlay { userxattr: true })).expect("unpacked");
        assert_eq!(tree(&root), expected, "{lines:?}");
        let dir = root.join("d");
        assert_eq!(dir.is_dir() && opaque(&dir), is_opaque, "{lines:?}");
        assert_eq!(report.opaque_root, root_opaque, "{lines:?}");
    }
    for whiteouts in [Whiteouts::Overlay { userxattr: true }, Whiteouts::Literal] {
        let (_dir, root) = scratch();
        let device = (entry("dev", EntryKind::CharDevice(0, 0), 0o600), Vec::new());
        let error = run(&root, vec![device], &Options::layer(whiteouts)).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "archive entry `dev` is refused: a character device 0/0 would be taken for a whiteout"
        );
    }
}

#[test]
fn the_largest_number_is_nobody() {
    for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
        let (_dir, root) = scratch();
        let file = Entry { uid, gid, ..entry("f", EntryKind::Regular { size: 0 }, 0o600) };
        let error = run(&root, vec![(file, Vec::new())], &Options::archive()).expect_err("refused");
        assert_eq!(error.to_string(), "archive entry `f` is refused: its owner is the largest number, which is no id");
    }
}

#[test]
fn metadata_is_what_the_headers_say() {
    let (_dir, root) = scratch();
    let mut entries = vec![
        (entry("d", EntryKind::Directory, 0o1777), Vec::new()),
        (entry("d/closed", EntryKind::Directory, 0o500), Vec::new()),
        (entry("d/closed/f", EntryKind::Regular { size: 2 }, 0o4755), b"hi".to_vec()),
        (entry("w", EntryKind::Regular { size: 0 }, 0o666), Vec::new()),
        (entry("l", EntryKind::Symlink(b"w".to_vec()), 0o777), Vec::new()),
        (entry("p", EntryKind::Fifo, 0o620), Vec::new()),
        (entry("i/x", EntryKind::Regular { size: 0 }, 0o600), Vec::new()),
        (entry("old", EntryKind::Regular { size: 0 }, 0o600), Vec::new()),
    ];
    entries[0].0.xattrs = vec![(b"user.a".to_vec(), b"1".to_vec()), (b"user.overlay.opaque".to_vec(), b"y".to_vec())];
    entries[2].0.xattrs = vec![(b"user.b".to_vec(), b"2".to_vec()), (b"user.hullworks.stat".to_vec(), b"7:7".to_vec())];
    entries[7].0.mtime = (-5, 0);
    let report = run(&root, entries, &Options::layer(Whiteouts::Overlay { userxattr: true })).expect("unpacked");
    assert_eq!((report.entries, report.bytes), (8, 2));
    assert_eq!(report.implied, [b"i"]);
    for (path, mode) in
        [("d", 0o1777), ("d/closed", 0o500), ("d/closed/f", 0o4755), ("w", 0o666), ("p", 0o620), ("i", 0o755)]
    {
        let metadata = fs::symlink_metadata(root.join(path)).expect(path);
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{path}");
        if path != "i" {
            assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_000, 5), "{path}");
        }
    }
    assert_eq!(fs::symlink_metadata(root.join("l")).expect("l").mtime(), 1_000);
    assert_eq!(
        fs::symlink_metadata(root.join("old")).expect("old").mtime(),
        0,
        "times before 1970 are 1970, as elsewhere"
    );
    assert_eq!(xattr::list(&root.join("d")).expect("readable"), [b"user.a"]);
    assert_eq!(xattr::list(&root.join("d/closed/f")).expect("readable"), [b"user.b"]);
}

#[test]
fn times_of_our_own_archives_are_exact() {
    let (_dir, root) = scratch();
    let mut old = parse("old=1");
    old.0.mtime = (-5, 500_000_000);
    let options = Options { times: Times::Exact, ..Options::archive() };
    run(&root, vec![old], &options).expect("unpacked");
    let metadata = fs::symlink_metadata(root.join("old")).expect("old");
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (-5, 500_000_000));
}

#[test]
fn many_zeros_become_a_hole() {
    let (_dir, root) = scratch();
    let file =
        |name: &str, data: &[u8]| (entry(name, EntryKind::Regular { size: data.len() as u64 }, 0o644), data.to_vec());
    let (zeros, ones) = (vec![0; 3 << 20], vec![1; 100_000]);
    let contents = [zeros.clone(), [&zeros[..], &ones].concat(), [&ones[..], &zeros, b"end"].concat(), vec![0; 70_000]];
    let files = contents.iter().enumerate().map(|(n, data)| file(&n.to_string(), data)).collect();
    run(&root, files, &Options::archive()).expect("unpacked");
    for (n, data) in contents.iter().enumerate() {
        let path = root.join(n.to_string());
        assert!(fs::read(&path).expect("a file") == *data, "{n}");
        let blocks = fs::metadata(&path).expect("a file").blocks();
        assert!(blocks < 1000, "{n} has {blocks} blocks");
    }
}

#[test]
fn a_layer_describes_a_directory_whole_an_archive_adds() {
    for (whiteouts, expected) in [(Whiteouts::Delete, 0), (Whiteouts::Literal, 1)] {
        let (_dir, root) = scratch();
        fs::create_dir(root.join("d")).expect("a directory");
        xattr::set(&root.join("d"), c"user.old", b"1").expect("set");
        run_lines(&root, &["d/"], &Options::layer(whiteouts)).expect("unpacked");
        assert_eq!(xattr::list(&root.join("d")).expect("readable").len(), expected, "{whiteouts:?}");
    }
}

#[test]
fn bombs_are_stopped() {
    let (_dir, root) = scratch();
    let mut options = Options::archive();
    options.limits = Limits { entries: 3, bytes: 10 };
    let error = run_lines(&root, &["a=1", "b=1", "c=1", "d=1"], &options).expect_err("too many");
    assert_eq!(error.to_string(), "the archive unpacks to more than 3 entries: refused as a decompression bomb");
    let huge = (entry("x", EntryKind::Regular { size: u64::MAX }, 0o600), Vec::new());
    let error = run(&root, vec![huge.clone()], &options).expect_err("too large");
    assert_eq!(error.to_string(), "the archive unpacks to more than 10 bytes: refused as a decompression bomb");
    let error = run(&root, vec![huge], &Options::archive()).expect_err("too large");
    assert_eq!(error.to_string(), "the archive unpacks to more than 256 GiB: refused as a decompression bomb");
    options.cancel.cancel();
    assert!(matches!(run_lines(&root, &["a=1"], &options), Err(Error::Cancelled(_))));
}

#[test]
fn a_short_stream_is_an_error() {
    let (_dir, root) = scratch();
    let short = (entry("x", EntryKind::Regular { size: 10 }, 0o600), b"123".to_vec());
    assert!(matches!(run(&root, vec![short], &Options::archive()), Err(Error::Read(_))));
    assert_eq!(tree(&root), [""; 0], "half a file is none");
}

#[test]
fn existing_links_in_the_target_are_replaced_not_followed() {
    let (dir, root) = scratch();
    fs::write(dir.path().join("victim"), "safe").expect("a file");
    symlink(dir.path().join("victim"), root.join("f")).expect("a link");
    fs::hard_link(dir.path().join("victim"), root.join("g")).expect("a link");
    run_lines(&root, &["f=new", "g=new"], &Options::archive()).expect("unpacked");
    assert_eq!(fs::read_to_string(dir.path().join("victim")).expect("there"), "safe");
    assert_eq!(tree(&root), ["f=new", "g=new"]);
}

#[test]
fn privileged_owners_devices_and_capabilities() {
    if !rustix::process::geteuid().is_root() {
        // Without root nothing of this can be set; the recorded form is tested in a user namespace.
        return;
    }
    let (_dir, root) = scratch();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut file = entry("f", EntryKind::Regular { size: 0 }, 0o6755);
    (file.uid, file.gid) = (1000, 1001);
    file.xattrs = vec![(CAPABILITY.to_vec(), capability.to_vec())];
    let mut link = entry("l", EntryKind::Symlink(b"f".to_vec()), 0o777);
    (link.uid, link.gid) = (7, 8);
    let mut device = entry("null", EntryKind::CharDevice(1, 3), 0o666);
    device.uid = 5;
    let mut hard = entry("h", EntryKind::Hardlink(b"f".to_vec()), 0o6755);
    (hard.uid, hard.gid) = (1000, 1001);
    let all = vec![(file, Vec::new()), (link, Vec::new()), (device, Vec::new()), (hard, Vec::new())];
    run(&root, all.clone(), &Options::layer(Whiteouts::Delete)).expect("unpacked");
    let file = fs::metadata(root.join("h")).expect("h");
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777, file.nlink()), (1000, 1001, 0o6755, 2));
    let kept = xattr::get(&root.join("f"), c"security.capability").expect("readable");
    assert_eq!(kept.as_deref(), Some(&capability[..]), "a hard link does not take capabilities away");
    let link = fs::symlink_metadata(root.join("l")).expect("l");
    assert_eq!((link.uid(), link.gid()), (7, 8));
    let device = fs::metadata(root.join("null")).expect("null");
    assert_eq!((device.rdev(), device.uid(), device.mode() & 0o7777), (rustix::fs::makedev(1, 3), 5, 0o666));

    // As a single id leaves it: it is root's, and by its record another's.
    let (_dir, root) = scratch();
    let path = root.join("f");
    fs::write(&path, "").expect("written");
    Shadow::owner(1000, 1001).write(&path).expect("recorded");
    xattr::set(&path, c"security.capability", &capability).expect("set");
    let again = vec![all[3].clone()];
    run(&root, again, &Options { shadow: true, ..Options::layer(Whiteouts::Delete) }).expect("unpacked");
    let kept = xattr::get(&path, c"security.capability").expect("readable");
    assert_eq!(kept.as_deref(), Some(&capability[..]), "a hard link does not take capabilities away");
    assert_eq!(Shadow::read(&path).expect("readable"), Some(Shadow::owner(1000, 1001)));

    let (_dir, root) = scratch();
    let options = Options { owner: Some((42, 43)), devices: Devices::Skip, ..Options::archive() };
    run(&root, all, &options).expect("unpacked");
    assert!(!root.join("null").exists());
    let file = fs::metadata(root.join("f")).expect("f");
    assert_eq!((file.uid(), file.gid()), (42, 43));
}
