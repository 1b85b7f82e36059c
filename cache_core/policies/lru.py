"""Least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import ClassVar

from cache_core.use import Use


class LRU:
    """Least recently used goes first. A request touches its last chunk first, so a chunk never
    outlives the one before it."""

    evicts: ClassVar[bool] = True

    def __init__(self, capacity: int | None = None) -> None:
        self._order: OrderedDict[bytes, None] = OrderedDict()

    def touch(self, key: bytes, use: Use) -> None:
        self._order[key] = None
        self._order.move_to_end(key)

    def victim(self, spared: Callable[[bytes], bool]) -> bytes | None:
        for key in self._order:
            if not spared(key):
                return key
        return None

    def evict(self, key: bytes) -> None:
        self._order.pop(key, None)

    drop = evict

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, key: bytes) -> bool:
        return key in self._order

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._order)
