"""A tier for ``remote``, as ``module:Class``, that can't read every chunk that it took."""

from __future__ import annotations

from collections.abc import Sequence

from cache_core.tiers import MemoryTier
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers


class Forgetful(MemoryTier):
    """Fails to read a third of its chunks."""

    def __init__(self, name: str, capacity: int | None, chunk_bytes: int) -> None:
        super().__init__(name, 512, chunk_bytes)

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        lost = [key for key in keys if key[0] % 3 == 0]
        self.discard(lost)
        return super().read(keys, place)
