"""Policies, admission, headroom, uncertainty, and what is worth loading."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cache_core.sizing.prefill_cost import PrefillCost
from lmcache_cli.engines.measured_costs import TierCost
from lmcache_cli.tune.answer import answer
from lmcache_cli.tune.candidates import Goal, Prices, TierConfiguration, unfit
from lmcache_cli.tune.cost import RequestCost
from lmcache_cli.tune.policies import USABLE, WORTH_CHANGING, Headroom, headroom, policy_curves
from lmcache_cli.tune.report_sections import plots
from lmcache_cli.tune.search import Recommendation, search
from lmcache_cli.tune.study import Study
from lmcache_cli.tune.worth import load_or_compute, uncertainty
from workloads.traces import TraceArrays

CHUNK, BYTES = 16, 100
SLOW = PrefillCost(0.001, 1e-3, 0.0)
COST = RequestCost(
    SLOW,
    {"cpu": TierCost(1e9), "disk": TierCost(1e8)},
    BYTES,
    0.001,
    prefill_range=(PrefillCost(0.001, 0.8e-3, 0.0), PrefillCost(0.001, 1.3e-3, 0.0)),
)
GIB = 2**30


def arrays(documents: list[int], chunks: int = 4, gap_s: float = 60.0) -> TraceArrays:
    """A request per entry: that document's chunks and one of its own."""
    ids = [[*range(d * 100, d * 100 + chunks), 1_000_000 + i] for i, d in enumerate(documents)]
    n = len(documents)
    return TraceArrays(
        np.array([c for row in ids for c in row], np.int64),
        np.arange(n + 1, dtype=np.int64) * (chunks + 1),
        np.arange(n, dtype=np.float64) * gap_s,
        np.full(n, (chunks + 1) * CHUNK + 3, np.int64),
        np.full(n, 2, np.int64),
        np.full(n, -1, np.int64),
        (),
        CHUNK,
    )


def scan() -> list[int]:
    """Two documents that come back always, among others that never do."""
    new = iter(range(10, 10_000))
    return [d for _ in range(30) for d in (0, next(new), 0, 1, next(new), next(new), next(new))]


def study(documents: list[int], goal: Goal | None = None) -> Study:
    return Study(arrays(documents), COST, Prices(), goal=goal)


def found_for(documents: list[int], goal: Goal) -> Recommendation:
    return search(study(documents, goal), goal, [CHUNK])


def test_headroom_stands_in_order() -> None:
    found = headroom(study(scan()), TierConfiguration((("cpu", 20 * CHUNK * BYTES),), CHUNK))
    assert found.rate == 1
    best = max(found.hit_rates[name] for name in USABLE)
    assert found.hit_rates["lru"] <= best <= found.hit_rates["belady"] <= found.ceiling
    assert found.best() != "lru", "a scan flushes LRU"


def test_lru_stays_where_another_gains_nothing() -> None:
    rates = {"lru": 0.5, "arc": 0.5 + WORTH_CHANGING / 2, "belady": 0.9}
    assert Headroom(rates, 1.0, 1.0).best() == "lru"
    assert Headroom(rates | {"arc": 0.6}, 1.0, 1.0).best() == "arc"


def test_a_better_policy_is_recommended_and_its_hits_are_the_ledgers() -> None:
    goal = Goal(largest={"cpu": 20 * CHUNK * BYTES, "disk": 0}, worth=1e-9)
    tried = study(scan(), goal)
    found = search(tried, goal, [CHUNK])
    stack = found.chosen.stack
    assert stack.policy in USABLE and stack.policy != "lru"
    replayed = tried.replayed(stack)
    assert sum(found.chosen.hit_tokens.values()) == int(replayed.hits.sum()) * CHUNK
    assert found.chosen in found.front
    said = dict(answer(tried, found).notes)
    assert any("one that knew the future" in line for line in said["What limits"])


def test_curves_of_policies_end_below_the_ceiling() -> None:
    tried = study(scan())
    for curve in policy_curves(tried, CHUNK):
        assert len(curve.capacities) == len(curve.hit_rates)
        assert max(curve.hit_rates) <= tried.ceiling(CHUNK) + 1e-9


def test_admission_saves_the_disk_where_its_endurance_binds() -> None:
    # All that comes is written once; only a ninth of it comes back.
    goal = {"cpu": 0, "disk": 1 << 22}
    free = found_for(scan(), Goal(largest=goal, worth=1e-9)).chosen
    assert free.stack.sizes and free.disk_writes_per_day > 0
    most = free.disk_writes_per_day / 3
    bound = Goal(largest=goal, writes_per_day=most, worth=1e-9)
    tried = study(scan(), bound)
    found = search(tried, bound, [CHUNK])
    assert found.chosen.stack.admission != "none"
    assert 0 < found.chosen.disk_writes_per_day <= most
    assert found.chosen.hit_rate > 0.5 * free.hit_rate
    said = answer(tried, found)
    assert any(
        "takes no more writes: admission" in line for line in dict(said.notes)["What limits"]
    )
    assert "admission" in said.sentences[1]


def test_without_the_bound_nothing_is_refused() -> None:
    goal = Goal(largest={"cpu": 0, "disk": 1 << 22}, worth=1e-9)
    assert found_for(scan(), goal).chosen.stack.admission == "none"


def test_a_disk_is_bound_by_what_it_can_write() -> None:
    goal = Goal(largest={"cpu": 0, "disk": 1 << 22}, worth=1e-9)
    free = found_for(scan(), goal).chosen
    rate = free.disk_writes_per_day / 86_400
    halved = free.disk_writes_per_day / (1 << 23)
    for bound, words in (
        (replace(goal, disk_bytes_s=rate / 2), "disk bandwidth"),
        (replace(goal, drive_writes_per_day=halved), "disk writes per day"),
    ):
        assert unfit(free, bound) == [words]
        chosen = found_for(scan(), bound).chosen
        assert chosen.stack != free.stack and not unfit(chosen, bound)
    assert not unfit(free, replace(goal, disk_bytes_s=2 * rate, drive_writes_per_day=1e9))


def test_intervals_hold_what_they_are_of() -> None:
    tried = study([i % 5 if i % 3 else 100 + i for i in range(200)])
    stack = TierConfiguration((("cpu", GIB),), CHUNK)
    judged = tried.judge(stack)
    found = uncertainty(tried, stack)
    assert found.groups == "blocks of time" and found.hit_rate is not None
    low, high = found.hit_rate
    assert low < judged.hit_rate < high
    assert found.ttft is not None
    for name, (fast, slow) in found.ttft.items():
        assert fast < judged.latency[f"ttft.{name}"] < slow


def test_an_interval_of_three_requests_is_none() -> None:
    assert uncertainty(study([1, 1, 1]), TierConfiguration((("cpu", GIB),), CHUNK)).hit_rate is None


def test_no_tier_has_no_interval() -> None:
    assert (
        uncertainty(study([i % 5 for i in range(50)]), TierConfiguration((), CHUNK)).hit_rate
        is None
    )


def test_the_break_even_is_where_both_take_as_long() -> None:
    tried = study([1, 1, 1, 2, 2])
    chosen = tried.judge(TierConfiguration((("cpu", GIB),), CHUNK))
    by_tier = {one.tier: one for one in load_or_compute(tried, chosen)}
    one = by_tier["cpu"]
    assert one.tokens == 4 * CHUNK
    assert one.loads and one.break_even_bytes_s is not None
    assert one.tokens * BYTES / one.break_even_bytes_s == pytest.approx(one.compute_s)
    assert "break-even at" in one.text() and "cpu: load" in one.text()
    assert " against 7.5 s for " in replace(one, compute_s=7.54).text()


def test_a_fixed_cost_that_no_bandwidth_makes_up_for() -> None:
    slow = RequestCost(SLOW, {"cpu": TierCost(1e9, fixed_s=1.0)}, BYTES, 0.001)
    tried = Study(arrays([1, 1, 1]), slow, Prices())
    [one] = load_or_compute(tried, tried.judge(TierConfiguration((("cpu", GIB),), CHUNK)))
    assert not one.loads and one.break_even_bytes_s is None
    assert "recompute" in one.text()


def test_only_whole_chunks_are_hit_and_never_the_last_token() -> None:
    exact = arrays([1, 1])
    full = TraceArrays(
        exact.chunk_ids, exact.offsets, exact.arrival_s, np.full(2, 5 * CHUNK, np.int64),
        exact.output_tokens, exact.session, (), CHUNK,
    )  # fmt: skip
    same = full.chunk_ids.copy()
    same[5:] = same[:5]
    repeated = TraceArrays(
        same, full.offsets, full.arrival_s, full.input_tokens, full.output_tokens, full.session,
        (), CHUNK,
    )  # fmt: skip
    hits = Study(repeated, COST, Prices()).hits(TierConfiguration((("cpu", GIB),), CHUNK))
    assert hits[:, 0].tolist() == [0, 4 * CHUNK]


def test_plots_show_the_curves_and_the_front() -> None:
    goal = Goal(largest={"cpu": 40 * CHUNK * BYTES, "disk": 0}, worth=1e-9)
    tried = study(scan(), goal)
    found = search(tried, goal, [CHUNK])
    curve, line = plots(tried, found)
    assert "missed" in curve and "belady" in curve and "lru" in curve
    assert "p50" in line and "p90" in line
    assert all(len(row) <= 78 for row in [*curve.splitlines(), *line.splitlines()])


def test_a_chunk_length_without_room_is_not_the_one_that_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lmcache_cli.tune.search._MOST_RUNS", 0)
    goal = Goal(largest={"cpu": 6 * CHUNK * BYTES, "disk": 0}, worth=1e-9)
    found = search(study([1] * 20, goal), goal, [8 * CHUNK, CHUNK])
    assert found.chosen.stack.bought and found.chosen.stack.chunk_tokens == CHUNK


def test_nothing_shared_gives_no_plot() -> None:
    goal = Goal(largest={"cpu": GIB, "disk": 0}, worth=1.0)
    tried = study(list(range(20)), goal)
    assert plots(tried, search(tried, goal, [CHUNK])) == []
