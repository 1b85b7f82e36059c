"""Computes what intervals for a change between two sides are made of: one that may be looked at
after every round, one for stored runs, and how far neighbours depend on each other.

All values are plain numbers: what is put in is logarithms of times or differences of shares.
Functions work along the last axis; any axes before it are separate trials.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
PRIOR_VARIANCE = 0.25
"""The variance of the effect in units of its noise, in the mixture of :func:`critical_t`. It is
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


def critical_t(counts: Array, level: float) -> Array:
    """Returns the |t| after so many values that a mean may be looked at with after each of them:
    the chance that any of these intervals misses it is at most ``level``. Infinite where no t is
    enough. Counts need not be whole.

    Values are independent and normal with unknown variance. It is where a test martingale reaches
    1/level: the likelihood of the t statistic, its effect size mixed over N(0, PRIOR_VARIANCE),
    over its likelihood without an effect; a bet that exceeds 1/level with probability at most
    ``level`` (Ville 1939). T. L. Lai, "On confidence sequences", Ann. Stat. 4 (1976); H. Wang and
    A. Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
    variance", Sequential Analysis 44 (2025). The closed form of the mixture: Goenen et al., "The
    Bayesian two-sample t test", The American Statistician 59 (2005).
    """
    freedom = np.maximum(counts - 1, 1.0)
    spread = 1 + counts * PRIOR_VARIANCE
    needed = (np.sqrt(spread) / level) ** (2 / counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = freedom * (needed - 1) / (1 - needed / spread)
    squared[(needed >= spread) | (counts < 2)] = np.inf
    return np.sqrt(squared)


def running(values: Array) -> tuple[Array, Array]:
    """Returns the means so far, and the sums of squares about them."""
    sums = np.cumsum(values, -1)
    means = sums / np.arange(1.0, values.shape[-1] + 1)
    return means, np.maximum(np.cumsum(values**2, -1) - sums * means, 0.0)


def correlation(values: Array, lag: int = 1) -> Array:
    """Returns the correlation so far with the value ``lag`` before, freed of the bias that few
    values give it (M. G. Kendall, "Note on bias in the estimation of autocorrelation", Biometrika
    41, 1954)."""
    if values.shape[-1] <= lag:
        return np.zeros_like(values)
    n, sums = np.arange(1.0, values.shape[-1] + 1), np.cumsum(values, -1)
    means, squares = running(values)
    products, earlier = np.zeros_like(values), np.zeros_like(values)
    products[..., lag:] = np.cumsum(values[..., lag:] * values[..., :-lag], -1)
    earlier[..., lag:] = sums[..., :-lag]
    later = sums - sums[..., lag - 1 : lag]
    about = products - means * (later + earlier) + (n - lag) * means**2
    usable = (squares > 0) & (n > lag)
    raw = np.divide(about, squares, out=np.zeros_like(values), where=usable)
    return raw + (1 + 4 * np.clip(raw, 0.0, 1.0)) / n


def stored_error(base: ArrayLike, new: ArrayLike) -> tuple[Array, Array]:
    """Returns the standard error of the difference of two means of values that belong to no pairs,
    each side in order of time, and its degrees of freedom; the error is infinite with fewer than
    two values on a side.

    B. L. Welch, "The generalization of Student's problem", Biometrika 34 (1947), with as many
    values as would tell as much if neighbours did not depend on each other.
    """
    parts, freedoms = [], []
    for side in (np.asarray(base, np.float64), np.asarray(new, np.float64)):
        n = side.shape[-1]
        if n < 2:
            return np.full(side.shape[:-1], np.inf), np.ones(side.shape[:-1])
        rest = side - side.mean(-1, keepdims=True)
        stuck = np.clip(correlation(rest)[..., -1], 0.0, 0.9)
        effective = np.maximum(n * (1 - stuck) / (1 + stuck), 1.0)
        seen = np.maximum(1 - (1 / effective - 1 / n), 0.05)
        parts.append(np.var(side, axis=-1, ddof=1) / seen / effective)
        freedoms.append(np.maximum(effective - 1, 0.5))
    total = parts[0] + parts[1]
    shares = sum(part**2 / free for part, free in zip(parts, freedoms, strict=True))
    freedom = np.divide(total**2, shares, out=np.ones_like(total), where=shares > 0)
    return np.sqrt(total), freedom
