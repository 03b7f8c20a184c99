#!/usr/bin/env python3
"""Builds the same things with Hullworks and with its peers, side by side, and prints ratios.

    bench/compare.py                                        all cases both ways, three rounds
    bench/compare.py --ways daemonless --cases files,big --rounds 5 --work /dev/shm/bench
    bench/compare.py --ways daemon --peers buildkitd=/opt/buildkit --cases sync

Two ways: through a `daemon` that is up, over its unix socket, and `daemonless`. Each side has its own client.

    ours        our `buildkitd` and `buildctl`              `hullworks build`
    dockerd     BuildKit inside dockerd, `docker buildx`    the same: it is up, except where start-up is measured
    buildkitd   its `buildkitd` and `buildctl`              its `buildctl-daemonless.sh`
    buildah     -                                           Buildah with --isolation chroot, layers cached

`buildkitd=DIR` names the folder with these programs of BuildKit's and `runc`; without it they are left out. The memory of
dockerd is its containerd's as well (image store on); size is that of all programs that take part.

Needs root on Debian. Packages that are missing are installed; those of dockerd come from a newer suite and
are only unpacked below --work, which keeps them, the base images and the contexts for the next run (about 4 GB).

Every step of a case runs on each side in turn, so that whatever else the machine does falls on all of them, and
who begins changes from round to round. All steps use the host's network, as ours do unless told otherwise.
A case begins on an empty state, with a daemon that has just come up. "Start to ready" begins with no daemon, on an empty
state too, and ends with the first answer to the side's own client: its time is part of it, its CPU is not. Its row in the last
table is the daemon at rest.

The case `sync` goes over TCP with mutual TLS, through a proxy of ours (bench/delay.py) that makes every way there and back
0 or 5 ms longer.

The tables show medians in seconds and ours/peer; the same of CPU seconds, of clients, daemons and their children, which vary
less on a busy machine; and the largest resident set in MB of all rounds: of the daemon, or without one, of the largest process.
Below the seconds stands how long curl takes to upload the pushed layer alone: the registry hashes all that it is sent, and
no client is faster than it. Below 1 we are better; the last column is where we want to be beside BuildKit's own buildkitd. A
case that failed on a side says so, has no ratio there, and makes the exit status 1. Ctrl-C or TERM ends all that runs, and
shows what there is. Nothing here asserts a time. Put --work on a tmpfs to leave the disk out; it then takes 8 GB.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import signal
import sys
import time

from cases import CASES, WAYS, contexts, touch
from machine import Failed, certificates, install
from registry import Registry
from results import Results, save
from sides import PEERS, Daemon, Hullworks

ENDS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
HERE = pathlib.Path(__file__).resolve().parent


class Bench:
    """What all sides share."""

    def __init__(self, work, registry):
        self.work, self.registry, self.run = work, registry, int(time.time())
        self.certificates = certificates(work)
        self.config = work / "buildkitd.toml"
        self.config.write_text(f'[registry."{registry.addr}"]\n  http = true\n')

    def sides(self, way, ours, peers):
        folder = self.work / "bin"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("hullworks", "buildkitd", "buildctl"):
            (folder / name).symlink_to(ours)
        first = Daemon("ours", self, folder) if way == "daemon" else Hullworks(self, folder)
        return [first, *(PEERS[name][way](name, self, path) for name, path in peers.items() if way in PEERS[name])]


def measure(steps, sides, bench, results):
    """The steps of a case, each on all sides; a side that failed one sits out the rest."""
    standing = list(sides)
    for at, step in enumerate(steps):
        if step.touch:
            touch(bench.work / step.context)
        for side in list(standing):
            dest = bench.work / f"out-{side.name}.tar"
            try:
                if step.cold:
                    side.reset()
                if step.stopped:
                    side.halt()
                else:
                    side.start()
                cost = side.build(step, dest) if step.context else side.rest()
                if step.compression and not dest.exists():
                    raise Failed(f"no archive came out at {dest}")
                results.add(step, side, cost)
            except (Failed, OSError) as error:
                print(f"!! {side.name}, {step.name or step.context}: {error}", file=sys.stderr)
                results.fail(steps[at:], side, str(error))
                standing.remove(side)
            finally:
                dest.unlink(missing_ok=True)
        for side in (side for side in standing if step.push and side.name == "ours"):
            results.floor(step, bench.registry.upload(side.pushed))


def compare(way, bench, options, results):
    with contextlib.ExitStack() as cleanup:
        sides = bench.sides(way, options.ours.resolve(), options.peers)
        for side in sides:
            cleanup.callback(side.reset)
            print(f"{side.name}: {side.version()}")
        results.append(Results(way, sides))
        cleanup.callback(results[-1].show)  # those of a run that is ended early as well
        for n in range(options.rounds):
            for case in (case for case in options.cases if case in CASES[way]):
                print(f"{way}, round {n + 1} of {options.rounds}: {case}", file=sys.stderr)
                measure(CASES[way][case], sides[n % len(sides) :] + sides[: n % len(sides)], bench, results[-1])


def end(number, _):
    """An end from outside ends the daemons too; a second one must not cut the cleaning up short."""
    for each in ENDS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def parse():
    every_case = list(dict.fromkeys(case for way in WAYS for case in CASES[way]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    binary = HERE.parent / "target/x86_64-unknown-linux-musl/release/hullworks"
    parser.add_argument("--ours", type=pathlib.Path, default=binary, metavar="BINARY",
                        help="hullworks, a release build [default: what `cargo xtask image` leaves below target]")
    parser.add_argument("--peers", default="dockerd,buildah", metavar="NAMES",
                        help="whom to compare with: dockerd, buildah, buildkitd=DIR; an empty string for nobody "
                             "[default: %(default)s]")
    parser.add_argument("--ways", default=",".join(WAYS), help="[default: %(default)s]")
    parser.add_argument("--cases", default=",".join(every_case), help="[default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[default: %(default)s]")
    parser.add_argument("--work", type=pathlib.Path, default="/var/tmp/hullworks-bench", metavar="DIR",
                        help="packages, base images, contexts and states [default: %(default)s]")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there as well")
    options = parser.parse_args()
    options.cases, options.ways = ([name for name in given.split(",") if name] for given in (options.cases, options.ways))
    peers = dict(given.partition("=")[::2] for given in options.peers.split(",") if given)
    for given, known in ((options.cases, every_case), (options.ways, WAYS), (peers, PEERS)):
        for name in given:
            if name not in known:
                parser.error(f"`{name}` is none of {', '.join(known)}")
    options.peers = {name: pathlib.Path(path).resolve() if path else None for name, path in peers.items()}
    if "buildkitd" in peers and not (options.peers["buildkitd"] or HERE / "none").joinpath("buildkitd").exists():
        parser.error("`buildkitd=DIR` names a folder with BuildKit's programs")
    if not options.ours.exists():
        parser.error(f"there is no {options.ours}: `cargo xtask image` builds it")
    if os.geteuid():
        parser.error("the peers need root")
    return options


def main():
    options = parse()
    for each in ENDS:
        if signal.getsignal(each) != signal.SIG_IGN:  # as `nohup` has it
            signal.signal(each, end)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    install()
    results = []
    with contextlib.ExitStack() as cleanup:
        registry = Registry(work)
        cleanup.callback(registry.stop)
        registry.fill()
        contexts(work, registry)
        if options.json:
            cleanup.callback(save, options.json, results)
        for way in options.ways:
            compare(way, Bench(work, registry), options, results)
    failed = [reason for result in results for reason in result.reasons.values()]
    if failed:
        sys.exit("\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
