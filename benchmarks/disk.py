"""The disk tier against fio, and how long it takes to open.

Reads and writes of whole chunks, at the same block size and depth, on the same file system, in
turns with fio (libaio, direct where the tier is): a ratio compares what ran in the same round.
Writes count up to the moment they are durable. The directory to open is sparse: full tables, no
payloads.

    python benchmarks/disk.py [--directory DIR] [--mib 512] [--chunk-kib 1024,4096] [--depth 8]
                              [--small-pages] [--repeats 5] [--open-gib 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from cache_core import _native
from cache_core.layout import Addresses
from cache_core.tiers import DiskTier
from cache_core.tiers.disk.directory import Directory
from cache_core.tiers.disk.format import BLOCK, SegmentHeader, pack_table, spend
from cache_core.transfer.chunks import FlatBuffers

INSTALL = "fio is missing, so there is nothing to compare with: apt-get install fio"


@dataclass(frozen=True, slots=True)
class Row:
    """Rates in MiB/s, one per round; ``fio`` is empty where fio is missing."""

    name: str
    chunk_kib: int
    depth: int
    rates: list[float] = field(default_factory=list)
    fio: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        pairs = zip(self.rates, self.fio, strict=False)
        return median(ours / theirs for ours, theirs in pairs) if self.fio else None


class Chunks:
    """``count`` chunks in memory that is there already: on small pages, or on huge ones
    as the cpu tier's, which a disk takes in fewer pieces."""

    def __init__(self, count: int, chunk_bytes: int, huge: bool) -> None:
        nbytes = count * chunk_bytes
        self._owner: object
        if huge:
            slab = _native.Slab(nbytes)
            self._owner, view = slab, slab.view()
        else:
            plain = mmap.mmap(-1, nbytes)
            plain.madvise(mmap.MADV_NOHUGEPAGE)
            self._owner, view = plain, np.frombuffer(plain, dtype=np.uint8)
        view[:] = np.random.default_rng(0).integers(0, 256, nbytes, dtype=np.uint8)
        steps = np.arange(count, dtype=np.uint64) * np.uint64(chunk_bytes)
        self.addresses: Addresses = np.uint64(view.ctypes.data) + steps
        self.chunk_bytes = chunk_bytes
        self.huge = huge
        self.keys = [number.to_bytes(32, "little") for number in range(count)]

    def place(self, rows: list[int]) -> FlatBuffers:
        return FlatBuffers(self.addresses[rows], self.chunk_bytes)


def fio(directory: Path, how: str, chunks: Chunks, depth: int, direct: bool, huge: bool) -> float:
    """MiB/s of one job over a file of its own, which the first call lays out."""
    nbytes = len(chunks.keys) * chunks.chunk_bytes
    command = [
        "fio",
        "--name=lmcache",
        f"--filename={directory / 'fio'}",
        f"--rw={how}",
        f"--size={nbytes}",
        f"--bs={chunks.chunk_bytes}",
        f"--iodepth={depth}",
        f"--direct={int(direct)}",
        "--ioengine=libaio",
        "--iomem=malloc",
        "--iomem_align=2097152",
        "--fallocate=posix",
        "--end_fsync=1",
        "--output-format=json",
    ]
    # glibc 2.35 and later: malloc asks for huge pages, so that both sides have the same memory.
    tunables = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if huge else {}
    environment = os.environ | tunables
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    job = json.loads(done.stdout)["jobs"][0]
    return float(job["read" if "read" in how else "write"]["bw_bytes"]) / (1 << 20)


def compare(root: Path, chunks: Chunks, depth: int, repeats: int) -> list[Row]:
    count, kib = len(chunks.keys), chunks.chunk_bytes >> 10
    reads, writes = Row("read", kib, depth), Row("write and sync", kib, depth)
    rows = list(range(count))
    with_fio = shutil.which("fio") is not None
    for number in range(repeats):
        directory = root / f"{kib}-{number}"
        tier = DiskTier(
            "disk", directory, 4 * count * chunks.chunk_bytes, chunks.chunk_bytes, depth=depth
        )

        def write(tier: DiskTier = tier) -> None:
            stored = tier.write(chunks.keys, chunks.place(rows))
            if not (all(stored) and tier.sync()):
                raise SystemExit("error: not everything could be written; see the log")

        def read(tier: DiskTier = tier) -> None:
            order = random.Random(0).sample(rows, count)
            if not all(tier.read([chunks.keys[row] for row in order], chunks.place(order))):
                raise SystemExit("error: not everything could be read; see the log")

        ours: list[tuple[Row, Callable[[], None]]] = [(writes, write), (reads, read)]
        for (row, call), how in zip(ours, ("write", "randread"), strict=True):
            # Who goes first changes from round to round; writing comes before reading.
            for theirs in (number % 2 == 0, number % 2 == 1):
                if not theirs:
                    row.rates.append(rate(chunks, call))
                elif with_fio:
                    row.fio.append(fio(root, how, chunks, depth, tier.direct, chunks.huge))
        tier.close()
        shutil.rmtree(directory)
        (root / "fio").unlink(missing_ok=True)
    return [reads, writes]


def rate(chunks: Chunks, call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    took = time.perf_counter() - began
    return len(chunks.keys) * chunks.chunk_bytes / (1 << 20) / took


def lay_out(directory: Path, cap_bytes: int, chunk_bytes: int) -> int:
    """A directory as full as a cap allows, without a payload. Returns its chunks."""
    sizes = spend(cap_bytes, chunk_bytes, None, 0, 0)
    Directory(directory).close()
    rng = np.random.default_rng(0)
    left = sizes.capacity
    for number in range(-(-left // sizes.slots)):
        slots = min(left, sizes.slots)
        left -= slots
        header = SegmentHeader(number, slots, chunk_bytes, bytes(32))
        keys = rng.integers(0, 256, (slots, 32), dtype=np.uint8)
        first = 1 + number * sizes.slots
        sequences = np.arange(first, first + slots, dtype=np.uint64)
        with open(directory / f"{number:016x}.seg", "wb") as file:
            file.write(header.pack() + pack_table(header, keys, sequences))
            file.truncate(header.file_bytes)
    return sizes.capacity


def opening(root: Path, gib: int, chunk_bytes: int, repeats: int) -> tuple[int, list[float]]:
    """Chunks found, and seconds per opening, by a cold and then a warm cache of the kernel's."""
    directory = root / "large"
    cap = gib << 30
    count = lay_out(directory, cap, chunk_bytes)
    seconds = []
    for _ in range(repeats):
        for segment in directory.glob("*.seg"):
            fd = os.open(segment, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        began = time.perf_counter()
        tier = DiskTier("disk", directory, cap, chunk_bytes)
        seconds.append(time.perf_counter() - began)
        if len(tier) != count:
            raise SystemExit(f"error: {len(tier)} of {count} chunks were found")
        tier.close()
    return count, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, help="where to make a directory to work in")
    parser.add_argument("--mib", type=int, default=512, help="what each round moves each way")
    parser.add_argument("--chunk-kib", default="1024,4096")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument(
        "--small-pages", action="store_true", help="both on 4 KiB pages, not on huge ones"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--open-gib", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="lmcache-disk-", dir=arguments.directory) as name:
        for kib in map(int, arguments.chunk_kib.split(",")):
            chunk_bytes = kib << 10
            if chunk_bytes % BLOCK:
                raise SystemExit("error: --chunk-kib must be multiples of 4: fio knows no other")
            chunks = Chunks(
                (arguments.mib << 20) // chunk_bytes, chunk_bytes, not arguments.small_pages
            )
            rows += compare(Path(name), chunks, arguments.depth, arguments.repeats)
            del chunks
        found, seconds = opening(Path(name), arguments.open_gib, 1 << 20, arguments.repeats)
    table = Table("what", "chunk KiB", "depth", "MiB/s", "fio MiB/s", "ratio", "n", box=None)
    for row in rows:
        table.add_row(
            row.name,
            str(row.chunk_kib),
            str(row.depth),
            f"{median(row.rates):.0f}",
            f"{median(row.fio):.0f}" if row.fio else "-",
            f"{row.ratio:.2f}" if row.ratio is not None else "-",
            str(len(row.rates)),
        )
    console = Console(width=100)
    console.print(table)
    console.print(
        f"opening {arguments.open_gib} GiB, {found} chunks of 1 MiB:"
        f" {median(seconds):.2f} s (most {max(seconds):.2f} s, n {len(seconds)})"
    )
    if shutil.which("fio") is None:
        print(INSTALL, file=sys.stderr)
    if arguments.json:
        data = {"rows": [asdict(row) for row in rows], "open_s": seconds, "open_chunks": found}
        arguments.json.write_text(json.dumps(data, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
