"""A disk tier, and chunks whose bytes follow from their numbers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.layout import Addresses
from cache_core.tiers.disk import DiskTier
from cache_core.transfer.chunks import FlatBuffers
from tests.cache_core.memory_engine import key

MOST = 64  # chunks in one call


def du(directory: Path) -> int:
    """Bytes that a directory takes on disk, its own among them."""
    files = [directory, *directory.rglob("*")]
    return sum(os.lstat(file).st_blocks * 512 for file in files)


def fast_folder(fallback: Path) -> Path:
    """Where files cost little: memory, if this machine has a file system in it."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else fallback


class DiskWorld:
    """Memory for ``MOST`` chunks, ``shift`` bytes off what O_DIRECT needs, and verbs on numbers."""

    def __init__(self, chunk_bytes: int, shift: int = 0) -> None:
        self.chunk_bytes = chunk_bytes
        stride = -(-(chunk_bytes + shift) // 4096) * 4096
        self._slab = _native.Slab(MOST * stride)
        rows = self._slab.view().reshape(MOST, stride)
        self.rows: NDArray[np.uint8] = rows[:, shift : shift + chunk_bytes]
        steps = np.arange(MOST, dtype=np.uint64) * np.uint64(stride)
        self.addresses: Addresses = np.uint64(self._slab.address + shift) + steps
        self._known: dict[int, NDArray[np.uint8]] = {}

    def content(self, number: int) -> NDArray[np.uint8]:
        if number not in self._known:
            rng = np.random.Generator(np.random.PCG64(number))
            self._known[number] = rng.integers(0, 256, self.chunk_bytes, dtype=np.uint8)
        return self._known[number]

    def place(self, count: int) -> FlatBuffers:
        return FlatBuffers(self.addresses[:count], self.chunk_bytes)

    def put(self, tier: DiskTier, numbers: list[int], like: int = 0) -> list[bool]:
        """Writes; chunk n's bytes are those of n + ``like``."""
        for row, number in enumerate(numbers):
            self.rows[row] = self.content(number + like)
        return tier.write([key(number) for number in numbers], self.place(len(numbers)))

    def get(self, tier: DiskTier, numbers: list[int], like: int = 0) -> list[int]:
        """Reads; returns those that were served. A wrong byte is an error."""
        served = []
        for at in range(0, len(numbers), MOST):
            batch = numbers[at : at + MOST]
            self.rows[:] = 0
            good = tier.read([key(number) for number in batch], self.place(len(batch)))
            for row, (number, ok) in enumerate(zip(batch, good, strict=True)):
                if ok:
                    assert np.array_equal(self.rows[row], self.content(number + like)), number
                    served.append(number)
        return served
