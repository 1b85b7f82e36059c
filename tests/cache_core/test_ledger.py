"""The Ledger against a brute-force model of LRU stacks (Mattson et al. 1970): what is held after
any sequence of requests follows from the recency list alone."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.ledger import ENGINE, NOWHERE, Hit, Ledger, LedgerError, Move, Placement, Plan
from cache_core.policies import POLICIES


def key(i: int) -> bytes:
    return i.to_bytes(32, "little")


class Tiers:
    """Carries plans out on plain sets and refuses what a bounded tier could not do."""

    def __init__(self, capacities: list[int | None]) -> None:
        self.capacities = capacities
        self.held: list[set[bytes]] = [set() for _ in capacities]

    def run(self, ledger: Ledger, plan: Plan) -> None:
        for move in plan.moves:
            if move.target == NOWHERE:
                self.held[move.source].remove(move.key)
                continue
            if move.source != ENGINE:
                assert move.key in self.held[move.source], "demoted a chunk that is not there"
            capacity = self.capacities[move.target]
            assert move.key not in self.held[move.target], "written twice"
            assert capacity is None or len(self.held[move.target]) < capacity, "no room"
            self.held[move.target].add(move.key)
            if move.source != ENGINE:
                self.held[move.source].remove(move.key)
            ledger.complete_store([move], stored=True)


def coin(data: st.DataObject) -> bool:
    return data.draw(st.booleans())


# A request is a path in a small tree of documents: chunk i of document d. Requests share prefixes.
requests = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(0, 2), st.integers(0, 3)),
    min_size=1,
    max_size=25,
)
placements = st.sampled_from(["write_on_insertion", "write_on_eviction"])


def path(document: int, length: int, branch: int, extra: int) -> list[bytes]:
    stem = [key(document * 1000 + i) for i in range(length)]
    leaf = document * 1000 + 100 * (branch + 1) + length * 10
    return stem + [key(leaf + i) for i in range(extra)]


@settings(max_examples=400, deadline=None)
@given(
    requests,
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
    placements,
)
def test_holds_exactly_what_the_recency_stack_says(
    sequence: list[tuple[int, int, int, int]], capacities: list[int], placement: Placement
) -> None:
    ledger = Ledger(capacities, placement=placement)
    tiers = Tiers(list(capacities))
    stack: list[bytes] = []  # most recent first
    for spec in sequence:
        keys = path(*spec)
        hit = ledger.lookup(keys)
        # Served by the first tier with depth < capacity (inclusive) or < cumulated (exclusive).
        expected = []
        for k in keys:
            depth = stack.index(k) if k in stack else None
            bounds = list(capacities)
            if placement == "write_on_eviction":
                bounds = [sum(capacities[: t + 1]) for t in range(len(capacities))]
            tier = next((t for t, b in enumerate(bounds) if depth is not None and depth < b), None)
            if tier is None:
                break
            expected.append(tier)
        assert hit.tiers == tuple(expected)
        assert hit.keys == tuple(keys[: len(expected)])
        tiers.run(ledger, ledger.prepare_store(keys))
        for k in reversed(keys):
            if k in stack:
                stack.remove(k)
            stack.insert(0, k)
        ledger.check()
        for t, held in enumerate(tiers.held):
            assert held == set(ledger.keys(t))


@settings(max_examples=200, deadline=None)
@given(requests, st.lists(st.integers(1, 6), min_size=1, max_size=3), placements, st.data())
def test_invariants_hold_with_pins_and_late_or_failed_writes(
    sequence: list[tuple[int, int, int, int]],
    capacities: list[int],
    placement: Placement,
    data: st.DataObject,
) -> None:
    ledger = Ledger(capacities, placement=placement)
    pinned: list[Hit] = []
    plans: list[Plan] = []
    for spec in sequence:
        keys = path(*spec)
        if coin(data):
            pinned.append(ledger.pin(ledger.lookup(keys)))
        plans.append(ledger.prepare_store(keys))
        for hit in pinned:
            assert ledger.lookup(hit.keys).keys == hit.keys, "a pinned chunk was evicted"
        ledger.check()
        if plans and coin(data):
            plan = plans.pop(0)
            ledger.complete_store(plan.moves, stored=coin(data))
            ledger.check()
        if pinned and coin(data):
            ledger.unpin(pinned.pop(0))
    for plan in plans:
        ledger.complete_store(plan.moves, stored=True)
    for hit in pinned:
        ledger.unpin(hit)
    ledger.check()
    ledger.clear()
    assert len(ledger) == 0


def test_prefix_outlives_its_tail() -> None:
    ledger = Ledger([3])
    ledger.complete_store(ledger.prepare_store([key(i) for i in range(5)]).moves, stored=True)
    assert len(ledger.lookup([key(i) for i in range(5)])) == 3


def test_chunks_on_their_way_are_no_hit_until_settled() -> None:
    ledger = Ledger([4])
    plan = ledger.prepare_store([key(1)])
    assert len(ledger.lookup([key(1)])) == 0
    assert ledger.pending([key(1)])
    ledger.complete_store(plan.moves, stored=True)
    assert len(ledger.lookup([key(1)])) == 1
    assert not ledger.pending([key(1)])


def test_failed_write_gives_the_room_back() -> None:
    ledger = Ledger([1])
    ledger.complete_store(ledger.prepare_store([key(1)]).moves, stored=False)
    assert ledger.count(0) == 0
    assert ledger.prepare_store([key(2)]).moves


def test_forget_spares_what_another_request_reads() -> None:
    ledger = Ledger([2])
    ledger.complete_store(ledger.prepare_store([key(1)]).moves, stored=True)
    mine, theirs = ledger.pin(ledger.lookup([key(1)])), ledger.pin(ledger.lookup([key(1)]))
    assert not ledger.forget(key(1), 0)
    ledger.unpin(theirs)
    assert ledger.forget(key(1), 0)
    ledger.unpin(mine)
    assert len(ledger) == 0


def test_hit_and_plan_travel_between_processes() -> None:
    ledger = Ledger([2])
    plan = ledger.prepare_store([key(1), key(2)])
    ledger.complete_store(plan.moves, stored=True)
    hit = ledger.lookup([key(1), key(2)])
    assert pickle.loads(pickle.dumps((hit, plan))) == (hit, plan)


def test_repeated_chunk_in_one_request() -> None:
    ledger = Ledger([4])
    plan = ledger.prepare_store([key(1), key(2), key(1)])
    assert [(m.key, m.index) for m in plan.moves] == [(key(1), 0), (key(2), 1)]


def test_unknown_placement_is_refused() -> None:
    with pytest.raises(ValueError, match="write_on_insertion or write_on_eviction"):
        Ledger([1], placement="sideways")  # type: ignore[arg-type]


def holding(*numbers: int, placement: Placement = "write_on_insertion", tiers: int = 1) -> Ledger:
    ledger = Ledger([9] * tiers, placement=placement)
    ledger.complete_store(ledger.prepare_store([key(n) for n in numbers]).moves, stored=True)
    return ledger


@pytest.mark.parametrize(
    ("number", "held", "pending", "says"),
    [
        (1, 0b00, 0b00, "uses are kept of other chunks"),
        (9, 0b01, 0b00, "uses are kept of other chunks"),
        (1, 0b01, 0b01, "both held by a tier and being written to it"),
        (1, 0b11, 0b00, "is in several tiers"),
        (1, 0b01, 0b10, "is in several tiers"),
        (1, 0b10, 0b00, "tier 0: the policy lists a chunk that the tier does not own"),
        (1, 0b00, 0b01, "0 chunks are held, 1 are counted"),
    ],
)
def test_check_finds_a_broken_invariant(number: int, held: int, pending: int, says: str) -> None:
    ledger = holding(1, placement="write_on_eviction", tiers=2)
    ledger.check()
    ledger._books.spoil(key(number), held, pending)
    with pytest.raises(LedgerError, match=says):
        ledger.check()


def test_check_finds_a_chunk_that_no_order_has() -> None:
    ledger = holding(1, tiers=2)
    ledger.forget(key(1), 1)
    ledger._books.spoil(key(1), held=0b11, pending=0)
    with pytest.raises(LedgerError, match="tier 1: 0 chunks ordered, 1 owned"):
        ledger.check()


def test_a_chunk_that_stands_twice_in_a_hit_is_pinned_once() -> None:
    """Found damaged, it is forgotten: no other request reads it."""
    ledger = holding(1, 2)
    hit = ledger.pin(ledger.lookup([key(1), key(2), key(1)]))
    assert len(hit) == 3
    assert ledger.forget(key(1), 0)
    ledger.unpin(hit)
    ledger.check()
    assert ledger.clear() == [Move(key(2), 0, NOWHERE, -1)]


def test_two_requests_that_hold_a_chunk_twice_each_are_two() -> None:
    ledger = holding(1)
    twice = ledger.lookup([key(1), key(1)])
    hits = [ledger.pin(twice), ledger.pin(twice)]
    ledger.unpin(hits[0])
    assert ledger.clear() == []
    ledger.unpin(hits[1])
    assert len(ledger.clear()) == 1


def test_what_is_not_pinned_is_not_unpinned() -> None:
    ledger = holding(1, 2)
    hit = ledger.pin(ledger.lookup([key(1)]))
    for other in (ledger.lookup([key(1), key(2)]), Hit((key(1), key(7)), (0, 0))):
        with pytest.raises(ValueError, match="not pinned"):
            ledger.unpin(other)
    assert ledger.clear() == [Move(key(2), 0, NOWHERE, -1)], "chunk 1 is pinned still"
    ledger.unpin(hit)


def test_a_move_is_settled_once() -> None:
    ledger = Ledger([2])
    moves = ledger.prepare_store([key(1)]).moves
    for other in (Move(key(1), ENGINE, 0, 0)._replace(key=key(2)), *moves):
        if other in moves:
            ledger.complete_store(moves, stored=True)
        with pytest.raises(ValueError, match="not under way"):
            ledger.complete_store([other], stored=True)
    ledger.check()


def test_a_prompt_admitted_in_parts_costs_what_is_new() -> None:
    """Depths, indices and uses are those of one admission; the parts before are touched once."""
    whole, parts = Ledger([9], POLICIES["gdsf"]), Ledger([9], POLICIES["gdsf"])
    prompt = [key(n) for n in range(6)]
    plan = whole.prepare_store(prompt)
    moves = parts.prepare_store(prompt[:2]).moves
    moves += parts.prepare_store(prompt[2:5], 2, parent=prompt[1], depth=2).moves
    moves += parts.prepare_store(prompt[5:], 5, parent=prompt[4], depth=5).moves
    parts.touch(prompt, counted=len(prompt))
    assert moves == plan.moves
    for ledger in (whole, parts):
        ledger.complete_store(moves, stored=True)
        ledger.check()
    assert parts.keys(0) == whole.keys(0) == prompt[::-1]


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_have_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match=f"a chunk's key has {size} bytes; it must have 32"):
        Ledger([1]).prepare_store([bytes(size)])


def test_tiers_that_do_not_exist_are_refused() -> None:
    ledger = Ledger([1])
    for tier in (-1, 1):
        with pytest.raises(IndexError, match=f"tier {tier} does not exist; the ledger has 1"):
            ledger.count(tier)
    with pytest.raises(ValueError, match="9 tiers; at most 8"):
        Ledger([1] * 9)


def test_records_of_what_left_are_used_again() -> None:
    """What is known of 1,500 chunks that pass through a tier of ten goes with them."""
    ledger = Ledger([10], POLICIES["arc"])
    for n in range(300):
        ledger.complete_store(
            ledger.prepare_store([key(5 * n + i) for i in range(5)]).moves, stored=True
        )
    assert ledger._books.records <= 10 + 2 * 10 + 5  # held, ghosts, the parent of each


def test_what_is_being_copied_on_is_not_forgotten() -> None:
    """A slower tier may be reading the faster one's copy: its room must not be given away."""
    ledger = Ledger([4, 4])
    moves = ledger.prepare_store([key(1)]).moves
    fast, slow = (move for move in moves)
    ledger.complete_store([fast], True)
    assert not ledger.forget(key(1), 0)
    assert ledger.holds(key(1), 0)
    ledger.complete_store([slow], True)
    assert ledger.forget(key(1), 0)
    ledger.check()


def test_counts_what_is_pinned_and_on_its_way() -> None:
    ledger = Ledger([2, None])
    plan = ledger.prepare_store([key(0), key(1)])
    assert (ledger.arriving, ledger.pinned) == ([2, 2], 0)
    assert ledger.where([key(0), key(5)]) == [(0, 0b11), (0, 0)]
    ledger.complete_store(plan.moves[:3], stored=True)
    ledger.complete_store(plan.moves[3:], stored=False)
    assert ledger.arriving == [0, 0]
    assert ledger.where([key(0), key(1)]) == [(0b11, 0), (0b01, 0)]
    hits = [ledger.pin(ledger.lookup([key(0), key(1)])), ledger.pin(ledger.lookup([key(0)]))]
    assert ledger.pinned == 2
    ledger.unpin(hits[1])
    assert ledger.pinned == 2
    ledger.unpin(hits[0])
    assert ledger.pinned == 0


def test_tells_what_changed_to_who_follows_it() -> None:
    ledger = Ledger([1, None])
    first = ledger.prepare_store([key(0)])
    ledger.complete_store(first.moves, stored=True)
    assert ledger.changed() == []  # nobody follows it
    ledger.follow()
    second = ledger.prepare_store([key(1)])
    assert ledger.changed() == [key(0)]  # evicted
    writes = [move for move in second.moves if move.target != NOWHERE]
    ledger.complete_store(writes[:1], stored=True)
    ledger.complete_store(writes[1:], stored=False)
    assert ledger.changed() == [key(1), key(1)]
    assert ledger.forget(key(1), 0)
    ledger.clear()
    assert ledger.changed() == [key(1), key(0)]
    assert ledger.changed() == []
