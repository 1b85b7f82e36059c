"""Replicas, their routers and the pool behind them, against code that does it the long way."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.curves import ROUTINGS, Routing, TierCurves, replica_names, routed
from cache_core.sizing.prefill_cost import PrefillCost
from lmcache_cli.tune.answer import answer
from lmcache_cli.tune.candidates import (
    _ALIKE,
    Goal,
    Prices,
    TierConfiguration,
    broken,
    number,
)
from lmcache_cli.tune.queueing import Arrivals, serve_requests
from lmcache_cli.tune.search import search
from lmcache_cli.tune.study import Study
from tests.lmcache_cli.tune.test_device import BYTES, CHUNK, SIZE, Lru, cost, requests
from workloads.traces import TraceArrays

EXACT = PrefillCost(2**-10, 2**-10, 2**-20)  # sums of these have no rounding
STEP = 2**-6


def mixed(x: int) -> int:
    """splitmix64's finalizer, from its paper."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


class Replica:
    """One engine as a router sees it, and its tiers."""

    def __init__(self, rooms: list[int]) -> None:
        self.tiers = [Lru(room) for room in rooms]
        self.free, self.ends = 0.0, list[float]()

    def held(self, row: list[int]) -> int:
        """Leading chunks that some tier holds."""
        inside = [any(chunk in tier.held for tier in self.tiers) for chunk in row]
        return len(list(itertools.takewhile(bool, inside)))

    def under_way(self, now: float) -> int:
        return sum(end > now for end in self.ends)


def replayed(
    arrays: TraceArrays, routing: Routing, count: int, rooms: list[int], pool: int | None
) -> tuple[list[int], list[list[int]]]:
    """Who takes each request, and its hits by tier, one request after another."""
    fleet, turn = [Replica(rooms) for _ in range(count)], 0
    shared = None if pool is None else Lru(pool)
    chosen, found = [], []
    for i, (a, b) in enumerate(itertools.pairwise(arrays.offsets.tolist())):
        row, now = arrays.chunk_ids[a:b].tolist(), float(arrays.arrival_s[i])
        prompt, session = int(arrays.input_tokens[i]), int(arrays.session[i])

        def prefill(cached: int, prompt: int = prompt) -> float:
            return EXACT.seconds(max(1, prompt - cached), cached)

        cached = [min(r.held(row) * CHUNK, max(0, prompt - 1)) for r in fleet]
        order = [(turn + k) % count for k in range(count)]
        if routing == "session" and session >= 0:
            at = mixed(session) % count
        elif routing in ("round-robin", "session"):
            at = turn
        elif routing == "least-loaded":
            at = min(order, key=lambda r: fleet[r].under_way(now))
        else:
            at = min(
                order,
                key=lambda r: (
                    max(0.0, fleet[r].free - now) + prefill(cached[r]),
                    fleet[r].under_way(now),
                ),
            )
        if routing != "session" or session < 0:
            turn = (at + 1) % count
        one = fleet[at]
        one.free = max(now, one.free) + prefill(cached[at] if routing == "prefix" else 0)
        one.ends.append(one.free + STEP * max(0, int(arrays.output_tokens[i]) - 1))
        tiers = [*one.tiers, *([shared] if shared else [])]
        counts = [0] * len(tiers)
        for chunk in row[: (prompt - 1) // CHUNK]:
            holder = next((t for t, tier in enumerate(tiers) if chunk in tier.held), None)
            # Behind a chunk of the pool only the pool is asked.
            if holder is None:
                break
            counts[holder] += 1
        for tier in tiers:
            tier.use(row)
        chosen.append(at)
        found.append(counts)
    return chosen, found


@st.composite
def fleets(draw: st.DrawFn) -> TraceArrays:
    arrays = draw(requests(40))
    count = len(arrays)
    gaps = draw(st.lists(st.sampled_from([0, 2**-7, 1]), min_size=count, max_size=count))
    sessions = draw(st.lists(st.integers(-1, 6), min_size=count, max_size=count))
    return replace(
        arrays,
        arrival_s=np.cumsum(np.array(gaps, np.float64)),
        session=np.array(sessions, np.int64),
    )


def engine(room: int, **changes: Any) -> Any:
    return cost(room, prefill=EXACT, decode_s=STEP, **changes)


def stack_of(routing: Routing, *tiers: tuple[str, int]) -> TierConfiguration:
    return TierConfiguration(tiers, CHUNK, routing=routing)


@settings(max_examples=150, deadline=None)
@given(
    fleets(),
    st.sampled_from(ROUTINGS),
    st.integers(2, 5),
    st.integers(0, 10),
    st.integers(0, 16),
    st.one_of(st.none(), st.integers(0, 30)),
)
def test_fleets_equal_a_replay_by_hand(
    arrays: TraceArrays,
    routing: Routing,
    replicas: int,
    device: int,
    cpu: int,
    pool: int | None,
) -> None:
    tiers = [("device", device * SIZE), ("cpu", cpu * SIZE)]
    if pool is not None:
        tiers.append(("remote", pool * SIZE))
    stack = stack_of(routing, *tiers)
    study = Study(arrays, engine(device * CHUNK), Prices(), replicas=replicas, routing=routing)
    chosen, found = replayed(arrays, routing, replicas, [device, cpu], pool)
    assert study.held(stack).tolist() == found
    references = AccessTrace(
        arrays.chunk_ids,
        arrays.offsets,
        CHUNK,
        prompt_tokens=arrays.input_tokens,
        arrivals=arrays.arrival_s,
    )
    seconds = EXACT.a, EXACT.b, EXACT.c, STEP
    lengths = arrays.output_tokens, arrays.session
    holds = max(device, cpu)
    assert routed(references, routing, replicas, *lengths, seconds, holds).tolist() == chosen


@settings(max_examples=60, deadline=None)
@given(fleets(), st.integers(4, 60), st.integers(0, 20), st.integers(2, 4))
def test_replicas_that_share_nothing_run_as_if_alone(
    arrays: TraceArrays, room: int, cpu: int, replicas: int
) -> None:
    """Round-robin without a pool: each replica is an engine with every n-th request."""
    model = engine(room)
    stack = stack_of("round-robin", ("device", room * BYTES), ("cpu", cpu * SIZE))
    whole = Study(arrays, model, Prices(), replicas=replicas).run(stack)
    for r in range(replicas):
        rows = np.arange(r, len(arrays), replicas)
        if not len(rows):
            continue
        part = replace(
            arrays,
            chunk_ids=np.concatenate([arrays.chunks(int(i)) for i in rows]),
            offsets=np.concatenate([[0], np.cumsum(np.diff(arrays.offsets)[rows])]),
            arrival_s=arrays.arrival_s[rows],
            input_tokens=arrays.input_tokens[rows],
            output_tokens=arrays.output_tokens[rows],
            session=arrays.session[rows],
        )
        alone = Study(part, model, Prices()).run(stack)
        assert whole.hits[rows].tolist() == alone.hits.tolist()
        np.testing.assert_array_equal(whole.ttft[rows], alone.ttft)
        np.testing.assert_array_equal(whole.e2e[rows], alone.e2e)


def documents(count: int, replicas: int, gap: float, chunks: int = 6) -> TraceArrays:
    """``count`` prompts of one document, so far apart that each is done before the next comes."""
    total = count * chunks
    return TraceArrays(
        np.tile(np.arange(chunks, dtype=np.int64), count),
        np.arange(0, total + 1, chunks, dtype=np.int64),
        np.arange(count, dtype=np.float64) * gap,
        np.full(count, chunks * CHUNK + 1, np.int64),
        np.ones(count, np.int64),
        np.full(count, -1, np.int64),
        (),
        CHUNK,
    )


def test_a_pool_has_what_another_replica_computed_once_it_is_done() -> None:
    stack = stack_of("round-robin", ("device", 50 * SIZE), ("remote", 50 * SIZE))
    model = engine(50 * CHUNK)
    model = replace(model, tiers={**model.tiers, "remote": model.tiers["cpu"]})
    apart = Study(documents(4, 2, 9.0), model, Prices(), replicas=2).run(stack)
    assert apart.hits.tolist() == [[0, 0], [0, 24], [24, 0], [24, 0]]
    # Two that come together both compute it: the pool has nothing yet.
    together = Study(documents(2, 2, 0.0), model, Prices(), replicas=2).run(stack)
    assert together.hits.tolist() == [[0, 0], [0, 0]]
    without = stack_of("round-robin", ("device", 50 * SIZE))
    alone = Study(documents(4, 2, 9.0), model, Prices(), replicas=2).run(without)
    assert alone.hits.tolist() == [[0], [0], [24], [24]]


def test_a_client_sends_to_a_replica_that_still_answers_another() -> None:
    arrays = documents(3, 2, 0.0)
    arrivals = Arrivals(
        arrays.arrival_s, arrays.input_tokens, np.array([40, 10, 2]), arrays.chunk_ids,
        arrays.offsets, CHUNK, np.array([0, 1, 0]), 2,
    )  # fmt: skip
    served = serve_requests(arrivals, np.zeros((3, 0), np.int32), (), engine(1000), clients=2)
    prompt = EXACT.seconds(25)
    # The second answer ends first; its client's next request shares its first step with the first.
    assert served.ttft.tolist() == [prompt, prompt, prompt + STEP]


def test_stages_of_a_pipeline_come_one_after_another() -> None:
    arrays = documents(1, 1, 1.0)
    arrivals = Arrivals(
        arrays.arrival_s, arrays.input_tokens, np.array([3]), arrays.chunk_ids, arrays.offsets,
        CHUNK,
    )  # fmt: skip
    none = np.zeros((1, 0), np.int32)
    work = EXACT.saved(25)
    for stages in (1, 3):
        served = serve_requests(arrivals, none, (), engine(100, stages=stages))
        # The work is that of all stages together, and the prompt is in one after another.
        assert served.ttft[0] == EXACT.a + work + (stages - 1) * work
        assert served.e2e[0] >= served.ttft[0]


def test_cards_that_would_keep_the_bounds_are_those_of_all_stages() -> None:
    model = engine(100, stages=2)

    def larger(devices: int) -> Any:
        faster = PrefillCost(EXACT.a, EXACT.b / devices, EXACT.c / devices)
        return replace(model, devices=devices, prefill=faster)

    goal = Goal(slo={"ttft.p90": 0.02}, largest={"cpu": 0, "disk": 0})
    study = Study(documents(1, 1, 1.0), model, Prices(cards=2.0), goal=goal)
    found = search(study, goal, [CHUNK], larger=larger)
    lines = dict(answer(study, found).notes)["What limits"]
    assert any("on 8 cards for each model: --devices 4 --pipeline 2" in line for line in lines)


def test_a_disk_of_a_replica_is_written_by_its_own_requests() -> None:
    model, day = engine(8 * CHUNK), 86_400
    arrays = documents(9, 2, 10.0)
    stack = stack_of("round-robin", ("device", 8 * SIZE), ("disk", 1 << 30))
    study = Study(arrays, model, Prices(), replicas=2)
    # Each of two replicas writes the six chunks once, in 80 seconds.
    assert study.disk_writes(stack) == pytest.approx(6 * SIZE * day / 80)


GOALS = (Goal(), Goal(slo={"ttft.p90": 0.01}), Goal(slo={"ttft.p50": 1e-6}), Goal(worth=1e-3))


@settings(max_examples=25, deadline=None)
@given(fleets(), st.sampled_from(GOALS), st.sampled_from(ROUTINGS), st.sampled_from([0, 1 << 20]))
def test_advice_to_a_fleet_is_never_worse_than_what_there_is(
    arrays: TraceArrays, goal: Goal, routing: Routing, pool: int
) -> None:
    goal = replace(goal, largest={"cpu": 12 * SIZE, "disk": 0, "remote": pool})
    price = 2**30 / SIZE
    model = engine(30)
    model = replace(model, tiers={**model.tiers, "remote": model.tiers["disk"]})
    study = Study(
        arrays,
        model,
        Prices(cpu=price, remote=price / 4, cards=2.0, replicas=3),
        goal=goal,
        replicas=3,
        routing=routing,
    )
    found = search(study, goal, [CHUNK])
    chosen, today = found.chosen, found.today
    assert today.stack == study.today and today.stack.routing == routing
    assert number(chosen, goal) <= number(today, goal) or not broken(chosen, goal)
    assert {o.stack.routing for o in found.searched} == set(ROUTINGS)
    if not goal.slo or found.breaks:
        # Of stacks that miss a bound by so near the same, the cheapest is taken.
        near = _ALIKE if goal.slo else 1.0
        assert all(number(chosen, goal) <= near * number(o, goal) for o in found.searched)
    else:
        cost_of = [o.cost_per_hour for o in found.searched if not broken(o, goal)]
        assert chosen.cost_per_hour == min(cost_of)
    fleet = found.fleet
    assert fleet is not None and fleet.today.stack == study.today
    assert not fleet.router.stack.bought and fleet.pool.stack.routing == routing
    assert fleet.pool.stack.bought.keys() <= {"remote"}
    figures = {name: number(o, goal) for name, o in fleet.points.items()}
    if not goal.slo:
        assert figures["both"] <= min(figures.values())
        best = min(figures["router"], figures["pool"])
        assert (fleet.cheaper == "neither") == (best >= figures["today"])
        if fleet.cheaper != "neither":
            assert figures[fleet.cheaper] == best
    if not pool:
        assert not fleet.pool.stack.bought


def test_another_router_is_set_in_front_of_vllm() -> None:
    arrays = documents(40, 3, 1.0)
    goal = Goal(largest={"cpu": 0, "disk": 0, "remote": 0}, worth=1e-3)
    study = Study(arrays, engine(12 * CHUNK), Prices(), goal=goal, replicas=4)
    found = search(study, goal, [CHUNK])
    said = answer(study, found)
    assert said.verdict == "another router" and found.chosen.stack.routing == "prefix"
    assert "vLLM itself does not route: set it in the router in front of" in said.sentences[1]
    assert "(for example vLLM production-stack's: --routing-logic prefixaware)" in said.sentences[1]
    same = answer(study, replace(found, chosen=found.today))
    assert "does not route" not in same.sentences[1]


def test_every_replica_has_its_own_order() -> None:
    trace = AccessTrace.of([[1, 2], [1, 2], [3], [1, 2]])
    own = TierCurves(trace, np.array([0, 1, 0, 1]), 2)
    assert own.hits([[1], [2], [9]])[:, :, 0].tolist() == [[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 2]]
    assert own.most == 2 and [own.uses_held(n) for n in (0, 1, 2)] == [0, 1, 2]
    behind = own.hits([[9, 9]], pool=TierCurves(trace))[0].tolist()
    assert behind == [[0, 0], [0, 2], [0, 0], [2, 0]]


@settings(max_examples=50)
@given(requests(), st.integers(1, 4), st.data())
def test_chunks_have_a_name_on_each_replica(
    arrays: TraceArrays, replicas: int, data: st.DataObject
) -> None:
    count = len(arrays)
    replica = data.draw(st.lists(st.integers(0, replicas - 1), min_size=count, max_size=count))
    ids = np.unique(arrays.chunk_ids, return_inverse=True)[1].astype(np.int64)
    names = replica_names(ids, arrays.offsets, np.array(replica, np.int64), replicas).tolist()
    of = np.repeat(np.array(replica, np.int64), np.diff(arrays.offsets)).tolist()
    pairs = list(zip(of, ids.tolist(), strict=True))
    assert len(set(names)) == len(set(pairs)) == len(set(zip(names, pairs, strict=True)))
    assert set(names) == set(range(len(set(names))))


def test_names_that_are_no_numbers_below_their_count_are_refused() -> None:
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match=r"ids\[0\] is no number below their count"):
        replica_names(one - 1, np.array([0, 1], np.int64), one, 1)


def test_what_a_router_can_not_work_with_is_said() -> None:
    trace = AccessTrace.of([[1]], prompt_tokens=[1], arrivals=[0.0])
    one = np.ones(1, np.int64)
    with pytest.raises(ValueError, match="routing 'random' is not known"):
        routed(trace, "random", 2, one, one, (0, 0, 0, 0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="replicas is 0"):
        routed(trace, "prefix", 0, one, one, (0, 0, 0, 0))
    with pytest.raises(ValueError, match="times and lengths"):
        routed(AccessTrace.of([[1]]), "prefix", 2, one, one, (0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"replica\[0\] is no number below replicas"):
        TierCurves(trace, np.array([2]), 2)
