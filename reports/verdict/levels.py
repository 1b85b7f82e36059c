"""Finds the newest change of level in a series of runs whose noise may be correlated, lopsided and
far out at times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from reports.verdict.interval import Array

LEAST_RUNS = 6
LEAST_LEVEL = 3
"""The least number of runs on each side of a change."""
HISTORY_LEVEL = 0.01
"""The chance of a change where there is none, each time that a history is looked at: it is looked
at again with each run."""
_REPLAYS = 499
_MOST_STUCK = 0.98
_GRID = 20
_LAGS = 5
_RANKED = 0.25
_PHASE, _CLEAR = 3, 3.0
_LOOSE = 0.2
"""The chance at which what follows a change is taken to have another level by now."""


@dataclass(frozen=True, slots=True)
class Level:
    """The newest change of level: from index ``start`` on, from the median ``before`` (of the runs
    since the change before it) to the median ``after``, of those runs at the end of which nothing
    speaks against one level. ``chance`` is how often noise of the same kind alone makes a step as
    large. ``seen``: some runs before it were at that level already, as on a machine that has two
    states."""

    start: int
    before: float
    after: float
    chance: float
    seen: bool = False


def newest_change(values: Sequence[float], level: float = HISTORY_LEVEL) -> Level | None:
    """Returns the newest change of level, or None: for fewer than six values, or where noise alone
    would show one with a chance of at least ``level``.

    ``values`` are in order of time, on a scale on which noise is alike everywhere. The largest step
    between two means of ranks (normal scores, so that a value far out weighs no more than its rank)
    is compared with the largest that is found in series of the same length and correlation of
    neighbours: a bootstrap (P. Buehlmann, "Sieve bootstrap for time series", Bernoulli 3, 1997), of
    first order, with the correlation taken from what the step leaves over. Where there is a step
    the search goes on in what follows it.
    """
    array = np.asarray(values, np.float64)
    found = _newest(array, level)
    if found is None:
        return None
    start, chance = found
    earlier = _newest(array[:start], level)
    before = array[earlier[0] if earlier else 0 : start]
    # A change that was taken back since is a step that noise may hide, but no regression.
    later = _newest(array[start:], _LOOSE)
    after = array[start + (later[0] if later else 0) :]
    old, new = float(np.median(before)), float(np.median(after))
    return Level(start, old, new, chance, _was_there(array, start, old, new))


def _was_there(values: Array, start: int, old: float, new: float) -> bool:
    """Returns whether some consecutive values before ``start`` were at the level ``new`` already,
    where noise is so small that a value is clearly at one or the other."""
    # Of normal noise the mean step from one value to the next is 2 / sqrt(pi) deviations.
    spread = float(np.abs(np.diff(values)).mean()) * math.sqrt(math.pi) / 2
    if abs(new - old) < _CLEAR * spread or start < _PHASE:
        return False
    there = (values[:start] - old) * np.sign(new - old) > abs(new - old) / 2
    return bool(np.lib.stride_tricks.sliding_window_view(there, _PHASE).all(-1).any())


def _newest(values: Array, level: float) -> tuple[int, float] | None:
    start, found = 0, None
    while values.size - start >= LEAST_RUNS:
        at, chance = _step(values[start:])
        if chance >= level:
            break
        start += at
        found = start, chance
    return found


def _step(values: Array) -> tuple[int, float]:
    """Returns where the largest step is, and the chance of one as large."""
    from scipy import stats

    n = values.size
    scores = stats.norm.ppf((stats.rankdata(values) - 0.5) / n)
    if np.ptp(scores) == 0:
        return 0, 1.0
    size, at, stuck = (found[0] for found in _largest(scores[None]))
    ranked, apart = _by_chance(n, math.ceil(stuck * _GRID))
    chance = _share(ranked, size)
    # Of few runs ranks say little, however far apart the levels are.
    if chance < _RANKED:
        far = _share(apart, _apart(values[None], at[None], stuck[None])[0])
        chance = min(chance, max(far, chance * HISTORY_LEVEL / _RANKED))
    return int(at), chance


def _share(ascending: Array, size: float) -> float:
    return (1 + _REPLAYS - int(np.searchsorted(ascending, size))) / (1 + _REPLAYS)


@cache
def _by_chance(n: int, stuck: int) -> tuple[Array, Array]:
    """Returns the largest steps of series without a change, and how far apart their levels are,
    each ascending, for a correlation of neighbours in twentieths."""
    rho = min(stuck / _GRID, _MOST_STUCK)
    series = np.random.default_rng(n).standard_normal((_REPLAYS, n))
    for i in range(1, n):
        series[:, i] = rho * series[:, i - 1] + math.sqrt(1 - rho**2) * series[:, i]
    sizes, at, stuck_each = _largest(series)
    return np.sort(sizes), np.sort(_apart(series, at, stuck_each))


def _apart(series: Array, at: Array, stuck: Array) -> Array:
    """Returns how far apart the medians before and after a step are, in robust standard deviations
    of what it leaves over; 0 where that has none."""
    late = np.arange(series.shape[-1]) >= at[:, None]
    one, other = (
        np.nanmedian(np.where(part, series, np.nan), -1, keepdims=True) for part in (~late, late)
    )
    rest = np.median(np.abs(series - np.where(late, other, one)), -1)
    spread = rest * np.sqrt((1 + stuck) / (1 - stuck))
    size = np.abs(other - one)[:, 0]
    found: Array = np.divide(size, spread, out=np.zeros_like(size), where=spread > 1e-9)
    return found


def _largest(series: Array) -> tuple[Array, Array, Array]:
    """Returns of each series the largest step in its standard errors, where it is, and the
    correlation of neighbours in what it leaves over."""
    n = series.shape[-1]
    counts = np.arange(1.0, n)
    sums = np.cumsum(series, -1)
    left = sums[:, :-1] / counts
    right = (sums[:, -1:] - sums[:, :-1]) / (n - counts)
    between = (right - left) ** 2 * counts * (n - counts) / n
    between[:, : LEAST_LEVEL - 1] = between[:, n - LEAST_LEVEL :] = -1.0
    at = between.argmax(-1)
    rows = np.arange(series.shape[0])
    late = np.arange(n) > at[:, None]
    rest = series - np.where(late, right[rows, at, None], left[rows, at, None])
    squares = np.maximum(np.sum(rest**2, -1), 1e-12)
    lags = [np.sum(rest[:, k:] * rest[:, :-k], -1) / squares for k in range(1, _LAGS + 1)]
    # What a fitted step takes away of it is given back.
    lags = [lag + (3 + 4 * np.maximum(lag, 0.0)) / n for lag in lags]
    stuck = np.clip(lags[0], 0.0, _MOST_STUCK)
    lasting = np.maximum(np.mean(lags, axis=0) - 1.25 / math.sqrt(_LAGS * n), 0.0)
    inflation = np.maximum((1 + stuck) / (1 - stuck), 1 + lasting * n * 0.7)
    spread = np.sqrt(squares / n * inflation)
    size = np.sqrt(between[rows, at]) / np.maximum(spread, 1e-9)
    return size, at + 1, stuck
