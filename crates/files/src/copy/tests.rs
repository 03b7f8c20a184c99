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

/// `cases.txt`: a source (`src` lines), a target (`dst` lines), an action, and the target afterwards, or an error.
struct Case {
    src: Vec<String>,
    dst: Vec<String>,
    action: String,
    outcome: String,
}

fn cases() -> Vec<Case> {
    // A longer list of the same format can be tried from outside.
    let text = match std::env::var_os("COPY_CASES") {
        Some(path) => fs::read_to_string(path).unwrap(),
        None => include_str!("cases.txt").to_owned(),
    };
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines() {
        let (word, rest) = line.split_once(' ').unwrap();
        if word == "case" {
            cases.push(Case { src: Vec::new(), dst: Vec::new(), action: String::new(), outcome: String::new() });
            continue;
        }
        let case = cases.last_mut().unwrap();
        match word {
            "src" => case.src.push(rest.to_owned()),
            "dst" => case.dst.push(rest.to_owned()),
            "tree" | "error" => case.outcome = line.to_owned(),
            _ => case.action = line.to_owned(),
        }
    }
    cases
}

fn path_of(word: &str) -> PathBuf {
    lexical::to_path(&decode(word)).to_owned()
}

fn owner(word: &str) -> Option<Owner> {
    let (uid, gid) = word.split_once(':')?;
    Some(Owner { uid: uid.parse().unwrap(), gid: gid.parse().unwrap() })
}

fn time(word: &str) -> Option<Time> {
    word.parse().ok().filter(|nanos| *nanos != -1).map(Time::from_nanos)
}

fn octal(word: &str) -> u32 {
    u32::from_str_radix(word, 8).unwrap()
}

fn act(source: &Source<'_>, target: &Target<'_>, action: &str) -> Result<(), Error> {
    let words: Vec<&str> = action.split(' ').collect();
    let flag = |word: usize, index: usize| words[word].as_bytes()[index] == b'1';
    match words[0] {
        "mkdir" => mkdir(
            target,
            &Mkdir {
                path: path_of(words[1]),
                mode: octal(words[2]),
                make_parents: flag(3, 0),
                owner: owner(words[4]),
                timestamp: time(words[5]),
            },
        ),
        "mkfile" => mkfile(
            target,
            &Mkfile {
                path: path_of(words[1]),
                mode: octal(words[2]),
                data: decode(words[3]),
                owner: owner(words[4]),
                timestamp: time(words[5]),
            },
        ),
        "symlink" => make_symlink(
            target,
            &Symlink {
                old_path: path_of(words[1]),
                new_path: path_of(words[2]),
                owner: owner(words[3]),
                timestamp: time(words[4]),
            },
        ),
        "rm" => rm(target, &Rm { path: path_of(words[1]), allow_wildcard: flag(2, 0), allow_not_found: flag(2, 1) }),
        "copy" => {
            let mode = match words[6] {
                "-" => ModeChange::Keep,
                number if number.starts_with(|first: char| ('1'..='7').contains(&first)) => {
                    ModeChange::Set(octal(number))
                }
                text => ModeChange::parse(text)?,
            };
            let action = Copy {
                src: path_of(words[1]),
                dest: path_of(words[2]),
                owner: owner(words[7]),
                mode,
                timestamp: time(words[8]),
                follow_symlink: flag(3, 0),
                dir_copy_contents: flag(3, 1),
                attempt_unpack: false,
                create_dest_path: flag(3, 2),
                allow_wildcard: flag(3, 3),
                allow_empty_wildcard: flag(3, 4),
                include: decode_list(words[4]),
                exclude: decode_list(words[5]),
                always_replace: flag(3, 5),
            };
            copy(source, target, &action, &CopyEnv::default()).map(drop)
        }
        other => panic!("unknown action {other}"),
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

/// Whether a file is as upstream left it. Directories of upstream that have no time of their own may have one here.
fn is_same(expected: &str, actual: &str, real: bool) -> bool {
    let fields = |line: &str| line.splitn(6, ':').map(str::to_owned).collect::<Vec<_>>();
    let (expected, mut actual) = (fields(expected), fields(actual));
    if expected.len() != 6 || actual.len() != 6 {
        return false;
    }
    if expected[4] == "now" {
        actual[4] = "now".to_owned();
    }
    if !real {
        // Owners are only recorded, and set-group-id bits of foreign groups are not granted.
        actual[1..4].clone_from_slice(&expected[1..4]);
    }
    expected == actual
}

fn check_all(real: bool) {
    let mut wrong = Vec::new();
    let cases = cases();
    for case in &cases {
        let spec = |lines: &'_ [String]| lines.iter().map(|line| line.to_owned()).collect::<Vec<_>>();
        let (src_spec, dst_spec) = (spec(&case.src), spec(&case.dst));
        let src_spec: Vec<&str> = src_spec.iter().map(String::as_str).collect();
        let dst_spec: Vec<&str> = dst_spec.iter().map(String::as_str).collect();
        let has_special = |spec: &[&str]| spec.iter().any(|line| line.starts_with("char") || line.starts_with("xattr"));
        if !real && (has_special(&src_spec) || has_special(&dst_spec)) {
            continue;
        }
        let (src, dst) = (TestTree::build(&src_spec, real), TestTree::build(&dst_spec, real));
        src.set_times(&src_spec, 1000);
        dst.set_times(&dst_spec, 2000);
        let (from, to) = (src.root(), dst.root());
        let notes = Notes::default();
        let recorder = if real { None } else { Some(&notes as &dyn Recorder) };
        let done = act(&Source::snapshot(&from), &Target { root: &to, recorder }, &case.action);
        let right = match (&done, case.outcome.strip_prefix("tree ")) {
            (Err(_), None) => true,
            (Ok(()), Some(expected)) => {
                let actual = list_tree(&dst.path());
                let expected: Vec<&str> = expected.split(';').collect();
                expected.len() == actual.len()
                    && expected.iter().zip(&actual).all(|(expected, actual)| is_same(expected, actual, real))
            }
            _ => false,
        };
        if !right {
            let actual =
                done.map_or_else(|error| crate::chain(&error).to_string(), |()| list_tree(&dst.path()).join(";"));
            let (src, dst) = (case.src.join("\n  "), case.dst.join("\n  "));
            wrong.push(format!(
                "from\n  {src}\nto\n  {dst}\n{}\nexpected {}\nactual   {actual}",
                case.action, case.outcome
            ));
        }
    }
    let shown = wrong.iter().take(4).cloned().collect::<Vec<_>>().join("\n\n");
    assert!(wrong.is_empty(), "{} of {} differ:\n{shown}", wrong.len(), cases.len());
}

// Not among the cases, for here we differ on purpose: `rm` removes a link that leads nowhere, and without a complaint
// nothing below a file; a file never takes the place of the whole tree; a trailing `/.` behind a link that leads
// nowhere makes one directory, not two.

#[test]
fn upstream_leaves_the_same_names_and_contents() {
    check_all(false);
}

#[test]
fn privileged_upstream_leaves_the_same_trees() {
    if is_root() {
        check_all(true);
    }
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

#[test]
fn a_local_source_shows_only_what_its_filter_lets_through() {
    let (dir, src, dst) = scratch();
    fs::create_dir_all(src.join("app/secret")).unwrap();
    fs::write(src.join("app/main.c"), "main").unwrap();
    fs::write(src.join("app/secret/key"), "key").unwrap();
    fs::write(src.join("app/x.log"), "log").unwrap();
    symlink("secret/key", src.join("app/link")).unwrap();
    fs::set_permissions(src.join("app/main.c"), fs::Permissions::from_mode(0o751)).unwrap();
    let from = Root::open(&src).unwrap();
    let filter = Filter { exclude: vec!["**/secret".into(), "**/*.log".into()], ..Filter::default() };
    let tree = Tree::of_context(&from, &filter, &Cancel::new()).unwrap();
    let to = Root::open(&dst).unwrap();
    let notes = Notes::default();
    let target = Target { root: &to, recorder: (!is_root()).then_some(&notes as &dyn Recorder) };
    let take = |path: &str| copy(&Source::context(&from, &tree), &target, &plain(path, "/out/"), &CopyEnv::default());
    assert_eq!(counts(take("/")), (2, 4));
    assert!(!dst.join("out/app/secret").exists() && !dst.join("out/app/x.log").exists());
    assert_eq!(fs::metadata(dst.join("out/app/main.c")).unwrap().mode() & 0o7777, 0o751);
    // The link itself is there, but what it leads to is not.
    assert!(take("/app/link").unwrap_err().is_not_found());
    assert!(take("/app/secret/key").unwrap_err().is_not_found());
    assert!(matches!(take("/app/*.log").unwrap_err(), Error::NoMatch(_)));
    drop(dir);
}

#[test]
fn privileged_local_sources_belong_to_root() {
    if !is_root() {
        return;
    }
    let (_dir, src, dst) = scratch();
    fs::create_dir(src.join("d")).unwrap();
    fs::write(src.join("d/f"), "f").unwrap();
    symlink("f", src.join("d/l")).unwrap();
    for path in ["d", "d/f", "d/l"] {
        std::os::unix::fs::lchown(src.join(path), Some(1234), Some(1234)).unwrap();
    }
    let (from, to) = (Root::open(&src).unwrap(), Root::open(&dst).unwrap());
    let tree = Tree::of_context(&from, &Filter::default(), &Cancel::new()).unwrap();
    let source = Source::context(&from, &tree);
    copy(&source, &Target::new(&to), &plain("/", "/"), &CopyEnv::default()).unwrap();
    let owner = |path: &str| dst.join(path).symlink_metadata().map(|meta| (meta.uid(), meta.gid())).unwrap();
    assert_eq!(["d", "d/f", "d/l"].map(owner), [(0, 0); 3]);
    let action = Copy { owner: Some(Owner { uid: 5, gid: 6 }), ..plain("/", "/mine/deep") };
    copy(&source, &Target::new(&to), &action, &CopyEnv::default()).unwrap();
    assert_eq!(["mine", "mine/deep/d", "mine/deep/d/f", "mine/deep/d/l"].map(owner), [(5, 6); 4]);
}

#[test]
fn a_file_that_changed_since_its_checksum_is_never_copied() {
    type Change = (&'static str, fn(&Path));
    let change: [Change; 4] = [
        ("rewritten", |file| fs::write(file, "bbbb").unwrap()),
        ("gone", |file| fs::remove_file(file).unwrap()),
        ("a link", |file| {
            fs::remove_file(file).unwrap();
            symlink("/etc/passwd", file).unwrap();
        }),
        // Put back with its old times, as unpackers do: the inode tells.
        ("replaced", |file| {
            let time = fs::metadata(file).unwrap().modified().unwrap();
            fs::write(file.with_extension("new"), "bbbb").unwrap();
            fs::rename(file.with_extension("new"), file).unwrap();
            fs::File::open(file).unwrap().set_modified(time).unwrap();
        }),
    ];
    for (what, change) in change {
        let (_dir, src, dst) = scratch();
        fs::write(src.join("file"), "aaaa").unwrap();
        let from = std::sync::Arc::new(Root::open(&src).unwrap());
        let to = Root::open(&dst).unwrap();
        let tree = Tree::of_context(&from, &Filter::default(), &Cancel::new()).unwrap();
        tree.checksum(&Place::at(from.clone()), "/", &Options::default(), &Env::default()).unwrap();
        change(&src.join("file"));
        let done = copy(&Source::context(&from, &tree), &Target::new(&to), &plain("/", "/"), &CopyEnv::default());
        let error = done.expect_err(what);
        assert!(error.is_changed(), "{what}: {error}");
        assert_eq!(error.to_string(), "`/file` changed while it was read");
    }
}

#[test]
fn directories_and_links_that_changed_since_their_checksum_are_not_copied_either() {
    type Change = (&'static str, fn(&Path), bool);
    let change: [Change; 7] = [
        (
            "the mode of a directory",
            |src| fs::set_permissions(src.join("dir"), fs::Permissions::from_mode(0o700)).unwrap(),
            true,
        ),
        ("a directory that is gone", |src| fs::remove_dir_all(src.join("dir")).unwrap(), true),
        (
            "a link in place of a directory",
            |src| {
                fs::rename(src.join("dir"), src.join("other")).unwrap();
                symlink("other", src.join("dir")).unwrap();
            },
            true,
        ),
        (
            "a file in place of a directory",
            |src| {
                fs::remove_dir_all(src.join("dir")).unwrap();
                fs::write(src.join("dir"), "").unwrap();
            },
            true,
        ),
        (
            "another link",
            |src| {
                fs::remove_file(src.join("link")).unwrap();
                symlink("cd", src.join("link")).unwrap();
            },
            true,
        ),
        ("a file that the tree does not hold", |src| fs::write(src.join("dir/new"), "new").unwrap(), false),
        (
            "the time of a directory",
            |src| File::open(src.join("dir")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap(),
            false,
        ),
    ];
    for (what, change, changes) in change {
        let (_dir, src, dst) = scratch();
        fs::create_dir(src.join("dir")).unwrap();
        fs::write(src.join("dir/file"), "aaaa").unwrap();
        symlink("ab", src.join("link")).unwrap();
        let from = std::sync::Arc::new(Root::open(&src).unwrap());
        let to = Root::open(&dst).unwrap();
        let tree = Tree::of_context(&from, &Filter::default(), &Cancel::new()).unwrap();
        tree.checksum(&Place::at(from.clone()), "/", &Options::default(), &Env::default()).unwrap();
        change(&src);
        let done = copy(&Source::context(&from, &tree), &Target::new(&to), &plain("/", "/"), &CopyEnv::default());
        match done {
            Ok(copied) => assert!(!changes && copied.files == 2, "{what}"),
            Err(error) => assert!(changes && error.is_changed(), "{what}: {error}"),
        }
    }
}

#[test]
fn a_change_that_times_do_not_show_is_found_in_the_bytes() {
    let (_dir, src, dst) = scratch();
    fs::write(src.join("file"), "aaaa").unwrap();
    let from = std::sync::Arc::new(Root::open(&src).unwrap());
    let to = Root::open(&dst).unwrap();
    // As if the file had been written again within the same tick of the clock: the checksum is of other bytes.
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("file"), "bbbb").unwrap();
    let entries = crate::walk::walk(&from, &Filter::default(), &mut crate::walk::reset_owner, &Cancel::new()).unwrap();
    let tree = Tree::of_entries(entries);
    let elsewhere = Place::at(std::sync::Arc::new(Root::open(other.path()).unwrap()));
    tree.checksum(&elsewhere, "/", &Options::default(), &Env::default()).unwrap();
    tree.pretend_seen(&from);
    let done = copy(&Source::context(&from, &tree), &Target::new(&to), &plain("/", "/"), &CopyEnv::default());
    assert!(done.unwrap_err().is_changed());
}

#[test]
fn nor_is_an_archive_unpacked_that_changed_so() {
    for (hashed, unpacked) in [("TARold", false), ("TARnew", true)] {
        let (_dir, src, dst) = scratch();
        fs::write(src.join("file"), "TARnew").unwrap();
        let from = std::sync::Arc::new(Root::open(&src).unwrap());
        let to = Root::open(&dst).unwrap();
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("file"), hashed).unwrap();
        let entries = crate::walk::walk(&from, &Filter::default(), &mut crate::walk::reset_owner, &Cancel::new());
        let tree = Tree::of_entries(entries.unwrap());
        let elsewhere = Place::at(std::sync::Arc::new(Root::open(other.path()).unwrap()));
        tree.checksum(&elsewhere, "/", &Options::default(), &Env::default()).unwrap();
        tree.pretend_seen(&from);
        let env = CopyEnv { unpack: Some(&FakeTar), ..CopyEnv::default() };
        let add = Copy { attempt_unpack: true, ..plain("/file", "/into/") };
        let done = copy(&Source::context(&from, &tree), &Target::new(&to), &add, &env);
        assert_eq!(done.as_ref().is_err_and(Error::is_changed), !unpacked, "{done:?}");
    }
}

/// An archive here is a file that begins with `TAR`; unpacking it writes what follows into `unpacked`.
struct FakeTar;

impl Unpack for FakeTar {
    fn is_archive(&self, mut file: &File) -> io::Result<bool> {
        let mut magic = [0; 3];
        Ok(io::Read::read(&mut file, &mut magic)? == 3 && &magic == b"TAR")
    }

    fn unpack(
        &self,
        mut file: File,
        into: &Root,
        owner: Option<Owner>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut text = String::new();
        io::Read::read_to_string(&mut file, &mut text)?;
        if text.ends_with("BAD") {
            return Err("cut short".into());
        }
        mkfile(
            &Target::new(into),
            &Mkfile {
                path: "unpacked".into(),
                mode: 0o644,
                data: text.split_off(3).into_bytes(),
                owner,
                timestamp: None,
            },
        )?;
        Ok(())
    }
}

#[test]
fn archives_are_unpacked_where_asked_and_files_copied() {
    let (_dir, src, dst) = scratch();
    fs::write(src.join("1.tar"), "TARone").unwrap();
    fs::write(src.join("2.txt"), "two").unwrap();
    fs::write(src.join("3.tar"), "TARBAD").unwrap();
    let (from, to) = (Root::open(&src).unwrap(), Root::open(&dst).unwrap());
    let env = CopyEnv { unpack: Some(&FakeTar), ..CopyEnv::default() };
    let run = |src: &str, attempt_unpack| {
        let action = Copy { attempt_unpack, ..plain(src, "/into/") };
        copy(&Source::snapshot(&from), &Target::new(&to), &action, &env)
    };
    run("/[12].*", true).unwrap();
    assert_eq!(fs::read(dst.join("into/unpacked")).unwrap(), b"one");
    assert_eq!(fs::read(dst.join("into/2.txt")).unwrap(), b"two");
    assert!(!dst.join("into/1.tar").exists());
    run("/1.tar", false).unwrap();
    assert!(dst.join("into/1.tar").exists());
    let error = run("/3.tar", true).unwrap_err();
    assert_eq!(crate::chain(&error).to_string(), "cannot unpack `/3.tar`: cut short");
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
