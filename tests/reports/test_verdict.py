"""Verdicts: PASS and FAIL are earned; nothing else passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reports.sample import Sample
from reports.verdict.counters import judge_counters
from reports.verdict.formats import shown
from reports.verdict.judge import Terms, Verdict, judge, overall
from reports.verdict.round import Round, round_of
from reports.verdict.rule import parse_rule
from reports.verdict.trial import Comparison, Trial

RULE = parse_rule("ttft.p50>5%")
COUNTS = {"n": 8, "failed": 0, "prompt_tokens": 800, "hit_tokens.cpu": 512, "bytes_loaded": 4096}


def rounds(p50: float, noise: float, count: int, seed: int, n: int = 8) -> list[Round]:
    rng = np.random.default_rng(seed)
    return [
        Round(n, 0, {"ttft": [p50 * float(np.exp(rng.normal(0, noise)))] * n}, {}, COUNTS, 0.64)
        for _ in range(count)
    ]


def paired(base: list[Round], new: list[Round], rule: str = "ttft.p50>5%") -> Verdict:
    return judge("c", base, new, parse_rule(rule), Terms(paired=True))


def test_a_slowdown_fails_and_no_change_passes() -> None:
    base = rounds(0.1, 0.02, 90, 1)
    slow = paired(base, rounds(0.115, 0.02, 90, 2))
    assert slow.outcome == "FAIL"
    assert slow.low is not None and slow.low > 0.05
    same = paired(base, rounds(0.1, 0.02, 90, 3))
    assert same.outcome == "PASS" and "less than 5 % of rounds may be missed" in same.reason
    assert same.high is not None and same.high < 0.05
    assert slow.rounds == same.rounds == 60, "decided early"


def test_fewer_rounds_say_what_they_can_not_tell() -> None:
    base = rounds(0.1, 0.02, 20, 1)
    slow = paired(base, rounds(0.13, 0.02, 20, 2))
    assert slow.outcome == "FAIL" and "stays with one side for 20 rounds" in slow.reason
    same = paired(base, rounds(0.1, 0.02, 20, 3))
    assert same.outcome == "PASS" and "less than 14 % of rounds may be missed" in same.reason


def test_stored_runs_pass_with_sixty_rounds_a_side_or_known_noise() -> None:
    def days(per_day: int, seed: int) -> list[Round]:
        one = rounds(0.1, 0.01, 10 * per_day, seed)
        return [replace(r, sample=f"day {i % 10}") for i, r in enumerate(one)]

    stored = Terms(paired=False)
    few = judge("c", days(5, 1), days(6, 2), RULE, stored)
    assert few.outcome == "INCONCLUSIVE" and "60 rounds a side, and there are 50" in few.reason
    assert judge("c", days(6, 1), days(6, 2), RULE, stored).outcome == "PASS"
    known = Terms(paired=False, noise=0.01)
    assert judge("c", days(1, 1), days(1, 2), RULE, known).outcome == "PASS"


def test_the_first_decision_stands() -> None:
    base = rounds(0.1, 0.02, 90, 1)
    new = rounds(0.13, 0.02, 70, 2)
    at = paired(base, new).rounds
    assert at < 70
    assert paired(base, new + rounds(0.08, 0.02, 20, 3)).rounds == at


def test_too_noisy_is_inconclusive_and_says_what_would_have_been_seen() -> None:
    found = paired(rounds(0.1, 0.1, 12, 1), rounds(0.104, 0.1, 12, 2))
    assert found.outcome == "INCONCLUSIVE"
    assert found.smallest is not None and found.smallest > 0.10
    assert found.high is not None and found.smallest > found.high - (found.change or 0)


def test_four_rounds_decide_nothing() -> None:
    found = paired(rounds(0.1, 1e-4, 4, 1), rounds(0.2, 1e-4, 4, 2))
    assert found.outcome == "INCONCLUSIVE" and "at least 12" in found.reason


def test_falling_rules_are_about_the_other_side() -> None:
    def serving(rate: float, seed: int) -> list[Round]:
        rng = np.random.default_rng(seed)
        drawn = rate * np.exp(rng.normal(0, 0.02, 40))
        return [Round(8, 0, {}, {"throughput.requests_per_s": float(x)}) for x in drawn]

    rule = "throughput.requests_per_s<-5%"
    assert paired(serving(10, 1), serving(8.5, 2), rule).outcome == "FAIL"
    assert paired(serving(10, 1), serving(12, 2), rule).outcome == "PASS"


NOTHING = {
    "no rounds": [],
    "no requests": [Round(0, 0)] * 30,
    "all failed": [Round(0, 8, {"ttft": []}, {}, COUNTS | {"n": 0, "failed": 8})] * 30,
    "not a number": [Round(8, 0, {"ttft": [float("nan")] * 8})] * 30,
    "zero": [Round(8, 0, {"ttft": [0.0] * 8})] * 30,
    "negative": [Round(8, 0, {"ttft": [-1.0] * 8})] * 30,
    "infinite": [Round(8, 0, {"ttft": [float("inf")] * 8})] * 30,
    "the same constant": [Round(8, 0, {"ttft": [0.1] * 8})] * 30,
    "another metric only": [Round(8, 0, {"e2e": [0.1] * 8})] * 30,
}


@pytest.mark.parametrize("side", ["base", "new", "both"])
@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("in_turns", [True, False])
def test_what_measured_nothing_never_passes(name: str, side: str, in_turns: bool) -> None:
    good = rounds(0.1, 0.02, 30, 1)
    base = good if side == "new" else NOTHING[name]
    new = good if side == "base" else NOTHING[name]
    found = judge("c", base, new, RULE, Terms(paired=in_turns))
    assert found.outcome == "INCONCLUSIVE", found
    assert Trial([Comparison("c", base, new)], [RULE], paired=in_turns).outcome() != "PASS"


def test_percentiles_of_few_requests_are_refused() -> None:
    few, many = rounds(0.1, 0.02, 40, 1, n=99), rounds(0.1, 0.02, 40, 2, n=100)
    assert "p99 of 99 values a round" in paired(few, many, "ttft.p99>5%").reason
    assert paired(few, many, "ttft.p99>5%").hopeless
    assert paired(many, rounds(0.1, 0.02, 40, 3, n=100), "ttft.p99>5%").outcome == "PASS"
    two = judge("c", many[:2], many[2:4], parse_rule("ttft.p99>5%"), Terms(paired=True))
    assert "p99 of 200 values in all" in two.reason and not two.hopeless


def test_one_run_a_side_tells_nothing_unless_the_noise_is_known() -> None:
    base, new = rounds(0.1, 0.0, 1, 1), rounds(0.13, 0.0, 1, 2)
    alone = judge("c", base, new, RULE, Terms(paired=False))
    assert alone.outcome == "INCONCLUSIVE" and "--noise" in alone.reason
    assert judge("c", base, new, RULE, Terms(paired=False, noise=0.03)).outcome == "FAIL"
    assert judge("c", base, base, RULE, Terms(paired=False, noise=0.01)).outcome == "PASS"
    assert judge("c", base, base, RULE, Terms(paired=False, noise=0.10)).outcome == "INCONCLUSIVE"


def test_more_metrics_make_each_interval_wider() -> None:
    base, new = rounds(0.1, 0.05, 30, 1), rounds(0.105, 0.05, 30, 2)

    def width(metrics: int) -> float:
        found = judge("c", base, new, RULE, Terms(paired=True, metrics=metrics))
        assert found.low is not None and found.high is not None
        return found.high - found.low

    assert width(1) < width(4) < width(20)


def test_counters_are_exact() -> None:
    base = rounds(0.1, 0.02, 3, 1)
    moved = [replace(r, counters=COUNTS | {"hit_tokens.cpu": 511}) for r in base]
    assert overall(judge_counters("c", base, base)) == "PASS"
    [bad] = [v for v in judge_counters("c", base, moved) if v.outcome != "PASS"]
    assert (bad.metric, bad.outcome, bad.base, bad.new) == ("hit_tokens.cpu", "FAIL", 512, 511)
    for strictness, outcome in (("exact", "FAIL"), ("worse", "PASS"), ("ignore", "PASS")):
        verdicts = judge_counters("c", moved, base, strictness)  # type: ignore[arg-type]
        assert overall(verdicts) == outcome, strictness
    assert overall(judge_counters("c", base, moved, "worse")) == "FAIL"


def test_what_falls_with_the_hits_is_not_for_the_better() -> None:
    base = rounds(0.1, 0.02, 3, 1)
    fewer = COUNTS | {"hit_tokens.cpu": 256, "bytes_loaded": 2048}
    worse = [replace(r, counters=fewer) for r in base]
    said = {v.metric: v for v in judge_counters("c", base, worse, "worse")}
    assert (said["bytes_loaded"].outcome, said["hit_tokens.cpu"].outcome) == ("FAIL", "FAIL")
    assert said["bytes_loaded"].reason == "changed, as fewer tokens hit"
    # The same tokens from fewer bytes are.
    packed = [replace(r, counters=COUNTS | {"bytes_loaded": 2048}) for r in base]
    [better] = [v for v in judge_counters("c", base, packed, "worse") if v.metric == "bytes_loaded"]
    assert (better.outcome, better.reason) == ("PASS", "changed for the better")


def test_hits_that_moved_to_another_tier_are_not_for_the_better() -> None:
    base = rounds(0.1, 0.02, 3, 1)
    both = [replace(r, counters=COUNTS | {"hit_tokens.disk": 256}) for r in base]
    moved = COUNTS | {"hit_tokens.cpu": 256, "hit_tokens.disk": 512}
    slower = [replace(r, counters=moved) for r in base]
    said = {v.metric: v.reason for v in judge_counters("c", both, slower)}
    assert said["hit_tokens.disk"] == said["hit_tokens.cpu"] == "changed"
    more = [replace(r, counters=COUNTS | {"hit_tokens.cpu": 768}) for r in base]
    [up] = [v for v in judge_counters("c", base, more) if v.outcome != "PASS"]
    assert (up.metric, up.reason) == ("hit_tokens.cpu", "changed, for the better")
    longer = [replace(r, counters=COUNTS | {"prompt_tokens": 700}) for r in base]
    [other] = [v for v in judge_counters("c", base, longer) if v.outcome != "PASS"]
    assert (other.metric, other.reason) == ("prompt_tokens", "changed")


def test_a_counter_that_varies_by_itself_is_no_regression() -> None:
    base = rounds(0.1, 0.02, 3, 1)
    varying = [*base[:2], replace(base[2], counters=COUNTS | {"bytes_loaded": 4000})]
    for one, other in ((base, varying), (varying, base)):
        [odd] = [v for v in judge_counters("c", one, other) if v.outcome != "PASS"]
        assert odd.outcome == "INCONCLUSIVE" and "4000 to 4096" in odd.reason


def test_failed_requests_and_missing_ones_always_count() -> None:
    base = rounds(0.1, 0.02, 3, 1)
    failing = [replace(r, counters=COUNTS | {"n": 7, "failed": 1}) for r in base]
    assert overall(judge_counters("c", base, failing, "ignore")) == "FAIL"


def test_hit_rates_are_judged_in_points_and_exactly() -> None:
    base = rounds(0.1, 0.02, 3, 1)
    lower = [replace(r, hit_rate=0.634) for r in base]
    assert paired(base, lower, "hit_rate<-0.5pp").outcome == "FAIL"
    assert paired(base, lower, "hit_rate<-0.7pp").outcome == "PASS"
    assert paired(base, lower, "hit_rate<-0.5pp").exact


def test_a_counter_that_is_not_measured_is_not_waited_for() -> None:
    base = rounds(0.1, 0.0, 1, 1)
    found = paired(base, [replace(r, hit_rate=None) for r in base], "hit_rate<-0.5pp")
    assert found.outcome == "INCONCLUSIVE" and found.hopeless
    assert found.reason == "hit_rate was not measured in every round"


def test_a_rule_on_a_counter_replaces_exactness() -> None:
    base = rounds(0.1, 0.02, 8, 1)
    more = [replace(r, counters=COUNTS | {"bytes_loaded": 4136}) for r in base]
    for limit, outcome in (("2%", "PASS"), ("0.5%", "FAIL")):
        trial = Trial([Comparison("c", base, more)], [parse_rule(f"bytes_loaded>{limit}")])
        assert trial.outcome() == outcome


def test_a_rule_on_a_counter_needs_two_rounds_in_turns() -> None:
    base = rounds(0.1, 0.02, 2, 1)
    more = [replace(r, hit_rate=0.5) for r in base]
    rule = "hit_rate<-0.5pp"
    one = paired(base[:1], more[:1], rule)
    assert (one.outcome, one.reason, one.settled) == ("INCONCLUSIVE", "1 of at least 2 rounds", 0)
    assert paired(base, more, rule).outcome == "FAIL"
    stored = judge("c", base[:1], more[:1], parse_rule(rule), Terms(paired=False))
    assert stored.outcome == "FAIL", "no further round follows"


def test_after_a_fail_undecided_counters_are_only_counted() -> None:
    base = rounds(0.1, 0.02, 2, 1)
    worse = [replace(r, hit_rate=0.5) for r in base]
    worse[1] = replace(worse[1], counters=COUNTS | {"bytes_loaded": 1})
    lower = Trial([Comparison("c", base, worse)], [parse_rule("hit_rate<-0.5pp")])
    rows, lines = shown(lower.verdicts(), lower.outcome())
    assert lower.outcome() == "FAIL" and [v.metric for v in rows] == ["hit_rate"]
    assert lines == ["4 counters are as they must be.", "1 counter is undecided."]
    same = [replace(r, hit_rate=0.64) for r in worse]
    varying = Trial([Comparison("c", base, same)], [parse_rule("hit_rate<-0.5pp")])
    rows, lines = shown(varying.verdicts(), varying.outcome())
    assert varying.outcome() == "INCONCLUSIVE", "and then it is why"
    assert [v.metric for v in rows] == ["hit_rate", "bytes_loaded"]


def test_a_trial_settles_when_something_failed_or_nothing_is_open() -> None:
    base = rounds(0.1, 0.02, 40, 1)
    moved = [replace(r, counters=COUNTS | {"bytes_loaded": 1}) for r in base]
    first = Comparison("c", base[:2], moved[:2])
    assert Trial([first], [RULE]).settled(first)
    still = Comparison("c", base[:2], base[2:4])
    assert not Trial([still], [RULE]).settled(still)
    done = Comparison("c", base[:40], rounds(0.1, 0.02, 40, 5))
    assert Trial([done], [RULE]).settled(done) and Trial([done], [RULE]).outcome() == "PASS"


def test_rounds_come_from_samples() -> None:
    sample = Sample(
        request_id="a",
        session="s",
        prompt_tokens=100,
        output_tokens=2,
        scheduled_s=1.0,
        sent_s=1.5,
        first_token_s=2.0,
        finished_s=3.0,
        token_s=(2.0, 3.0),
        hit_tokens={"cpu": 64},
        bytes_loaded=10,
    )
    failed = replace(sample, request_id="b", error="gone")
    found = round_of([sample, failed], busy_s=2.0, evicted=3)
    assert (found.n, found.failed, found.hit_rate) == (1, 1, 0.64)
    assert found.value("ttft.p50") == found.value("ttft.mean") == 1.0
    assert found.value("ttft_from_send.p99") == 0.5
    assert found.value("throughput.requests_per_s") == 0.5
    assert found.value("recomputed_tokens") == 36 and found.value("evicted_chunks") == 3
    assert found.value("itl.p50") == 1.0 and found.value("load.p50") == 0.0
