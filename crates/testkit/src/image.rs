//! Small images: busybox as one layer, or made-up layers, in a registry or as an OCI layout.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use base::Digest;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::need;
use crate::registry::Registry;

/// Media type of the manifests made here.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of the indexes made here.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of the configs made here.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of the layers made here.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Docker's own media types (schema 2), which are older than OCI's.
pub mod docker {
    /// Of manifests.
    pub const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Of manifest lists.
    pub const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Of configs.
    pub const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Of layers that are compressed.
    pub const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
}

/// An image as bytes. Layers are not compressed, so that diff ids are digests.
#[derive(Clone, Debug)]
pub struct TestImage {
    /// The manifest.
    pub manifest: Bytes,
    /// The config.
    pub config: Bytes,
    /// The layers.
    pub layers: Vec<Bytes>,
}

/// A file of a layer.
#[derive(Clone, Debug)]
pub struct File<'a> {
    /// Its path, without a leading slash; one that ends in a slash is a directory.
    pub path: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// What is in it.
    pub data: Vec<u8>,
    /// Makes it a symbolic link to this.
    pub link: Option<&'a str>,
}

impl TestImage {
    /// busybox with its applets as links, a shell that runs. Needs `busybox-static` (`needs!("busybox")`).
    pub fn busybox() -> Result<TestImage, String> {
        const APPLETS: [&str; 28] = [
            "sh", "ash", "cat", "chmod", "chown", "cp", "cut", "date", "echo", "env", "false", "find", "grep", "head",
            "id", "ln", "ls", "mkdir", "mount", "mv", "ps", "rm", "sed", "sleep", "stat", "touch", "true", "wc",
        ];
        let data = fs::read(need::program("busybox")?).map_err(|error| format!("cannot read busybox: {error}"))?;
        let dir = |path| File { path, mode: 0o755, data: Vec::new(), link: None };
        let mut files = vec![dir("bin/"), dir("etc/"), dir("proc/"), dir("dev/"), dir("sys/"), dir("root/")];
        files.push(File { path: "tmp/", mode: 0o1777, data: Vec::new(), link: None });
        files.push(File { path: "bin/busybox", mode: 0o755, data, link: None });
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n".to_vec();
        files.push(File { path: "etc/passwd", mode: 0o644, data: passwd, link: None });
        let group = b"root:x:0:\nnogroup:x:65534:\n".to_vec();
        files.push(File { path: "etc/group", mode: 0o644, data: group, link: None });
        let paths: Vec<String> = APPLETS.iter().map(|applet| format!("bin/{applet}")).collect();
        let link = |path| File { path, mode: 0o777, data: Vec::new(), link: Some("busybox") };
        files.extend(paths.iter().map(|path| link(path)));
        Ok(TestImage::of_layers(vec![tar(&files)]))
    }

    /// An image of these layers, whatever their bytes.
    pub fn of_layers(layers: Vec<Bytes>) -> TestImage {
        let diff_ids: Vec<Value> = layers.iter().map(|layer| json!(Digest::of(layer).to_string())).collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let history = json!({"created": "2020-01-02T03:04:05Z", "created_by": "a layer of testkit"});
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": vec![history; layers.len()],
        });
        let config = Bytes::from(config.to_string());
        let descriptors: Vec<Value> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": descriptors,
        });
        TestImage { manifest: Bytes::from(manifest.to_string()), config, layers }
    }

    /// The digest of the manifest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Puts it into a registry under a tag by Docker's schema 2, with compressed layers, and answers its entry of a manifest
    /// list, to which a platform belongs.
    pub fn put_docker(&self, registry: &Registry, repository: &str, tag: &str) -> Value {
        registry.put_blob(repository, self.config.clone());
        let mut layers = Vec::new();
        for layer in &self.layers {
            let layer = gzip(layer);
            layers.push(descriptor(docker::LAYER, &layer));
            registry.put_blob(repository, layer);
        }
        let config = descriptor(docker::CONFIG, &self.config);
        let manifest = json!({"schemaVersion": 2, "mediaType": docker::MANIFEST, "config": config, "layers": layers});
        let manifest = Bytes::from(manifest.to_string());
        registry.put_manifest(repository, tag, docker::MANIFEST, manifest.clone());
        descriptor(docker::MANIFEST, &manifest)
    }

    /// Puts it into a registry under a tag.
    pub fn put(&self, registry: &Registry, repository: &str, tag: &str) -> Digest {
        for blob in self.layers.iter().chain([&self.config]) {
            registry.put_blob(repository, blob.clone());
        }
        registry.put_manifest(repository, tag, MANIFEST, self.manifest.clone())
    }

    /// Writes it as an OCI layout with a tag.
    pub fn write_layout(&self, dir: &Path, tag: &str) -> io::Result<()> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        for blob in self.layers.iter().chain([&self.config, &self.manifest]) {
            fs::write(blobs.join(Digest::of(blob).hex()), blob)?;
        }
        let mut entry = descriptor(MANIFEST, &self.manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        fs::write(dir.join("index.json"), index.to_string())?;
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
    }
}

/// What Debian's `gzip` makes of bytes.
fn gzip(bytes: &Bytes) -> Bytes {
    let input = bytes.clone();
    let mut child = Command::new("gzip")
        .args(["--fast", "--no-name"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip is part of every Debian");
    let mut stdin = child.stdin.take().expect("it was asked for");
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("gzip ends");
    writer.join().expect("writing does not panic").expect("gzip reads everything");
    assert!(output.status.success(), "gzip failed");
    output.stdout.into()
}

/// A descriptor as JSON.
pub fn descriptor(media_type: &str, bytes: &Bytes) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

/// A tar archive (ustar) of files; owner root, time zero.
pub fn tar(files: &[File<'_>]) -> Bytes {
    let mut archive = Vec::new();
    for file in files {
        archive.extend_from_slice(&header(file));
        archive.extend_from_slice(&file.data);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive.into()
}

fn header(file: &File<'_>) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    assert!(file.path.len() < 100, "test paths are short");
    put(0, file.path);
    put(100, &format!("{:07o}", file.mode));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", file.data.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(
        156,
        if file.link.is_some() {
            "2"
        } else if file.path.ends_with('/') {
            "5"
        } else {
            "0"
        },
    );
    put(157, file.link.unwrap_or_default());
    put(257, "ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Bytes that do not compress and differ by seed.
pub fn noise(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators".
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    };
    let words = length.div_ceil(8);
    let mut bytes: Vec<u8> = (0..words).flat_map(|_| next().to_le_bytes()).collect();
    bytes.truncate(length);
    bytes.into()
}
