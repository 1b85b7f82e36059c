"""The cheapest to recompute, per use, goes first, and only ends of prefixes go."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import count
from math import sqrt
from typing import ClassVar

from cache_core.policies.ranking import Rank, Ranking
from cache_core.use import Use


class GDSF:
    """Greedy-Dual-Size-Frequency (Cherkasova, HP Labs 98-69, 1998), leaves first.

    A key's rank is ``age + uses * cost / size``. Chunks are of one size. ``cost`` is the square
    root of ``depth + 1``: recomputing a chunk attends to all before it, so its cost grows with its
    depth, and the root keeps long prompts from owning the cache. The age is the highest rank that
    was evicted so far. Only a chunk that no other held chunk continues can go: without it those
    would be unreachable. Among equals the least recently used goes first.
    """

    evicts: ClassVar[bool] = True

    def __init__(self, capacity: int | None = None) -> None:
        self._ranks: dict[bytes, Rank] = {}
        self._parents: dict[bytes, bytes | None] = {}
        self._children: dict[bytes, int] = {}  # held continuations, of keys not held too
        self._leaves = Ranking()
        self._tick = count()
        self._age = 0.0

    def touch(self, key: bytes, use: Use) -> None:
        rank = (self._age + use.times * sqrt(use.depth + 1), next(self._tick))
        held = key in self._ranks
        self._ranks[key] = rank
        before = self._parents.get(key)
        if not held or before != use.parent:
            if use.parent is not None:
                self._children[use.parent] = self._children.get(use.parent, 0) + 1
                self._leaves.remove(use.parent)
            self._parents[key] = use.parent
            self._orphan(before)
        if key not in self._children:
            self._leaves.put(key, rank)

    def victim(self, spared: Callable[[bytes], bool]) -> bytes | None:
        if not self._leaves and self._ranks:  # content keys can follow each other in a circle
            ends = (key for key in self._ranks if not spared(key))
            return min(ends, key=self._ranks.__getitem__, default=None)
        return self._leaves.lowest(spared)

    def evict(self, key: bytes) -> None:
        rank = self._ranks.get(key)
        if rank is not None:
            self._age = max(self._age, rank[0])
            self.drop(key)

    def drop(self, key: bytes) -> None:
        if self._ranks.pop(key, None) is not None:
            self._leaves.remove(key)
            self._orphan(self._parents.pop(key))

    def _orphan(self, parent: bytes | None) -> None:
        """One continuation of ``parent`` has gone, or continues another now."""
        if parent is None:
            return
        self._children[parent] -= 1
        if not self._children[parent]:
            del self._children[parent]
            if parent in self._ranks:
                self._leaves.put(parent, self._ranks[parent])

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, key: bytes) -> bool:
        return key in self._ranks

    def __iter__(self) -> Iterator[bytes]:
        children = dict(self._children)
        ends = [(self._ranks[key], key) for key in self._leaves]
        heapq.heapify(ends)
        circle = set(self._ranks)
        while ends:
            _, key = heapq.heappop(ends)
            circle.remove(key)
            yield key
            parent = self._parents[key]
            if parent is not None:
                children[parent] -= 1
                if not children[parent] and parent in circle:
                    heapq.heappush(ends, (self._ranks[parent], parent))
        yield from sorted(circle, key=self._ranks.__getitem__)
