"""How sure a prediction is: what another such day would hit, the fastest and slowest prefill."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmcache_cli.tune.candidates import TierConfiguration
from lmcache_cli.tune.queueing import percentiles
from lmcache_cli.tune.study import PERCENTILES, Study

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
    fast, slow = (
        percentiles(study.run(stack, prefill=cost).ttft, PERCENTILES)
        for cost in study.cost.prefill_range
    )
    return {name: (fast[name], slow[name]) for name in PERCENTILES}
