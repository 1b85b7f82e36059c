"""Measured figures with their spread: copies in memory, a remote tier, and the disk
under a folder: reads, writes and a mix of them at several sizes and depths, cold reads through the
page cache, and what a sync costs."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from cache_core import _native
from cache_core.tiers.disk.directory import does_direct
from cache_core.tiers.remote.url import open_remote, redacted
from cache_core.tiers.tier import TierError
from cache_core.transfer.chunks import FlatBuffers, addresses_from
from lmcache_cli.errors import EXIT_FAILED, MissingError, UserError

_T = TypeVar("_T")


class ProbeError(UserError):
    """A call that was to be measured failed: there is no figure, and no probe file."""

    exit_code = EXIT_FAILED


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure: median, smallest and largest of ``n`` repeats, in ``unit``."""

    median: float
    low: float
    high: float
    n: int
    unit: str


def rates(run: Callable[[], int], repeats: int) -> Figure:
    """Measures the bytes per second of ``run``, which returns how many bytes it moved; the first
    call, which warms up, does not count."""
    return figure_of([moved / seconds for moved, seconds in _timed(run, repeats)], "B/s")


def timed_figure(run: Callable[[], object], repeats: int) -> Figure:
    """Measures the seconds per call of ``run``, after one call that does not count."""
    return figure_of([seconds for _, seconds in _timed(run, repeats)], "s")


def _timed(run: Callable[[], _T], repeats: int) -> Iterator[tuple[_T, float]]:
    run()
    for _ in range(repeats):
        began = time.perf_counter()
        answer = run()
        yield answer, time.perf_counter() - began


def figure_of(values: Sequence[float], unit: str) -> Figure:
    """Returns the figure of what was measured again and again."""
    return Figure(median(values), min(values), max(values), len(values), unit)


PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class CopyFigure:
    """The rate of copies of ``piece_bytes`` by ``threads`` threads."""

    threads: int
    piece_bytes: int
    rate: Figure


def probe_memory(total: int, repeats: int) -> list[CopyFigure]:
    """Copies ``total`` bytes (well over the last-level cache, or the figure is the cache's) from
    one warm slab to another. Takes twice ``total`` of memory; raises ``MemoryError``."""
    count = max(1, total // PIECE)
    source, target = _native.Slab(count * PIECE), _native.Slab(count * PIECE)
    source.view()[:] = 1
    sizes = np.full(count, PIECE, dtype=np.uint64)
    here, there = (addresses_from(slab.address, count, PIECE) for slab in (source, target))
    found = []
    for threads in sorted({1, min(4, os.cpu_count() or 1)}):

        def run(threads: int = threads) -> int:
            _native.copy(there, here, sizes, threads)
            return count * PIECE

        found.append(CopyFigure(threads, PIECE, rates(run, repeats)))
    return found


CHUNK = 1 << 20
COUNT = 32


@dataclass(frozen=True, slots=True)
class RemoteProbe:
    """The figures of a remote tier: batches of ``count`` chunks of ``chunk_bytes``, and one
    existence check of all of them."""

    url: str
    chunk_bytes: int
    count: int
    write: Figure
    read: Figure
    look_up: Figure


def probe_remote(url: str, repeats: int) -> RemoteProbe:
    """Writes chunks of its own to the server, reads them back, compares, and removes them.

    Raises ``MissingError`` if the server does not answer and :class:`ProbeError` if a call fails.
    """
    try:
        tier = open_remote(url, CHUNK)
        tier.ping()
    except TierError as error:
        raise MissingError(f"--remote: {error}") from error
    slab, back = _native.Slab(COUNT * CHUNK), _native.Slab(COUNT * CHUNK)
    slab.view()[:] = np.frombuffer(os.urandom(CHUNK), dtype=np.uint8).repeat(COUNT)
    source = FlatBuffers(addresses_from(slab.address, COUNT, CHUNK), CHUNK)
    target = FlatBuffers(addresses_from(back.address, COUNT, CHUNK), CHUNK)
    run_id = os.urandom(16)
    keys = [hashlib.sha256(run_id + bytes([i])).digest() for i in range(COUNT)]

    def need(done: Sequence[int], what: str) -> int:
        if not all(done):
            raise ProbeError(f"remote probe failed: {redacted(url)}: {what} of a chunk failed")
        return COUNT * CHUNK

    try:
        write = rates(lambda: need(tier.write(keys, source), "a write"), repeats)
        read = rates(lambda: need(tier.read(keys, target), "a read"), repeats)
        look_up = timed_figure(lambda: need(tier.contains(keys), "a look-up"), repeats)
        if not np.array_equal(slab.view(), back.view()):
            raise ProbeError(f"remote probe failed: {redacted(url)} returned other bytes")
    finally:
        tier.discard(keys)
        tier.close()
    return RemoteProbe(redacted(url), CHUNK, COUNT, write, read, look_up)


SIZES = (256 << 10, 1 << 20, 4 << 20)
DEPTHS = (1, 4, 8)
CALLS = ("read", "write", "mixed")
_BLOCK = 4096
_PER_RUN = 128 << 20  # bytes that one measured run moves


@dataclass(frozen=True, slots=True)
class DiskFigure:
    """The rate of one kind of call, ``depth`` calls of ``size_bytes`` under way at once.
    ``direct``: around the page cache; otherwise reads are cold (the cache was made to forget the
    file) and writes include the sync."""

    mode: str
    size_bytes: int
    depth: int
    direct: bool
    rate: Figure


@dataclass(frozen=True, slots=True)
class DiskProbe:
    """All figures of the disk under one folder."""

    folder: str
    direct: bool
    figures: tuple[DiskFigure, ...]
    fdatasync: Figure


def probe_disk(
    folder: Path, file_bytes: int, repeats: int, on_step: Callable[[str], None]
) -> DiskProbe:
    """Makes a file of ``file_bytes`` of random data in ``folder``, measures, and removes it.
    Raises :class:`ProbeError` for any call that fails or moves less than asked."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        direct = does_direct(folder)
        with _file(folder, file_bytes) as path:
            figures = []
            kinds = [True, False] if direct else [False]
            for around, size, depth, mode in product(kinds, SIZES, DEPTHS, CALLS):
                if not around and mode == "mixed":
                    continue  # a read of what was just written is no cold read
                kind = "O_DIRECT" if around else "page cache"
                on_step(f"disk: {mode} {size >> 10} KiB x {depth}, {kind}")
                with _Calls(path, file_bytes, size, depth, around) as calls:
                    rate = rates(lambda calls=calls, mode=mode: calls.run(mode), repeats)  # type: ignore[misc]
                figures.append(DiskFigure(mode, size, depth, around, rate))
            on_step("disk: fdatasync")
            sync = _sync(path, max(5, repeats))
    except OSError as error:
        reason = error.strerror or error
        raise ProbeError(f"disk probe failed in {folder}: {reason}; nothing was saved") from error
    return DiskProbe(str(folder), direct, tuple(figures), sync)


@contextmanager
def _file(folder: Path, size: int) -> Iterator[Path]:
    path = folder / f".lmcache-probe-{os.getpid()}"
    noise = random.Random(0).randbytes(1 << 20)  # no file system can shrink it
    try:
        with path.open("wb") as file:
            for _ in range(size >> 20):
                file.write(noise)
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


class _Calls:
    """Reads and writes at random places of the file, from memory of its own."""

    def __init__(self, path: Path, file_bytes: int, size: int, depth: int, direct: bool) -> None:
        flags = os.O_RDWR | (os.O_DIRECT if direct else 0)
        self._fd = os.open(path, flags)
        self._direct = direct
        self._size = size
        self._places = file_bytes // size
        self._count = max(depth, _PER_RUN // size)
        self._slabs = [_native.Slab(size) for _ in range(depth)]
        for slab in self._slabs:
            slab.view()[:] = 7
        self._depth = depth
        self._pool = ThreadPoolExecutor(depth)
        self._random = random.Random(1)

    def __enter__(self) -> _Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        os.close(self._fd)

    def run(self, mode: str) -> int:
        """Runs all calls once; returns the bytes moved."""
        places = [self._random.randrange(self._places) for _ in range(self._count)]
        if mode == "read" and not self._direct:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

        def work(worker: int) -> None:
            buffer = memoryview(self._slabs[worker].view())  # type: ignore[arg-type]
            for i in range(worker, self._count, self._depth):
                reads = mode == "read" or (mode == "mixed" and i % 2 == 0)
                move = os.preadv if reads else os.pwritev
                moved = move(self._fd, [buffer], places[i] * self._size)
                if moved != self._size:
                    raise OSError(f"a {mode} moved {moved} of {self._size} bytes")

        list(self._pool.map(work, range(self._depth)))
        if mode != "read" and not self._direct:
            os.fdatasync(self._fd)
        return self._count * self._size


def _sync(path: Path, repeats: int) -> Figure:
    fd = os.open(path, os.O_RDWR)
    block = os.urandom(_BLOCK)
    place = iter(range(1 << 30))
    try:

        def run() -> None:
            os.pwrite(fd, block, (next(place) % 64) * _BLOCK)
            os.fdatasync(fd)

        return timed_figure(run, repeats)
    finally:
        os.close(fd)
