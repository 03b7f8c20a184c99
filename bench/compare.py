#!/usr/bin/env python3
"""Builds the same things with Hullworks and with its peers, side by side, and prints ratios.

    bench/compare.py                                        all cases, three rounds
    bench/compare.py --peers dockerd --cases files,big --rounds 5 --work /dev/shm/bench

Needs root on Debian. Packages that are missing are installed; those of dockerd come from a newer suite and
are only unpacked below --work, which keeps them, the base images and the contexts for the next run (about 3 GB):

    dockerd   BuildKit inside dockerd with `docker buildx`, containerd image store on
    buildah   Buildah with --isolation chroot, layers cached

Every step of a case runs on each side in turn, so that whatever else the machine does falls on all of them, and
who begins changes from round to round. All steps use the host's network, as ours do unless told otherwise.
A case begins on an empty state; dockerd is then up already, except where start-up is measured.

The first table shows medians in seconds and ours/peer, the second one the largest resident set in MB of all
rounds: of one process for ours and buildah, of dockerd and its containerd together. Below 1 we are better. A case
that failed on a side says so, has no ratio there, and makes the exit status 1. Nothing here asserts a time.
Put --work on a tmpfs to leave the disk out; it then takes 6 GB.
"""

import argparse
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = ["buildah", "busybox-static", "docker-registry", "mmdebstrap", "runc", "skopeo", "time"]
FORKY = ["containerd", "docker-buildx", "docker-cli", "docker.io"]


class Failed(Exception):
    """A command of a side failed: its case has no figure there, the others go on."""


@dataclasses.dataclass(frozen=True)
class Step:
    name: str  # "" where the step only prepares the next one
    context: str
    cold: bool = False  # on an empty state
    stopped: bool = False  # with no process of the side running
    no_cache: bool = False
    touch: bool = False  # after one file of the context was written
    compression: str = ""  # export as an OCI archive


CASES = {
    "start": [Step("", "empty", cold=True), Step("start-up + a build of nothing", "empty", stopped=True)],
    "run50": [
        Step("", "run50", cold=True),
        Step("50 RUN true, nothing cached", "run50", no_cache=True),
        Step("50 RUN true, all cached", "run50"),
    ],
    "fan16": [Step("", "busybox", cold=True), Step("16 stages x 5 RUN + COPY --from", "fan16")],
    "files": [
        Step("20,000 files: first COPY", "files", cold=True),
        Step("20,000 files: one changed", "files", touch=True),
        Step("20,000 files: none changed", "files"),
        Step("20,000 files: export OCI gzip", "files", compression="gzip"),
    ],
    "big": [
        Step("470 MB: COPY", "big", cold=True),
        Step("470 MB: export OCI gzip", "big", compression="gzip"),
        Step("470 MB: export OCI zstd", "big", compression="zstd"),
    ],
    "pull": [Step("pull + unpack 190 MB gzip, RUN true", "pull", cold=True)],
}


def run(*args, env=None, timeout=1800):
    """Wall seconds, and the resident set in MB of the largest of the processes.

    GNU time starts the command: a child of ours would begin with this program's own size as its maximum.
    """
    with tempfile.NamedTemporaryFile("r") as figures:
        start = time.monotonic()
        process = subprocess.Popen(
            ["/usr/bin/time", "-o", figures.name, "-f", "%M", *args], env=env, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        try:
            out, _ = process.communicate(timeout=timeout)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"{' '.join(map(str, args))}: not done after {timeout} s") from None
            raise
        seconds = time.monotonic() - start
        if process.returncode:
            tail = out.decode(errors="replace")[-1500:]
            raise Failed(f"{' '.join(map(str, args))}: exit {process.returncode}\n{tail}")
        return seconds, int(figures.read().split()[-1]) / 1024


def end(*_):
    """An end from outside ends the daemons too; a second one must not cut the cleaning up short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def wait(ready, process, what, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if ready():
                return
        if process.poll() is not None:
            raise Failed(f"{what} ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise Failed(f"{what} did not come up in {seconds} s")
        time.sleep(0.01)


def stop(process):
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wipe(*folders):
    """Removes folders and what is still mounted there, also while a killed process is busy in them."""
    mounts = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    for folder in folders:
        for mount in reversed(mounts):
            if pathlib.Path(mount).is_relative_to(folder):
                subprocess.run(["umount", "--lazy", mount])
        deadline = time.monotonic() + 10
        while folder.exists():
            last = time.monotonic() > deadline
            shutil.rmtree(folder, ignore_errors=not last)


# What the peers need: packages, and a registry with base images.


def install():
    missing = [p for p in PACKAGES if subprocess.run(["dpkg", "-s", p], capture_output=True).returncode]
    if missing:
        env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        subprocess.run(["apt-get", "update", "-qq"], env=env, check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=env, check=True)


def debian_mirror():
    """Where this machine's apt gets Debian from."""
    wanted = ["Identifier: Packages", "Origin: Debian", "Label: Debian"]
    uris = subprocess.check_output(["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted], text=True).split()
    if not uris:
        sys.exit("apt knows no Debian archive: the base images and dockerd come from one")
    return uris[0]


def forky(work):
    """The newer suite's packages, unpacked into a folder: nothing of them gets into the system."""
    root, apt = work / "forky", work / "apt"
    if not (root / "done").exists():
        print("fetching docker from Debian forky", file=sys.stderr)
        for folder in ("lists/partial", "cache/archives/partial", "debs"):
            (apt / folder).mkdir(parents=True, exist_ok=True)
        keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
        (apt / "sources.list").write_text(f"deb [signed-by={keys}] {debian_mirror()} forky main\n")
        settings = {
            "Dir::Etc::sourcelist": apt / "sources.list", "Dir::Etc::sourceparts": "-", "APT::Sandbox::User": "root",
            "Dir::State::lists": apt / "lists", "Dir::Cache": apt / "cache",
        }
        apt_get = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
        subprocess.run([*apt_get, "update"], check=True)
        subprocess.run([*apt_get, "download", *FORKY], cwd=apt / "debs", check=True)
        for deb in (apt / "debs").iterdir():
            subprocess.run(["dpkg", "-x", deb, root], check=True)
        (root / "done").touch()
        shutil.rmtree(apt)
    return root


class Registry:
    """Debian's docker-registry on loopback, with the base images."""

    def __init__(self, work):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.addr = f"127.0.0.1:{free.getsockname()[1]}"
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
        run("skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false",
            f"oci:{layout}", f"docker://{self.addr}/library/{name}:latest")
        shutil.rmtree(layout)

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


# What is built.


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def contexts(work, registry):
    random.seed(1)
    busybox = f"{registry.addr}/library/busybox"
    write(work / "empty/Dockerfile", "FROM scratch\nLABEL built=yes\n")
    write(work / "busybox/Dockerfile", f"FROM {busybox}\nRUN true\n")
    write(work / "run50/Dockerfile", f"FROM {busybox}\n" + "".join(f"RUN true # {i}\n" for i in range(50)))
    stages = "".join(
        f"FROM {busybox} AS s{i}\n" + "".join(f"RUN echo {i}.{j} > /f{j}\n" for j in range(5)) for i in range(16)
    )
    copies = "".join(f"COPY --from=s{i} /f4 /o{i}\n" for i in range(16))
    write(work / "fan16/Dockerfile", f"{stages}FROM scratch\n{copies}")
    write(work / "pull/Dockerfile", f"FROM {registry.addr}/library/debian-build\nRUN true\n")
    files = work / "files"
    if not (files / "Dockerfile").exists():
        alphabet = b"abcdefghijklmnopqrstuvwxyz {}();=\n"
        words = [bytes(random.choices(alphabet, k=random.randint(3, 12))) for _ in range(3000)]
        for d in range(200):
            (files / f"src/d{d}").mkdir(parents=True, exist_ok=True)
            for f in range(100):
                (files / f"src/d{d}/f{f}.js").write_bytes(b" ".join(random.choices(words, k=random.randint(50, 900))))
        write(files / "Dockerfile", "FROM scratch\nCOPY src /src\n")
    # Three parts of it compress as programs and texts do, one part not at all.
    big = work / "big"
    if not (big / "Dockerfile").exists():
        big.mkdir(exist_ok=True)
        with open(debian_tar(work), "rb") as programs, open(big / "big.bin", "wb") as out:
            for _ in range(340):
                out.write(programs.read(1_000_000))
            for _ in range(130):
                out.write(random.randbytes(1_000_000))
        write(big / "Dockerfile", "FROM scratch\nCOPY big.bin /\n")


# Who builds it. `reset` leaves an empty state and a side that is ready to build; `halt` ends what runs beside builds.


class Ours:
    name = "ours"

    def __init__(self, binary, work, registry):
        self.binary, self.root = binary, work / "state-ours"
        self.config = work / "buildkitd.toml"
        self.config.write_text(f'[registry."{registry.addr}"]\n  http = true\n')

    def version(self):
        return subprocess.check_output([self.binary, "--version"], text=True).strip()

    def programs(self):
        return [self.binary]

    def reset(self):
        wipe(self.root)

    def halt(self):
        pass

    def build(self, context, no_cache, compression, dest):
        args = [self.binary, "build", "--progress=plain", "--root", self.root, "--config", self.config]
        if no_cache:
            args.append("--no-cache")
        if compression:
            args += ["--output", f"type=oci,compression={compression},force-compression=true,dest={dest}"]
        return run(*args, context)

    def stop(self):
        wipe(self.root)


class Dockerd:
    name = "dockerd"

    def __init__(self, work, registry):
        root = forky(work)
        self.root, self.run_dir = work / "state-dockerd", work / "run-dockerd"
        self.log, self.process = work / "dockerd.log", None
        bin_dir, plugin = root / "usr/bin", root / "usr/libexec/docker/cli-plugins/docker-buildx"
        self.binaries = [root / "usr/sbin/dockerd", bin_dir / "containerd", bin_dir / "docker", plugin]
        plugins = work / "docker-config/cli-plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        if not (plugins / "docker-buildx").exists():
            (plugins / "docker-buildx").symlink_to(plugin)
        self.config = work / "daemon.json"
        self.config.write_text(json.dumps({
            "features": {"containerd-snapshotter": True}, "insecure-registries": [registry.addr],
            "bridge": "none", "iptables": False, "ip6tables": False, "builder": {"gc": {"enabled": False}},
        }))
        self.socket = f"unix://{self.run_dir}/d.sock"
        self.env = dict(
            os.environ, PATH=f"{bin_dir}:{root}/usr/sbin:{os.environ['PATH']}", DOCKER_HOST=self.socket,
            DOCKER_CONFIG=str(work / "docker-config"),
        )

    def version(self):
        commands = (["docker", "--version"], ["docker", "buildx", "version"])
        return ", ".join(subprocess.check_output(c, env=self.env, text=True).strip() for c in commands)

    def programs(self):
        return [*self.binaries, shutil.which("runc")]

    def start(self):
        """Seconds until it answers; none where it runs."""
        if self.process:
            return 0
        self.run_dir.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["dockerd", "--config-file", self.config, "--data-root", self.root, "--exec-root", self.run_dir / "x",
                 "--pidfile", self.run_dir / "pid", "-H", self.socket],
                env=self.env, stdout=log, stderr=log,
            )
        ask = ["docker", "version"]
        wait(lambda: not subprocess.run(ask, env=self.env, capture_output=True).returncode, self.process, "dockerd")
        return time.monotonic() - start

    def reset(self):
        self.stop()
        self.start()

    def halt(self):
        if self.process:
            stop(self.process)
            self.process = None

    def build(self, context, no_cache, compression, dest):
        starting = self.start()
        args = ["docker", "buildx", "build", "--progress=plain", "--provenance=false"]
        args += ["--allow=network.host", "--network=host"]
        if no_cache:
            args.append("--no-cache")
        if compression:
            args += ["--output", f"type=oci,compression={compression},force-compression=true,dest={dest}"]
        else:
            args += ["--output", "type=cacheonly"]
        containerd = int((self.run_dir / "x/containerd/containerd.pid").read_text())
        daemons = [pathlib.Path(f"/proc/{pid}") for pid in (self.process.pid, containerd)]
        for daemon in daemons:
            (daemon / "clear_refs").write_text("5")  # the maximum becomes what is resident now
        seconds, _ = run(*args, context, env=self.env)
        status = "".join((daemon / "status").read_text() for daemon in daemons)
        peaks = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
        return starting + seconds, sum(peaks) / 1024

    def stop(self):
        self.halt()
        wipe(self.root, self.run_dir)


class Buildah:
    name = "buildah"

    def __init__(self, work, registry):
        self.root, self.run_root = work / "state-buildah", work / "run-buildah"
        conf = work / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "{registry.addr}"\ninsecure = true\n')
        self.env = dict(os.environ, CONTAINERS_REGISTRIES_CONF=str(conf))
        self.command = ["buildah", "--root", self.root, "--runroot", self.run_root, "--storage-driver", "overlay"]

    def version(self):
        return subprocess.check_output(["buildah", "--version"], text=True).strip()

    def programs(self):
        return [shutil.which("buildah")]

    def reset(self):
        wipe(self.root, self.run_root)

    def halt(self):
        pass

    def build(self, context, no_cache, compression, dest):
        args = [*self.command, "build", "--isolation", "chroot", "--layers", "-t", "bench"]
        if no_cache:
            args.append("--no-cache")
        seconds, memory = run(*args, context, env=self.env)
        if compression:
            args = [*self.command, "push", "--compression-format", compression]
            more, other = run(*args, "bench", f"oci-archive:{dest}", env=self.env)
            seconds, memory = seconds + more, max(memory, other)
        return seconds, memory

    def stop(self):
        self.reset()


PEERS = {"dockerd": Dockerd, "buildah": Buildah}


class Results:
    def __init__(self, sides):
        self.sides = [side.name for side in sides]
        self.seconds, self.memory, self.failed, self.reasons = {}, {}, {}, {}
        self.sizes = {side.name: [sum(map(os.path.getsize, side.programs())) / 1e6] for side in sides}

    def add(self, step, side, seconds, memory):
        if step.name:
            self.seconds.setdefault(step.name, {}).setdefault(side.name, []).append(seconds)
            self.memory.setdefault(step.name, {}).setdefault(side.name, []).append(memory)

    def fail(self, steps, side, why):
        names = [step.name for step in steps if step.name]
        for name in names:
            self.seconds.setdefault(name, {})
            self.memory.setdefault(name, {})
            self.failed.setdefault(name, []).append(side.name)
        self.reasons.setdefault((side.name, names[0]), f"{side.name} failed at `{names[0]}`: {why.splitlines()[-1]}")

    def show(self, json_file):
        memory = {**self.memory, "programs on disk": self.sizes}
        self.table("seconds", self.seconds, statistics.median, 3)
        self.table("MB", memory, max, 1)
        if json_file:
            figures = {"seconds": self.seconds, "MB": memory, "failed": list(self.reasons.values())}
            json_file.write_text(json.dumps(figures, indent=1) + "\n")

    def table(self, title, figures, summary, digits):
        print(f"\n{title:40}" + "".join(f"{side:>10}" for side in self.sides)
              + "".join(f"{'/' + side:>10}" for side in self.sides[1:]))
        for name, by_side in figures.items():
            failed = self.failed.get(name, [])
            known = {side: summary(values) for side, values in by_side.items() if side not in failed}
            row = f"{name:40}"
            for side in self.sides:
                row += f"{known[side]:10.{digits}f}" if side in known else f"{'failed' if side in failed else '-':>10}"
            for peer in self.sides[1:]:
                row += f"{known['ours'] / known[peer]:10.2f}" if {"ours", peer} <= known.keys() else f"{'-':>10}"
            print(row)


def measure(case, sides, work, results):
    """The steps of a case, each on all sides; a side that failed one sits out the rest."""
    steps, standing = CASES[case], list(sides)
    for at, step in enumerate(steps):
        if step.touch:
            write(work / "files/src/d0/f0.js", f"touched {time.time()}")
        for side in list(standing):
            dest = work / f"out-{side.name}.tar"
            try:
                if step.cold:
                    side.reset()
                if step.stopped:
                    side.halt()
                seconds, memory = side.build(work / step.context, step.no_cache, step.compression, dest)
                if step.compression and not dest.exists():
                    raise Failed(f"no archive came out at {dest}")
                results.add(step, side, seconds, memory)
            except (Failed, OSError) as error:
                print(f"!! {side.name}, {step.name or step.context}: {error}", file=sys.stderr)
                results.fail(steps[at:], side, str(error))
                standing.remove(side)
            finally:
                dest.unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    binary = HERE.parent / "target/x86_64-unknown-linux-musl/release/hullworks"
    parser.add_argument("--ours", type=pathlib.Path, default=binary, metavar="BINARY",
                        help="hullworks, a release build [default: what `cargo xtask image` leaves below target]")
    parser.add_argument("--peers", default=",".join(PEERS),
                        help="whom to compare with, an empty string for nobody [default: %(default)s]")
    parser.add_argument("--cases", default=",".join(CASES), help="[default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[default: %(default)s]")
    parser.add_argument("--work", type=pathlib.Path, default="/var/tmp/hullworks-bench", metavar="DIR",
                        help="packages, base images, contexts and states [default: %(default)s]")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there as well")
    options = parser.parse_args()
    cases, peers = ([name for name in given.split(",") if name] for given in (options.cases, options.peers))
    for name, known in [*((c, CASES) for c in cases), *((p, PEERS) for p in peers)]:
        if name not in known:
            parser.error(f"`{name}` is none of {', '.join(known)}")
    if not options.ours.exists():
        parser.error(f"there is no {options.ours}: `cargo xtask image` builds it")
    if os.geteuid():
        parser.error("the peers need root")
    signal.signal(signal.SIGTERM, end)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    install()
    with contextlib.ExitStack() as cleanup:
        registry = Registry(work)
        cleanup.callback(registry.stop)
        registry.fill()
        contexts(work, registry)
        sides = [Ours(options.ours.resolve(), work, registry), *(PEERS[peer](work, registry) for peer in peers)]
        for side in sides:
            cleanup.callback(side.stop)
            print(f"{side.name}: {side.version()}")
        results = Results(sides)
        cleanup.callback(results.show, options.json)  # those of a run that is ended early as well
        for n in range(options.rounds):
            for case in cases:
                print(f"round {n + 1} of {options.rounds}: {case}", file=sys.stderr)
                measure(case, sides[n % len(sides) :] + sides[: n % len(sides)], work, results)
    if results.reasons:
        sys.exit("\n" + "\n".join(results.reasons.values()))


if __name__ == "__main__":
    main()
