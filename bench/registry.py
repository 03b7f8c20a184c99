"""Debian's docker-registry on loopback, and the base images that are pulled from it."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request

from machine import debian_mirror, free_port, run, stop, wait


class Registry:
    """Debian's docker-registry on loopback, with the base images."""

    def __init__(self, work):
        self.addr = f"127.0.0.1:{free_port()}"
        self.work = work
        config = work / "registry.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {work / 'registry'}}}}}\n"
            f"http: {{addr: '{self.addr}'}}\n"
        )
        self.process = subprocess.Popen(
            ["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def fill(self):
        """busybox from busybox-static, and a Debian with compilers (some 190 MB of gzip)."""
        wait(lambda: urllib.request.urlopen(f"http://{self.addr}/v2/").status == 200, self.process, "the registry")
        for name, layer in (("busybox", busybox_layer), ("debian-build", debian_layer)):
            if not (self.work / "registry/docker/registry/v2/repositories/library" / name).exists():
                print(f"making the base image {name}", file=sys.stderr)
                self.push(name, layer(self.work))

    def push(self, name, layer):
        """A gzip'ed tar becomes an image of one layer."""
        layout = self.work / "layout"
        shutil.rmtree(layout, ignore_errors=True)
        blobs = layout / "blobs/sha256"
        blobs.mkdir(parents=True)

        def blob(media_type, content):
            digest = hashlib.sha256(content).hexdigest()
            (blobs / digest).write_bytes(content)
            kind = f"application/vnd.oci.image.{media_type}"
            return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

        def document(media_type, **fields):
            return blob(media_type, json.dumps(fields).encode())

        with gzip.open(layer) as tar:
            diff_id = hashlib.file_digest(tar, "sha256").hexdigest()
        config = document(
            "config.v1+json", architecture="amd64", os="linux", config={"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            rootfs={"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
            history=[{"created_by": "a tar"}],  # Buildah refuses to build on an image without
        )
        layers = [blob("layer.v1.tar+gzip", layer.read_bytes())]
        manifest = document("manifest.v1+json", schemaVersion=2, config=config, layers=layers)
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        run([["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false",
              f"oci:{layout}", f"docker://{self.addr}/library/{name}:latest"]])
        shutil.rmtree(layout)

    def upload(self, image):
        """Seconds until the registry has an image's largest layer, sent by curl as one file to where there is nothing yet."""
        path, _, tag = image.removeprefix(f"{self.addr}/").rpartition(":")
        kinds = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
        manifest = urllib.request.Request(f"http://{self.addr}/v2/{path}/manifests/{tag}", headers={"Accept": kinds})
        with urllib.request.urlopen(manifest) as answer:
            digest = max(json.load(answer)["layers"], key=lambda layer: layer["size"])["digest"]
        name = digest.removeprefix("sha256:")
        blob = self.work / "registry/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"
        begin = urllib.request.Request(f"http://{self.addr}/v2/{path}-alone/blobs/uploads/", method="POST")
        with urllib.request.urlopen(begin) as answer:
            place = answer.headers["Location"]
        return run([["curl", "--silent", "--fail", "--upload-file", blob, f"{place}&digest={digest}"]]).seconds

    def stop(self):
        stop(self.process)


def busybox_layer(work):
    layer = work / "busybox.tar.gz"
    with tarfile.open(layer, "w:gz") as tar:
        for folder in ("bin", "etc", "root", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        tar.add("/bin/busybox", "bin/busybox")
        for applet in subprocess.check_output(["/bin/busybox", "--list"], text=True).split():
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
        passwd = b"root:x:0:0:root:/root:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(passwd)
        tar.addfile(entry, io.BytesIO(passwd))
    return layer


def debian_layer(work):
    tar = debian_tar(work)
    subprocess.run(["gzip", "--keep", "--force", "--no-name", tar], check=True)
    return tar.with_name(tar.name + ".gz")


def debian_tar(work):
    tar = work / "debian.tar"
    if not tar.exists():
        include = "ca-certificates,gcc,g++,make,python3,git,curl"
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={include}", "bookworm", f"{tar}.part",
             debian_mirror(), "--format=tar"],
            check=True,
        )
        os.rename(f"{tar}.part", tar)
    return tar
