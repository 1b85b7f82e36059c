"""The Ledger and chunks that others put into a shared tier."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cache_core.ledger import NOWHERE, PLACEMENTS, Ledger, Placement
from tests.cache_core.memory_engine import key

prompts = st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True)
step = st.tuples(st.sampled_from(["admit", "adopt", "pin", "unpin"]), prompts)


@given(
    st.lists(step, max_size=20),
    st.lists(st.one_of(st.none(), st.integers(1, 6)), min_size=1, max_size=3),
    st.sampled_from(PLACEMENTS),
)
def test_adopting_keeps_every_invariant(
    history: list[tuple[str, list[int]]], capacities: list[int | None], placement: Placement
) -> None:
    ledger = Ledger(capacities, placement=placement)
    last = len(capacities) - 1
    bytes_in: list[set[bytes]] = [set() for _ in capacities]
    pins = []
    for verb, numbers in history:
        keys = [key(n) for n in numbers]
        if verb == "admit":
            plan = ledger.prepare_store(keys)
            for move in plan.moves:
                if move.source >= 0:
                    bytes_in[move.source].discard(move.key)
                if move.target != NOWHERE:
                    bytes_in[move.target].add(move.key)
            ledger.complete_store(plan.moves, stored=True)
        elif verb == "adopt":
            plan = ledger.register(keys, last)
            for move in plan.moves:
                assert (move.source, move.target) == (last, NOWHERE)
                bytes_in[last].discard(move.key)
            bytes_in[last] |= {k for k in keys if ledger.holds(k, last)}
            if capacities[last] is None:
                assert len(ledger.lookup(keys)) == len(keys)
        elif verb == "pin":
            pins.append(ledger.pin(ledger.lookup(keys)))
        elif pins:
            ledger.unpin(pins.pop())
        ledger.check()
        for tier, held in enumerate(bytes_in):
            assert set(ledger.keys(tier)) == held
        for hit in pins:
            assert len(ledger.lookup(hit.keys)) == len(hit), "a pinned chunk has left"


def test_the_head_of_an_adopted_prefix_outlives_its_tail() -> None:
    ledger = Ledger([2])
    assert ledger.register([key(n) for n in range(5)], 0).moves == ()
    assert ledger.lookup([key(n) for n in range(5)]).keys == (key(0), key(1))


def test_what_the_tier_was_known_to_hold_outlives_the_new_tail() -> None:
    ledger = Ledger([3])
    ledger.complete_store(ledger.prepare_store([key(1)]).moves, stored=True)
    ledger.complete_store(ledger.prepare_store([key(8), key(9)]).moves, stored=True)
    plan = ledger.register([key(0), key(1), key(2), key(3)], 0)
    assert {move.key for move in plan.moves} == {key(8), key(9)}
    assert len(ledger.lookup([key(0), key(1), key(2), key(3)])) == 3


def test_adopting_makes_room_of_what_is_older() -> None:
    ledger = Ledger([2])
    plan = ledger.prepare_store([key(1), key(2)])
    ledger.complete_store(plan.moves, stored=True)
    plan = ledger.register([key(7)], 0)
    assert [(m.key, m.source, m.target) for m in plan.moves] == [(key(2), 0, NOWHERE)]
    assert key(7) in ledger and key(1) in ledger and key(2) not in ledger
    assert ledger.evictions == [1]
