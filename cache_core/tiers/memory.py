"""Provides tiers in CPU memory: the cpu tier, the device tier of a CPU engine, and one that holds
keys and no bytes: with it the Ledger is a simulator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cache_core import _native
from cache_core.layout import Addresses
from cache_core.memory_limits import require_memory
from cache_core.tiers.tier import Read, Tier
from cache_core.transfer.chunks import ChunkBuffers, FlatBuffers, addresses_from

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
                parts.append(addresses_from(slab.address, count, stride))
                chunks -= count
        except BaseException:
            del self._slabs[before:]
            raise
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)

    def release(self) -> None:
        self._slabs.clear()


class SlotTier(Tier):
    """A tier of ``capacity`` chunks in slots of memory that is taken at once, from a free list; a
    subclass knows how to copy between slots and buffers."""

    in_memory = keeps_time = True

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity: int | None = capacity
        self._free = list(range(capacity - 1, -1, -1))
        self._slots: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [key in self._slots for key in keys]

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        found = self.contains(keys)
        rows = [row for row, held in enumerate(found) if held]
        if place is not None and rows:
            target = place if len(rows) == len(keys) else place.pick(rows)
            self._copy_out([self._slots[keys[row]] for row in rows], target)
        return Read.of(found)

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        if place is None:
            raise ValueError(f"the {self.name} tier keeps bytes: write() needs a place")
        taken: dict[int, int] = {}
        fresh: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key not in self._slots and key not in fresh:
                if not self._free:
                    continue
                fresh[key] = self._free.pop()
            taken[row] = self._slots.get(key, fresh.get(key, 0))
        try:
            if taken:
                source = place if len(taken) == len(keys) else place.pick(list(taken))
                self._copy_in(list(taken.values()), source)
        except BaseException:
            self._free.extend(fresh.values())
            raise
        # Only now readers can find the chunks: their bytes are whole.
        self._slots.update(fresh)
        return [row in taken for row in range(len(keys))]

    def discard(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            slot = self._slots.pop(key, None)
            if slot is not None:
                self._free.append(slot)

    def close(self) -> None:
        self._slots.clear()
        self._free.clear()

    @abstractmethod
    def _copy_out(self, slots: list[int], place: ChunkBuffers) -> None:
        """Copies the chunks in ``slots`` to ``place``, which has as many."""

    @abstractmethod
    def _copy_in(self, slots: list[int], place: ChunkBuffers) -> None:
        """Copies the chunks of ``place`` into ``slots``, which are as many."""


class MemoryTier(SlotTier):
    """A tier of chunks at fixed addresses.

    ``capacity`` is in chunks of ``chunk_bytes``; all memory is taken, and faulted in, here. Raises
    ``MemoryError`` if the machine has not that much.
    """

    def __init__(
        self, name: str, capacity: int, chunk_bytes: int, memory: Memory | None = None
    ) -> None:
        super().__init__(name, capacity)
        self._chunk_bytes = chunk_bytes
        # Page-aligned chunks: whole cache lines, and later tiers can write them with O_DIRECT.
        stride = -(-chunk_bytes // _ALIGN) * _ALIGN
        self._memory = memory or SlabMemory()
        self._addresses = self._memory.addresses(capacity, stride)

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        return FlatBuffers(self._addresses[[self._slots[key] for key in keys]], self._chunk_bytes)

    def close(self) -> None:
        super().close()
        self._addresses = self._addresses[:0]
        self._memory.release()

    def _copy_out(self, slots: list[int], place: ChunkBuffers) -> None:
        place.copy_from(self._addresses[slots])

    def _copy_in(self, slots: list[int], place: ChunkBuffers) -> None:
        place.copy_to(self._addresses[slots])


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
