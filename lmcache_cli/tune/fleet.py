"""Replicas that serve a trace together: which of them takes each request, and what it holds then."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.curves import HitCurve, Kind, Routing, TierCurves, routed
from lmcache_cli.tune.cost import RequestCost
from workloads.traces.arrays import TraceArrays

_KEPT = 4
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class Chunking:
    """A trace in chunks of one length. ``names`` are numbers below their count."""

    references: AccessTrace
    tiers: TierCurves
    curves: dict[Kind, HitCurve]
    names: NDArray[np.int64]


class Way(NamedTuple):
    """What decides who takes which request: the router, the load (a multiple of the trace's) where
    it looks at queues, and the chunks of the trace's length that a replica holds where it looks for
    prefixes."""

    routing: Routing
    load: float = 1.0
    holds: int | None = None

    @classmethod
    def of(cls, routing: Routing, load: float, holds: int) -> Way:
        """Returns the way without what its router does not look at."""
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

    def replica(self, references: AccessTrace, way: Way) -> NDArray[np.int64]:
        """Returns who takes each request. ``references`` are in chunks of the trace's length."""

        def make() -> NDArray[np.int64]:
            arrays = self._arrays
            return routed(
                replace(
                    references,
                    arrivals=self._times / way.load,
                    prompt_tokens=arrays.input_tokens,
                ),
                way.routing,
                self.replicas,
                arrays.output_tokens,
                arrays.session,
                self._seconds,
                way.holds,
            )

        return self._kept(("replica", way), make)

    def tiers(
        self, references: AccessTrace, replica: NDArray[np.int64], way: Way
    ) -> TierCurves:
        """Returns each replica's order of uses, in the chunks of ``references``."""
        key = "tiers", way, references.chunk_tokens
        return self._kept(key, lambda: TierCurves(references, replica, self.replicas))

    def names(
        self, chunking: Chunking, replica: NDArray[np.int64], way: Way
    ) -> NDArray[np.int64]:
        """Returns names of chunks that differ from replica to replica, numbers below their
        count."""

        def make() -> NDArray[np.int64]:
            of = np.repeat(replica, np.diff(chunking.references.offsets))
            of *= int(chunking.names.max(initial=0)) + 1
            of += chunking.names
            return np.unique(of, return_inverse=True)[1].astype(np.int64, copy=False)

        return self._kept(("names", way), make)

    def _kept(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        if key not in self._made:
            if len(self._made) >= 3 * _KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = make()
        found: _Made = self._made[key]  # type: ignore[assignment]
        return found
