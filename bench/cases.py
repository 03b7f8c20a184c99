"""What is built, and what we hold ourselves to."""

import dataclasses
import os
import random
import time

from registry import debian_tar

AT_ONCE = 20


@dataclasses.dataclass(frozen=True)
class Step:
    name: str  # "" where the step only prepares the next one
    context: str = ""  # "" where nothing is built: the daemon starts
    cold: bool = False  # on an empty state
    stopped: bool = False  # with no process of the side running
    no_cache: bool = False
    touch: bool = False  # after one file of the context was written
    compression: str = ""  # export as an OCI archive
    push: bool = False  # to the registry
    at_once: bool = False  # the contexts below this one, all at the same time
    delay: int | None = None  # over TLS, on a line where there and back takes so many milliseconds longer


def copied(what, context, **line):
    return [
        Step(f"{what}: first COPY", context, cold=True, **line),
        Step(f"{what}: one changed", context, touch=True, **line),
        Step(f"{what}: none changed", context, **line),
    ]


RUN50 = [
    Step("", "run50", cold=True),
    Step("50 RUN true, nothing cached", "run50", no_cache=True),
    Step("50 RUN true, all cached", "run50"),
]
ALIKE = {
    "run50": RUN50,
    "fan16": [Step("", "busybox", cold=True), Step("16 stages x 5 RUN + COPY --from", "fan16")],
    "files": [*copied("20,000 files", "files"), Step("20,000 files: export OCI gzip", "files", compression="gzip")],
    "big": [
        Step("470 MB: COPY", "big", cold=True),
        Step("470 MB: export OCI gzip", "big", compression="gzip"),
        Step("470 MB: export OCI zstd", "big", compression="zstd"),
        Step("470 MB: push", "big", push=True),
    ],
    "pull": [Step("pull + unpack 190 MB gzip, RUN true", "pull", cold=True)],
}
CASES = {
    "daemon": {
        "start": [Step("daemon start to ready", cold=True, stopped=True)],
        **ALIKE,
        "many": [Step("", "busybox", cold=True), Step(f"{AT_ONCE} builds at once", "many", at_once=True)],
        "sync": [step for delay in (0, 5) for step in copied(f"50,000 files, TLS, {delay} ms", "sync", delay=delay)],
    },
    "daemonless": {
        "start": [Step("", "empty", cold=True), Step("start-up + a build of nothing", "empty", stopped=True)],
        **ALIKE,
    },
}
WAYS = list(CASES)

PEAK, PROGRAMS = "most of all steps", "programs on disk"
# Ours/BuildKit: where we want to be at most. Of `sync` we want what we want of `files`.
BUDGETS = {
    "daemon": {
        "daemon start to ready": 0.3,
        "50 RUN true, nothing cached": 0.15,
        "50 RUN true, all cached": 0.4,
        "16 stages x 5 RUN + COPY --from": 0.25,
        "20,000 files: first COPY": 0.4,
        "20,000 files: one changed": 0.3,
        "20,000 files: none changed": 0.3,
        "20,000 files: export OCI gzip": 0.35,
        "470 MB: COPY": 0.5,
        "470 MB: export OCI gzip": 0.3,
        "470 MB: export OCI zstd": 0.3,
        "470 MB: push": 0.7,
        "pull + unpack 190 MB gzip, RUN true": 0.5,
        f"{AT_ONCE} builds at once": 0.3,
        **{step.name: 0.4 for step in CASES["daemon"]["sync"]},
    },
    "daemonless": {"50 RUN true, all cached": 0.2, "20,000 files: one changed": 0.15},
}
MEMORY_BUDGETS = {"daemon": {"daemon start to ready": 0.25, PEAK: 0.35, PROGRAMS: 0.2}, "daemonless": {}}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def touch(context):
    write(context / "src/d0/f0.js", f"touched {time.time()}")


def contexts(work, registry):
    """Makes them all; those that take time, when they are not there yet."""
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
    for i in range(AT_ONCE):
        steps = f"RUN echo {i} > /a\nRUN cat /a\nRUN echo {i} > /b\n"
        write(work / f"many/{i}/Dockerfile", f"FROM {busybox}\n{steps}")
    many_files(work / "files", 200, (50, 900))
    many_files(work / "sync", 500, (20, 400))
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


def many_files(context, folders, words_of_a_file):
    """A hundred files in each folder, like programs in size and in how they compress."""
    if (context / "Dockerfile").exists():
        return
    alphabet = b"abcdefghijklmnopqrstuvwxyz {}();=\n"
    words = [bytes(random.choices(alphabet, k=random.randint(3, 12))) for _ in range(3000)]
    for d in range(folders):
        os.makedirs(context / f"src/d{d}", exist_ok=True)
        for f in range(100):
            text = b" ".join(random.choices(words, k=random.randint(*words_of_a_file)))
            (context / f"src/d{d}/f{f}.js").write_bytes(text)
    write(context / "Dockerfile", "FROM scratch\nCOPY src /src\n")
