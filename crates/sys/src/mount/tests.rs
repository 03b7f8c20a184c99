//! Real mounts need root; each test enters a mount namespace of its own thread.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests; a skip says why")]

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn as_root(test: impl FnOnce(&Path) + Send) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let dir = std::env::temp_dir().join(format!("hw-sys-{}-{:?}", std::process::id(), std::thread::current().id()));
    fs::create_dir_all(&dir).unwrap();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            crate::ns::private_mounts().unwrap();
            rustix::mount::mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), None).unwrap();
            test(&dir);
        });
        worker.join().unwrap();
    });
    fs::remove_dir(&dir).unwrap();
}

/// `count` layers, each with a file of its number; the topmost is the last made.
fn layers(dir: &Path, count: usize) -> Vec<PathBuf> {
    let make = |number: usize| {
        let layer = dir.join(number.to_string());
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(format!("f{number}")), "").unwrap();
        fs::write(layer.join("top"), number.to_string()).unwrap();
        layer
    };
    let mut made: Vec<PathBuf> = (0..count).map(make).collect();
    made.reverse();
    made
}

fn overlay(dir: &Path, lower: Vec<PathBuf>) -> Overlay {
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&work).unwrap();
    Overlay { lower, upper: Some((upper, work)), userxattr: false, volatile: true }
}

#[test]
fn kernel_versions_are_read() {
    for (release, version) in
        [("6.18.44-fc-v669", Some((6, 18))), ("5.4.0", Some((5, 4))), ("4.4", Some((4, 4))), ("odd", None)]
    {
        assert_eq!(overlay::kernel_version(release), version, "{release}");
    }
}

#[test]
fn too_many_layers_are_named() {
    let view =
        FsView::Overlay(Overlay { lower: vec!["/x".into(); 501], upper: None, userxattr: false, volatile: false });
    let error = view.mount_at(Path::new("/nowhere")).unwrap_err();
    assert_eq!(error.to_string(), "an overlay takes at most 500 layers, this one has 501");
}

#[test]
fn privileged_overlay_of_many_long_paths_mounts_by_either_interface() {
    as_root(|dir| {
        // Long enough that one path fits no fsconfig value, and all of them no page; with every escape.
        let long = dir.join("a:b,c\\d".repeat(20)).join("e".repeat(150));
        for (at, count) in [2, 200, 500].into_iter().enumerate() {
            let base = long.join(at.to_string());
            let overlay = overlay(&base, layers(&base, count));
            let target = dir.join("target");
            fs::create_dir_all(&target).unwrap();

            FsView::Overlay(overlay.clone()).mount_at(&target).unwrap();
            assert_eq!(fs::read_to_string(target.join("top")).unwrap(), (count - 1).to_string());
            fs::write(target.join("new"), "x").unwrap();
            rustix::mount::unmount(&target, UnmountFlags::empty()).unwrap();
            assert!(overlay.upper.as_ref().unwrap().0.join("new").exists());

            // Again: the mark of the volatile mount does not stop it.
            FsView::Overlay(overlay.clone()).mount_at(&target).unwrap();
            rustix::mount::unmount(&target, UnmountFlags::empty()).unwrap();

            fs::remove_dir_all(overlay.upper.as_ref().unwrap().1.join("work/incompat")).unwrap();
            let before = std::env::current_dir().unwrap();
            overlay.by_options(&target, false).unwrap();
            assert_eq!(std::env::current_dir().unwrap(), before);
            assert!(target.join("f0").exists() && target.join("new").exists());
            rustix::mount::unmount(&target, UnmountFlags::empty()).unwrap();
        }
    });
}

#[test]
fn privileged_views_are_read_only_where_they_say_so() {
    as_root(|dir| {
        let lower = layers(&dir.join("l"), 2);
        let target = dir.join("target");
        fs::create_dir(&target).unwrap();
        let view = |lower: &[PathBuf]| {
            FsView::Overlay(Overlay { lower: lower.to_vec(), upper: None, userxattr: false, volatile: false })
        };
        for view in [FsView::Dir { path: lower[0].clone(), read_only: true }, view(&lower), view(&lower[..1])] {
            assert!(view.is_read_only());
            view.mount_at(&target).unwrap();
            let error = fs::write(target.join("no"), "").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{view:?}");
            rustix::mount::unmount(&target, UnmountFlags::empty()).unwrap();
        }
        fs::write(lower[0].join("still writable below"), "").unwrap();
    });
}

#[test]
fn privileged_mounted_comes_and_goes() {
    as_root(|dir| {
        let scratch = dir.join("scratch");
        fs::create_dir(&scratch).unwrap();
        let lower = layers(&dir.join("l"), 2);

        let plain = Mounted::new(&FsView::Dir { path: lower[0].clone(), read_only: false }, &scratch).unwrap();
        assert_eq!(plain.path(), lower[0]);
        drop(plain);

        let mounted = Mounted::new(&FsView::Overlay(overlay(dir, lower.clone())), &scratch).unwrap();
        let path = mounted.path().to_owned();
        let _busy = fs::File::open(path.join("f0")).unwrap();
        mounted.unmount().unwrap();
        assert!(!path.exists());

        let missing = FsView::Overlay(overlay(dir, vec![dir.join("absent"), lower[0].clone()]));
        let error = Mounted::new(&missing, &scratch).unwrap_err();
        assert!(error.to_string().starts_with("cannot mount an overlay at `"), "{error}");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    });
}
