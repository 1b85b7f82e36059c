"""Loads and saves that are under way, and how many ranks have not reported them yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from cache_core.adapters.vllm.messages import LoadDone, SaveDone
from cache_core.ledger import ENGINE, NOWHERE, Hit, Move, Plan


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
    gone: list[tuple[bytes, int]] = field(default_factory=list)
    """Chunks that some rank's tier will never give: (key, tier)."""

    @property
    def whole(self) -> bool:
        """Whether every rank has all of it in place."""
        return len(self.hit) > 0 and self.chunks == len(self.hit)


@dataclass(slots=True)
class Saving:
    """Moves on their way: how many ranks have not settled each, and whether it succeeded on all
    that have; ``held`` ranks still need vLLM's blocks."""

    moves: tuple[Move, ...]
    request: str
    waits: list[int]
    good: list[bool]
    held: int

    @property
    def chunks(self) -> int:
        """Those that come from vLLM's blocks."""
        return len({move.key for move in self.moves if move.source == ENGINE})

    @property
    def over(self) -> bool:
        """Whether all ranks have reported all of it."""
        return not self.held and not any(self.waits)


@dataclass(frozen=True, slots=True)
class Saved:
    """What a report brought to an end on every rank: moves that ``good`` says to have succeeded,
    and whether vLLM's blocks are ``free``."""

    moves: tuple[Move, ...]
    good: tuple[bool, ...]
    request: str
    free: bool


class Transfers:
    """By number; ``ranks`` workers report each."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._loading: dict[int, Loading] = {}
        self._saving: dict[int, Saving] = {}
        self.last = 0
        """The latest number given."""
        self.pending = 0
        """Chunks on their way out of vLLM's blocks."""

    def number(self) -> int:
        """The next one."""
        self.last += 1
        return self.last

    @property
    def saving(self) -> bool:
        """Whether any save has not been reported whole."""
        return bool(self._saving)

    def reading(self) -> set[bytes]:
        """Keys that loads under way may still read."""
        return {key for loading in self._loading.values() for key in loading.hit.keys}

    def load(self, number: int, hit: Hit, request: str, start: int, end: int) -> None:
        """A load begins."""
        self._loading[number] = Loading(hit, request, start, end, self._ranks, len(hit))

    def save(self, number: int, request: str, plan: Plan) -> None:
        """A plan that writes begins."""
        moves = tuple(move for move in plan.moves if move.target != NOWHERE)
        ranks, count = self._ranks, len(moves)
        saving = Saving(moves, request, [ranks] * count, [True] * count, ranks)
        self._saving[number] = saving
        self.pending += saving.chunks

    def loaded(self, done: LoadDone) -> Loading | None:
        """One rank's report; the load, if that was the last."""
        loading = self._loading[done.id]
        loading.waits -= 1
        loading.chunks = min(loading.chunks, done.chunks)
        loading.seconds = max(loading.seconds, done.seconds)
        loading.gone += done.gone
        return None if loading.waits else self._loading.pop(done.id)

    def saved(self, done: SaveDone) -> Saved:
        """One rank's report of a part of a save: what has ended with it."""
        saving = self._saving[done.id]
        ended: list[int] = []
        for row, good in done.settled:
            saving.waits[row] -= 1
            saving.good[row] &= good
            if not saving.waits[row]:
                ended.append(row)
        saving.held -= done.free
        free = done.free and not saving.held
        if free:
            self.pending -= saving.chunks
        if saving.over:
            del self._saving[done.id]
        moves = tuple(saving.moves[row] for row in ended)
        return Saved(moves, tuple(saving.good[row] for row in ended), saving.request, free)
