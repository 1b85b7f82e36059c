"""Reuse times and working sets against counting them one by one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_core.references import References
from cache_core.reuse import Reuse, ReuseTimes

requests = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=20)


def counted(times: ReuseTimes, apart: list[float]) -> bool:
    edges = times.edges
    bins = [sum(a < d <= b for d in apart) for a, b in pairwise(edges)]
    return (bins, sum(bins)) == (times.counts.tolist(), len(apart))


@given(requests, st.data())
def test_reuse_is_counted_from_the_use_before(rows: list[list[int]], data: st.DataObject) -> None:
    gaps = data.draw(st.lists(st.floats(0, 100), min_size=len(rows), max_size=len(rows)))
    arrivals = np.cumsum(gaps).tolist()
    last: dict[int, int] = {}
    in_requests: list[float] = []
    in_seconds: list[float] = []
    first = repeats = 0
    for now, row in enumerate(rows):
        for chunk in row:
            before = last.get(chunk)
            last[chunk] = now
            if before is None:
                first += 1
            elif before == now:
                repeats += 1
            else:
                in_requests.append(now - before)
                in_seconds.append(arrivals[now] - arrivals[before])
    reuse = Reuse(References.of(rows, arrivals=arrivals))
    assert counted(reuse.in_requests(), in_requests)
    assert counted(reuse.in_seconds(), in_seconds)
    assert (reuse.in_requests().first, reuse.in_requests().repeats) == (first, repeats)


@given(requests, st.integers(1, 7))
def test_working_sets_are_distinct_chunks_per_window(rows: list[list[int]], window: int) -> None:
    sets = [
        len({chunk for row in rows[start : start + window] for chunk in row})
        for start in range(0, len(rows), window)
    ]
    reuse = Reuse(References.of(rows, arrivals=list(map(float, range(len(rows))))))
    assert reuse.working_set_of(window).tolist() == sets
    assert reuse.working_set(float(window)).tolist() == sets


def test_seconds_need_arrivals() -> None:
    reuse = Reuse(References.of([[1]]))
    with pytest.raises(ValueError, match="no arrival times"):
        reuse.in_seconds()
    with pytest.raises(ValueError, match="above 0"):
        reuse.working_set(0)
