"""Requests under many stacks of tiers: exact hits from one pass or the Ledger itself, times from
the cost model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cache_core.admission import make_admission
from cache_core.curves import HitCurve, Kind, TierCurves, hit_curves
from cache_core.prefill import PrefillCost
from cache_core.references import References
from cache_core.simulation import Replay, replay
from cache_core.tiers.disk.format import chunks_under
from lmcache_cli.tune.candidates import Outcome, Prices, Stack
from lmcache_cli.tune.cost import Cost
from lmcache_cli.tune.queueing import Arrival, Seconds, first_token_times
from workloads.traces.arrays import TraceArrays

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}
_DAY_S = 86_400
_LEAST_DURATION_S = 1.0
_KEPT_REPLAYS = 64

Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Chunking:
    """The trace in chunks of one length."""

    references: References
    tiers: TierCurves
    curves: dict[Kind, HitCurve]


class Study:
    """Judges stacks on one list of requests. Chunk lengths are multiples of its own. ``rate``
    divides arrival times: 2 is twice the load; ``clients`` makes it a closed loop, without times.
    ``bytes_per_day`` is the budget of the admission of that name. Loads and keeps 8 bytes per
    reference and chunk length."""

    def __init__(
        self,
        arrays: TraceArrays,
        cost: Cost,
        prices: Prices,
        rate: float = 1.0,
        clients: int | None = None,
        bytes_per_day: float = 0.0,
    ) -> None:
        self.arrays, self.cost, self.prices = arrays, cost, prices
        self.clients, self.bytes_per_day = clients, bytes_per_day
        self.arrivals = arrays.arrival_s / rate
        self.tokens = int(arrays.input_tokens.sum())
        self._chunkings: dict[int, _Chunking] = {}
        self._replays: dict[tuple[Stack, float], Replay] = {}

    @cached_property
    def duration_s(self) -> float:
        """From the first arrival to the last; in a closed loop, as long as all requests take
        without a cache."""
        if self.clients is None:
            return max(_LEAST_DURATION_S, float(self.arrivals[-1] - self.arrivals[0]))
        prompt, output = self.arrays.input_tokens, self.arrays.output_tokens
        first = self.cost.prefill.each(prompt, np.zeros_like(prompt)).sum()
        return float(first + self.cost.decode_s * output.sum()) / self.clients

    def chunk_bytes(self, chunk_tokens: int) -> int:
        """Of KV."""
        return self.cost.token_bytes * chunk_tokens

    def rooms(self, stack: Stack) -> list[int]:
        """Chunks that each tier has room for. A disk tier keeps some of its bytes for itself."""
        size = self.chunk_bytes(stack.chunk_tokens)
        return [
            chunks_under(nbytes, size) if name == "disk" else nbytes // size
            for name, nbytes in stack.tiers
        ]

    def references(self, chunk_tokens: int) -> References:
        """The requests in chunks of that length."""
        return self._chunking(chunk_tokens).references

    def curves(self, chunk_tokens: int) -> dict[Kind, HitCurve]:
        """By kind; capacities are in chunks."""
        return self._chunking(chunk_tokens).curves

    def ceiling(self, chunk_tokens: int) -> float:
        """The hit rate of a cache without a bound."""
        return self.curves(chunk_tokens)["prefix"].ceiling

    def hits(self, stack: Stack) -> Tokens:
        """Prompt tokens that each tier serves, ``[requests, tiers]``, in whole chunks; the last
        token of a prompt is always computed. From curves for LRU, else a replay of the Ledger."""
        count = len(self.arrays)
        if not stack.tiers:
            return np.zeros((count, 0), dtype=np.int64)
        if stack.plain:
            served = self._chunking(stack.chunk_tokens).tiers
            chunks = served.hits([self.rooms(stack)], stack.placement)[0].astype(np.int64)
        else:
            chunks = self.replayed(stack).hits.astype(np.int64)
        usable = (self.arrays.input_tokens - 1) // stack.chunk_tokens
        over = np.maximum(0, chunks.sum(axis=1) - usable)
        for tier in reversed(range(chunks.shape[1])):
            cut = np.minimum(over, chunks[:, tier])
            chunks[:, tier] -= cut
            over -= cut
        tokens: Tokens = chunks * stack.chunk_tokens
        return tokens

    def replayed(self, stack: Stack, rate: float = 1.0) -> Replay:
        """The Ledger over the requests, of a share of the chunks with ``rate`` < 1. Kept."""
        key = (stack, rate)
        if key not in self._replays:
            now = [0.0]
            bytes_per_day = rate * self.bytes_per_day
            size = self.chunk_bytes(stack.chunk_tokens)
            admission = [
                make_admission(stack.admission, bytes_per_day, size, lambda: now[0])
                if name == "disk"
                else None
                for name, _ in stack.tiers
            ]
            times = self.times

            def tick(request: int) -> None:
                now[0] = float(times[request])

            self._replays[key] = replay(
                self.references(stack.chunk_tokens),
                self.rooms(stack),
                stack.policy,
                stack.placement,
                rate,
                admission=admission,
                on_request=tick,
            )
            if len(self._replays) > _KEPT_REPLAYS:
                del self._replays[next(iter(self._replays))]
        return self._replays[key]

    @cached_property
    def times(self) -> Seconds:
        """When each request comes; spread evenly in a closed loop."""
        if self.clients is None:
            return self.arrivals
        return np.linspace(0.0, self.duration_s, len(self.arrays))

    def service(self, stack: Stack, hits: Tokens, prefill: PrefillCost | None = None) -> Seconds:
        """TTFT of each request on an idle engine, ``[requests]``."""
        cached = hits.sum(axis=1)
        new = np.maximum(1, self.arrays.input_tokens - cached)
        compute = (prefill or self.cost.prefill).each(new, cached)
        load = np.zeros(len(new))
        for i, (name, _) in enumerate(stack.tiers):
            tier = self.cost.tiers[name]
            chunks = -(-hits[:, i] // stack.chunk_tokens)
            load += chunks * tier.fixed_s + hits[:, i] * self.cost.token_bytes / tier.bytes_per_s
            load += np.where(chunks > 0, tier.call_s, 0.0)
        return np.maximum(compute, load) if self.cost.overlap else compute + load

    def judge(self, stack: Stack) -> Outcome:
        """Hits, the mean TTFT without queueing, costs."""
        hits = self.hits(stack)
        by_tier = {name: int(hits[:, i].sum()) for i, (name, _) in enumerate(stack.tiers)}
        return Outcome(
            stack,
            by_tier,
            sum(by_tier.values()) / max(1, self.tokens),
            float(self.service(stack, hits).mean()),
            self.prices.per_hour(stack.sizes),
            self._disk_writes(stack),
        )

    def ttft(self, stack: Stack, prefill: PrefillCost | None = None) -> Seconds:
        """TTFT of each request in a run over the arrivals, with this cost of prefill."""
        hits = self.hits(stack)
        names = [name for name, _ in stack.tiers]
        arrivals = [
            Arrival(
                float(at), int(prompt), int(output), dict(zip(names, row.tolist(), strict=True))
            )
            for at, prompt, output, row in zip(
                self.arrivals,
                self.arrays.input_tokens,
                self.arrays.output_tokens,
                hits,
                strict=True,
            )
        ]
        cost = self.cost if prefill is None else replace(self.cost, prefill=prefill)
        return first_token_times(arrivals, cost, stack.chunk_tokens, clients=self.clients)

    def queued(self, outcome: Outcome) -> Outcome:
        """The same with TTFT percentiles of a run over the arrivals."""
        return replace(outcome, ttft=percentiles(self.ttft(outcome.stack)))

    def _disk_writes(self, stack: Stack) -> float:
        """Bytes per day: what the disk does not hold when it is used is written there. With another
        policy or admission, what the Ledger wrote."""
        size = stack.sizes.get("disk")
        if size is None:
            return 0.0
        index = [name for name, _ in stack.tiers].index("disk")
        if not stack.plain:
            chunks = self.replayed(stack).written[index]
            return chunks * self.chunk_bytes(stack.chunk_tokens) * _DAY_S / self.duration_s
        chunking = self._chunking(stack.chunk_tokens)
        held = chunking.curves["any_position"].hit_tokens(self.rooms(stack)[index])
        used = int(np.diff(chunking.references.offsets).sum()) * stack.chunk_tokens
        written = max(0, used - held) * self.cost.token_bytes
        return written * _DAY_S / self.duration_s

    def _chunking(self, chunk_tokens: int) -> _Chunking:
        if chunk_tokens not in self._chunkings:
            arrays = self.arrays.longer_chunks(chunk_tokens // self.arrays.chunk_tokens)
            references = References(
                arrays.chunk_ids, arrays.offsets, chunk_tokens, arrivals=self.arrivals
            )
            curves = hit_curves(references)
            # A rate is of all prompt tokens, those behind the last full chunk too.
            curves = {kind: replace(curve, tokens=self.tokens) for kind, curve in curves.items()}
            self._chunkings[chunk_tokens] = _Chunking(references, TierCurves(references), curves)
        return self._chunkings[chunk_tokens]


def percentiles(ttft: Seconds) -> dict[str, float]:
    """``p50`` .. ``p99``, in seconds, interpolated linearly."""
    return {name: float(np.percentile(ttft, q)) for name, q in PERCENTILES.items()}
