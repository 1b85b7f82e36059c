"""Closed loop and Poisson."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.draw import Draw
from workloads.settings import arrival_times


def test_a_closed_loop_has_no_times() -> None:
    assert arrival_times(3, None, Draw(0)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rate", [0.25, 1.0, 40.0])
def test_gaps_are_exponential_with_the_rate(rate: float) -> None:
    times = np.array(arrival_times(20_000, rate, Draw("gaps", 3)))
    gaps = np.diff(times, prepend=0.0) * rate
    assert gaps.mean() == pytest.approx(1, rel=0.03)
    assert gaps.std() == pytest.approx(1, rel=0.04)
    # 63 % of the gaps of a Poisson process are below their mean; of regular ones, none or all.
    assert (gaps < 1).mean() == pytest.approx(1 - np.exp(-1), abs=0.015)


@given(st.integers(0, 50), st.floats(1e-6, 1e6), st.integers())
def test_times_rise_and_repeat(count: int, rate: float, seed: int) -> None:
    times = arrival_times(count, rate, Draw(seed))
    assert len(times) == count
    assert times == sorted(times)
    assert times == arrival_times(count, rate, Draw(seed))
    assert all(time > 0 for time in times)


def test_twice_the_rate_halves_the_times() -> None:
    slow = arrival_times(9, 1.0, Draw(5))
    assert arrival_times(9, 2.0, Draw(5)) == pytest.approx([time / 2 for time in slow])
