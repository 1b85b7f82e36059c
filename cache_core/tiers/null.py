"""Provides a tier that holds keys and no bytes: with it the Ledger is a simulator."""

from __future__ import annotations

from collections.abc import Sequence

from cache_core.tiers.tier import Read, Tier
from cache_core.transfer.chunks import ChunkBuffers


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
