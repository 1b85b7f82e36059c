"""The Ledger's invariants under every policy and admission, in both placements."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.ledger import Hit, Ledger, Placement, Plan
from cache_core.policies import POLICIES, Admission, BytesPerDay, PolicyMaker, SecondTouch, belady
from tests.cache_core.test_ledger import Tiers, coin, path, placements

# A request is a path in a small tree of documents: chunk i of document d.
requests = st.lists(
    st.builds(path, st.integers(0, 3), st.integers(1, 6), st.integers(0, 2), st.integers(0, 3)),
    min_size=1,
    max_size=25,
)
capacities = st.lists(st.integers(0, 8), min_size=1, max_size=3)
ALL = [*POLICIES, "belady"]
# One per tier: none, second touch of few or many keys, a budget of writes.
admissions = st.lists(st.sampled_from(["none", "few", "many", "budget"]), min_size=3, max_size=3)


def maker(name: str, sequence: list[list[bytes]]) -> PolicyMaker:
    return belady(sequence) if name == "belady" else POLICIES[name]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(name: str, clock: Clock) -> Admission | None:
    if name == "none":
        return None
    if name == "budget":
        return BytesPerDay(86_400, 1, clock, burst_s=5)  # a chunk per second, five at once
    return SecondTouch(3 if name == "few" else 1000)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=120)
@given(requests, capacities, placements, admissions)
def test_every_plan_can_be_carried_out(
    name: str,
    sequence: list[list[bytes]],
    sizes: list[int],
    placement: Placement,
    gates: list[str],
) -> None:
    clock = Clock()
    gate = [admission(gate, clock) for gate in gates[: len(sizes)]]
    ledger = Ledger(sizes, maker(name, sequence), placement, gate)
    tiers = Tiers(list(ledger.capacities))
    for keys in sequence:
        clock.now += 1
        tiers.run(ledger, ledger.prepare_store(keys))
        ledger.check()
        for t, held in enumerate(tiers.held):
            assert held == set(ledger.keys(t))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=120)
@given(requests, capacities, placements, admissions, st.data())
def test_invariants_hold_with_pins_and_late_or_failed_writes(
    name: str,
    sequence: list[list[bytes]],
    sizes: list[int],
    placement: Placement,
    gates: list[str],
    data: st.DataObject,
) -> None:
    clock = Clock()
    gate = [admission(gate, clock) for gate in gates[: len(sizes)]]
    ledger = Ledger(sizes, maker(name, sequence), placement, gate)
    pinned: list[Hit] = []
    plans: list[Plan] = []
    for keys in sequence:
        clock.now += 1
        if coin(data):
            pinned.append(ledger.pin(ledger.lookup(keys)))
        plans.append(ledger.prepare_store(keys))
        for hit in pinned:
            assert ledger.lookup(hit.keys).keys == hit.keys, "a pinned chunk was evicted"
        ledger.check()
        if coin(data):
            ledger.complete_store(plans.pop(0).moves, stored=coin(data))
            ledger.check()
        if pinned and coin(data):
            hit = pinned.pop(0)
            if hit.keys and coin(data):
                ledger.forget(hit.keys[-1], hit.tiers[-1])
                ledger.check()
            ledger.unpin(hit)
    for plan in plans:
        ledger.complete_store(plan.moves, stored=True)
    for hit in pinned:
        ledger.unpin(hit)
    ledger.check()
    ledger.clear()
    ledger.check()
    assert len(ledger) == 0


@pytest.mark.parametrize("name", ["lru", "belady"])
@settings(max_examples=120)
@given(requests, st.lists(st.integers(1, 8), min_size=2, max_size=3))
def test_exclusive_tiers_hold_together_what_one_of_their_sum_holds(
    name: str, sequence: list[list[bytes]], sizes: list[int]
) -> None:
    stack = Ledger(sizes, maker(name, sequence), "write_on_eviction")
    single = Ledger([sum(sizes)], maker(name, sequence))
    for keys in sequence:
        assert stack.lookup(keys).keys == single.lookup(keys).keys
        for ledger in (stack, single):
            ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)


@pytest.mark.parametrize(
    ("name", "stays"),
    [("lru", False), ("lfu-aging", True), ("gdsf", True), ("s3-fifo", True), ("arc", True)],
)
def test_uses_are_remembered_on_the_way_between_tiers(name: str, stays: bool) -> None:
    """Exclusive: what was used often before a scan outlives it, in whichever tier."""
    ledger = Ledger([1, 3], POLICIES[name], "write_on_eviction")
    often, *scan = [[n.to_bytes(32, "little")] for n in range(9)]
    for keys in (often, scan[0], often, scan[1], often, scan[2], often, *scan[3:]):
        ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
    assert len(ledger.lookup(often)) == stays
