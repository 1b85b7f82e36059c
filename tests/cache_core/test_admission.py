"""Which chunks enter a tier: second touch and bytes per day, alone and under the Ledger."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_core.cache import TieredCache
from cache_core.layout import KVLayout
from cache_core.ledger import ENGINE, Ledger, Placement
from cache_core.policies import BytesPerDay, SecondTouch, make_admission
from cache_core.tiers import NullTier
from tests.cache_core.test_ledger import Tiers, key, path

PLACEMENTS: tuple[Placement, ...] = ("write_on_insertion", "write_on_eviction")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(ledger: Ledger, tiers: Tiers, *sequence: list[bytes]) -> None:
    for keys in sequence:
        tiers.run(ledger, ledger.prepare_store(keys))
        ledger.check()


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)), st.integers(1, 5)
)
def test_second_touch_lets_in_what_it_remembers(batches: list[list[int]], most: int) -> None:
    admission = SecondTouch(most)
    seen: OrderedDict[int, None] = OrderedDict()
    for batch in batches:
        keys = [key(i) for i in batch]
        assert admission.select(keys, [1] * len(keys)) == [i in seen for i in batch]
        entering = [i for i in batch if i in seen]
        for i in reversed(batch):
            seen.pop(i, None)
            if i not in entering:
                seen[i] = None
        while len(seen) > most:
            seen.popitem(last=False)


def test_second_touch_forgets_the_end_of_a_prompt_first() -> None:
    admission = SecondTouch(2)
    keys = [key(i) for i in range(4)]
    admission.select(keys, [1] * 4)
    assert admission.select(keys, [1] * 4) == [True, True, False, False]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_second_touch_keeps_scans_out_of_a_tier(placement: Placement) -> None:
    ledger = Ledger([2, 100], placement=placement, admission=[None, SecondTouch()])
    tiers = Tiers([2, 100])
    twice = [key(1), key(2)]
    scans = [[key(1000 + 2 * i), key(1001 + 2 * i)] for i in range(9)]
    run(ledger, tiers, twice, *scans[:4])
    assert ledger.count(1) == 0
    run(ledger, tiers, twice, *scans[4:])
    assert set(ledger.keys(1)) == set(twice)
    assert ledger.lookup(twice).tiers == (1, 1)
    # Inclusive: all but `twice`, when it came again. Exclusive: what fell out of the first tier.
    assert ledger.refusals == [0, 20 if placement == "write_on_insertion" else 18]


def test_second_touch_counts_uses_in_the_tier_above() -> None:
    ledger = Ledger([2, 9], placement="write_on_eviction", admission=[None, SecondTouch()])
    run(ledger, Tiers([2, 9]), [key(1)], [key(1)], [key(2)], [key(3)])
    assert ledger.keys(1) == [key(1)]


def test_what_one_tier_refuses_goes_on_to_the_next() -> None:
    ledger = Ledger([1, 9, 9], placement="write_on_eviction", admission=[None, SecondTouch(), None])
    run(ledger, Tiers([1, 9, 9]), [key(1)], [key(2)], [key(3)])
    assert [ledger.keys(t) for t in range(3)] == [[key(3)], [], [key(1), key(2)]]


def test_a_refused_chunk_costs_no_write() -> None:
    ledger = Ledger([9], admission=[SecondTouch()])
    assert ledger.prepare_store([key(1), key(2)]).moves == ()
    plan = ledger.prepare_store([key(1), key(3)])
    assert [(m.key, m.source, m.index) for m in plan.moves] == [(key(1), ENGINE, 0)]


def test_bytes_per_day_is_a_bucket() -> None:
    clock = Clock()
    admission = BytesPerDay(86_400 * 10, 100, clock, burst_s=50)  # 10 B/s, 500 B at once
    keys, times = [key(i) for i in range(8)], [1] * 8
    assert admission.select(keys, times) == [True] * 5 + [False] * 3
    assert admission.select(keys, times) == [True] * 5 + [False] * 3, "nothing was written yet"
    admission.entered(5)
    assert not any(admission.select(keys, times))
    clock.now = 25.0
    assert admission.select(keys, times) == [True] * 2 + [False] * 6
    admission.entered(1)
    clock.now = 1e6
    assert admission.select(keys, times) == [True] * 5 + [False] * 3


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_bytes_per_day_bounds_what_is_written(placement: Placement) -> None:
    clock = Clock()
    ledger = Ledger(
        [4, 50], placement=placement, admission=[None, BytesPerDay(86_400, 1, clock, burst_s=3)]
    )
    tiers = Tiers([4, 50])
    written = 0
    for i in range(60):
        clock.now += 0.5
        plan = ledger.prepare_store(path(i, 3, 0, 0))
        written += sum(move.target == 1 for move in plan.moves)
        tiers.run(ledger, plan)
        ledger.check()
        assert written <= 3 + clock.now
    assert written >= clock.now - 1


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_start_of_a_prompt_enters_first(placement: Placement) -> None:
    budget = BytesPerDay(86_400, 1, Clock(), burst_s=2)
    ledger = Ledger([9], placement=placement, admission=[budget])
    prompt = path(0, 4, 0, 0)
    ledger.complete_store(ledger.prepare_store(prompt).moves, stored=True)
    assert ledger.lookup(prompt).keys == tuple(prompt[:2])


def test_a_budget_is_not_spent_on_what_falls_out_at_once() -> None:
    admission = BytesPerDay(86_400, 1, Clock(), burst_s=10)
    ledger = Ledger([2], admission=[admission])
    ledger.complete_store(ledger.prepare_store([key(i) for i in range(6)]).moves, stored=True)
    assert admission.select([key(i) for i in range(10)], [1] * 10).count(True) == 8


def test_a_cache_knows_its_tiers_by_name() -> None:
    layout = KVLayout(1, 1, 1, "int8", 16)
    tiers = [NullTier("cpu", 4), NullTier("disk", 4)]
    cache = TieredCache(layout, tiers, admission={"disk": SecondTouch()}, synchronous=True)
    cache.store([key(1)], None)
    assert (len(tiers[0]), len(tiers[1])) == (1, 0)
    cache.store([key(1)], None)
    assert (len(tiers[0]), len(tiers[1])) == (1, 1)
    cache.check()


def test_admissions_by_name() -> None:
    assert make_admission("none", 0, 1, Clock()) is None
    assert isinstance(make_admission("second-touch", 0, 1, Clock()), SecondTouch)
    assert isinstance(make_admission("bytes-per-day", 10, 1, Clock()), BytesPerDay)
    with pytest.raises(ValueError, match="use one of none, second-touch, bytes-per-day"):
        make_admission("magic", 0, 1, Clock())
    with pytest.raises(ValueError, match="must be over 0"):
        make_admission("bytes-per-day", 0, 1, Clock())
    with pytest.raises(ValueError, match="at least 1"):
        SecondTouch(0)


def test_admissions_must_be_one_per_tier() -> None:
    with pytest.raises(ValueError, match="1 admissions for 2 tiers"):
        Ledger([1, 1], admission=[None])
