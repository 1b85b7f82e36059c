"""Copies between slabs: what the cpu tier loads and stores at."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from cache_core import _native
from lmcache_cli.probe.figure import Figure, rates

PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class CopyFigure:
    """Copies of ``piece_bytes`` by ``threads`` threads."""

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
