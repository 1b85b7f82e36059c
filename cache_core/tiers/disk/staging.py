"""Memory between a disk and a place: of an engine's no disk ever reads or writes a byte."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cache_core import _native
from cache_core.place import Addresses
from cache_core.tiers.disk.format import rounded

_BYTES = 64 << 20
_KEPT = 2  # slabs: one for the writer, one for a reader


@dataclass(slots=True)
class Buffer:
    """Room for chunks, for as long as somebody has this object. ``left`` says that a call that was
    left behind may still use it: nobody else may then."""

    slab: _native.Slab
    addresses: Addresses
    left: bool = False


class Staging:
    """Slabs of aligned chunks, ``chunks`` at most, taken when needed. The largest two are kept for
    the next callers; beside them each caller has what it needs: many may read at once."""

    def __init__(self, chunk_bytes: int, depth: int) -> None:
        stride = rounded(chunk_bytes)
        self.chunks = max(2, depth, min(16 * depth, _BYTES // stride))
        self._steps = np.arange(self.chunks, dtype=np.uint64) * np.uint64(stride)
        self._stride = stride
        self._lock = threading.Lock()
        self._free: list[_native.Slab] = []

    @contextmanager
    def borrow(self, chunks: int) -> Iterator[Buffer]:
        """Room for so many chunks, or for the most that there is for one caller, for as long as the
        context is open. Raises ``MemoryError``."""
        chunks = min(chunks, self.chunks)
        nbytes = chunks * self._stride
        with self._lock:
            slab = next((kept for kept in self._free if kept.nbytes >= nbytes), None)
            if slab is not None:
                self._free.remove(slab)
        slab = slab or _native.Slab(nbytes)
        buffer = Buffer(slab, np.uint64(slab.address) + self._steps[:chunks])
        try:
            yield buffer
        finally:
            with self._lock:
                if not buffer.left:
                    self._free = sorted([*self._free, slab], key=lambda kept: kept.nbytes)[-_KEPT:]

    def release(self) -> None:
        """Gives the memory back."""
        with self._lock:
            self._free.clear()
