"""This machine: commands and their figures, processes, folders, packages, certificates."""

import contextlib
import dataclasses
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

PACKAGES = ["buildah", "busybox-static", "curl", "docker-registry", "mmdebstrap", "openssl", "runc", "skopeo", "time"]
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


def run(commands, env=None, timeout=1800):
    """What commands cost that run all at once; whatever ends this early ends them as well.

    GNU time starts each: a child of ours would begin with this program's own size as its maximum.
    """
    with contextlib.ExitStack() as files:
        figures = [files.enter_context(tempfile.NamedTemporaryFile("r")) for _ in commands]
        outs = [files.enter_context(tempfile.TemporaryFile()) for _ in commands]
        processes, start = [], time.monotonic()
        try:
            for command, figure, out in zip(commands, figures, outs):
                processes.append(subprocess.Popen(
                    ["/usr/bin/time", "-o", figure.name, "-f", "%M %U %S", *command], env=env, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                ))
            for command, process in zip(commands, processes):
                if not ended(process, start + timeout):
                    raise Failed(f"{' '.join(map(str, command))}: not done after {timeout} s")
        except BaseException:
            end_groups(processes)
            raise
        seconds = time.monotonic() - start
        for command, process, out in zip(commands, processes, outs):
            if process.returncode:
                out.seek(0)
                tail = out.read().decode(errors="replace")[-1500:]
                raise Failed(f"{' '.join(map(str, command))}: exit {process.returncode}\n{tail}")
        kilobytes, user, system = zip(*(map(float, figure.read().split()[-3:]) for figure in figures))
        return Cost(seconds, sum(user) + sum(system), max(kilobytes) / 1024)


def ended(process, deadline):
    """Whether it ends before then. `Popen.wait` looks only every 50 ms when it is given a time."""
    pidfd = os.pidfd_open(process.pid)
    try:
        if not select.select([pidfd], [], [], max(0, deadline - time.monotonic()))[0]:
            return False
    finally:
        os.close(pidfd)
    process.wait()
    return True


def end_groups(processes):
    """Ends commands and what they have started: asked first, for a daemon among them has sandboxes to end."""

    def alive(process):
        process.poll()
        return signal_group(process, 0)

    for process in processes:
        signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        signal_group(process, signal.SIGKILL)
        process.wait()


def signal_group(process, number):
    """False where nothing of it is left."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


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
