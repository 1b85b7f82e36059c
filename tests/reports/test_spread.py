from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.summary import Spread


def test_percentiles_interpolate_linearly() -> None:
    spread = Spread.of([40.0, 10.0, 20.0, 30.0])
    assert (spread.n, spread.mean, spread.min, spread.max) == (4, 25.0, 10.0, 40.0)
    assert [spread.p50, spread.p90, spread.p99] == pytest.approx([25.0, 37.0, 39.7])


def test_one_value_is_every_percentile() -> None:
    spread = Spread.of([3.0])
    assert (spread.n, spread.mean, spread.p50, spread.p99) == (1, 3.0, 3.0, 3.0)


def test_no_values_leave_none() -> None:
    assert Spread.of([]) == Spread(0, None, None, None, None, None, None)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_are_those_of_a_sorted_walk(values: list[float]) -> None:
    """The definition, without numpy's percentile: between the two neighbours of rank q (n - 1)."""
    spread = Spread.of(values)
    ordered = sorted(values)
    for q, got in ((0.5, spread.p50), (0.9, spread.p90), (0.99, spread.p99)):
        rank = q * (len(ordered) - 1)
        low = int(rank)
        high = min(low + 1, len(ordered) - 1)
        expected = ordered[low] + (ordered[high] - ordered[low]) * (rank - low)
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert spread.mean == pytest.approx(np.mean(values))
