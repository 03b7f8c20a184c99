//! Other people's tools read what we write. Each test needs its tool in `PATH`, or among those that `cargo xtask` fetched
//! for tests, or says that it is skipped.

#![expect(clippy::print_stderr, reason = "a skipped test says why")]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use base::Digest;
use image::archive::{ArchiveKind, name_manifests, write_archive};
use image::layer::compression::Compressor;
use image::layer::tar::Writer;
use image::layer::{Entry, EntryKind, Time};
use image::{Compression, CompressionOptions, ConfigPatch, Descriptor, Flavor, History, ImageConfig, Manifest};

/// Where a tool is, or none with a line that says so.
fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let fetched = std::env::var_os("HULLWORKS_TOOLS").map(PathBuf::from);
    let mut directories = std::env::split_paths(&path).chain(fetched);
    let found = directories.find_map(|directory| Some(directory.join(name)).filter(|path| path.is_file()));
    if found.is_none() {
        eprintln!("skipped: `{name}` is not installed");
    }
    found
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the tool starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// Two layers with everything that tools agree on.
fn layers() -> [Vec<(Entry, Vec<u8>)>; 2] {
    let at = |mut entry: Entry, content: &[u8]| {
        entry.mtime = Time::from_secs(1_700_000_000);
        (entry, content.to_vec())
    };
    let file = |path: &str, mode, content: &[u8]| {
        at(Entry::new(path, EntryKind::File { size: content.len() as u64 }, mode), content)
    };
    let node = |path: &str, kind, mode| at(Entry::new(path, kind, mode), b"");
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let mut owned = file("dir/owned", 0o4755, b"set-uid");
    (owned.0.uid, owned.0.gid) = (3_000_000, 1000);
    owned.0.xattrs = BTreeMap::from([(b"user.note".to_vec(), b"kept".to_vec())]);
    let big: Vec<u8> = (0..800_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
    let base = vec![
        node("dir", EntryKind::Directory, 0o755),
        owned,
        file("dir/gone", 0o644, b"gone"),
        file("big", 0o644, &big),
        node("link", EntryKind::Symlink { target: b"dir/owned".to_vec() }, 0o777),
        node("hard", EntryKind::HardLink { target: b"dir/owned".to_vec() }, 0o4755),
        node("pipe", EntryKind::Fifo, 0o600),
    ];
    let top = vec![
        file("dir/caf\u{e9}", 0o644, b"not ascii"),
        file(&long, 0o600, b"long"),
        (Entry::whiteout(b"dir/gone"), Vec::new()),
    ];
    [base, top]
}

fn tar(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    entries.iter().for_each(|(entry, content)| writer.append(entry, content.as_slice()).expect("an entry that fits"));
    writer.finish().expect("a vector takes all")
}

/// An image of these layers, and its archive at `path`.
fn archive(path: &Path, kind: ArchiveKind, flavor: Flavor, compression: Compression) -> Descriptor {
    let mut blobs: HashMap<Digest, Vec<u8>> = HashMap::new();
    let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
    for entries in &layers() {
        let options = CompressionOptions::new(compression, 2);
        let mut compressor = Compressor::new(Vec::new(), &options).expect("valid options");
        compressor.write_all(&tar(entries)).expect("a vector takes all");
        let (out, blob) = compressor.finish().expect("a vector takes all");
        blobs.insert(out.digest, blob);
        descriptors.push(Descriptor::new(flavor.layer(compression), out.digest, out.size));
        diff_ids.push(out.diff_id);
    }
    let platform: base::Platform = "linux/amd64".parse().expect("a platform");
    let history = ["COPY base", "COPY top"].map(|by| History { created_by: by.into(), ..History::default() });
    let patch = ConfigPatch { diff_ids: &diff_ids, history: history.to_vec(), ..ConfigPatch::default() };
    let config = image::patch_config(&ImageConfig::empty(&platform).to_json(), patch).expect("a config");
    let mut put = |media_type: &str, bytes: Vec<u8>| {
        let descriptor = Descriptor::of(media_type, &bytes);
        blobs.insert(descriptor.digest, bytes);
        descriptor
    };
    let config = put(flavor.config(), config);
    let manifest = put(flavor.manifest(), Manifest::new(flavor, config, descriptors).to_json());
    let names = ["example.com/test:v1".parse().expect("a reference")];
    let roots =
        name_manifests(&Descriptor { platform: Some(platform), ..manifest.clone() }, &names, "2024-01-02T03:04:05Z");
    let sink = File::create(path).expect("a scratch file");
    write_archive(sink, kind, &roots, |descriptor| Ok(&blobs[&descriptor.digest][..])).expect("all blobs are there");
    manifest
}

const COMPRESSIONS: [Compression; 3] = [Compression::Uncompressed, Compression::Gzip, Compression::Zstd];

#[test]
fn skopeo_copies_and_verifies() {
    let Some(skopeo) = tool("skopeo") else { return };
    let scratch = tempfile::tempdir().expect("a scratch directory");
    for compression in COMPRESSIONS {
        let file = scratch.path().join(format!("{compression}.tar"));
        let to = format!("oci:{}/{compression}:v1", scratch.path().display());
        let manifest = archive(&file, ArchiveKind::Oci, Flavor::Oci, compression);
        let from = format!("oci-archive:{}:v1", file.display());
        let shown = run(Command::new(&skopeo).args(["inspect", &from]));
        assert!(shown.contains(&manifest.digest.to_string()), "{shown}");
        run(Command::new(&skopeo).args(["--insecure-policy", "copy", &from, &to]));

        let file = scratch.path().join(format!("{compression}-docker.tar"));
        archive(&file, ArchiveKind::Docker, Flavor::Docker, compression);
        let to = format!("oci:{}/{compression}-docker:v1", scratch.path().display());
        let from = format!("docker-archive:{}:example.com/test:v1", file.display());
        run(Command::new(&skopeo).args(["--insecure-policy", "copy", &from, &to]));
    }
}

#[test]
fn crane_validates() {
    let Some(crane) = tool("crane") else { return };
    let scratch = tempfile::tempdir().expect("a scratch directory");
    for compression in [Compression::Uncompressed, Compression::Gzip] {
        let file = scratch.path().join("docker.tar");
        archive(&file, ArchiveKind::Docker, Flavor::Docker, compression);
        run(Command::new(&crane).args(["validate", "--tarball"]).arg(&file));
    }
}

#[test]
fn umoci_unpacks_the_tree() {
    let (Some(umoci), Some(tar)) = (tool("umoci"), tool("tar")) else { return };
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let (file, layout) = (scratch.path().join("oci.tar"), scratch.path().join("layout"));
    archive(&file, ArchiveKind::Oci, Flavor::Oci, Compression::Gzip);
    fs::create_dir(&layout).expect("a new directory");
    run(Command::new(tar).arg("-xf").arg(&file).arg("-C").arg(&layout));
    let image = format!("{}:v1", layout.display());
    let bundle = scratch.path().join("bundle");
    run(Command::new(&umoci).args(["unpack", "--rootless", "--image", &image]).arg(&bundle));
    let root = bundle.join("rootfs");
    assert!(!root.join("dir/gone").exists());
    assert_eq!(fs::read(root.join("hard")).expect("a hard link"), b"set-uid");
    assert_eq!(fs::read(root.join("dir/caf\u{e9}")).expect("a file"), b"not ascii");
    assert_eq!(fs::read_link(root.join("link")).expect("a link"), Path::new("dir/owned"));
    assert_eq!(fs::metadata(root.join("big")).expect("a file").len(), 3_200_000);
}

#[test]
fn tar_and_python_list_the_same_entries() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    for (i, entries) in layers().iter().enumerate() {
        let file = scratch.path().join(format!("{i}.tar"));
        fs::write(&file, tar(entries)).expect("a scratch file");
        let expected: Vec<String> = entries
            .iter()
            .map(|(entry, _)| {
                let slash = if entry.kind == EntryKind::Directory { "/" } else { "" };
                format!("{}{slash}", String::from_utf8_lossy(&entry.path))
            })
            .collect();
        if let Some(tar) = tool("tar") {
            let listed = run(Command::new(tar).args(["--quoting-style=literal", "-tf"]).arg(&file));
            assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
        }
        if let Some(python) = tool("python3") {
            const SCRIPT: &str = "import sys, tarfile\n\
                for m in tarfile.open(sys.argv[1]):\n \
                print(m.name + ('/' if m.isdir() else ''), oct(m.mode), m.uid, m.gid, int(m.mtime), m.size, m.linkname, \
                m.pax_headers.get('SCHILY.xattr.user.note', '-'), sep='|')\n";
            let listed = run(Command::new(python).args(["-c", SCRIPT]).arg(&file).env("PYTHONUTF8", "1"));
            let expected = entries.iter().zip(&expected).map(|((entry, content), name)| {
                let target = match &entry.kind {
                    EntryKind::Symlink { target } | EntryKind::HardLink { target } => String::from_utf8_lossy(target),
                    _ => "".into(),
                };
                let note = entry.xattrs.get(&b"user.note"[..]).map_or("-".into(), |v| String::from_utf8_lossy(v));
                let (mode, secs) = (entry.mode, entry.mtime.secs);
                format!("{name}|0o{mode:o}|{}|{}|{secs}|{}|{target}|{note}", entry.uid, entry.gid, content.len())
            });
            assert_eq!(listed.lines().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        }
    }
}

#[test]
fn gzip_and_zstd_take_the_blobs() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let content = tar(&layers()[0]);
    for (compression, program, suffix) in [(Compression::Gzip, "gzip", "gz"), (Compression::Zstd, "zstd", "zst")] {
        let Some(program) = tool(program) else { continue };
        let file = scratch.path().join(format!("layer.{suffix}"));
        let options = CompressionOptions::new(compression, 3);
        let sink = File::create(&file).expect("a scratch file");
        let mut compressor = Compressor::new(sink, &options).expect("valid options");
        compressor.write_all(&content).expect("room on the disk");
        compressor.finish().expect("room on the disk");
        let out = Command::new(program).arg("-dc").arg(&file).output().expect("the tool starts");
        assert!(
            out.status.success() && out.stdout == content,
            "{compression}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}
