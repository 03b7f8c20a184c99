//! File ops against trees that upstream's code left behind (`cases.txt`), and what is ours alone.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::Error;
use crate::checksum::{Env, Options, Place, Tree, Xattrs};
use crate::ops::{Mkdir, Mkfile, Rm, Symlink, mkdir, mkfile, rm, symlink as make_symlink};
use crate::target::{Recorder, Refused};
use crate::testtree::{TestTree, decode, decode_list, is_root};
use crate::walk::Filter;
use crate::xattr;

mod archive;
mod cases;
mod context;

/// Takes note of refusals, for runs without root.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Recorder for Notes {
    fn refused(&self, path: &Path, what: Refused<'_>) -> io::Result<()> {
        self.0.lock().unwrap().push(format!("{} {what:?}", path.display()));
        Ok(())
    }

    fn owned(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

fn encode(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "%%".to_owned();
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b',' | b';');
    let text = |byte: &u8| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02x}") };
    bytes.iter().map(text).collect()
}

/// `path:mode:uid:gid:time:content` of each file, as the cases have it.
fn list_tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inodes = HashMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let mut extra = "-".to_owned();
        if kind.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            todo.extend(names.iter().rev().map(|name| path.join(name)));
        } else if kind.is_file() {
            extra = encode(&fs::read(&full).unwrap());
            match inodes.get(&meta.ino()) {
                Some(first) => extra = format!("{extra}={first}"),
                None => drop(inodes.insert(meta.ino(), encode(path.as_os_str().as_bytes()))),
            }
        } else if kind.is_symlink() {
            extra = encode(&fs::read_link(&full).unwrap().into_os_string().into_vec());
        } else if meta.mode() & 0o170_000 == 0o020_000 {
            extra = format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        }
        let xattrs: Xattrs = match full.parent() {
            Some(parent) => xattr::of_entry(fs::File::open(parent).unwrap(), full.file_name().unwrap()).unwrap(),
            None => Xattrs::new(),
        };
        for (name, value) in xattrs {
            extra = format!("{extra}|{}+{}", encode(&name), encode(&value));
        }
        let time = if meta.mtime() < 1_000_000 { meta.mtime().to_string() } else { "now".to_owned() };
        let name = encode(path.as_os_str().as_bytes());
        lines.push(format!("{name}:{:o}:{}:{}:{time}:{extra}", meta.mode(), meta.uid(), meta.gid()));
    }
    lines
}

fn scratch() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    fs::create_dir(&src).unwrap();
    fs::create_dir(&dst).unwrap();
    (dir, src, dst)
}

fn plain(src: &str, dest: &str) -> Copy {
    Copy {
        src: src.into(),
        dest: dest.into(),
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        ..Copy::default()
    }
}

fn copy_dirs(src: &Path, dst: &Path, action: &Copy) -> Result<Copied, Error> {
    let (from, to) = (Root::open(src).unwrap(), Root::open(dst).unwrap());
    let notes = Notes::default();
    let recorder = (!is_root()).then_some(&notes as &dyn Recorder);
    copy(&Source::snapshot(&from), &Target { root: &to, recorder }, action, &CopyEnv::default())
}

fn counts(copied: Result<Copied, Error>) -> (u64, u64) {
    copied.map(|copied| (copied.files, copied.bytes)).unwrap()
}

#[test]
fn what_is_allocated_is_counted() {
    let (_dir, src, dst) = scratch();
    fs::create_dir_all(src.join("d/deep")).unwrap();
    fs::write(src.join("d/large"), vec![1; 100_000]).unwrap();
    fs::write(src.join("d/deep/small"), "x").unwrap();
    fs::hard_link(src.join("d/large"), src.join("d/again")).unwrap();
    std::os::unix::fs::symlink("t".repeat(200), src.join("d/link")).unwrap();
    let copied = copy_dirs(&src, &dst, &Copy { create_dest_path: true, ..plain("/d", "/new/above") }).unwrap();
    fn blocks(path: &Path, seen: &mut std::collections::HashSet<u64>) -> u64 {
        let meta = fs::symlink_metadata(path).unwrap();
        let own = if seen.insert(meta.ino()) { meta.blocks() * 512 } else { 0 };
        let below = meta.is_dir().then(|| fs::read_dir(path).unwrap()).into_iter().flatten();
        own + below.map(|entry| blocks(&entry.unwrap().path(), seen)).sum::<u64>()
    }
    assert!(copied.allocated.unwrap() >= 100_000);
    assert_eq!(copied.allocated, Some(blocks(&dst.join("new"), &mut Default::default())));
}

#[test]
fn errors_name_the_path_inside_the_tree() {
    let (_dir, src, dst) = scratch();
    fs::create_dir_all(src.join("d/x")).unwrap();
    fs::write(src.join("f"), "f").unwrap();
    fs::write(src.join("d/y"), "y").unwrap();
    symlink("loop", src.join("loop")).unwrap();
    fs::create_dir_all(dst.join("d/y")).unwrap();
    fs::write(dst.join("x"), "").unwrap();
    fs::write(dst.join("d/x"), "").unwrap();
    let errors = [
        (plain("/missing", "/"), "/missing: no such file or directory"),
        (plain("/f/below", "/"), "cannot open `/f/below`: Not a directory (os error 20)"),
        (plain("/none*", "/"), "/none* not found"),
        (plain("/loop", "/"), "too many links in `/loop`"),
        (plain("/f", "/x/below"), "cannot create directory `/x`: Not a directory (os error 20)"),
        (
            Copy { create_dest_path: false, ..plain("/f", "/no/way") },
            "cannot stat `/no/way`: No such file or directory (os error 2)",
        ),
        (Copy { exclude: vec!["y".into()], ..plain("/d", "/d") }, "cannot copy to non-directory: /d/x"),
        (plain("/d/y", "/d"), "cannot replace to directory /d/y with file"),
        (
            Copy { include: vec!["[".into()], ..plain("/d", "/new") },
            "invalid include patterns: syntax error in pattern `[`",
        ),
        (plain("/[", "/new"), "invalid source patterns: syntax error in pattern `/[`"),
    ];
    for (action, expected) in errors {
        let error = copy_dirs(&src, &dst, &action).unwrap_err();
        assert_eq!(crate::chain(&error).to_string(), expected);
    }
    assert!(copy_dirs(&src, &dst, &plain("/missing", "/")).unwrap_err().is_not_found());
    let nothing = Copy { allow_empty_wildcard: true, ..plain("/none*", "/") };
    assert_eq!(counts(copy_dirs(&src, &dst, &nothing)), (0, 0));
    // Replacing lets neither file nor directory stand in the way.
    let replace = Copy { always_replace: true, ..plain("/d", "/d") };
    assert_eq!(counts(copy_dirs(&src, &dst, &replace)), (1, 1));
    assert!(dst.join("d/x").is_dir() && dst.join("d/y").is_file());
}

#[test]
fn hostile_links_lead_nowhere_outside() {
    let (dir, src, dst) = scratch();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    fs::create_dir(dir.path().join("victim")).unwrap();
    for (link, target) in [("up", "../secret"), ("abs", "/secret"), ("far", "../../../../../secret")] {
        symlink(target, src.join(link)).unwrap();
        assert!(copy_dirs(&src, &dst, &plain(&format!("/{link}"), "/got")).unwrap_err().is_not_found(), "{link}");
    }
    symlink(dir.path().join("victim"), dst.join("out")).unwrap();
    symlink("../victim", dst.join("side")).unwrap();
    fs::create_dir(src.join("tree")).unwrap();
    fs::create_dir(src.join("tree/side")).unwrap();
    fs::write(src.join("tree/side/file"), "x").unwrap();
    fs::write(src.join("file"), "x").unwrap();
    copy_dirs(&src, &dst, &plain("/file", "/out/")).unwrap();
    copy_dirs(&src, &dst, &plain("/file", "/side/../../..//victim/file")).unwrap();
    assert!(copy_dirs(&src, &dst, &plain("/tree", "/")).is_err());
    copy_dirs(&src, &dst, &Copy { always_replace: true, ..plain("/tree", "/") }).unwrap();
    // A link that stands where a file is to go is replaced, not written through.
    symlink(dir.path().join("secret"), dst.join("file")).unwrap();
    fs::create_dir(src.join("files")).unwrap();
    fs::write(src.join("files/file"), "new").unwrap();
    copy_dirs(&src, &dst, &plain("/files", "/")).unwrap();
    assert_eq!(fs::read(dst.join("file")).unwrap(), b"new");
    let to = Root::open(&dst).unwrap();
    let target = Target::new(&to);
    mkfile(&target, &Mkfile { path: "/out/made".into(), mode: 0o644, ..Mkfile::default() }).unwrap();
    mkdir(&target, &Mkdir { path: "/out/a/b".into(), mode: 0o755, make_parents: true, ..Mkdir::default() }).unwrap();
    rm(&target, &Rm { path: "/out/../../secret".into(), allow_not_found: true, ..Rm::default() }).unwrap();
    rm(&target, &Rm { path: "/out".into(), ..Rm::default() }).unwrap();
    assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(dir.path().join("victim")).unwrap().count(), 0);
}

#[test]
fn wildcards_take_names_with_slashes_one_by_one() {
    let (_dir, src, dst) = scratch();
    for path in ["a/x/1.txt", "a/y/2.txt", "a/y/3.md", "a-b/z/4.txt", "b/5.txt"] {
        fs::create_dir_all(src.join(path).parent().unwrap()).unwrap();
        fs::write(src.join(path), "").unwrap();
    }
    symlink("a", src.join("link")).unwrap();
    let from = Root::open(&src).unwrap();
    let resolve = |path: &str, follow| {
        let found = resolve_wildcards(&Source::snapshot(&from), path.as_bytes(), follow).unwrap();
        found.into_iter().map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(resolve("/*/*/*.txt", false), ["/a/x/1.txt", "/a/y/2.txt", "/a-b/z/4.txt"]);
    assert_eq!(resolve("/a*", false), ["/a", "/a-b"]);
    assert_eq!(resolve("/link/*", true), ["/a/x", "/a/y"]);
    assert_eq!(resolve("/link/*", false), Vec::<String>::new());
    assert_eq!(resolve("/plain/", false), ["/plain"]);
    assert_eq!(copy_dirs(&src, &dst, &plain("/*/*/*.txt", "/all/")).unwrap().files, 3);
    assert_eq!(fs::read_dir(dst.join("all")).unwrap().count(), 3);
}

#[test]
fn holes_stay_holes_and_large_files_come_over_whole() {
    let (_dir, src, dst) = scratch();
    let sparse = fs::File::create(src.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 32 << 20).unwrap();
    fs::File::create(src.join("hole")).unwrap().set_len(8 << 20).unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).flat_map(|number| number.to_le_bytes()).collect();
    fs::write(src.join("large"), &large).unwrap();
    let sizes = [BUFFER_EDGE - 1, BUFFER_EDGE, BUFFER_EDGE + 1];
    for size in sizes {
        fs::write(src.join(size.to_string()), &large[..size]).unwrap();
    }
    let copied = copy_dirs(&src, &dst, &plain("/", "/")).unwrap();
    assert_eq!(copied.files, 6);
    assert!(fs::read(dst.join("large")).unwrap() == large);
    for size in sizes {
        assert!(fs::read(dst.join(size.to_string())).unwrap() == large[..size]);
    }
    assert!(fs::read(dst.join("sparse")).unwrap() == fs::read(src.join("sparse")).unwrap());
    assert_eq!(fs::metadata(dst.join("hole")).unwrap().len(), 8 << 20);
    // Where the file system has holes at all.
    let blocks = |path: PathBuf| fs::metadata(path).unwrap().blocks();
    if blocks(src.join("sparse")) < 1000 {
        assert!(blocks(dst.join("sparse")) < 1000);
        assert!(blocks(dst.join("hole")) < 100);
    }
}

const BUFFER_EDGE: usize = super::content::BUFFER;

#[test]
fn many_files_on_many_threads_are_all_there() {
    let (_dir, src, dst) = scratch();
    for dir in 0..12 {
        let dir = src.join(format!("{dir}/sub"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..100 {
            fs::write(dir.join(file.to_string()), file.to_string().repeat(file)).unwrap();
        }
        // Names of one file spread over directories and batches.
        if !dir.ends_with("0/sub") {
            fs::hard_link(src.join("0/sub/50"), dir.join("linked")).unwrap();
        }
    }
    let (from, to) = (Root::open(&src).unwrap(), Root::open(&dst).unwrap());
    let notes = Notes::default();
    let target = Target { root: &to, recorder: (!is_root()).then_some(&notes as &dyn Recorder) };
    let env = CopyEnv { threads: Some(8), ..CopyEnv::default() };
    let copied = copy(&Source::snapshot(&from), &target, &plain("/", "/"), &env).unwrap();
    assert_eq!(copied.files, 1211);
    let times_aside = |root: &Path| {
        list_tree(root)
            .iter()
            .map(|line| line.splitn(6, ':').map(str::to_owned).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    assert_eq!(times_aside(&src), times_aside(&dst));
    assert_eq!(fs::metadata(dst.join("0/sub/50")).unwrap().nlink(), 12);
    let modified = |path: PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    assert_eq!(modified(src.join("3/sub")), modified(dst.join("3/sub")));
    assert_eq!(modified(src.join("3/sub/7")), modified(dst.join("3/sub/7")));
}

#[test]
fn a_cancelled_copy_stops() {
    let (_dir, src, dst) = scratch();
    fs::create_dir(src.join("d")).unwrap();
    fs::write(src.join("d/f"), "f").unwrap();
    let (from, to) = (Root::open(&src).unwrap(), Root::open(&dst).unwrap());
    let cancel = Cancel::new();
    cancel.cancel();
    let env = CopyEnv { cancel: Some(&cancel), ..CopyEnv::default() };
    let error = copy(&Source::snapshot(&from), &Target::new(&to), &plain("/", "/"), &env).unwrap_err();
    assert!(matches!(error, Error::Cancelled(_)));
}

/// Records of a source that an ordinary user made: who owns what, and a device.
struct Records;

impl crate::checksum::Recall for Records {
    fn recall(&self, path: &Path, stat: &mut Stat, _: &mut Xattrs) -> io::Result<()> {
        (stat.uid, stat.gid) = (70_000, 70_001);
        if path == Path::new("null") {
            (stat.kind, stat.rdev) = (Kind::Char, rustix::fs::makedev(1, 3));
        }
        Ok(())
    }
}

#[test]
fn what_the_kernel_refuses_is_recorded() {
    if is_root() {
        // Root may do all this.
        return;
    }
    let (_dir, src, dst) = scratch();
    fs::write(src.join("file"), "").unwrap();
    fs::write(src.join("null"), "").unwrap();
    let (from, to) = (Root::open(&src).unwrap(), Root::open(&dst).unwrap());
    let notes = Notes::default();
    let source = Source::snapshot(&from).with_recall(Some(&Records));
    let target = Target { root: &to, recorder: Some(&notes) };
    copy(&source, &target, &plain("/", "/new"), &CopyEnv::default()).unwrap();
    let mut notes = notes.0.into_inner().unwrap();
    notes.sort();
    let owner = "Owner { uid: 70000, gid: 70001 }";
    let expected = [
        format!("new/file {owner}"),
        format!("new/null Device {{ kind: Char, rdev: {} }}", rustix::fs::makedev(1, 3)),
        format!("new/null {owner}"),
    ];
    assert_eq!(notes.iter().filter(|note| !note.starts_with("new Owner")).cloned().collect::<Vec<_>>(), expected);
    // Without a recorder it is an error.
    let error = copy(&source, &Target::new(&to), &plain("/", "/other"), &CopyEnv::default()).unwrap_err();
    assert!(crate::chain(&error).to_string().starts_with("cannot change owner of"));
}

#[test]
fn privileged_recorded_owners_and_devices_become_real() {
    if !is_root() {
        return;
    }
    let (_dir, src, dst) = scratch();
    fs::write(src.join("file"), "").unwrap();
    fs::write(src.join("null"), "").unwrap();
    let (from, to) = (Root::open(&src).unwrap(), Root::open(&dst).unwrap());
    let source = Source::snapshot(&from).with_recall(Some(&Records));
    copy(&source, &Target::new(&to), &plain("/", "/new"), &CopyEnv::default()).unwrap();
    let meta = |path: &str| dst.join(path).symlink_metadata().unwrap();
    assert_eq!((meta("new/file").uid(), meta("new/file").gid()), (70_000, 70_001));
    assert_eq!((meta("new/null").mode() & 0o170_000, meta("new/null").rdev()), (0o020_000, rustix::fs::makedev(1, 3)));
}
