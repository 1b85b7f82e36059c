"""The cost of prefill, fitted."""

from __future__ import annotations

import random

import pytest

from cache_core.sizing.prefill_cost import PrefillCost, PrefillWatch, Savings


def test_a_known_cost_is_found_again() -> None:
    cost = PrefillCost(0.01, 2e-4, 3e-8)
    watch = PrefillWatch()
    rng = random.Random(0)
    for _ in range(100):
        new, cached = rng.randrange(20, 4000), rng.randrange(0, 8000)
        watch.saw([(new, cached)], cost.seconds(new, cached) * rng.uniform(0.95, 1.05))
    found = watch.cost()
    assert found is not None
    for new, cached in ((64, 0), (64, 8000), (2000, 0), (4000, 4000)):
        assert found.seconds(new, cached) == pytest.approx(cost.seconds(new, cached), rel=0.05)


def test_no_coefficient_is_negative() -> None:
    watch = PrefillWatch()
    for new, seconds in ((100, 1.0), (200, 0.5), (400, 0.25)):
        watch.saw([(new, 0)], seconds)
    found = watch.cost()
    assert found is not None
    assert min(found.a, found.b, found.c) >= 0


def test_savings_wait_for_a_price() -> None:
    savings = Savings()
    savings.loaded(1000, 0, 0.01)
    assert savings.take() == 0
    for new in (100, 1000, 2000):
        savings.saw([(new, 0)], new * 1e-3)
    assert savings.take() == pytest.approx(0.99, rel=0.01)
    assert savings.take() == 0


def test_decoding_is_no_prefill() -> None:
    watch = PrefillWatch()
    watch.saw([(1, 500)], 0.1)
    watch.saw([(1, 501)], 0.1)
    assert watch.cost() is None
