"""Finds what tiers hold when a request comes: of each of several replicas, and by a replay of the
Ledger where no order of uses tells."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_core.policies import make_admission
from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.curves import (
    HitCurve,
    Kind,
    Routing,
    TierCurves,
    replica_names,
    routed,
)
from cache_core.sizing.replay import LedgerReplay, one_order, replay_groups, replay_ledger
from lmcache_cli.tune.candidates import TierConfiguration
from lmcache_cli.tune.cost import RequestCost
from workloads.traces.arrays import TraceArrays

_KEPT = 4
_ROUTED_ANEW = 3_000_000
"""The references up to which every load is routed anew."""
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class Chunking:
    """A trace in chunks of one length. ``names`` are numbers below their count."""

    references: AccessTrace
    tiers: TierCurves
    curves: dict[Kind, HitCurve]
    names: NDArray[np.int64]


class Route(NamedTuple):
    """What decides who takes which request: the router, the load (a multiple of the trace's) where
    it looks at queues, and the chunks of the trace's length that a replica holds where it looks for
    prefixes."""

    routing: Routing
    load: float = 1.0
    holds: int | None = None

    @classmethod
    def of(cls, routing: Routing, load: float, holds: int, references: int) -> Route:
        """Returns the route without what its router does not look at; of very many references, the
        one at the trace's own load whatever the load."""
        load = load if references <= _ROUTED_ANEW else 1.0
        if routing in ("round-robin", "session"):
            return cls(routing)
        return cls(routing, load, holds if routing == "prefix" else None)


class Fleet:
    """``replicas`` engines of one cost. ``times`` are when requests come, in seconds. The last few
    ways are kept: 8 bytes per reference and chunk length each, and 8 for names."""

    def __init__(
        self, replicas: int, arrays: TraceArrays, cost: RequestCost, times: NDArray[np.float64]
    ) -> None:
        self.replicas = replicas
        self._arrays, self._times = arrays, times
        prefill = cost.prefill
        self._seconds = prefill.a, prefill.b, prefill.c, cost.decode_s
        self._made: dict[Hashable, object] = {}

    def replica(self, references: AccessTrace, route: Route) -> NDArray[np.int64]:
        """Returns who takes each request. ``references`` are in chunks of the trace's length."""

        def make() -> NDArray[np.int64]:
            arrays = self._arrays
            return routed(
                replace(
                    references,
                    arrivals=self._times / route.load,
                    prompt_tokens=arrays.input_tokens,
                ),
                route.routing,
                self.replicas,
                arrays.output_tokens,
                arrays.session,
                self._seconds,
                route.holds,
            )

        return self._kept(("replica", route), make)

    def tiers(
        self, references: AccessTrace, replica: NDArray[np.int64], route: Route
    ) -> TierCurves:
        """Returns each replica's order of uses, in the chunks of ``references``."""
        key = "tiers", route, references.chunk_tokens
        return self._kept(key, lambda: TierCurves(references, replica, self.replicas))

    def names(
        self, chunking: Chunking, replica: NDArray[np.int64], route: Route
    ) -> NDArray[np.int64]:
        """Returns names of chunks that differ from replica to replica, numbers below their
        count."""

        offsets = chunking.references.offsets
        return self._kept(
            ("names", route),
            lambda: replica_names(chunking.names, offsets, replica, self.replicas),
        )

    def _kept(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        if key not in self._made:
            if len(self._made) >= 3 * _KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = make()
        found: _Made = self._made[key]  # type: ignore[assignment]
        return found


def usable(
    chunks: NDArray[np.int32], prompts: NDArray[np.int64], chunk_tokens: int
) -> NDArray[np.int32]:
    """Returns hits in chunks, int32 ``[requests, tiers]``, without those of a prompt's last token,
    which is always computed. ``prompts`` are tokens."""
    over = np.maximum(
        0, chunks.sum(axis=1, dtype=np.int64) - np.maximum(0, prompts - 1) // chunk_tokens
    )
    chunks = chunks.copy()
    for tier in reversed(range(chunks.shape[1])):
        cut = np.minimum(over, chunks[:, tier])
        chunks[:, tier] -= cut.astype(np.int32)
        over -= cut
    return chunks


def replay_stack(
    stack: TierConfiguration,
    rooms: Sequence[int],
    references: AccessTrace,
    cost: RequestCost,
    times: NDArray[np.float64],
    most: NDArray[np.int64],
    bytes_per_day: float,
    rate: float = 1.0,
) -> LedgerReplay:
    """Replays the Ledger over the requests of ``references``, which come at ``times``, with tiers
    of ``rooms`` chunks; with ``rate`` < 1 over that share of the chunks, or of the requests, the
    first ones, where layers keep different things. ``most`` are the most chunks that a hit of
    each can have; the admission ``bytes-per-day`` lets ``bytes_per_day`` into the disk."""
    now = [0.0]
    groups = cost.groups(stack.chunk_tokens)
    plain = one_order(groups)
    if plain:  # a sample of the chunks writes its share; of the requests, all
        bytes_per_day *= rate
    size = cost.chunk_bytes(stack.chunk_tokens)
    admission = [
        make_admission(stack.admission, bytes_per_day, size, lambda: now[0])
        if name == "disk"
        else None
        for name, _ in stack.tiers
    ]

    def tick(request: int) -> None:
        now[0] = float(times[request])

    settings = rooms, stack.policy, stack.placement
    if plain:
        return replay_ledger(references, *settings, rate, admission=admission, on_request=tick)
    return replay_groups(
        references,
        groups,
        *settings,
        usable=most,
        admission=admission,
        on_request=tick,
        requests=max(1, round(rate * len(references))),
    )
