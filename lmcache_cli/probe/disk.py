"""Measures the disk under a folder: reads, writes and a mix of them at several sizes and depths,
cold reads through the page cache, and what a sync costs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from cache_core import _native
from cache_core.tiers.disk.directory import does_direct
from lmcache_cli.probe.media import Figure, ProbeError, rates, timed_figure

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
