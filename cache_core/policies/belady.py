"""What is needed last goes first: the bound that knows the future."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from math import inf
from typing import ClassVar

from cache_core.policies.ranking import Ranking
from cache_core.use import Use


class Future:
    """When each key will be used: request i of ``requests`` is the Ledger's admission i."""

    def __init__(self, requests: Sequence[Sequence[bytes]]) -> None:
        self._turns: dict[bytes, list[int]] = {}
        for turn, keys in enumerate(requests):
            for key in dict.fromkeys(keys):
                self._turns.setdefault(key, []).append(turn)

    def next_use(self, key: bytes, turn: int) -> float:
        """The first request after ``turn`` that uses the key; infinity if none does."""
        turns = self._turns.get(key, ())
        place = bisect_right(turns, turn)
        return turns[place] if place < len(turns) else inf


class Belady:
    """The key whose next use is farthest away goes first (Belady, IBM Systems Journal 5, 1966);
    among equals the deepest in its prompt. What has just come may go at once. A chunk is never
    used before the one in front of it, so nothing outlives its prefix."""

    evicts: ClassVar[bool] = True

    def __init__(self, future: Future) -> None:
        self._future = future
        self._ranking = Ranking()
        self._tick = count()

    def touch(self, key: bytes, use: Use) -> None:
        farthest = -self._future.next_use(key, use.turn)
        self._ranking.put(key, (farthest, -use.depth, next(self._tick)))

    def victim(self, spared: Callable[[bytes], bool]) -> bytes | None:
        return self._ranking.lowest(spared)

    def evict(self, key: bytes) -> None:
        self._ranking.remove(key)

    drop = evict

    def __len__(self) -> int:
        return len(self._ranking)

    def __contains__(self, key: bytes) -> bool:
        return key in self._ranking

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._ranking)


def belady(requests: Sequence[Sequence[bytes]]) -> Callable[[int | None], Belady]:
    """Makes the orders for a Ledger that will admit exactly these requests, in this order."""
    future = Future(requests)
    return lambda capacity: Belady(future)
