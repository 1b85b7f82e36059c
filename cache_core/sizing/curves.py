"""Computes hit rates at every capacity from one pass over a trace: LRU, as the Ledger runs it.

They are exact for equal chunks and stacks of LRU tiers without admission, in both placements; the
tests hold it against the Ledger. Sampled above a size, with SHARDS_adj's correction (Waldspurger et
al., FAST 2015): without it the one chunk that every prompt starts with decides the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.plan import PLACEMENTS, Placement
from cache_core.sizing.accesses import AccessTrace, Numbers, threshold

Kind = Literal["prefix", "any_position"]
REUSE_KINDS: tuple[Kind, ...] = ("prefix", "any_position")
SAMPLE_ABOVE = 20_000_000
"""The number of references above which curves are sampled, unless the caller sets another."""


class Distances(TypedDict):
    """Tokens by the smallest LRU capacity in chunks that hits them, int64 ``[distinct + 1]``, and
    those that none hits. ``total`` counts all tokens, ``sampled`` those that the sample took."""

    prefix: Numbers
    any_position: Numbers
    prefix_missed: int
    any_missed: int
    total: int
    sampled: int
    distinct: int


@dataclass(frozen=True)
class HitCurve:
    """Tokens hit at every capacity: ``capacities[i]`` chunks and more hit ``hits[i]`` tokens, up to
    the next entry; fewer than the first hit none. Both are int64 ``[points]`` and rise. ``tokens``
    are of all prompts.

    ``rate`` is the share of chunks that the curve was made from: 1 is exact.
    """

    kind: Kind
    chunk_tokens: int
    capacities: Numbers
    hits: Numbers
    tokens: int
    distinct: int
    """The number of distinct chunks; an estimate on a sampled curve."""
    rate: float = 1.0

    def hit_tokens(self, capacity: int | None) -> int:
        """Returns the tokens that an LRU tier of so many chunks hits; None is without a bound."""
        return int(self.at([self.distinct if capacity is None else capacity])[0])

    def hit_rate(self, capacity: int | None) -> float:
        """Returns the share of all prompt tokens that is hit, 0 to 1."""
        return self.hit_tokens(capacity) / max(self.tokens, 1)

    def at(self, capacities: Sequence[int] | Numbers) -> Numbers:
        """Returns the tokens hit at each capacity."""
        places = np.searchsorted(self.capacities, np.asarray(capacities, np.int64), side="right")
        hits: Numbers = np.concatenate([np.zeros(1, np.int64), self.hits])
        return hits[places]

    @property
    def ceiling(self) -> float:
        """Returns the hit rate without a bound."""
        return int(self.hits[-1]) / max(self.tokens, 1) if len(self.hits) else 0.0

    def capacity_for(self, rate: float) -> int | None:
        """Returns the fewest chunks with at least this hit rate; None if no capacity reaches it."""
        place = int(np.searchsorted(self.hits, np.ceil(rate * self.tokens), side="left"))
        if rate <= 0:
            return 0
        return int(self.capacities[place]) if place < len(self.hits) else None


def hit_curves(
    references: AccessTrace,
    kinds: Sequence[Kind] = REUSE_KINDS,
    sample_above: int = SAMPLE_ABOVE,
    seed: int = 0,
) -> dict[Kind, HitCurve]:
    """Returns a curve of each kind. ``prefix`` counts a chunk if it and all in front of it are
    held, as an engine can use them; ``any_position`` counts each chunk on its own, as blending
    could.

    More than ``sample_above`` references are sampled down to about as many.
    """
    rate = min(1.0, sample_above / max(len(references.ids), 1))
    if references.naming == "prefix":
        return _curves(references, kinds, rate, seed)
    # Prefixes have other names than contents, so each kind has a pass of its own.
    named = {"prefix": references.prefixes(), "any_position": references}
    return {kind: _curves(named[kind], [kind], rate, seed)[kind] for kind in kinds}


def _curves(
    references: AccessTrace, kinds: Sequence[Kind], rate: float, seed: int
) -> dict[Kind, HitCurve]:
    found = _native.count_distances(
        references.ids,
        references.offsets,
        references.chunk_tokens,
        references.prompt_tokens,
        threshold(rate),
        seed,
    )
    curves: dict[Kind, HitCurve] = {}
    for kind in kinds:
        histogram = found[kind]
        [places] = np.nonzero(histogram)
        hits = np.cumsum(histogram[places])
        if rate < 1:
            places, hits = _adjusted(places, hits, found["total"], found["sampled"], rate)
        curves[kind] = HitCurve(
            kind,
            references.chunk_tokens,
            places.astype(np.int64),
            hits,
            references.tokens,
            round(found["distinct"] / rate),
            rate,
        )
    return curves


def _adjusted(
    places: NDArray[np.intp], hits: Numbers, total: int, sampled: int, rate: float
) -> tuple[Numbers, Numbers]:
    """Applies SHARDS_adj: uses that the sample has too many or too few are of chunks that are used
    all the time, so they go to the shortest distance; then distances and counts are scaled up."""
    missing = total * rate - sampled
    scaled = np.rint((hits + missing) / rate).clip(0, total).astype(np.int64)
    # A chunk's distance counts the chunk itself, and only the others were thinned out.
    capacities = np.rint((places - 1) / rate).astype(np.int64) + 1
    if missing > 0 and (not len(capacities) or capacities[0] > 1):
        capacities = np.concatenate([[1], capacities])
        scaled = np.concatenate([[round(min(missing / rate, total))], scaled])
    return capacities, np.maximum.accumulate(scaled)


def curve_error(curve: HitCurve, exact: HitCurve) -> tuple[float, float]:
    """Returns the mean and greatest absolute difference of hit rate, at every thousandth of all
    distinct chunks."""
    capacities = np.ceil(np.arange(1, 1001) * exact.distinct / 1000).astype(np.int64)
    apart = np.abs(curve.at(capacities) - exact.at(capacities)) / max(exact.tokens, 1)
    return float(apart.mean()), float(apart.max())


Routing = Literal["round-robin", "least-loaded", "session", "prefix"]
ROUTINGS: tuple[Routing, ...] = ("round-robin", "least-loaded", "session", "prefix")


def routed(
    references: AccessTrace,
    routing: Routing,
    replicas: int,
    output: Numbers,
    session: Numbers,
    seconds: Sequence[float],
    holds: int | None = None,
) -> Numbers:
    """Returns the replica, a number below ``replicas``, that takes each request, int64
    ``[requests]``. Prompts and times of arrival are those of ``references``; ``output`` tokens and
    ``session`` (below 0: none) int64 ``[requests]``. A router reckons that a replica computes one
    prompt after another, with ``seconds`` of a step, a token and a pair of tokens (see
    ``PrefillCost``), and of a further token of an answer.

    ``round-robin``: each in turn. ``session``: by a hash of it, in turn without one.
    ``least-loaded``: the fewest requests under way. ``prefix``: where the first token comes first,
    by what is held of the prompt, of the ``holds`` chunks that a replica used last (None: of all),
    and by the queue; then the fewest under way. Raises ``ValueError``."""
    if routing not in ROUTINGS:
        raise ValueError(f"routing {routing!r} is not known; use one of {', '.join(ROUTINGS)}")
    named = references.prefixes()
    if named.arrivals is None or named.prompt_tokens is None:
        raise ValueError("a router needs the times and lengths of requests")
    return _native.route(
        named.ids,
        named.offsets,
        named.arrivals,
        named.prompt_tokens,
        output,
        session,
        ROUTINGS.index(routing),
        replicas,
        np.array(seconds, np.float64),
        named.chunk_tokens,
        -1 if holds is None else holds,
    )


def replica_names(names: Numbers, offsets: Numbers, replica: Numbers, replicas: int) -> Numbers:
    """Returns names of chunks that differ from replica to replica, numbers below their count, as
    ``names`` are, int64 ``[references]``; request i has those of ``offsets[i]`` to before
    ``offsets[i + 1]``, and is of ``replica[i]``. Raises ``ValueError``."""
    return _native.replica_names(names, offsets, replica, replicas)


class TierCurves:
    """Hits per tier and request of any stack of LRU tiers, from distances that are counted once.
    With ``replica`` (of each request a number below ``replicas``) each replica has tiers of its
    own.

    Keeps 8 bytes per reference. The second and later stacks cost a pass over those.
    """

    def __init__(
        self, references: AccessTrace, replica: Numbers | None = None, replicas: int = 1
    ) -> None:
        self.references = references.prefixes()
        ids, offsets = self.references.ids, self.references.offsets
        if replica is None:
            self._distances = _native.stack_distances(ids, offsets)
        else:
            self._distances = _native.replica_distances(ids, offsets, replica, replicas)

    @property
    def most(self) -> int:
        """Returns the fewest chunks with which a tier hits all that it can."""
        return max(0, int(self._distances.max(initial=0)))

    def uses_held(self, capacity: int) -> int:
        """Returns how many uses find their chunk in an LRU tier of so many, each on its own."""
        return int(((self._distances > 0) & (self._distances <= capacity)).sum())

    def hits(
        self,
        stacks: Sequence[Sequence[int | None]],
        placement: Placement = "write_on_insertion",
        pool: TierCurves | None = None,
    ) -> NDArray[np.int32]:
        """Returns the chunks of each request's leading held run that each tier serves, ``[stacks,
        requests, tiers]``. A stack is its tiers' capacities in chunks, fastest first, None without
        a bound; all have the same number of tiers. With ``pool``, of the same requests without
        replicas, the last tier is one that all share and that sees every use. Raises
        ``ValueError``."""
        if placement not in PLACEMENTS:
            raise ValueError(f"placement {placement!r} is not known; use {' or '.join(PLACEMENTS)}")
        if len({len(stack) for stack in stacks}) != 1:
            raise ValueError("stacks must be given, and have the same number of tiers each")
        if any(c is not None and c < 0 for stack in stacks for c in stack):
            raise ValueError("a capacity is negative")
        rows = [[-1 if c is None else min(c, 1 << 62) for c in stack] for stack in stacks]
        table = np.array(rows, dtype=np.int64).reshape(len(rows), -1)
        exclusive = placement == "write_on_eviction"
        shared = None if pool is None else pool._distances
        return _native.tier_hits(self._distances, self.references.offsets, table, exclusive, shared)
