"""Judges requests under many stacks of tiers: exact hits from one pass or the Ledger itself, times
from the cost model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cache_core.groups import balanced_groups, slot_layout
from cache_core.layout import Group
from cache_core.policies import make_admission
from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.curves import HitCurve, Kind, TierCurves, hit_curves
from cache_core.sizing.prefill_cost import PrefillCost
from cache_core.sizing.replay import LedgerReplay, one_order, replay_groups, replay_ledger
from cache_core.tiers.disk.format import chunks_under
from lmcache_cli.tune.candidates import Prices, StackOutcome, TierConfiguration
from lmcache_cli.tune.cost import RequestCost
from lmcache_cli.tune.queueing import Arrival, Seconds, first_token_times
from workloads.traces.arrays import TraceArrays

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}
_DAY_S = 86_400
_LEAST_DURATION_S = 1.0
_KEPT_REPLAYS = 64

TokenCounts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Chunking:
    """The trace in chunks of one length."""

    references: AccessTrace
    tiers: TierCurves
    curves: dict[Kind, HitCurve]


class Study:
    """Judges stacks on one list of requests. Chunk lengths are multiples of the trace's own.
    ``rate`` divides arrival times: 2 is twice the load; ``clients`` makes it a closed loop, without
    times. ``bytes_per_day`` is the budget of the admission of that name. Loads and keeps 8 bytes
    per reference and chunk length."""

    def __init__(
        self,
        arrays: TraceArrays,
        cost: RequestCost,
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
        self._replays: dict[tuple[TierConfiguration, float], LedgerReplay] = {}

    @cached_property
    def duration_s(self) -> float:
        """Returns the seconds from the first arrival to the last; in a closed loop, as long as all
        requests take without a cache."""
        if self.clients is None:
            return max(_LEAST_DURATION_S, float(self.arrivals[-1] - self.arrivals[0]))
        prompt, output = self.arrays.input_tokens, self.arrays.output_tokens
        first = self.cost.prefill.each(prompt, np.zeros_like(prompt)).sum()
        return float(first + self.cost.decode_s * output.sum()) / self.clients

    def chunk_bytes(self, chunk_tokens: int) -> int:
        """Returns the bytes that a chunk of that many tokens takes in a tier; where layers keep
        different things, the slot of one group's."""
        if self.cost.kept:
            return slot_layout(self.groups(chunk_tokens), chunk_tokens).chunk_bytes
        return self.cost.token_bytes * chunk_tokens

    def groups(self, chunk_tokens: int) -> tuple[Group, ...]:
        """Returns the groups of layers where those keep different things; else none."""
        return balanced_groups(self.cost.kept, chunk_tokens) if self.cost.kept else ()

    def plain(self, stack: TierConfiguration) -> bool:
        """Returns whether curves give the stack's hits exactly; else the Ledger is replayed."""
        return stack.plain and one_order(self.groups(stack.chunk_tokens))

    def most_chunks(self, chunk_tokens: int) -> int:
        """Returns the most chunks that a tier can use."""
        if not self.plain(TierConfiguration((), chunk_tokens)):
            return self._unbounded(chunk_tokens).written[0]
        curve = self.curves(chunk_tokens)["prefix"]
        return (curve.capacity_for(curve.ceiling) or 0) if curve.ceiling > 0 else 0

    def _unbounded(self, chunk_tokens: int) -> LedgerReplay:
        return self.replayed(TierConfiguration((("cpu", 1 << 62),), chunk_tokens))

    def rooms(self, stack: TierConfiguration) -> list[int]:
        """Returns how many chunks each tier can hold. A disk tier keeps some of its bytes for
        itself."""
        size = self.chunk_bytes(stack.chunk_tokens)
        return [
            chunks_under(nbytes, size) if name == "disk" else nbytes // size
            for name, nbytes in stack.tiers
        ]

    def references(self, chunk_tokens: int) -> AccessTrace:
        """Returns the requests in chunks of ``chunk_tokens``."""
        return self._chunking(chunk_tokens).references

    def curves(self, chunk_tokens: int) -> dict[Kind, HitCurve]:
        """Returns the hit curves by kind; capacities are in chunks."""
        return self._chunking(chunk_tokens).curves

    def ceiling(self, chunk_tokens: int) -> float:
        """Returns the hit rate of a cache without a bound."""
        if not self.plain(TierConfiguration((), chunk_tokens)):
            found = self._unbounded(chunk_tokens)
            return int(found.hits.sum()) * chunk_tokens / max(1, self.tokens)
        return self.curves(chunk_tokens)["prefix"].ceiling

    def hits(self, stack: TierConfiguration) -> TokenCounts:
        """Returns the prompt tokens that each tier serves, ``[requests, tiers]``, in whole chunks;
        the last token of a prompt is always computed. They come from curves for LRU, else from a
        replay of the Ledger."""
        count = len(self.arrays)
        if not stack.tiers:
            return np.zeros((count, 0), dtype=np.int64)
        if self.plain(stack):
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
        tokens: TokenCounts = chunks * stack.chunk_tokens
        return tokens

    def replayed(self, stack: TierConfiguration, rate: float = 1.0) -> LedgerReplay:
        """Replays the Ledger over the requests, with ``rate`` < 1 over that share of the chunks, or
        of the requests, the first ones, where layers keep different things.
        The results are kept."""
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

            references, groups = (
                self.references(stack.chunk_tokens),
                self.groups(stack.chunk_tokens),
            )
            settings = self.rooms(stack), stack.policy, stack.placement
            if one_order(groups):
                found = replay_ledger(
                    references, *settings, rate, admission=admission, on_request=tick
                )
            else:
                found = replay_groups(
                    references,
                    groups,
                    *settings,
                    usable=(self.arrays.input_tokens - 1) // stack.chunk_tokens,
                    admission=admission,
                    on_request=tick,
                    requests=max(1, round(rate * len(references))),
                )
            self._replays[key] = found
            if len(self._replays) > _KEPT_REPLAYS:
                del self._replays[next(iter(self._replays))]
        return self._replays[key]

    @cached_property
    def times(self) -> Seconds:
        """Returns when each request comes, in seconds; spread evenly in a closed loop."""
        if self.clients is None:
            return self.arrivals
        return np.linspace(0.0, self.duration_s, len(self.arrays))

    def service(
        self, stack: TierConfiguration, hits: TokenCounts, prefill: PrefillCost | None = None
    ) -> Seconds:
        """Returns the TTFT of each request on an idle engine, ``[requests]``."""
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

    def judge(self, stack: TierConfiguration) -> StackOutcome:
        """Returns the hits, the mean TTFT without queueing, and the costs of a stack."""
        hits = self.hits(stack)
        by_tier = {name: int(hits[:, i].sum()) for i, (name, _) in enumerate(stack.tiers)}
        return StackOutcome(
            stack,
            by_tier,
            sum(by_tier.values()) / max(1, self.tokens),
            float(self.service(stack, hits).mean()),
            self.prices.per_hour(stack.sizes),
            self._disk_writes(stack),
        )

    def ttft(self, stack: TierConfiguration, prefill: PrefillCost | None = None) -> Seconds:
        """Returns the TTFT of each request in a run over the arrivals, with this prefill cost."""
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

    def queued(self, outcome: StackOutcome) -> StackOutcome:
        """Returns the outcome with TTFT percentiles of a run over the arrivals."""
        return replace(outcome, ttft=percentiles(self.ttft(outcome.stack)))

    def _disk_writes(self, stack: TierConfiguration) -> float:
        """Returns the bytes written to the disk per day: what the disk does not hold when it is
        used is written there. With another policy or admission, what the Ledger wrote."""
        size = stack.sizes.get("disk")
        if size is None:
            return 0.0
        index = [name for name, _ in stack.tiers].index("disk")
        if not self.plain(stack):
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
            references = AccessTrace(
                arrays.chunk_ids, arrays.offsets, chunk_tokens, arrivals=self.arrivals
            )
            curves = hit_curves(references)
            # A rate is of all prompt tokens, those after the last full chunk too.
            curves = {kind: replace(curve, tokens=self.tokens) for kind, curve in curves.items()}
            self._chunkings[chunk_tokens] = _Chunking(references, TierCurves(references), curves)
        return self._chunkings[chunk_tokens]


def percentiles(ttft: Seconds) -> dict[str, float]:
    """Returns ``p50`` .. ``p99`` of TTFT, in seconds, interpolated linearly."""
    return {name: float(np.percentile(ttft, q)) for name, q in PERCENTILES.items()}


DAYS_RESAMPLED = 1000


BLOCKS = 20
"""The number of stretches of time that are drawn where a trace does not tell sessions, or has few
of them."""


_LEAST_GROUPS = 5


_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """The uncertainty of a prediction. ``hit_rate``: a 95 % interval, a bootstrap over ``groups``
    (None with fewer than 5, and without a tier, which hits nothing on any day). ``ttft``:
    percentile to seconds with the fastest and the slowest prefill that is assumed, or was measured,
    at the same hits; None if that is not known."""

    hit_rate: tuple[float, float] | None
    groups: str
    ttft: dict[str, tuple[float, float]] | None


def uncertainty(study: Study, stack: TierConfiguration, seed: int = 0) -> Uncertainty:
    """Returns the uncertainty of a stack's prediction."""
    groups, what = _groups(study)
    rate = None
    if stack.tiers:
        hits = study.hits(stack).sum(axis=1)
        rate = _interval(hits, study.arrays.input_tokens, groups, seed)
    return Uncertainty(rate, what, _ttft(study, stack))


def _groups(study: Study) -> tuple[NDArray[np.int64], str]:
    """Returns each request's group, and what the groups are. Requests of a session are not
    independent of each other, nor are those of the same hour; a resampled session keeps the hits
    that it had (Efron & Tibshirani 1993, section 8.5: blocks)."""
    sessions = study.arrays.session
    named = np.unique(sessions[sessions >= 0])
    if len(named) >= BLOCKS and (sessions >= 0).all() and len(named) < len(sessions):
        return np.unique(sessions, return_inverse=True)[1].astype(np.int64), "sessions"
    count = min(BLOCKS, len(sessions))
    return np.arange(len(sessions), dtype=np.int64) * count // len(sessions), "blocks of time"


def _interval(
    hits: NDArray[np.int64], tokens: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> tuple[float, float] | None:
    count = int(groups.max()) + 1 if len(groups) else 0
    if count < _LEAST_GROUPS:
        return None
    per = np.bincount(groups, hits, count), np.bincount(groups, tokens, count)
    rng = np.random.default_rng(seed)
    rates = np.empty(DAYS_RESAMPLED)
    for i in range(DAYS_RESAMPLED):
        drawn = rng.integers(0, count, count)
        rates[i] = per[0][drawn].sum() / max(1.0, per[1][drawn].sum())
    low, high = np.percentile(rates, _INTERVAL)
    return float(low), float(high)


def _ttft(study: Study, stack: TierConfiguration) -> dict[str, tuple[float, float]] | None:
    if study.cost.prefill_range is None:
        return None
    fast, slow = (percentiles(study.ttft(stack, cost)) for cost in study.cost.prefill_range)
    return {name: (fast[name], slow[name]) for name in fast}
