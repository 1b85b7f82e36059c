"""A tier that does nothing until it is told to (a slow disk, a mount that hangs), and what to do
with a cache above it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from cache_core.cache import TieredCache
from cache_core.plan import StoreOutcome
from cache_core.tiers import MemoryTier
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key

PATIENCE_S = 60
"""How long a test waits for what must come: a defect fails it, and never hangs it."""


class Gate:
    """Closed at first if it is made so; who comes waits until it is open."""

    def __init__(self, shut: bool = False) -> None:
        self.arrived = threading.Semaphore(0)
        self._open = threading.Event()
        if not shut:
            self._open.set()

    def pass_through(self) -> None:
        self.arrived.release()
        assert self._open.wait(PATIENCE_S), "nobody opened the gate"

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def await_arrival(self) -> None:
        assert self.arrived.acquire(timeout=PATIENCE_S), "nobody came"


class GatedTier(MemoryTier):
    """Keeps bytes, but promises neither to come back nor to be memory."""

    in_memory = keeps_time = False

    def __init__(self, name: str = "disk", capacity: int = 64) -> None:
        super().__init__(name, capacity, LAYOUT.chunk_bytes)
        self.reads, self.writes, self.discards = Gate(), Gate(), Gate()
        self.closed = threading.Event()

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        self.reads.pass_through()
        return super().read(keys, place)

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        self.writes.pass_through()
        return super().write(keys, place)

    def discard(self, keys: Sequence[bytes]) -> None:
        self.discards.pass_through()
        super().discard(keys)

    def close(self) -> None:
        super().close()
        self.closed.set()


class GatedMemory(GatedTier):
    """The same as memory: it is called without a guard, and copied from directly."""

    in_memory = keeps_time = True


def memory(capacity: int) -> MemoryTier:
    """The cpu tier."""
    return MemoryTier("cpu", capacity, LAYOUT.chunk_bytes)


def put(cache: TieredCache, engine: MemoryEngine, numbers: Sequence[int]) -> Future[StoreOutcome]:
    """Computes chunks and stores them."""
    engine.fill(list(numbers))
    return cache.store([key(n) for n in numbers], engine.place(0, len(numbers)))


def served(cache: TieredCache, engine: MemoryEngine, numbers: Sequence[int]) -> int:
    """Chunks that are hit; proves their bytes."""
    engine.wipe()
    hit = cache.acquire([key(n) for n in numbers])
    loaded = cache.load(hit, engine.place(0, len(hit)))
    for row in range(loaded.chunks):
        assert engine.holds(row, numbers[row]), "a wrong byte was served"
    return loaded.chunks
