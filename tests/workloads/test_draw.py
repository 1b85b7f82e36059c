"""Chance that repeats."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.draw import Draw


def test_the_stream_of_a_name_never_changes() -> None:
    draw = Draw("text", 0, 7)
    assert [draw.below(1000) for _ in range(6)] == [537, 924, 988, 976, 3, 637]
    assert draw.pick("abcdefgh") == "d"
    assert draw.sample(range(5), 5) == [3, 4, 1, 2, 0]
    assert math.isclose(draw.exponential(), 0.515408911515447)


def test_streams_of_different_names_differ() -> None:
    names: list[tuple[str | int, ...]] = [("a", 1), ("a", 2), ("b", 1), (1, "a")]
    assert len({tuple(Draw(*name).below(10**6) for _ in range(3)) for name in names}) == 4


@given(st.integers(), st.integers(1, 2**40))
def test_below_stays_below(seed: int, bound: int) -> None:
    draw = Draw(seed)
    assert all(0 <= draw.below(bound) < bound for _ in range(20))


@given(st.integers(), st.integers(-50, 50), st.integers(0, 9))
def test_between_includes_both_ends(seed: int, low: int, width: int) -> None:
    draw = Draw(seed)
    drawn = {draw.between(low, low + width) for _ in range(300)}
    assert drawn == set(range(low, low + width + 1))


@given(st.integers(), st.integers(0, 30), st.integers(0, 30))
def test_a_sample_has_no_option_twice(seed: int, total: int, count: int) -> None:
    options = range(total)
    if count > total:
        with pytest.raises(IndexError):
            Draw(seed).sample(options, count)
        return
    sample = Draw(seed).sample(options, count)
    assert len(sample) == count == len(set(sample))
    assert set(sample) <= set(options)


def test_picks_and_chances_are_even() -> None:
    draw = Draw("even")
    picks = Counter(draw.pick("abcd") for _ in range(8000))
    assert all(abs(n - 2000) < 200 for n in picks.values())
    assert abs(sum(draw.chance(0.2) for _ in range(8000)) - 1600) < 180


def test_exponential_has_mean_and_variance_one() -> None:
    draw = Draw("exponential")
    values = [draw.exponential() for _ in range(20_000)]
    mean = sum(values) / len(values)
    assert abs(mean - 1) < 0.03
    assert abs(sum((v - mean) ** 2 for v in values) / len(values) - 1) < 0.06
    assert min(values) > 0


def test_a_zero_draw_is_no_endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Draw(0)
    monkeypatch.setattr(draw, "_random", lambda: 0.0)
    assert 30 < draw.exponential() < 40
