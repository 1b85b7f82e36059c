"""Orders of one tier as csrc/ledger/order.h means them, with no thought of speed: plain lists,
a scan over everything for every victim. A chunk that is spared is no victim."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Spared = Callable[[bytes], bool]


@dataclass(frozen=True)
class Use:
    """One chunk's latest use: the chunk before it, its place, requests so far, the request."""

    parent: bytes | None = None
    depth: int = 0
    times: int = 1
    turn: int = 0


class LRUModel:
    def __init__(self, capacity: int | None) -> None:
        self.order: list[bytes] = []

    def touch(self, key: bytes, use: Use) -> None:
        self.drop(key)
        self.order.append(key)

    def victim(self, spared: Spared) -> bytes | None:
        return next((key for key in self.order if not spared(key)), None)

    def evict(self, key: bytes) -> None:
        self.drop(key)

    def drop(self, key: bytes) -> None:
        if key in self.order:
            self.order.remove(key)

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self.order))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, key: bytes) -> bool:
        return key in list(iter(self))


class RankModel(LRUModel):
    """The lowest rank goes first; ``leaves``: only what no other continues, if there is any."""

    leaves = False

    def __init__(self, capacity: int | None) -> None:
        self.ranks: dict[bytes, tuple[float, ...]] = {}
        self.parents: dict[bytes, bytes | None] = {}
        self.tick = 0
        self.age = 0.0

    def rank(self, key: bytes, use: Use) -> tuple[float, ...]:
        return (self.age + use.times,)

    def touch(self, key: bytes, use: Use) -> None:
        self.ranks[key] = (*self.rank(key, use), self.tick)
        self.parents[key] = use.parent
        self.tick += 1

    def ends(self) -> list[bytes]:
        continued = set(self.parents.values()) if self.leaves else set()
        return sorted(self.ranks.keys() - continued, key=self.ranks.__getitem__)

    def victim(self, spared: Spared) -> bytes | None:
        keys = self.ends() or sorted(self.ranks, key=self.ranks.__getitem__)  # a circle
        return next((key for key in keys if not spared(key)), None)

    def evict(self, key: bytes) -> None:
        self.age = max(self.age, self.ranks[key][0])
        self.drop(key)

    def drop(self, key: bytes) -> None:
        self.ranks.pop(key, None)
        self.parents.pop(key, None)

    def __iter__(self) -> Iterator[bytes]:
        later = type(self)(None)
        later.ranks, later.parents = dict(self.ranks), dict(self.parents)
        while later.ends():
            yield later.ends()[0]
            later.drop(later.ends()[0])
        yield from sorted(later.ranks, key=later.ranks.__getitem__)


class GDSFModel(RankModel):
    leaves = True

    def rank(self, key: bytes, use: Use) -> tuple[float, ...]:
        return (self.age + use.times * math.sqrt(use.depth + 1),)


class BeladyModel(RankModel):
    requests: Sequence[Sequence[bytes]] = ()

    def rank(self, key: bytes, use: Use) -> tuple[float, ...]:
        turns = (turn for turn, keys in enumerate(self.requests) if key in keys)
        return (-next((turn for turn in turns if turn > use.turn), math.inf), -use.depth)

    def evict(self, key: bytes) -> None:
        self.drop(key)


class ARCModel(LRUModel):
    def __init__(self, capacity: int | None) -> None:
        self.capacity = math.inf if capacity is None else capacity
        self.target = 0.0
        self.recent: list[bytes] = []
        self.frequent: list[bytes] = []
        self.recent_ghosts: list[bytes] = []
        self.frequent_ghosts: list[bytes] = []
        self.waiting: list[tuple[bytes, str]] = []

    def touch(self, key: bytes, use: Use) -> None:
        b1, b2 = len(self.recent_ghosts), len(self.frequent_ghosts)
        if key in self.recent or key in self.frequent:
            (self.recent if key in self.recent else self.frequent).remove(key)
            self.frequent.append(key)
        elif key in self.recent_ghosts:
            self.target = min(self.target + max(1.0, b2 / b1), self.capacity)
            self.recent_ghosts.remove(key)
            self.waiting.append((key, "frequent"))
        elif key in self.frequent_ghosts:
            self.target = max(self.target - max(1.0, b1 / b2), 0.0)
            self.frequent_ghosts.remove(key)
            self.waiting.append((key, "ghost"))
        elif key not in dict(self.waiting):
            self.waiting.append((key, "frequent" if use.times > 1 else "recent"))
        self.settle()

    def victim(self, spared: Spared) -> bytes | None:
        tie = bool(self.waiting) and self.waiting[0][1] == "ghost"
        length = len(self.recent)
        first = length and (length > self.target or (tie and length == self.target))
        keys = self.recent + self.frequent if first else self.frequent + self.recent
        return next((key for key in keys if not spared(key)), None)

    def evict(self, key: bytes) -> None:
        if key in self.recent:
            self.recent_ghosts.append(key)
        elif key in self.frequent:
            self.frequent_ghosts.append(key)
        self.drop(key)

    def drop(self, key: bytes) -> None:
        self.recent = [k for k in self.recent if k != key]
        self.frequent = [k for k in self.frequent if k != key]
        self.waiting = [pair for pair in self.waiting if pair[0] != key]
        self.settle()

    def settle(self) -> None:
        while self.waiting and len(self.recent) + len(self.frequent) < self.capacity:
            key, origin = self.waiting.pop(0)
            (self.recent if origin == "recent" else self.frequent).append(key)
            while len(self.recent) + len(self.recent_ghosts) > self.capacity and self.recent_ghosts:
                self.recent_ghosts.pop(0)
            known = [*self.recent, *self.frequent, *self.recent_ghosts]
            while len(known) + len(self.frequent_ghosts) > 2 * self.capacity:
                if not self.frequent_ghosts:
                    break
                self.frequent_ghosts.pop(0)

    def __iter__(self) -> Iterator[bytes]:
        recent, frequent = list(self.recent), list(self.frequent)
        while recent or frequent:
            yield (recent if len(recent) > self.target or not frequent else frequent).pop(0)
        yield from [key for key, _ in self.waiting]


class S3FIFOModel(LRUModel):
    def __init__(self, capacity: int | None) -> None:
        self.capacity = math.inf if capacity is None else capacity
        self.small_size = max(1, (capacity or 0) // 10)
        self.main_size = max(0, (capacity or 0) - self.small_size)
        self.small: list[bytes] = []
        self.main: list[bytes] = []
        self.ghosts: list[bytes] = []
        self.waiting: list[tuple[bytes, bool]] = []
        self.uses: dict[bytes, int] = {}

    def touch(self, key: bytes, use: Use) -> None:
        if key in self.small or key in self.main:
            self.uses[key] = min(self.uses[key] + 1, 3)
        elif key not in dict(self.waiting):
            self.waiting.append((key, use.times > 1 or key in self.ghosts))
            self.ghosts = [k for k in self.ghosts if k != key]
            self.settle()

    def victim(self, spared: Spared) -> bytes | None:
        if len(self.small) >= self.small_size:
            return self.from_small(spared) or self.from_main(spared)
        return self.from_main(spared) or self.from_small(spared)

    def from_small(self, spared: Spared) -> bytes | None:
        moved = False
        for key in list(self.small):
            if spared(key):
                continue
            if self.uses[key] <= 1:
                return key
            self.small.remove(key)
            self.main.append(key)
            self.uses[key] = 0
            moved = True
            if len(self.main) > self.main_size:
                break
        return self.from_main(spared) if moved else None

    def from_main(self, spared: Spared) -> bytes | None:
        """A spared key at the end goes round as it is."""
        if all(spared(key) for key in self.main):
            return None
        while True:
            key = self.main[0]
            if not spared(key):
                if not self.uses[key]:
                    return key
                self.uses[key] -= 1
            self.main.append(self.main.pop(0))

    def evict(self, key: bytes) -> None:
        if key in self.small:
            self.ghosts.append(key)
            if len(self.ghosts) > self.main_size:
                self.ghosts.pop(0)
        self.drop(key)

    def drop(self, key: bytes) -> None:
        self.small = [k for k in self.small if k != key]
        self.main = [k for k in self.main if k != key]
        self.waiting = [pair for pair in self.waiting if pair[0] != key]
        self.settle()

    def settle(self) -> None:
        while self.waiting and len(self.small) + len(self.main) < self.capacity:
            key, known = self.waiting.pop(0)
            (self.main if known else self.small).append(key)
            self.uses[key] = 0

    def __iter__(self) -> Iterator[bytes]:
        later = S3FIFOModel(None)
        later.small_size, later.main_size = self.small_size, self.main_size
        later.small, later.main = list(self.small), list(self.main)
        later.uses = dict(self.uses)
        while (key := later.victim(lambda key: False)) is not None:
            later.drop(key)
            yield key
        yield from [key for key, _ in self.waiting]


ORDERS: dict[str, type[LRUModel]] = {
    "lru": LRUModel,
    "lfu-aging": RankModel,
    "gdsf": GDSFModel,
    "s3-fifo": S3FIFOModel,
    "arc": ARCModel,
    "unbounded": LRUModel,
}


def order_model(name: str, requests: Sequence[Sequence[bytes]]) -> type[LRUModel]:
    """By name; Belady's knows these requests."""
    if name == "belady":
        return type("KnowingModel", (BeladyModel,), {"requests": requests})
    return ORDERS[name]
