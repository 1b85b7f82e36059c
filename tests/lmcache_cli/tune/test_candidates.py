"""Which stack is chosen of those that were run."""

from __future__ import annotations

from dataclasses import replace

from lmcache_cli.tune.candidates import (
    Goal,
    StackOutcome,
    TierConfiguration,
    bound_text,
    broken,
    deciding,
    front,
    recommend,
)

GIB = 2**30


def outcome(cpu: int, number: float, price: float, **latency: float) -> StackOutcome:
    """A stack that takes ``number`` replicas."""
    tiers = (("cpu", cpu * GIB),) if cpu else ()
    times = {name.replace("_", "."): value for name, value in latency.items()}
    return StackOutcome(TierConfiguration(tiers, 64), {}, 0.0, price, 0.0, times, 1 / number)


def test_the_front_has_what_nothing_beats() -> None:
    all_of_them = [outcome(0, 5, 0), outcome(1, 3, 1), outcome(2, 4, 2), outcome(4, 2, 4)]
    line = front(all_of_them, Goal())
    assert [o.stack.sizes.get("cpu", 0) // GIB for o in line] == [0, 1, 4]


def test_the_cheapest_that_keeps_the_goal() -> None:
    goal = Goal(slo={"ttft.p90": 3.0})
    times = {0: 9.0, 1: 2.9, 4: 2.0}
    ran = [outcome(n, 5, n, ttft_p90=seconds) for n, seconds in times.items()]
    assert recommend(ran, goal).stack.sizes == {"cpu": GIB}
    assert broken(ran[0], goal) == ["ttft.p90"]
    assert bound_text("ttft.p90", ran[0], goal) == "TTFT p90 is 9 s; 3 s was asked for"
    # Where none keeps it, the nearest that keeps the other bounds.
    tight = Goal(slo={"ttft.p90": 1.0}, most_per_hour=2.0)
    assert recommend(ran, tight).stack.sizes == {"cpu": GIB}


def test_more_is_bought_while_it_is_worth_it() -> None:
    times = {0: 5.0, 1: 3.0, 4: 2.9}
    ran = [outcome(n, 5, n, ttft_mean=seconds) for n, seconds in times.items()]
    assert recommend(ran, Goal(worth=1.0)).stack.sizes == {"cpu": GIB}
    assert recommend(ran, Goal(worth=0.01)).stack.sizes == {"cpu": 4 * GIB}


def test_without_a_bound_money_decides_and_without_prices_the_cards() -> None:
    ran = [outcome(0, 4, 0), outcome(1, 3, 1)]
    assert recommend(ran, Goal()) is ran[1]
    priced = [replace(ran[0], per_million=0.5), replace(ran[1], per_million=0.6)]
    assert recommend(priced, Goal()) is priced[0]


def test_of_stacks_that_miss_a_bound_alike_the_cheapest_is_the_nearest() -> None:
    goal = Goal(slo={"ttft.p90": 0.2})
    times = {0: 0.5, 185: 0.213, 370: 0.212}
    ran = [outcome(n, 5, n, ttft_p90=seconds) for n, seconds in times.items()]
    assert recommend(ran, goal) is ran[1]
    assert recommend([ran[0], ran[2]], goal) is ran[2]
    hours = [outcome(n, 5, n, ttft_p90=s) for n, s in {0: 5070.0, 1024: 5068.0}.items()]
    assert recommend(hours, goal) is hours[0]
    assert recommend([replace(o, latency={"ttft.p90": 0.1}) for o in ran], goal).cost_per_hour == 0


def test_far_from_a_bound_its_multiple_is_told() -> None:
    _, text = deciding(Goal(slo={"ttft.p90": 2.0}))
    assert text(outcome(0, 1, 0, ttft_p90=2.1)) == "105.0 %"
    assert text(outcome(0, 1, 0, ttft_p90=5068.0)) == "2,534 times"
