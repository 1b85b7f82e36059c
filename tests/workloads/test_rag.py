"""Popularity."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.documents import popular
from workloads.draw import Draw


@given(st.integers(1, 60), st.data(), st.floats(0, 3), st.integers())
def test_ranks_are_different_and_in_range(
    total: int, data: st.DataObject, zipf: float, seed: int
) -> None:
    count = data.draw(st.integers(1, total))
    ranks = popular(total, count, zipf, Draw(seed))
    assert len(ranks) == len(set(ranks)) == count
    assert set(ranks) <= set(range(total))
    assert ranks == popular(total, count, zipf, Draw(seed))


@pytest.mark.parametrize("zipf", [0.0, 0.7, 1.5])
def test_draws_are_one_after_the_other_without_putting_back(zipf: float) -> None:
    """Every ordered pair out of four comes as often as its probability says."""
    weights = [(rank + 1) ** -zipf for rank in range(4)]
    draw = Draw("pairs", str(zipf))
    pairs = Counter(tuple(popular(4, 2, zipf, draw)) for _ in range(20_000))
    for a, b in permutations(range(4), 2):
        rest = sum(weights) - weights[a]
        expected = weights[a] / sum(weights) * weights[b] / rest
        assert pairs[a, b] / 20_000 == pytest.approx(expected, abs=0.012)


def test_a_steep_zipf_always_takes_the_most_popular() -> None:
    assert popular(500, 4, 1000.0, Draw(1)) == [0, 1, 2, 3]
