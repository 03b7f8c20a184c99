//! Differences, stacked elsewhere and stacked again.

use std::fs;
use std::path::Path;

use base::Cancel;

use crate::snapshot::tests::lazy_layer;
use crate::tests::{each_driver, inside, step};
use crate::*;

/// Files that are equal wherever they are written.
fn write(root: &Path, names: &[&str]) {
    for name in names {
        fs::write(root.join(name), name).expect("written");
        let file = fs::File::options().write(true).open(root.join(name)).expect("it is there");
        file.set_modified(std::time::UNIX_EPOCH).expect("a time is set");
    }
}

fn remove(root: &Path, names: &[&str]) {
    names.iter().for_each(|name| fs::remove_file(root.join(name)).expect("removed"));
}

fn names(store: &Store, scratch: &Path, tree: &Hold) -> Vec<String> {
    let view = store.snapshots().view(&tree.id()).expect("a view");
    inside(&view, scratch, |root| {
        let entries = fs::read_dir(root).expect("a directory");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
        names.sort();
        names
    })
}

/// All layers of a tree on another.
fn stack(store: &Store, lower: &Hold, upper: &Hold) -> Hold {
    let snapshots = store.snapshots();
    let mut layers = snapshots.chain(&upper.id()).expect("its layers");
    layers.reverse();
    let mut top = lower.clone();
    for layer in layers {
        top = snapshots.restack(&top.id(), &layer, &Cancel::new()).expect("stacked");
    }
    top
}

#[test]
fn privileged_what_a_difference_deletes_is_deleted_wherever_it_is_stacked() {
    each_driver(|scratch, store| {
        let snapshots = store.snapshots();
        let difference = |lower: &Hold, upper: Option<&Hold>| {
            let upper = upper.map(Hold::id);
            snapshots.difference(&lower.id(), upper.as_ref(), "x", &Cancel::new()).expect("compared")
        };
        let base = step(&store, scratch, None, |root| write(root, &["a", "b", "c"]));
        let first = step(&store, scratch, Some(&base), |root| write(root, &["d"]));
        let top = step(&store, scratch, Some(&first), |root| {
            remove(root, &["a", "d"]);
            write(root, &["e"]);
        });
        // The same, not by layers.
        let apart = step(&store, scratch, None, |root| write(root, &["b", "c", "e"]));
        assert!(difference(&base, Some(&base)).is_none());
        for (upper, layers, shown) in [(&top, 2, &["e"][..]), (&apart, 1, &["e"])] {
            let difference = difference(&base, Some(upper)).expect("something changed");
            assert_eq!(snapshots.chain(&difference.id()).expect("its layers").len(), layers);
            assert_eq!(names(&store, scratch, &difference), shown, "no mark of what is deleted");
            let other = step(&store, scratch, None, |root| write(root, &["a", "d", "x"]));
            // Stacked on what has nothing to delete, and that on what has.
            let lone = step(&store, scratch, None, |root| write(root, &["y"]));
            let between = stack(&store, &lone, &difference);
            assert_eq!(names(&store, scratch, &between), ["e", "y"]);
            let deleted: &[&str] = if layers == 2 { &["e", "x", "y"] } else { &["d", "e", "x", "y"] };
            assert_eq!(names(&store, scratch, &stack(&store, &other, &between)), deleted);
        }
        // To nothing: all is deleted, and only what was there.
        let nothing = difference(&base, None).expect("something changed");
        assert!(names(&store, scratch, &nothing).is_empty());
        let more = step(&store, scratch, None, |root| write(root, &["a", "z"]));
        assert_eq!(names(&store, scratch, &stack(&store, &more, &nothing)), ["z"]);
        let layer = snapshots.write_tar(&nothing.id(), Vec::new(), &Cancel::new()).expect("a layer");
        let mut tar = image::layer::tar::Reader::new(&*layer);
        let mut paths = Vec::new();
        while let Some(entry) = tar.next_entry().expect("a tar") {
            paths.push(String::from_utf8(entry.path).expect("text"));
        }
        assert_eq!(paths, [".wh.a", ".wh.b", ".wh.c"]);
    });
}

#[test]
fn privileged_a_layer_is_the_same_on_any_parent() {
    each_driver(|scratch, store| {
        let snapshots = store.snapshots();
        let layer = step(&store, scratch, None, |root| {
            write(root, &["f", "g"]);
            fs::create_dir(root.join("d")).expect("made");
            write(root, &["d/f"]);
            fs::hard_link(root.join("d/f"), root.join("d/link")).expect("linked");
        });
        let tar = |tree: &Hold| snapshots.write_tar(&tree.id(), Vec::new(), &Cancel::new()).expect("a layer");
        let expected = tar(&layer);
        let other = step(&store, scratch, None, |root| write(root, &["x"]));
        // What the layer has is there already, and more.
        let equal = step(&store, scratch, None, |root| {
            write(root, &["f", "y"]);
            fs::create_dir(root.join("d")).expect("made");
            write(root, &["d/f", "d/z"]);
        });
        let same = stack(&store, &equal, &layer);
        for (parent, shown) in
            [(&other, &["d", "f", "g", "x"][..]), (&equal, &["d", "f", "g", "y"]), (&same, &["d", "f", "g", "y"])]
        {
            let stacked = stack(&store, parent, &layer);
            assert_eq!(names(&store, scratch, &stacked), shown);
            assert!(tar(&stacked) == expected, "another layer on {shown:?}");
        }
    });
}

/// A layer of a pulled image, with these files, that nobody has unpacked.
fn pulled(store: &Store, files: &[&str]) -> (Hold, Vec<u8>) {
    let mut writer = image::layer::tar::Writer::new(Vec::new());
    for name in files {
        let kind = image::layer::EntryKind::File { size: name.len() as u64 };
        writer.append(&image::layer::Entry::new(*name, kind, 0o644), name.as_bytes()).expect("written");
    }
    let tar = writer.finish().expect("ended");
    let layer = lazy_layer(&tar, None);
    (store.snapshots().register_lazy(None, layer, PrepareOptions::default()).expect("registered"), tar)
}

#[test]
fn privileged_layers_are_stacked_on_what_is_not_unpacked() {
    each_driver(|scratch, store| {
        let snapshots = store.snapshots();
        if !snapshots.is_stackable() {
            return;
        }
        let tar = |tree: &Hold| snapshots.write_tar(&tree.id(), Vec::new(), &Cancel::new());
        let needs_below = |tree: &Hold| snapshots.needs_below(&tree.id()).expect("it is there");
        let (bottom, blob) = pulled(&store, &["a", "b"]);
        let layer = step(&store, scratch, None, |root| write(root, &["a", "x"]));
        let deletes = step(&store, scratch, Some(&layer), |root| remove(root, &["a"]));
        let adds = stack(&store, &bottom, &layer);
        let both = stack(&store, &bottom, &deletes);
        // What deletes nothing can be written, whatever is below it, the rest not.
        assert!(!needs_below(&adds) && needs_below(&both));
        assert!(tar(&adds).expect("a layer") == tar(&layer).expect("a layer"));
        assert!(tar(&both).expect_err("nobody knows what it deletes").is_miss());
        for tree in [&adds, &both] {
            assert_eq!(snapshots.unfilled(&tree.id()).expect("a chain"), [bottom.id()]);
            assert!(snapshots.view(&tree.id()).expect_err("nobody may read it yet").is_miss());
        }
        let blob = std::io::Cursor::new(blob);
        snapshots.unpack(&bottom.id(), blob, &files::untar::Limits::default(), &Cancel::new()).expect("unpacked");
        assert_eq!(names(&store, scratch, &adds), ["a", "b", "x"]);
        assert_eq!(names(&store, scratch, &both), ["b", "x"]);
        assert!(tar(&adds).expect("a layer") == tar(&layer).expect("a layer"));
        assert!(tar(&both).expect("a layer") == tar(&deletes).expect("a layer"));
        let more = step(&store, scratch, Some(&both), |root| write(root, &["y"]));
        assert_eq!(names(&store, scratch, &more), ["b", "x", "y"]);
    });
}
