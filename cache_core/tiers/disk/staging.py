"""Memory between a disk and a place: of an engine's no disk ever reads or writes a byte."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cache_core import _native
from cache_core.place import Addresses
from cache_core.tiers.disk.crew import Hung
from cache_core.tiers.disk.format import rounded

_BYTES = 64 << 20
_KEPT = 2  # slabs: one for the writer, one for a reader


@dataclass(frozen=True, slots=True)
class Buffer:
    """Room for chunks, for as long as somebody has this object."""

    slab: _native.Slab
    addresses: Addresses


class Staging:
    """Slabs of ``chunks`` aligned chunks, taken when first needed and kept for the next caller."""

    def __init__(self, chunk_bytes: int, depth: int) -> None:
        stride = rounded(chunk_bytes)
        self.chunks = max(depth, min(16 * depth, _BYTES // stride))
        self._steps = np.arange(self.chunks, dtype=np.uint64) * np.uint64(stride)
        self._nbytes = self.chunks * stride
        self._lock = threading.Lock()
        self._free: list[_native.Slab] = []

    @contextmanager
    def borrow(self) -> Iterator[Buffer]:
        """Room for ``chunks`` chunks, the caller's for as long as the context is open. One that
        is left by :class:`Hung`, or by Ctrl-C, is not used again: the disk may still write to it.
        Raises ``MemoryError``."""
        with self._lock:
            slab = self._free.pop() if self._free else None
        slab = slab or _native.Slab(self._nbytes)
        try:
            yield Buffer(slab, np.uint64(slab.address) + self._steps)
        except Exception as error:
            if not isinstance(error, Hung):
                self._give(slab)
            raise
        else:
            self._give(slab)

    def release(self) -> None:
        """Gives the memory back."""
        with self._lock:
            self._free.clear()

    def _give(self, slab: _native.Slab) -> None:
        with self._lock:
            if len(self._free) < _KEPT:
                self._free.append(slab)
