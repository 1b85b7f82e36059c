"""Carries out what a Ledger decided: moves and reads chunks, tier by tier. Decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from cache_core.plan import ENGINE, NOWHERE, Hit, Move, Plan
from cache_core.tiers.tier import Read, Tier
from cache_core.transfer.chunks import ChunkBuffers

logger = logging.getLogger("lmcache")

ReadChunks = Callable[[int, Sequence[bytes], ChunkBuffers | None], list[Read]]
"""A function that reads chunks of a tier, by the tier's number."""


@dataclass(frozen=True, slots=True)
class Executed:
    """Moves of one source and one target that were tried together; ``good`` says which chunks the
    target has now, ``dropped`` that it was not even asked: too much was queued for it."""

    moves: Sequence[Move]
    good: Sequence[bool]
    seconds: float
    dropped: bool = False

    @property
    def source(self) -> int:
        """Returns the tier that the chunks came from, or ENGINE."""
        return self.moves[0].source

    @property
    def target(self) -> int:
        """Returns the tier that the chunks went to."""
        return self.moves[0].target


@dataclass(frozen=True, slots=True)
class Fetched:
    """A run of a hit's chunks that one tier was asked for."""

    tier: int
    keys: Sequence[bytes]
    answers: Sequence[Read]
    seconds: float

    @property
    def read(self) -> int:
        """Returns the number of chunks that were read."""
        return self.answers.count(Read.HERE)

    @property
    def usable(self) -> int:
        """Returns the number of leading chunks that were read."""
        return next((i for i, answer in enumerate(self.answers) if not answer), len(self.answers))

    @property
    def gone(self) -> list[bytes]:
        """Returns the chunks that the tier will never give."""
        pairs = zip(self.keys, self.answers, strict=True)
        return [key for key, answer in pairs if answer is Read.GONE]

    @property
    def later(self) -> bool:
        """Returns whether the tier could not give a chunk now."""
        return Read.LATER in self.answers


def execute(
    tiers: Sequence[Tier], plan: Plan, place: ChunkBuffers | None, clock: Callable[[], float]
) -> Iterator[Executed]:
    """Carries out a plan in its order, here and now, and yields what was written, group by group;
    ``place`` has the admitted chunks in the engine's memory. A tier that raises has failed the
    whole group."""
    for (source, target), group in groupby(plan.moves, lambda m: (m.source, m.target)):
        moves = list(group)
        keys = [move.key for move in moves]
        if target == NOWHERE:
            discard(tiers[source], keys)
            continue
        began = clock()
        good = write(tiers[target], keys, lambda: _bytes_of(tiers, moves, source, place))  # noqa: B023
        if source != ENGINE:
            discard(tiers[source], keys)
        yield Executed(moves, good, clock() - began)


def write(
    tier: Tier,
    keys: Sequence[bytes],
    place: Callable[[], ChunkBuffers | None],
    stuck: set[bytes] | None = None,
) -> list[bool]:
    """Writes chunks and returns which ones the tier has now. If it, or ``place``, raises, it has
    none: what it had taken until then is discarded, since nobody would count it; if that raises
    too, the chunks are added to ``stuck``."""
    try:
        good = [bool(ok) for ok in tier.write(keys, place())]
        if len(good) == len(keys):
            return good
        logger.error("the %s tier answered %d of %d writes", tier.name, len(good), len(keys))
    except Exception:  # a broken tier costs hits, never a request
        logger.exception("writing %d chunks to %s failed", len(keys), tier.name)
    if not discard(tier, keys) and stuck is not None:
        stuck.update(keys)
    return [False] * len(keys)


def read(tier: Tier, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
    """Reads chunks of a tier. Raises ``ValueError`` if it gave more or fewer answers than asked."""
    answers = [Read(answer) for answer in tier.read(keys, place)]
    if len(answers) != len(keys):
        raise ValueError(f"the {tier.name} tier answered {len(answers)} of {len(keys)} reads")
    return answers


def discard(tier: Tier, keys: Sequence[bytes]) -> bool:
    """Frees chunks. Returns False if the tier raised: it may have them still."""
    try:
        tier.discard(keys)
    except Exception:
        logger.exception("discarding %d chunks of %s failed", len(keys), tier.name)
        return False
    return True


def fetch(
    reader: ReadChunks, hit: Hit, place: ChunkBuffers | None, clock: Callable[[], float]
) -> Iterator[Fetched]:
    """Reads a pinned hit to ``place``, run by run of one tier, and ends after the first run that is
    not whole: what would follow can't be used."""
    for tier, group in groupby(range(len(hit)), key=lambda row: hit.tiers[row]):
        rows = list(group)
        keys = [hit.keys[row] for row in rows]
        whole = len(rows) == len(hit)
        target = place if place is None or whole else place.pick(rows)
        began = clock()
        answers = reader(tier, keys, target)
        yield Fetched(tier, keys, answers, clock() - began)
        if not all(answers):
            return


def _bytes_of(
    tiers: Sequence[Tier], moves: Sequence[Move], source: int, place: ChunkBuffers | None
) -> ChunkBuffers | None:
    if source == ENGINE:
        if place is None or len(moves) == len(place):
            return place
        return place.pick([move.index for move in moves])
    return tiers[source].place([move.key for move in moves])
