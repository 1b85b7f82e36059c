"""Provides tiers in CPU memory: the cpu tier, the device tier of a CPU engine, and one that holds
keys and no bytes: with it the Ledger is a simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cache_core import _native
from cache_core.layout import Addresses
from cache_core.memory_limits import require_memory
from cache_core.tiers.tier import Read, Tier
from cache_core.transfer.chunks import ChunkBuffers, FlatBuffers

SLAB_BYTES = 1 << 30
_ALIGN = 4096


class Memory(Protocol):
    """Memory for chunks: their addresses, and whatever keeps them alive."""

    def addresses(self, chunks: int, stride: int) -> Addresses:
        """Returns ``chunks`` addresses of ``stride`` bytes each, pre-faulted. Raises
        ``MemoryError``."""

    def release(self) -> None:
        """Gives the memory back."""


class Slab(Protocol):
    """A piece of memory that lasts for as long as the object lives."""

    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class SlabMemory:
    """Slabs of up to 1 GiB, mapped and faulted in once: writing to a fresh page costs several
    times what writing to a warm one does. What does not fit into what the process may still take
    (the machine, a container's limit, its own) is refused before the first of them."""

    def __init__(self) -> None:
        self._slabs: list[Slab] = []

    def _slab(self, nbytes: int) -> Slab:
        return _native.Slab(nbytes)

    def addresses(self, chunks: int, stride: int) -> Addresses:
        require_memory(chunks * stride, "a tier in memory")
        per_slab = max(1, SLAB_BYTES // stride)
        parts: list[Addresses] = []
        before = len(self._slabs)
        try:
            while chunks > 0:
                count = min(chunks, per_slab)
                slab = self._slab(count * stride)
                self._slabs.append(slab)
                steps = np.arange(count, dtype=np.uint64) * np.uint64(stride)
                parts.append(np.uint64(slab.address) + steps)
                chunks -= count
        except BaseException:
            del self._slabs[before:]
            raise
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)

    def release(self) -> None:
        self._slabs.clear()


class MemoryTier(Tier):
    """A tier of chunks at fixed addresses, taken from and returned to a free list.

    ``capacity`` is in chunks of ``chunk_bytes``; all memory is taken, and faulted in, here. Raises
    ``MemoryError`` if the machine has not that much.
    """

    in_memory = keeps_time = True

    def __init__(
        self, name: str, capacity: int, chunk_bytes: int, memory: Memory | None = None
    ) -> None:
        self.name = name
        self.capacity: int | None = capacity
        self._chunk_bytes = chunk_bytes
        # Page-aligned chunks: whole cache lines, and later tiers can write them with O_DIRECT.
        stride = -(-chunk_bytes // _ALIGN) * _ALIGN
        self._memory = memory or SlabMemory()
        self._addresses = self._memory.addresses(capacity, stride)
        self._free = list(range(capacity - 1, -1, -1))
        self._slots: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [key in self._slots for key in keys]

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        slots = [self._slots.get(key) for key in keys]
        found = [slot is not None for slot in slots]
        if place is not None and any(found):
            rows = [i for i, slot in enumerate(slots) if slot is not None]
            sources = self._addresses[[slot for slot in slots if slot is not None]]
            (place if len(rows) == len(keys) else place.pick(rows)).copy_from(sources)
        return Read.of(found)

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        if place is None:
            raise ValueError(f"the {self.name} tier keeps bytes: write() needs a place")
        rows: list[int] = []
        taken: list[int] = []
        fresh: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            slot = self._slots.get(key, fresh.get(key))
            if slot is None:
                if not self._free:
                    continue
                slot = self._free.pop()
                fresh[key] = slot
            rows.append(row)
            taken.append(slot)
        try:
            if rows:
                source = place if len(rows) == len(keys) else place.pick(rows)
                source.copy_to(self._addresses[taken])
        except BaseException:
            self._free.extend(fresh.values())
            raise
        # Only now readers can find the chunks: their bytes are whole.
        self._slots.update(fresh)
        stored = [False] * len(keys)
        for row in rows:
            stored[row] = True
        return stored

    def discard(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            slot = self._slots.pop(key, None)
            if slot is not None:
                self._free.append(slot)

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        return FlatBuffers(self._addresses[[self._slots[key] for key in keys]], self._chunk_bytes)

    def close(self) -> None:
        self._slots.clear()
        self._free.clear()
        self._addresses = self._addresses[:0]
        self._memory.release()


class NullTier(Tier):
    """Remembers keys; every read and write succeeds and moves nothing."""

    keeps_time = True

    def __init__(self, name: str, capacity: int | None) -> None:
        self.name = name
        self.capacity = capacity
        self._keys: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [key in self._keys for key in keys]

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        return Read.of(self.contains(keys))

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        stored = []
        for key in keys:
            fits = self.capacity is None or key in self._keys or len(self._keys) < self.capacity
            if fits:
                self._keys.add(key)
            stored.append(fits)
        return stored

    def discard(self, keys: Sequence[bytes]) -> None:
        self._keys.difference_update(keys)

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        return None

    def close(self) -> None:
        self._keys.clear()
