"""What intervals are made of: they must hold, and must be of use."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from reports.verdict.interval import (
    PRIOR_VARIANCE,
    correlation,
    critical_t,
    running,
    stored_error,
)


def test_all_looks_together_miss_the_mean_at_most_as_often_as_allowed() -> None:
    values = np.random.default_rng(1).normal(0.3, 2.0, (1000, 100))
    means, squares = running(values)
    n = np.arange(1.0, 101).astype(np.float64)
    errors = np.sqrt(squares / np.maximum(n - 1, 1) / n)
    bounds = critical_t(n, 0.2)
    beyond = np.abs(means - 0.3)[:, 1:] > (bounds[1:] * errors[:, 1:])
    misses = beyond.any(-1).sum()
    # At 200 expected at most; six standard deviations of a binomial above that are 276.
    assert 20 < misses <= 276
    # The reason for all this: a plain t interval would not hold.
    plain = np.abs(means - 0.3) > stats.t.isf(0.1, np.maximum(n - 1, 1)) * errors
    assert plain[:, 4:].any(-1).sum() > 400


@pytest.mark.parametrize("n", [8, 20, 60])
def test_the_closed_form_is_the_mixture_of_t_densities(n: int) -> None:
    """At the bound, the noncentral t densities mixed over N(0, prior), over the central one, are
    1 / level."""
    [t] = critical_t(np.array([float(n)]), 0.05)

    def mixed(effect: float) -> float:
        density = stats.nct.pdf(t, n - 1, effect * math.sqrt(n))
        return float(density * stats.norm.pdf(effect, scale=math.sqrt(PRIOR_VARIANCE)))

    bet, _ = integrate.quad(mixed, -4, 4, limit=200)
    assert bet / stats.t.pdf(t, n - 1) == pytest.approx(1 / 0.05, rel=1e-3)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=30), st.integers(1, 3))
@settings(deadline=None)
def test_correlations_so_far_are_those_of_each_beginning(values: list[float], lag: int) -> None:
    array = np.array(values)
    if np.std(array) < 0.01:
        return
    found = correlation(array, lag)
    rest = array - array.mean()
    if len(values) <= lag:
        assert not found.any()
        return
    raw = float(np.sum(rest[lag:] * rest[:-lag]) / np.sum(rest**2))
    assert found[-1] == pytest.approx(raw + (1 + 4 * max(raw, 0.0)) / len(values), abs=1e-6)
    shorter = correlation(array[:-1], lag)
    if np.std(array[:-1]) > 0.01 and len(values) - 1 > lag:
        assert found[:-1] == pytest.approx(shorter, abs=1e-6)


def test_correlation_of_a_walk_is_near_one_and_of_noise_near_none() -> None:
    steps = np.random.default_rng(1).normal(size=(500, 200))
    assert np.mean(correlation(steps)[:, -1]) == pytest.approx(0.0, abs=0.02)
    assert np.mean(correlation(np.cumsum(steps, -1))[:, -1]) > 0.95


def test_the_error_of_stored_runs_is_that_of_welch_where_neighbours_do_not_depend() -> None:
    base, new = [1.0, 1.2, 0.9, 1.1, 0.8, 1.3], [1.3, 1.5, 1.2, 1.4, 1.1, 1.6]
    assert correlation(np.array(base) - np.mean(base))[-1] < 0
    error, freedom = stored_error(base, new)
    found = stats.ttest_ind(new, base, equal_var=False)
    assert float(error) == pytest.approx((np.mean(new) - np.mean(base)) / found.statistic)
    assert float(freedom) == pytest.approx(found.df)
    sticky = sorted(base)
    wider, fewer = stored_error(sticky, new)
    assert float(wider) > 1.5 * float(error) and float(fewer) < float(freedom)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_what_has_no_noise_has_no_error(values: list[float]) -> None:
    assert math.isinf(float(stored_error(values, [1.0, 2.0])[0]))
    assert math.isinf(float(stored_error([1.0, 2.0], values)[0]))
