//! The kernel's walk and ours give the same answers, and no answer lies outside the root.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

const SECRET: &[u8] = b"outside";

/// `<dir>/root` with some links, and `<dir>/secret` that no look-up may reach.
fn tree() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(dir.path().join("secret"), SECRET).unwrap();
    fs::write(root.join("a/file"), b"inside").unwrap();
    fs::write(root.join("secret"), b"decoy").unwrap();
    for (link, target) in [
        ("to_file", "a/file"),
        ("to_dir", "a"),
        ("abs", "/a/file"),
        ("up", "../secret"),
        ("far_up", "../../../../../../secret"),
        ("a/b/up", "../../../secret"),
        ("loop", "loop"),
        ("dangling", "nowhere/x"),
        ("abs_dir", "/a/b"),
        ("dot", "."),
        ("host", "/etc"),
        ("magic", "/proc/self/root"),
    ] {
        symlink(target, root.join(link)).unwrap();
    }
    (dir, root)
}

fn both(root: &Path) -> [Root; 2] {
    [Root::open(root).unwrap(), Root::open(root).unwrap().without_openat2()]
}

fn read(root: &Root, path: &str, links: Links) -> Result<Vec<u8>, Errno> {
    let fd = root
        .open_at(path, OFlags::RDONLY, Mode::empty(), links)
        .map_err(|error| Errno::from_io_error(&error).unwrap())?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut fs::File::from(fd), &mut bytes)
        .map_err(|error| Errno::from_io_error(&error).unwrap())?;
    Ok(bytes)
}

#[test]
fn links_end_inside_the_root() {
    let (_dir, path) = tree();
    for root in both(&path) {
        type Case = (&'static str, Links, Result<&'static [u8], Errno>);
        let cases: [Case; 20] = [
            ("a/file", Links::Follow, Ok(b"inside")),
            ("/a/file", Links::Refuse, Ok(b"inside")),
            ("to_file", Links::Follow, Ok(b"inside")),
            ("abs", Links::Follow, Ok(b"inside")),
            ("to_dir/file", Links::FollowParents, Ok(b"inside")),
            ("up", Links::Follow, Ok(b"decoy")),
            ("far_up", Links::Follow, Ok(b"decoy")),
            ("a/b/up", Links::Follow, Ok(b"decoy")),
            ("../../secret", Links::Follow, Ok(b"decoy")),
            ("a/b/../../../secret", Links::Refuse, Ok(b"decoy")),
            ("abs_dir/../file", Links::Follow, Ok(b"inside")),
            ("dot/dot/secret", Links::Follow, Ok(b"decoy")),
            ("to_file", Links::FollowParents, Err(Errno::LOOP)),
            ("to_dir/file", Links::Refuse, Err(Errno::LOOP)),
            ("loop", Links::Follow, Err(Errno::LOOP)),
            ("dangling", Links::Follow, Err(Errno::NOENT)),
            ("host/hostname", Links::Follow, Err(Errno::NOENT)),
            ("magic/secret", Links::Follow, Err(Errno::NOENT)),
            ("a/file/x", Links::Follow, Err(Errno::NOTDIR)),
            ("a/file/", Links::Follow, Err(Errno::NOTDIR)),
        ];
        for (path, links, expected) in cases {
            assert_eq!(read(&root, path, links).as_deref(), expected.as_ref().copied(), "{path} {links:?}");
        }
    }
}

#[test]
fn resolve_takes_missing_names_as_they_are() {
    let (_dir, path) = tree();
    let root = Root::open(&path).unwrap();
    for (from, links, expected) in [
        ("", Links::Follow, ""),
        ("/", Links::Follow, ""),
        ("/to_dir/new/x", Links::Follow, "a/new/x"),
        ("/dangling", Links::Follow, "nowhere/x"),
        ("/dangling", Links::FollowParents, "dangling"),
        ("/dangling/../y", Links::Follow, "nowhere/y"),
        ("up", Links::Follow, "secret"),
        ("new/../../../a", Links::Follow, "a"),
        ("abs_dir/..", Links::Follow, "a"),
        ("host/passwd", Links::Follow, "etc/passwd"),
    ] {
        assert_eq!(root.resolve(from, links).unwrap(), Path::new(expected), "{from}");
    }
    let errno = |path: &str, links| Errno::from_io_error(&root.resolve(path, links).unwrap_err()).unwrap();
    assert_eq!(errno("loop", Links::Follow), Errno::LOOP);
    assert_eq!(errno("to_dir/x", Links::Refuse), Errno::LOOP);
    assert_eq!(errno("a/file/x", Links::Follow), Errno::NOTDIR);
}

#[test]
fn creating_through_a_link_stays_inside() {
    let (dir, path) = tree();
    for (root, name) in both(&path).iter().zip(["one", "two"]) {
        let (parent, entry) = root.parent(Path::new("/to_dir/../../..").join(name), Links::Follow).unwrap();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        rustix::fs::openat(&parent, entry, flags, Mode::RUSR).unwrap();
        assert!(path.join(name).exists());
        assert!(!dir.path().join(name).exists());
        let flags = OFlags::CREATE | OFlags::WRONLY;
        root.open_at(format!("host/../{name}.created"), flags, Mode::RUSR, Links::Follow).unwrap_err();
        root.open_at(format!("to_dir/../{name}.created"), flags, Mode::RUSR, Links::Follow).unwrap();
        assert!(path.join(format!("{name}.created")).exists());
        assert_eq!(root.parent("/", Links::Follow).unwrap_err().raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn stat_and_read_link_take_the_entry_itself() {
    let (_dir, path) = tree();
    for root in both(&path) {
        let kind = |links| FileType::from_raw_mode(root.stat("to_dir", links).unwrap().st_mode);
        assert_eq!(kind(Links::Follow), FileType::Directory);
        assert_eq!(kind(Links::FollowParents), FileType::Symlink);
        assert_eq!(root.read_link("host").unwrap(), "/etc");
        assert!(root.read_link("a/file").is_err());
    }
}

#[test]
fn a_swapped_directory_never_leads_out() {
    let (dir, path) = tree();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), SECRET).unwrap();
    fs::create_dir(path.join("swap")).unwrap();
    fs::write(path.join("swap/file"), b"inside").unwrap();
    symlink(&outside, path.join("evil")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let dir = Root::open(&path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(dir.dir(), "swap", dir.dir(), "evil", flags);
            }
        });
        for root in both(&path) {
            for _ in 0..500 {
                for links in [Links::Follow, Links::FollowParents, Links::Refuse] {
                    if let Ok(bytes) = read(&root, "swap/../swap/file", links) {
                        assert_eq!(bytes, b"inside");
                    }
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn segment() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "c", "..", ".", "", "l1", "l2", "l3"])
}

fn some_path() -> impl Strategy<Value = String> {
    (any::<bool>(), prop::collection::vec(segment(), 1..6))
        .prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// On any tree of links the fallback agrees with the kernel, and `resolve` with both where things exist.
    #[test]
    fn the_walks_agree(targets in prop::collection::vec(some_path(), 3), path in some_path()) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("x/root");
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::create_dir_all(root.join("b/a")).unwrap();
        fs::write(root.join("c"), "").unwrap();
        for (place, target) in ["l1", "a/l2", "a/b/l3"].iter().zip(&targets) {
            if !target.is_empty() {
                symlink(target, root.join(place)).unwrap();
            }
        }
        let [kernel, ours] = both(&root);
        for links in [Links::Follow, Links::FollowParents, Links::Refuse] {
            let one = kernel.stat(&path, links).map(|stat| (stat.st_dev, stat.st_ino));
            let two = ours.stat(&path, links).map(|stat| (stat.st_dev, stat.st_ino));
            prop_assert_eq!(one.is_ok(), two.is_ok(), "{} {:?}: {:?} {:?}", path, links, one, two);
            let (Ok(one), Ok(two)) = (one, two) else { continue };
            prop_assert_eq!(one, two);
            // A trailing slash makes the kernel follow the last link, which `resolve` does not look at.
            if links == Links::Follow {
                let resolved = kernel.resolve(&path, links).unwrap();
                prop_assert!(resolved.components().all(|part| matches!(part, std::path::Component::Normal(_))));
                let stat = kernel.stat(&resolved, Links::Refuse).unwrap();
                prop_assert_eq!((stat.st_dev, stat.st_ino), one);
            }
        }
    }
}
