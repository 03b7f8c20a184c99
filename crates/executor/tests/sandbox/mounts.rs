//! What is mounted into steps, and what is left of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base::{ByteSize, Secret};
use executor::{DeviceKind, DeviceNode, Error, MountSource, Step, StepMount};
use sys::mount::{FsView, Overlay, Restrict};

use crate::bed::Bed;
use crate::{Outcome, Skip, Test};

pub const ALL: &[(&str, Test)] = &[
    ("directories_are_mounted", directories),
    ("read_only_is_read_only", read_only),
    ("parts_of_views_are_mounted", parts),
    ("tmpfs_has_its_size", tmpfs),
    ("secrets_have_owner_and_mode", secrets),
    ("a_read_only_root_refuses_writes", read_only_root),
    ("mount_points_vanish", stubs),
    ("links_lead_nowhere_outside", links),
    ("overlays_of_200_layers_mount", deep_overlay),
    ("plain_directories_are_roots", plain_root),
    ("hostile_roots_are_refused", hostile),
    ("nothing_is_mounted_on_proc", on_proc),
    ("devices_can_be_opened", devices),
    ("privileged_devices_have_owners_and_rules", ruled_devices),
    ("more_groups_are_joined", more_groups),
];

/// A directory of the host, writable.
pub fn directory(target: &str, path: &Path) -> StepMount {
    view(target, FsView::Dir { path: path.to_owned(), read_only: false }, "", false)
}

fn view(target: &str, view: FsView, subpath: &str, read_only: bool) -> StepMount {
    StepMount { target: target.to_owned(), source: MountSource::View { view, subpath: subpath.to_owned(), read_only } }
}

fn with(bed: &Bed, script: &str, mounts: Vec<StepMount>) -> Step {
    let mut step = bed.script("a", script);
    step.mounts = mounts;
    step
}

fn directories(bed: &Bed) -> Outcome {
    let dir = bed.dir("d");
    fs::write(dir.join("in"), "hello\n").unwrap();
    let bind = StepMount {
        target: "/bound/file".to_owned(),
        source: MountSource::Bind { path: dir.join("in"), restrict: Restrict::READ_ONLY },
    };
    let said = bed.say(with(bed, "cat /m/in /bound/file; echo out > /m/out", vec![directory("/m", &dir), bind]));
    assert_eq!(said, "hello\nhello\n");
    assert_eq!(fs::read_to_string(dir.join("out")).unwrap(), "out\n");
    // One inside the other, in order.
    let inner = bed.dir("inner");
    let mounts = vec![directory("/m", &dir), directory("/m/inner", &inner)];
    bed.say(with(bed, "echo x > /m/inner/x", mounts));
    assert!(inner.join("x").exists());
    Ok(())
}

fn read_only(bed: &Bed) -> Outcome {
    let dir = bed.dir("d");
    fs::write(dir.join("f"), "x").unwrap();
    let overlay = bed.root("other");
    for mount in [
        view("/m", FsView::Dir { path: dir.clone(), read_only: false }, "", true),
        view("/m", FsView::Dir { path: dir.clone(), read_only: true }, "", false),
        view("/m", overlay, "", true),
        StepMount {
            target: "/m".to_owned(),
            source: MountSource::Bind { path: dir.clone(), restrict: Restrict::READ_ONLY },
        },
    ] {
        let shown = format!("{mount:?}");
        let said =
            bed.say(with(bed, "touch /m/new 2>&1; mount -o remount,rw /m 2>&1; touch /m/new 2>&1; true", vec![mount]));
        assert_eq!(said.matches("Read-only file system").count(), 2, "{shown}: {said}");
    }
    Ok(())
}

fn parts(bed: &Bed) -> Outcome {
    let dir = bed.dir("d");
    fs::create_dir_all(dir.join("a/b")).unwrap();
    fs::write(dir.join("a/b/f"), "deep\n").unwrap();
    fs::write(dir.join("top"), "top\n").unwrap();
    std::os::unix::fs::symlink("/a", dir.join("link")).unwrap();
    std::os::unix::fs::symlink("../../../../etc/passwd", dir.join("escape")).unwrap();
    let plain = FsView::Dir { path: dir.clone(), read_only: false };
    let layered = FsView::Overlay(Overlay {
        lower: vec![dir.clone(), bed.dir.join("empty")],
        upper: None,
        userxattr: bed.isolation.nested,
        volatile: false,
    });
    for source in [plain, layered] {
        for (subpath, script, expected) in [
            ("a/b", "cat /m/f", "deep\n"),
            ("/a/b/", "cat /m/f", "deep\n"),
            ("link/b", "cat /m/f", "deep\n"),
            ("top", "cat /m", "top\n"),
            ("/", "cat /m/top", "top\n"),
        ] {
            let said = bed.say(with(bed, script, vec![view("/m", source.clone(), subpath, true)]));
            assert_eq!(said, expected, "{subpath}");
        }
        for subpath in ["nope", "top/x", "escape"] {
            let error = bed.run(with(bed, "cat /m", vec![view("/m", source.clone(), subpath, true)])).unwrap_err();
            let expected = format!("failed to find `{subpath}` to mount: no such file or directory");
            assert!(matches!(error, Error::Invalid(_)) && error.to_string() == expected, "{error}");
        }
    }
    Ok(())
}

fn tmpfs(bed: &Bed) -> Outcome {
    let sized = StepMount { target: "/t".to_owned(), source: MountSource::Tmpfs { size: Some(ByteSize(1 << 20)) } };
    let script = "dd if=/dev/zero of=/t/f bs=1M count=2 2>&1 | grep -c 'No space'; stat -c %s /t/f";
    assert_eq!(bed.say(with(bed, script, vec![sized])), "1\n1048576\n");
    let mut step = bed.script("a", "dd if=/dev/zero of=/dev/shm/f bs=1M count=2 2>&1 | grep -c 'No space'");
    step.shm_size = Some(ByteSize(1 << 20));
    assert_eq!(bed.say(step), "1\n");
    Ok(())
}

fn secrets(bed: &Bed) -> Outcome {
    let secret = |target: &str, uid, mode| StepMount {
        target: target.to_owned(),
        source: MountSource::Secret { data: Secret::new("hunter2"), uid, gid: uid, mode },
    };
    let script = "cat /run/secrets/a; stat -c ' %u %a' /run/secrets/a /b; { echo x > /b; } 2>&1; grep -c tmpfs /proc/mounts > /dev/null";
    let said = bed.say(with(bed, script, vec![secret("/run/secrets/a", 0, 0o400), secret("/b", 1000, 0o444)]));
    let owner = if bed.single_id() { 0 } else { 1000 };
    assert!(said.starts_with(&format!("hunter2 0 400\n {owner} 444\n")) && said.contains("Read-only"), "{said}");
    // Nowhere in the layer, not even as an empty file.
    assert!(!bed.upper("a").join("run/secrets/a").exists() && !bed.upper("a").join("b").exists());
    // A big one.
    let big = StepMount {
        target: "/big".to_owned(),
        source: MountSource::Secret { data: Secret::new(vec![b'x'; 3 << 20]), uid: 0, gid: 0, mode: 0o400 },
    };
    assert_eq!(bed.say(with(bed, "wc -c < /big", vec![big])), format!("{}\n", 3 << 20));
    Ok(())
}

fn read_only_root(bed: &Bed) -> Outcome {
    let dir = bed.dir("d");
    let mut step = with(bed, "touch /x 2>&1; touch /m/x /dev/shm/x && echo elsewhere", vec![directory("/m", &dir)]);
    step.readonly_rootfs = true;
    let said = bed.say(step);
    assert!(said.contains("Read-only file system") && said.ends_with("elsewhere\n"), "{said}");
    Ok(())
}

fn stubs(bed: &Bed) -> Outcome {
    let dir = bed.dir("d");
    let file = dir.join("file");
    fs::write(&file, "x").unwrap();
    let mounts = || {
        vec![
            directory("/new/deep/dir", &dir),
            StepMount {
                target: "/etc/app.conf".to_owned(),
                source: MountSource::Bind { path: file.clone(), restrict: Restrict::READ_ONLY },
            },
            StepMount { target: "/var/cache".to_owned(), source: MountSource::Tmpfs { size: None } },
        ]
    };
    let before: Vec<_> =
        ["etc", "var", ""].iter().map(|d| fs::metadata(bed.dir.join("base").join(d)).unwrap()).collect();
    for recursive in [true, false] {
        let mut step = with(bed, "cat /etc/app.conf; touch /var/cache/x", mounts());
        step.remove_mount_stubs_recursive = recursive;
        bed.say(step);
        let upper = bed.upper("a");
        for gone in ["etc/app.conf", "etc/resolv.conf", "etc/hosts", "var/cache", "new/deep/dir"] {
            assert!(fs::symlink_metadata(upper.join(gone)).is_err(), "{gone} is left");
        }
        assert_eq!(upper.join("new/deep").exists(), !recursive);
        for (name, before) in ["etc", "var"].iter().zip(&before) {
            let after = fs::metadata(upper.join(name)).unwrap();
            assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()), "{name}");
        }
    }
    // What the step made of it stays.
    let mut step = with(bed, "true", mounts());
    step.args[2] = "touch /new/deep/kept".to_owned();
    step.remove_mount_stubs_recursive = true;
    bed.say(step);
    assert!(bed.upper("a").join("new/deep/kept").exists() && !bed.upper("a").join("new/deep/dir").exists());
    // A working directory that only exists for its mount.
    let mut step = with(bed, "pwd", vec![directory("/src", &dir)]);
    step.cwd = "/src".to_owned();
    step.remove_mount_stubs_recursive = true;
    assert_eq!(bed.say(step), "/src\n");
    assert!(!bed.upper("a").join("src").exists());
    // A missing directory below a mount is made in the mount.
    let mut step =
        with(bed, "pwd", vec![StepMount { target: "/t".to_owned(), source: MountSource::Tmpfs { size: None } }]);
    step.cwd = "/t/below".to_owned();
    assert_eq!(bed.say(step), "/t/below\n");
    Ok(())
}

fn links(bed: &Bed) -> Outcome {
    let outside = bed.dir("outside");
    let dir = bed.dir("d");
    fs::write(dir.join("f"), "x").unwrap();
    let target = format!("{}/victim", outside.display());
    // A first step plants links, the second one mounts through them.
    let root = bed.root("planted");
    let plant = format!(
        "ln -s {} /abs; ln -s ../../../../../../..{} /rel; ln -s / /loop; ln -s /nowhere /dangling",
        outside.display(),
        outside.display()
    );
    bed.say(Step::new(root.clone(), ["/bin/sh", "-c", &plant]));
    for link in ["/abs/victim", "/rel/victim", "/loop/loop/mnt", "/dangling/x"] {
        let mut step = Step::new(root.clone(), ["/bin/sh", "-c", &format!("cat {link}/f")]);
        step.mounts = vec![directory(link, &dir)];
        step.remove_mount_stubs_recursive = true;
        assert_eq!(bed.say(step), "x", "{link}");
    }
    assert!(!Path::new(&target).exists(), "made outside of the root");
    assert!(!bed.upper("planted").join(target.trim_start_matches('/')).exists(), "left inside of the root");
    Ok(())
}

fn deep_overlay(bed: &Bed) -> Outcome {
    let dir = bed.dir("deep");
    let mut lower: Vec<_> = (0..199)
        .map(|n| {
            let layer = dir.join(format!("a-rather-long-name-for-a-layer-{n:03}")).join("fs");
            fs::create_dir_all(&layer).unwrap();
            fs::write(layer.join(format!("f{n}")), "").unwrap();
            layer
        })
        .collect();
    lower.push(bed.dir.join("base"));
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&work).unwrap();
    let root =
        FsView::Overlay(Overlay { lower, upper: Some((upper, work)), userxattr: bed.isolation.nested, volatile: true });
    assert_eq!(bed.say(Step::new(root, ["sh", "-c", "ls -d /f* | wc -l"])), "199\n");
    Ok(())
}

fn plain_root(bed: &Bed) -> Outcome {
    let base = bed.dir.join("base");
    let root = FsView::Dir { path: base.clone(), read_only: false };
    bed.say(Step::new(root, ["sh", "-c", "echo x > /written"]));
    assert_eq!(fs::read_to_string(base.join("written")).unwrap(), "x\n");
    fs::remove_file(base.join("written")).unwrap();
    for dir in ["dev", "proc", "sys"] {
        let _ = fs::remove_dir(base.join(dir));
    }
    Ok(())
}

fn hostile(bed: &Bed) -> Outcome {
    let dir = bed.dir("hostile");
    for (name, plant) in [("proc", "/tmp"), ("dev", "/"), ("sys", "..")] {
        let root = bed.root("hostile");
        std::os::unix::fs::symlink(plant, bed.upper("hostile").join(name)).unwrap();
        let error = bed.run(Step::new(root, ["true"])).unwrap_err().to_string();
        assert_eq!(error, format!("`/{name}` of the image is not a directory"));
    }
    let error = bed.run(with(bed, "true", vec![directory("/", &dir)])).unwrap_err().to_string();
    assert_eq!(error, "cannot mount over the root: target `/`");
    let error = bed.run(with(bed, "true", vec![directory("/etc/passwd", &dir)])).unwrap_err().to_string();
    assert_eq!(error, "cannot mount a directory at `/etc/passwd`, which is a file");
    Ok(())
}

fn on_proc(bed: &Bed) -> Outcome {
    let dir = bed.dir("d");
    for target in ["/proc", "/proc/sys", "/proc/self/attr"] {
        let error = bed.run(with(bed, "true", vec![directory(target, &dir)])).unwrap_err().to_string();
        assert_eq!(error, format!("`{target}` cannot be mounted because it is inside /proc"));
    }
    Ok(())
}

fn device(path: &str, host_path: &str, number: (u32, u32)) -> DeviceNode {
    DeviceNode {
        path: path.to_owned(),
        host_path: host_path.into(),
        kind: DeviceKind::Character,
        number,
        mode: 0o640,
        uid: None,
        gid: None,
        read: true,
        write: true,
    }
}

fn devices(bed: &Bed) -> Outcome {
    // In /dev, where there is one already, and elsewhere: that place is no part of the layer.
    let script = "for d in /dev/vendor/zero /dev/null /opt/zero; do head -c2 $d | wc -c; done";
    let mut step = bed.script("a", script);
    let paths = ["/dev/vendor/zero", "/dev/null", "/opt/zero"];
    step.devices = paths.map(|path| device(path, "/dev/zero", (1, 5))).into();
    assert_eq!(bed.say(step).split_whitespace().collect::<Vec<_>>(), ["2"; 3]);
    assert!(!bed.upper("a").join("opt/zero").exists() && !bed.upper("a").join("dev/vendor").exists());
    // Without the number only the host's can be had.
    let mut step = bed.script("a", "head -c2 /dev/x | wc -c");
    step.devices = vec![device("/dev/x", "/dev/there/is/none", (1, 5))];
    match bed.run(step) {
        Ok(ran) => assert!(bed.privileged() && ran.stdout.trim() == "2", "{ran:?}"),
        Err(Error::Invalid(text)) => assert!(!bed.privileged() && text.contains("no `/dev/there/is/none`"), "{text}"),
        Err(error) => panic!("{error}"),
    }
    Ok(())
}

fn ruled_devices(bed: &Bed) -> Outcome {
    let fuse = |read, write| DeviceNode { read, write, mode: 0o666, ..device("/dev/own", "/dev/none", (10, 229)) };
    if fs::File::open("/dev/fuse").is_err() {
        return Err(Skip("/dev/fuse cannot be opened here".to_owned()));
    }
    let script =
        "stat -c '%u:%g %a %t:%T' /dev/own; true < /dev/own && echo read; true <> /dev/own && echo written; true";
    let mut step = bed.script("a", script);
    step.user = "1000:100".to_owned();
    step.devices = vec![DeviceNode { gid: Some(7), ..fuse(true, true) }];
    assert_eq!(bed.say(step), "1000:7 666 a:e5\nread\nwritten\n");
    let mut step = bed.script("a", script);
    step.devices = vec![fuse(true, false)];
    assert_eq!(bed.say(step), "0:0 666 a:e5\nread\n");
    // What was allowed to one step is not to another.
    let said = bed.say(bed.script("a", "mknod /dev/own c 10 229 && true < /dev/own && echo read; true"));
    assert_eq!(said, "");
    Ok(())
}

fn more_groups(bed: &Bed) -> Outcome {
    let mut step = bed.script("a", "id -G");
    step.groups = vec![44];
    match bed.run(step) {
        Ok(ran) => assert!(!bed.single_id() && ran.stdout.split_whitespace().any(|id| id == "44"), "{ran:?}"),
        Err(Error::Invalid(text)) => assert!(bed.single_id() && text.contains("the group 44"), "{text}"),
        Err(error) => panic!("{error}"),
    }
    Ok(())
}
