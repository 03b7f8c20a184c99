#!/usr/bin/env python3
"""Builds the same things with Hullworks and with its peers, side by side, and prints ratios.

    bench/compare.py [--ours target/.../hullworks] [--peers dockerd,buildah] [--cases run50,files,..]
                     [--rounds 3] [--work DIR] [--json FILE]

Needs root and Debian packages only; what is missing is installed or, for the peers of newer suites,
downloaded as packages and unpacked below --work:

    dockerd   BuildKit inside dockerd with `docker buildx`, containerd image store on
    buildah   Buildah with --isolation chroot

Every case runs for each side in turn, round after round, on an empty state where it says cold. The
table shows medians in seconds and ours/peer: below 1 we are faster. Nothing here asserts a time.
"""

import argparse
import json
import lzma
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = ["busybox-static", "docker-registry", "mmdebstrap", "runc", "buildah", "skopeo", "iptables"]
FORKY = ["docker.io", "docker-buildx", "docker-cli", "containerd"]


def run(*args, env=None, cwd=None, check=True, timeout=1800):
    """Wall seconds and peak resident set (MB) of a command and all its children."""
    start = time.monotonic()
    process = subprocess.Popen(
        args, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    code = os.waitstatus_to_exitcode(status)
    if check and code:
        raise RuntimeError(f"{' '.join(map(str, args))}: exit {code}\n{out.decode(errors='replace')[-1500:]}")
    return seconds, usage.ru_maxrss / 1024


def install():
    missing = [p for p in PACKAGES if subprocess.run(["dpkg", "-s", p], capture_output=True).returncode]
    if missing:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)


def debian_mirror():
    """Where this machine's apt gets Debian from."""
    text = "".join(p.read_text() for p in pathlib.Path("/etc/apt").rglob("*") if p.suffix in (".list", ".sources"))
    found = re.search(r"https?://\S+/debian(?=[\s/])", text)
    return found.group(0) if found else "http://deb.debian.org/debian"


def forky(work):
    """Unpacks the newer suite's packages into a folder and answers it."""
    root = work / "forky"
    if (root / "done").exists():
        return root
    base = debian_mirror()
    index = lzma.decompress(urllib.request.urlopen(f"{base}/dists/forky/main/binary-amd64/Packages.xz").read())
    for stanza in index.decode().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Filename): (\S+)", stanza, re.M))
        if fields.get("Package") in FORKY:
            deb = work / os.path.basename(fields["Filename"])
            urllib.request.urlretrieve(f"{base}/{fields['Filename']}", deb)
            subprocess.run(["dpkg", "-x", deb, root], check=True)
    (root / "done").touch()
    return root


class Registry:
    """Debian's docker-registry on loopback, with the base images."""

    def __init__(self, work, port=5077):
        self.addr = f"127.0.0.1:{port}"
        data = work / "registry"
        data.mkdir(parents=True, exist_ok=True)
        config = work / "registry.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {data}}}}}\n"
            f"http: {{addr: '{self.addr}'}}\n"
        )
        self.process = subprocess.Popen(
            ["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait(lambda: urllib.request.urlopen(f"http://{self.addr}/v2/").status == 200, "the registry")

    def fill(self, work, ours):
        """busybox from busybox-static, and a Debian with compilers (about 190 MB of gzip)."""
        for name, make in (("busybox", busybox_tree), ("debian-build", debian_tar)):
            if (work / f"{name}.pushed").exists():
                continue
            context = work / f"image-{name}"
            make(context)
            run(
                ours, "build", "-t", f"{self.addr}/library/{name}:latest", "--push", "--root", work / "fill",
                "--progress=plain", context,
            )
            (work / f"{name}.pushed").touch()

    def stop(self):
        self.process.terminate()
        self.process.wait()


def busybox_tree(context):
    bin_dir = context / "root/bin"
    bin_dir.mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/busybox", bin_dir / "busybox")
    for applet in subprocess.check_output(["/bin/busybox", "--list"], text=True).split():
        if applet != "busybox" and not (bin_dir / applet).is_symlink():
            (bin_dir / applet).symlink_to("busybox")
    for directory in ("etc", "root", "tmp"):
        (context / "root" / directory).mkdir(exist_ok=True)
    (context / "root/etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (context / "Dockerfile").write_text("FROM scratch\nCOPY root/ /\nENV PATH=/bin\nCMD [\"sh\"]\n")


def debian_tar(context):
    context.mkdir(parents=True, exist_ok=True)
    tar = context / "root.tar"
    if not tar.exists():
        include = "ca-certificates,gcc,g++,make,python3,git,curl"
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={include}", "bookworm", tar, debian_mirror()],
            check=True,
        )
    (context / "Dockerfile").write_text("FROM scratch\nADD root.tar /\nENV PATH=/usr/sbin:/usr/bin:/sbin:/bin\n")


def wait(ready, what, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come up in {seconds} s")
        time.sleep(0.05)


class Ours:
    name = "ours"

    def __init__(self, binary, work, registry):
        self.binary, self.root = binary, work / "state-ours"
        self.config = work / "buildkitd.toml"
        self.config.write_text(f'[registry."{registry.addr}"]\n  http = true\n')

    def reset(self):
        shutil.rmtree(self.root, ignore_errors=True)

    def build(self, context, *, no_cache=False, output=None):
        args = [self.binary, "build", "--progress=plain", "--root", self.root, "--config", self.config]
        if no_cache:
            args.append("--no-cache")
        if output:
            kind, dest = output
            args += ["--output", f"type=oci,compression={kind},force-compression=true,dest={dest}"]
        return run(*args, context)

    def size(self):
        return os.path.getsize(self.binary) / 1e6

    def stop(self):
        shutil.rmtree(self.root, ignore_errors=True)


class Dockerd:
    """BuildKit inside dockerd: one warm daemon for all cases, its cache pruned where a case is cold."""

    name = "dockerd"

    def __init__(self, work, registry):
        root = forky(work)
        self.root, self.run_dir = work / "state-dockerd", work / "run-dockerd"
        shutil.rmtree(self.root, ignore_errors=True)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.binaries = [root / "usr/sbin/dockerd", root / "usr/libexec/docker/cli-plugins/docker-buildx",
                         root / "usr/bin/containerd", root / "usr/bin/containerd-shim-runc-v2"]
        plugins = work / "docker-config/cli-plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        if not (plugins / "docker-buildx").exists():
            shutil.copy(self.binaries[1], plugins)
        config = work / "daemon.json"
        config.write_text(json.dumps({
            "features": {"containerd-snapshotter": True}, "insecure-registries": [registry.addr],
            "bridge": "none", "iptables": False, "builder": {"gc": {"enabled": False}},
        }))
        path = f"{root}/usr/bin:{root}/usr/sbin:{os.environ['PATH']}"
        self.env = dict(os.environ, PATH=path, DOCKER_HOST=f"unix://{self.run_dir}/d.sock",
                        DOCKER_CONFIG=str(work / "docker-config"))
        self.log = open(work / "dockerd.log", "wb")
        self.process = subprocess.Popen(
            ["dockerd", "--config-file", config, "--data-root", self.root, "--exec-root", self.run_dir / "x",
             "--pidfile", self.run_dir / "pid", "-H", self.env["DOCKER_HOST"]],
            env=self.env, stdout=self.log, stderr=self.log,
        )
        wait(lambda: subprocess.run(["docker", "version"], env=self.env, capture_output=True).returncode == 0, "dockerd")

    def reset(self):
        run("docker", "buildx", "prune", "-af", env=self.env)

    def build(self, context, *, no_cache=False, output=None):
        args = ["docker", "buildx", "build", "--progress=plain", "--provenance=false"]
        if no_cache:
            args.append("--no-cache")
        if output:
            kind, dest = output
            args += ["--output", f"type=oci,compression={kind},force-compression=true,dest={dest}"]
        else:
            args += ["--output", "type=cacheonly"]
        return run(*args, context, env=self.env)

    def size(self):
        return sum(os.path.getsize(b) for b in [*self.binaries, shutil.which("runc")]) / 1e6

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        subprocess.run(["sh", "-c", f"grep -o '{self.root}[^ ]*' /proc/mounts | sort -r | xargs -r umount -l"])
        shutil.rmtree(self.root, ignore_errors=True)


class Buildah:
    name = "buildah"

    def __init__(self, work, registry):
        self.root, self.run_root = work / "state-buildah", work / "run-buildah"
        conf = work / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "{registry.addr}"\ninsecure = true\n')
        self.env = dict(os.environ, CONTAINERS_REGISTRIES_CONF=str(conf))

    def base(self):
        return ["buildah", "--root", self.root, "--runroot", self.run_root, "--storage-driver", "overlay"]

    def reset(self):
        if self.root.exists():
            run(*self.base(), "rmi", "-af", env=self.env, check=False)

    def build(self, context, *, no_cache=False, output=None):
        layers = "--no-cache" if no_cache else "--layers"
        args = [*self.base(), "build", "--isolation", "chroot", "--layers", layers, "-t", "bench"]
        seconds, rss = run(*args, context, env=self.env)
        if output:
            kind, dest = output
            extra = [] if kind == "gzip" else ["--compression-format", kind]
            pathlib.Path(dest).unlink(missing_ok=True)
            more, other = run(*self.base(), "push", *extra, "bench", f"oci-archive:{dest}", env=self.env)
            seconds, rss = seconds + more, max(rss, other)
        return seconds, rss

    def size(self):
        return os.path.getsize(shutil.which("buildah")) / 1e6

    def stop(self):
        self.reset()
        shutil.rmtree(self.root, ignore_errors=True)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def contexts(work, registry, big_source):
    random.seed(1)
    busybox = f"{registry.addr}/library/busybox"
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
    big = work / "big"
    if not (big / "Dockerfile").exists():
        big.mkdir(exist_ok=True)
        program = pathlib.Path(big_source).read_bytes()
        with open(big / "big.bin", "wb") as out:
            while out.tell() < 340_000_000:
                out.write(program[: 340_000_000 - out.tell()])
                program = program[::-1]
            out.write(random.randbytes(130_000_000))
        write(big / "Dockerfile", "FROM scratch\nCOPY big.bin /\n")


def measure(side, work, wanted, record):
    def case(name, *args, **kwargs):
        seconds, rss = side.build(*args, **kwargs)
        record(name, side.name, seconds)
        if side.name != "dockerd":
            record("peak memory of one build, MB", side.name, rss, keep=max)

    out = str(work / f"out-{side.name}.tar")
    if "run50" in wanted:
        side.build(work / "run50")
        case("50 RUN true, nothing cached", work / "run50", no_cache=True)
        case("50 RUN true, all cached", work / "run50")
    if "fan16" in wanted:
        side.reset()
        side.build(work / "run50")
        case("16 stages x 5 RUN + COPY --from", work / "fan16")
    if "files" in wanted:
        case("20,000 files: first COPY", work / "files")
        write(work / "files/src/d0/f0.js", f"touched {time.time()}")
        case("20,000 files: one changed", work / "files")
        case("20,000 files: none changed", work / "files")
        case("20,000 files: export OCI gzip", work / "files", output=("gzip", out))
    if "big" in wanted:
        case("470 MB: COPY", work / "big")
        case("470 MB: export OCI gzip", work / "big", output=("gzip", out))
        case("470 MB: export OCI zstd", work / "big", output=("zstd", out))
    if "pull" in wanted:
        side.reset()
        case("pull + unpack 190 MB gzip, RUN true", work / "pull")
    pathlib.Path(out).unlink(missing_ok=True)


def table(results, sides):
    print(f"{'case':40}" + "".join(f"{s:>10}" for s in sides) + "".join(f"{'/' + s:>10}" for s in sides[1:]))
    for name, by_side in results.items():
        medians = {s: statistics.median(v) for s, v in by_side.items()}
        row = f"{name:40}" + "".join(f"{medians[s]:10.3f}" if s in medians else f"{'-':>10}" for s in sides)
        for peer in sides[1:]:
            known = peer in medians and "ours" in medians
            row += f"{medians['ours'] / medians[peer]:10.2f}" if known else f"{'-':>10}"
        print(row)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", default=HERE.parent / "target/x86_64-unknown-linux-musl/release/hullworks")
    parser.add_argument("--peers", default="dockerd,buildah")
    parser.add_argument("--cases", default="run50,fan16,files,big,pull")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", default="/var/tmp/hullworks-bench")
    parser.add_argument("--json")
    options = parser.parse_args()
    if os.geteuid():
        sys.exit("run as root: the peers need it")
    work = pathlib.Path(options.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    ours = pathlib.Path(options.ours).resolve()
    install()
    registry = Registry(work)
    results, sides = {}, []

    def record(case, side, value, keep=None):
        values = results.setdefault(case, {}).setdefault(side, [])
        values[:] = [keep([*values, value])] if keep else [*values, value]

    try:
        registry.fill(work, ours)
        contexts(work, registry, ours)
        sides.append(Ours(ours, work, registry))
        for peer in filter(None, options.peers.split(",")):
            sides.append({"dockerd": Dockerd, "buildah": Buildah}[peer](work, registry))
        for side in sides:
            record("program, MB", side.name, side.size())
        wanted = set(options.cases.split(","))
        for _ in range(options.rounds):
            for side in sides:
                side.reset()
                measure(side, work, wanted, record)
        table(results, [s.name for s in sides])
        if options.json:
            pathlib.Path(options.json).write_text(json.dumps(results, indent=1))
    finally:
        for side in sides:
            side.stop()
        registry.stop()


if __name__ == "__main__":
    main()
