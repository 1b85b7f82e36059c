"""Kills a process that writes to the disk tier, at random moments, and looks at what is left.

After each kill the directory is opened again: every chunk that is served must be what was stored,
every chunk whose write had returned must be there (it is with the operating system, and survives
the process), discarded ones may come back as they were, and the directory must be within its cap:

    python benchmarks/kill.py [--kills 200] [--directory DIR] [--seed 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.tiers import DiskTier
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import FlatBuffers

CHUNK_BYTES = 20_000
CAP_BYTES = 4 << 20
BATCH = 8
LONGEST_S = 0.15  # from the start of the child to its end


@dataclass(slots=True)
class Findings:
    """Over all kills. Chunks, but for ``kills``, ``most_bytes`` and ``while_opening``."""

    kills: int = 0
    while_opening: int = 0  # kills before the first write
    stored: int = 0
    synced: int = 0
    served: int = 0
    wrong: int = 0
    missing: int = 0
    missing_synced: int = 0
    unreadable: int = 0
    most_bytes: int = 0

    @property
    def good(self) -> bool:
        return not (self.wrong or self.missing or self.missing_synced or self.unreadable)


class Chunks:
    """Memory for a batch of chunks whose bytes follow from their numbers."""

    def __init__(self) -> None:
        stride = -(-CHUNK_BYTES // 4096) * 4096
        self._slab = _native.Slab(BATCH * stride)
        self._rows = self._slab.view().reshape(BATCH, stride)[:, :CHUNK_BYTES]
        steps = np.arange(BATCH, dtype=np.uint64) * np.uint64(stride)
        self._addresses = np.uint64(self._slab.address) + steps

    def fill(self, numbers: list[int]) -> FlatBuffers:
        for row, number in enumerate(numbers):
            self._rows[row] = content(number)
        return self._place(len(numbers))

    def blank(self, count: int) -> FlatBuffers:
        self._rows[:] = 0
        return self._place(count)

    def _place(self, count: int) -> FlatBuffers:
        return FlatBuffers(self._addresses[:count], CHUNK_BYTES)

    def holds(self, row: int, number: int) -> bool:
        return bool(np.array_equal(self._rows[row], content(number)))


def content(number: int) -> NDArray[np.uint8]:
    rng = np.random.Generator(np.random.PCG64(number))
    return rng.integers(0, 256, CHUNK_BYTES, dtype=np.uint8)


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def open_tier(directory: Path) -> DiskTier:
    # Small segments and frequent syncs: a kill finds something going on.
    return DiskTier("disk", directory, CAP_BYTES, CHUNK_BYTES, segment_bytes=400_000, sync_s=0.005)


def write_until_killed(directory: Path, first: int, seed: int, out: int) -> None:
    """The child: says each thing in one line, after a write and before a discard."""

    def say(what: str, numbers: Iterable[int] = ()) -> None:
        os.write(out, f"{what} {' '.join(map(str, numbers))}\n".encode())

    rng = random.Random(seed)
    chunks = Chunks()
    tier = open_tier(directory)
    held = [int.from_bytes(found, "little") for found in tier.recovered()]
    say("open")
    while True:
        numbers = list(range(first, first + rng.randint(1, BATCH)))
        first = numbers[-1] + 1
        surplus = len(held) + len(numbers) - (tier.capacity or 0)
        if surplus > 0:
            # Any of them, so that segments get holes and must be rewritten.
            gone = rng.sample(held, surplus)
            say("discard", gone)
            tier.discard([key(number) for number in gone])
            held = [number for number in held if number not in set(gone)]
        stored = tier.write([key(number) for number in numbers], chunks.fill(numbers))
        numbers = [number for number, ok in zip(numbers, stored, strict=True) if ok]
        held += numbers
        say("store", numbers)
        if rng.random() < 0.1:
            before = set(held)
            if tier.sync():
                say("sync", before)


def kill_one(directory: Path, first: int, rng: random.Random) -> list[str]:
    """What a child said before it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            write_until_killed(directory, first, rng.randrange(1 << 30), writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        lines = _listen(pipe, child, rng.uniform(0, LONGEST_S))
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError(f"the writing process ended by itself: {lines[-3:]}")
    return lines


def _listen(pipe: BinaryIO, child: int, after_s: float) -> list[str]:
    """Reads along, or the child would wait for room in the pipe, and kills it."""
    end = time.monotonic() + after_s
    os.set_blocking(pipe.fileno(), False)
    text = b""
    while time.monotonic() < end:
        text += pipe.read() or b""
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.set_blocking(pipe.fileno(), True)
    text += pipe.read()
    return text.decode().split("\n")[:-1]  # the last line may be cut off


def look(directory: Path, expected: set[int], synced: set[int], findings: Findings) -> set[int]:
    """Opens the directory and reads everything that it serves. Returns that."""
    chunks = Chunks()
    tier = open_tier(directory)
    found = [int.from_bytes(held, "little") for held in tier.recovered()]
    for at in range(0, len(found), BATCH):
        numbers = found[at : at + BATCH]
        good = tier.read([key(number) for number in numbers], chunks.blank(len(numbers)))
        findings.unreadable += len(good) - good.count(Read.HERE)
        findings.served += good.count(Read.HERE)
        findings.wrong += sum(
            ok and not chunks.holds(row, number)
            for row, (number, ok) in enumerate(zip(numbers, good, strict=True))
        )
    tier.close()
    findings.missing += len(expected - set(found))
    findings.missing_synced += len(synced - set(found))
    return set(found)


def du(directory: Path) -> int:
    """Bytes on disk, the directory's own among them."""
    files = [directory, *directory.iterdir()]
    return sum(os.lstat(file).st_blocks * 512 for file in files)


def run(directory: Path, kills: int, seed: int, tell: Callable[[str], None]) -> Findings:
    rng = random.Random(seed)
    findings = Findings()
    held: set[int] = set()
    first = 0
    for number in range(kills):
        lines = kill_one(directory, first, rng)
        synced: set[int] = set()
        for line in lines:
            what, _, rest = line.partition(" ")
            numbers = {int(word) for word in rest.split()}
            if what == "store":
                held |= numbers
                findings.stored += len(numbers)
            elif what == "discard":
                held -= numbers
                synced -= numbers
            elif what == "sync":
                synced = numbers
                findings.synced += len(numbers)
        findings.kills += 1
        findings.while_opening += not any(line.startswith("store") for line in lines)
        findings.most_bytes = max(findings.most_bytes, du(directory))
        # What was being discarded may be there; the cap may have cut off the oldest of it.
        held = look(directory, held, synced, findings)
        first = max([first, *held, *_numbers(lines)]) + 100
        if findings.most_bytes > CAP_BYTES or not findings.good:
            tell(f"kill {number}: {findings}")
            break
    return findings


def _numbers(lines: list[str]) -> list[int]:
    return [int(word) for line in lines for word in line.split()[1:]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--directory", type=Path, help="where to make a directory to work in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with tempfile.TemporaryDirectory(prefix="lmcache-kill-", dir=arguments.directory) as name:
        directory = Path(name) / "tier"
        open_tier(directory).close()
        findings = run(directory, arguments.kills, arguments.seed, print)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(findings), indent=2) + "\n")
    print(
        f"{findings.kills} kills, {findings.while_opening} of them before a write;"
        f" {findings.stored} chunks stored, {findings.served} served after a kill:"
        f" {findings.wrong} wrong, {findings.unreadable} unreadable, {findings.missing} missing"
        f" ({findings.missing_synced} of them synced);"
        f" at most {findings.most_bytes} of {CAP_BYTES} bytes on disk"
    )
    return 0 if findings.good and findings.most_bytes <= CAP_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
