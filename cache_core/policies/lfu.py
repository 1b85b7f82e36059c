"""Least frequently used goes first, and what was once popular ages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import ClassVar

from cache_core.policies.ranking import Ranking
from cache_core.use import Use


class LFUAging:
    """LFU with dynamic aging (LFUDA: Arlitt et al., Performance Evaluation Review 27, 2000).

    A key's rank is its uses plus the age at its last use; the age is the rank of the last key that
    was evicted, so that old fame is overtaken. Among equals the least recently used goes first.
    A chunk is never used without the one before it, so nothing outlives its prefix.
    """

    evicts: ClassVar[bool] = True

    def __init__(self, capacity: int | None = None) -> None:
        self._ranking = Ranking()
        self._tick = count()
        self._age = 0.0

    def touch(self, key: bytes, use: Use) -> None:
        self._ranking.put(key, (self._age + use.times, next(self._tick)))

    def victim(self, spared: Callable[[bytes], bool]) -> bytes | None:
        return self._ranking.lowest(spared)

    def evict(self, key: bytes) -> None:
        rank = self._ranking.remove(key)
        if rank is not None:
            self._age = max(self._age, rank[0])  # a spared key can leave late, with a low rank

    def drop(self, key: bytes) -> None:
        self._ranking.remove(key)

    def __len__(self) -> int:
        return len(self._ranking)

    def __contains__(self, key: bytes) -> bool:
        return key in self._ranking

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._ranking)
