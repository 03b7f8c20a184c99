//! A layer unpacked where the kernel refuses owners and devices, and written again: the same bytes.

#![expect(clippy::print_stderr, reason = "a test that is skipped says why")]

use std::path::Path;
use std::process::Command;

use base::{Cancel, Digest};
use files::untar::Limits;
use image::layer::compression::{Compression, CompressionOptions, Decompressor};
use image::layer::{Entry, EntryKind, Time, tar};

use crate::snapshot::tests::lazy_layer;
use crate::*;

const CHILD: &str = "HULLWORKS_TEST_SINGLE_ID";

/// A tar with all that a single id cannot have, in the order in which layers are written.
fn demanding_tar() -> Vec<u8> {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut entries = vec![
        (Entry::new("bin", EntryKind::Directory, 0o755), 0, 0),
        (Entry::new("bin/ping", EntryKind::File { size: 4 }, 0o755), 0, 0),
        (Entry::new("bin/su", EntryKind::File { size: 4 }, 0o4755), 0, 42),
        (Entry::new("bin/su2", EntryKind::HardLink { target: b"bin/su".to_vec() }, 0o4755), 0, 42),
        (Entry::new("dev", EntryKind::Directory, 0o755), 0, 0),
        (Entry::new("dev/disk", EntryKind::BlockDevice { major: 7, minor: 300 }, 0o660), 0, 6),
        (Entry::new("dev/null", EntryKind::CharDevice { major: 1, minor: 3 }, 0o666), 0, 0),
        (Entry::new("home", EntryKind::Directory, 0o1777), 1000, 1000),
        (Entry::new("home/file", EntryKind::File { size: 4 }, 0o600), 1000, 1001),
        (Entry::new("home/link", EntryKind::Symlink { target: b"file".to_vec() }, 0o777), 1000, 1001),
        (Entry::new("home/pipe", EntryKind::Fifo, 0o620), 1000, 5),
    ];
    let mut writer = tar::Writer::new(Vec::new());
    for (entry, uid, gid) in &mut entries {
        (entry.uid, entry.gid, entry.mtime) = (*uid, *gid, Time::from_secs(1_700_000_000));
        if entry.path == b"bin/ping" {
            entry.xattrs.insert(b"security.capability".to_vec(), capability.to_vec());
        }
        let data: &[u8] = if entry.kind.size() > 0 { b"data" } else { b"" };
        writer.append(entry, data).expect("written");
    }
    writer.finish().expect("ended")
}

fn options(driver: Driver, shadow: bool) -> OpenOptions {
    OpenOptions { driver, userxattr: shadow, shadow, sync_on_close: false, ..OpenOptions::default() }
}

fn round_trip(dir: &Path, options: OpenOptions) -> Result<()> {
    let store = Store::open(dir, options)?;
    let tar = demanding_tar();
    let layer = lazy_layer(&tar, None);
    let snapshots = store.snapshots();
    let hold = snapshots.register_lazy(None, layer, PrepareOptions::default())?;
    snapshots.unpack(&hold.id(), std::io::Cursor::new(tar.clone()), &Limits::default(), &Cancel::new())?;
    let again = snapshots.write_tar(&hold.id(), Vec::new(), &Cancel::new())?;
    assert!(again == tar, "the same layer, in {:?}", store.driver().driver);
    // A step on top changes nothing of it, and sees the owners of links.
    let active = snapshots.prepare(Some(&hold.id()), PrepareOptions::default())?;
    let top = snapshots.commit(active, CommitOptions::default())?;
    let mut changes = 0;
    snapshots.changes(&top.id(), |_| {
        changes += 1;
        Ok::<(), Error>(())
    })?;
    assert_eq!(changes, 0);
    Ok(())
}

#[test]
fn privileged_layers_are_unpacked_and_written_alike() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: not root");
        return;
    }
    for driver in [Driver::Copy, Driver::Auto] {
        let dir = tempfile::tempdir().expect("a scratch directory");
        round_trip(dir.path(), options(driver, false)).expect("works");
    }
}

/// Not a test of its own: what runs in the user namespace, see below.
#[test]
fn single_id_child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    round_trip(&Path::new(&dir).join("copy"), options(Driver::Copy, true)).expect("works");
    match round_trip(&Path::new(&dir).join("overlay"), options(Driver::Overlay, true)) {
        Err(Error::Driver { reason, .. }) => eprintln!("skipped for the overlay driver: {reason}"),
        other => other.expect("works"),
    }
    std::fs::write(Path::new(&dir).join("done"), "").expect("written");
}

#[test]
fn with_a_single_id_layers_come_out_right_all_the_same() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let program = std::env::current_exe().expect("this test");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]).arg(program);
    command.args(["--exact", "layer_io::tests::single_id_child", "--nocapture"]).env(CHILD, dir.path());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: cannot run unshare: {error}");
            return;
        }
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("unshare failed") || said.contains("write failed") {
        eprintln!("skipped: no user namespaces here: {said}");
        return;
    }
    assert!(output.status.success() && dir.path().join("done").exists(), "{said}");
}

/// A layer of a tar that lies in the store as it is.
fn stored(store: &Store, tar: &[u8], diff_id: Digest) -> Hold {
    let layer = LazyLayer {
        digest: store.content().put(tar).expect("stored"),
        size: tar.len() as u64,
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        diff_id,
        chain_id: diff_id,
        sources: Vec::new(),
        urls: Vec::new(),
        annotations: Default::default(),
        from_cache: false,
    };
    store.snapshots().register_lazy(None, layer, PrepareOptions::default()).expect("registered")
}

#[test]
fn a_layer_is_recompressed_from_its_blob() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let store = Store::open(dir.path(), options(Driver::Copy, true)).expect("a store");
    let (snapshots, cancel) = (store.snapshots(), Cancel::new());
    // In an order, and with an attribute, that no tree of ours gives.
    let mut writer = tar::Writer::new(Vec::new());
    for name in ["z", "a"] {
        let mut entry = Entry::new(name, EntryKind::File { size: 4 }, 0o644);
        entry.xattrs.insert(b"security.selinux".to_vec(), b"system_u:object_r:etc_t:s0".to_vec());
        writer.append(&entry, &b"data"[..]).expect("written");
    }
    let tar = writer.finish().expect("ended");
    let hold = stored(&store, &tar, Digest::of(&tar));
    let origin = snapshots.origin(&hold.id()).expect("read").expect("it came from elsewhere");
    for (kind, level) in [(Compression::Gzip, Some(9)), (Compression::Zstd, None), (Compression::Uncompressed, None)] {
        let options = CompressionOptions { level, ..CompressionOptions::new(kind, 2) };
        let variant = kind.to_string();
        // What was made of the tree once does not count.
        let other = LayerRecord { diff_id: Digest::of("another"), ..origin.clone() };
        snapshots.set_layer(&hold.id(), &variant, other).expect("noted");
        let made = snapshots.convert_blob(&hold.id(), &variant, &options, &origin, &cancel).expect("recompressed");
        assert_eq!(made.diff_id, Digest::of(&tar), "{kind}");
        assert_eq!(snapshots.layer(&hold.id(), &variant).expect("read"), Some(made.clone()), "{kind}");
        let blob = store.content().read(&made.digest).expect("read").expect("kept");
        let mut read = Vec::new();
        let mut decompressor = Decompressor::new(&*blob, u64::MAX).expect("a beginning");
        assert_eq!(decompressor.kind(), kind);
        std::io::Read::read_to_end(&mut decompressor, &mut read).expect("decompressed");
        assert!(read == tar, "{kind}");
    }
    assert!(!snapshots.info(&hold.id()).expect("there").filled, "nobody has unpacked it");

    // One that is not what it says leaves nothing.
    let wrong = stored(&store, &tar[..512], Digest::of("wrong"));
    let origin = snapshots.origin(&wrong.id()).expect("read").expect("it came from elsewhere");
    let gzip = CompressionOptions::new(Compression::Gzip, 2);
    let error = snapshots.convert_blob(&wrong.id(), "gzip", &gzip, &origin, &cancel).expect_err("another diff id");
    assert!(matches!(error, Error::DiffId { .. }), "{error:?}");
    assert_eq!(snapshots.layers(&wrong.id()).expect("read"), Default::default());
}

/// A tar with zeros behind its end, without an end of their own. Sets the flag, if there is one, after some of them.
struct Endless {
    tar: std::io::Cursor<Vec<u8>>,
    zeros: u64,
    cancel: Option<(u64, Cancel)>,
}

impl std::io::Read for Endless {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.tar.read(buf)?;
        if n > 0 {
            return Ok(n);
        }
        buf.fill(0);
        self.zeros += buf.len() as u64;
        if let Some((_, cancel)) = self.cancel.as_ref().filter(|(after, _)| self.zeros > *after) {
            cancel.cancel();
        }
        Ok(buf.len())
    }
}

#[test]
fn what_lies_behind_the_end_is_limited_and_can_be_cancelled() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let store = Store::open(dir.path(), options(Driver::Copy, true)).expect("a store");
    let tar = tar::Writer::new(Vec::new()).finish().expect("ended");
    let limits = Limits { entries: 100, bytes: 64 << 20 };
    let limit = limits.bytes + limits.entries * 4096;
    for (cancelled, expected) in [
        (true, "cancelled".to_owned()),
        (false, format!("decompressed layer is larger than the limit of {limit} bytes")),
    ] {
        let cancel = Cancel::new();
        let digest = Digest::of(if cancelled { "one" } else { "another" });
        let layer = LazyLayer {
            digest,
            size: 1 << 40,
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            diff_id: digest,
            chain_id: digest,
            sources: Vec::new(),
            urls: Vec::new(),
            annotations: Default::default(),
            from_cache: false,
        };
        let hold = store.snapshots().register_lazy(None, layer, PrepareOptions::default()).expect("registered");
        let blob = Endless {
            tar: std::io::Cursor::new(tar.clone()),
            zeros: 0,
            cancel: cancelled.then(|| (8 << 20, cancel.clone())),
        };
        let error = store.snapshots().unpack(&hold.id(), blob, &limits, &cancel).expect_err("it has no end");
        let mut causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        assert!(causes.any(|cause| cause.to_string() == expected), "{error:?}");
    }
}
