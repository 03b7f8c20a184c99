//! Lazy layers, layer records, cache mounts, deep stacks.

use std::io::{Cursor, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base::{Cancel, Digest};
use files::untar::Limits;
use image::layer::compression::Compressor;
use image::layer::{Entry, EntryKind, tar};
use image::{Compression, CompressionOptions};
use sys::mount::FsView;

use crate::tests::{can_mount, copy_store, each_driver, inside, open_with, step};
use crate::*;

/// A layer's tar in short form: `dir/`, `file=data`, `link->target`.
fn layer_tar(lines: &[&str]) -> Vec<u8> {
    let mut writer = tar::Writer::new(Vec::new());
    for line in lines {
        if let Some((path, target)) = line.split_once("->") {
            let entry = Entry::new(path, EntryKind::Symlink { target: target.into() }, 0o777);
            writer.append(&entry, std::io::empty()).expect("written");
            continue;
        }
        match line.split_once('=') {
            Some((path, data)) => {
                let entry = Entry::new(path, EntryKind::File { size: data.len() as u64 }, 0o644);
                writer.append(&entry, data.as_bytes()).expect("written");
            }
            None => {
                let mut entry = Entry::new(line.trim_end_matches('/'), EntryKind::Directory, 0o2750);
                entry.uid = rustix::process::geteuid().as_raw();
                writer.append(&entry, std::io::empty()).expect("written");
            }
        }
    }
    writer.finish().expect("ended")
}

/// A layer of an image that somebody has.
pub(crate) fn lazy_layer(tar: &[u8], below: Option<Digest>) -> LazyLayer {
    let digest = Digest::of(tar);
    LazyLayer {
        digest,
        size: tar.len() as u64,
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        diff_id: digest,
        chain_id: below.map_or(digest, |below| Digest::of(format!("{below} {digest}"))),
        sources: vec!["registry.example/a".into()],
        urls: Vec::new(),
        annotations: Default::default(),
        from_cache: false,
    }
}

#[test]
fn a_layer_that_an_image_has_is_not_a_caches_alone() {
    let (_dir, store) = copy_store();
    let snapshots = store.snapshots();
    let options = |created_at| PrepareOptions { created_at, ..PrepareOptions::default() };
    let made = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(7);
    let of_image = lazy_layer(&layer_tar(&["a=1"]), None);
    let of_cache = LazyLayer { sources: vec!["cache.example/c".into()], from_cache: true, size: 7, ..of_image.clone() };
    let size = of_image.size;
    let check = |id: &SnapshotId, from_cache, sources: &[&str]| {
        let known = snapshots.lazy(id).expect("lazy");
        assert_eq!(
            (known.from_cache, known.sources.as_slice()),
            (from_cache, &sources.iter().map(ToString::to_string).collect::<Vec<_>>()[..])
        );
    };
    let first = snapshots.register_lazy(None, of_cache.clone(), options(Some(made))).expect("registered");
    assert_eq!(snapshots.info(&first.id()).expect("known").created_at, made);
    check(&first.id(), true, &["cache.example/c"]);
    assert_eq!(snapshots.lazy(&first.id()).expect("lazy").size, 7);
    // The image's own place comes first, and is the one that counts; so does what it says of the blob.
    let second = snapshots.register_lazy(None, of_image, options(None)).expect("registered");
    assert_eq!(first.id(), second.id());
    check(&first.id(), false, &["registry.example/a", "cache.example/c"]);
    snapshots.register_lazy(None, of_cache, options(None)).expect("registered");
    check(&first.id(), false, &["registry.example/a", "cache.example/c"]);
    assert_eq!(snapshots.lazy(&first.id()).expect("lazy").size, size);
}

fn unpack(store: &Store, hold: &Hold, tar: Vec<u8>) -> Result<()> {
    store.snapshots().unpack(&hold.id(), std::io::Cursor::new(tar), &Limits::default(), &Cancel::new())
}

/// An image of two layers, unpacked: the lower one and the whole.
fn image_of_two(store: &Store, tars: &[Vec<u8>; 2]) -> (Hold, Hold) {
    let first = lazy_layer(&tars[0], None);
    let second = lazy_layer(&tars[1], Some(first.chain_id));
    let snapshots = store.snapshots();
    let bottom = snapshots.register_lazy(None, first, PrepareOptions::default()).expect("registered");
    let top = snapshots.register_lazy(Some(&bottom.id()), second, PrepareOptions::default()).expect("registered");
    unpack(store, &bottom, tars[0].clone()).expect("unpacked");
    unpack(store, &top, tars[1].clone()).expect("unpacked");
    (bottom, top)
}

/// A compressed layer that is much larger than it looks: so many files of so many zeros.
fn bomb(kind: Compression, files: usize, size: u64) -> Vec<u8> {
    let compressor = Compressor::new(Vec::new(), &CompressionOptions::new(kind, 2)).expect("started");
    let mut writer = tar::Writer::new(compressor);
    for n in 0..files {
        let mut entry = Entry::new(format!("f{n}"), EntryKind::File { size }, 0o644);
        (entry.uid, entry.gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        writer.append(&entry, std::io::repeat(0).take(size)).expect("written");
    }
    writer.finish().expect("ended").finish().expect("ended").1
}

/// The regular files below a directory.
fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("an entry");
        match entry.file_type().expect("there").is_dir() {
            true => files.extend(files_below(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

#[test]
fn a_layer_that_inflates_beyond_a_limit_is_refused_and_leaves_nothing() {
    let large = Limits { bytes: 2 << 20, ..Limits::default() };
    let many = Limits { entries: 1000, ..Limits::default() };
    for kind in [Compression::Gzip, Compression::Zstd] {
        // 16 MiB of zeros, and 5,000 empty files.
        for (files, size, limits, words) in [(256, 64 << 10, &large, "2097152 bytes"), (5000, 0, &many, "1000 entries")]
        {
            let (dir, store) = copy_store();
            let blob = bomb(kind, files, size);
            assert!(blob.len() < 1 << 20, "{}", blob.len());
            let hold = store.snapshots().register_lazy(None, lazy_layer(&blob, None), PrepareOptions::default());
            let hold = hold.expect("registered");
            let error = store.snapshots().unpack(&hold.id(), Cursor::new(blob), limits, &Cancel::new());
            let error = error.expect_err("too much");
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(next) = cause {
                text.push_str(&format!(": {next}"));
                cause = next.source();
            }
            let expected = format!("the archive unpacks to more than {words}: refused as a decompression bomb");
            assert!(text.ends_with(&expected), "{text}");
            assert!(matches!(store.snapshots().view(&hold.id()), Err(Error::NotFilled(_))));
            drop((hold, store));
            let left = files_below(dir.path());
            let is_part = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('f'));
            assert!(!left.iter().any(|path| is_part(path)), "{left:?}");
        }
    }
}

fn names(root: &Path) -> Vec<String> {
    crate::diff::tests::picture(root, false)
        .into_iter()
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn privileged_pulled_layers_are_unpacked_in_any_order_and_found_again() {
    each_driver(|scratch, store| {
        let tars = [layer_tar(&["etc/", "etc/a=1", "gone=x"]), layer_tar(&["etc/b=2", ".wh.gone=", "new/dir/c=3"])];
        let first = lazy_layer(&tars[0], None);
        let second = lazy_layer(&tars[1], Some(first.chain_id));
        let snapshots = store.snapshots();
        let bottom = snapshots.register_lazy(None, first.clone(), PrepareOptions::default()).expect("registered");
        let top =
            snapshots.register_lazy(Some(&bottom.id()), second.clone(), PrepareOptions::default()).expect("registered");
        assert!(matches!(snapshots.view(&top.id()), Err(Error::NotFilled(_))));
        assert!(
            snapshots
                .prepare(Some(&top.id()), PrepareOptions::default())
                .and_then(|active| active.view().map(drop))
                .is_err()
        );
        assert_eq!(snapshots.unfilled(&top.id()).expect("known"), [bottom.id(), top.id()]);
        if store.driver().driver == Driver::Overlay {
            unpack(&store, &top, tars[1].clone()).expect("the upper one first");
            unpack(&store, &bottom, tars[0].clone()).expect("then the lower one");
        } else {
            assert!(
                matches!(unpack(&store, &top, tars[1].clone()), Err(Error::NotFilled(_))),
                "a copy needs its parent"
            );
            unpack(&store, &bottom, tars[0].clone()).expect("unpacked");
            unpack(&store, &top, tars[1].clone()).expect("unpacked");
        }
        assert_eq!(snapshots.unfilled(&top.id()).expect("known"), []);
        let check = |store: &Store, id| {
            inside(&store.snapshots().view(&id).expect("a view"), scratch, |root| {
                assert_eq!(names(root), ["etc", "etc/a", "etc/b", "new", "new/dir", "new/dir/c"]);
                let etc = std::fs::metadata(root.join("etc")).expect("etc");
                assert_eq!(
                    etc.permissions().mode() & 0o7777,
                    0o2750,
                    "a directory that a layer implies looks as below"
                );
                assert_eq!(std::fs::metadata(root.join("new")).expect("new").permissions().mode() & 0o7777, 0o755);
            });
        };
        check(&store, top.id());
        let again = snapshots.register_lazy(
            Some(&bottom.id()),
            LazyLayer { sources: vec!["mirror.example/a".into()], ..second.clone() },
            PrepareOptions::default(),
        );
        assert_eq!(again.expect("registered").id(), top.id(), "one chain, one snapshot");
        let elsewhere = LazyLayer { sources: vec!["other.example/b".into()], ..second.clone() };
        snapshots.also_from(&elsewhere).expect("noted");
        let unknown = LazyLayer { chain_id: base::Digest::of("unknown"), ..elsewhere };
        snapshots.also_from(&unknown).expect("nothing to note");
        assert!(snapshots.by_chain_id(&unknown.chain_id).is_none());
        let sources = ["registry.example/a", "mirror.example/a", "other.example/b"];
        assert_eq!(snapshots.lazy(&top.id()).expect("pulled").sources, sources);
        let (dir, driver, id) = (store.dir().to_owned(), store.driver().driver, top.id());
        drop((bottom, top, snapshots, store));
        let store = open_with(&dir, driver);
        let found = store.snapshots().by_chain_id(&second.chain_id).expect("it survived");
        assert_eq!(found.id(), id);
        check(&store, id);
    });
}

#[test]
fn privileged_looks_that_a_kill_left_open_are_set_at_the_next_start() {
    each_driver(|_, store| {
        if store.driver().driver == Driver::Copy {
            return;
        }
        let tars = [layer_tar(&["etc/", "etc/a=1"]), layer_tar(&["etc/b=2"])];
        let (bottom, top) = image_of_two(&store, &tars);
        let etc = crate::snapshot::tree::dir(&store.inner, top.id()).join("etc");
        let (dir, driver, id) = (store.dir().to_owned(), store.driver().driver, top.id());
        drop((bottom, top, store));
        let mode = || std::fs::metadata(&etc).map(|etc| etc.permissions().mode() & 0o7777).expect("etc");
        assert_eq!(mode(), 0o2750);
        // As if killed between the record of the layer and the looks of what it implies.
        let put_back = || {
            let db = rusqlite::Connection::open(dir.join("metadata.db")).expect("the database");
            db.execute("UPDATE snapshot SET implied = CAST('etc' || char(0) AS BLOB) WHERE id = ?1", [id.0])
                .expect("set");
        };
        put_back();
        std::fs::set_permissions(&etc, std::fs::Permissions::from_mode(0o700)).expect("other looks");
        let store = open_with(&dir, driver);
        assert_eq!(mode(), 0o2750);
        drop(store);
        put_back();
        std::fs::remove_dir_all(&etc).expect("removed");
        let store = open_with(&dir, driver);
        assert_eq!(store.snapshots().unfilled(&id).expect("known"), [id], "what cannot be set is unpacked anew");
    });
}

#[test]
fn privileged_looks_of_directories_do_not_go_where_links_of_a_layer_lead() {
    each_driver(|_, store| {
        // Outside there is one of this name, and inside of the layer, too.
        let outside = tempfile::tempdir().expect("a directory");
        let victim = outside.path().join("sub");
        std::fs::create_dir(&victim).expect("made");
        std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o711)).expect("set");
        let inside = format!("{}/", outside.path().display());
        let over = format!("l->{}", outside.path().display());
        let tars = [layer_tar(&["l/", "l/sub/", "l/sub/a=1"]), layer_tar(&[&inside, &over, "l/sub/b=2"])];
        let _image = image_of_two(&store, &tars);
        let mode = std::fs::metadata(&victim).expect("there").permissions().mode() & 0o7777;
        assert_eq!(mode, 0o711, "{:?}", store.driver().driver);
        assert!(!victim.join("b").exists());
    });
}

#[test]
fn a_cache_mount_in_use_is_not_taken_for_synced() {
    let (dir, store) = copy_store();
    let request = CacheMountRequest {
        id: "cache".into(),
        from: None,
        sharing: Sharing::Shared,
        kind: RecordKind::CacheMount,
        description: String::new(),
    };
    let take = || store.snapshots().cache_mount(&request, || ()).expect("asked").expect("free");
    let id = take().id();
    store.sync().expect("synced");
    let mount = take();
    assert_eq!(mount.id(), id);
    let db = rusqlite::Connection::open(dir.path().join("metadata.db")).expect("the database");
    let newer: bool = db
        .query_row(
            "SELECT seq > (SELECT value FROM state WHERE name = 'synced') FROM snapshot WHERE id = ?1",
            [id.0],
            |row| row.get(0),
        )
        .expect("its row");
    assert!(newer, "after a machine crash it is dropped");
    drop((mount, db));
}

#[test]
fn layers_that_are_not_what_they_should_be_leave_nothing() {
    let (_dir, store) = copy_store();
    let tar = layer_tar(&["a=1"]);
    let good = lazy_layer(&tar, None);
    let cases: [(LazyLayer, Vec<u8>, &str); 4] = [
        (LazyLayer { digest: Digest::of("x"), chain_id: Digest::of("1"), ..good.clone() }, tar.clone(), "digest"),
        (LazyLayer { diff_id: Digest::of("x"), chain_id: Digest::of("2"), ..good.clone() }, tar.clone(), "diff id"),
        (LazyLayer { chain_id: Digest::of("3"), ..good.clone() }, tar[..700].to_vec(), ""),
        (
            LazyLayer { chain_id: Digest::of("4"), ..lazy_layer(&layer_tar(&["h=x", ".wh.="]), None) },
            layer_tar(&["h=x", ".wh.="]),
            "whiteout",
        ),
    ];
    for (layer, bytes, word) in cases {
        let hold = store.snapshots().register_lazy(None, layer, PrepareOptions::default()).expect("registered");
        let error = unpack(&store, &hold, bytes).expect_err("refused");
        assert!(error.to_string().contains(word), "{error}");
        assert!(matches!(store.snapshots().view(&hold.id()), Err(Error::NotFilled(_))), "{word}");
        let tree = store.dir().join("snapshots/1").join(hold.id().to_string());
        assert!(!tree.exists() && !store.dir().join(format!("snapshots/1/t{}", hold.id())).exists());
    }
    let hold = store.snapshots().register_lazy(None, good, PrepareOptions::default()).expect("registered");
    unpack(&store, &hold, tar[..700].to_vec()).expect_err("cut short");
    unpack(&store, &hold, tar).expect("a second try");
}

#[test]
fn a_layer_is_filled_once() {
    let (_dir, store) = copy_store();
    let tar = layer_tar(&["a=1"]);
    let hold =
        store.snapshots().register_lazy(None, lazy_layer(&tar, None), PrepareOptions::default()).expect("registered");
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                store
                    .snapshots()
                    .fill(&hold.id(), |target| {
                        count.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        target.unpack(&mut TarSource(tar::Reader::new(&tar[..])))
                    })
                    .expect("filled")
            });
        }
    });
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[test]
fn what_a_tar_is_is_known_as_long_as_its_snapshot_is_there() {
    let (dir, store) = copy_store();
    let snapshots = store.snapshots();
    let top = step(&store, dir.path(), None, |root| {
        std::fs::write(root.join("a"), vec![7; 3 << 20]).expect("written");
    });
    let id = top.id();
    let make = |variant: &str, kind| {
        let options = image::layer::CompressionOptions::new(kind, 2);
        snapshots.make_blob(&id, variant, &options, &Cancel::new()).expect("made").diff_id
    };
    let tars = || store.inner.snapshots.table().tars.clone();
    let diff_id = make("gzip", Compression::Gzip);
    let known = tars()[&id];
    assert_eq!(known.diff_id, diff_id);
    // It is believed, unless the size says that it cannot be.
    let told = image::layer::compression::Tar { diff_id: Digest::of("told"), ..known };
    store.inner.snapshots.table().note_tar(id, told);
    assert_eq!(make("zstd", Compression::Zstd), told.diff_id);
    store.inner.snapshots.table().note_tar(id, image::layer::compression::Tar { size: 1, ..told });
    assert_eq!(make("zstd-9", Compression::Zstd), diff_id);
    assert_eq!(tars()[&id], known);
    drop(top);
    store.prune(&crate::PruneOptions { all: true, ..Default::default() }).expect("pruned");
    assert!(tars().is_empty());
}

#[test]
fn layer_blobs_are_made_once_and_give_the_chain_id() {
    let (dir, store) = copy_store();
    let snapshots = store.snapshots();
    let base = step(&store, dir.path(), None, |root| std::fs::write(root.join("a"), "1").expect("written"));
    let top = step(&store, dir.path(), Some(&base), |root| std::fs::write(root.join("b"), "2").expect("written"));
    let options = image::layer::CompressionOptions::new(image::layer::Compression::Gzip, 2);
    let blob = |hold: &Hold| snapshots.make_blob(&hold.id(), "gzip", &options, &Cancel::new()).expect("made");
    let upper = blob(&top);
    assert_eq!(snapshots.info(&top.id()).expect("known").chain_id, None, "what is below is not known yet");
    let lower = blob(&base);
    assert_eq!(snapshots.info(&base.id()).expect("known").chain_id, Some(lower.diff_id));
    assert!(store.content().has(&upper.digest) && store.content().has(&lower.digest));
    assert_eq!(upper.media_type, "application/vnd.oci.image.layer.v1.tar+gzip");
    let never = || -> Result<LayerRecord> { panic!("it is there") };
    assert_eq!(snapshots.make_layer(&top.id(), "gzip", never).expect("known"), upper);
    store.content().delete(&upper.digest).expect("deleted");
    assert_eq!(blob(&top), upper, "a blob that is gone is made again, with the same bytes");
    let third = step(&store, dir.path(), Some(&base), |root| std::fs::write(root.join("c"), "3").expect("written"));
    let layer = blob(&third);
    let chain = Digest::of(format!("{} {}", lower.diff_id, layer.diff_id));
    assert_eq!(snapshots.by_chain_id(&chain).expect("found").id(), third.id());
    assert_eq!(snapshots.layers(&third.id()).expect("known")["gzip"], layer);
}

#[test]
fn privileged_two_hundred_layers_and_empty_ones_in_between() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("a scratch directory");
    let store = open_with(&dir.path().join("store"), Driver::Overlay);
    let mut top: Option<Hold> = None;
    for n in 0..600 {
        top = Some(step(&store, dir.path(), top.as_ref(), |root| {
            if n % 3 == 0 {
                std::fs::write(root.join(format!("f{n}")), "x").expect("written");
            }
        }));
    }
    let top = top.expect("made");
    assert_eq!(store.snapshots().layer_dirs(&top.id()).expect("known").len(), 200, "empty layers do not count");
    inside(&store.snapshots().view(&top.id()).expect("a view"), dir.path(), |root| {
        assert_eq!(std::fs::read_dir(root).expect("a tree").count(), 200);
    });
}

#[test]
fn privileged_the_top_directory_keeps_its_looks() {
    each_driver(|scratch, store| {
        let base = step(&store, scratch, None, |root| {
            std::fs::set_permissions(root, PermissionsExt::from_mode(0o1770)).expect("set");
            std::os::unix::fs::chown(root, Some(3), Some(4)).expect("set");
        });
        let top = step(&store, scratch, Some(&base), |_| ());
        inside(&store.snapshots().view(&top.id()).expect("a view"), scratch, |root| {
            let looks = std::fs::metadata(root).expect("there");
            assert_eq!((looks.mode() & 0o7777, looks.uid(), looks.gid()), (0o1770, 3, 4));
        });
    });
}

fn request(id: &str, sharing: Sharing) -> CacheMountRequest {
    CacheMountRequest {
        id: id.into(),
        from: None,
        sharing,
        kind: RecordKind::CacheMount,
        description: format!("cached mount {id}"),
    }
}

#[test]
fn cache_mounts_are_shared_by_the_rules() {
    let (dir, store) = copy_store();
    let snapshots = store.snapshots();
    let take = |sharing| snapshots.cache_mount(&request("m", sharing), || ()).expect("asked");
    let shared = take(Sharing::Shared).expect("free");
    assert_eq!(take(Sharing::Shared).expect("shared").id(), shared.id());
    let private = take(Sharing::Private).expect("another one");
    assert_ne!(private.id(), shared.id());
    assert_ne!(take(Sharing::Private).expect("yet another one").id(), private.id());
    drop((shared, private));

    let locked = take(Sharing::Locked).expect("one is free");
    let second = take(Sharing::Locked).expect("another is free");
    let third = take(Sharing::Locked).expect("and a third");
    let woken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&woken);
    let wake = move || _ = count.fetch_add(1, Ordering::SeqCst);
    assert!(snapshots.cache_mount(&request("m", Sharing::Locked), wake).expect("asked").is_none());
    let waiter = {
        let store = store.clone();
        std::thread::spawn(move || {
            store.snapshots().cache_mount_wait(&request("m", Sharing::Locked), &Cancel::new()).expect("taken").id()
        })
    };
    assert_eq!(woken.load(Ordering::SeqCst), 0);
    let FsView::Dir { path, read_only: false } = locked.view().expect("a view") else { panic!("a plain directory") };
    std::fs::write(path.join("kept"), "x").expect("written");
    let id = locked.id();
    drop(locked);
    assert_eq!(waiter.join().expect("the thread"), id);
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    let info = snapshots.info(&id).expect("known");
    assert!(info.mutable && info.kind == RecordKind::CacheMount);
    drop((second, third, snapshots));
    drop(store);
    let store = open_with(dir.path(), Driver::Copy);
    let mounts: Vec<_> = (0..3)
        .map(|_| store.snapshots().cache_mount_wait(&request("m", Sharing::Locked), &Cancel::new()).expect("free"))
        .collect();
    let kept = mounts
        .iter()
        .filter(|mount| matches!(mount.view(), Ok(FsView::Dir { path, .. }) if path.join("kept").exists()));
    assert_eq!(kept.count(), 1, "they live on in the next process");
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(matches!(
        store.snapshots().cache_mount_wait(&request("m", Sharing::Locked), &cancel),
        Err(Error::Cancelled(_))
    ));
}

#[test]
fn the_size_of_a_cache_mount_is_known_again_where_nothing_changed() {
    let (_dir, store) = copy_store();
    let take = || store.snapshots().cache_mount(&request("m", Sharing::Private), || ()).expect("asked").expect("free");
    let id = take().id();
    let size = || store.snapshots().info(&id).expect("known").size;
    assert_eq!(size(), None);
    store.disk_usage().expect("measured");
    let measured = size();
    assert!(measured.is_some());
    let mount = take();
    assert_eq!(size(), None, "it may change");
    mount.is_as_it_was();
    drop(mount);
    assert_eq!(size(), measured);
    drop(take());
    assert_eq!(size(), None, "it may have changed");
    let mount = take();
    mount.holds(8192);
    drop(mount);
    let empty = measured.expect("measured above");
    assert_eq!(size(), Some(empty + 8192), "who changed it has counted");
}

/// Whoever has it mounted keeps it; whoever comes then, or waited, gets an empty one.
#[test]
fn a_retired_cache_mount_goes_with_its_last_user() {
    let (_dir, store) = copy_store();
    let snapshots = store.snapshots();
    let take = |id: &str, sharing| snapshots.cache_mount(&request(id, sharing), || ()).expect("asked");
    let path = |mount: &CacheMount| match mount.view() {
        Ok(FsView::Dir { path, .. }) => path,
        other => panic!("a plain directory: {other:?}"),
    };
    // What others call theirs, whatever that looks like.
    let others = ["m:x", "m:5", "\nfrom 5 m", "\nid m"].map(|id| take(id, Sharing::Shared).expect("free").id());
    for sharing in [Sharing::Shared, Sharing::Private, Sharing::Locked] {
        let used = take("m", sharing).expect("free");
        std::fs::write(path(&used).join("kept"), "x").expect("written");
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let wake = move || _ = count.fetch_add(1, Ordering::SeqCst);
        if sharing == Sharing::Locked {
            assert!(snapshots.cache_mount(&request("m", sharing), wake).expect("asked").is_none());
        }
        snapshots.retire_cache_mounts("m", true).expect("retired");
        assert!(sharing != Sharing::Locked || woken.load(Ordering::SeqCst) == 0, "that is another cache");
        snapshots.retire_cache_mounts("m", false).expect("retired");
        assert!(sharing != Sharing::Locked || woken.load(Ordering::SeqCst) == 1, "nobody waits for what is retired");
        let new = take("m", sharing).expect("a new one");
        assert!(new.id() != used.id() && !path(&new).join("kept").exists());
        assert!(path(&used).join("kept").exists(), "{sharing:?}: it is in use");
        let (id, dir) = (used.id(), path(&used));
        drop(used);
        assert!(snapshots.info(&id).is_none() && !dir.exists(), "{sharing:?}");
        // What nobody uses goes at once.
        let (id, dir) = (new.id(), path(&new));
        drop(new);
        snapshots.retire_cache_mounts("m", false).expect("retired");
        assert!(snapshots.info(&id).is_none() && !dir.exists(), "{sharing:?}");
    }
    assert!(others.iter().all(|other| snapshots.info(other).is_some()));
}

#[test]
fn privileged_cache_mounts_start_from_snapshots() {
    each_driver(|scratch, store| {
        let one = step(&store, scratch, None, |root| std::fs::create_dir(root.join("seed")).expect("made"));
        let two = step(&store, scratch, Some(&one), |root| std::fs::write(root.join("seed/x"), "x").expect("written"));
        for base in [&one, &two] {
            let request = CacheMountRequest { from: Some(base.id()), ..request("m", Sharing::Locked) };
            let take = || store.snapshots().cache_mount_wait(&request, &Cancel::new()).expect("free");
            let mount = take();
            inside(&mount.view().expect("a view"), scratch, |root| {
                std::fs::write(root.join("seed/mine"), "y").expect("written");
            });
            let id = mount.id();
            drop(mount);
            let mount = take();
            assert_eq!(mount.id(), id);
            inside(&mount.view().expect("a view"), scratch, |root| {
                assert!(root.join("seed/mine").exists());
                assert_eq!(root.join("seed/x").exists(), base.id() == two.id());
            });
        }
    });
}

#[test]
fn what_could_not_be_forgotten_is_still_there() {
    let (_dir, store) = copy_store();
    let scratch = std::env::temp_dir();
    let base = step(&store, &scratch, None, |_| ());
    let top = step(&store, &scratch, Some(&base), |_| ());
    let ids = [top.id(), base.id()];
    drop((top, base));
    let snapshots = &store.inner.snapshots;
    let doomed = snapshots.doom(&ids);
    assert!(ids.iter().all(|id| store.snapshots().info(id).is_none()));
    snapshots.restore(doomed);
    assert_eq!(store.snapshots().chain(&ids[0]).expect("there"), ids);
    assert_eq!(store.prune(&PruneOptions::default()).expect("pruned").len(), 2, "and can go later");
}
