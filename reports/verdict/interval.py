"""Computes intervals for a change between two sides: one that may be looked at after every round,
and one for stored runs. Finds where a series of runs changes its level.

Both intervals are of plain numbers: what is put in is logarithms of times or differences of shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRIOR_VARIANCE = 0.25
"""The variance of the effect in units of its noise, in the mixture of ``anytime_intervals``. It is
no assumption about the effect: it chooses the rounds at which the interval is tightest (here: some
dozens)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval for a change. ``middle`` is the estimate, ``low`` and ``high`` its bounds
    (infinite while too little is known), ``error`` its standard error, after ``n`` values (of the
    smaller side)."""

    low: float
    middle: float
    high: float
    error: float
    n: int


def anytime_intervals(values: Sequence[float], level: float) -> list[Interval]:
    """Returns the interval for the mean after each value. They hold together: the chance that any
    of them, however many are looked at and whenever looking ends, misses the mean is at most
    ``level``.

    Values are independent and normal with unknown variance. It is the set of means that a test
    martingale has not rejected: the likelihood of the t statistic, its effect size mixed over N(0,
    PRIOR_VARIANCE), over its likelihood without an effect; a bet that exceeds 1/level with
    probability at most ``level`` (Ville 1939). T. L. Lai, "On confidence sequences", Ann. Stat. 4
    (1976); H. Wang and A. Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian
    means with unknown variance", Sequential Analysis 44 (2025). The closed form of the mixture:
    Goenen et al., "The Bayesian two-sample t test", The American Statistician 59 (2005).
    """
    array = np.asarray(values, dtype=np.float64)
    counts = np.arange(1, array.size + 1, dtype=np.float64)
    means = np.cumsum(array) / counts
    # Against the mean of all, so that nothing cancels.
    centred = array - (array.mean() if array.size else 0.0)
    squares = np.cumsum(centred**2) - np.cumsum(centred) ** 2 / counts
    deviations = np.sqrt(np.maximum(squares, 0.0) / np.maximum(counts - 1, 1))
    errors = deviations / np.sqrt(counts)
    # Of one value, or of equal ones, nothing is known of the noise.
    widths = np.full(array.size, math.inf)
    np.multiply(_critical_t(counts, level), errors, out=widths, where=errors > 0)
    return [
        Interval(float(m - w), float(m), float(m + w), float(e), int(n))
        for m, w, e, n in zip(means, widths, errors, counts, strict=True)
    ]


def welch_interval(base: Sequence[float], new: Sequence[float], level: float) -> Interval:
    """Returns the interval for the difference of two means of values that belong to no pairs,
    looked at once.

    B. L. Welch, "The generalization of Student's problem", Biometrika 34 (1947). Infinite with
    fewer than two values on a side, or with equal ones on both.
    """
    from scipy import stats

    n = min(len(base), len(new))
    middle = float(np.mean(new) - np.mean(base)) if n else 0.0
    if n < 2 or not (np.ptp(base) or np.ptp(new)):
        return Interval(-math.inf, middle, math.inf, 0.0, n)
    found = stats.ttest_ind(new, base, equal_var=False)
    bounds = found.confidence_interval(1 - level)
    error = math.sqrt(np.var(base, ddof=1) / len(base) + np.var(new, ddof=1) / len(new))
    return Interval(float(bounds.low), middle, float(bounds.high), error, n)


def _critical_t(counts: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Returns the |t| at which the bet reaches 1/level; infinite where no t does."""
    freedom = np.maximum(counts - 1, 1)
    spread = 1 + counts * PRIOR_VARIANCE
    needed = (np.sqrt(spread) / level) ** (2 / counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = freedom * (needed - 1) / (1 - needed / spread)
    squared[(needed >= spread) | (counts < 2)] = math.inf
    return np.sqrt(squared)


LEAST_RUNS = 6


_LEAST_SEGMENT = 3


_NORMAL_MAD = 1.4826


def change_points(values: Sequence[float]) -> list[int]:
    """Returns the indices at which a new level begins, ascending; none for fewer than six values.

    ``values`` are on a scale on which noise is alike everywhere, such as logarithms of times. PELT
    (Killick, Fearnhead, Eckley, "Optimal detection of changepoints with a linear computational
    cost", JASA 107, 2012) over the cost of a shifted mean, in the library ruptures. The penalty is
    3 sigma^2 ln n (over BIC's 2, as short segments overfit), with sigma from the median absolute
    difference of neighbours, which a change of level hardly moves.
    """
    n = len(values)
    if n < LEAST_RUNS:
        return []
    array = np.asarray(values, dtype=np.float64)
    steps = np.diff(array)
    sigma = _NORMAL_MAD * float(np.median(np.abs(steps))) / math.sqrt(2)
    if sigma == 0:
        # Without noise each step is a change; a shift smaller than rounding is none.
        return [i + 1 for i, step in enumerate(steps) if abs(step) > 1e-9]
    import ruptures

    search = ruptures.Pelt(model="l2", min_size=_LEAST_SEGMENT, jump=1).fit(array.reshape(-1, 1))
    return [int(i) for i in search.predict(pen=3 * sigma**2 * math.log(n))[:-1]]
