"""The engine's own cache as the first tier, and advice that is never worse than it, on random
requests, against code that does it the long way."""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.sizing.prefill_cost import PrefillCost
from lmcache_cli.engines.measured_costs import TierCost
from lmcache_cli.tune.candidates import (
    Goal,
    Prices,
    StackOutcome,
    TierConfiguration,
    broken,
    number,
    unfit,
)
from lmcache_cli.tune.cost import DeviceRoom, RequestCost
from lmcache_cli.tune.search import search
from lmcache_cli.tune.study import Study
from workloads.traces import TraceArrays, load_arrays, open_trace

CHUNK, BYTES = 4, 10
SIZE = CHUNK * BYTES
ROOT = -1


@st.composite
def requests(draw: st.DrawFn, most: int = 25) -> TraceArrays:
    """Prompts that walk down a small tree of chunks, so that many begin alike."""
    names: dict[tuple[int, int], int] = {}
    rows, lengths = [], []
    for _ in range(draw(st.integers(1, most))):
        row, at = [], ROOT
        for branch in draw(st.lists(st.integers(0, 2), max_size=6)):
            at = names.setdefault((at, branch), len(names))
            row.append(at)
        rows.append(row)
        lengths.append(len(row) * CHUNK + draw(st.integers(0, CHUNK - 1)))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.01, 1.0]), min_size=len(rows), max_size=len(rows)))
    outputs = draw(st.lists(st.integers(1, 9), min_size=len(rows), max_size=len(rows)))
    return TraceArrays(
        np.array([*itertools.chain.from_iterable(rows)], np.int64),
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        np.cumsum(gaps),
        np.maximum(1, np.array(lengths, np.int64)),
        np.array(outputs, np.int64),
        np.full(len(rows), -1, np.int64),
        (),
        CHUNK,
    )


def cost(room: int, ranks: int = 1, **changes: Any) -> RequestCost:
    """An engine with so many tokens of room, each of which takes ``ranks`` times its bytes."""
    device = DeviceRoom(ranks * BYTES, given=room * ranks * BYTES)
    tiers = {"cpu": TierCost(1e5), "disk": TierCost(2e3, 1e-3)}
    made = RequestCost(PrefillCost(0.001, 1e-3, 1e-6), tiers, BYTES, 0.01, device=device)
    return replace(made, **changes)


def stack_of(*tiers: tuple[str, int]) -> TierConfiguration:
    return TierConfiguration(tiers, CHUNK)


class Lru:
    """Chunks, the least recently used first."""

    def __init__(self, room: int) -> None:
        self.room, self.held = room, OrderedDict[int, None]()

    def use(self, row: list[int]) -> None:
        for chunk in reversed(row):  # the last first: heads outlive tails
            self.held.pop(chunk, None)
            self.held[chunk] = None
        while len(self.held) > self.room:
            self.held.popitem(last=False)


def inclusive(arrays: TraceArrays, rooms: list[int], length: int = CHUNK) -> list[list[int]]:
    """Hits of an inclusive stack, request by request: each tier sees every use; a chunk is served
    by the fastest that holds it, up to the first that none does."""
    tiers, found = [Lru(room) for room in rooms], []
    for i, (a, b) in enumerate(itertools.pairwise(arrays.offsets.tolist())):
        row, counts = arrays.chunk_ids[a:b].tolist(), [0] * len(tiers)
        usable = (int(arrays.input_tokens[i]) - 1) // length
        for chunk in row[:usable]:
            holder = next((t for t, tier in enumerate(tiers) if chunk in tier.held), None)
            if holder is None:
                break
            counts[holder] += 1
        found.append(counts)
        for tier in tiers:
            tier.use(row)
    return found


@settings(max_examples=150, deadline=None)
@given(requests(), st.integers(0, 12), st.integers(0, 20), st.sampled_from([1, 3]))
def test_the_device_and_what_is_below_it_are_an_inclusive_stack(
    arrays: TraceArrays, device: int, cpu: int, ranks: int
) -> None:
    # Copies on ranks take their room: a token of the device has more bytes than one of a tier.
    study = Study(arrays, cost(device * CHUNK, ranks), Prices())
    stack = stack_of(("device", device * SIZE * ranks), ("cpu", cpu * SIZE))
    assert study.held(stack).tolist() == inclusive(arrays, [device, cpu])
    below = study.held(stack)[:, 1].sum()
    if cpu <= device:
        assert below == 0, "a tier that is no larger than the device serves nothing"


@settings(max_examples=60, deadline=None)
@given(requests(), st.integers(4, 60))
def test_what_runs_takes_its_room_from_the_cache(arrays: TraceArrays, room: int) -> None:
    study = Study(arrays, cost(room), Prices())
    whole = study.run(stack_of(("device", room * BYTES)))
    answers = int(np.ceil(whole.answers))
    assert study.device == max(0, room - answers) * BYTES
    assert study.today.sizes == ({"device": study.device} if study.device else {})
    assert Study(arrays, cost(room, device=None), Prices()).today.tiers == ()
    off = DeviceRoom(BYTES, given=room * BYTES, caching=False)
    assert Study(arrays, cost(room, device=off), Prices()).device == 0
    if study.device:
        wanted = inclusive(arrays, [study.device // SIZE])
        assert study.held(study.today).tolist() == wanted


def test_the_device_keeps_blocks_of_its_own_whatever_is_below_it() -> None:
    row = np.arange(8, dtype=np.int64)
    arrays = TraceArrays(
        np.concatenate([row, row]), np.array([0, 8, 16], np.int64), np.array([0.0, 9.0]),
        np.full(2, 8 * CHUNK + 1, np.int64), np.ones(2, np.int64), np.full(2, -1, np.int64), (),
        CHUNK,
    )  # fmt: skip
    study = Study(arrays, cost(5 * CHUNK), Prices())
    for length in (CHUNK, 4 * CHUNK):
        tiers = (("device", 5 * SIZE), ("cpu", 100 * SIZE))
        stack = TierConfiguration(tiers, length)
        assert study.held(stack).tolist() == [[0, 0], [5, 3]], length


def test_answers_that_are_written_are_counted() -> None:
    arrays = TraceArrays(
        np.arange(6, dtype=np.int64), np.array([0, 3, 6], np.int64), np.array([0.0, 0.02]),
        np.array([12, 12], np.int64), np.array([9, 1], np.int64), np.full(2, -1, np.int64), (),
        CHUNK,
    )  # fmt: skip
    engine = cost(100, prefill=PrefillCost(0.0, 1e-3, 0.0))
    study = Study(arrays, engine, Prices())
    # The second comes while the first has written its second token: 0 and 2, a mean of 1.
    assert study.run(study.today).answers == 1.0 and study.device == 99 * BYTES


goals = st.builds(
    Goal,
    slo=st.dictionaries(
        st.sampled_from(["ttft.p90", "ttft.p50", "ttft.p95", "itl.p90", "e2e.mean"]),
        st.sampled_from([0.003, 0.01, 0.02, 0.05, 0.5]),
        max_size=2,
    ),
    most_per_hour=st.sampled_from([None, 3.0, 30.0]),
    writes_per_day=st.sampled_from([None, 1e4, 1e6]),
    worth=st.sampled_from([None, 1e-5, 1e-3]),
)


@settings(max_examples=60, deadline=None)
@given(
    requests(),
    st.integers(6, 80),
    goals,
    st.sampled_from([0.0, 2.0]),
    st.sampled_from([0, 1 << 20]),
)
def test_advice_is_never_worse_than_what_there_is(
    arrays: TraceArrays, room: int, goal: Goal, card: float, disk: int
) -> None:
    goal = replace(goal, largest={"cpu": 24 * SIZE, "disk": disk})
    price = 2**30 / SIZE  # a dollar a chunk
    study = Study(arrays, cost(room), Prices(cpu=price, disk=price / 8, cards=card), goal=goal)
    found = search(study, goal, [CHUNK])
    chosen, today = found.chosen, found.today
    assert found.front[0] is today and chosen in found.front
    assert today.stack == study.today and not today.cost_per_hour and not unfit(chosen, goal)
    assert number(chosen, goal) <= number(today, goal) or not broken(chosen, goal)
    assert broken(chosen, goal) == list(found.breaks)

    def better(other: StackOutcome) -> bool:
        if goal.slo and not found.breaks:
            keeps = not broken(other, goal)
            return keeps and other.cost_per_hour < chosen.cost_per_hour - 1e-9
        alike = 1.02 if goal.slo else 1.0  # of what misses a bound alike the cheapest is chosen
        return not unfit(other, goal) and alike * number(other, goal) < number(chosen, goal) - 1e-12

    # Every size that is searched, judged anew the long way.
    again = Study(arrays, cost(room), study.prices, goal=goal)
    for other in found.searched:
        judged = again.judge(other.stack)
        assert number(judged, goal) == number(other, goal)
        assert not better(judged), (judged.stack, chosen.stack)
    # The front, from what its rows show.
    shown = [(row.cost_per_hour, number(row, goal)) for row in found.front]
    for price_of, figure in shown[1:]:
        assert not any(
            p <= price_of and f <= figure for p, f in shown if (p, f) != (price_of, figure)
        )


def test_a_size_between_powers_of_two_is_found() -> None:
    """Five documents of five chunks, in turns: less than all of them hits nothing."""
    rows = [[*range(5 * (i % 5), 5 * (i % 5) + 5)] for i in range(40)]
    arrays = TraceArrays(
        np.array([*itertools.chain.from_iterable(rows)], np.int64),
        np.arange(41, dtype=np.int64) * 5,
        np.arange(40, dtype=np.float64),
        np.full(40, 5 * CHUNK + 1, np.int64),
        np.full(40, 1, np.int64),
        np.full(40, -1, np.int64),
        (),
        CHUNK,
    )
    other = np.arange(1000, 1000 + 64, dtype=np.int64)  # what makes the grid go on to 89 chunks
    arrays = replace(
        arrays,
        chunk_ids=np.concatenate([other, arrays.chunk_ids, other]),
        offsets=np.concatenate([[0], arrays.offsets + 64, [arrays.offsets[-1] + 128]]),
        arrival_s=np.concatenate([[0.0], arrays.arrival_s + 10, [100.0]]),
        input_tokens=np.concatenate([[257], arrays.input_tokens, [257]]),
        output_tokens=np.ones(42, np.int64),
        session=np.full(42, -1, np.int64),
    )
    goal = Goal(largest={"cpu": 1 << 20, "disk": 0}, slo={"ttft.p50": 0.01})
    engine = cost(10**6, device=None)
    found = search(Study(arrays, engine, Prices(), goal=goal), goal, [CHUNK])
    size = found.chosen.stack.sizes["cpu"] / SIZE
    assert not found.breaks and 25 <= size <= 25 * (1 + 1 / 8) + 1, size


@pytest.mark.parametrize("clients", [None, 2])
def test_the_highest_load_was_run_and_keeps_the_bounds(clients: int | None) -> None:
    rows = [[*range(4 * (i % 3), 4 * (i % 3) + 4)] for i in range(30)]
    arrays = TraceArrays(
        np.array([*itertools.chain.from_iterable(rows)], np.int64),
        np.arange(31, dtype=np.int64) * 4,
        np.arange(30, dtype=np.float64) / 4,
        np.full(30, 4 * CHUNK + 1, np.int64),
        np.full(30, 3, np.int64),
        np.full(30, -1, np.int64),
        (),
        CHUNK,
    )
    goal = Goal(largest={"cpu": 1 << 20, "disk": 0}, slo={"ttft.p90": 0.03})
    study = Study(arrays, cost(400, device=None), Prices(cards=3.0), goal=goal, clients=clients)
    found = search(study, goal, [CHUNK])
    for name, outcome in (("today", found.today), ("recommended", found.chosen)):
        of = found.worths[name]
        if clients is not None:
            assert of.load in (0.0, 1.0)
            continue
        assert of.latency["ttft.p90"] <= 0.03 and of.load > 1 and of.replicas == 1
        above = study.latencies(study.run(outcome.stack, of.load * 1.05))
        assert above["ttft.p90"] > 0.03 or of.load >= 64
        hourly = 3.0 + outcome.cost_per_hour
        assert of.per_hour == pytest.approx(hourly)
        assert of.per_million == pytest.approx(hourly / (study.millions_per_hour * of.load))


def test_the_device_at_twelve_sizes_of_a_public_trace() -> None:
    folder = os.environ.get("LMCACHE_TRACES")
    path = Path(folder or "", "mooncake", "conversation_trace.jsonl")
    if not folder or not path.is_file():
        pytest.skip("LMCACHE_TRACES names no folder with mooncake/conversation_trace.jsonl")
    arrays = load_arrays(itertools.islice(open_trace(path, "mooncake").requests(), 2500))
    sizes = [0, 1, 20, 100, 400, 1000, 3000, 8000, 20_000, 50_000, 120_000, 200_000]
    model = cost(10**9, prefill=PrefillCost(0.01, 3e-5, 4e-10))
    study = Study(arrays, model, Prices())
    chunk = arrays.chunk_tokens * BYTES
    for below in sizes:
        device = 2000
        stack = TierConfiguration(
            (("device", device * chunk), ("cpu", below * chunk)), arrays.chunk_tokens
        )
        wanted = inclusive(arrays, [device, below], arrays.chunk_tokens)
        assert study.held(stack).tolist() == wanted, below
    for size in sizes[1:]:
        room = size * arrays.chunk_tokens
        engine = replace(model, device=DeviceRoom(BYTES, given=room * BYTES))
        own = Study(arrays, engine, Prices())
        whole = TierConfiguration((("device", room * BYTES),), arrays.chunk_tokens)
        taken = int(np.ceil(own.run(whole).answers))
        # In the smallest rooms requests run one at a time, with no other's answers beside them.
        assert (taken > 0 or size < 1000) and own.device == max(0, room - taken) * BYTES
        rooms = [own.device // chunk]
        if own.device:
            assert own.held(own.today).tolist() == inclusive(arrays, rooms, arrays.chunk_tokens)
