"""Defines the connector's counters, gauges and histograms, in vLLM's log and beside its own at
/metrics, and observes for them on the scheduler side."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from cache_core.ledger import Ledger


class Observed:
    """The figures of one engine that the scheduler side observes; ``chunk_bytes`` is what a chunk
    takes in a tier, on all ranks together. ``clock`` in seconds, monotonic."""

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
        # A name for each would cost more than the look-up of a request that waits.
        self._lookups = [0] * (len(BOUNDS) + 1)
        self._lookup_s = [0.0] * len(self._lookups)

    def lookup(
        self, look: Callable[[Any, int], tuple[int | None, bool]], request: Any, computed: int
    ) -> tuple[int | None, bool]:
        """Makes a look-up and times it, and how long its request has to come back for another."""
        began = self._clock()
        found = look(request, computed)
        seconds = self._clock() - began
        bucket = bisect_left(BOUNDS, seconds)
        self._lookups[bucket] += 1
        self._lookup_s[bucket] += seconds
        if found[0] is None:
            self._waiting.setdefault(request.request_id, began)
        elif self._waiting:
            self.ended(request.request_id)
        return found

    def ended(self, request: str) -> None:
        """Records that the request waits no more, or is gone."""
        since = self._waiting.pop(request, None)
        if since is not None:
            observe(self._counts, "wait_seconds", self._clock() - since)

    def take(self) -> dict[str, float]:
        """Returns what was observed since the last call, and the gauges that have changed."""
        counts, self._counts = self._counts, {}
        for bucket, calls in enumerate(self._lookups):
            if calls:
                counts[f"lookup_seconds/{bucket}"] = calls
                counts[f"lookup_seconds/{bucket}s"] = self._lookup_s[bucket]
                self._lookups[bucket], self._lookup_s[bucket] = 0, 0.0
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


_BY_TIER = {
    "hit_tokens": "Prompt tokens whose KV a tier had; device is vLLM's own prefix cache.",
    "promised_chunks": "Chunks that a tier was to give to requests.",
    "delivered_chunks": "Chunks of those that it gave, to all ranks.",
    "read_bytes": "Bytes loaded from a tier.",
    "read_seconds": "Seconds spent loading from a tier.",
    "prefetched_chunks": "Chunks that moved from a tier to DRAM while their requests waited.",
    "prefetched_bytes": "Bytes that were read from a tier for that, whole slabs.",
    "prefetched_seconds": "Seconds that these reads took.",
    "write_bytes": "Bytes stored in a tier.",
    "write_seconds": "Seconds spent storing in a tier.",
    "dropped_chunks": "Chunks that a tier did not take because too much was queued for it, or"
    " because it did not come back.",
    "evictions": "Chunks that left a tier to make room for others; of a tier that others fill too,"
    " chunks that are no longer kept in mind.",
    "suspensions": "Times that a tier was left out of look-ups for a while because it could not be"
    " read.",
}
_BY_REASON = {
    "uncached_requests": "Requests that are neither looked up nor saved, by reason.",
}
_PLAIN = {
    "prompt_tokens": "Prompt tokens of requests that were looked up.",
    "prefill_seconds_saved": "Prefill that loading spared, less the loading (estimated from this"
    " engine's own steps).",
    "blend_reused_tokens": "Tokens of segments whose KV was used away from where it was made.",
    "blend_computed_tokens": "Tokens that were computed on top of reused segments.",
    "prefetch_used_chunks": "Chunks that moved to DRAM for a request that waited, and were loaded"
    " from there.",
    "prefetch_unused_chunks": "Chunks that moved, or were to move, and were not used: their request"
    " ran before, ended, or did not need them.",
    "failed_loads": "Loads that ended early; their tokens were computed.",
    "failed_saves": "Chunks that a tier did not take.",
    "saves_deferred": "Steps whose saving was put off because too much was on its way.",
}
_GAUGES_BY_TIER = {
    "held_chunks": "Chunks that a tier can give now, on every rank.",
    "held_bytes": "Bytes of those, on all ranks together.",
    "pending_chunks": "Chunks on their way into a tier, which has reserved room for them.",
    "capacity_chunks": "Chunks that a tier has room for; missing for one without a bound.",
}
_GAUGES = {
    "pinned_chunks": "Chunks that loads under way protect from eviction, each counted once.",
}
_SECONDS_BY_TIER = {
    "load_seconds": "Seconds that a rank took to read a load's chunks from a tier.",
}
_SECONDS = {
    "lookup_seconds": "Seconds that the scheduler took to look a request up once.",
    "wait_seconds": "Seconds that a request waited for chunks that were being stored or asked"
    " for, or for its keys.",
}
BOUNDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""The upper bounds of the histograms' buckets, in seconds; one more is for what lies above."""


def observe(counts: dict[str, float], name: str, seconds: float) -> None:
    """Counts one observation of a histogram, ``name`` or ``name:tier``: in its bucket, two numbers
    that add up however many observations there are."""
    bucket = f"{name}/{bisect_left(BOUNDS, seconds)}"
    counts[bucket] = counts.get(bucket, 0.0) + 1
    counts[f"{bucket}s"] = counts.get(f"{bucket}s", 0.0) + seconds


class ConnectorStats(KVConnectorStats):
    """The connector's figures by name, or by ``name:tier`` or ``name:reason``, and for each bucket
    B of a histogram ``.../B`` (observations) and ``.../Bs`` (their seconds). All add up, over ranks
    and over time, but for gauges: the scheduler alone knows them, and the latest counts."""

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> ConnectorStats:
        for name, amount in other.data.items():
            if name.partition(":")[0] in _GAUGES | _GAUGES_BY_TIER:
                self.data[name] = amount
            else:
                self.data[name] = self.data.get(name, 0.0) + amount
        return self

    def reduce(self) -> dict[str, int | float]:
        """Returns, for vLLM's log, a figure per counter and gauge, and two per histogram."""
        found: dict[str, int | float] = {}
        for full, amount in self.data.items():
            series, _, bucket = full.partition("/")
            name = f"lmcache_{series.replace(':', '_')}"
            if bucket:
                name += "_sum" if bucket.endswith("s") else "_count"
            found[name] = found.get(name, 0) + amount
        return {name: round(amount, 4) for name, amount in found.items()}

    def is_empty(self) -> bool:
        return not self.data


class ConnectorMetrics(KVConnectorPromMetrics):
    """The connector's figures as Prometheus has them, ``lmcache:NAME``."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        labels = list(self._labelnames)
        tier = [*labels, "tier"]

        def made(make: Any, kind: dict[str, str], labels: list[str], **more: Any) -> dict[str, Any]:
            return {
                name: make(name=f"lmcache:{name}", documentation=text, labelnames=labels, **more)
                for name, text in kind.items()
            }

        count, gauge, seconds = self._counter_cls, self._gauge_cls, self._histogram_cls
        self._counters: dict[str, Counter] = made(count, _BY_TIER, tier)
        self._counters |= made(count, _BY_REASON, [*labels, "reason"])
        self._counters |= made(count, _PLAIN, labels)
        # Of several API servers, each is given some of the steps.
        latest = {"multiprocess_mode": "mostrecent"}
        self._gauges: dict[str, Gauge] = made(gauge, _GAUGES_BY_TIER, tier, **latest)
        self._gauges |= made(gauge, _GAUGES, labels, **latest)
        buckets = {"buckets": list(BOUNDS)}
        self._histograms: dict[str, Histogram] = made(seconds, _SECONDS_BY_TIER, tier, **buckets)
        self._histograms |= made(seconds, _SECONDS, labels, **buckets)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        values = self.per_engine_labelvalues[engine_idx]
        for full, amount in transfer_stats_data.items():
            series, _, bucket = full.partition("/")
            name, _, which = series.partition(":")
            labels = [*values, which] if which else values
            if name in self._gauges:
                self._gauges[name].labels(*labels).set(amount)
            elif name in self._counters and amount > 0:
                self._counters[name].labels(*labels).inc(amount)
            elif name in self._histograms and bucket.isdigit():
                mean = _within(int(bucket), transfer_stats_data[f"{full}s"] / amount)
                for _ in range(round(amount)):
                    self._histograms[name].labels(*labels).observe(mean)


def _within(bucket: int, seconds: float) -> float:
    """Returns the mean of a bucket's observations, within the bucket whatever rounding made of
    it."""
    low = BOUNDS[bucket - 1] if bucket else 0.0
    high = BOUNDS[bucket] if bucket < len(BOUNDS) else math.inf
    return min(max(seconds, math.nextafter(low, math.inf)), high)
