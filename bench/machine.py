"""This machine: commands and their figures, processes, folders, packages, certificates."""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

PACKAGES = ["buildah", "busybox-static", "docker-registry", "mmdebstrap", "openssl", "runc", "skopeo", "time"]
FORKY = ["containerd", "docker-buildx", "docker-cli", "docker.io"]


class Failed(Exception):
    """A command of a side failed: its case has no figure there, the others go on."""


@dataclasses.dataclass(frozen=True)
class Cost:
    seconds: float  # that somebody waits
    cpu: float  # seconds, of all processes that took part
    megabytes: float  # resident, the most of a process

    def then(self, other):
        return Cost(self.seconds + other.seconds, self.cpu + other.cpu, max(self.megabytes, other.megabytes))


def run(*args, env=None, timeout=1800):
    """What a command costs.

    GNU time starts it: a child of ours would begin with this program's own size as its maximum.
    """
    with tempfile.NamedTemporaryFile("r") as figures:
        start = time.monotonic()
        process = subprocess.Popen(
            ["/usr/bin/time", "-o", figures.name, "-f", "%M %U %S", *args], env=env, start_new_session=True,
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
        kilobytes, user, system = figures.read().split()[-3:]
        return Cost(seconds, float(user) + float(system), int(kilobytes) / 1024)


def run_all(commands, env=None):
    """The same of several, all at once."""
    with concurrent.futures.ThreadPoolExecutor(len(commands)) as pool:
        start = time.monotonic()
        costs = list(pool.map(lambda command: run(*command, env=env), commands))
        return Cost(time.monotonic() - start, sum(c.cpu for c in costs), max(c.megabytes for c in costs))


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
        time.sleep(0.002)


def stop(process):
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def memory(pids, field):
    """`VmRSS`, what is resident now, or `VmHWM`, the most since `forget_peaks`: MB of all of them together."""
    status = "".join(pathlib.Path(f"/proc/{pid}/status").read_text() for pid in pids)
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:")) / 1024


def forget_peaks(pids):
    for pid in pids:
        pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu(pid):
    """Seconds so far of a daemon, of those that it started, and so on, also where they have ended."""
    ticks, found = 0, [pid]
    for one in found:
        with contextlib.suppress(OSError):  # it has just ended
            stat = pathlib.Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, stat[11:15]))
            for children in pathlib.Path(f"/proc/{one}/task").glob("*/children"):
                found += children.read_text().split()
    return ticks / os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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


def certificates(work):
    """A folder with an authority, a daemon's certificate for loopback, and a client's: new ones each time, for a day."""
    folder = work / "certificates"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()

    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    openssl("req", "-x509", *new_key, "-subj", "/CN=bench authority", "-keyout", "ca-key.pem", "-out", "ca.pem")
    for name, extensions in (
        ("server", ["subjectAltName=IP:127.0.0.1,DNS:localhost", "extendedKeyUsage=serverAuth"]),
        ("client", ["extendedKeyUsage=clientAuth"]),
    ):
        cert, key = ("cert.pem", "key.pem") if name == "client" else (f"{name}-cert.pem", f"{name}-key.pem")
        openssl("req", "-x509", *new_key, "-subj", f"/CN={name}", "-CA", "ca.pem", "-CAkey", "ca-key.pem",
                "-addext", "basicConstraints=critical,CA:FALSE",
                *(word for extension in extensions for word in ("-addext", extension)), "-keyout", key, "-out", cert)
    return folder
