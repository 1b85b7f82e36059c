"""Keeps track of loads and saves that are under way, what all ranks hold, and what generations of
weights left in tiers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.identity import Hashers
from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.ledger import ENGINE, NOWHERE, Hit, Ledger, Move, Plan
from cache_core.policies import POLICIES
from cache_core.residency import remembered

if TYPE_CHECKING:  # it needs vLLM, and look-ups are tested without
    from cache_core.adapters.vllm.metadata import LoadDone, SaveDone, TiersOpened


def merged_inventories(
    ranks: Sequence[TiersOpened], options: ConnectorOptions, shared: bool
) -> tuple[Ledger, list[tuple[bytes, int]]]:
    """Returns a Ledger of what every rank holds from earlier processes, and chunks (key, tier) that
    are to be discarded: those that only some have, or that don't fit. ``shared``: others fill the
    remote tier too."""
    capacities: list[int | None] = []
    tiers = zip(*(rank.capacities for rank in ranks), strict=True)
    for name, rooms in zip(options.tier_names, tiers, strict=True):
        bounded = [room for room in rooms if room is not None]
        capacities.append(min(bounded) if bounded else None)
        if name == "remote" and shared:
            capacities[-1] = remembered(capacities[-1])
    ledger = Ledger(capacities, POLICIES[options.policy], options.placement)
    surplus: list[tuple[bytes, int]] = []
    for tier in range(len(capacities)):
        others = [set(rank.recovered[tier]) for rank in ranks[1:]]
        everywhere = [k for k in ranks[0].recovered[tier] if all(k in other for other in others)]
        kept = set(everywhere)
        gone = ledger.restore(tier, everywhere)
        for rank in ranks:
            gone += [key for key in rank.recovered[tier] if key not in kept]
        surplus += [(key, tier) for key in dict.fromkeys(gone)]
    return ledger, surplus


def by_tier(
    options: ConnectorOptions, hit: Hit, start: int, end: int, first: int
) -> dict[str, int]:
    """Counts tokens ``start`` .. ``end`` of a hit whose first chunk begins at token ``first``, by
    tier."""
    found: dict[str, int] = {}
    size, at = options.chunk_tokens, first
    # In runs: a hit of thousands of chunks has a few.
    for tier, run in groupby(hit.tiers):
        past = at + size * sum(1 for _ in run)
        tokens = min(past, end) - max(at, start)
        if tokens > 0:
            name = options.tier_names[tier]
            found[name] = found.get(name, 0) + tokens
        at = past
    return found


@dataclass(slots=True)
class Loading:
    """A load of a pinned hit that is under way: tokens ``start`` .. ``end`` of a request."""

    hit: Hit
    request: str
    start: int
    end: int
    waits: int
    chunks: int
    seconds: float = 0.0
    gone: list[tuple[bytes, int]] = field(default_factory=list)
    """The chunks that some rank's tier will never give: (key, tier)."""

    @property
    def whole(self) -> bool:
        """Returns whether every rank has read all of the hit."""
        return len(self.hit) > 0 and self.chunks == len(self.hit)


@dataclass(slots=True)
class Saving:
    """A save that is under way: how many ranks have not settled each move, and whether it succeeded
    on all that have; ``held`` ranks still need vLLM's blocks, or, if it was ``staged``, memory of
    their own."""

    moves: tuple[Move, ...]
    request: str
    waits: list[int]
    good: list[bool]
    held: int
    staged: bool

    @property
    def chunks(self) -> int:
        """Returns the number of chunks that come from vLLM's blocks."""
        return 0 if self.staged else len({move.key for move in self.moves if move.source == ENGINE})

    @property
    def over(self) -> bool:
        """Returns whether all ranks have reported all of the save."""
        return not self.held and not any(self.waits)


@dataclass(frozen=True, slots=True)
class Saved:
    """The part of a save that a report ended on every rank: moves that ``good`` says to have
    succeeded, and whether vLLM's blocks are ``free``."""

    moves: tuple[Move, ...]
    good: tuple[bool, ...]
    request: str
    free: bool


class TransferState:
    """The loads and saves that are under way, by number; ``ranks`` workers report each."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._loading: dict[int, Loading] = {}
        self._saving: dict[int, Saving] = {}
        self.last = 0
        """The latest number that was given to a load or save."""
        self.pending = 0
        """The number of chunks on their way out of vLLM's blocks."""

    def number(self) -> int:
        """Returns the next number for a load or save."""
        self.last += 1
        return self.last

    @property
    def busy(self) -> bool:
        """Returns whether anything has not been reported whole that no request waits for."""
        ahead = any(not loading.request for loading in self._loading.values())
        return bool(self._saving) or ahead

    def reading(self) -> set[bytes]:
        """Returns keys that loads under way may still read."""
        return {key for loading in self._loading.values() for key in loading.hit.keys}

    def load(self, number: int, hit: Hit, request: str, start: int, end: int) -> None:
        """Records that a load begins."""
        self._loading[number] = Loading(hit, request, start, end, self._ranks, len(hit))

    def save(self, number: int, request: str, plan: Plan, staged: bool = False) -> None:
        """Records that a plan that writes begins; ``staged``: not from vLLM's blocks."""
        moves = tuple(move for move in plan.moves if move.target != NOWHERE)
        ranks, count = self._ranks, len(moves)
        saving = Saving(moves, request, [ranks] * count, [True] * count, ranks, staged)
        self._saving[number] = saving
        self.pending += saving.chunks

    def loaded(self, done: LoadDone) -> Loading | None:
        """Takes in one rank's report of a load. Returns the load, if that was the last report."""
        loading = self._loading[done.id]
        loading.waits -= 1
        loading.chunks = min(loading.chunks, done.chunks)
        loading.seconds = max(loading.seconds, done.seconds)
        loading.gone += done.gone
        return None if loading.waits else self._loading.pop(done.id)

    def saved(self, done: SaveDone) -> Saved:
        """Takes in one rank's report of a part of a save. Returns what has ended with it."""
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


logger = logging.getLogger("lmcache")


class Generations:
    """Counts generations of weights: a new one begins when weights are, or may be, others."""

    def __init__(self, hashers: Hashers, transfers: TransferState, tiers: int) -> None:
        self.number = 0
        self._hashers, self._transfers, self._tiers = hashers, transfers, tiers
        self._last = 0  # transfers up to this number are of earlier generations

    def renew(self, why: str, requests: Iterable[RequestState], ledger: Ledger | None) -> Plan:
        """Begins a generation, in which nothing that was kept is found. What ``requests`` have
        computed is not saved. Returns what frees the rest; chunks in use are freed by
        :meth:`ended`."""
        logger.info("%s: nothing that was kept until now is used again", why)
        self._hashers.renew()
        self.number += 1
        self._last = self._transfers.last
        for state in requests:
            state.renew(self._hashers.hasher(state.adapter, state.salt))
        return Plan(tuple(ledger.clear()) if ledger is not None else ())

    def ended(self, number: int, keys: Iterable[bytes], ledger: Ledger) -> Plan:
        """Takes in that a load or save of these chunks has ended. Returns what frees those of an
        earlier generation, but for what is still read."""
        if number > self._last:
            return Plan(())
        reading = self._transfers.reading()
        return Plan(
            tuple(
                Move(key, tier, NOWHERE, -1)
                for key in dict.fromkeys(keys)
                if key not in reading
                for tier in range(self._tiers)
                if ledger.forget(key, tier)
            )
        )
