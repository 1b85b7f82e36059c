"""What the scheduler's half shows beyond its counters: what tiers hold, and how long requests are
looked up and wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cache_core.adapters.vllm.metrics import observe
from cache_core.ledger import Ledger


class Observed:
    """Figures of one engine; ``chunk_bytes`` is what a chunk takes in a tier, on all ranks
    together. ``clock`` in seconds, monotonic."""

    def __init__(
        self,
        ledger: Ledger,
        tiers: Sequence[str],
        chunk_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._ledger, self._tiers, self._bytes, self._clock = ledger, tiers, chunk_bytes, clock
        self._counts: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self._evicted = [0] * len(tiers)
        self._waiting: dict[str, float] = {}

    def lookup(
        self, request: str, look: Callable[[], tuple[int | None, bool]]
    ) -> tuple[int | None, bool]:
        """Times a look-up, and how long its request has to come back for another."""
        began = self._clock()
        found = look()
        now = self._clock()
        observe(self._counts, "lookup_seconds", now - began)
        if found[0] is None:
            self._waiting.setdefault(request, began)
        else:
            self.ended(request)
        return found

    def ended(self, request: str) -> None:
        """The request waits no more, or is gone."""
        since = self._waiting.pop(request, None)
        if since is not None:
            observe(self._counts, "wait_seconds", self._clock() - since)

    def take(self) -> dict[str, float]:
        """What was observed since the last call, and the gauges that have changed."""
        counts, self._counts = self._counts, {}
        ledger = self._ledger
        gauges: dict[str, float] = {"pinned_chunks": ledger.pinned}
        arriving, evictions = ledger.arriving, ledger.evictions
        for tier, name in enumerate(self._tiers):
            held = ledger.count(tier) - arriving[tier]
            gauges[f"held_chunks:{name}"] = held
            gauges[f"held_bytes:{name}"] = held * self._bytes
            gauges[f"pending_chunks:{name}"] = arriving[tier]
            capacity = ledger.capacities[tier]
            if capacity is not None:
                gauges[f"capacity_chunks:{name}"] = capacity
            evicted = evictions[tier] - self._evicted[tier]
            if evicted:
                counts[f"evictions:{name}"] = evicted
        self._evicted = evictions
        counts |= {n: value for n, value in gauges.items() if self._shown.get(n) != value}
        self._shown = gauges
        return counts
