"""What a stack is worth: the load that it carries, the cards that the trace takes then, money;
whether loading from a tier pays; and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmcache_cli.tune.candidates import (
    Goal,
    StackOutcome,
    TierConfiguration,
    bought_text,
    latency_of,
    latency_text,
    recommend,
)
from lmcache_cli.tune.queueing import PERCENTILES, percentiles
from lmcache_cli.tune.study import Study
from reports.units import seconds_text

_LEAST_LOAD, _MOST_LOAD = 1 / 1024, 64.0
_STEPS = 5
"""Halvings of the bracket of a load, which is a factor of two: 2 % at last."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What the replicas with their stack carry, and how many the trace takes. ``load`` is a
    multiple of the trace's: the highest that was found to keep all bounds on latencies; without
    bounds, what the engine can serve. ``latency`` are seconds by name at that load (empty without
    bounds). ``replicas`` of ``cards`` together serve the trace if each finds as much as one of
    those that were run; both are None where no load keeps the bounds. ``per_hour``
    are dollars for the cards and tiers of all of them, ``per_million`` for a million tokens, in and
    out, at that load; None where it is ``capped``: more was not looked for."""

    load: float
    latency: Mapping[str, float]
    replicas: int | None
    cards: int | None
    per_hour: float | None
    per_million: float | None
    capped: bool = False


def worth(study: Study, outcome: StackOutcome, goal: Goal) -> Worth:
    """Finds what a stack is worth: a run over the arrivals for each load that is tried."""
    load, latency = outcome.capacity, dict[str, float]()
    if goal.slo:
        load, latency = kept_load(study, outcome, goal)
    if not load > 0:
        return Worth(0.0, latency, None, None, None, None)
    there = study.replicas
    replicas = max(1, ceil(there / load - 1e-9)) if isfinite(load) else 1
    whole = study.prices.cards + outcome.cost_per_hour
    priced = study.prices.cards > 0 and isfinite(load)
    capped = bool(goal.slo) and load >= _MOST_LOAD
    per_million = whole / (study.millions_per_hour * load) if priced and not capped else None
    cards, per_hour = replicas * study.cost.cards, replicas * whole / there
    return Worth(load, latency, replicas, cards, per_hour, per_million, capped)


def kept_load(study: Study, outcome: StackOutcome, goal: Goal) -> tuple[float, dict[str, float]]:
    """Returns the highest multiple of the trace's load at which a stack keeps all bounds on
    latencies, as far as it was looked for (a doubling, then bisection), and the latencies there. A
    load that is returned was run; 0 if none keeps them. In a closed loop load is not given from
    outside: it is 1 or 0."""

    def run(load: float) -> dict[str, float]:
        return study.summary(outcome.stack, load)[0]

    def keeps(latency: Mapping[str, float]) -> bool:
        return all(latency.get(name, 0.0) <= most for name, most in goal.slo.items())

    low, kept = 1.0, run(1.0)
    if study.clients is not None:
        return (1.0, kept) if keeps(kept) else (0.0, kept)
    if keeps(kept):
        high = 2.0
        while high <= _MOST_LOAD and keeps(found := run(high)):
            low, high, kept = high, 2 * high, found
        if high > _MOST_LOAD:
            return low, kept
    else:
        high = 1.0
        while not keeps(kept):
            low /= 2
            if low < _LEAST_LOAD:
                return 0.0, kept
            high, kept = 2 * low, run(low)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = run(middle)
        if keeps(found):
            low, kept = middle, found
        else:
            high = middle
    return low, kept


@dataclass(frozen=True, slots=True)
class PoolOrRouter:
    """What replicas have ``today``, and what nothing but another ``router``, nothing but a
    ``pool``, and ``both`` would give; each is today's where nothing is better. ``cheaper`` names
    the one that comes first: of those that keep every bound the cheapest, else by the number that
    decides."""

    today: StackOutcome
    router: StackOutcome
    pool: StackOutcome
    both: StackOutcome
    cheaper: Literal["router", "pool", "neither"]

    @property
    def points(self) -> dict[str, StackOutcome]:
        """Returns the outcomes by name."""
        return {
            "today": self.today,
            "router": self.router,
            "pool": self.pool,
            "both": self.both,
        }

    def lines(self, name: str) -> tuple[str, ...]:
        """Describes in words which is the cheaper point, a pool or a better router, and what both
        give; ``name`` is the latency that is told."""

        def text(outcome: StackOutcome) -> str:
            cost = outcome.cost_per_hour
            price = f"${cost:.4f} an hour" if cost else "no money"
            return (
                f"{100 * outcome.hit_rate:.1f} % hits, {latency_text(name)}"
                f" {latency_of(outcome, name)}, for {price}"
            )

        first = {
            "router": "a better router is the cheaper point",
            "pool": "a pool is the cheaper point",
            "neither": "neither a better router nor a pool is worth it",
        }[self.cheaper]
        lines = [f"{first}; as it is ({self.today.stack.routing}): {text(self.today)}"]
        if self.router.stack != self.today.stack:
            lines.append(f"the best router, {self.router.stack.routing}: {text(self.router)}")
        else:
            lines.append(f"no other router is better than {self.today.stack.routing}")
        if self.pool.stack.bought:
            lines.append(f"{bought_text(self.pool)}: {text(self.pool)}")
        else:
            lines.append("no size of a pool is better than none")
        if self.both.stack not in (self.router.stack, self.pool.stack):
            how = f"{bought_text(self.both)} behind {self.both.stack.routing}"
            lines.append(f"both, {how}: {text(self.both)}")
        return tuple(lines)


def pool_or_router(study: Study, found: Sequence[StackOutcome], goal: Goal) -> PoolOrRouter:
    """Compares a pool with a better router, of what was judged."""
    plain = [o for o in found if o.stack.bought.keys() <= {"remote"}]
    routers = [o for o in plain if not o.stack.bought]
    today = next(o for o in routers if o.stack == study.today)
    pools = [o for o in plain if o.stack.routing == study.routing]
    router, pool = recommend([today, *routers], goal), recommend([today, *pools], goal)
    first = recommend([today, router, pool], goal)
    cheaper: Literal["router", "pool", "neither"] = "neither"
    if first is not today:
        cheaper = "router" if first is router else "pool"
    both = recommend([today, *plain], goal)
    shown = [study.judge(o.stack) for o in (today, router, pool, both)]
    return PoolOrRouter(shown[0], shown[1], shown[2], shown[3], cheaper)


def needed_load(outcome: StackOutcome) -> float:
    """Returns how many such replicas the trace takes, not rounded: above 1 it is too much for
    one."""
    return 1 / outcome.capacity if outcome.capacity else inf


@dataclass(frozen=True, slots=True)
class LoadOrCompute:
    """A typical hit of one tier: ``tokens`` (the median of the requests that have one, or a mean
    prompt where none has), loaded in ``load_s`` or computed in ``compute_s``. Below
    ``break_even_bytes_s`` computing wins; None if no bandwidth is enough, because the fixed costs
    of loading alone take longer."""

    tier: str
    tokens: int
    load_s: float
    compute_s: float
    bytes_per_s: float
    break_even_bytes_s: float | None

    @property
    def loads(self) -> bool:
        """Returns whether loading is faster than computing."""
        return self.load_s < self.compute_s

    def text(self) -> str:
        """Describes the choice between loading and computing in words."""
        times = f"{seconds_text(self.load_s)} against {seconds_text(self.compute_s)}"
        what = "load" if self.loads else "recompute"
        if self.break_even_bytes_s is None:
            even = "no bandwidth would make up for the fixed cost of a load"
        else:
            even = f"break-even at {self.break_even_bytes_s / 1e9:.3g} GB/s"
        return (
            f"{self.tier}: {what} ({times} for {self.tokens:,} tokens at"
            f" {self.bytes_per_s / 1e9:.3g} GB/s; {even})"
        )


def load_or_compute(study: Study, chosen: StackOutcome) -> list[LoadOrCompute]:
    """Compares loading with computing for every tier that the costs know, in the chosen stack or
    not."""
    stack, cost = chosen.stack, study.cost
    hits = study.hits(stack)
    names = [name for name, _ in stack.tiers]
    found = []
    for name, tier in cost.tiers.items():
        tokens = _typical(study, stack, hits[:, names.index(name)] if name in names else None)
        chunks = -(-tokens // stack.chunk_tokens)
        nbytes = tokens * cost.token_bytes
        compute = cost.prefill.saved(tokens)
        left = compute - tier.call_s - chunks * tier.fixed_s
        found.append(
            LoadOrCompute(
                name,
                tokens,
                tier.seconds(chunks, nbytes),
                compute,
                tier.bytes_per_s,
                nbytes / left if left > 0 else None,
            )
        )
    return found


def _typical(
    study: Study, stack: TierConfiguration, hits: np.ndarray[tuple[int], np.dtype[np.int64]] | None
) -> int:
    tokens = study.tokens / max(1, len(study.arrays))
    if hits is not None and (hits > 0).any():
        tokens = float(np.median(hits[hits > 0]))
    return max(stack.chunk_tokens, round(tokens / stack.chunk_tokens) * stack.chunk_tokens)


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

    def lines(self, another: str) -> tuple[str, ...]:
        """Describes the uncertainty in words; ``another`` is what the trace is one of, like
        ``day`` or ``2 min 15 s``."""
        found = []
        if self.hit_rate is not None:
            low, high = self.hit_rate
            found.append(
                f"hit rate {100 * low:.1f} to {100 * high:.1f} % on another such {another} (95 %,"
                f" bootstrap over {self.groups})"
            )
        if self.ttft is not None:
            times = ", ".join(
                f"{n} {seconds_text(a)} to {seconds_text(b)}" for n, (a, b) in self.ttft.items()
            )
            found.append(f"TTFT with the fastest and the slowest prefill that is likely: {times}")
        return tuple(found)


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
    fast, slow = (
        percentiles(study.run(stack, prefill=cost).ttft, PERCENTILES)
        for cost in study.cost.prefill_range
    )
    return {name: (fast[name], slow[name]) for name in PERCENTILES}
