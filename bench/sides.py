"""Who builds it: we and our peers, as daemons and without.

`halt` ends what runs beside builds, `reset` leaves an empty state as well, `start` gives the seconds until the side is ready
to build, 0 where it was; each `build` what it cost, with the start where that was left to it.
"""

import json
import os
import shutil
import subprocess
import time

from cases import AT_ONCE
from delay import Proxy
from machine import Cost, cpu, forget_peaks, forky, free_port, memory, run, stop, wait, wipe


def outputs(step, dest, side):
    if step.compression:
        return ["--output", f"type=oci,compression={step.compression},force-compression=true,dest={dest}"]
    return ["--output", f"type=image,name={side.image()},push=true"] if step.push else []


def contexts(step, work):
    return [work / step.context / str(i) for i in range(AT_ONCE)] if step.at_once else [work / step.context]


class Side:
    """What is alike for all."""

    def __init__(self, name, bench):
        self.name, self.bench = name, bench
        self.root, self.run_dir = bench.work / f"state-{name}", bench.work / f"run-{name}"
        self.pushes, self.pushed = 0, None

    def image(self):
        """A name in the registry that has nothing yet, where every blob has to be sent."""
        self.pushes += 1
        self.pushed = f"{self.bench.registry.addr}/bench/{self.name}-{self.bench.run}-{self.pushes}:latest"
        return self.pushed

    def start(self):
        return 0

    def halt(self):
        pass

    def reset(self):
        self.halt()
        wipe(self.root, self.run_dir)


class Resident(Side):
    """A daemon that stays up and listens on a unix socket; on TCP with mutual TLS as well, for lines with a delay."""

    def __init__(self, name, bench):
        super().__init__(name, bench)
        self.process, self.proxies, self.port = None, {}, free_port()
        self.path = self.run_dir / "d.sock"
        self.socket = f"unix://{self.path}"
        self.log = bench.work / f"{name}.log"

    def start(self):
        if self.process:
            return 0
        self.run_dir.mkdir(parents=True, exist_ok=True)
        pems = self.bench.certificates
        tls = ["--tlscacert", pems / "ca.pem", "--tlscert", pems / "server-cert.pem", "--tlskey", pems / "server-key.pem"]
        start = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.daemon(), *tls], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait(self.answers, self.process, f"{self.name}, see {self.log}:")
        return time.monotonic() - start

    def rest(self):
        """What it cost to come up, and costs at rest."""
        seconds = self.start()
        return Cost(seconds, cpu(self.process.pid), memory(self.pids(), "VmRSS"))

    def answers(self):
        """By its own client, whose time counts: a socket that is there says little."""
        return self.path.exists() and not subprocess.run(self.ask(), env=self.env, capture_output=True).returncode

    def far_port(self, delay):
        if delay not in self.proxies:
            self.proxies[delay] = Proxy(self.port, delay)
        return self.proxies[delay].port

    def pids(self):
        return [self.process.pid]

    def build(self, step, dest):
        starting = self.start()
        commands, env = self.client(step, dest)
        pids, before = self.pids(), 0
        if not starting:
            forget_peaks(pids)
            before = cpu(self.process.pid)
        cost = run(commands, env=env)
        return Cost(starting + cost.seconds, cost.cpu + cpu(self.process.pid) - before, memory(pids, "VmHWM"))

    def halt(self):
        while self.proxies:
            self.proxies.popitem()[1].stop()
        if self.process:
            stop(self.process)
            self.process = None


class Hullworks(Side):
    """`hullworks build`, where the session and the engine are one process."""

    def __init__(self, bench, folder):
        super().__init__("ours", bench)
        self.binary = folder / "hullworks"

    def version(self):
        return subprocess.check_output([self.binary, "--version"], text=True).strip()

    def programs(self):
        return [self.binary]

    def build(self, step, dest):
        command = [self.binary, "build", "--progress=plain", "--root", self.root, "--config", self.bench.config]
        command += ["--no-cache"] * step.no_cache + outputs(step, dest, self)
        return run([[*command, context] for context in contexts(step, self.bench.work)])


class Buildkit(Side):
    """The `buildkitd`, `buildctl` and what they need in a folder: ours, or BuildKit's."""

    FRONTEND = ["build", "--progress=plain", "--frontend", "dockerfile.v0"]

    def __init__(self, name, bench, folder):
        super().__init__(name, bench)
        self.folder = folder
        # No credentials of the user's, and our own first for what they start: BuildKit's runc.
        self.env = dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}", DOCKER_CONFIG=str(bench.work / "no-config"))
        self.flags = ["--config", bench.config, "--root", self.root, "--oci-worker=true", "--containerd-worker=false",
                      "--oci-worker-gc=false"]

    def version(self):
        commands = ([self.folder / program, "--version"] for program in ("buildkitd", "buildctl"))
        return ", ".join(subprocess.check_output(c, env=self.env, text=True).strip() for c in commands)

    def programs(self):
        paths = (self.folder / program for program in ("buildkitd", "buildctl"))
        programs = {path.resolve() for path in paths}
        runc = shutil.which("buildkit-runc", path=self.env["PATH"]) or shutil.which("runc", path=self.env["PATH"])
        # One program does both, and needs no other: ours.
        return programs if len(programs) == 1 else [*programs, runc]

    def commands(self, step, dest, head):
        head = [*head, *self.FRONTEND, *["--no-cache"] * step.no_cache, *outputs(step, dest, self)]
        return [[*head, "--local", f"context={context}", "--local", f"dockerfile={context}"]
                for context in contexts(step, self.bench.work)]


class Daemon(Buildkit, Resident):
    """It stays up, and is asked by the `buildctl` beside it."""

    def daemon(self):
        return ["buildkitd", *self.flags, "--addr", self.socket, "--addr", f"tcp://127.0.0.1:{self.port}"]

    def ask(self):
        return ["buildctl", "--addr", self.socket, "debug", "workers"]

    def client(self, step, dest):
        if step.delay is None:
            return self.commands(step, dest, ["buildctl", "--addr", self.socket]), self.env
        pems = self.bench.certificates
        head = ["buildctl", "--addr", f"tcp://127.0.0.1:{self.far_port(step.delay)}", "--tlscacert", pems / "ca.pem",
                "--tlscert", pems / "cert.pem", "--tlskey", pems / "key.pem"]
        return self.commands(step, dest, head), self.env


class Daemonless(Buildkit):
    """A daemon per build."""

    def __init__(self, name, bench, folder):
        super().__init__(name, bench, folder)
        self.env["BUILDKITD_FLAGS"] = " ".join(map(str, self.flags))

    def build(self, step, dest):
        return run(self.commands(step, dest, ["buildctl-daemonless.sh"]), env=self.env)


class Dockerd(Resident):
    """BuildKit inside dockerd, asked by `docker buildx`."""

    def __init__(self, name, bench, _):
        super().__init__(name, bench)
        root = forky(bench.work)
        bin_dir, plugin = root / "usr/bin", root / "usr/libexec/docker/cli-plugins/docker-buildx"
        self.binaries = [root / "usr/sbin/dockerd", bin_dir / "containerd", bin_dir / "docker", plugin]
        plugins = bench.work / "docker-config/cli-plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        if not (plugins / "docker-buildx").exists():
            (plugins / "docker-buildx").symlink_to(plugin)
        self.config = bench.work / "daemon.json"
        self.config.write_text(json.dumps({
            "features": {"containerd-snapshotter": True}, "insecure-registries": [bench.registry.addr],
            "bridge": "none", "iptables": False, "ip6tables": False, "builder": {"gc": {"enabled": False}},
        }))
        self.env = dict(
            os.environ, PATH=f"{bin_dir}:{root}/usr/sbin:{os.environ['PATH']}", DOCKER_HOST=self.socket,
            DOCKER_CONFIG=str(bench.work / "docker-config"),
        )

    def version(self):
        commands = (["docker", "--version"], ["docker", "buildx", "version"])
        return ", ".join(subprocess.check_output(c, env=self.env, text=True).strip() for c in commands)

    def programs(self):
        return [*self.binaries, shutil.which("runc")]

    def daemon(self):
        return ["dockerd", "--config-file", self.config, "--data-root", self.root, "--exec-root", self.run_dir / "x",
                "--pidfile", self.run_dir / "pid", "-H", self.socket, "-H", f"tcp://127.0.0.1:{self.port}",
                "--tlsverify"]

    def ask(self):
        return ["docker", "version"]

    def pids(self):
        return [self.process.pid, int((self.run_dir / "x/containerd/containerd.pid").read_text())]

    def client(self, step, dest):
        command = ["docker", "buildx", "build", "--progress=plain", "--provenance=false"]
        command += ["--allow=network.host", "--network=host", *["--no-cache"] * step.no_cache]
        command += outputs(step, dest, self) or ["--output", "type=cacheonly"]
        env = self.env
        if step.delay is not None:
            env = dict(env, DOCKER_HOST=f"tcp://127.0.0.1:{self.far_port(step.delay)}", DOCKER_TLS_VERIFY="1",
                       DOCKER_CERT_PATH=str(self.bench.certificates))
        return [[*command, context] for context in contexts(step, self.bench.work)], env


class Buildah(Side):
    """Buildah, which has no daemon."""

    def __init__(self, name, bench, _):
        super().__init__(name, bench)
        conf = bench.work / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "{bench.registry.addr}"\ninsecure = true\n')
        self.env = dict(os.environ, CONTAINERS_REGISTRIES_CONF=str(conf))
        self.command = ["buildah", "--root", self.root, "--runroot", self.run_dir, "--storage-driver", "overlay"]

    def version(self):
        return subprocess.check_output(["buildah", "--version"], text=True).strip()

    def programs(self):
        return [shutil.which("buildah")]

    def build(self, step, dest):
        command = [*self.command, "build", "--isolation", "chroot", "--layers", "-t", "bench"]
        command += ["--no-cache"] * step.no_cache
        cost = run([[*command, context] for context in contexts(step, self.bench.work)], env=self.env)
        if step.compression or step.push:
            to = f"docker://{self.image()}" if step.push else f"oci-archive:{dest}"
            command = [*self.command, "push", "--compression-format", step.compression or "gzip", "bench", to]
            cost = cost.then(run([command], env=self.env))
        return cost


PEERS = {
    "dockerd": {"daemon": Dockerd, "daemonless": Dockerd},
    "buildah": {"daemonless": Buildah},
    "buildkitd": {"daemon": Daemon, "daemonless": Daemonless},
}
