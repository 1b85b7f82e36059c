"""Loads and saves that are under way, and how many ranks have not reported them yet."""

from __future__ import annotations

from dataclasses import dataclass

from cache_core.adapters.vllm.messages import LoadDone, SaveDone
from cache_core.ledger import NOWHERE, Hit, Move, Plan


@dataclass(slots=True)
class Loading:
    """A pinned hit on its way: tokens ``start`` .. ``end`` of a request."""

    hit: Hit
    request: str
    start: int
    end: int
    waits: int
    chunks: int
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether every rank has all of it in place."""
        return len(self.hit) > 0 and self.chunks == len(self.hit)


@dataclass(slots=True)
class Saving:
    """Moves on their way, and which of them succeeded on every rank."""

    moves: tuple[Move, ...]
    request: str
    waits: int
    good: list[bool]


class Transfers:
    """By number; ``ranks`` workers report each."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._loading: dict[int, Loading] = {}
        self._saving: dict[int, Saving] = {}
        self.last = 0
        """The latest number given."""
        self.pending = 0
        """Chunks on their way into tiers."""

    def number(self) -> int:
        """The next one."""
        self.last += 1
        return self.last

    def reading(self) -> set[bytes]:
        """Keys that loads under way may still read."""
        return {key for loading in self._loading.values() for key in loading.hit.keys}

    def load(self, number: int, hit: Hit, request: str, start: int, end: int) -> None:
        """A load begins."""
        self._loading[number] = Loading(hit, request, start, end, self._ranks, len(hit))

    def save(self, number: int, request: str, plan: Plan) -> None:
        """A plan that writes begins."""
        moves = tuple(move for move in plan.moves if move.target != NOWHERE)
        self._saving[number] = Saving(moves, request, self._ranks, [True] * len(moves))
        self.pending += len(moves)

    def loaded(self, done: LoadDone) -> Loading | None:
        """One rank's report; the load, if that was the last."""
        loading = self._loading[done.id]
        loading.waits -= 1
        loading.chunks = min(loading.chunks, done.chunks)
        loading.seconds = max(loading.seconds, done.seconds)
        return None if loading.waits else self._loading.pop(done.id)

    def saved(self, done: SaveDone) -> Saving | None:
        """One rank's report; the save, if that was the last."""
        saving = self._saving[done.id]
        saving.waits -= 1
        saving.good = [a and b for a, b in zip(saving.good, done.good, strict=True)]
        if saving.waits:
            return None
        self.pending -= len(saving.moves)
        return self._saving.pop(done.id)
