"""Measured figures with their spread: copies in memory, and a remote tier."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from cache_core import _native
from cache_core.tiers.remote.url import open_remote, redacted
from cache_core.tiers.tier import TierError
from cache_core.transfer.chunks import FlatBuffers
from lmcache_cli.errors import EXIT_FAILED, MissingError, UserError


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
    run()
    values = []
    for _ in range(repeats):
        began = time.perf_counter()
        moved = run()
        values.append(moved / (time.perf_counter() - began))
    return Figure(median(values), min(values), max(values), repeats, "B/s")


def timed_figure(run: Callable[[], None], repeats: int) -> Figure:
    """Measures the seconds per call of ``run``, after one call that does not count."""
    run()
    values = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        values.append(time.perf_counter() - began)
    return Figure(median(values), min(values), max(values), repeats, "s")


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
    steps = np.arange(count, dtype=np.uint64) * np.uint64(PIECE)
    sizes = np.full(count, PIECE, dtype=np.uint64)
    here, there = np.uint64(source.address) + steps, np.uint64(target.address) + steps
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
    steps = np.arange(COUNT, dtype=np.uint64) * np.uint64(CHUNK)
    source = FlatBuffers(np.uint64(slab.address) + steps, CHUNK)
    target = FlatBuffers(np.uint64(back.address) + steps, CHUNK)
    run_id = os.urandom(16)
    keys = [hashlib.sha256(run_id + bytes([i])).digest() for i in range(COUNT)]

    def need(done: Sequence[int], what: str) -> int:
        if not all(done):
            raise ProbeError(f"remote probe failed: {redacted(url)}: {what} of a chunk failed")
        return COUNT * CHUNK

    try:
        write = rates(lambda: need(tier.write(keys, source), "a write"), repeats)
        read = rates(lambda: need(tier.read(keys, target), "a read"), repeats)

        def look() -> None:
            need(tier.contains(keys), "a look-up")

        look_up = timed_figure(look, repeats)
        if not np.array_equal(slab.view(), back.view()):
            raise ProbeError(f"remote probe failed: {redacted(url)} returned other bytes")
    finally:
        tier.discard(keys)
        tier.close()
    return RemoteProbe(redacted(url), CHUNK, COUNT, write, read, look_up)
