"""Decisions at every look, under noise of many kinds: each rate that docs/check.md promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from reports.verdict.interval import Array
from reports.verdict.looks import (
    LEAST_ROUNDS,
    SURE_ROUNDS,
    Decision,
    Looks,
    decide,
    signs,
)

BOUND = math.log(1.05)
TRIALS = (400, 60)


def sticky(rng: np.random.Generator, shape: tuple[int, ...], rho: float, sd: float) -> Array:
    """AR(1) from its stationary state."""
    steps = rng.normal(0, sd, shape)
    found = steps.copy()
    for i in range(1, shape[-1]):
        found[..., i] = rho * found[..., i - 1] + math.sqrt(1 - rho**2) * steps[..., i]
    return found


def decided(a: Array, b: Array, change: float = 0.0, over: bool = True) -> Decision:
    return decide(Looks.of(a, b + math.log1p(change)), BOUND, False, 0.05, 0.05, over)


def shares(outcomes: NDArray[np.int64]) -> tuple[float, float]:
    return float((outcomes == 1).mean()), float((outcomes == -1).mean())


def test_independent_noise_is_judged_right() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 0.05, (2, *TRIALS))
    same, slow = decided(a, b), decided(a, b, 0.10)
    assert shares(same.outcome)[0] == 0 and shares(same.outcome)[1] > 0.97
    assert shares(slow.outcome)[0] > 0.95 and shares(slow.outcome)[1] == 0
    assert (same.high[same.outcome == -1] < BOUND).all()
    assert (slow.low[slow.outcome == 1] > BOUND).all()
    at_the_limit = shares(decided(a, b, 0.05).outcome)
    assert max(at_the_limit) < 0.08


@pytest.mark.parametrize("sd", [0.05, 0.10])
def test_noise_that_sticks_to_each_side_is_no_regression(sd: float) -> None:
    rng = np.random.default_rng(2)
    a, b = sticky(rng, TRIALS, 0.95, sd), sticky(rng, TRIALS, 0.95, sd)
    found = decided(a, b)
    assert shares(found.outcome)[0] <= 0.05
    naive = np.abs((b - a).mean(-1)) - BOUND > 2 * (b - a).std(-1) / math.sqrt(60)
    assert naive.mean() > 0.15, "or this noise would be harmless"


def test_a_drift_that_the_candidate_feels_only_half_is_no_regression() -> None:
    rng = np.random.default_rng(3)
    walk = np.cumsum(rng.normal(0, 0.05, TRIALS), -1)
    a, b = walk + rng.normal(0, 0.02, TRIALS), walk / 2 + rng.normal(0, 0.02, TRIALS)
    assert shares(decided(a, b).outcome)[0] <= 0.05


def test_a_slow_state_under_independent_noise_is_no_regression() -> None:
    rng = np.random.default_rng(10)
    a, b = (sticky(rng, TRIALS, 0.95, 0.10) + rng.normal(0, 0.05, TRIALS) for _ in range(2))
    assert shares(decided(a, b).outcome)[0] <= 0.05


def test_levels_that_last_for_most_of_a_check_are_no_regression() -> None:
    """Each side is 15 % slower for 50 rounds on average, then faster for as many."""
    rng = np.random.default_rng(11)

    def levels() -> Array:
        switches = rng.random(TRIALS) < 1 / 50
        switches[:, 0] = rng.random(TRIALS[0]) < 0.5
        found: Array = 0.15 * (np.cumsum(switches, -1) % 2) + rng.normal(0, 0.02, TRIALS)
        return found

    a, b = levels(), levels()
    assert shares(decided(a, b).outcome)[0] <= 0.05
    early = decided(a[:, :24], b[:, :24])
    assert shares(early.outcome)[0] > 0.05, "or fewer rounds would do"


@pytest.mark.parametrize(("share", "factor"), [(0.2, 2), (0.1, 3), (0.2, 3), (0.05, 5)])
def test_what_slows_some_rounds_does_not_pass(share: float, factor: float) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(0, 0.03, (2, 2000, 60))
    b += math.log(factor) * (rng.random(b.shape) < share)
    assert shares(decided(a, b).outcome)[1] <= 0.05


def test_many_metrics_of_unchanged_code_all_pass() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(0, 0.05, (2, 60, 60, 60))
    found = decide(Looks.of(a, b), BOUND, False, 0.05 / 60, 0.05, True).outcome
    assert (found == -1).all(-1).mean() >= 0.85


def test_nothing_is_decided_in_too_few_rounds() -> None:
    a = np.random.default_rng(6).normal(0, 1e-4, 60)
    for change in (0.0, 1.0):
        for over, least in ((True, LEAST_ROUNDS), (False, SURE_ROUNDS)):
            early = decided(a[: least - 1], -a[: least - 1], change, over)
            assert early.outcome == 0, (change, over)
            assert decided(a[:least], -a[:least], change, over).outcome != 0, (change, over)


def test_the_first_decision_stands() -> None:
    a, b = np.random.default_rng(7).normal(0, 0.02, (2, 120))
    slow = b + 0.3
    at = int(decided(a, slow).at)
    mended = np.where(np.arange(120) <= at, slow, b - 0.3)
    assert int(decided(a, mended).at) == at and decided(a, mended).outcome == 1


def test_trials_are_judged_alone() -> None:
    a, b = np.random.default_rng(8).normal(0, 0.05, (2, 20, 60))
    together = decided(a, b, 0.08)
    alone = [decided(x, y, 0.08) for x, y in zip(a, b, strict=True)]
    assert together.outcome.tolist() == [int(d.outcome) for d in alone]
    assert together.at.tolist() == [int(d.at) for d in alone]


def test_signs_of_dependence_are_told() -> None:
    rng = np.random.default_rng(9)
    quiet = rng.normal(0, 0.05, 60)
    told = signs(Looks.of(0.0, quiet), quiet)
    assert told["effective_rounds"] > 40 and told["moved"] == 0 and told["outliers"] == 0
    walk = sticky(rng, (60,), 0.95, 0.05)
    assert signs(Looks.of(0.0, walk), walk)["effective_rounds"] < 20
    ramp = quiet + np.linspace(0, 0.5, 60)
    assert signs(Looks.of(0.0, ramp), ramp)["moved"] > 0.1
    far = quiet.copy()
    far[[5, 40]] = 3.0
    assert signs(Looks.of(0.0, far), far)["outliers"] == 2
