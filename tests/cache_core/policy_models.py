"""Replacement policies as their papers define them, on plain lists and with no thought of speed.

A request's chunks are used last chunk first: all hits count before anything is evicted, then the
misses enter one after another, each after the eviction that makes its room.
"""

from __future__ import annotations

import math
from typing import Protocol


class Model(Protocol):
    def request(self, keys: list[bytes]) -> None:
        """One request, its keys in prompt order, each once."""

    def evict(self) -> bytes:
        """The next victim; it leaves."""

    def held(self) -> set[bytes]: ...


class RecencyModel:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.order: list[bytes] = []

    def request(self, keys: list[bytes]) -> None:
        for key in reversed(keys):
            if key in self.order:
                self.order.remove(key)
            self.order.append(key)
        while len(self.order) > self.capacity:
            self.evict()

    def evict(self) -> bytes:
        return self.order.pop(0)

    def held(self) -> set[bytes]:
        return set(self.order)


class AgingModel:
    """LFU-aging: K = uses + age at the last use. GDSF with ``leaves``: K = age + uses * cost, and
    only what no held chunk continues may go."""

    def __init__(self, capacity: int, leaves: bool = False) -> None:
        self.capacity = capacity
        self.leaves = leaves
        self.age = 0.0
        self.clock = 0
        self.uses: dict[bytes, int] = {}
        self.rank: dict[bytes, tuple[float, int]] = {}
        self.parent: dict[bytes, bytes | None] = {}

    def request(self, keys: list[bytes]) -> None:
        for depth in reversed(range(len(keys))):
            key = keys[depth]
            self.uses[key] = self.uses.get(key, 0) + 1
            cost = math.sqrt(depth + 1) if self.leaves else 1
            self.rank[key] = (self.age + self.uses[key] * cost, self.clock)
            self.parent[key] = keys[depth - 1] if depth else None
            self.clock += 1
        while len(self.rank) > self.capacity:
            self.evict()

    def evict(self) -> bytes:
        continued = set(self.parent.values()) if self.leaves else set()
        key = min((k for k in self.rank if k not in continued), key=self.rank.__getitem__)
        self.age = max(self.age, self.rank[key][0])
        for table in (self.uses, self.rank, self.parent):
            del table[key]
        return key

    def held(self) -> set[bytes]:
        return set(self.rank)


class ThreeQueuesModel:
    """S3-FIFO, algorithm 1 of the paper; the end of each list is its oldest."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.small_size = max(1, capacity // 10)
        self.small: list[bytes] = []
        self.main: list[bytes] = []
        self.ghosts: list[bytes] = []
        self.freq: dict[bytes, int] = {}

    def request(self, keys: list[bytes]) -> None:
        misses = []
        for key in reversed(keys):
            if key in self.freq:
                self.freq[key] = min(self.freq[key] + 1, 3)
            else:
                misses.append((key, key in self.ghosts))
                if key in self.ghosts:
                    self.ghosts.remove(key)
        for key, known in misses:
            while len(self.freq) >= self.capacity:
                self.evict()
            self.freq[key] = 0
            (self.main if known else self.small).insert(0, key)

    def evict(self) -> bytes:
        if len(self.small) >= self.small_size or not self.main:
            key = self._evict_small()
        else:
            key = self._evict_main()
        del self.freq[key]
        return key

    def _evict_small(self) -> bytes:
        while self.small:
            key = self.small.pop()
            if self.freq[key] <= 1:
                self.ghosts.insert(0, key)
                del self.ghosts[self.capacity - self.small_size :]
                return key
            self.freq[key] = 0
            self.main.insert(0, key)
            if len(self.main) > self.capacity - self.small_size:
                break
        return self._evict_main()

    def _evict_main(self) -> bytes:
        while True:
            key = self.main.pop()
            if self.freq[key] == 0:
                return key
            self.freq[key] -= 1
            self.main.insert(0, key)

    def held(self) -> set[bytes]:
        return set(self.freq)


class AdaptiveModel:
    """ARC, figure 4 of the paper; the end of each list is its least recent."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.p = 0.0
        self.t1: list[bytes] = []
        self.t2: list[bytes] = []
        self.b1: list[bytes] = []
        self.b2: list[bytes] = []

    def request(self, keys: list[bytes]) -> None:
        misses = []
        for key in reversed(keys):
            if key in self.t1 or key in self.t2:  # case I
                (self.t1 if key in self.t1 else self.t2).remove(key)
                self.t2.insert(0, key)
            elif key in self.b1:  # case II
                self.p = min(self.p + max(1, len(self.b2) / len(self.b1)), self.capacity)
                self.b1.remove(key)
                misses.append((key, "b1"))
            elif key in self.b2:  # case III
                self.p = max(self.p - max(1, len(self.b1) / len(self.b2)), 0)
                self.b2.remove(key)
                misses.append((key, "b2"))
            else:
                misses.append((key, "new"))
            # With room, a miss enters at once.
            if misses and len(self.t1) + len(self.t2) < self.capacity:
                self._enter(*misses.pop())
        for key, origin in misses:
            self._enter(key, origin)

    def _enter(self, key: bytes, origin: str) -> None:
        full = len(self.t1) + len(self.t2) == self.capacity
        if origin != "new":
            if full:
                self._replace(origin == "b2")
            self.t2.insert(0, key)
            # It left its ghosts before the misses ahead of it entered, who saw room there.
            if len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2) > 2 * self.capacity:
                self.b2.pop()
            return
        if len(self.t1) + len(self.b1) == self.capacity:  # case IV A
            if len(self.t1) < self.capacity:
                self.b1.pop()
                if full:
                    self._replace(False)
            else:
                self.t1.pop()
        elif len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2) >= self.capacity:  # IV B
            if len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2) == 2 * self.capacity:
                self.b2.pop()
            if full:
                self._replace(False)
        self.t1.insert(0, key)

    def _replace(self, from_b2: bool) -> bytes:
        length = len(self.t1)
        if (length and (length > self.p or (from_b2 and length == self.p))) or not self.t2:
            self.b1.insert(0, self.t1.pop())
            return self.b1[0]
        self.b2.insert(0, self.t2.pop())
        return self.b2[0]

    def evict(self) -> bytes:
        return self._replace(False)

    def held(self) -> set[bytes]:
        return {*self.t1, *self.t2}


def best_hits(requests: list[list[bytes]], capacity: int) -> int:
    """Most chunks that any way of evicting can hit as leading runs: tries all."""
    reached = {frozenset[bytes](): 0}
    for keys in requests:
        following: dict[frozenset[bytes], int] = {}
        for held, hits in reached.items():
            run = next((i for i, key in enumerate(keys) if key not in held), len(keys))
            for kept in subsets(sorted(held | set(keys)), capacity):
                following[kept] = max(following.get(kept, 0), hits + run)
        reached = following
    return max(reached.values())


def subsets(keys: list[bytes], size: int) -> set[frozenset[bytes]]:
    """All subsets of exactly ``size`` keys (of all keys, if there are no more)."""
    if len(keys) <= size:
        return {frozenset(keys)}
    if not size:
        return {frozenset()}
    with_first = {kept | {keys[0]} for kept in subsets(keys[1:], size - 1)}
    return with_first | subsets(keys[1:], size)
