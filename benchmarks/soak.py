"""Serves from three tiers while all that can fail does, and proves every byte of each hit.

Twelve threads take prompts through a cpu, a disk and a remote tier. Meanwhile Redis evicts, stalls
and is killed, the disk's file system fills, its folder is moved away and back, descriptors run out,
and a process with the same tiers is killed and started again. Exits with 1 if a byte was wrong, a
call took longer than its tiers may, or memory, descriptors or threads grew:

    python benchmarks/soak.py [--minutes 1] [--seed 0] [--threads 12] [--directory DIR]
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as StillWaiting
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cache_core.cache import TieredCache
from cache_core.layout import KVLayout
from cache_core.tiers import DiskTier, MemoryTier, Tier
from cache_core.tiers.remote.url import open_remote
from cache_core.transfer.chunks import FlatBuffers

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.soaking.faults import Redis, Wait, fill, mount, move_away, no_descriptors

LAYOUT = KVLayout(layers=4, kv_heads=4, head_dim=64, dtype="float16", chunk_tokens=16)
CHUNK = LAYOUT.chunk_bytes
DOCUMENTS, LONGEST = 48, 12  # prompts begin with one of the documents, of so many chunks each
CPU_CHUNKS, DISK_BYTES, REDIS_BYTES = 96, 24 << 20, 24 << 20
REMOTE_S, DISK_S = 1.0, 5.0
FAILURES = 3  # of the remote tier in a row, before it is left alone for a while
SLACK_S = 10.0  # for a machine that does other things too
LIMITS_S = {
    "acquire": REMOTE_S + SLACK_S,
    "load": REMOTE_S + DISK_S + SLACK_S,
    "store": FAILURES * REMOTE_S + DISK_S + SLACK_S,
}
GIVE_UP_S = 120.0
_MORE = {"RSS": 32 << 20, "descriptors": 8, "threads": 4}  # that is no growth yet


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def content(number: int) -> NDArray[np.uint8]:
    rng = np.random.Generator(np.random.PCG64(number))
    return rng.integers(0, 256, CHUNK, dtype=np.uint8)


@dataclass(slots=True)
class Findings:
    """Of all threads; ``wrong`` says of each violation what it was."""

    requests: int = 0
    asked: int = 0
    proven: int = 0
    by_tier: Counter[str] = field(default_factory=Counter)
    longest_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LIMITS_S, 0.0))
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def blame(self, text: str) -> None:
        with self.lock:
            self.wrong.append(text)

    def took(self, what: str, seconds: float) -> None:
        with self.lock:
            self.longest_s[what] = max(self.longest_s[what], seconds)
        if seconds > LIMITS_S[what]:
            self.blame(f"{what} took {seconds:.1f} s, of {LIMITS_S[what]:.0f} s that it may")


class Engine:
    """One thread's KV memory, and requests as an engine serves them."""

    def __init__(self, cache: TieredCache, findings: Findings) -> None:
        self._cache, self._findings = cache, findings
        self._rows = np.zeros((LONGEST, CHUNK), dtype=np.uint8)
        steps = np.arange(LONGEST, dtype=np.uint64) * np.uint64(CHUNK)
        self._addresses = np.uint64(self._rows.ctypes.data) + steps

    def serve(self, numbers: list[int]) -> None:
        """Loads what is there, proves it, computes the rest, stores all."""
        loaded = self.load(numbers)
        for row in range(loaded, len(numbers)):
            self._rows[row] = content(numbers[row])
        keys = [key(number) for number in numbers]
        began = time.monotonic()
        stored = self._cache.store(keys, self._place(len(numbers)))
        try:
            stored.result(GIVE_UP_S)
        except StillWaiting:
            self._findings.blame(f"a store has not ended after {GIVE_UP_S:.0f} s")
            raise
        self._findings.took("store", time.monotonic() - began)

    def load(self, numbers: list[int]) -> int:
        """Chunks that were there, each byte of them as it was stored."""
        findings = self._findings
        began = time.monotonic()
        hit = self._cache.acquire([key(number) for number in numbers])
        findings.took("acquire", time.monotonic() - began)
        self._rows[:] = 0
        began = time.monotonic()
        loaded = self._cache.load(hit, self._place(len(hit)))
        findings.took("load", time.monotonic() - began)
        for row, number in enumerate(numbers[: loaded.chunks]):
            if not np.array_equal(self._rows[row], content(number)):
                findings.blame(f"chunk {number} came with wrong bytes, from {loaded.by_tier}")
        with findings.lock:
            findings.requests += 1
            findings.asked += len(numbers)
            findings.proven += loaded.chunks
            findings.by_tier.update(loaded.by_tier)
        return loaded.chunks

    def _place(self, count: int) -> FlatBuffers:
        return FlatBuffers(self._addresses[:count], CHUNK)


def prompt(rng: random.Random) -> list[int]:
    """Some documents are asked for more often than others; one prompt in eight is new."""
    if rng.random() < 1 / 8:
        first = rng.randrange(1 << 40, 1 << 60)
    else:
        first = min(int(rng.expovariate(1 / 12)), DOCUMENTS - 1) * LONGEST
    return list(range(first, first + rng.randint(1, LONGEST)))


def open_cache(folder: Path, remote: str | None, cpu_chunks: int = CPU_CHUNKS) -> TieredCache:
    disk = DiskTier("disk", folder, DISK_BYTES, CHUNK, sync_s=0.2, timeout_s=DISK_S)
    tiers: list[Tier] = [MemoryTier("cpu", cpu_chunks, CHUNK), disk]
    if remote is not None:
        tiers.append(open_remote(remote, CHUNK))
    return TieredCache(LAYOUT, tiers)


def work(cache: TieredCache, findings: Findings, seed: int, end: threading.Event) -> None:
    """One thread."""
    rng, engine = random.Random(seed), Engine(cache, findings)
    try:
        while not end.is_set():
            engine.serve(prompt(rng))
    except BaseException as error:
        findings.blame(f"a thread ended: {error!r}")
        raise


@contextmanager
def working(cache: TieredCache, findings: Findings, threads: int, seed: int) -> Iterator[None]:
    """As many threads as said, until the context is left."""
    end = threading.Event()
    crew = [
        threading.Thread(target=work, args=(cache, findings, seed + n, end)) for n in range(threads)
    ]
    for thread in crew:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in crew:
            thread.join(GIVE_UP_S)
            if thread.is_alive():
                findings.blame("a thread does not end")


@dataclass(slots=True)
class Kills:
    """A process with the same tiers, killed in the midst of its work, and looked at afterwards."""

    folder: Path
    remote: str | None
    findings: Findings
    rng: random.Random
    count: int = 0
    verified: int = 0

    def kill(self, wait: Wait) -> None:
        with self._child("--threads", "4") as child:
            self._look(child)
            wait(self.rng.uniform(0, 1.5))
            child.kill()
            self.count += 1

    def look(self) -> None:
        """The last time: what the last kill left."""
        with self._child("--threads", "0") as child:
            self._look(child)

    def _child(self, *options: str) -> subprocess.Popen[str]:
        words = [sys.executable, __file__, "--child", str(self.folder), *options]
        words += ["--seed", str(self.rng.randrange(1 << 30))]
        words += [] if self.remote is None else ["--remote", self.remote]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def _look(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        said = child.stdout.readline().split()
        if said[:1] != ["verified"]:
            self.findings.blame("a process that was killed can't be started again")
        elif said[2] != "0":
            self.findings.blame(f"{said[2]} violations in a process that was killed")
        else:
            self.verified += int(said[1])


def be_the_child(folder: Path, remote: str | None, threads: int, seed: int) -> None:
    """Proves all that an earlier one left, says so, and goes on until it is killed."""
    findings = Findings()
    cache = open_cache(folder, remote, cpu_chunks=8)
    engine = Engine(cache, findings)
    for document in range(DOCUMENTS):
        engine.load(list(range(document * LONGEST, (document + 1) * LONGEST)))
    print("verified", findings.proven, len(findings.wrong), flush=True)
    if threads:
        with working(cache, findings, threads, seed):
            threading.Event().wait()
    cache.close()


class Levels:
    """Memory, descriptors and threads of this process, twice a second."""

    def __init__(self) -> None:
        self.samples: dict[str, list[int]] = {name: [] for name in _MORE}
        self._process = psutil.Process()

    def sample(self) -> None:
        try:
            now = (self._process.memory_info().rss, self._process.num_fds())
        except OSError:
            return  # no descriptor to look with
        for name, value in zip(_MORE, (*now, threading.active_count()), strict=True):
            self.samples[name].append(value)

    def growth(self, name: str) -> tuple[int, int]:
        """Medians of the second and of the last fifth: the first one is still warming up."""
        values = self.samples[name]
        fifth = max(1, len(values) // 5)
        return int(median(values[fifth : 2 * fifth] or values)), int(median(values[-fifth:]))

    def blame(self, findings: Findings) -> None:
        for name, more in _MORE.items():
            before, after = self.growth(name)
            if after > before * 1.1 + more:
                findings.blame(f"{name} grew from {before} to {after}")


def soak(folder: Path, minutes: float, threads: int, seed: int, tell: Callable[[str], None]) -> int:
    rng, findings, levels = random.Random(seed), Findings(), Levels()
    faults: dict[str, Callable[[Wait], None]] = {}
    happened: Counter[str] = Counter()
    with ExitStack() as stack:
        redis = None
        if shutil.which("redis-server") is not None:
            redis = Redis(folder, REDIS_BYTES, REMOTE_S)
            stack.callback(redis.kill)
            faults["redis stalls"], faults["redis is killed"] = redis.stall, redis.restart
        else:
            tell("no redis-server here: two tiers, and its faults are left out")
        disks = folder / "disks"
        disks.mkdir()
        if mount(disks, 3 * DISK_BYTES):
            stack.callback(subprocess.run, ["umount", "--lazy", str(disks)], check=False)
            faults["the disk is full"] = lambda wait: fill(disks, wait)
        else:
            tell("no file system can be mounted here: a disk that fills is left out")
        remote = None if redis is None else redis.url
        kills = Kills(disks / "killed", remote, findings, rng)
        faults["a process is killed"] = kills.kill
        faults["the folder is moved"] = lambda wait: move_away(disks / "tier", wait)
        faults["no descriptors"] = no_descriptors
        cache = open_cache(disks / "tier", remote)
        began = time.monotonic()
        end = began + minutes * 60
        now = "nothing fails"

        def watch() -> None:
            shown = 0.0
            while time.monotonic() < end:
                levels.sample()
                if time.monotonic() - began >= shown + 10:
                    shown += 10
                    tell(line(shown, findings, levels, now))
                time.sleep(0.5)

        def wait(seconds: float) -> None:
            time.sleep(max(0.0, min(seconds, end - time.monotonic())))

        watcher = threading.Thread(target=watch)
        with working(cache, findings, threads, seed):
            watcher.start()
            wait(1)
            while time.monotonic() < end:
                for now in rng.sample(sorted(faults), len(faults)):
                    if time.monotonic() >= end:
                        break
                    faults[now](wait)
                    happened[now] += 1
                    now = "nothing fails"
                    wait(1)
            watcher.join()
        kills.look()
        cache.flush()
        cache.close()
    levels.blame(findings)
    Console(width=100).print(closing(findings, levels, happened, kills))
    for text, count in Counter(findings.wrong).most_common(20):
        print(f"violation, {count} times: {text}")
    return 1 if findings.wrong else 0


def line(seconds: float, findings: Findings, levels: Levels, now: str) -> str:
    rss, fds, threads = (values[-1] if values else 0 for values in levels.samples.values())
    share = findings.proven / max(1, findings.asked)
    return (
        f"{seconds:5.0f} s  {findings.requests} requests, {share:.0%} hit, {findings.proven} chunks"
        f" proven, {len(findings.wrong)} violations, RSS {rss >> 20} MiB, {fds} descriptors,"
        f" {threads} threads; {now}"
    )


def closing(findings: Findings, levels: Levels, happened: Counter[str], kills: Kills) -> Table:
    table = Table("what", "found", box=None)
    tiers = ", ".join(f"{name} {count}" for name, count in sorted(findings.by_tier.items()))
    rows = {
        "requests": f"{findings.requests}",
        "chunks proven": f"{findings.proven} of {findings.asked} asked for ({tiers})",
        "bytes proven": f"{findings.proven * CHUNK / (1 << 30):.1f} GiB",
        "after kills": f"{kills.verified} chunks proven, {kills.count} kills",
        "faults": ", ".join(f"{name} {count}" for name, count in sorted(happened.items())),
    }
    for what, seconds in findings.longest_s.items():
        rows[f"longest {what}"] = f"{seconds:.2f} s, of {LIMITS_S[what]:.0f} s"
    for name in _MORE:
        before, after = levels.growth(name)
        scale, unit = (20, " MiB") if name == "RSS" else (0, "")
        rows[name] = f"{before >> scale}{unit} early, {after >> scale}{unit} late"
    rows["violations"] = f"{len(findings.wrong)}"
    for what, found in rows.items():
        table.add_row(what, found)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=12)
    parser.add_argument("--directory", type=Path, help="where to make a directory to work in")
    parser.add_argument("--verbose", action="store_true", help="show what the tiers log")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--remote", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.WARNING if arguments.verbose else logging.CRITICAL, format="%(message)s"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as for Ctrl-C
    if arguments.child is not None:
        be_the_child(arguments.child, arguments.remote, arguments.threads, arguments.seed)
        return 0
    with tempfile.TemporaryDirectory(prefix="lmcache-soak-", dir=arguments.directory) as name:
        return soak(
            Path(name),
            arguments.minutes,
            arguments.threads,
            arguments.seed,
            lambda text: print(text, flush=True),
        )


if __name__ == "__main__":
    sys.exit(main())
