"""Intervals that may be looked at after every round: they must hold, and must be of use."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from reports.verdict.interval import PRIOR_VARIANCE, anytime_intervals, welch_interval


def test_all_looks_together_miss_the_mean_at_most_as_often_as_allowed() -> None:
    rng = np.random.default_rng(1)
    misses = 0
    for _ in range(1000):
        values = rng.normal(0.3, 2.0, 100)
        misses += any(not i.low <= 0.3 <= i.high for i in anytime_intervals(values.tolist(), 0.2))
    # At 200 expected at most; six standard deviations of a binomial above that are 276.
    assert 20 < misses <= 276


def test_looking_at_plain_t_intervals_after_every_round_would_not_hold() -> None:
    """The reason for all this: what five lines of scipy would do is wrong."""
    rng = np.random.default_rng(1)
    misses = 0
    for _ in range(300):
        x = rng.normal(0.0, 1.0, 100)
        n = np.arange(1, 101)
        mean = np.cumsum(x) / n
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt((np.cumsum(x**2) / n - mean**2) / (n - 1))
        misses += bool((np.abs(mean / error) > stats.t.isf(0.025, n - 1))[4:].any())
    assert misses > 300 * 0.15


@pytest.mark.parametrize("n", [8, 20, 60])
def test_the_closed_form_is_the_mixture_of_t_densities(n: int) -> None:
    """At the bound, the noncentral t densities mixed over N(0, prior), over the central one, are
    1 / level."""
    values = np.random.default_rng(n).normal(0.0, 1.0, n)
    last = anytime_intervals(values.tolist(), 0.05)[-1]
    t = (last.high - last.middle) / last.error

    def mixed(effect: float) -> float:
        density = stats.nct.pdf(t, n - 1, effect * math.sqrt(n))
        return float(density * stats.norm.pdf(effect, scale=math.sqrt(PRIOR_VARIANCE)))

    bet, _ = integrate.quad(mixed, -4, 4, limit=200)
    assert bet / stats.t.pdf(t, n - 1) == pytest.approx(1 / 0.05, rel=1e-3)


@given(
    st.lists(st.floats(-1, 1), min_size=8, max_size=30),
    st.floats(-100, 100),
    st.floats(0.1, 10),
)
@settings(deadline=None)
def test_intervals_move_and_scale_with_their_values(
    values: list[float], shift: float, scale: float
) -> None:
    if np.std(values) < 0.01:
        return
    plain = anytime_intervals(values, 0.05)[-1]
    moved = anytime_intervals([shift + scale * v for v in values], 0.05)[-1]
    assert moved.low == pytest.approx(shift + scale * plain.low, rel=1e-6, abs=1e-6)
    assert moved.high == pytest.approx(shift + scale * plain.high, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0, 1.0]])
def test_what_has_no_noise_has_no_interval(values: list[float]) -> None:
    intervals = anytime_intervals(values, 0.05)
    assert len(intervals) == len(values)
    assert all(i.low == -math.inf and i.high == math.inf for i in intervals)
    alone = welch_interval(values, values, 0.05)
    assert (alone.low, alone.high) == (-math.inf, math.inf)


def test_welch_is_that_of_scipy() -> None:
    base, new = [1.0, 1.2, 0.9, 1.1], [1.3, 1.5, 1.2, 1.4, 1.3]
    found = welch_interval(base, new, 0.05)
    bounds = stats.ttest_ind(new, base, equal_var=False).confidence_interval(0.95)
    assert found.low == pytest.approx(bounds.low)
    assert found.high == pytest.approx(bounds.high)
    assert found.low > 0
