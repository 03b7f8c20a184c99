//! Local sources: what their filters show, whose files they are, and what changed since its checksum.

use super::*;

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
