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
        """Room for ``chunks`` chunks, the caller's for as long as the context is open. Raises
        ``MemoryError``."""
        with self._lock:
            slab = self._free.pop() if self._free else None
        slab = slab or _native.Slab(self._nbytes)
        buffer = Buffer(slab, np.uint64(slab.address) + self._steps)
        try:
            yield buffer
        finally:
            with self._lock:
                if not buffer.left and len(self._free) < _KEPT:
                    self._free.append(slab)

    def release(self) -> None:
        """Gives the memory back."""
        with self._lock:
            self._free.clear()
