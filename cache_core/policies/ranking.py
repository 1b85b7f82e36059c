"""A set of keys with a rank each, that knows its lowest."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import TypeAlias

Rank: TypeAlias = tuple[float, ...]
_SLACK = 64  # outdated entries that are not worth a rebuild


class Ranking:
    """A priority queue with removal: an entry that its key has outlived stays in the heap until it
    comes up, or until half of the heap is such. Ranks must differ."""

    def __init__(self) -> None:
        self._ranks: dict[bytes, Rank] = {}
        self._heap: list[tuple[Rank, bytes]] = []

    def put(self, key: bytes, rank: Rank) -> None:
        """Adds the key, or moves it."""
        self._ranks[key] = rank
        heapq.heappush(self._heap, (rank, key))
        if len(self._heap) > 2 * len(self._ranks) + _SLACK:
            self._heap = [(rank, key) for key, rank in self._ranks.items()]
            heapq.heapify(self._heap)

    def remove(self, key: bytes) -> Rank | None:
        """Takes the key out and returns its rank; None if it is not there."""
        return self._ranks.pop(key, None)

    def lowest(self, spared: Callable[[bytes], bool]) -> bytes | None:
        """The key of lowest rank that is not spared; None if there is none."""
        aside: list[tuple[Rank, bytes]] = []
        found = None
        while self._heap:
            rank, key = self._heap[0]
            if self._ranks.get(key) == rank:
                if not spared(key):
                    found = key
                    break
                aside.append((rank, key))
            heapq.heappop(self._heap)
        for entry in aside:
            heapq.heappush(self._heap, entry)
        return found

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, key: bytes) -> bool:
        return key in self._ranks

    def __iter__(self) -> Iterator[bytes]:
        """Keys, the lowest rank first."""
        return iter(sorted(self._ranks, key=self._ranks.__getitem__))
