"""A trace under many stacks of tiers: exact hits from one pass, times from the cost model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cache_core.curves import HitCurve, Kind, TierCurves, hit_curves
from cache_core.references import References
from lmcache_cli.tune.candidates import Outcome, Prices, Stack
from lmcache_cli.tune.cost import Cost
from lmcache_cli.tune.queueing import Arrival, first_token_times
from workloads.traces.arrays import TraceArrays

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}
_DAY_S = 86_400
_LEAST_DURATION_S = 1.0

Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Chunking:
    """The trace in chunks of one length."""

    references: References
    tiers: TierCurves
    curves: dict[Kind, HitCurve]


class Study:
    """Judges stacks on one trace. Chunk lengths are multiples of the trace's. ``rate`` divides
    arrival times: 2 is twice the load. Loads and keeps 8 bytes per reference and chunk length."""

    def __init__(self, arrays: TraceArrays, cost: Cost, prices: Prices, rate: float = 1.0) -> None:
        self.arrays, self.cost, self.prices = arrays, cost, prices
        self.arrivals = arrays.arrival_s / rate
        self.tokens = int(arrays.input_tokens.sum())
        self._chunkings: dict[int, _Chunking] = {}

    @cached_property
    def duration_s(self) -> float:
        """From the first arrival to the last."""
        return max(_LEAST_DURATION_S, float(self.arrivals[-1] - self.arrivals[0]))

    def chunk_bytes(self, chunk_tokens: int) -> int:
        """Of KV."""
        return self.cost.token_bytes * chunk_tokens

    def curves(self, chunk_tokens: int) -> dict[Kind, HitCurve]:
        """By kind; capacities are in chunks."""
        return self._chunking(chunk_tokens).curves

    def ceiling(self, chunk_tokens: int) -> float:
        """The hit rate of a cache without a bound."""
        return self.curves(chunk_tokens)["prefix"].ceiling

    def hits(self, stack: Stack) -> Tokens:
        """Prompt tokens that each tier serves, ``[requests, tiers]``; the last token of a prompt is
        always computed."""
        count = len(self.arrays)
        if not stack.tiers:
            return np.zeros((count, 0), dtype=np.int64)
        chunking = self._chunking(stack.chunk_tokens)
        size = self.chunk_bytes(stack.chunk_tokens)
        room = [nbytes // size for _, nbytes in stack.tiers]
        chunks = chunking.tiers.hits([room], stack.placement)[0].astype(np.int64)
        tokens = chunks * stack.chunk_tokens
        over = np.maximum(0, tokens.sum(axis=1) - (self.arrays.input_tokens - 1))
        for tier in reversed(range(tokens.shape[1])):
            cut = np.minimum(over, tokens[:, tier])
            tokens[:, tier] -= cut
            over -= cut
        found: Tokens = np.maximum(tokens, 0)
        return found

    def judge(self, stack: Stack) -> Outcome:
        """Hits, the mean TTFT without queueing, costs."""
        hits = self.hits(stack)
        by_tier = {name: int(hits[:, i].sum()) for i, (name, _) in enumerate(stack.tiers)}
        cached = hits.sum(axis=1)
        prompt = self.arrays.input_tokens
        new = np.maximum(1, prompt - cached)
        prefill = self.cost.prefill
        compute = prefill.a + prefill.b * new + prefill.c * new * (cached + new / 2)
        load = np.zeros(len(prompt))
        for i, (name, _) in enumerate(stack.tiers):
            tier = self.cost.tiers[name]
            chunks = -(-hits[:, i] // stack.chunk_tokens)
            load += chunks * tier.fixed_s + hits[:, i] * self.cost.token_bytes / tier.bytes_per_s
        total = np.maximum(compute, load) if self.cost.overlap else compute + load
        return Outcome(
            stack,
            by_tier,
            sum(by_tier.values()) / max(1, self.tokens),
            float(total.mean()),
            self.prices.per_hour(stack.sizes),
            self._disk_writes(stack),
        )

    def queued(self, outcome: Outcome) -> Outcome:
        """The same with TTFT percentiles of a run over the arrivals."""
        hits = self.hits(outcome.stack)
        names = [name for name, _ in outcome.stack.tiers]
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
        ttft = first_token_times(arrivals, self.cost, outcome.stack.chunk_tokens)
        found = {name: float(np.percentile(ttft, q)) for name, q in PERCENTILES.items()}
        return replace(outcome, ttft=found)

    def _disk_writes(self, stack: Stack) -> float:
        """Bytes per day: what the disk does not hold when it is used is written there."""
        size = stack.sizes.get("disk")
        if size is None:
            return 0.0
        chunking = self._chunking(stack.chunk_tokens)
        room = size // self.chunk_bytes(stack.chunk_tokens)
        held = chunking.curves["any_position"].hit_tokens(room)
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
